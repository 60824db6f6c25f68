//! The exporter of spans, with a count of how its exports end.

use super::Exports;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use std::time::Duration;

/// Passes everything on to another exporter and counts.
#[derive(Debug)]
pub(super) struct Counted<E> {
    inner: E,
    exports: Exports,
}

impl<E> Counted<E> {
    pub(super) const fn new(inner: E, exports: Exports) -> Self {
        Self { inner, exports }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let outcome = self.inner.export(batch).await;
        match &outcome {
            Ok(()) => self.exports.note("traces", Ok(())),
            Err(error) => self.exports.note("traces", Err(error)),
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
