//! The operating system's clock and randomness, behind the ports of the core.
//!
//! The only place that may ask for the time or for random bytes (`clippy.toml` bans it elsewhere).

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod durable;

use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::port::{Clock, Entropy, Moment};
use rand::TryRng;
use rand::rngs::SysRng;
use std::time::{Instant, SystemTime};

/// CLOCK_MONOTONIC, from the moment this was made.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// Starts at zero.
    #[expect(clippy::disallowed_methods, reason = "this is the clock's adapter")]
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Moment {
        Moment(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The wall clock, for what people read: never for a decision.
#[expect(clippy::disallowed_methods, reason = "this is the clock's adapter")]
#[must_use]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A stopwatch for latencies.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts.
    #[expect(clippy::disallowed_methods, reason = "this is the clock's adapter")]
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> std::time::Duration {
        self.0.elapsed()
    }
}

/// getrandom(2) for every call: no userspace state that a VM snapshot or a fork could clone.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        SysRng.try_fill_bytes(bytes).map_err(|e| Fault::caused_by(Reason::Entropy, e))
    }
}
