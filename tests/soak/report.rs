//! What a soak says at its end: for people and as JSON, and whether every promise held.
//!
//! Guarantees: a run is good only if every [`Verdict`] is; what could not be judged says so in its detail. Refuses to know
//! how anything was measured.

use super::schedule::Schedule;
use super::vitals::Course;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// One promise and how it went.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub promise: &'static str,
    pub held: bool,
    pub detail: String,
}

/// The answers of one RPC in one weather.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answers {
    pub weather: String,
    pub rpc: String,
    pub ok: u64,
    pub p50_micros: u64,
    pub p99_micros: u64,
    pub most_micros: u64,
    /// Errors that were to be expected, by code.
    pub expected_errors: BTreeMap<String, u64>,
}

/// One weather of the run.
#[derive(Clone, Debug, Serialize)]
pub struct Spell {
    pub weather: String,
    pub times: usize,
    pub seconds: f64,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub seed: u64,
    pub binary: String,
    pub seconds: u64,
    pub load_average: String,
    pub sealed: usize,
    pub objects: usize,
    pub distinct_deks: usize,
    pub object_writes: (usize, usize),
    pub object_reads: (usize, usize),
    pub rotations: usize,
    /// Deeds by their name, both nodes together.
    pub deeds: BTreeMap<String, usize>,
    /// What the faults did that count it.
    pub felt: BTreeMap<&'static str, usize>,
    pub weather: Vec<Spell>,
    pub answers: Vec<Answers>,
    /// Milliseconds from each rotation until the last node had followed.
    pub convergence_ms: Vec<Option<u64>>,
    pub slowest_start_ms: u64,
    pub late_on_a_busy_machine: u64,
    pub kms_calls: usize,
    pub vitals: Vec<Course>,
    /// Warnings and errors in the logs by their words.
    pub log: BTreeMap<String, usize>,
    pub log_lines: usize,
    pub verdicts: Vec<Verdict>,
    pub broken: Vec<String>,
    pub schedule: Schedule,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.held)
    }
}

fn millis(micros: u64) -> String {
    format!("{:.1}", micros as f64 / 1000.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "soak: {} s, SEED={}, {} (load average {})",
            self.seconds, self.seed, self.binary, self.load_average
        )?;
        let (written, not_written) = self.object_writes;
        let (read, not_read) = self.object_reads;
        writeln!(
            f,
            "sealed {} values under {} data keys; {} rotations",
            self.sealed, self.distinct_deks, self.rotations
        )?;
        writeln!(f, "API servers: {written} objects written ({not_written} not), {read} read ({not_read} not)")?;
        let deeds: Vec<_> = self.deeds.iter().map(|(deed, times)| format!("{deed} {times}")).collect();
        writeln!(f, "done to the plugins: {}", deeds.join(", "))?;
        let felt: Vec<_> = self.felt.iter().map(|(what, times)| format!("{what} {times}")).collect();
        writeln!(f, "felt: {}", felt.join(", "))?;
        let late = self.late_on_a_busy_machine;
        let slowest = self.convergence_ms.iter().flatten().max().copied().unwrap_or(0);
        writeln!(
            f,
            "slowest start {} ms; slowest rotation {slowest} ms until both nodes had it",
            self.slowest_start_ms
        )?;
        writeln!(f, "{} calls to the KMS; {late} calls late on a busy machine\n", self.kms_calls)?;
        writeln!(f, "{:<20} {:>5} {:>8}", "weather", "times", "seconds")?;
        for Spell { weather, times, seconds } in &self.weather {
            writeln!(f, "{weather:<20} {times:>5} {seconds:>8.1}")?;
        }
        writeln!(
            f,
            "\n{:<20} {:<8} {:>7} {:>8} {:>8} {:>8}  errors that were to be expected",
            "weather", "RPC", "ok", "p50 ms", "p99 ms", "max ms"
        )?;
        for a in &self.answers {
            let errors: Vec<_> = a.expected_errors.iter().map(|(code, times)| format!("{code} {times}")).collect();
            let (p50, p99, most) = (millis(a.p50_micros), millis(a.p99_micros), millis(a.most_micros));
            writeln!(
                f,
                "{:<20} {:<8} {:>7} {p50:>8} {p99:>8} {most:>8}  {}",
                a.weather,
                a.rpc,
                a.ok,
                errors.join(", ")
            )?;
        }
        writeln!(f)?;
        for c in &self.vitals {
            writeln!(
                f,
                "node {}, {} s in one process: RSS {} to {} KiB ({:+.0} a minute, most {}), descriptors {} to {} ({:+.2} a minute, most {}), {} threads",
                c.node,
                c.seconds,
                c.rss_first,
                c.rss_last,
                c.rss_per_minute,
                c.rss_most,
                c.fds_first,
                c.fds_last,
                c.fds_per_minute,
                c.fds_most,
                c.threads_most
            )?;
        }
        writeln!(f, "\nlog: {} lines; warnings and errors:", self.log_lines)?;
        for (words, times) in &self.log {
            writeln!(f, "{times:>7}  {words}")?;
        }
        writeln!(f)?;
        for verdict in &self.verdicts {
            let held = if verdict.held { "held  " } else { "BROKEN" };
            writeln!(f, "{held}  {}: {}", verdict.promise, verdict.detail)?;
        }
        for line in &self.broken {
            writeln!(f, "  {line}")?;
        }
        let seed = self.seed;
        if self.is_good() { writeln!(f, "\ngood") } else { writeln!(f, "\nNOT GOOD; again with SEED={seed}") }
    }
}

/// The time as whole milliseconds.
pub fn as_millis(time: Duration) -> u64 {
    time.as_millis() as u64
}
