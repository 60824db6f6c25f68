//! Clients of a KMS v2 plugin: what kube-apiserver does, from the other end of the socket.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod kms;
pub mod limit;
pub mod plugin;
