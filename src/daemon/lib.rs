//! kube-kms: the plugin as a process.
//!
//! [`process`] puts the adapters and the use cases together and runs them; [`cli`] has the commands; [`doctor`] looks for what
//! stands in the way of serving; [`manifests`] renders what runs the plugin beside kube-apiserver. Every other part is a crate
//! of its own: ARCHITECTURE.md has the map. Start reading at `kube_kms_service::plugin`.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod cli;
pub mod doctor;
pub mod manifests;
pub mod process;
