//! The failure policy, as one pure function: [`judge`].
//!
//! What the last probes said ([`Record`]) and what we hold ([`Holdings`]) decide what Status answers and what may be
//! sealed. The trade (availability in an outage against a late revocation) is the operator's, in [`Policy`].
//! SPEC: ARCHITECTURE.md "Failure policy"; kube-apiserver: a failed Status stops writes after 3 minutes, a `healthz`
//! other than `ok` with the same key_id only makes the API server unready (k/k issue 138950).

use crate::fault::{Class, Fault, Reason};
use crate::port::Moment;
use std::time::Duration;

/// Pauses between probes vary by a tenth, so that nodes that were started together do not ask together.
pub const JITTER_LEAST: f64 = 0.9;
/// See [`JITTER_LEAST`].
pub const JITTER_MOST: f64 = 1.1;

/// The pause before a counted answer is asked for again: some seconds, so that a moment of nonsense wipes nothing.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(5);
/// Two answers that are closer together count once: that pause less its jitter.
const COUNTS_AFTER: Duration = Duration::from_millis(4400);
/// Dead answers without a proof after which one counts all the same: a verdict may be late, and not be put off for ever.
const UNPROVEN_MAX: u32 = 10;

/// What to do when the KMS denies us (policy or credentials).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDenied {
    /// As if it could not be reached: permissions are often broken by accident.
    Coast,
    /// As if the KEK were disabled: a revoked grant is meant.
    Revoke,
    /// The first for so much time of denial without a good probe, then the second.
    CoastFor(Duration),
}

/// What to do when the KMS answers and the KEK cannot be used: its key store is away, or its state is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnusable {
    /// As if the KMS could not be reached: a key store fails as networks do.
    Coast,
    /// As if the KEK were disabled: whoever owns the key store has closed it.
    Revoke,
}

/// The operator's choices; see docs/configuration.md `outage` and `revocation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long an outage stays invisible to the API server.
    pub grace: Duration,
    /// What a denial means.
    pub on_denied: OnDenied,
    /// What an unusable key store means.
    pub on_unusable: OnUnusable,
    /// When an outage stops writes, counted from its start; `None`: never.
    pub stop_after: Option<Duration>,
    /// How many answers in a row must say that the KEK is dead.
    pub confirmations: u32,
}

impl Policy {
    /// Whether this answer says, of the key that it is about, that it is not to be used any more.
    #[must_use]
    pub fn is_dead(&self, reason: Reason) -> bool {
        let is_unusable = matches!(reason, Reason::KeyStoreUnavailable | Reason::KeyStateUnknown);
        reason.class() == Class::KekDead || (is_unusable && self.on_unusable == OnUnusable::Revoke)
    }

    /// Whether this answer, confirmed, revokes the KEK.
    #[must_use]
    pub fn is_final(&self, reason: Reason) -> bool {
        self.is_dead(reason) || (reason.class() == Class::KekDenied && self.on_denied == OnDenied::Revoke)
    }
}

/// What a failed probe says of the KEK that our data key is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Testimony {
    /// It unwraps our data key: what is wrong is wrong elsewhere.
    Alive,
    /// It is dead.
    Dead,
    /// It denies us. It may be dead as well: a KMS looks at the caller's rights first.
    Denied,
    /// What wraps is dead, and whether it is ours nobody answered.
    Unproven,
    /// Nothing.
    Silent,
}

impl Testimony {
    /// What a failure says by itself, to an operator with this policy.
    #[must_use]
    pub fn of(reason: Reason, policy: &Policy) -> Self {
        match reason.class() {
            _ if policy.is_dead(reason) => Self::Dead,
            Class::KekDenied => Self::Denied,
            _ => Self::Silent,
        }
    }
}

/// What the probes of the writing KEK have said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    last_good: Option<Moment>,
    refused: Option<Reason>,
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    reason: Reason,
    since: Moment,
    failures: u32,
    /// Answers that count towards revocation, and when the last one came.
    counted: u32,
    counted_at: Moment,
    /// Dead answers without a proof since the last proof of life.
    unproven: u32,
    /// Time between denials that followed each other, and when the last answer was one.
    denied_for: Duration,
    denied_at: Option<Moment>,
    revoked: Option<Reason>,
}

impl Record {
    /// After a probe that went well: whatever was wrong is over, revocation included.
    #[must_use]
    pub const fn after_success(now: Moment) -> Self {
        Self { last_good: Some(now), refused: None, trouble: None }
    }

