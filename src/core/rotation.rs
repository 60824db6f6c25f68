//! When a write state is replaced, as one pure function: [`decide`].
//!
//! Guarantees: a changed KEK version is believed only after several equal answers in a row (KMSs are eventually
//! consistent), a key_id that was left is never reported again, and replacing a DEK never changes the key_id.
//! SPEC: KEP-3299 "key_id and rotation"; docs/format.md.

use crate::health::JITTER_MOST;
use crate::key_id::KeyId;
use std::time::Duration;

/// A changed KEK version is asked for again after this time.
pub const OBSERVE_AGAIN: Duration = Duration::from_secs(2);
/// How long a new key_id waits for the disk that is to remember it.
pub const REMEMBERED_WITHIN: Duration = Duration::from_secs(2);

/// The longest time from a rotation until Status reports it, by the settings alone, the wait for the disk included: the probe
/// that has just begun is answered, the next one comes an interval later, and each further look some seconds after it.
#[must_use]
pub fn rotation_seen_within(interval: Duration, timeout: Duration, observations: u32) -> Duration {
    let looks = OBSERVE_AGAIN.min(interval).saturating_mul(observations.saturating_sub(1));
    let calls = timeout.saturating_mul(observations.saturating_add(1)).saturating_mul(2);
    interval.saturating_add(looks).mul_f64(JITTER_MOST).saturating_add(calls).saturating_add(REMEMBERED_WITHIN)
}

/// How often in a row the KMS has answered with which key_id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sightings {
    last: Option<KeyId>,
    in_a_row: u32,
}

impl Sightings {
    /// After one more answer.
    #[must_use]
    pub fn after(self, seen: &KeyId) -> Self {
        match self.last {
            Some(last) if last == *seen => Self { last: Some(last), in_a_row: self.in_a_row.saturating_add(1) },
            _ => Self { last: Some(seen.clone()), in_a_row: 1 },
        }
    }
}

/// What this node has reported.
#[derive(Clone, Copy, Debug)]
pub struct Reported<'a> {
    /// The key_id that it reports now, or reported last before it was restarted.
    pub current: Option<&'a KeyId>,
    /// Those that it has reported and left.
    pub left: &'a [KeyId],
}

/// What to do with a candidate: a DEK just wrapped, unwrapped and verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Forget the candidate; the write state stays.
    Keep,
    /// Seal with the candidate's DEK from now on; the key_id stays.
    RenewDek,
    /// The KEK version has changed, but has not been seen often enough: ask again soon.
    ObserveAgain,
    /// Report the candidate's key_id and seal with its DEK from now on.
    Publish,
    /// The KMS answers with a version that was left before: refuse.
    RefuseRetired,
}

/// Decides, from what was reported, what has been seen (`sightings` includes this candidate), how many equal answers
/// are asked for, and whether a new DEK is due (none yet, too old, used up).
#[must_use]
pub fn decide(reported: Reported<'_>, seen: &KeyId, sightings: &Sightings, needed: u32, dek_due: bool) -> Decision {
    match reported.current {
        Some(current) if current == seen => {
            if dek_due {
                Decision::RenewDek
            } else {
                Decision::Keep
            }
        }
        _ if reported.left.contains(seen) => Decision::RefuseRetired,
        None => Decision::Publish,
        Some(_) if sightings.last.as_ref() == Some(seen) && sightings.in_a_row >= needed => Decision::Publish,
        Some(_) => Decision::ObserveAgain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> KeyId {
        KeyId::parse(name.to_owned()).unwrap()
    }

    /// Plays a sequence of answers and returns what was decided and what is reported in the end.
    fn play(start: Option<&str>, left: &[&str], answers: &str) -> (Vec<Decision>, Vec<String>) {
        let mut current = start.map(id);
        let mut left: Vec<KeyId> = left.iter().map(|l| id(l)).collect();
        let mut sightings = Sightings::default();
        let mut decisions = Vec::new();
        let mut timeline: Vec<String> = start.map(str::to_owned).into_iter().collect();
        for answer in answers.chars() {
            let seen = id(&answer.to_string());
            sightings = sightings.after(&seen);
            let decision = decide(Reported { current: current.as_ref(), left: &left }, &seen, &sightings, 2, false);
            if decision == Decision::Publish {
                left.extend(current.replace(seen));
                timeline.push(answer.to_string());
            }
            decisions.push(decision);
        }
        (decisions, timeline)
    }

    #[test]
    fn the_first_answer_ever_is_published_at_once() {
        assert_eq!(play(None, &[], "AA").0, [Decision::Publish, Decision::Keep]);
    }

    #[test]
    fn a_change_is_published_after_two_equal_answers() {
        assert_eq!(play(Some("A"), &[], "ABB").0, [Decision::Keep, Decision::ObserveAgain, Decision::Publish]);
    }

    #[test]
    fn alternating_answers_never_publish() {
        assert_eq!(play(Some("A"), &[], "BABABABA").1, ["A"]);
    }

    #[test]
    fn a_key_id_that_was_left_never_comes_back() {
        let (decisions, timeline) = play(Some("A"), &[], "BBAAAABABAA");
        assert_eq!(timeline, ["A", "B"]);
        assert!(decisions.contains(&Decision::RefuseRetired));
        assert_eq!(play(None, &["A"], "AAA").1, Vec::<String>::new());
    }

    #[test]
    fn a_due_dek_is_renewed_under_the_same_key_id_only() {
        let current = id("A");
        let reported = Reported { current: Some(&current), left: &[] };
        let seen = Sightings::default().after(&current);
        assert_eq!(decide(reported, &current, &seen, 2, true), Decision::RenewDek);
        let other = id("B");
        let seen = seen.after(&other);
        assert_eq!(decide(reported, &other, &seen, 2, true), Decision::ObserveAgain);
    }
}
