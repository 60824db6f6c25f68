//! One unwrapped DEK of the keyring: its name, its times, and what it opened.
//!
//! Guarantees: two names are equal when KEK and wrapped DEK are, byte by byte; additional data is taken from memory for a
//! request that is, byte by byte, the one that it was computed for. With thousands of DEKs each cache line that a Decrypt
//! reads is one to be fetched, so a name is one run of bytes, and so is what is remembered of a request.

use hashbrown::Equivalent;
use kube_kms_core::annotation::{AdditionalData, Annotations, DekName};
use kube_kms_core::dek::Dek;
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::Moment;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// One unwrapped DEK.
#[derive(Debug)]
pub struct Entry {
    slot: Slot,
    dek: Arc<Dek>,
    unwrapped: Moment,
    last_used: AtomicU64,
    unanswered: AtomicU64,
    binding: OnceLock<Binding>,
}

impl Entry {
    pub(super) fn new(slot: Slot, dek: Arc<Dek>, now: Moment) -> Self {
        Self {
            slot,
            dek,
            unwrapped: now,
            last_used: AtomicU64::new(now.0),
            unanswered: AtomicU64::new(0),
            binding: OnceLock::new(),
        }
    }

    pub(super) const fn slot(&self) -> &Slot {
        &self.slot
    }

    pub(super) fn touch(&self, now: Moment) {
        self.last_used.store(now.0, Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    pub(super) fn age(&self, now: Moment) -> Duration {
        now.since(self.unwrapped)
    }

    pub(super) const fn unwrapped(&self) -> Moment {
        self.unwrapped
    }

    /// Takes over from another entry of the same name when that was last used: being renewed is no use.
    pub(super) fn used_as(&self, other: &Self) {
        self.last_used.store(other.last_used(), Ordering::Relaxed);
    }

    /// When the KEK last did not answer about this DEK; zero for never.
    #[must_use]
    pub fn unanswered(&self) -> Moment {
        Moment(self.unanswered.load(Ordering::Relaxed))
    }

    /// The key.
    #[must_use]
    pub fn dek(&self) -> &Dek {
        &self.dek
    }

    /// The additional data for this request: remembered when the request is like the one that opened before.
    #[must_use]
    pub fn aad(&self, key_id: &KeyId, annotations: &Annotations) -> AdditionalData {
        match self.binding.get() {
            Some(binding) if binding.is_of(key_id, annotations) => binding.aad,
            _ => AdditionalData::bind(key_id, annotations.all()),
        }
    }

    /// Past its time, and the KEK was asked about it and did not answer.
    pub fn was_unanswered(&self, now: Moment) {
        self.unanswered.store(now.0, Ordering::Relaxed);
    }

    /// Remembers the additional data of a request that opened.
    pub fn remember(&self, key_id: &KeyId, annotations: &Annotations, aad: AdditionalData) {
        self.binding.get_or_init(|| Binding { said: said(key_id, annotations), aad });
    }
}

/// The key_id and annotations that opened under this DEK, with their additional data.
#[derive(Debug)]
struct Binding {
    said: Box<[u8]>,
    aad: AdditionalData,
}

impl Binding {
    fn is_of(&self, key_id: &KeyId, annotations: &Annotations) -> bool {
        let mut left = &*self.said;
        let all = parts(key_id, annotations).all(|part| match after(left, part) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        });
        all && left.is_empty()
    }
}

/// What says it all of a request: its key_id, and each annotation's name and value.
fn parts<'a>(key_id: &'a KeyId, annotations: &'a Annotations) -> impl Iterator<Item = &'a [u8]> {
    let pairs = annotations.all().iter().flat_map(|(name, value)| [name.as_bytes(), value.as_slice()]);
    std::iter::once(key_id.as_str().as_bytes()).chain(pairs)
}

/// The parts in a row, each behind its length, so that no two requests say the same.
fn said(key_id: &KeyId, annotations: &Annotations) -> Box<[u8]> {
    let len = parts(key_id, annotations).fold(0_usize, |sum, part| sum.saturating_add(part.len()).saturating_add(8));
    let mut said = Vec::with_capacity(len);
    for part in parts(key_id, annotations) {
        said.extend_from_slice(&part.len().to_le_bytes());
        said.extend_from_slice(part);
    }
    said.into_boxed_slice()
}

/// What follows this part, if it is the next one.
fn after<'a>(said: &'a [u8], part: &[u8]) -> Option<&'a [u8]> {
    said.strip_prefix(&part.len().to_le_bytes())?.strip_prefix(part)
}

