//! `make fleet`: 10,000 clusters behind one KMS account, on paused time. docs/scale.md quotes what it prints.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a simulation fails by panicking, prints, and asks how long it took; the test reads what it writes"
)]

mod account;
mod node;
mod scenario;
mod table;

use clap::Parser;
use std::time::Instant;

#[derive(Parser)]
struct Arguments {
    /// One node in so many is simulated, against the same share of the quota
    #[arg(long, default_value_t = 100)]
    share: u64,
    /// What cargo bench adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let share = Arguments::parse().share;
    println!("{}", table::HEAD);
    for (event, quota) in scenario::plan() {
        let began = Instant::now();
        println!("{}", table::line(&scenario::play(event, quota, share)));
        eprintln!("  ({event:?} took {:.1} s)", began.elapsed().as_secs_f64());
    }
}
