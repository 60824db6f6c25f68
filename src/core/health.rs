//! The failure policy, as one pure function: [`judge`].
//!
//! What the last probes said ([`Record`]) and what we hold ([`Holdings`]) decide what Status answers and what may be
//! sealed. The trade (availability in an outage against a late revocation) is the operator's, in [`Policy`].
//! SPEC: ARCHITECTURE.md "Failure policy"; kube-apiserver: a failed Status stops writes after 3 minutes, a `healthz`
//! other than `ok` with the same key_id only makes the API server unready (k/k issue 138950).

use crate::core::fault::{Class, Fault, Reason};
use crate::core::port::Moment;
use std::time::Duration;

/// What to do when the KMS denies us (policy or credentials).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDenied {
    /// As if it could not be reached: permissions are often broken by accident.
    Coast,
    /// As if the KEK were disabled: a revoked grant is meant.
    Revoke,
}

/// The operator's choices; see docs/configuration.md `outage` and `revocation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long an outage stays invisible to the API server.
    pub grace: Duration,
    /// What a denial means.
    pub on_denied: OnDenied,
    /// When an outage stops writes, counted from its start; `None`: never.
    pub stop_after: Option<Duration>,
    /// How many answers in a row must say that the KEK is dead.
    pub confirmations: u32,
}

/// What the probes of the writing KEK have said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    last_good: Option<Moment>,
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    reason: Reason,
    since: Moment,
    failures: u32,
    final_in_a_row: u32,
    revoked: Option<Reason>,
}

impl Record {
    /// After a probe that went well: whatever was wrong is over, revocation included.
    #[must_use]
    pub const fn after_success(now: Moment) -> Self {
        Self { last_good: Some(now), trouble: None }
    }

    /// After a probe that failed. Only answers that say *dead* count towards revocation, and any other answer between
    /// them starts the count again; once revoked it stays so until a probe succeeds.
    #[must_use]
    pub fn after_failure(&self, reason: Reason, now: Moment, policy: &Policy) -> Self {
        let before = self.trouble.as_ref();
        let is_final = match reason.class() {
            Class::KekDead => true,
            Class::KekDenied => policy.on_denied == OnDenied::Revoke,
            _ => false,
        };
        let final_in_a_row = if is_final { before.map_or(0, |t| t.final_in_a_row).saturating_add(1) } else { 0 };
        let revoked = before
            .and_then(|t| t.revoked)
            .or_else(|| (is_final && final_in_a_row >= policy.confirmations).then_some(reason));
        Self {
            last_good: self.last_good,
            trouble: Some(Trouble {
                reason,
                since: before.map_or(now, |t| t.since),
                failures: before.map_or(0, |t| t.failures).saturating_add(1),
                final_in_a_row,
                revoked,
            }),
        }
    }

    /// When a probe last went well.
    #[must_use]
    pub const fn last_good(&self) -> Option<Moment> {
        self.last_good
    }

    /// Why the last probe failed, if it did.
    #[must_use]
    pub fn trouble(&self) -> Option<Reason> {
        self.trouble.as_ref().map(|t| t.reason)
    }

    /// Failed probes in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.trouble.as_ref().map_or(0, |t| t.failures)
    }
}

/// What this process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// A write state: a DEK to seal with.
    pub write_state: bool,
    /// A key_id that this node has reported before, from the state file.
    pub known_key_id: bool,
}

/// The state of the writing KEK, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No write state yet, and no key_id to report.
    Starting {
        /// Why the last attempt failed.
        because: Option<Reason>,
    },
    /// No write state yet, but the key_id of last time can be reported: a running API server goes on writing.
    StartingKnown {
        /// Why the last attempt failed.
        because: Option<Reason>,
    },
    /// Probe fresh.
    Ready,
    /// The KMS is away or denies us, for less than the grace: everything known is served from memory.
    Coasting {
        /// Why the last probe failed.
        because: Reason,
        /// For how long.
        age: Duration,
    },
    /// The same for longer.
    Degraded {
        /// Why the last probe failed.
        because: Reason,
        /// For how long.
        age: Duration,
    },
    /// The same for longer than `outage.stopAfter`.
    Stopped {
        /// Why the last probe failed.
        because: Reason,
        /// For how long.
        age: Duration,
    },
    /// The KEK is dead, confirmed. DEKs under it are wiped.
    Revoked {
        /// What the KMS said of it.
        because: Reason,
    },
}

