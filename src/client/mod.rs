//! Clients of a KMS v2 plugin: what kube-apiserver does, from the other end of the socket.

pub mod apiserver;
pub mod conformance;
pub mod kms;
pub mod limit;
pub mod load;
pub mod plugin;
