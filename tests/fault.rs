//! The real binary while something around it fails: the network on the way to the KMS (`support/fault_proxy.rs`), the KMS itself,
//! its credentials and permissions, and the process. docs/failure-modes.md says what each test here shows.

mod answer;
mod credential;
mod key_store;
mod kill;
mod load;
mod matrix;
mod probe;
mod proxy;
mod seeds;
mod stranded;
mod throttled;
mod wiped;