/// The name of an entry: which KEK, and the wrapped DEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    both: Box<[u8]>,
    kek_len: usize,
}

impl Slot {
    pub(super) fn of(name: DekName<'_>) -> Self {
        let kek = name.kek.as_str().as_bytes();
        Self { both: [kek, name.wrapped].concat().into_boxed_slice(), kek_len: kek.len() }
    }

    pub(super) fn by_ref(&self) -> SlotRef<'_> {
        let (kek, wrapped) = self.both.split_at_checked(self.kek_len).unwrap_or_default();
        SlotRef { kek, wrapped }
    }

    /// Whether its KEK is that one.
    pub(super) fn is_under(&self, kek: &KekRef) -> bool {
        self.by_ref().kek == kek.as_str().as_bytes()
    }

    /// The wrapped DEK.
    pub(super) fn wrapped(&self) -> &[u8] {
        self.by_ref().wrapped
    }

    /// The KEK, read again.
    pub(super) fn kek(&self) -> Option<KekRef> {
        KekRef::parse(self.by_ref().kek).ok()
    }
}

impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.by_ref().hash(state);
    }
}

/// A [`Slot`], borrowed from a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SlotRef<'a> {
    kek: &'a [u8],
    wrapped: &'a [u8],
}

impl<'a> SlotRef<'a> {
    pub(super) fn of(name: DekName<'a>) -> Self {
        Self { kek: name.kek.as_str().as_bytes(), wrapped: name.wrapped }
    }
}

impl Equivalent<Slot> for SlotRef<'_> {
    fn equivalent(&self, slot: &Slot) -> bool {
        *self == slot.by_ref()
    }
}

/// An entry in a set, by its name.
#[derive(Debug)]
pub(super) struct Held(pub(super) Arc<Entry>);

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.0.slot == other.0.slot
    }
}

impl Eq for Held {}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.slot.hash(state);
    }
}