/// What Status answers in a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusRule {
    /// `v2`, this healthz, and the key_id.
    Answer {
        /// `ok`, or a short reason.
        healthz: String,
    },
    /// A gRPC error.
    Fail(Fault),
}

impl State {
    /// The state in one word, for metrics, logs and health endpoints.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::StartingKnown { .. } => "starting-known",
            Self::Ready => "ready",
            Self::Coasting { .. } => "coasting",
            Self::Degraded { .. } => "degraded",
            Self::Stopped { .. } => "stopped",
            Self::Revoked { .. } => "revoked",
        }
    }

    /// Every label, for metrics that show all states.
    pub const LABELS: &'static [&'static str] =
        &["starting", "starting-known", "ready", "coasting", "degraded", "stopped", "revoked"];

    /// Why it is not ready.
    #[must_use]
    pub const fn because(&self) -> Option<Reason> {
        match self {
            Self::Ready => None,
            Self::Starting { because } | Self::StartingKnown { because } => *because,
            Self::Coasting { because, .. }
            | Self::Degraded { because, .. }
            | Self::Stopped { because, .. }
            | Self::Revoked { because } => Some(*because),
        }
    }

    /// What Status answers.
    #[must_use]
    pub fn status(&self) -> StatusRule {
        match self {
            Self::Ready | Self::Coasting { .. } => StatusRule::Answer { healthz: "ok".to_owned() },
            Self::Starting { because } => StatusRule::Fail(Fault::new(Reason::Starting).with_detail(*because)),
            Self::StartingKnown { because } => StatusRule::Answer {
                healthz: format!("starting: {}", because.map_or("no data key yet", Reason::label)),
            },
            Self::Degraded { because, age } => {
                StatusRule::Answer { healthz: format!("{because} for {} min, serving from memory", age.as_secs() / 60) }
            }
            Self::Stopped { because, .. } => {
                StatusRule::Fail(Fault::new(Reason::OutageTooLong).with_detail(Some(*because)))
            }
            Self::Revoked { because } => StatusRule::Fail(Fault::new(*because)),
        }
    }

    /// Whether new values may be sealed, given that there is a write state.
    ///
    /// # Errors
    /// The fault that Encrypt answers in this state.
    pub fn may_seal(&self) -> Result<(), Fault> {
        match self {
            Self::Ready | Self::Coasting { .. } | Self::Degraded { .. } => Ok(()),
            Self::Starting { because } | Self::StartingKnown { because } => {
                Err(Fault::new(Reason::Starting).with_detail(*because))
            }
            Self::Stopped { because, .. } => Err(Fault::new(Reason::OutageTooLong).with_detail(Some(*because))),
            Self::Revoked { because } => Err(Fault::new(*because)),
        }
    }

    /// Whether the KMS is known to be away: unwraps fail fast and expired keyring entries go on serving. A KMS that merely
    /// throttles is not away: its answers are worth waiting for.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        match self {
            Self::Coasting { because, .. } | Self::Degraded { because, .. } | Self::Stopped { because, .. } => {
                !matches!(because, Reason::KmsThrottled)
            }
            Self::Starting { because } | Self::StartingKnown { because } => {
                matches!(because, Some(Reason::KmsUnreachable | Reason::Deadline))
            }
            Self::Ready | Self::Revoked { .. } => false,
        }
    }
}

