//! The tests of the daemon, kube-kms: one link, every tier. Those of kmsctl are in tools.rs. See tests/README.md.

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
#![allow(dead_code, unused_imports, unused_macros, reason = "each of the two test binaries uses a part of `support`")]

mod architecture;
mod canary;
mod cli;
mod contract_decrypt;
mod contract_encrypt;
mod contract_lifecycle;
mod contract_outage;
mod contract_status;
mod contract_transport;
mod dek_life;
mod docs;
mod fake_kms_is_honest;
mod fault;
mod fuzz_smoke;
mod hostile;
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
mod scenario;
mod security_doc;
mod smoke;
mod soak;
mod storm;
mod support;
mod telemetry;
mod vectors;
