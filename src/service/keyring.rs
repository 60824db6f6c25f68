//! The keyring: a bounded cache of unwrapped DEKs, and at most one unwrap on its way per wrapped DEK.
//!
//! Guarantees: an unwrap survives the caller that started it; a full keyring gives up what was used longest ago; what is
//! given up is wiped; a KEK that is revoked takes its DEKs with it, and an unwrap that was on its way meanwhile does not
//! bring them back. The lock is held for a look-up, never across an await. Refuses to know how a DEK is unwrapped.

mod entry;

pub use entry::Entry;

use crate::observer::{KeyringEvent, Observer};
use entry::{Held, Slot, SlotRef};
use hashbrown::{HashMap, HashSet};
use kube_kms_core::annotation::DekName;
use kube_kms_core::dek::Dek;
use kube_kms_core::fault::{Class, Fault, Reason};
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::limit;
use kube_kms_core::port::Moment;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a blob that the KMS refused as damaged or foreign is refused without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Refused blobs that are remembered at most.
const REFUSED_MAX: usize = 1024;

/// What an unwrap came to, shared by everybody who waits for it.
pub type Outcome = Result<Arc<Entry>, Fault>;

/// What a look-up found.
#[derive(Debug)]
pub enum Found {
    /// A DEK within its time.
    Fresh(Arc<Entry>),
    /// A DEK past its time: to be unwrapped again, and good while its KEK does not answer.
    Expired(Arc<Entry>),
    /// The KMS refused this blob a moment ago.
    Refused(Fault),
    /// Nothing.
    Absent,
}

/// How far an unwrap has come.
#[derive(Clone, Debug)]
pub enum Progress {
    /// The KMS has been asked, or will be.
    Asking,
    /// The KMS did not answer the last time that it was asked, or throttled us; it is being asked again.
    Failing(Fault),
    /// It is over.
    Settled(Outcome),
}

/// A place in the queue for an unwrap.
#[derive(Debug)]
pub enum Joined {
    /// Somebody else has started it.
    Waiting(watch::Receiver<Progress>),
    /// The caller must run it, in a task of its own, and settle the flight.
    Started(Flight, watch::Receiver<Progress>),
}

/// See the module.
#[derive(Debug)]
pub struct Keyring {
    inner: Mutex<Inner>,
    observer: Arc<dyn Observer>,
}

#[derive(Debug)]
struct Inner {
    capacity: usize,
    ttl: Duration,
    entries: HashSet<Held>,
    flights: HashMap<Slot, watch::Receiver<Progress>>,
    refused: HashMap<Slot, (Moment, Fault)>,
    generation: u64,
}

impl Keyring {
    /// An empty one, for at most `capacity` DEKs that are good for `ttl`.
    #[must_use]
    pub fn new(capacity: usize, ttl: Duration, observer: Arc<dyn Observer>) -> Self {
        let inner = Inner {
            capacity,
            ttl,
            entries: HashSet::new(),
            flights: HashMap::new(),
            refused: HashMap::new(),
            generation: 0,
        };
        Self { inner: Mutex::new(inner), observer }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held cannot leave it half changed in a way that matters: every change is one insert or remove.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for the DEK of that name.
    #[must_use]
    pub fn find<'a>(&self, name: impl Into<DekName<'a>>, now: Moment) -> Found {
        let slot = SlotRef::of(name.into());
        let inner = self.lock();
        if let Some(Held(entry)) = inner.entries.get(&slot) {
            entry.touch(now);
            let entry = Arc::clone(entry);
            return if entry.age(now) < inner.ttl { Found::Fresh(entry) } else { Found::Expired(entry) };
        }
        match inner.refused.get(&slot) {
            Some((when, fault)) if now.since(*when) < REFUSED_FOR => Found::Refused(fault.clone()),
            _ => Found::Absent,
        }
    }