/// The failure policy.
#[must_use]
pub fn judge(record: &Record, holdings: Holdings, policy: &Policy, now: Moment) -> State {
    let trouble = record.trouble.as_ref();
    if let Some(because) = trouble.and_then(|t| t.revoked) {
        return State::Revoked { because };
    }
    if !holdings.write_state {
        let because = trouble.map(|t| t.reason);
        return if holdings.known_key_id { State::StartingKnown { because } } else { State::Starting { because } };
    }
    let Some(trouble) = trouble else { return State::Ready };
    // The outage began when the last good probe ended, not when the first bad one was noticed.
    let age = now.since(record.last_good.unwrap_or(trouble.since));
    let because = trouble.reason;
    match policy.stop_after {
        Some(limit) if age >= limit => State::Stopped { because, age },
        _ if age < policy.grace => State::Coasting { because, age },
        _ => State::Degraded { because, age },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;
    const BOTH: Holdings = Holdings { write_state: true, known_key_id: true };
    const KNOWN: Holdings = Holdings { write_state: false, known_key_id: true };
    const NOTHING: Holdings = Holdings { write_state: false, known_key_id: false };

    fn policy(on_denied: OnDenied, stop_after_min: Option<u64>) -> Policy {
        Policy {
            grace: Duration::from_secs(3600),
            on_denied,
            stop_after: stop_after_min.map(|m| Duration::from_secs(m * 60)),
            confirmations: 2,
        }
    }

    /// A good probe at minute 0, then failures at the given minutes.
    fn record(failures: &[(u64, Reason)], policy: &Policy) -> Record {
        failures.iter().fold(Record::after_success(Moment(0)), |r, (minute, reason)| {
            r.after_failure(*reason, Moment(minute * MINUTE), policy)
        })
    }

    #[test]
    fn every_reason_leads_to_the_state_of_the_table_at_every_age_with_and_without_a_write_state() {
        for on_denied in [OnDenied::Coast, OnDenied::Revoke] {
            for stop in [None, Some(120)] {
                let policy = policy(on_denied, stop);
                for reason in Reason::ALL.iter().copied() {
                    let is_final = reason.class() == Class::KekDead
                        || (reason.class() == Class::KekDenied && on_denied == OnDenied::Revoke);
                    for (minute, expected) in
                        [(1, "coasting"), (59, "coasting"), (60, "degraded"), (119, "degraded"), (120, "late")]
                    {
                        let now = Moment(minute * MINUTE);
                        let once = record(&[(1, reason)], &policy);
                        let late = if stop.is_some() { "stopped" } else { "degraded" };
                        let expected = if expected == "late" { late } else { expected };
                        assert_eq!(
                            judge(&once, BOTH, &policy, now).label(),
                            expected,
                            "{reason} once, minute {minute}"
                        );
                        let twice = record(&[(1, reason), (1, reason)], &policy);
                        let expected = if is_final { "revoked" } else { expected };
                        assert_eq!(
                            judge(&twice, BOTH, &policy, now).label(),
                            expected,
                            "{reason} twice, minute {minute}"
                        );
                        assert_eq!(
                            judge(&twice, KNOWN, &policy, now).label(),
                            if is_final { "revoked" } else { "starting-known" },
                        );
                        assert_eq!(
                            judge(&twice, NOTHING, &policy, now).label(),
                            if is_final { "revoked" } else { "starting" },
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_good_probe_ends_every_state() {
        let policy = policy(OnDenied::Coast, Some(120));
        for failures in [
            vec![(1, Reason::KmsUnreachable)],
            vec![(90, Reason::KmsThrottled)],
            vec![(200, Reason::PolicyDenied)],
            vec![(1, Reason::KekDisabled), (2, Reason::KekDisabled)],
        ] {
            assert_ne!(judge(&record(&failures, &policy), BOTH, &policy, Moment(200 * MINUTE)), State::Ready);
            let again = Record::after_success(Moment(201 * MINUTE));
            assert_eq!(judge(&again, BOTH, &policy, Moment(201 * MINUTE)), State::Ready);
        }
    }

    #[test]
    fn one_answer_that_says_dead_does_not_revoke_and_another_answer_between_starts_the_count_again() {
        let policy = policy(OnDenied::Coast, None);
        use Reason::{KekDisabled, KekPendingDeletion, KmsUnreachable};
        let now = Moment(5 * MINUTE);
        assert_eq!(judge(&record(&[(1, KekDisabled)], &policy), BOTH, &policy, now).label(), "coasting");
        let broken = record(&[(1, KekDisabled), (2, KmsUnreachable), (3, KekDisabled)], &policy);
        assert_eq!(judge(&broken, BOTH, &policy, now).label(), "coasting");
        let confirmed = record(&[(1, KekDisabled), (2, KekPendingDeletion)], &policy);
        assert_eq!(judge(&confirmed, BOTH, &policy, now), State::Revoked { because: KekPendingDeletion });
        let still = confirmed.after_failure(KmsUnreachable, Moment(4 * MINUTE), &policy);
        assert_eq!(judge(&still, NOTHING, &policy, now), State::Revoked { because: KekPendingDeletion });
    }

    #[test]
    fn what_status_and_encrypt_do_in_each_state() {
        let because = Reason::KmsUnreachable;
        let age = Duration::from_secs(75 * 60);
        let ok = StatusRule::Answer { healthz: "ok".to_owned() };
        assert_eq!(State::Ready.status(), ok);
        assert_eq!(State::Coasting { because, age }.status(), ok);
        let degraded = State::Degraded { because, age };
        assert_eq!(
            degraded.status(),
            StatusRule::Answer { healthz: "kms-unreachable for 75 min, serving from memory".to_owned() }
        );
        assert!(degraded.may_seal().is_ok());
        assert!(
            matches!(State::Starting { because: None }.status(), StatusRule::Fail(f) if f.reason() == Reason::Starting)
        );
        assert!(matches!(State::StartingKnown { because: None }.status(), StatusRule::Answer { .. }));
        assert_eq!(State::StartingKnown { because: None }.may_seal().unwrap_err().reason(), Reason::Starting);
        let stopped = State::Stopped { because, age };
        assert!(matches!(stopped.status(), StatusRule::Fail(f) if f.reason() == Reason::OutageTooLong));
        assert_eq!(stopped.may_seal().unwrap_err().reason(), Reason::OutageTooLong);
        let revoked = State::Revoked { because: Reason::KekDisabled };
        assert!(matches!(revoked.status(), StatusRule::Fail(f) if f.reason() == Reason::KekDisabled));
        assert_eq!(revoked.may_seal().unwrap_err().reason(), Reason::KekDisabled);
    }

    #[test]
    fn a_kms_that_cannot_be_reached_at_the_start_is_an_outage_and_one_that_throttles_or_was_not_asked_yet_is_none() {
        for make in [|because| State::Starting { because }, |because| State::StartingKnown { because }] {
            assert!(make(Some(Reason::KmsUnreachable)).is_outage() && make(Some(Reason::Deadline)).is_outage());
            assert!(!make(Some(Reason::KmsThrottled)).is_outage() && !make(None).is_outage());
        }
        let age = Duration::ZERO;
        assert!(State::Coasting { because: Reason::PolicyDenied, age }.is_outage());
        assert!(!State::Coasting { because: Reason::KmsThrottled, age }.is_outage());
    }

    #[test]
    fn every_state_has_its_label_in_the_list() {
        let because = Reason::KmsUnreachable;
        let age = Duration::ZERO;
        for state in [
            State::Starting { because: None },
            State::StartingKnown { because: None },
            State::Ready,
            State::Coasting { because, age },
            State::Degraded { because, age },
            State::Stopped { because, age },
            State::Revoked { because },
        ] {
            assert!(State::LABELS.contains(&state.label()));
        }
    }

    #[test]
    fn the_last_good_probe_is_remembered_through_failures() {
        let policy = policy(OnDenied::Coast, None);
        assert_eq!(Record::default().last_good(), None);
        let record = Record::after_success(Moment(7)).after_failure(Reason::KmsUnreachable, Moment(8), &policy);
        assert_eq!((record.last_good(), record.failures()), (Some(Moment(7)), 1));
    }
}
