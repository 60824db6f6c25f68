//! The rules, pure: no runtime, no I/O, no clock and no randomness of its own (all passed in through [`port`]).
//!
//! Guarantees: what is built here cannot be built wrong (parse, do not validate). Refuses to know: gRPC, sockets,
//! providers, configuration files. The only thing below it is [`kube_kms_memory`], where secrets live.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod annotation;
pub mod aws_partition;
pub mod context;
pub mod dek;
pub mod envelope;
pub mod fault;
pub mod health;

pub mod kek_ref;
pub mod key_id;
pub mod limit;
pub mod port;
pub mod printable;
pub mod rotation;
pub mod uid;
