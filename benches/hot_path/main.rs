//! What one request costs without gRPC: the cipher, the use cases, the keyring, and the floors under them; and what is parsed
//! at a start and by a scan.
//!
//! `make bench` runs all of it, `make bench-gate` what has a budget. The floors (a bare AES-GCM call, a bare getrandom) are
//! measured in the same run, so that a figure can be judged on any machine: see benches/README.md.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a benchmark fails by panicking, and has the real clock"
)]

mod cipher;
mod fixture;
mod identity;
mod keyring;
mod parse;
mod use_case;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    benches,
    cipher::floors,
    cipher::larger,
    cipher::seal_and_open,
    identity::derivations,
    keyring::look_ups,
    use_case::use_cases,
    parse::configuration,
    parse::stored_values
);
criterion_main!(benches);
