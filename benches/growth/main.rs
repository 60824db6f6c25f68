//! `make bench-growth`: how fast kube-kms starts, what a restart burst costs, and what grows with requests and with DEKs.
//!
//! The release binary is measured; this program, with the fake KMS of the tests in it, is an ordinary debug build, so the fake
//! KMS, whose own speed is not measured, bounds what a plugin can do that asks it each time. Every part is bounded in time: what
//! does not end is stopped and said to be, never extrapolated.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a benchmark fails by panicking, prints, and has the real clock"
)]

mod burst;
mod day;
#[path = "../rpc/frames.rs"]
mod frames;
mod keyring;
#[path = "../rpc/message.rs"]
mod message;
mod start;
mod support;

use clap::{Parser, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use support::site::{Running, Site};

#[derive(Parser)]
struct Arguments {
    /// The release binary of kube-kms
    #[arg(long, default_value = "target/release/kube-kms")]
    kube_kms: PathBuf,
    /// The plugin that asks the KMS each time
    #[arg(long, default_value = "target/release/bench-pass-through")]
    pass_through: PathBuf,
    /// The release binary of kube-kms built with no default features, to say what its providers weigh
    #[arg(long)]
    minimal: Option<PathBuf>,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench-growth.json")]
    json: PathBuf,
    /// Fewer tries and smaller bursts
    #[arg(long)]
    quick: bool,
    /// This part alone
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// What cargo bench adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// From exec to the first good Status
    Start,
    /// Memory as requests are served
    Requests,
    /// Memory and cost as DEKs are known
    Deks,
    /// Every stored value at once after a restart
    Bursts,
    /// Memory over a day, simulated
    Day,
}

/// What is measured, and how long.
pub struct Plan {
    pub kube_kms: PathBuf,
    pub pass_through: PathBuf,
    pub quick: bool,
}

impl Plan {
    /// Starts the release binary on this site, where [`Site::start`] would start the one of the tests.
    pub fn serve(&self, site: &Site) -> Running {
        let config = site.write_config();
        let program = self.kube_kms.to_str().unwrap();
        site.run(&mut site.process(program, &["serve", "--config", config.to_str().unwrap()]))
    }

    /// As [`Plan::serve`], with its log in /dev/null.
    pub fn serve_silently(&self, site: &Site) -> Silent {
        let config = site.write_config();
        let program = self.kube_kms.to_str().unwrap();
        let mut command = site.process(program, &["serve", "--config", config.to_str().unwrap()]);
        Silent(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

/// A process without a log. Killed when it is dropped.
pub struct Silent(pub Child);

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// KiB of this field of /proc/PID/status.
pub fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// Time on a core, of all threads.
pub fn cpu(pid: u32) -> std::time::Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |path: PathBuf| std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
    let nanos = tasks.filter_map(|task| of(task.path()).split(' ').next()?.parse::<u64>().ok()).sum();
    std::time::Duration::from_nanos(nanos)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn met(holds: bool) -> &'static str {
    if holds { "met" } else { "MISSED" }
}

fn main() {
    // Cargo starts a bench in the folder of its package; the paths of the arguments are those of the repository.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).unwrap();
    let arguments = Arguments::parse();
    let absolute = |path: &Path| std::path::absolute(path).unwrap();
    let plan = Plan {
        kube_kms: absolute(&arguments.kube_kms),
        pass_through: absolute(&arguments.pass_through),
        quick: arguments.quick,
    };
    let asked = |part| arguments.only.is_none_or(|only| only == part);
    // Before there is another runtime: it has a clock of its own.
    let day = asked(Part::Day).then(|| day::measure(&plan));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let guard = runtime.enter();
    let start = asked(Part::Start).then(|| start::measure(&plan));
    let requests = asked(Part::Requests).then(|| keyring::requests(&plan));
    let deks = asked(Part::Deks).then(|| keyring::deks(&plan, runtime.handle()));
    let bursts = asked(Part::Bursts).then(|| burst::measure(&plan, runtime.handle()));
    drop(guard);
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    let (full, minimal) = (size(&plan.kube_kms), arguments.minimal.as_deref().map(size));
    println!("\nbinary: {:.1} MiB with every provider", full as f64 / 1_048_576.0);
    if let Some(minimal) = minimal {
        println!("binary: {:.1} MiB with the embedded KEK alone", minimal as f64 / 1_048_576.0);
    }
    let all = json!({
        "day": day, "start": start, "growth": {"requests": requests, "deks": deks}, "bursts": bursts, "binaryBytes": full, "minimalBinaryBytes": minimal,
    });
    std::fs::write(&arguments.json, serde_json::to_string_pretty(&all).unwrap()).unwrap();
    println!("all figures: {}", arguments.json.display());
}
