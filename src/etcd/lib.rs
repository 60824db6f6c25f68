//! What kube-apiserver has stored in etcd, read without any key.
//!
//! Guarantees: nothing is ever written; no value is decrypted; memory does not grow with the size of the values.
//! Refuses to know who prints the result.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod access;
pub mod census;
pub mod client;
pub mod record;
pub mod resource;
pub mod rpc;
pub mod scan;
pub mod snapshot;
pub mod tally;
pub mod value;
pub mod verdict;
