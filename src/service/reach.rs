//! Which KEKs answer: each by itself, from what unwraps under it and probes of it came to.
//!
//! Guarantees: a data key past its time is excused by the silence of its own KEK and by nothing else, not by that of the KEK that
//! writes; silence that nobody has heard for a while excuses nobody; after a KEK has said *dead* of one blob, every data key
//! past its time is asked about itself before it serves again (ARCHITECTURE.md, decision 5). Looked at only for what memory cannot
//! answer. Tested row by row in `decrypt/revocation.rs`.

use kube_kms_core::fault::{Class, Fault, Reason};
use kube_kms_core::health::{OnDenied, Policy};
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::port::Moment;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a KEK last did excuses data keys past their time for so long.
const EXCUSED_FOR: Duration = Duration::from_secs(10);
/// While somebody reads, the KEK is asked again before that is over, at most once in this time.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A KEK that has not answered for so long is away: calls under it are not worth waiting for.
const AWAY_AFTER: Duration = Duration::from_secs(1);
/// KEKs that are remembered at most; whoever writes to etcd may name any key that an alias' account has.
const KEKS_MAX: usize = 64;

/// What a call to a KEK says about the KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It wraps and unwraps.
    Good,
    /// It answered, about this blob only.
    Blob,
    /// No answer.
    Silence,
    /// It asks for less.
    Throttled,
    /// It refuses us, and the operator takes that for an accident.
    Denied,
    /// It is dead, or it refuses us and the operator takes that for meant.
    Dead,
}

impl Word {
    /// What this failure says; `None` when it is not the KEK's.
    #[must_use]
    pub fn of(fault: &Fault, policy: &Policy) -> Option<Self> {
        match fault.class() {
            _ if policy.is_final(fault.reason()) => Some(Self::Dead),
            Class::Unreachable | Class::TooSlow => Some(Self::Silence),
            Class::Throttled if fault.reason() == Reason::KmsThrottled => Some(Self::Throttled),
            Class::KekDenied => Some(Self::Denied),
            _ if fault.reason() == Reason::KeyStateUnknown => Some(Self::Denied),
            Class::OpenFailed => Some(Self::Blob),
            _ => None,
        }
    }
}

/// A data key past its time may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excuse {
    /// Its KEK is to be asked again meanwhile.
    pub ask_again: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Reach(Mutex<HashMap<KekRef, Record>>);

#[derive(Clone, Debug, Default)]
struct Record {
    /// Calls since the last answer: when the first of them failed, and the last.
    silence: Option<(Moment, Moment)>,
    /// Kept over good answers: a KMS that throttles answers some.
    throttled: Option<Moment>,
    denied: Option<Moment>,
    /// Since when it has denied us without any other word.
    denied_since: Option<Moment>,
    /// When it last said that it is dead, unless a blob of it has opened since.
    dead: Option<Moment>,
    asked: Option<Moment>,
    scouted: Option<Moment>,
}

impl Record {
    /// When it last gave a reason to serve what is past its time.
    fn last_trouble(&self) -> Option<Moment> {
        self.silence.map(|(_, last)| last).max(self.throttled).max(self.denied)
    }

    fn is_excusing(&self, now: Moment) -> bool {
        self.last_trouble().is_some_and(|when| now.since(when) < EXCUSED_FOR)
    }

    fn hears(&mut self, word: Word, now: Moment) {
        self.denied_since = if word == Word::Denied { self.denied_since.or(Some(now)) } else { None };
        if word == Word::Silence {
            let since = self.silence.map_or(now, |(since, _)| since);
            self.silence = Some((since, now));
            return;
        }
        self.silence = None;
        match word {
            Word::Good => (self.denied, self.dead) = (None, None),
            Word::Blob => self.denied = None,
            Word::Denied => self.denied = Some(now),
            Word::Throttled => self.throttled = Some(now),
            Word::Dead => (self.throttled, self.denied, self.dead) = (None, None, Some(now)),
            Word::Silence => {}
        }
    }
}

