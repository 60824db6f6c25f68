//! Latencies and failures of a run, by RPC.
//!
//! Guarantees: latencies to three digits, of calls that were served; those that failed are counted by their code and do not
//! make the percentiles better. Refuses to know which ones matter.

use hdrhistogram::Histogram;
use kms_v2_client::plugin::Rpc;
use std::collections::BTreeMap;
use std::time::Duration;

/// Digits of a latency that are kept.
const DIGITS: u8 = 3;

/// What the calls of one RPC have shown.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Nanoseconds of calls that were served; absent before the first.
    latencies: Option<Histogram<u64>>,
    /// By gRPC code or what else went wrong.
    failures: BTreeMap<String, u64>,
}

impl Line {
    /// Calls that were served.
    #[must_use]
    pub(crate) fn served(&self) -> u64 {
        self.latencies.as_ref().map_or(0, Histogram::len)
    }

    /// Calls that failed.
    #[must_use]
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Failures by gRPC code or what else went wrong.
    #[must_use]
    pub(crate) const fn failures(&self) -> &BTreeMap<String, u64> {
        &self.failures
    }

    /// The latency that this share of the calls has not exceeded.
    #[must_use]
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let nanos = self.latencies.as_ref().map_or(0, |h| h.value_at_quantile(share));
        Duration::from_nanos(nanos)
    }

    /// The slowest.
    #[must_use]
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.latencies.as_ref().map_or(0, Histogram::max))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    lines: BTreeMap<Rpc, Line>,
    late: Option<Histogram<u64>>,
}

impl Tally {
    pub(super) fn note(&mut self, rpc: Rpc, latency: Duration, failure: Option<&str>) {
        let line = self.lines.entry(rpc).or_default();
        match failure {
            None => record(&mut line.latencies, latency),
            Some(code) => match line.failures.get_mut(code) {
                Some(count) => *count = count.saturating_add(1),
                None => drop(line.failures.insert(code.to_owned(), 1)),
            },
        }
    }

    pub(super) fn sent_late(&mut self, by: Duration) {
        record(&mut self.late, by);
    }

    /// By RPC, those that were called.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (Rpc, &Line)> {
        self.lines.iter().map(|(rpc, line)| (*rpc, line))
    }

    /// Calls that ended, well or not.
    #[must_use]
    pub(crate) fn calls(&self) -> u64 {
        let of = |line: &Line| line.served().saturating_add(line.failed());
        self.lines.values().fold(0, |sum, line| sum.saturating_add(of(line)))
    }

    /// How late the generator sent its calls, at this share of them; zero for a closed loop, which has no schedule.
    #[must_use]
    pub(crate) fn lateness(&self, share: f64) -> Duration {
        Duration::from_nanos(self.late.as_ref().map_or(0, |h| h.value_at_quantile(share)))
    }
}

fn record(into: &mut Option<Histogram<u64>>, time: Duration) {
    if into.is_none() {
        // The number of digits is in range, so this cannot fail.
        *into = Histogram::new(DIGITS).ok();
    }
    if let Some(histogram) = into {
        // It grows as it must; only memory could end that.
        let _ = histogram.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_code_and_leave_the_percentiles_alone() {
        let mut tally = Tally::default();
        for n in 1..=100 {
            tally.note(Rpc::Encrypt, Duration::from_micros(n), None);
        }
        for _ in 0..3 {
            tally.note(Rpc::Encrypt, Duration::from_secs(3), Some("UNAVAILABLE"));
        }
        tally.note(Rpc::Status, Duration::from_micros(1), Some("INTERNAL"));
        let lines: BTreeMap<Rpc, &Line> = tally.lines().collect();
        let encrypt = lines[&Rpc::Encrypt];
        assert_eq!((encrypt.served(), encrypt.failed(), tally.calls()), (100, 3, 104));
        assert_eq!(encrypt.failures(), &BTreeMap::from([("UNAVAILABLE".to_owned(), 3)]));
        assert!(encrypt.max() < Duration::from_micros(101), "{:?}", encrypt.max());
        assert_eq!(encrypt.quantile(0.5).as_micros(), 50);
    }
}
