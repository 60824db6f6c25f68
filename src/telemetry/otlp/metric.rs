//! From the page of /metrics to one OTLP request: the same numbers, read and not counted again.
//!
//! Guarantees: counters are monotonic cumulative sums, histograms keep their buckets, an info is a gauge of 1; a line that this
//! does not know is left out, never guessed. Refuses to know what the metrics mean.
//! SPEC: OpenMetrics 1.0; OpenTelemetry, "Prometheus and OpenMetrics compatibility".

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;

/// Both times in nanoseconds since the Unix epoch.
#[derive(Clone, Copy)]
struct Times {
    began: u64,
    now: u64,
}

/// The SDK's resource in the protocol's words.
pub(super) fn resource(of: &opentelemetry_sdk::Resource) -> Resource {
    let attributes = of.iter().map(|(key, value)| pair(key.as_str(), &value.as_str())).collect();
    Resource { attributes, ..Resource::default() }
}

/// One request with everything on the page.
pub(super) fn request(page: &str, resource: Resource, began: u64, now: u64) -> ExportMetricsServiceRequest {
    let times = Times { began, now };
    let mut metrics = Vec::new();
    let (mut help, mut unit) = ("", "");
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some((_, text)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = text;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let mut samples = Vec::new();
            while let Some(next) = lines.next_if(|next| !next.starts_with("# ") || next.starts_with("# UNIT ")) {
                if let Some((_, text)) = next.strip_prefix("# UNIT ").and_then(|rest| rest.split_once(' ')) {
                    unit = text;
                } else if let Some(sample) = Sample::parse(next) {
                    samples.push(sample);
                }
            }
            metrics.extend(metric(name, kind, help, unit, &samples, times));
            (help, unit) = ("", "");
        }
    }
    let scope = InstrumentationScope { name: super::SERVICE.to_owned(), ..InstrumentationScope::default() };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
    let resource_metrics =
        vec![ResourceMetrics { resource: Some(resource), scope_metrics, ..ResourceMetrics::default() }];
    ExportMetricsServiceRequest { resource_metrics }
}

fn metric(name: &str, kind: &str, help: &str, unit: &str, samples: &[Sample], times: Times) -> Option<Metric> {
    let cumulative = AggregationTemporality::Cumulative.into();
    let points = || samples.iter().map(|sample| sample.point(times)).collect();
    let (name, data) = match kind {
        "counter" => (
            name.to_owned(),
            Data::Sum(Sum { data_points: points(), aggregation_temporality: cumulative, is_monotonic: true }),
        ),
        "gauge" => (name.to_owned(), Data::Gauge(Gauge { data_points: points() })),
        "info" => (format!("{name}_info"), Data::Gauge(Gauge { data_points: points() })),
        "histogram" => {
            let data_points = histograms(name, samples, times);
            (name.to_owned(), Data::Histogram(Histogram { data_points, aggregation_temporality: cumulative }))
        }
        _ => return None,
    };
    let unit = match unit {
        "seconds" => "s",
        "bytes" => "By",
        other => other,
    };
    Some(Metric { name, description: help.to_owned(), unit: unit.to_owned(), data: Some(data), ..Metric::default() })
}

/// Puts the series of a histogram together again. A page has all buckets of one before those of the next.
fn histograms(name: &str, samples: &[Sample], times: Times) -> Vec<HistogramDataPoint> {
    let mut points: Vec<HistogramDataPoint> = Vec::new();
    for sample in samples {
        let labels: Vec<KeyValue> =
            sample.labels.iter().filter(|(key, _)| key != "le").map(|(key, value)| pair(key, value)).collect();
        if points.last().is_none_or(|point| point.attributes != labels) {
            points.push(HistogramDataPoint {
                attributes: labels,
                start_time_unix_nano: times.began,
                time_unix_nano: times.now,
                ..HistogramDataPoint::default()
            });
        }
        let Some(point) = points.last_mut() else { continue };
        match sample.name.strip_prefix(name) {
            Some("_sum") => point.sum = sample.value.parse().ok(),
            Some("_count") => point.count = sample.value.parse().unwrap_or_default(),
            Some("_bucket") => {
                let bound = sample.labels.iter().find(|(key, _)| key == "le").map(|(_, bound)| bound.as_str());
                let before: u64 = point.bucket_counts.iter().sum();
                let upto: u64 = sample.value.parse().unwrap_or_default();
                // A bucket of the page counts those below it as well; here each counts its own.
                point.bucket_counts.push(upto.saturating_sub(before));
                // The last bucket has no bound.
                point.explicit_bounds.extend(bound.and_then(|b| b.parse::<f64>().ok()).filter(|b| b.is_finite()));
            }
            _ => {}
        }
    }
    points
}

