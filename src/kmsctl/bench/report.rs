//! What a load has shown, for people and for programs; and whether the generator can be believed.

use crate::load::tally::{Line, Tally};
use crate::load::usage::Usage;
use crate::load::{Measured, Pace, Plan};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Share of a core from which on the generator may have been what was measured.
const BUSY: f64 = 0.85;
/// Sends that are later than this share of the median latency blur it.
const BLUR: f64 = 0.25;
/// Of the rate that was asked for, what must have been reached.
const REACHED: f64 = 0.98;

/// See the module.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    socket: String,
    pub(super) load: String,
    seconds: f64,
    calls: u64,
    per_second: f64,
    rpcs: Vec<RpcReport>,
    plugin: Option<ProcessReport>,
    generator: GeneratorReport,
    doubts: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RpcReport {
    rpc: String,
    served: u64,
    per_second: f64,
    p50_micros: f64,
    p90_micros: f64,
    p99_micros: f64,
    p999_micros: f64,
    max_micros: f64,
    failed: u64,
    failures: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessReport {
    pid: Option<u32>,
    cpu_micros_per_call: f64,
    context_switches_per_call: f64,
    share_of_a_core: f64,
    resident_mib: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GeneratorReport {
    share_of_a_core: Option<f64>,
    sent_late_p50_micros: f64,
    sent_late_p99_micros: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts of calls are far below 2^53, and these are figures to read")]
const fn float(count: u64) -> f64 {
    count as f64
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Zero of nothing is zero.
fn per(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl Report {
    pub(super) fn new(socket: String, plan: &Plan, measured: &Measured) -> Self {
        let (tally, seconds) = (&measured.tally, measured.elapsed.as_secs_f64());
        let calls = tally.calls();
        let plugin = measured.plugin.map(|usage| ProcessReport {
            pid: measured.pid,
            cpu_micros_per_call: per(micros(usage.cpu), float(calls)),
            context_switches_per_call: per(float(usage.switches), float(calls)),
            share_of_a_core: per(usage.cpu.as_secs_f64(), seconds),
            resident_mib: float(usage.resident_kib) / 1024.0,
        });
        let share = |usage: Usage| per(usage.cpu.as_secs_f64(), seconds);
        let generator = GeneratorReport {
            share_of_a_core: measured.generator.map(share),
            sent_late_p50_micros: micros(tally.lateness(0.5)),
            sent_late_p99_micros: micros(tally.lateness(0.99)),
        };
        let per_second = per(float(calls), seconds);
        let doubts = doubts(plan, tally, &generator, per_second);
        Self {
            socket,
            load: describe(plan),
            seconds,
            calls,
            per_second,
            rpcs: tally.lines().map(|(rpc, line)| rpc_report(rpc.to_string(), line, seconds)).collect(),
            plugin,
            generator,
            doubts,
        }
    }

    /// Calls that were not served.
    pub(super) fn failed(&self) -> u64 {
        self.rpcs.iter().fold(0, |sum, rpc| sum.saturating_add(rpc.failed))
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("socket     {}", self.socket),
            format!("load       {}", self.load),
            format!("calls      {} in {:.1} s, {:.0} a second", self.calls, self.seconds, self.per_second),
            String::new(),
            format!(
                "{:<8} {:>10} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}",
                "RPC", "served", "per s", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "max µs", "failed"
            ),
        ];
        for r in &self.rpcs {
            lines.push(format!(
                "{:<8} {:>10} {:>9.0} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>8}",
                r.rpc,
                r.served,
                r.per_second,
                r.p50_micros,
                r.p90_micros,
                r.p99_micros,
                r.p999_micros,
                r.max_micros,
                r.failed
            ));
        }
        lines.push(String::new());
        for r in &self.rpcs {
            lines.extend(r.failures.iter().map(|(code, n)| format!("FAILED     {} {code}: {n}", r.rpc)));
        }
        lines.push(match &self.plugin {
            Some(p) => format!(
                "plugin     {:.1} µs of CPU and {:.2} context switches for each call; {:.0} % of a core; {:.1} MiB resident \
                 (pid {})",
                p.cpu_micros_per_call,
                p.context_switches_per_call,
                p.share_of_a_core * 100.0,
                p.resident_mib,
                p.pid.unwrap_or_default()
            ),
            None => "plugin     its process cannot be watched; name it with --pid".to_owned(),
        });
        let share = self.generator.share_of_a_core.map_or("unknown".to_owned(), |s| format!("{:.0} %", s * 100.0));
        lines.push(format!(
            "generator  {share} of a core; calls sent late by {:.0} µs (p99 {:.0} µs)",
            self.generator.sent_late_p50_micros, self.generator.sent_late_p99_micros
        ));
        lines.extend(self.doubts.iter().map(|doubt| format!("DOUBT      {doubt}")));
        lines
    }
}

fn rpc_report(rpc: String, line: &Line, seconds: f64) -> RpcReport {
    let at = |share| micros(line.quantile(share));
    RpcReport {
        rpc,
        served: line.served(),
        per_second: per(float(line.served()), seconds),
        p50_micros: at(0.5),
        p90_micros: at(0.9),
        p99_micros: at(0.99),
        p999_micros: at(0.999),
        max_micros: micros(line.max()),
        failed: line.failed(),
        failures: line.failures().clone(),
    }
}

fn describe(plan: &Plan) -> String {
    let pace = match plan.pace {
        Pace::InFlight(n) => format!("{n} in flight"),
        Pace::PerSecond(rate) => format!("{rate} calls a second, latency from when each was due"),
    };
    let plural = if plan.connections == 1 { "" } else { "s" };
    format!(
        "{pace}, {} connection{plural}, {}, {} after {} of warm-up",
        plan.connections,
        plan.mix,
        humantime::format_duration(plan.duration),
        humantime::format_duration(plan.warm_up)
    )
}

/// Why the figures may say more about the generator than about the plugin.
fn doubts(plan: &Plan, tally: &Tally, generator: &GeneratorReport, per_second: f64) -> Vec<String> {
    let mut doubts = Vec::new();
    if let Some(share) = generator.share_of_a_core.filter(|share| *share > BUSY) {
        doubts.push(format!(
            "the generator was busy for {:.0} % of the time: the plugin may be faster than this shows",
            share * 100.0
        ));
    }
    if let Pace::PerSecond(rate) = plan.pace {
        let median = tally.lines().map(|(_, line)| micros(line.quantile(0.5))).fold(0.0, f64::max);
        if generator.sent_late_p50_micros > BLUR * median {
            doubts.push(format!(
                "half of the calls were sent {:.0} µs late or later, and that is in their latency",
                generator.sent_late_p50_micros
            ));
        }
        if per_second < REACHED * rate {
            doubts.push(format!("{per_second:.0} calls a second ended, {rate} were to be sent"));
        }
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_v2_client::kms::Target;

    fn plan(pace: Pace) -> Plan {
        Plan {
            target: Target::Abstract("x".to_owned()),
            pace,
            connections: 1,
            mix: "encrypt=1".parse().unwrap(),
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(1),
            timeout: Duration::from_secs(3),
            pid: None,
        }
    }

    fn measured(generator: Duration) -> Measured {
        let generator = Usage { cpu: generator, ..Usage::default() };
        let elapsed = Duration::from_secs(10);
        Measured { tally: Tally::default(), elapsed, plugin: None, pid: None, generator: Some(generator) }
    }

    #[test]
    fn a_generator_without_time_to_spare_says_so() {
        let of = |busy| Report::new(String::new(), &plan(Pace::InFlight(8)), &measured(busy)).doubts;
        assert_eq!(of(Duration::from_secs(5)), Vec::<String>::new());
        assert!(of(Duration::from_secs(9))[0].contains("90 % of the time"));
    }

    #[test]
    fn a_rate_that_was_not_reached_is_said() {
        let report = Report::new(String::new(), &plan(Pace::PerSecond(100.0)), &measured(Duration::ZERO));
        assert!(report.doubts[0].contains("100 were to be sent"), "{:?}", report.doubts);
    }
}
