//! Conformance (docs/conformance.md): the transport, on the real binary, over connections of our own (items 1 to 8 and 10 to 15).
//!
//! Item 9 takes 70 s and is in `contract_outage.rs`, beside what takes longer.

mod cancelled;
mod first_contact;
mod malformed;
mod parallel;
mod socket_file;
