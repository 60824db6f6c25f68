//! What operators see: [`metrics`], [`log`] lines and the [`http`] pages that show them.
//!
//! Guarantees: bounded labels only, no secret and no ARN in any page or metric, and dependencies never log below `warn`.
//! Refuses to know how anything it counts is done: it receives events through [`kube_kms_service::observer::Observer`]
//! and reads a [`kube_kms_service::snapshot::Snapshot`]. Every name is in docs/observability.md, and a test holds the
//! two together.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

mod gauge;
pub mod http;
pub mod log;
pub mod metrics;
pub mod otlp;

pub use gauge::ProcessFacts;

#[cfg(test)]
mod exposition;
