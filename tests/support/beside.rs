//! Whether calls were late by their own doing or by the machine's.
//!
//! Guarantees: each call that is timed has one beside it, at the same moment, to a plugin of its own with which nothing is
//! wrong. How many of those are late is what the machine does, and is not held against the others: a bound in milliseconds
//! is itself on a quiet machine and a comparison within one run on a busy one. Refuses to know what is called.

use super::site::{Running, Site, sealed};
use kms_v2_client::kms::KmsClient;
use std::time::{Duration, Instant};

/// A well plugin, and how long calls took beside its own.
pub struct Beside {
    _running: Running,
    client: KmsClient,
    took: Took,
}

impl Beside {
    /// Starts the plugin beside.
    pub async fn start() -> Self {
        let running = Site::local().start().await;
        let client = running.client().await;
        Self { _running: running, client, took: Took::default() }
    }

    /// Waits for this call, and then for an Encrypt of the plugin beside.
    pub async fn time<T>(&mut self, call: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let answer = call.await;
        let own = began.elapsed();
        let began = Instant::now();
        sealed(&mut self.client).await;
        self.took.0.push((own, began.elapsed()));
        answer
    }

    /// How many were timed.
    pub fn len(&self) -> usize {
        self.took.0.len()
    }

    /// At most so many calls took this long, besides those that the machine made so late.
    pub fn assert_late_at_most(&self, what: &str, limit: Duration, allowed: usize) {
        println!("{what}: {}", self.took.summary());
        let late = self.took.late(limit);
        assert!(late.fits(allowed), "{what}: {late:?} of {} took {limit:?}, {allowed} may", self.len());
    }
}

/// Of each call its own time, and that of the one beside it.
#[derive(Default)]
struct Took(Vec<(Duration, Duration)>);

#[derive(Debug)]
struct Late {
    own: usize,
    beside: usize,
}

impl Took {
    fn late(&self, limit: Duration) -> Late {
        Late {
            own: self.0.iter().filter(|(own, _)| *own >= limit).count(),
            beside: self.0.iter().filter(|(_, beside)| *beside >= limit).count(),
        }
    }

    fn summary(&self) -> String {
        let of = |side: fn(&(Duration, Duration)) -> Duration| {
            let mut all: Vec<_> = self.0.iter().map(side).collect();
            all.sort();
            let at = |share: usize| all.get(all.len() * share / 1000).or(all.last()).copied().unwrap_or_default();
            format!("median {:?}, p99 {:?}, longest {:?}", at(500), at(990), at(1000))
        };
        format!("{}; beside: {}", of(|t| t.0), of(|t| t.1))
    }
}

impl Late {
    /// Two things are late together or one of them alone, by chance: twice as many as beside, and those that may.
    fn fits(&self, allowed: usize) -> bool {
        self.own <= allowed + 2 * self.beside
    }
}

#[test]
fn what_is_late_beside_others_that_are_not_is_found_and_what_the_machine_does_is_not() {
    let [soon, long] = [1, 200].map(Duration::from_millis);
    let took = |late: usize, beside: usize| {
        let pick = |n: usize, of: usize| if n < of { long } else { soon };
        Took((0..100).map(|n| (pick(n, late), pick(n, beside))).collect()).late(Duration::from_millis(100))
    };
    assert!(took(0, 0).fits(0) && took(10, 0).fits(10) && took(60, 50).fits(10));
    assert!(!took(1, 0).fits(0) && !took(11, 0).fits(10) && !took(100, 40).fits(10));
}
