//! OpenTelemetry export over OTLP/gRPC: the spans of [`kube_kms_span`] and the numbers of /metrics.
//!
//! Guarantees: a request never waits for a collector: spans go through the SDK's bounded queue (what does not fit is dropped by it),
//! and everything else is on a thread with a runtime of its own. Metrics are read from the page of /metrics, so they are
//! the same numbers. [`Exporter::stop`] sends what is left, within a limit. A collector that is away is said once and counted.
//! Refuses to know: where settings come from. SPEC: OpenTelemetry Protocol 1.x; docs/observability.md.

mod metric;
mod span_export;

use kube_kms_os::wall_clock;
use kube_kms_span as span;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus_client::metrics::counter::Counter;
use span_export::Counted;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// How long a connection to the collector may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What of the time to stop is left for the metrics, after the spans.
const LAST_METRICS: Duration = Duration::from_millis(500);
const SERVICE: &str = "kube-kms";

/// A collector, for one signal.
#[derive(Clone)]
pub struct Destination {
    /// `http://` or `https://`, host and port.
    pub endpoint: String,
    /// Sent with every export. May hold a token.
    pub headers: Vec<(String, String)>,
    /// How long one export may take.
    pub timeout: Duration,
    /// PEM of what signs the collector's certificate; without it, the roots of the host.
    pub authority: Option<Vec<u8>>,
}

impl fmt::Debug for Destination {
    /// SECURITY: headers hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// What is exported, and where to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Spans.
    pub traces: Option<Destination>,
    /// Metrics.
    pub metrics: Option<Destination>,
    /// Time between two exports of metrics.
    pub interval: Duration,
}

/// Exports that ended, for /metrics.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    pub(super) sent: Counter,
    pub(super) failed: Counter,
    pub(super) is_failing: Arc<AtomicBool>,
}

impl Exports {
    /// Counts one, and says when that is a change.
    fn note(&self, signal: &'static str, outcome: Result<(), &dyn fmt::Display>) {
        match outcome {
            Ok(()) => {
                self.sent.inc();
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(target: "kube_kms::otlp", signal, "the collector takes exports again");
                }
            }
            Err(error) => {
                self.failed.inc();
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(target: "kube_kms::otlp", signal, %error, "the collector does not take exports; requests do not notice");
                }
            }
        }
    }
}

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The endpoint, its certificate or a header cannot be used.
    #[error("{0}")]
    Destination(String),
    /// A thread or a runtime cannot be had.
    #[error("no thread for the export")]
    Thread(#[source] std::io::Error),
}

/// Exports until it is stopped.
#[derive(Debug)]
pub struct Exporter {
    stop: watch::Sender<Option<Duration>>,
    thread: JoinHandle<()>,
}

/// What the thread needs of the rest.
pub type Page = Arc<dyn Fn() -> String + Send + Sync>;

impl Exporter {
    /// Starts it; nothing is connected before the first export.
    ///
    /// # Errors
    /// [`OtlpError`]; the process can serve without.
    pub fn start(settings: Settings, traces: Exports, metrics: Exports, page: Page) -> Result<Self, OtlpError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OtlpError::Thread)?;
        let resource = Resource::builder();
        // Detected from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, which go first.
        let resource =
            if has_service_name(&Resource::builder().build()) { resource } else { resource.with_service_name(SERVICE) };
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        let (provider, pusher) = {
            // A channel belongs to the runtime that it is made in.
            let _inside = runtime.enter();
            let provider = settings.traces.map(|to| tracer_provider(&to, resource.clone(), traces)).transpose()?;
            let pusher = settings.metrics.map(|to| Pusher::new(&to, &resource, metrics, page)).transpose()?;
            (provider, pusher)
        };
        if let Some(provider) = &provider {
            span::enable(provider.tracer(SERVICE));
        }
        let (stop, stopped) = watch::channel(None);
        let interval = settings.interval;
        let thread = std::thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || runtime.block_on(run(provider, pusher, interval, stopped)))
            .map_err(OtlpError::Thread)?;
        Ok(Self { stop, thread })
    }

    /// Sends what is left, within this time, and ends.
    pub async fn stop(self, limit: Duration) {
        // The thread is gone when nobody listens.
        let _ = self.stop.send(Some(limit));
        let joined = tokio::task::spawn_blocking(move || self.thread.join());
        // A collector that hangs costs this time and not more.
        let _ = tokio::time::timeout(limit, joined).await;
    }
}

