//! The tests of the tools: kmsctl, the judge, the reader of etcd, the drill. They start the plugin too, so the whole workspace
//! is built before (`make test`). See tests/README.md.

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

mod apiserver_simulator;
mod bench_command;
mod conformance_command;
mod conformance_doc;
mod drill;
mod inspect;
mod scan;
mod snapshot;
mod support;
