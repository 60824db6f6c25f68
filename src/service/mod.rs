//! The use cases: Status, Encrypt, Decrypt, and the background work that keeps them off the network.
//!
//! May use the runtime (tasks, timers, locks); knows KEKs, clock and entropy only as ports of the core. Refuses to know
//! gRPC, sockets, files of configuration and which KMS it is.

pub mod observer;
pub mod settings;
pub mod snapshot;
