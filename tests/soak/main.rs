//! `make soak`: the soak as a program of its own. `MINUTES`, `SEED` and `BINARY` are read from the environment;
//! the exit status is 0 when every promise held, and 1 otherwise.

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
    reason = "a test program fails by panicking"
)]

#[path = "mod.rs"]
#[cfg(feature = "aws")]
mod soak;
#[cfg(feature = "aws")]
#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "the suite uses the rest")]
mod support;

use std::process::ExitCode;

#[cfg(not(feature = "aws"))]
fn main() -> ExitCode {
    eprintln!("the soak needs the feature `aws`");
    ExitCode::FAILURE
}

#[cfg(feature = "aws")]
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    // A bare `cargo bench` is not meant.
    let Some(minutes) = variable::<f64>("MINUTES") else {
        println!("MINUTES is not set, so nothing was done; `make soak` sets it");
        return ExitCode::SUCCESS;
    };
    let seed = variable("SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.subsec_nanos().into()));
    let binary = variable("BINARY").filter(|binary: &String| binary != "debug");
    let binary = binary.unwrap_or_else(|| support::site::BINARY.to_owned());
    // The processes have directories of their own.
    let binary = std::path::absolute(binary).unwrap().display().to_string();
    let dir = support::skip::target_dir().join("soak").join(seed.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    println!("SEED={seed}, {minutes} minutes of {binary}; ledger, report and logs in {}", dir.display());
    let length = Duration::from_secs_f64((minutes * 60.0).clamp(20.0, 7.0 * 24.0 * 3600.0));
    let report = soak::run(&soak::Plan { seed, length, binary, dir }).await;
    println!("{report}");
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A variable that is there and not empty; one that cannot be read is a mistake of the caller.
#[cfg(feature = "aws")]
fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not understood")))
}
