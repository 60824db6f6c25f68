//! kube-kms: a Kubernetes KMS v2 encryption plugin.
//!
//! The folders are the architecture and the arrows point one way: ARCHITECTURE.md, "Folders and arrows", has the map, and
//! `tests/architecture.rs` holds it. Start reading at [`service::plugin`].

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod daemon;
pub mod doctor;
pub mod drill;
pub mod durable;
pub mod etcd;
pub mod grpc;
pub mod kek;
pub mod manifests;
pub mod memory;
pub mod os;
pub mod service;
pub mod span;
pub mod telemetry;
pub mod transport;
