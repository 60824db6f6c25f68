//! Conformance (docs/conformance.md): the life of the process as its clients see it, on the real binary (items 72 to 79).
//!
//! Item 77 takes two minutes of real time and is in `contract_outage.rs`.

mod crash;
mod drain;
mod start;
