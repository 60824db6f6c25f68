//! Spans of OpenTelemetry: what a request did, and when, for whoever collects traces.
//!
//! Guarantees: without [`enable`] a span is nothing: one load, no allocation, no clock. A span takes words of ours, numbers and
//! what callers pass to [`Span::text`]; it is never given a secret, and `tests/telemetry.rs` looks. Spans do not pass through
//! `tracing`, so they cannot change what is logged. Refuses to know: where spans go (`telemetry::otlp`).
//! SPEC: W3C Trace Context (`traceparent`); OpenTelemetry semantic conventions, RPC.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::OnceLock;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// From now on spans are made, by this tracer. The first one stays.
pub fn enable(tracer: SdkTracer) {
    TRACER.set(tracer).ok();
}

/// One span, ended when it is dropped. Nothing when spans are off.
pub struct Span(Option<Context>);

/// What spans that begin inside are children of.
#[derive(Clone)]
pub struct Scope(Option<Context>);

/// The span of a request that somebody sent; a child of theirs when `traceparent` says so.
#[must_use]
pub fn server(name: &'static str, headers: &HeaderMap) -> Span {
    let Some(tracer) = TRACER.get() else { return Span(None) };
    let sender = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    begin(tracer, name, SpanKind::Server, &sender)
}

/// The span of a call to somebody else, a child of the scope that it begins in.
#[must_use]
pub fn client(name: &'static str) -> Span {
    TRACER.get().map_or(Span(None), |tracer| begin(tracer, name, SpanKind::Client, &Context::current()))
}

/// The span of something done in this process, a child of the scope that it begins in.
#[must_use]
pub fn internal(name: &'static str) -> Span {
    TRACER.get().map_or(Span(None), |tracer| begin(tracer, name, SpanKind::Internal, &Context::current()))
}

/// The scope of this moment, to be taken into a task of its own.
#[must_use]
pub fn here() -> Scope {
    Scope(TRACER.get().map(|_| Context::current()))
}

fn begin(tracer: &SdkTracer, name: &'static str, kind: SpanKind, parent: &Context) -> Span {
    let span = tracer.span_builder(name).with_kind(kind).start_with_context(tracer, parent);
    Span(Some(parent.with_span(span)))
}

impl Span {
    /// Whether anybody will see it: what is costly to say need not be said otherwise.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        self.0.as_ref().is_some_and(|context| context.span().is_recording())
    }

    /// Says a text.
    pub fn text(&self, key: &'static str, value: &str) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value.to_owned()));
        }
    }

    /// Says a number.
    pub fn number(&self, key: &'static str, value: i64) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Says yes or no.
    pub fn flag(&self, key: &'static str, value: bool) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Marks it as failed, for this reason.
    pub fn failed(&self, reason: &'static str) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(reason));
        }
    }

    /// What begins inside is its child.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope(self.0.clone())
    }
}

impl Scope {
    /// Runs the future inside. Pinned by the caller: taken by value, it would be in memory twice while it waits.
    ///
    /// # Cancel safety
    /// That of the future.
    pub async fn within<F: Future>(self, mut future: Pin<&mut F>) -> F::Output {
        poll_fn(|task| {
            let _entered = self.0.clone().map(Context::attach);
            future.as_mut().poll(task)
        })
        .await
    }
}

impl Drop for Span {
    /// Other scopes may still hold the context, so its end is said and not left to the last of them.
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.is_seen()).finish()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scope").field(&self.0.is_some()).finish()
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
