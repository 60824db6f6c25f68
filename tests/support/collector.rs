//! An OTLP collector: takes traces and metrics over gRPC, keeps them, and can be told not to answer.
//!
//! Guarantees: what it keeps is what came over the wire, headers included; it serves on a thread of its own.

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// One collector. A clone is the same one.
#[derive(Clone, Default)]
pub struct Collector {
    shared: Arc<Shared>,
    address: Option<SocketAddr>,
}

#[derive(Default)]
struct Shared {
    traces: Mutex<Vec<ExportTraceServiceRequest>>,
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    headers: Mutex<Vec<String>>,
    hangs: AtomicBool,
}

impl Collector {
    /// Starts one on a port of the kernel's choice.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let collector = Self { shared: Arc::default(), address: Some(listener.local_addr().unwrap()) };
        let (traces, metrics) = (collector.clone(), collector.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
                tonic::transport::Server::builder()
                    .add_service(TraceServiceServer::new(traces))
                    .add_service(MetricsServiceServer::new(metrics))
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
        });
        collector
    }

    /// What `otlp.endpoint` takes.
    pub fn url(&self) -> String {
        format!("http://{}", self.address.unwrap())
    }

    /// From now on exports arrive and are never answered.
    pub fn hang(&self) {
        self.shared.hangs.store(true, Ordering::Relaxed);
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        let requests = self.shared.traces.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|of| &of.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The metrics of the last export.
    pub fn metrics(&self) -> Vec<Metric> {
        let requests = self.shared.metrics.lock().unwrap();
        let resources = requests.last().into_iter().flat_map(|request| &request.resource_metrics);
        resources.flat_map(|of| &of.scope_metrics).flat_map(|scope| scope.metrics.clone()).collect()
    }

    /// The attributes of the resource that sent the last spans.
    pub fn resource(&self) -> Vec<(String, String)> {
        let requests = self.shared.traces.lock().unwrap();
        let resource = requests.last().and_then(|request| request.resource_spans.last()?.resource.clone());
        resource.unwrap().attributes.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
    }

    /// The headers of every export, as `name: value`.
    pub fn headers(&self) -> Vec<String> {
        self.shared.headers.lock().unwrap().clone()
    }

    /// Everything that came, as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.headers().join("\n").into_bytes();
        bytes.extend(self.shared.traces.lock().unwrap().iter().flat_map(|request| request.encode_to_vec()));
        bytes.extend(self.shared.metrics.lock().unwrap().iter().flat_map(|request| request.encode_to_vec()));
        bytes
    }

    async fn arrived<T>(&self, request: Request<T>) -> T {
        let (metadata, _, message) = request.into_parts();
        let lines = metadata.into_headers();
        let lines = lines.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
        self.shared.headers.lock().unwrap().extend(lines);
        if self.shared.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        message
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let message = self.arrived(request).await;
        self.shared.traces.lock().unwrap().push(message);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let message = self.arrived(request).await;
        self.shared.metrics.lock().unwrap().push(message);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// An attribute of a span, as text; empty when it is not there.
pub fn attribute(span: &Span, key: &str) -> String {
    text(span.attributes.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.as_ref()))
}

fn text(value: Option<&opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    }
}