/// The SDK says `unknown_service` when nobody has named it.
fn has_service_name(detected: &Resource) -> bool {
    let name = detected.iter().find(|(key, _)| key.as_str() == "service.name").map(|(_, value)| value);
    matches!(name, Some(Value::String(name)) if !name.as_str().starts_with("unknown_service"))
}

async fn run(
    provider: Option<SdkTracerProvider>,
    pusher: Option<Pusher>,
    interval: Duration,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    let mut pusher = pusher;
    let limit = loop {
        tokio::select! {
            biased;
            stop = stopped.wait_for(Option::is_some) => break stop.ok().and_then(|limit| *limit).unwrap_or_default(),
            () = tokio::time::sleep(interval) => if let Some(pusher) = &mut pusher {
                pusher.push().await;
            },
        }
    };
    let for_spans = limit.saturating_sub(LAST_METRICS);
    if let Some(provider) = provider {
        // Off this thread, which carries the connection that the spans go over.
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(for_spans));
        let _ = tokio::time::timeout(for_spans, flushed).await;
    }
    if let Some(pusher) = &mut pusher {
        let _ = tokio::time::timeout(LAST_METRICS, pusher.push()).await;
    }
}

fn tracer_provider(to: &Destination, resource: Resource, exports: Exports) -> Result<SdkTracerProvider, OtlpError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_channel(channel(to)?)
        .with_timeout(to.timeout)
        .build()
        .map_err(|error| OtlpError::Destination(error.to_string()))?;
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(Counted::new(exporter, exports))
        .build())
}

fn channel(to: &Destination) -> Result<Channel, OtlpError> {
    let wrong = |error: tonic::transport::Error| OtlpError::Destination(format!("{}: {error}", to.endpoint));
    let endpoint =
        Endpoint::from_shared(to.endpoint.clone()).map_err(wrong)?.connect_timeout(CONNECT_TIMEOUT).timeout(to.timeout);
    if endpoint.uri().scheme_str() != Some("https") {
        return Ok(endpoint.connect_lazy());
    }
    let tls = match &to.authority {
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    Ok(endpoint.tls_config(tls).map_err(wrong)?.connect_lazy())
}

/// Sends the page of metrics.
struct Pusher {
    client: MetricsServiceClient<Channel>,
    headers: MetadataMap,
    resource: opentelemetry_proto::tonic::resource::v1::Resource,
    exports: Exports,
    page: Page,
    timeout: Duration,
    began: u64,
}

impl Pusher {
    fn new(to: &Destination, resource: &Resource, exports: Exports, page: Page) -> Result<Self, OtlpError> {
        let mut headers = MetadataMap::new();
        for (name, value) in &to.headers {
            let key = MetadataKey::<Ascii>::from_bytes(name.to_ascii_lowercase().as_bytes());
            let value: Result<MetadataValue<Ascii>, _> = value.parse();
            // SECURITY: the value may be a token; only the name is said.
            let (Ok(key), Ok(value)) = (key, value) else {
                return Err(OtlpError::Destination(format!("header {name} cannot be sent")));
            };
            headers.insert(key, value);
        }
        Ok(Self {
            client: MetricsServiceClient::new(channel(to)?),
            headers,
            resource: metric::resource(resource),
            exports,
            page,
            timeout: to.timeout,
            began: nanos_now(),
        })
    }

    async fn push(&mut self) {
        let request = metric::request(&(self.page)(), self.resource.clone(), self.began, nanos_now());
        let mut request = tonic::Request::new(request);
        *request.metadata_mut() = self.headers.clone();
        match tokio::time::timeout(self.timeout, self.client.export(request)).await {
            Ok(Ok(_)) => self.exports.note("metrics", Ok(())),
            Ok(Err(status)) => self.exports.note("metrics", Err(&status.code())),
            Err(_) => self.exports.note("metrics", Err(&"no answer in time")),
        }
    }
}

fn nanos_now() -> u64 {
    let now = wall_clock().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
