//! `kmsctl bench`: load on any KMS v2 plugin, as a table, as JSON and as a chart.

mod chart;
mod report;

use crate::load::mix::Mix;
use crate::load::{self, LoadError, Pace, Plan};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_cli::output::{self, Format};
use kube_kms_os::durable::{self, Existing};
use report::Report;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kmsctl bench --socket unix:///run/kube-kms/kms.sock\n  \
kmsctl bench --socket /run/kms.sock --in-flight 64 --duration 30s --chart latency.svg\n  \
kmsctl bench --socket unix:///@kms --rate 50 --mix encrypt=1,decrypt=9 --output json\n\n\
At a --rate every call has a moment at which it is due, and its latency counts from then: a plugin that stalls is charged for \
every call that waited. With --in-flight the next call is sent when an answer comes, so a stall delays the calls behind it and \
they do not show it.\n\n\
Decrypts open values that the plugin sealed before the clock started. Think twice before running this against a plugin whose \
KMS bills or limits every call.\n\n\
Exit status 0 when every call was served, 4 when nobody answers, 6 when a call failed.")]
pub(super) struct Arguments {
    /// Where the plugin listens: unix:///PATH, /PATH, or unix:///@NAME for an abstract socket
    #[arg(long, value_name = "SOCKET", env = "KUBE_KMS_SOCKET")]
    socket: String,
    /// Calls under way at any moment
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: u16,
    /// Calls a second, whether answers come or not
    #[arg(long, value_name = "N", conflicts_with = "in_flight", value_parser = rate)]
    rate: Option<f64>,
    /// Connections; kube-apiserver has one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Shares of the RPCs
    #[arg(long, value_name = "RPC=SHARE,…", default_value = "encrypt=80,decrypt=15,status=5")]
    mix: Mix,
    /// Time that counts
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Time before it that does not
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Deadline of each call, as `timeout` in the EncryptionConfiguration
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// The plugin's process, for CPU and memory; by default the one that made the socket
    #[arg(long)]
    pid: Option<u32>,
    /// Write a chart of the latencies as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| "a number from 0.001 to 1000000 is needed".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let (address, target) = kube_kms_cli::socket(&arguments.socket)?;
    let plan = Plan {
        target,
        pace: arguments.rate.map_or(Pace::InFlight(usize::from(arguments.in_flight)), Pace::PerSecond),
        connections: usize::from(arguments.connections),
        mix: arguments.mix,
        duration: arguments.duration,
        warm_up: arguments.warm_up,
        timeout: arguments.timeout,
        pid: arguments.pid,
    };
    let bar = bar(plan.warm_up.saturating_add(plan.duration));
    let mut progress = |now: Duration, calls: u64| {
        bar.set_position(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let phase = if now < plan.warm_up { "warming up" } else { "measuring" };
        bar.set_message(format!("{phase}, {calls} calls"));
    };
    let result = kube_kms_cli::runtime()?.block_on(load::run(&plan, &mut progress));
    bar.finish_and_clear();
    let measured = result.map_err(|error| failure(&address.to_string(), &error))?;
    let report = Report::new(address.endpoint(), &plan, &measured);
    match arguments.output {
        Format::Json => output::json(&report),
        Format::Text => report.lines().iter().for_each(output::line),
    }
    if let Some(path) = &arguments.chart {
        durable::write(path, chart::draw(&measured.tally, &report.load).as_bytes(), Existing::Replace).map_err(
            |e| {
                Failure::new(Exit::Failed, format!("the chart cannot be written to {}", path.display()))
                    .because(&e)
                    .hint("what was measured is printed; name another file with --chart")
            },
        )?;
    }
    Ok(if report.failed() == 0 { Exit::Done } else { Exit::VerificationFailed })
}

/// On a terminal only; indicatif hides it elsewhere.
fn bar(time: Duration) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    // The template is a constant; were it wrong, the default bar would do.
    bar.with_style(ProgressStyle::with_template("{bar:30} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn failure(address: &str, error: &LoadError) -> Failure {
    match error {
        LoadError::Connect(_) => Failure::new(Exit::Unreachable, format!("nobody answers on {address}"))
            .because(error)
            .hint("is the plugin running, and may this user open its socket?"),
        LoadError::First { .. } => Failure::new(Exit::Unreachable, format!("the plugin on {address} does not serve"))
            .because(error)
            .hint("`kube-kms probe` says more; nothing was measured"),
        LoadError::Timer(_) => Failure::new(Exit::Failed, "the calls cannot be timed")
            .because(error)
            .hint("see the limits of this process: ulimit -a"),
    }
}
