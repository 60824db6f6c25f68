//! The gRPC face: the three RPCs of KMS v2 over whatever connections it is given.
//!
//! Converts messages, keeps deadlines, turns faults into statuses, writes one log line per request. Refuses to know
//! sockets and KMSs. A request goes [`server`] → [`crate::service::plugin`] and comes back through [`status`].

pub mod deadline;
pub mod request_log;
pub mod server;
pub mod status;
