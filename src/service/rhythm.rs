//! When the KMS is asked next.
//!
//! Guarantees: a healthy KMS is asked once an interval; one that is away often enough for its return to be seen within 10 s; one
//! that throttles us less often than a healthy one, while nobody notices. Refuses to know what is done with an answer.

use kube_kms_core::fault::Reason;
use kube_kms_core::health::{self, Record, State};
use kube_kms_core::rotation::OBSERVE_AGAIN;
use std::time::Duration;
use tokio::time::Instant;

/// Failed probes are repeated after this time, doubled each time, up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// So that recovery is noticed within 10 s (docs/conformance.md, item 28): the last probe before it may have hung for
/// `probe.timeout`, 2 s by default, and this is what follows, with a tenth of jitter.
const RETRY_LONGEST: Duration = Duration::from_secs(6);
/// A KMS that throttles us is asked less often than when all is well, not more, while nobody notices.
const THROTTLED_FACTOR: u32 = 2;
/// No timer is set for less: a clock may be a hair behind the runtime's.
const SHORTEST: Duration = Duration::from_millis(1);

/// How long after a round the next one begins, before jitter.
pub(super) fn wait_after(record: &Record, state: &State, observing: bool, interval: Duration) -> Duration {
    let is_starting = matches!(state, State::Starting { .. } | State::StartingKnown { .. });
    let retry = RETRY_FIRST
        .saturating_mul(1_u32.checked_shl(record.failures().saturating_sub(1)).unwrap_or(u32::MAX))
        .min(RETRY_LONGEST);
    match record.trouble() {
        None if observing && is_starting => RETRY_FIRST,
        None if observing => OBSERVE_AGAIN.min(interval),
        None if is_starting && record.refused().is_some() => RETRY_LONGEST.min(interval),
        None => interval,
        // While the API server sees it, it has to end soon; while nobody does, a KMS that throttles us is spared.
        Some(Reason::KmsThrottled) if matches!(state, State::Coasting { .. }) => {
            interval.saturating_mul(THROTTLED_FACTOR)
        }
        Some(_) if record.is_to_be_confirmed() => health::CONFIRM_AFTER,
        Some(_) => retry,
    }
}

pub(super) fn later(from: Instant, by: Duration) -> Instant {
    from.checked_add(by).unwrap_or(from)
}

/// Ends after so long, or never.
pub(super) async fn at_change(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after.max(SHORTEST)).await,
        None => std::future::pending().await,
    }
}
