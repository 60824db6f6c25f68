//! The one test binary: one link, one process, every tier. See tests/README.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "tests fail by panicking"
)]
#![cfg(feature = "aws")]

mod apiserver_simulator;
mod architecture;
mod bench_command;
mod canary;
mod cli;
mod conformance_command;
mod conformance_doc;
mod contract_decrypt;
mod contract_encrypt;
mod contract_lifecycle;
mod contract_outage;
mod contract_status;
mod contract_transport;
mod dek_life;
mod docs;
mod drill;
mod fake_kms_is_honest;
mod fault;
mod fuzz_smoke;
mod hostile;
mod inspect;
mod judge;
mod kek_conformance;
mod log;
mod manifests;
mod process;
mod properties;
mod recovery;
mod release;
mod rotation_seen;
mod scale_doc;
mod scan;
mod scenario;
mod security_doc;
mod smoke;
mod snapshot;
mod soak;
mod storm;
mod support;
mod telemetry;
mod vectors;