    /// Joins the unwrap of this DEK, or starts it.
    ///
    /// # Errors
    /// `overloaded` when too many distinct DEKs are being unwrapped already.
    pub fn join<'a>(self: &Arc<Self>, name: impl Into<DekName<'a>>) -> Result<Joined, Fault> {
        let name = name.into();
        let mut inner = self.lock();
        if let Some(waiting) = inner.flights.get(&SlotRef::of(name)) {
            return Ok(Joined::Waiting(waiting.clone()));
        }
        if inner.flights.len() >= limit::UNWRAPS_QUEUED_MAX {
            return Err(Reason::Overloaded.into());
        }
        let slot = Slot::of(name);
        let (sender, receiver) = watch::channel(Progress::Asking);
        inner.flights.insert(slot.clone(), receiver.clone());
        let flight = Flight { keyring: Arc::clone(self), slot, sender, generation: inner.generation, settled: false };
        Ok(Joined::Started(flight, receiver))
    }

    /// Wipes every DEK under that KEK.
    pub fn wipe(&self, kek: &KekRef) {
        self.retain(|slot| !slot.is_under(kek));
    }

    /// Wipes every DEK whose KEK is not one of those.
    pub fn wipe_unless(&self, keep: impl Fn(&KekRef) -> bool) {
        // Thousands of DEKs are under a handful of KEKs, so each of those is judged once.
        let mut judged: Vec<(KekRef, bool)> = Vec::new();
        self.retain(|slot| {
            if let Some((_, is_kept)) = judged.iter().find(|(kek, _)| slot.is_under(kek)) {
                return *is_kept;
            }
            let Some(kek) = slot.kek() else { return false };
            let is_kept = keep(&kek);
            judged.push((kek, is_kept));
            is_kept
        });
    }

    fn retain(&self, mut keep: impl FnMut(&Slot) -> bool) {
        let mut inner = self.lock();
        inner.generation = inner.generation.wrapping_add(1);
        let before = inner.entries.len();
        inner.entries.retain(|Held(entry)| keep(entry.slot()));
        inner.refused.clear();
        let wiped = before.saturating_sub(inner.entries.len());
        drop(inner);
        for _ in 0..wiped {
            self.observer.keyring(KeyringEvent::Wiped);
        }
    }

    /// Wipes what was past its time at the moment that `until` names for its KEK, and returns how many those were. For all other
    /// KEKs that have DEKs past their time, one DEK each: the one that was used last.
    pub fn sweep(&self, now: Moment, until: impl Fn(&KekRef) -> Option<Moment>) -> (usize, Vec<(KekRef, Vec<u8>)>) {
        let mut inner = self.lock();
        let ttl = inner.ttl;
        // Thousands of DEKs are under a handful of KEKs.
        let mut keks: Vec<(KekRef, Option<Moment>, Option<Arc<Entry>>)> = Vec::new();
        let before = inner.entries.len();
        inner.entries.retain(|Held(entry)| {
            if entry.age(now) < ttl {
                return true;
            }
            let seen = match keks.iter_mut().position(|(kek, ..)| entry.slot().is_under(kek)) {
                Some(index) => keks.get_mut(index),
                None => entry.slot().kek().and_then(|kek| {
                    let until = until(&kek);
                    keks.push((kek, until, None));
                    keks.last_mut()
                }),
            };
            let Some((_, until, last)) = seen else { return false };
            if until.is_some_and(|until| until.since(entry.unwrapped()) >= ttl) {
                return false;
            }
            if last.as_ref().is_none_or(|last| last.last_used() < entry.last_used()) {
                *last = Some(Arc::clone(entry));
            }
            true
        });
        let wiped = before.saturating_sub(inner.entries.len());
        drop(inner);
        for _ in 0..wiped {
            self.observer.keyring(KeyringEvent::Wiped);
        }
        let named = |(kek, _, last): (KekRef, _, Option<Arc<Entry>>)| Some((kek, last?.slot().wrapped().to_vec()));
        (wiped, keks.into_iter().filter_map(named).collect())
    }

    /// Takes new limits after a reload.
    pub fn configure(&self, capacity: usize, ttl: Duration) {
        let mut inner = self.lock();
        inner.capacity = capacity;
        inner.ttl = ttl;
        while inner.entries.len() > inner.capacity {
            self.evict(&mut inner);
        }
    }

    /// How many DEKs are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a DEK in that needs no unwrap, because it was just proven: the one of a new write state.
    pub fn insert<'a>(&self, name: impl Into<DekName<'a>>, dek: Arc<Dek>, now: Moment) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(Slot::of(name.into()), dek, now));
        self.put(&mut self.lock(), Arc::clone(&entry));
        entry
    }

    fn put(&self, inner: &mut Inner, entry: Arc<Entry>) {
        if let Some(Held(old)) = inner.entries.get(&entry.slot().by_ref()) {
            entry.used_as(old);
        } else {
            while inner.entries.len() >= inner.capacity.max(1) {
                self.evict(inner);
            }
        }
        inner.entries.replace(Held(entry));
    }

    /// Gives up the entry that was used longest ago. Looks at all of them: it happens once per unwrap at most, which
    /// costs a remote call.
    fn evict(&self, inner: &mut Inner) {
        let oldest =
            inner.entries.iter().min_by_key(|Held(entry)| entry.last_used()).map(|Held(entry)| Arc::clone(entry));
        if let Some(entry) = oldest {
            inner.entries.remove(&entry.slot().by_ref());
            self.observer.keyring(KeyringEvent::Evicted);
        }
    }
}

