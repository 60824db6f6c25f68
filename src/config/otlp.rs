//! Where telemetry is exported to: `otlp.endpoint`, and the standard variables of OpenTelemetry.
//!
//! Guarantees: `otlp.endpoint` goes before any `OTEL_EXPORTER_OTLP_…ENDPOINT`; what the file does not say comes from the environment;
//! `OTEL_SDK_DISABLED=true` turns everything off. Without an endpoint nothing is exported: a default of localhost would
//! make every plugin talk to a port that nobody gave it. Refuses to know: how it is exported. The variables that the OpenTelemetry
//! SDK reads by itself (sampler, queue, resource, headers of traces) are not read again here.
//! SPEC: OpenTelemetry, "OTLP Exporter Configuration" and "Environment Variable Specification".

use percent_encoding::percent_decode_str;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

const PREFIX: &str = "OTEL_EXPORTER_OTLP_";
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(60);

/// What is exported, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpConfig {
    /// Spans.
    pub traces: Option<OtlpDestination>,
    /// Metrics.
    pub metrics: Option<OtlpDestination>,
    /// `OTEL_METRIC_EXPORT_INTERVAL`.
    pub interval: Duration,
}

/// A collector, for one signal.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpDestination {
    /// An URL of scheme http or https.
    pub endpoint: String,
    /// `OTEL_EXPORTER_OTLP_HEADERS`. May hold a token.
    pub headers: Vec<(String, String)>,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`.
    pub timeout: Duration,
    /// `OTEL_EXPORTER_OTLP_CERTIFICATE`: a PEM file.
    pub certificate: Option<PathBuf>,
}

impl fmt::Debug for OtlpDestination {
    /// SECURITY: headers hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpDestination").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// What the file and the environment say together; `None` when nothing is exported.
///
/// # Errors
/// The variable that cannot be used, without its value.
pub fn otlp(endpoint: Option<&str>) -> Result<Option<OtlpConfig>, String> {
    #[expect(clippy::disallowed_methods, reason = "this is where the environment comes in")]
    resolve(endpoint, |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
}

fn resolve(endpoint: Option<&str>, read: impl Fn(&str) -> Option<String>) -> Result<Option<OtlpConfig>, String> {
    if read("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let destination = |signal: &str| destination(signal, endpoint, &read);
    let (traces, metrics) = (destination("TRACES")?, destination("METRICS")?);
    if traces.is_none() && metrics.is_none() {
        return Ok(None);
    }
    let interval = milliseconds("OTEL_METRIC_EXPORT_INTERVAL", &read)?.unwrap_or(INTERVAL_DEFAULT);
    Ok(Some(OtlpConfig { traces, metrics, interval }))
}

fn destination(
    signal: &str,
    endpoint: Option<&str>,
    read: &impl Fn(&str) -> Option<String>,
) -> Result<Option<OtlpDestination>, String> {
    if read(&format!("OTEL_{signal}_EXPORTER")).is_some_and(|exporter| exporter != "otlp") {
        return Ok(None);
    }
    // The variable of one signal goes before that of all.
    let of = |name: &str| {
        let one = format!("{PREFIX}{signal}_{name}");
        read(&one).map(|value| (one, value)).or_else(|| {
            let all = format!("{PREFIX}{name}");
            read(&all).map(|value| (all, value))
        })
    };
    let endpoint = match endpoint {
        Some(endpoint) => endpoint.to_owned(),
        None => match of("ENDPOINT") {
            Some((name, url)) => match endpoint_fault(&url) {
                Some((what, hint)) => return Err(format!("{name}: {what}; {hint}")),
                None => url,
            },
            None => return Ok(None),
        },
    };
    if let Some((name, _)) = of("PROTOCOL").filter(|(_, protocol)| protocol != "grpc") {
        return Err(format!("{name}: only grpc is there; collectors take it on port 4317"));
    }
    let timeout = match of("TIMEOUT") {
        Some((name, _)) => milliseconds(&name, read)?.unwrap_or(TIMEOUT_DEFAULT),
        None => TIMEOUT_DEFAULT,
    };
    let headers = match of("HEADERS") {
        Some((name, list)) => headers(&list).ok_or(format!("{name}: is not a list such as name=value,name=value"))?,
        None => Vec::new(),
    };
    let certificate = of("CERTIFICATE").map(|(_, path)| PathBuf::from(path));
    Ok(Some(OtlpDestination { endpoint, headers, timeout, certificate }))
}

fn milliseconds(name: &str, read: &impl Fn(&str) -> Option<String>) -> Result<Option<Duration>, String> {
    let Some(value) = read(name) else { return Ok(None) };
    let wrong = || format!("{name}: is not a number of milliseconds from 1");
    let milliseconds = value.trim().parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
    Ok(Some(Duration::from_millis(milliseconds)))
}

/// SPEC: W3C Baggage without properties: `name=value,name=value`, values percent-encoded.
fn headers(list: &str) -> Option<Vec<(String, String)>> {
    let pairs = list.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((name.trim().to_owned(), value.into_owned()))
        })
        .collect()
}

/// What is wrong with an endpoint, and what to do.
pub(super) fn endpoint_fault(endpoint: &str) -> Option<(&'static str, &'static str)> {
    const LIKE: &str = "such as http://127.0.0.1:4317 or https://collector.example:4317";
    let url = endpoint.parse::<http::Uri>().ok();
    let parts = url.as_ref().and_then(|url| Some((url.scheme_str()?, url.authority()?)));
    match parts {
        // SECURITY: a password in a URL would be printed wherever the endpoint is.
        Some((_, authority)) if authority.as_str().contains('@') => {
            Some(("has a user name or password in it", "OTEL_EXPORTER_OTLP_HEADERS takes a token"))
        }
        Some(("http" | "https", _)) => None,
        _ => Some(("is not a URL of http or https", LIKE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<OtlpConfig>, String> {
        resolve(endpoint, |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn endpoints(endpoint: Option<&str>, variables: &[(&str, &str)]) -> (Option<String>, Option<String>) {
        let config = of(endpoint, variables).unwrap();
        let endpoint = |to: Option<OtlpDestination>| to.map(|to| to.endpoint);
        config.map_or((None, None), |config| (endpoint(config.traces), endpoint(config.metrics)))
    }

    #[test]
    fn without_an_endpoint_nothing_is_exported_and_the_file_goes_before_the_environment() {
        let both = |url: &str| (Some(url.to_owned()), Some(url.to_owned()));
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4317");
        assert_eq!(endpoints(None, &[]), (None, None));
        assert_eq!(endpoints(None, &[all]), both("http://all:4317"));
        assert_eq!(endpoints(None, &[traces]), (Some("http://traces:4317".to_owned()), None));
        assert_eq!(endpoints(None, &[all, traces]).0.as_deref(), Some("http://traces:4317"));
        assert_eq!(endpoints(Some("http://file:1"), &[all, traces]), both("http://file:1"));
        assert_eq!(endpoints(Some("http://file:1"), &[("OTEL_SDK_DISABLED", "TRUE")]), (None, None));
        assert_eq!(endpoints(Some("http://file:1"), &[("OTEL_METRICS_EXPORTER", "none")]).1, None);
    }

    #[test]
    fn headers_time_and_certificate_are_taken_from_the_signal_first() {
        let config = of(
            Some("http://c:1"),
            &[
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a%3D, x = y"),
                ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", ""),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
                ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "50"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
                ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
            ],
        );
        let config = config.unwrap().unwrap();
        let (traces, metrics) = (config.traces.unwrap(), config.metrics.unwrap());
        let expected = [("authorization".to_owned(), "Bearer a=".to_owned()), ("x".to_owned(), "y".to_owned())];
        assert_eq!(traces.headers, expected);
        assert!(metrics.headers.is_empty());
        assert_eq!((traces.timeout, metrics.timeout), (Duration::from_secs(2), Duration::from_millis(50)));
        assert_eq!(traces.certificate, Some(PathBuf::from("/ca.pem")));
        assert_eq!(config.interval, Duration::from_millis(1500));
        assert!(!format!("{traces:?}").contains("Bearer"));
    }

    #[test]
    fn what_cannot_be_used_is_named_without_its_value() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon-secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ] {
            let error = of(None, &[endpoint, (name, value)]).unwrap_err();
            assert!(error.starts_with(name) && !error.contains("secret"), "{error}");
        }
        for url in ["collector:4317", "ftp://c", "http://user:secret@c:1", ""] {
            assert!(endpoint_fault(url).is_some(), "{url}");
        }
        for url in ["http://127.0.0.1:4317", "https://c.example:4317/"] {
            assert_eq!(endpoint_fault(url), None);
        }
    }
}
