//! What the HTTP pages and the log need from the rest, in the telemetry's own words.

use kube_kms_config as config;
use kube_kms_memory as memory;
use kube_kms_service::plugin::Plugin;
use kube_kms_service::snapshot::Snapshot;
use kube_kms_telemetry::ProcessFacts;
use kube_kms_telemetry::http::Pages;
use kube_kms_telemetry::log::{DroppedLines, LogFormat, LogLevel};
use kube_kms_telemetry::metrics::Metrics;
use kube_kms_telemetry::otlp::Exports;
use std::sync::Arc;

/// The plugin behind /metrics and /readyz.
#[derive(Debug)]
pub struct HealthPages {
    plugin: Arc<Plugin>,
    metrics: Arc<Metrics>,
    dropped: DroppedLines,
}

impl HealthPages {
    /// Pages about this plugin.
    #[must_use]
    pub const fn new(plugin: Arc<Plugin>, metrics: Arc<Metrics>, dropped: DroppedLines) -> Self {
        Self { plugin, metrics, dropped }
    }

    /// Counts of the exports of traces and of metrics.
    pub(super) fn exports(&self) -> (Exports, Exports) {
        self.metrics.exports()
    }
}

impl Pages for HealthPages {
    fn snapshot(&self) -> Snapshot {
        self.plugin.snapshot()
    }

    fn metrics(&self) -> String {
        let process = ProcessFacts {
            locked: memory::locked_bytes(),
            unlocked: memory::unlocked_bytes(),
            log_lines_dropped: self.dropped.count(),
        };
        self.metrics.encode(&self.plugin.snapshot(), process)
    }
}

pub(super) const fn log_format(format: config::LogFormat) -> LogFormat {
    match format {
        config::LogFormat::Text => LogFormat::Text,
        config::LogFormat::Json => LogFormat::Json,
    }
}

pub(super) const fn log_level(level: config::LogLevel) -> LogLevel {
    match level {
        config::LogLevel::Error => LogLevel::Error,
        config::LogLevel::Warn => LogLevel::Warn,
        config::LogLevel::Info => LogLevel::Info,
        config::LogLevel::Debug => LogLevel::Debug,
        config::LogLevel::Trace => LogLevel::Trace,
    }
}
