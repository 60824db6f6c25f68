//! Starts the export of telemetry from what the configuration and the environment say.
//!
//! Guarantees: nothing here keeps the plugin from serving; what is wrong is logged, and nothing is exported then.

use crate::process::pages::HealthPages;
use kube_kms_config::{self as config, OtlpDestination};
use kube_kms_telemetry::http::Pages as _;
use kube_kms_telemetry::otlp::{Destination, Exporter, Settings};
use std::sync::Arc;

/// The export, when there is one.
pub(super) fn start(endpoint: Option<&str>, pages: &Arc<HealthPages>) -> Option<Exporter> {
    let started = try_start(endpoint, pages);
    started.unwrap_or_else(|error| {
        tracing::error!(target: "kube_kms::otlp", error, "no traces or metrics are exported; requests are served");
        None
    })
}

fn try_start(endpoint: Option<&str>, pages: &Arc<HealthPages>) -> Result<Option<Exporter>, String> {
    let Some(config) = config::otlp(endpoint)? else { return Ok(None) };
    let settings = Settings {
        traces: config.traces.map(destination).transpose()?,
        metrics: config.metrics.map(destination).transpose()?,
        interval: config.interval,
    };
    let endpoint_of =
        |to: &Option<Destination>| to.as_ref().map_or_else(|| "none".to_owned(), |to| to.endpoint.clone());
    let (traces, metrics) = (endpoint_of(&settings.traces), endpoint_of(&settings.metrics));
    let (of_traces, of_metrics) = pages.exports();
    let page = Arc::clone(pages);
    let exporter = Exporter::start(settings, of_traces, of_metrics, Arc::new(move || page.metrics()))
        .map_err(|error| error.to_string())?;
    tracing::info!(target: "kube_kms::otlp", traces, metrics, "exporting over OTLP");
    Ok(Some(exporter))
}

fn destination(config: OtlpDestination) -> Result<Destination, String> {
    let OtlpDestination { endpoint, headers, timeout, certificate } = config;
    let read = |path: std::path::PathBuf| {
        std::fs::read(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    };
    Ok(Destination { endpoint, headers, timeout, authority: certificate.map(read).transpose()? })
}
