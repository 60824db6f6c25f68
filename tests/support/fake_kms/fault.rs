//! What goes wrong on purpose: which call fails, how, and how late.
//!
//! Guarantees: a call's fate is decided once, when it arrives; counted failures are used up one call each. Order: the
//! rate limit, then counted and standing failures, then revoked permissions. Refuses to know how a failure is carried out.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// Stands for every operation.
pub const ANY: &str = "*";

/// The ways in which a call can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// HTTP 500, `KMSInternalException`.
    Internal,
    /// HTTP 400, `ThrottlingException`.
    Throttled,
    /// HTTP 400, `AccessDeniedException` with IAM's text.
    AccessDenied,
    /// HTTP 400, `ExpiredTokenException`.
    ExpiredToken,
    /// HTTP 400, `UnrecognizedClientException`.
    UnrecognizedClient,
    /// The TCP connection is reset without an answer; the operation is not performed.
    Reset,
    /// The operation is performed, and the connection breaks in the middle of its answer.
    ResetMidBody,
    /// No answer until `release_hung`; then the operation is performed and answered.
    Hang,
    /// The operation is performed, and the answer, HTTP 200, is not what AWS documents.
    Lie(Lie),
    /// HTTP 200, and an answer that nobody can have meant.
    Flood(Flood),
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// `{}`
    Empty,
    /// `Plaintext` without its last byte.
    Short,
    /// `Plaintext` with a byte more.
    Long,
    /// `KeyId` is the ARN of a key that is none.
    OtherKey,
    /// `KeyMaterialId` is 10,000 letters, another one each time.
    Material,
    /// No JSON.
    Html,
    /// True, and 1 MB more beside it.
    Large,
}

/// What never ends, or hardly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// A body of 400 MB, said so in its head.
    Body,
    /// Chunks for as long as they are read.
    Chunks,
    /// One byte and a pause, over and over.
    Drip,
    /// A head of 4 MB.
    Head,
}

struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn take(&mut self) -> bool {
        let now = Instant::now();
        let grown = now.duration_since(self.filled).as_secs_f64() * self.rate;
        self.filled = now;
        self.tokens = (self.tokens + grown).min(self.burst);
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}

#[derive(Default)]
pub(super) struct Faults {
    latency: HashMap<String, Duration>,
    bucket: Option<Bucket>,
    next: HashMap<String, Vec<(usize, Failure)>>,
    standing: HashMap<String, Failure>,
    revoked: BTreeSet<String>,
}

impl Faults {
    pub(super) fn set_latency(&mut self, op: &str, latency: Duration) {
        self.latency.insert(op.to_owned(), latency);
    }

    pub(super) fn limit_rate(&mut self, per_second: f64, burst: f64) {
        self.bucket = Some(Bucket { rate: per_second, burst, tokens: burst, filled: Instant::now() });
    }

    pub(super) fn unlimit_rate(&mut self) {
        self.bucket = None;
    }

    pub(super) fn fail_next(&mut self, op: &str, calls: usize, failure: Failure) {
        self.next.entry(op.to_owned()).or_default().push((calls, failure));
    }

    pub(super) fn fail_all(&mut self, op: &str, failure: Failure) {
        self.standing.insert(op.to_owned(), failure);
    }

    pub(super) fn revoke(&mut self, op: &str) {
        self.revoked.insert(op.to_owned());
    }

    pub(super) fn grant(&mut self, op: &str) {
        self.revoked.remove(op);
    }

    /// Ends counted and standing failures of `op`; [`ANY`] ends those of every operation.
    pub(super) fn heal(&mut self, op: &str) {
        self.next.retain(|of, _| of != op && op != ANY);
        self.standing.retain(|of, _| of != op && op != ANY);
    }

    pub(super) fn latency(&self, op: &str) -> Duration {
        self.latency.get(op).or_else(|| self.latency.get(ANY)).copied().unwrap_or_default()
    }

    /// The fate of a call that arrives now.
    pub(super) fn decide(&mut self, op: &str) -> Option<Failure> {
        if self.bucket.as_mut().is_some_and(|bucket| !bucket.take()) {
            return Some(Failure::Throttled);
        }
        self.counted(op)
            .or_else(|| self.counted(ANY))
            .or_else(|| self.standing.get(op).or_else(|| self.standing.get(ANY)).copied())
            .or_else(|| (self.revoked.contains(op) || self.revoked.contains(ANY)).then_some(Failure::AccessDenied))
    }

    fn counted(&mut self, op: &str) -> Option<Failure> {
        let queue = self.next.get_mut(op)?;
        queue.retain(|(calls, _)| *calls > 0);
        let (calls, failure) = queue.first_mut()?;
        *calls -= 1;
        Some(*failure)
    }
}