    /// After a probe that went well but for its outcome, which is refused for this reason: the KEK is well, and the rest is
    /// the operator's to settle.
    #[must_use]
    pub const fn after_refusal(reason: Reason, now: Moment) -> Self {
        Self { last_good: Some(now), refused: Some(reason), trouble: None }
    }

    /// After a probe that failed. What counts towards revocation: *dead*; *denied* after it, or when the policy says so; and
    /// *dead* without a proof, after some of them. Answers that say nothing of the KEK neither count nor start the count
    /// again; a good one and a proof of life do. Once revoked it stays so until a probe succeeds.
    #[must_use]
    pub fn after_failure(&self, reason: Reason, says: Testimony, now: Moment, policy: &Policy) -> Self {
        let first = Trouble {
            reason,
            since: now,
            failures: 0,
            counted: 0,
            counted_at: now,
            unproven: 0,
            denied_for: Duration::ZERO,
            denied_at: None,
            revoked: None,
        };
        let mut t = self.trouble.clone().unwrap_or(first);
        t.reason = reason;
        t.failures = t.failures.saturating_add(1);
        if says == Testimony::Denied {
            let since_last = t.denied_at.map_or(Duration::ZERO, |last| now.since(last));
            t.denied_for = t.denied_for.saturating_add(since_last);
        }
        t.denied_at = (says == Testimony::Denied).then_some(now);
        if says == Testimony::Unproven {
            t.unproven = t.unproven.saturating_add(1);
        }
        let counts = match says {
            Testimony::Dead => true,
            Testimony::Denied => match policy.on_denied {
                OnDenied::Revoke => true,
                OnDenied::Coast => t.counted > 0,
                OnDenied::CoastFor(limit) => t.counted > 0 || t.denied_for >= limit,
            },
            Testimony::Unproven => t.unproven >= UNPROVEN_MAX,
            Testimony::Alive | Testimony::Silent => false,
        };
        if says == Testimony::Alive {
            (t.counted, t.unproven) = (0, 0);
        } else if counts && (t.counted == 0 || now.since(t.counted_at) >= COUNTS_AFTER) {
            (t.counted, t.counted_at) = (t.counted.saturating_add(1), now);
        }
        if counts && t.counted >= policy.confirmations {
            t.revoked = t.revoked.or(Some(reason));
        }
        Self { last_good: self.last_good, refused: None, trouble: Some(t) }
    }

    /// When a probe last went well.
    #[must_use]
    pub const fn last_good(&self) -> Option<Moment> {
        self.last_good
    }

    /// When what is wrong now began: the last good probe, or without one the first that failed.
    #[must_use]
    pub fn began(&self) -> Option<Moment> {
        self.trouble.as_ref().map(|t| self.last_good.unwrap_or(t.since))
    }

    /// Why the last probe failed, if it did.
    #[must_use]
    pub fn trouble(&self) -> Option<Reason> {
        self.trouble.as_ref().map(|t| t.reason)
    }

    /// Why the outcome of the last probe is refused, if it is.
    #[must_use]
    pub const fn refused(&self) -> Option<Reason> {
        self.refused
    }

    /// Whether an answer has counted towards revocation and more are asked for.
    #[must_use]
    pub fn is_to_be_confirmed(&self) -> bool {
        self.trouble.as_ref().is_some_and(|t| t.counted > 0 && t.revoked.is_none())
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
                StatusRule::Answer { healthz: format!("{because} for {}, serving from memory", in_words(*age)) }
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

    /// Whether the KMS is known to be away: before the first write state unwraps fail fast then (`service::reach` knows more, later).
    /// A KMS that merely throttles is not away: its answers are worth waiting for.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        match self {
            Self::Coasting { because, .. } | Self::Degraded { because, .. } | Self::Stopped { because, .. } => {
                !matches!(because, Reason::KmsThrottled)
            }
            Self::Starting { because } | Self::StartingKnown { because } => {
                matches!(because, Some(reason) if matches!(reason.class(), Class::Unreachable | Class::TooSlow))
            }
            Self::Ready | Self::Revoked { .. } => false,
        }
    }
}

