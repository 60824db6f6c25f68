//! A clock that its driver moves: a simulation plays a day in a second.

use crate::apiserver::rhythm::later;
use kube_kms_core::port::{Clock, Moment};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Stands still until it is moved; never goes back.
#[derive(Debug, Default)]
pub struct HandClock(AtomicU64);

impl HandClock {
    /// Moves it forward by this much.
    pub fn advance(&self, by: Duration) {
        self.set(later(self.now(), by));
    }

    /// Moves it to this moment, if that is not in its past.
    pub fn set(&self, now: Moment) {
        self.0.fetch_max(now.0, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Moment {
        Moment(self.0.load(Ordering::SeqCst))
    }
}