/// One line of the page.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: String,
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (label, after) = rest.strip_prefix(',').unwrap_or(rest).split_once("=\"")?;
                let (value, after) = unescaped(after)?;
                labels.push((label.to_owned(), value));
                rest = after;
            }
            rest = rest.strip_prefix('}')?;
        }
        let value = rest.strip_prefix(' ')?.split(' ').next()?;
        Some(Self { name: name.to_owned(), labels, value: value.to_owned() })
    }

    fn point(&self, times: Times) -> NumberDataPoint {
        let value = match self.value.parse::<i64>() {
            Ok(whole) => number_data_point::Value::AsInt(whole),
            Err(_) => number_data_point::Value::AsDouble(self.value.parse().unwrap_or(f64::NAN)),
        };
        NumberDataPoint {
            attributes: self.labels.iter().map(|(key, value)| pair(key, value)).collect(),
            start_time_unix_nano: times.began,
            time_unix_nano: times.now,
            value: Some(value),
            ..NumberDataPoint::default()
        }
    }
}

/// Up to the closing quote; what follows it comes back as well.
fn unescaped(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                c => value.push(c),
            },
            c => value.push(c),
        }
    }
}

fn pair(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessFacts;
    use crate::exposition::{Page, snapshot};
    use crate::metrics::Metrics;
    use kube_kms_core::fault::Reason;
    use kube_kms_service::observer::{Observer as _, Rpc};
    use std::time::Duration;

    fn request_of(page: &str) -> Vec<Metric> {
        let request = request(page, Resource::default(), 1, 2);
        request.resource_metrics.into_iter().flat_map(|r| r.scope_metrics).flat_map(|s| s.metrics).collect()
    }

    #[test]
    fn every_family_of_the_page_is_there_with_every_series_and_its_number() {
        let metrics = Metrics::new();
        metrics.rpc(Rpc::Encrypt, Ok(()), Duration::from_micros(30));
        metrics.rpc(Rpc::Encrypt, Ok(()), Duration::from_secs(60));
        metrics.rpc(Rpc::Decrypt, Err(Reason::OpenFailed), Duration::from_millis(2));
        let page = metrics.encode(&snapshot(), ProcessFacts { locked: 4096, ..ProcessFacts::default() });
        let sent = request_of(&page);
        let read = Page::parse(&page).unwrap();
        assert_eq!(sent.len(), read.documented_names().len());
        for metric in &sent {
            match metric.data.as_ref().unwrap() {
                Data::Sum(sum) => {
                    assert!(sum.is_monotonic);
                    assert_same(&read, &format!("{}_total", metric.name), &sum.data_points);
                }
                Data::Gauge(gauge) => assert_same(&read, &metric.name, &gauge.data_points),
                Data::Histogram(histogram) => {
                    let count: u64 = histogram.data_points.iter().map(|p| p.count).sum();
                    let expected: f64 = read.samples_of(&format!("{}_count", metric.name)).map(|s| s.value).sum();
                    assert_eq!(count.to_string(), expected.to_string(), "{}", metric.name);
                    for point in &histogram.data_points {
                        assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
                        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn assert_same(page: &Page, name: &str, points: &[NumberDataPoint]) {
        let expected: Vec<String> = page.samples_of(name).map(|sample| sample.value.to_string()).collect();
        let sent: Vec<String> = points
            .iter()
            .map(|point| match point.value.unwrap() {
                number_data_point::Value::AsInt(n) => n.to_string(),
                number_data_point::Value::AsDouble(x) => x.to_string(),
            })
            .collect();
        assert_eq!(sent, expected, "{name}");
        assert!(!sent.is_empty(), "{name}");
    }

    #[test]
    fn a_histogram_keeps_its_buckets_and_units_are_those_of_the_protocol() {
        let metrics = Metrics::new();
        metrics.rpc(Rpc::Encrypt, Ok(()), Duration::from_micros(30));
        metrics.rpc(Rpc::Encrypt, Ok(()), Duration::from_secs(60));
        let sent = request_of(&metrics.encode(&snapshot(), ProcessFacts::default()));
        let of = |name: &str| sent.iter().find(|m| m.name == name).unwrap();
        let Some(Data::Histogram(histogram)) = &of("kube_kms_rpc_duration_seconds").data else { panic!() };
        let encrypt = histogram.data_points.iter().find(|p| p.attributes == [pair("rpc", "Encrypt")]).unwrap();
        assert_eq!(encrypt.bucket_counts[..4], [0, 0, 1, 0]);
        assert_eq!(encrypt.bucket_counts.last(), Some(&1));
        assert_eq!(encrypt.explicit_bounds.last(), Some(&10.0));
        assert_eq!(
            (of("kube_kms_rpc_duration_seconds").unit.as_str(), of("kube_kms_locked_memory_bytes").unit.as_str()),
            ("s", "By")
        );
        assert_eq!(of("kube_kms_build_info").description, "The version of this binary.");
    }

    #[test]
    fn a_label_is_unescaped_and_a_line_that_is_none_is_left_out() {
        let sample = Sample::parse("a{b=\"x\\\"\\\\\\n\",c=\"\"} 1.5").unwrap();
        assert_eq!(sample.labels, [("b".to_owned(), "x\"\\\n".to_owned()), ("c".to_owned(), String::new())]);
        for bad in ["", "a", "a{b=\"} 1", "a{b} 1", "# EOF"] {
            assert!(Sample::parse(bad).is_none_or(|s| s.name == "#"), "{bad}");
        }
    }
}