impl Equivalent<Held> for SlotRef<'_> {
    fn equivalent(&self, held: &Held) -> bool {
        *self == held.0.slot.by_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decrypt_fixture;
    use kube_kms_core::annotation::{DEK, KEK};
    use kube_kms_core::kek_ref::KekKind;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Request = (KeyId, Annotations);

    fn request(key_id: &str, more: &[(&str, &[u8])]) -> Request {
        let mut all = BTreeMap::from([(DEK.to_owned(), b"wrapped".to_vec()), (KEK.to_owned(), b"local:x".to_vec())]);
        all.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())));
        (KeyId::parse(key_id.to_owned()).unwrap(), Annotations::parse(all).unwrap())
    }

    /// Whether what is remembered of the one is taken for the other.
    fn is_taken_for((key_id, annotations): &Request, other: &Request) -> bool {
        let aad = AdditionalData::bind(key_id, annotations.all());
        Binding { said: said(key_id, annotations), aad }.is_of(&other.0, &other.1)
    }

    #[test]
    fn a_request_that_differs_in_anything_is_another_one() {
        let plain = request("k", &[("a.b", b"1"), ("c.d", b"")]);
        assert!(is_taken_for(&plain, &plain.clone()));
        for other in [
            request("j", &[("a.b", b"1"), ("c.d", b"")]),
            request("kk", &[("a.b", b"1"), ("c.d", b"")]),
            request("k", &[("a.b", b"2"), ("c.d", b"")]),
            request("k", &[("a.b", b"1"), ("c.e", b"")]),
            request("k", &[("a.b", b"1")]),
            request("k", &[("a.b", b"1"), ("c.d", b""), ("e.f", b"")]),
            request("k", &[("a.b", b""), ("c.d", b"1")]),
            request("k", &[("a.b", b"1c.d")]),
            request("k", &[(KEK, b"local:y"), ("a.b", b"1"), ("c.d", b"")]),
            request("k", &[(DEK, b"another"), ("a.b", b"1"), ("c.d", b"")]),
            request("k", &[("a.b", b"1"), ("c.d", b""), ("z.z", b"")]),
        ] {
            assert!(!is_taken_for(&plain, &other) && !is_taken_for(&other, &plain), "{other:?}");
        }
    }

    #[test]
    fn a_value_that_reads_like_more_annotations_is_not_taken_for_them() {
        let (one, two) =
            (request("k", &[("y.y", b"x"), ("z.z", b"w")]), request("k", &[("y.y", b"x........z.z........w")]));
        assert!(!is_taken_for(&two, &one) && !is_taken_for(&one, &two));
        let mut whole = b"x".to_vec();
        whole.extend_from_slice(&3_usize.to_le_bytes());
        whole.extend_from_slice(b"z.z");
        whole.extend_from_slice(&1_usize.to_le_bytes());
        whole.extend_from_slice(b"w");
        let three = request("k", &[("y.y", &whole)]);
        assert!(!is_taken_for(&three, &one) && !is_taken_for(&one, &three));
    }

    fn requests() -> impl Strategy<Value = Request> {
        let bytes = || prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(b'a')], 0..3);
        let more = prop::collection::btree_map("[az]{1,2}", bytes(), 0..4);
        ("[ab]{1,2}", more).prop_map(|(key_id, more)| {
            let more: Vec<_> = more.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
            request(&key_id, &more)
        })
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_taken_for_equal_requests_and_no_others(one in requests(), other in requests()) {
            prop_assert!(is_taken_for(&one, &one.clone()));
            prop_assert_eq!(is_taken_for(&one, &other), one == other);
        }
    }

    #[test]
    fn what_opened_first_is_remembered_and_others_are_computed() {
        let (key_id, annotations) = request("k", &[]);
        let entry = Entry::new(Slot::of((&annotations).into()), decrypt_fixture::dek(1), Moment(0));
        let computed = AdditionalData::bind(&key_id, annotations.all());
        assert_eq!(entry.aad(&key_id, &annotations), computed);
        // Not what anybody would compute, to be seen again.
        let (other, others) = request("other", &[]);
        let marked = AdditionalData::bind(&other, others.all());
        entry.remember(&key_id, &annotations, marked);
        entry.remember(&key_id, &annotations, computed);
        assert_eq!(entry.aad(&key_id, &annotations), marked);
        assert_eq!(entry.aad(&other, &others), marked);
    }

    #[test]
    fn names_are_equal_when_both_parts_are_and_hash_as_what_they_are_borrowed_as() {
        let kek = |identity: &str| KekRef::new(KekKind::LOCAL, identity).unwrap();
        let (short, long) = (kek("x"), kek("xy"));
        let slot = Slot::of(DekName { kek: &short, wrapped: b"yz" });
        assert_ne!(slot, Slot::of(DekName { kek: &long, wrapped: b"z" }), "the same bytes, cut elsewhere");
        assert_eq!((slot.kek(), slot.is_under(&short), slot.is_under(&long)), (Some(short.clone()), true, false));
        let borrowed = SlotRef::of(DekName { kek: &short, wrapped: b"yz" });
        assert!(borrowed.equivalent(&slot));
        let entry = Held(Arc::new(Entry::new(slot.clone(), decrypt_fixture::dek(1), Moment(0))));
        assert!(borrowed.equivalent(&entry));
        assert!(!SlotRef::of(DekName { kek: &long, wrapped: b"yz" }).equivalent(&entry));
        assert!(!SlotRef::of(DekName { kek: &short, wrapped: b"y" }).equivalent(&entry));
        let hash = |x: &dyn Fn(&mut std::hash::DefaultHasher)| {
            let mut state = std::hash::DefaultHasher::new();
            x(&mut state);
            state.finish()
        };
        assert_eq!(hash(&|state| slot.hash(state)), hash(&|state| borrowed.hash(state)));
    }
}
