//! How long a caller waits for an unwrap, and for which of its words: with something else to serve the next one is enough.

use crate::keyring::{Outcome, Progress};
use kube_kms_core::fault::{Class, Reason};
use std::time::Duration;
use tokio::sync::watch;

/// Waits for the end of an unwrap, when there is nothing else to serve; `None` when it does not come within `patience`.
///
/// Half of the time is for a KMS that fails and recovers; after that a KMS that is failing is called unreachable, well
/// before the caller's deadline (docs/conformance.md, item 60). One that is slow or throttles us has all of it.
pub(super) async fn last_word(waiting: &mut watch::Receiver<Progress>, patience: Duration) -> Option<Outcome> {
    let first_half = patience.checked_div(2).unwrap_or_default();
    if let Some(outcome) = told(waiting, first_half, |progress| matches!(progress, Progress::Settled(_))).await {
        return Some(outcome);
    }
    let second_half = patience.saturating_sub(first_half);
    let is_hopeless = |progress: &Progress| match progress {
        Progress::Asking => false,
        Progress::Failing(fault) => fault.class() == Class::Unreachable,
        Progress::Settled(_) => true,
    };
    told(waiting, second_half, is_hopeless).await
}

/// The same when there is something else to serve: the next word of the KEK is enough. What it said of an attempt before this
/// caller came does not count.
pub(super) async fn first_word(waiting: &mut watch::Receiver<Progress>, patience: Duration) -> Option<Outcome> {
    let mut is_old = !matches!(*waiting.borrow_and_update(), Progress::Settled(_));
    told(waiting, patience, |_| !std::mem::take(&mut is_old)).await
}

async fn told(
    waiting: &mut watch::Receiver<Progress>,
    patience: Duration,
    is_enough: impl FnMut(&Progress) -> bool,
) -> Option<Outcome> {
    let progress = tokio::time::timeout(patience, waiting.wait_for(is_enough)).await.ok()?.map(|p| p.clone());
    Some(match progress {
        Ok(Progress::Settled(outcome)) => outcome,
        Ok(Progress::Failing(fault)) => Err(fault),
        Ok(Progress::Asking) | Err(_) => Err(Reason::Invariant.into()),
    })
}
