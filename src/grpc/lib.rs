//! The gRPC face: the three RPCs of KMS v2 over whatever connections it is given.
//!
//! Converts messages, keeps deadlines, turns faults into statuses, writes one log line per request. Refuses to know
//! sockets and KMSs. A request goes [`connection`] → [`message`] → [`server`] → [`kube_kms_service::plugin`]; its answer is put
//! together by [`answer`] and sent by [`message`], a fault by way of [`status`]. h2 carries it, without a gRPC server in between:
//! ARCHITECTURE.md says why.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod answer;
pub mod call;
pub mod connection;
mod crowd;
pub mod deadline;
pub mod message;
mod reply;
pub mod request_log;
pub mod server;
pub mod status;