fn in_words(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
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
        let because = trouble.map(|t| t.reason).or(record.refused);
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

/// How long until [`judge`] says another thing without another probe: the end of the grace, then `stopAfter`.
#[must_use]
pub fn next_change(record: &Record, policy: &Policy, now: Moment) -> Option<Duration> {
    let age = now.since(record.began()?);
    let ahead = |limit: Duration| limit.checked_sub(age).filter(|left| !left.is_zero());
    [ahead(policy.grace), policy.stop_after.and_then(ahead)].into_iter().flatten().min()
}

/// The longest time from the disabling of a KEK until Status fails, by the settings alone: the probe that has just begun is
/// answered, the next one comes an interval later, and each answer that confirms it some seconds after the one before.
#[must_use]
pub fn noticed_within(interval: Duration, timeout: Duration, confirmations: u32) -> Duration {
    let apart = CONFIRM_AFTER.saturating_mul(confirmations.saturating_sub(1));
    // Two calls for each answer: the wrap, and the proof by the unwrap of our own data key. One for the probe before.
    let calls = timeout.saturating_mul(confirmations.saturating_mul(2).saturating_add(1));
    interval.saturating_add(apart).mul_f64(JITTER_MOST).saturating_add(calls)
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
            on_unusable: OnUnusable::Coast,
            stop_after: stop_after_min.map(|m| Duration::from_secs(m * 60)),
            confirmations: 2,
        }
    }

    /// A good probe at minute 0, then failures at the given minutes.
    fn record(failures: &[(u64, Reason)], policy: &Policy) -> Record {
        failures.iter().fold(Record::after_success(Moment(0)), |r, (minute, reason)| {
            r.after_failure(*reason, Testimony::of(*reason, policy), Moment(minute * MINUTE), policy)
        })
    }

    #[test]
    fn every_reason_leads_to_the_state_of_the_table_at_every_age_with_and_without_a_write_state() {
        use OnUnusable::{Coast, Revoke};
        for (on_denied, on_unusable) in
            [(OnDenied::Coast, Coast), (OnDenied::Revoke, Coast), (OnDenied::Coast, Revoke), (OnDenied::Revoke, Revoke)]
        {
            for stop in [None, Some(120)] {
                let policy = Policy { on_unusable, ..policy(on_denied, stop) };
                for reason in Reason::ALL.iter().copied() {
                    let is_final = reason.class() == Class::KekDead
                        || (reason.class() == Class::KekDenied && on_denied == OnDenied::Revoke)
                        || (matches!(reason.label(), "key-store-unavailable" | "key-state-unknown")
                            && on_unusable == Revoke);
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
                        let twice = record(&[(0, reason), (1, reason)], &policy);
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

    /// Plays answers a minute apart, and returns after which of them, counted from 1, it is revoked.
    fn revoked_at(answers: &[Testimony], policy: &Policy) -> Option<usize> {
        let mut record = Record::after_success(Moment(0));
        (1..).zip(answers).find_map(|(nth, says)| {
            let now = Moment(u64::try_from(nth).unwrap() * MINUTE);
            record = record.after_failure(Reason::KekDisabled, *says, now, policy);
            matches!(judge(&record, BOTH, policy, now), State::Revoked { .. }).then_some(nth)
        })
    }

    #[test]
    fn what_counts_towards_revocation_and_what_starts_the_count_again() {
        use Testimony::{Alive, Dead, Denied, Silent, Unproven};
        let hours = |n: u64| OnDenied::CoastFor(Duration::from_secs(n * 3600));
        let late = |n: usize| (vec![Silent; n], vec![Denied; n]);
        let rows: Vec<(Vec<Testimony>, OnDenied, Option<usize>)> = vec![
            (vec![Dead], OnDenied::Coast, None),
            (vec![Dead, Dead], OnDenied::Coast, Some(2)),
            (vec![Dead, Denied], OnDenied::Coast, Some(2)),
            (vec![Denied, Dead, Denied], OnDenied::Coast, Some(3)),
            (vec![Dead, Silent, Silent, Dead], OnDenied::Coast, Some(4)),
            (vec![Dead, Silent, Denied], OnDenied::Coast, Some(3)),
            (vec![Dead, Alive, Dead], OnDenied::Coast, None),
            (vec![Dead, Alive, Denied, Denied], OnDenied::Coast, None),
            (vec![Denied; 200], OnDenied::Coast, None),
            (late(200).0, OnDenied::Revoke, None),
            (vec![Denied, Denied], OnDenied::Revoke, Some(2)),
            (vec![Denied, Silent, Dead], OnDenied::Revoke, Some(3)),
            // An hour of denial is over with the 61st answer, and the 62nd confirms it.
            (vec![Denied; 100], hours(1), Some(62)),
            ([vec![Denied; 30], vec![Silent; 500], vec![Denied; 29]].concat(), hours(1), None),
            ([vec![Denied; 30], vec![Silent; 500], vec![Denied; 60]].concat(), hours(1), Some(30 + 500 + 33)),
            (vec![Dead, Denied], hours(1), Some(2)),
            (vec![Unproven; 9], OnDenied::Coast, None),
            (vec![Unproven; 20], OnDenied::Coast, Some(11)),
            (vec![Unproven, Silent, Unproven, Alive], OnDenied::Coast, None),
            (vec![Alive; 200], OnDenied::Revoke, None),
        ];
        for (answers, on_denied, expected) in rows {
            assert_eq!(revoked_at(&answers, &policy(on_denied, None)), expected, "{answers:?} {on_denied:?}");
        }
        let three = Policy { confirmations: 3, ..policy(OnDenied::Coast, None) };
        assert_eq!(revoked_at(&[Dead, Denied, Silent, Dead], &three), Some(4));
    }

    #[test]
    fn answers_that_are_close_together_count_once_and_a_revocation_outlives_an_outage() {
        let policy = policy(OnDenied::Coast, None);
        use Reason::{KekDisabled, KmsUnreachable};
        let dead = |record: &Record, millis: u64| {
            record.after_failure(KekDisabled, Testimony::Dead, Moment(millis * 1_000_000), &policy)
        };
        let mut record = Record::after_success(Moment(0));
        for millis in (0..=4399).step_by(250) {
            record = dead(&record, millis);
            assert!(record.is_to_be_confirmed());
            assert_eq!(judge(&record, BOTH, &policy, Moment(0)).label(), "coasting", "{millis} ms");
        }
        let revoked = dead(&record, 4400);
        assert_eq!(judge(&revoked, BOTH, &policy, Moment(0)), State::Revoked { because: KekDisabled });
        assert!(!revoked.is_to_be_confirmed());
        let still = revoked.after_failure(KmsUnreachable, Testimony::Silent, Moment(4 * MINUTE), &policy);
        assert_eq!(judge(&still, NOTHING, &policy, Moment(4 * MINUTE)), State::Revoked { because: KekDisabled });
        assert_eq!(still.began(), Some(Moment(0)));
    }

    #[test]
    fn a_refused_outcome_is_no_outage_and_is_said_while_there_is_no_write_state() {
        let policy = policy(OnDenied::Revoke, Some(60));
        let record = Record::after_refusal(Reason::KeyIdRetired, Moment(0));
        let late = Moment(10_000 * MINUTE);
        assert_eq!(judge(&record, BOTH, &policy, late), State::Ready);
        let because = Some(Reason::KeyIdRetired);
        assert_eq!(judge(&record, KNOWN, &policy, late), State::StartingKnown { because });
        assert!(!judge(&record, KNOWN, &policy, late).is_outage());
        assert_eq!((record.refused(), record.trouble(), next_change(&record, &policy, late)), (because, None, None));
    }

    #[test]
    fn the_next_change_is_the_moment_at_which_the_state_is_another() {
        let policy = policy(OnDenied::Coast, Some(120));
        let record = record(&[(1, Reason::KmsUnreachable)], &policy);
        let mut now = Moment(MINUTE);
        for then in ["degraded", "stopped"] {
            let left = u64::try_from(next_change(&record, &policy, now).unwrap().as_nanos()).unwrap();
            assert_ne!(judge(&record, BOTH, &policy, Moment(now.0 + left - 1)).label(), then);
            now = Moment(now.0 + left);
            assert_eq!(judge(&record, BOTH, &policy, now).label(), then);
        }
        assert_eq!(next_change(&record, &policy, now), None);
        assert_eq!(next_change(&Record::after_success(Moment(0)), &policy, now), None);
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
        let soon = State::Degraded { because, age: Duration::from_secs(59) };
        assert_eq!(
            soon.status(),
            StatusRule::Answer { healthz: "kms-unreachable for 59 s, serving from memory".to_owned() }
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
            for reason in
                [Reason::KmsUnreachable, Reason::Deadline, Reason::KmsAnswerUnusable, Reason::KeyStoreUnavailable]
            {
                assert!(make(Some(reason)).is_outage(), "{reason}");
            }
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
        let record = Record::after_success(Moment(7)).after_failure(
            Reason::KmsUnreachable,
            Testimony::Silent,
            Moment(8),
            &policy,
        );
        assert_eq!((record.last_good(), record.failures()), (Some(Moment(7)), 1));
    }
}