/// An unwrap on its way. Whoever holds it settles it; dropped unsettled (a panic) it fails everybody who waits.
#[derive(Debug)]
pub struct Flight {
    keyring: Arc<Keyring>,
    slot: Slot,
    sender: watch::Sender<Progress>,
    generation: u64,
    settled: bool,
}

impl Flight {
    /// Whether anybody waits for it.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        // One of them is the keyring's own, for those who come later.
        self.sender.receiver_count() > 1
    }

    /// Tells everybody who waits that one attempt has failed.
    pub fn attempt_failed(&self, fault: &Fault, now: Moment) {
        self.note_failure(&mut self.keyring.lock(), fault, now);
        self.sender.send_replace(Progress::Failing(fault.clone()));
    }

    /// Ends it: the DEK goes into the keyring (unless it was wiped meanwhile) and everybody who waits has it.
    pub fn settle(mut self, outcome: Result<Arc<Dek>, Fault>, now: Moment) {
        self.settled = true;
        let mut inner = self.keyring.lock();
        inner.flights.remove(&self.slot);
        let shared = match outcome {
            Ok(dek) => {
                let entry = Arc::new(Entry::new(self.slot.clone(), dek, now));
                if self.generation == inner.generation {
                    self.keyring.put(&mut inner, Arc::clone(&entry));
                }
                Ok(entry)
            }
            Err(fault) => {
                self.note_failure(&mut inner, &fault, now);
                Err(fault)
            }
        };
        drop(inner);
        // Nobody may be waiting any more; the keyring has it all the same.
        let _ = self.sender.send(Progress::Settled(shared));
    }

    fn note_failure(&self, inner: &mut Inner, fault: &Fault, now: Moment) {
        match fault.class() {
            Class::OpenFailed => {
                inner.entries.remove(&self.slot.by_ref());
                if inner.refused.len() >= REFUSED_MAX {
                    inner.refused.retain(|_, (when, _)| now.since(*when) < REFUSED_FOR);
                }
                if inner.refused.len() < REFUSED_MAX {
                    inner.refused.insert(self.slot.clone(), (now, fault.clone()));
                }
            }
            // SECURITY: what was wrapped under a dead KEK, or a dead version of it, is not served any more. Only this blob:
            // others may be under another version of the same KEK, and the supervisor's probe judges the KEK as a whole.
            Class::KekDead if inner.entries.remove(&self.slot.by_ref()) => {
                self.keyring.observer.keyring(KeyringEvent::Wiped);
            }
            // Our own refusal: the KEK was not asked.
            _ if fault.reason() == Reason::Overloaded => {}
            _ => {
                if let Some(Held(entry)) = inner.entries.get(&self.slot.by_ref()) {
                    entry.was_unanswered(now);
                }
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.settled {
            self.keyring.lock().flights.remove(&self.slot);
            let _ = self.sender.send(Progress::Settled(Err(Reason::Invariant.into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decrypt_fixture::{annotations, dek};
    use crate::observer::Unobserved;

    const TTL: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    fn keyring(capacity: usize) -> Arc<Keyring> {
        Arc::new(Keyring::new(capacity, TTL, Arc::new(Unobserved)))
    }

    fn started(keyring: &Arc<Keyring>, identity: &str, n: u32) -> (Flight, watch::Receiver<Progress>) {
        match keyring.join(&annotations(identity, n)).unwrap() {
            Joined::Started(flight, waiting) => (flight, waiting),
            Joined::Waiting(_) => panic!("somebody else has started it"),
        }
    }

    fn is_fresh(keyring: &Keyring, identity: &str, n: u32, now: Moment) -> bool {
        matches!(keyring.find(&annotations(identity, n), now), Found::Fresh(_))
    }

    fn is_absent(keyring: &Keyring, identity: &str, n: u32, now: Moment) -> bool {
        matches!(keyring.find(&annotations(identity, n), now), Found::Absent)
    }

    #[test]
    fn a_dek_is_fresh_for_its_time_and_expired_from_then_on() {
        let keyring = keyring(16);
        started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(5));
        assert!(is_fresh(&keyring, "k", 1, at(64)));
        assert!(matches!(keyring.find(&annotations("k", 1), at(65)), Found::Expired(_)));
        started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(70));
        assert!(is_fresh(&keyring, "k", 1, at(129)));
    }

    #[test]
    fn the_same_blob_under_another_kek_is_another_dek() {
        let keyring = keyring(16);
        started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(0));
        assert!(is_fresh(&keyring, "k", 1, at(1)) && is_absent(&keyring, "other", 1, at(1)));
    }

    #[test]
    fn a_full_keyring_gives_up_what_was_used_longest_ago() {
        let keyring = keyring(3);
        for n in 1..=3 {
            started(&keyring, "k", n).0.settle(Ok(dek(n)), at(n.into()));
        }
        assert!(is_fresh(&keyring, "k", 1, at(10)));
        started(&keyring, "k", 4).0.settle(Ok(dek(4)), at(11));
        assert!(is_absent(&keyring, "k", 2, at(12)));
        assert!([1, 3, 4].iter().all(|n| is_fresh(&keyring, "k", *n, at(12 + u64::from(*n)))));
        // Renewing what is there pushes nobody out.
        started(&keyring, "k", 4).0.settle(Ok(dek(4)), at(17));
        assert_eq!(keyring.len(), 3);
        keyring.configure(1, TTL);
        assert!(is_fresh(&keyring, "k", 4, at(18)) && keyring.len() == 1);
    }

    #[test]
    fn an_unwrap_that_was_on_its_way_does_not_bring_back_what_was_wiped() {
        let keyring = keyring(16);
        started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(0));
        started(&keyring, "other", 2).0.settle(Ok(dek(2)), at(0));
        let (flight, waiting) = started(&keyring, "k", 3);
        keyring.wipe(annotations("k", 1).kek());
        flight.settle(Ok(dek(3)), at(1));
        assert!(matches!(&*waiting.borrow(), Progress::Settled(Ok(_))), "whoever waited has it");
        assert!(is_absent(&keyring, "k", 1, at(1)) && is_absent(&keyring, "k", 3, at(1)));
        assert!(is_fresh(&keyring, "other", 2, at(1)) && keyring.len() == 1);
        // What begins after the wipe stays.
        started(&keyring, "k", 3).0.settle(Ok(dek(3)), at(2));
        assert!(is_fresh(&keyring, "k", 3, at(2)));
    }

    #[test]
    fn the_deks_of_each_kek_are_kept_or_wiped_together() {
        let keyring = keyring(64);
        let keks = ["kept", "wiped", "kept as well", "gone"].map(|name| name.replace(' ', "-"));
        for n in 0..40 {
            started(&keyring, &keks[n as usize % 4], n).0.settle(Ok(dek(n)), at(0));
        }
        keyring.wipe_unless(|kek| kek.identity().starts_with("kept"));
        for n in 0..40 {
            assert_eq!(is_fresh(&keyring, &keks[n as usize % 4], n, at(1)), n % 2 == 0, "{n}");
        }
    }

    #[test]
    fn a_flight_that_is_dropped_fails_its_waiters_and_leaves_room_for_the_next() {
        let keyring = keyring(16);
        let (flight, first) = started(&keyring, "k", 1);
        let Joined::Waiting(second) = keyring.join(&annotations("k", 1)).unwrap() else { panic!("a second unwrap") };
        drop(flight);
        for waiting in [first, second] {
            let progress = waiting.borrow().clone();
            assert!(matches!(progress, Progress::Settled(Err(fault)) if fault.reason() == Reason::Invariant));
        }
        started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(0));
        assert!(is_fresh(&keyring, "k", 1, at(0)));
    }

    #[test]
    fn an_unwrap_is_awaited_while_somebody_waits_for_it() {
        let keyring = keyring(16);
        let (flight, waiting) = started(&keyring, "k", 1);
        assert!(flight.is_awaited());
        drop(waiting);
        assert!(!flight.is_awaited());
        let Joined::Waiting(_joined) = keyring.join(&annotations("k", 1)).unwrap() else { panic!("a second unwrap") };
        assert!(flight.is_awaited());
    }

    #[test]
    fn a_kek_that_was_not_asked_has_not_left_a_dek_unanswered() {
        for (reason, unanswered) in [(Reason::Overloaded, at(0)), (Reason::KmsUnreachable, at(100))] {
            let keyring = keyring(16);
            started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(0));
            assert!(!keyring.is_empty());
            started(&keyring, "k", 1).0.settle(Err(reason.into()), at(100));
            let Found::Expired(entry) = keyring.find(&annotations("k", 1), at(100)) else { panic!("{reason}") };
            assert_eq!(entry.unanswered(), unanswered, "{reason}");
        }
    }

    #[test]
    fn being_renewed_is_no_use() {
        let keyring = keyring(2);
        for n in [1, 2, 1] {
            started(&keyring, "k", n).0.settle(Ok(dek(n)), at(n.into()));
        }
        started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(10));
        started(&keyring, "k", 3).0.settle(Ok(dek(3)), at(11));
        assert!(is_absent(&keyring, "k", 1, at(12)) && is_fresh(&keyring, "k", 2, at(12)));
    }

    #[test]
    fn a_sweep_wipes_what_was_past_its_time_when_its_kek_was_given_up_and_names_one_of_the_others() {
        let keyring = keyring(16);
        started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(100));
        let sweep = |now, until| keyring.sweep(at(now), |_| Some(at(until)));
        assert_eq!(sweep(159, 159), (0, Vec::new()), "it is fresh");
        let stale = vec![(annotations("k", 1).kek().clone(), annotations("k", 1).wrapped_dek().to_vec())];
        assert_eq!(sweep(200, 159), (0, stale), "it was fresh then");
        assert_eq!(sweep(160, 160), (1, Vec::new()));
        assert!(keyring.is_empty());
    }

    #[test]
    fn more_distinct_deks_than_may_wait_are_refused_and_the_rest_goes_on() {
        let keyring = keyring(16);
        let most = u32::try_from(limit::UNWRAPS_QUEUED_MAX).unwrap();
        let mut flights: Vec<_> = (0..most).map(|n| started(&keyring, "k", n).0).collect();
        for n in most..most + 100 {
            assert_eq!(keyring.join(&annotations("k", n)).unwrap_err().reason(), Reason::Overloaded);
        }
        // One that is on its way already may be joined by any number.
        assert!(matches!(keyring.join(&annotations("k", 7)).unwrap(), Joined::Waiting(_)));
        flights.pop();
        started(&keyring, "k", most).0.settle(Ok(dek(most)), at(0));
        assert!(is_fresh(&keyring, "k", most, at(0)));
    }

    #[test]
    fn a_refused_blob_is_remembered_for_ten_seconds_and_only_so_many_are() {
        let keyring = keyring(16);
        let refuse = |n, now| started(&keyring, "k", n).0.settle(Err(Reason::WrappedDekRejected.into()), now);
        refuse(1, at(0));
        assert!(matches!(keyring.find(&annotations("k", 1), at(9)), Found::Refused(_)));
        assert!(is_absent(&keyring, "k", 1, at(10)));
        for n in 2..=3000 {
            refuse(n, at(20));
        }
        assert_eq!(keyring.lock().refused.len(), REFUSED_MAX);
        refuse(5000, at(31));
        assert!(keyring.lock().refused.len() == 1, "those of before are past their time");
        // After a change of the configuration it may be accepted.
        keyring.wipe_unless(|_| true);
        assert!(is_absent(&keyring, "k", 5000, at(31)));
    }

    #[test]
    fn only_what_is_final_makes_it_forget_a_dek() {
        for reason in Reason::ALL {
            let keyring = keyring(16);
            started(&keyring, "k", 1).0.settle(Ok(dek(1)), at(0));
            started(&keyring, "k", 1).0.settle(Err((*reason).into()), at(100));
            let kept = matches!(keyring.find(&annotations("k", 1), at(100)), Found::Expired(_));
            let is_final = matches!(reason.class(), Class::KekDead | Class::OpenFailed);
            assert_eq!(kept, !is_final, "{reason}");
        }
    }
}