impl Reach {
    fn lock(&self) -> MutexGuard<'_, HashMap<KekRef, Record>> {
        // A panic while it was held cannot leave it half changed in a way that matters.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a call under that KEK came to.
    pub fn note(&self, kek: &KekRef, word: Word, now: Moment) {
        let mut keks = self.lock();
        if let Some(record) = keks.get_mut(kek) {
            record.hears(word, now);
            return;
        }
        if keks.len() >= KEKS_MAX {
            // What is forgotten is asked before it serves. A dead one is the last to be forgotten.
            let least = keks.iter().min_by_key(|(_, r)| (r.dead, r.last_trouble())).map(|(kek, _)| kek.clone());
            least.and_then(|kek| keks.remove(&kek));
        }
        keks.entry(kek.clone()).or_default().hears(word, now);
    }

    /// Whether a data key of that KEK that is past its time may serve without waiting for an answer. `unanswered` is when the
    /// KEK last did not answer about this very data key.
    #[must_use]
    pub fn excuse(&self, kek: &KekRef, unanswered: Moment, now: Moment) -> Option<Excuse> {
        let mut keks = self.lock();
        let record = keks.get_mut(kek).filter(|record| record.is_excusing(now))?;
        // SECURITY: a KEK that has said *dead* and nothing since may be revoked as a whole.
        if record.dead.is_some_and(|dead| unanswered <= dead) {
            return None;
        }
        let is_due = |when: Option<Moment>| when.is_none_or(|when| now.since(when) >= ASKED_AGAIN_AFTER);
        let ask_again = is_due(record.last_trouble()) && is_due(record.asked);
        if ask_again {
            record.asked = Some(now);
        }
        Some(Excuse { ask_again })
    }

    /// Whether that KEK has denied us, and said nothing else, for as long as the operator takes for an accident.
    #[must_use]
    pub fn is_denied_for_good(&self, kek: &KekRef, policy: &Policy, now: Moment) -> bool {
        let OnDenied::CoastFor(limit) = policy.on_denied else { return false };
        let since = self.lock().get(kek).and_then(|record| record.denied_since);
        since.is_some_and(|since| now.since(since) >= limit)
    }

    /// Whether the last call under that KEK had no answer.
    #[must_use]
    pub fn is_silent(&self, kek: &KekRef, now: Moment) -> bool {
        let silence = self.lock().get(kek).and_then(|record| record.silence);
        silence.is_some_and(|(_, last)| now.since(last) < EXCUSED_FOR)
    }

    /// Whether calls under that KEK have had no answer for a second and more. One that throttles us is there.
    #[must_use]
    pub fn is_away(&self, kek: &KekRef, now: Moment) -> bool {
        let silence = self.lock().get(kek).and_then(|record| record.silence);
        silence.is_some_and(|(since, last)| last.since(since) >= AWAY_AFTER && now.since(last) < EXCUSED_FOR)
    }

    /// Whether to try with all the time of a KEK that is well, although this one is away: one call does, once in ten seconds, so that
    /// a KEK that is only slow is not given up.
    #[must_use]
    pub fn scouts(&self, kek: &KekRef, now: Moment) -> bool {
        let mut keks = self.lock();
        let Some(record) = keks.get_mut(kek) else { return false };
        let is_due = record.scouted.is_none_or(|when| now.since(when) >= EXCUSED_FOR);
        if is_due {
            record.scouted = Some(now);
        }
        is_due
    }

    /// For a KEK that has said that it is dead, and has unwrapped nothing since: what was past its time at this moment is to be
    /// given up. What goes past its time while it does not answer is kept.
    #[must_use]
    pub fn given_up_until(&self, kek: &KekRef, now: Moment) -> Option<Moment> {
        let keks = self.lock();
        let record = keks.get(kek).filter(|record| record.dead.is_some())?;
        Some(record.silence.map_or(now, |(since, _)| since))
    }

