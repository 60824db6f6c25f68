//! How many calls a check cost the KMS, when the control counts them: items 26, 42 and 57.
//!
//! Guarantees: what was not counted is not passed; what the plugin asks its KMS by itself, seen in a quiet stretch that is as
//! long, is not held against it.

use super::session::{Check, Session, Stop, failed, not_applicable};
use kube_kms_os::Stopwatch;
use std::time::Duration;

/// A stretch that is shorter may lie between two probes.
const QUIET_MIN: Duration = Duration::from_secs(2);
/// Calls that may be a probe or a new data key that fell into the check by chance.
const CHANCE: u64 = 4;

/// A count that has begun.
#[derive(Debug)]
pub(super) struct Meter {
    /// `None` when nobody counts, and why.
    before: Result<u64, String>,
    watch: Stopwatch,
}

async fn count(session: &Session) -> Result<Result<u64, String>, Stop> {
    let Some(control) = &session.control else { return Ok(Err("needs --kms-control with `count`".to_owned())) };
    match control.count().await.map_err(Stop::of_control) {
        Ok(count) => Ok(Ok(count)),
        Err(Stop::NotApplicable(why)) => Ok(Err(why)),
        Err(stop) => Err(stop),
    }
}

impl Meter {
    pub(super) async fn start(session: &Session) -> Result<Self, Stop> {
        Ok(Self { before: count(session).await?, watch: Stopwatch::start() })
    }

    /// What `what`, which were `seen` to be answered, cost. `free` calls to the KMS are what the item allows.
    pub(super) async fn check(self, session: &Session, what: &str, seen: &str, free: u64) -> Check {
        let took = self.watch.elapsed();
        let uncounted = |why: String| not_applicable(format!("{seen}; calls to the KMS were not counted: {why}"));
        let (before, after) = match (self.before, count(session).await?) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(why), _) | (_, Err(why)) => return uncounted(why),
        };
        (session.waiting)("a quiet stretch, to count what the plugin asks its KMS by itself");
        tokio::time::sleep(took.max(QUIET_MIN)).await;
        let (cost, own) = match count(session).await? {
            Ok(later) if before <= after && after <= later => (after.abs_diff(before), later.abs_diff(after)),
            Ok(_) => return uncounted("the count went back".to_owned()),
            Err(why) => return uncounted(why),
        };
        let calls = if cost == 1 { "call" } else { "calls" };
        if cost > free.saturating_add(own.saturating_mul(2)).saturating_add(CHANCE) {
            return failed(format!(
                "{what} cost {cost} {calls} to the KMS; by itself it makes {own} in as long a time"
            ));
        }
        Ok(format!("{seen}, at {cost} {calls} to the KMS"))
    }
}
