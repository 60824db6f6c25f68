//! The use cases: Status, Encrypt, Decrypt, and the background work that keeps them off the network.
//!
//! May use the runtime (tasks, timers, locks); knows KEKs, clock and entropy only as ports of the core. Refuses to know
//! gRPC, sockets, files of configuration and which KMS it is. The request path is [`plugin`] → [`write_state`] or
//! [`decrypt`] → [`keyring`] → [`unwrap`]; the background is [`supervisor`].

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod decrypt;
#[cfg(test)]
mod decrypt_fixture;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod kek_set;
pub mod keyring;
pub mod lane;
pub mod observer;
pub mod pace;
pub mod peer;
pub mod plugin;
pub mod prepare;
#[cfg(test)]
mod probe_fixture;
pub mod reach;
pub mod recovery;
mod rhythm;
pub mod saver;
pub mod settings;
pub mod snapshot;
pub mod state_file;
pub mod supervisor;
pub mod sweep;
pub mod unwrap;
pub mod waiting_room;
pub mod write_state;
