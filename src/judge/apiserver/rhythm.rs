//! When kube-apiserver evaluates a provider by itself, and every constant of its state machine.
//!
//! Guarantees: a pure schedule; it is told the time and says what is due. SPEC: k8s.io/apiserver encryptionconfig
//! `primeAndProbeKMSv2` and the constants above it: a loop that waits a minute and, after a failure, tries every 10 s
//! until it succeeds; besides it, when the evaluation at load failed, another that tries every 10 s until it succeeds.

use kube_kms_core::port::Moment;
use std::time::Duration;

/// From one evaluation to the next while all is well. SPEC: `kmsv2PluginHealthzPositiveInterval`.
pub const POLL_HEALTHY: Duration = Duration::from_secs(60);
/// From one evaluation to the next while it fails. SPEC: `kmsv2PluginHealthzNegativeInterval`.
pub const POLL_UNHEALTHY: Duration = Duration::from_secs(10);
/// How long writes go on after the last agreement of Status and Encrypt. SPEC: `kmsv2PluginWriteDEKSourceMaxTTL`.
pub const WRITE_STATE_TTL: Duration = Duration::from_secs(180);
/// How long a good evaluation is not repeated. SPEC: `kmsPluginHealthzPositiveTTL`.
pub const HEALTH_TTL_GOOD: Duration = Duration::from_secs(20);
/// How long a bad evaluation is not repeated. SPEC: `kmsPluginHealthzNegativeTTL`.
pub const HEALTH_TTL_BAD: Duration = Duration::from_secs(3);
/// How long an unwrapped seed is kept for reads, from its insertion. SPEC: kmsv2 `cacheTTL`.
pub const DECRYPT_CACHE_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a new configuration has to become healthy, at least; twice the timeout when that is more.
pub const RELOAD_PATIENCE: Duration = Duration::from_secs(10);

/// One of the loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loop {
    /// The one that only runs until the first success.
    Prime,
    /// The one that always runs.
    Main,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Rhythm {
    origin: Moment,
    prime: Option<Moment>,
    main: Moment,
    failing: bool,
}

impl Rhythm {
    /// After the evaluation at load.
    pub(super) fn new(now: Moment, healthy: bool) -> Self {
        let prime = (!healthy).then(|| later(now, POLL_UNHEALTHY));
        Self { origin: now, prime, main: later(now, POLL_HEALTHY), failing: false }
    }

    /// A loop that should evaluate now.
    pub(super) fn due(&self, now: Moment) -> Option<Loop> {
        match self.prime {
            Some(prime) if prime <= now && prime <= self.main => Some(Loop::Prime),
            _ if self.main <= now => Some(Loop::Main),
            Some(prime) if prime <= now => Some(Loop::Prime),
            _ => None,
        }
    }

    /// When a loop evaluates next.
    pub(super) fn next(&self) -> Moment {
        self.prime.map_or(self.main, |prime| prime.min(self.main))
    }

    /// A loop has evaluated.
    pub(super) fn done(&mut self, which: Loop, now: Moment, healthy: bool) {
        match which {
            Loop::Prime => {
                self.prime = self.prime.filter(|_| !healthy).map(|at| next_tick(at, POLL_UNHEALTHY, now));
            }
            // The minute's ticks that fall into a failing time are lost, and the beat is kept.
            Loop::Main if healthy => {
                self.main = next_tick(self.origin, POLL_HEALTHY, now);
                self.failing = false;
            }
            Loop::Main => {
                let from = if self.failing { self.main } else { now };
                self.main = next_tick(from, POLL_UNHEALTHY, now);
                self.failing = true;
            }
        }
    }
}

/// The first beat of a ticker after now.
fn next_tick(origin: Moment, period: Duration, now: Moment) -> Moment {
    let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX).max(1);
    let beats = now.0.saturating_sub(origin.0).checked_div(period_ns).unwrap_or(0).saturating_add(1);
    Moment(origin.0.saturating_add(period_ns.saturating_mul(beats)))
}

/// A moment later by this much.
#[must_use]
pub(super) fn later(moment: Moment, by: Duration) -> Moment {
    Moment(moment.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    /// Plays the schedule alone: the seconds at which something is evaluated, given when evaluations fail.
    fn beats(primed: bool, until: u64, fails: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut rhythm = Rhythm::new(s(0), primed);
        let mut at = Vec::new();
        while rhythm.next() <= s(until) {
            let now = rhythm.next();
            let seconds = now.0 / 1_000_000_000;
            at.push(seconds);
            while let Some(which) = rhythm.due(now) {
                rhythm.done(which, now, !fails(seconds));
            }
        }
        at
    }

    #[test]
    fn it_polls_every_minute_while_healthy() {
        assert_eq!(beats(true, 300, |_| false), [60, 120, 180, 240, 300]);
    }

    #[test]
    fn a_failed_poll_is_repeated_every_ten_seconds_until_it_succeeds() {
        assert_eq!(beats(true, 240, |t| (60..95).contains(&t)), [60, 70, 80, 90, 100, 120, 180, 240]);
    }

    #[test]
    fn a_failed_load_is_repeated_every_ten_seconds_until_it_succeeds() {
        assert_eq!(beats(false, 130, |t| t < 25), [10, 20, 30, 60, 120]);
    }

    #[test]
    fn a_driver_that_comes_late_evaluates_once_and_keeps_the_beat() {
        let mut rhythm = Rhythm::new(s(0), true);
        assert_eq!(rhythm.due(s(200)), Some(Loop::Main));
        rhythm.done(Loop::Main, s(200), true);
        assert_eq!((rhythm.due(s(200)), rhythm.next()), (None, s(240)));
    }

    #[test]
    fn the_constants_are_kube_apiservers() {
        let all = [POLL_HEALTHY, POLL_UNHEALTHY, WRITE_STATE_TTL, HEALTH_TTL_GOOD, HEALTH_TTL_BAD, DECRYPT_CACHE_TTL];
        assert_eq!(all.map(|d| d.as_secs()), [60, 10, 180, 20, 3, 86_400]);
        assert_eq!(RELOAD_PATIENCE.as_secs(), 10);
    }
}
