//! The unix socket that kube-apiserver dials: its name, its file, its peers, and systemd.
//!
//! Guarantees: a live owner is never displaced unless asked; what is not a socket is never deleted; no moment without a
//! socket on a take-over; every connection carries the uid of its peer, told by the kernel. Refuses to know: gRPC
//! messages and what the service does. SPEC: docs/conformance.md items 1 to 15; ARCHITECTURE.md "Life of the
//! process".

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod accept;
mod directory;
mod flush;
pub mod peer;
pub mod socket;
pub mod systemd;
