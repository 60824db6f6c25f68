//! Judges a KMS v2 plugin through its socket: a simulator of kube-apiserver's side, and the conformance list.
//!
//! Knows the API and its client, and no plugin: what it finds holds for any of them.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod apiserver;
pub mod conformance;
