//! What the fake saw: every call, in order of arrival, with what it was answered.
//!
//! Guarantees: a call is in the journal before anything is done with it, and stays there whatever becomes of it.
//! Refuses to judge: the numbers are for assertions.

use super::blob::Context;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not answered: still at work, hung, reset, or the caller went away.
    Unanswered,
    /// HTTP 200.
    Succeeded,
    /// Refused, with this error code.
    Refused(String),
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Call {
    /// Without `TrentService.`; empty when the header was missing.
    pub op: String,
    /// The `KeyId` (or `TargetKeyId`) as the client wrote it.
    pub key_id: Option<String>,
    /// Empty when there was none.
    pub context: Context,
    pub user_agent: Option<String>,
    /// The access key id of the signature.
    pub access_key: Option<String>,
    /// The `x-amzn-RequestId` of the answer.
    pub request_id: String,
    pub outcome: Outcome,
}

#[derive(Default)]
pub(super) struct Journal {
    /// Calls that `forget` dropped, so that places stay true.
    forgotten: usize,
    calls: Vec<Call>,
    last_second: VecDeque<Instant>,
    peak_per_second: usize,
    at_work: usize,
    max_at_work: usize,
    pub(super) hung: usize,
}

impl Journal {
    /// A call arrives. The answer is its place, for [`Journal::settle`].
    pub(super) fn arrive(&mut self, call: Call) -> usize {
        let now = Instant::now();
        self.last_second.push_back(now);
        while self.last_second.front().is_some_and(|first| now.duration_since(*first) >= Duration::from_secs(1)) {
            self.last_second.pop_front();
        }
        self.peak_per_second = self.peak_per_second.max(self.last_second.len());
        self.at_work += 1;
        self.max_at_work = self.max_at_work.max(self.at_work);
        self.calls.push(call);
        self.forgotten + self.calls.len() - 1
    }

    pub(super) fn settle(&mut self, place: usize, outcome: Outcome) {
        if let Some(call) = place.checked_sub(self.forgotten).and_then(|index| self.calls.get_mut(index)) {
            call.outcome = outcome;
        }
    }

    pub(super) fn leave(&mut self) {
        self.at_work -= 1;
    }

    pub(super) fn calls(&self) -> &[Call] {
        &self.calls
    }

    pub(super) fn max_at_work(&self) -> usize {
        self.max_at_work
    }

    pub(super) fn peak_per_second(&self) -> usize {
        self.peak_per_second
    }

    /// Calls at work go on; counting begins anew.
    pub(super) fn forget(&mut self) {
        self.forgotten += self.calls.len();
        self.calls.clear();
        self.last_second.clear();
        self.peak_per_second = 0;
        self.max_at_work = self.at_work;
    }
}