    /// Forgets all: other KEKs, or another policy.
    pub fn forget(&self) {
        self.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_kms_core::health::OnUnusable;
    use kube_kms_core::kek_ref::KekKind;

    const NEVER: Moment = Moment(0);

    fn kek(name: &str) -> KekRef {
        KekRef::new(KekKind::LOCAL, name).unwrap()
    }

    fn at(millis: u64) -> Moment {
        Moment((100_000 + millis) * 1_000_000)
    }

    fn after(words: &[(u64, Word)]) -> Reach {
        let reach = Reach::default();
        for (millis, word) in words {
            reach.note(&kek("k"), *word, at(*millis));
        }
        reach
    }

    fn excuses(words: &[(u64, Word)], now: u64) -> bool {
        after(words).excuse(&kek("k"), NEVER, at(now)).is_some()
    }

    #[test]
    fn only_its_own_trouble_excuses_and_only_for_ten_seconds() {
        for word in [Word::Silence, Word::Throttled, Word::Denied] {
            assert!(excuses(&[(0, word)], 9_999) && !excuses(&[(0, word)], 10_000), "{word:?}");
            assert_eq!(after(&[(0, word)]).excuse(&kek("other"), NEVER, at(1)), None, "{word:?}");
        }
        for word in [Word::Good, Word::Blob, Word::Dead] {
            assert!(!excuses(&[(0, word)], 1), "{word:?}");
        }
    }

    #[test]
    fn an_answer_ends_the_excuse_but_for_throttling_which_goes_on_between_answers() {
        for answer in [Word::Good, Word::Blob] {
            assert!(!excuses(&[(0, Word::Silence), (1, answer)], 2), "{answer:?}");
            assert!(!excuses(&[(0, Word::Denied), (1, answer)], 2), "{answer:?}");
            assert!(excuses(&[(0, Word::Throttled), (1, answer)], 2), "{answer:?}");
        }
        for word in [Word::Silence, Word::Throttled, Word::Denied] {
            assert!(!excuses(&[(0, word), (1, Word::Dead)], 2), "{word:?}");
        }
    }

    #[test]
    fn after_a_dead_answer_each_dek_is_asked_about_itself_until_one_opens() {
        let reach = after(&[(0, Word::Dead), (10, Word::Silence)]);
        assert_eq!(reach.excuse(&kek("k"), at(0), at(20)), None, "asked before it said so");
        assert!(reach.excuse(&kek("k"), at(10), at(20)).is_some(), "asked since");
        // Whoever writes to etcd can have a blob rejected at any time: that proves nothing of the others.
        assert!(!excuses(&[(0, Word::Dead), (5, Word::Blob), (10, Word::Silence)], 20));
        assert!(excuses(&[(0, Word::Dead), (5, Word::Good), (10, Word::Silence)], 20));
    }

    #[test]
    fn while_it_excuses_the_kek_is_asked_again_once_in_five_seconds() {
        let reach = after(&[(0, Word::Silence)]);
        let asks = |now| reach.excuse(&kek("k"), NEVER, at(now)).unwrap().ask_again;
        assert_eq!([0, 4_999, 5_000, 5_001, 9_999].map(asks), [false, false, true, false, false]);
        reach.note(&kek("k"), Word::Silence, at(9_999));
        assert_eq!([10_000, 14_998, 14_999, 15_000].map(asks), [false, false, true, false]);
    }

    #[test]
    fn a_kek_is_away_when_a_second_has_passed_without_an_answer() {
        let away = |words: &[(u64, Word)], now| after(words).is_away(&kek("k"), at(now));
        assert!(!away(&[(0, Word::Silence)], 5_000), "one call proves no outage");
        assert!(!away(&[(0, Word::Silence), (999, Word::Silence)], 1_000));
        assert!(away(&[(0, Word::Silence), (1_000, Word::Silence)], 1_000));
        assert!(!away(&[(0, Word::Silence), (500, Word::Blob), (1_000, Word::Silence)], 1_000));
        assert!(!away(&[(0, Word::Silence), (1_000, Word::Throttled)], 1_000), "it is there");
        assert!(!away(&[(0, Word::Silence), (1_000, Word::Silence)], 11_000), "that was long ago");
    }

    #[test]
    fn silence_that_nobody_has_heard_for_ten_seconds_is_none() {
        let reach = after(&[(0, Word::Silence)]);
        assert!(reach.is_silent(&kek("k"), at(9_999)) && !reach.is_silent(&kek("k"), at(10_000)));
    }

    #[test]
    fn one_call_in_ten_seconds_tries_with_all_its_time() {
        let reach = after(&[(0, Word::Silence)]);
        let scouts = |now| reach.scouts(&kek("k"), at(now));
        assert_eq!([0, 1, 9_999, 10_000, 10_001].map(scouts), [true, false, false, true, false]);
        assert!(!reach.scouts(&kek("other"), at(0)));
    }

    #[test]
    fn what_is_past_its_time_when_it_says_dead_is_given_up_and_what_goes_past_it_in_silence_is_not() {
        let until = |words: &[(u64, Word)]| after(words).given_up_until(&kek("k"), at(9_000));
        assert_eq!(until(&[(0, Word::Dead)]), Some(at(9_000)));
        assert_eq!(until(&[(0, Word::Dead), (50, Word::Silence), (70, Word::Silence)]), Some(at(50)));
        assert_eq!(until(&[(0, Word::Dead), (1, Word::Blob)]), Some(at(9_000)));
        for word in [Word::Good, Word::Silence, Word::Denied, Word::Throttled] {
            assert_eq!(until(&[(0, word)]), None, "{word:?}");
        }
        assert_eq!(until(&[(0, Word::Dead), (1, Word::Good)]), None);
    }

    #[test]
    fn any_number_of_keks_takes_no_more_memory_and_a_dead_one_is_forgotten_last() {
        let reach = after(&[(0, Word::Dead)]);
        for n in 0..1000 {
            reach.note(&kek(&n.to_string()), Word::Silence, at(1 + n));
        }
        assert_eq!(reach.lock().len(), KEKS_MAX);
        assert!(reach.given_up_until(&kek("k"), at(2_000)).is_some());
        assert!(reach.is_silent(&kek("999"), at(2_000)));
        reach.forget();
        assert_eq!(reach.given_up_until(&kek("k"), at(2_000)), None);
    }

    #[test]
    fn a_denial_is_for_good_after_the_time_that_the_operator_gives_it_and_any_other_word_starts_it_again() {
        let policy = |on_denied| Policy {
            grace: Duration::ZERO,
            on_denied,
            on_unusable: OnUnusable::Coast,
            stop_after: None,
            confirmations: 2,
        };
        let (reach, an_hour) = (Reach::default(), policy(OnDenied::CoastFor(Duration::from_secs(3600))));
        let for_good = |second: u64| reach.is_denied_for_good(&kek("k"), &an_hour, at(second * 1000));
        reach.note(&kek("k"), Word::Denied, at(0));
        reach.note(&kek("k"), Word::Denied, at(3000000));
        assert!(!for_good(3599) && for_good(3600));
        assert!(!reach.is_denied_for_good(&kek("k"), &policy(OnDenied::Coast), at(9999000)), "never, without a time");
        for other in [Word::Good, Word::Blob, Word::Silence, Word::Throttled] {
            reach.note(&kek("k"), other, at(4000000));
            reach.note(&kek("k"), Word::Denied, at(4001000));
            assert!(!for_good(7600) && for_good(7601), "{other:?}");
        }
    }

    #[test]
    fn every_failure_says_what_its_class_says_and_a_denial_or_an_unusable_key_store_what_the_operator_says() {
        let policy = |on_denied, on_unusable| Policy {
            grace: Duration::ZERO,
            on_denied,
            on_unusable,
            stop_after: None,
            confirmations: 2,
        };
        let policies = [
            policy(OnDenied::Coast, OnUnusable::Coast),
            policy(OnDenied::Revoke, OnUnusable::Coast),
            policy(OnDenied::CoastFor(Duration::from_secs(60)), OnUnusable::Revoke),
        ];
        for reason in Reason::ALL {
            let said = policies.each_ref().map(|policy| Word::of(&Fault::new(*reason), policy));
            let expected = match reason.class() {
                _ if *reason == Reason::KeyStoreUnavailable => {
                    [Some(Word::Silence), Some(Word::Silence), Some(Word::Dead)]
                }
                _ if *reason == Reason::KeyStateUnknown => [Some(Word::Denied), Some(Word::Denied), Some(Word::Dead)],
                Class::Unreachable | Class::TooSlow => [Some(Word::Silence); 3],
                Class::Throttled if *reason == Reason::KmsThrottled => [Some(Word::Throttled); 3],
                Class::KekDenied => [Some(Word::Denied), Some(Word::Dead), Some(Word::Denied)],
                Class::KekDead => [Some(Word::Dead); 3],
                Class::OpenFailed => [Some(Word::Blob); 3],
                _ => [None; 3],
            };
            assert_eq!(said, expected, "{reason}");
        }
    }
}
