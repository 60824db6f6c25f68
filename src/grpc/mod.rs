//! The gRPC face: the three RPCs of KMS v2 over whatever connections it is given.
//!
//! Converts messages, keeps deadlines, turns faults into statuses, writes one log line per request. Refuses to know
//! sockets and KMSs. A request goes [`connection`] → [`message`] → [`server`] → [`crate::service::plugin`]; its answer is put
//! together by [`answer`] and sent by [`message`], a fault by way of [`status`]. h2 carries it, without a gRPC server in between:
//! ARCHITECTURE.md says why.

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
