//! What is in use, counted: records from a live etcd or from a snapshot go in one by one, groups come out.
//!
//! Guarantees: memory depends on how many resources, keys and wrapped DEK sources there are and never on how many
//! objects, and is bounded all the same, because whoever writes to etcd chooses those: what is over a bound is counted
//! as such, never left out. Counts are exact below. Refuses to know how records are read and what is printed.

use crate::record::Record;
use crate::resource::Directory;
use crate::value::{Damage, DekSourceType, Form, KmsV2, Value, half};
use kube_kms_core::envelope::lp;
use kube_kms_core::printable::printable;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};

/// Groups of each kind at most; a cluster has some hundreds.
const GROUPS_MAX: usize = 10_000;
/// Wrapped DEK sources that are told apart at most, 16 bytes each: one for every start of every API server in years.
const SOURCES_MAX: usize = 1 << 20;
/// Examples of a group.
const EXAMPLES: usize = 3;

/// Objects, their bytes, and the revisions between which they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Objects.
    pub objects: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// The oldest revision of the last write of one of them; `i64::MAX` when there is none.
    pub oldest: i64,
    /// The newest one.
    pub newest: i64,
}

/// Objects of one resource under one KMS v2 provider, key_id and KEK.
#[derive(Clone, Debug)]
pub struct Group {
    /// The resource, as far as the key tells.
    pub resource: String,
    /// The provider's name in the EncryptionConfiguration.
    pub provider: String,
    /// key_id.
    pub key_id: String,
    /// The KEK, when the plugin that wrote them names it.
    pub kek: Option<String>,
    /// Its recovery KEKs.
    pub recovery_keks: Vec<String>,
    /// How many.
    pub extent: Extent,
    /// Objects whose DEK source is a seed (type 1).
    pub seeds: u64,
    /// Objects whose DEK source is a key (type 0).
    pub keys: u64,
    sources: HashSet<u128>,
}

/// Objects of one resource that are not under KMS v2, in one form.
#[derive(Clone, Debug)]
pub struct OtherGroup {
    /// The resource, as far as the key tells.
    pub resource: String,
    /// [`Form::label`].
    pub form: &'static str,
    /// Whether anybody who reads etcd reads them.
    pub clear: bool,
    /// Whether kube-apiserver stores this resource in clear whatever its configuration.
    pub never_encrypted: bool,
    /// The provider's or the key's name; may be empty.
    pub name: String,
    /// How many.
    pub extent: Extent,
    /// Some of the keys.
    pub examples: Vec<String>,
}

/// Values of one resource that begin as KMS v2 and that kube-apiserver would not read.
#[derive(Clone, Debug)]
pub struct DamagedGroup {
    /// The resource, as far as the key tells.
    pub resource: String,
    /// Why.
    pub damage: Damage,
    /// How many.
    pub extent: Extent,
    /// Some of the keys.
    pub examples: Vec<String>,
}

/// A number that may be only a lower bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The number.
    pub number: u64,
    /// Whether it is exact.
    pub exact: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Tally {
    prefix: Vec<u8>,
    all: Extent,
    groups: HashMap<u128, Group>,
    others: HashMap<u128, OtherGroup>,
    damaged: HashMap<u128, DamagedGroup>,
    ungrouped: u64,
    sources: usize,
    sources_exact: bool,
}

impl Default for Extent {
    fn default() -> Self {
        Self { objects: 0, bytes: 0, oldest: i64::MAX, newest: 0 }
    }
}

impl Extent {
    fn add(&mut self, record: &Record<'_>) {
        self.merge(&Self {
            objects: 1,
            bytes: u64::try_from(record.value.len()).unwrap_or(u64::MAX),
            oldest: record.mod_revision,
            newest: record.mod_revision,
        });
    }

    /// Adds those of another.
    pub fn merge(&mut self, other: &Self) {
        self.objects = self.objects.saturating_add(other.objects);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.oldest = self.oldest.min(other.oldest);
        self.newest = self.newest.max(other.newest);
    }
}

impl Group {
    /// Wrapped DEK sources: how often kube-apiserver calls Decrypt for this group after a cold start.
    #[must_use]
    pub fn distinct_sources(&self) -> usize {
        self.sources.len()
    }
}

impl Tally {
    /// Of keys under this etcd prefix, `/registry` in most clusters.
    #[must_use]
    pub fn new(prefix: &[u8]) -> Self {
        Self {
            prefix: prefix.to_vec(),
            all: Extent::default(),
            groups: HashMap::new(),
            others: HashMap::new(),
            damaged: HashMap::new(),
            ungrouped: 0,
            sources: 0,
            sources_exact: true,
        }
    }

    /// Counts one record.
    pub fn add(&mut self, record: &Record<'_>) {
        self.all.add(record);
        let prefix = std::mem::take(&mut self.prefix);
        let directory = Directory::of(record.key, &prefix);
        match Value::parse(record.value) {
            Value::KmsV2(object) => self.add_kms_v2(record, directory, &object),
            Value::Other(form) => self.add_other(record, directory, form),
            Value::Damaged(damage) => self.add_damaged(record, directory, damage),
        }
        self.prefix = prefix;
    }

    fn add_kms_v2(&mut self, record: &Record<'_>, directory: Directory<'_>, object: &KmsV2<'_>) {
        let (kek, recovery) = (object.kek(), object.recovery_keks());
        let mut parts = vec![directory.as_bytes(), object.provider.as_bytes(), object.key_id.as_bytes()];
        parts.push(kek.unwrap_or_default().as_bytes());
        parts.extend(recovery.iter().map(|kek| kek.as_bytes()));
        let name = named(&parts);
        let fingerprint = object.source_fingerprint();
        let make = || Group {
            resource: directory.resource(),
            provider: object.provider.to_owned(),
            key_id: object.key_id.to_owned(),
            kek: kek.map(str::to_owned),
            recovery_keks: recovery.iter().map(|kek| (*kek).to_owned()).collect(),
            extent: Extent::default(),
            seeds: 0,
            keys: 0,
            sources: HashSet::new(),
        };
        let Some(group) = place(&mut self.groups, name, make) else {
            self.ungrouped = self.ungrouped.saturating_add(1);
            return;
        };
        group.extent.add(record);
        match object.dek_source_type {
            DekSourceType::Seed => group.seeds = group.seeds.saturating_add(1),
            DekSourceType::Key => group.keys = group.keys.saturating_add(1),
        }
        if self.sources < SOURCES_MAX {
            self.sources = self.sources.saturating_add(usize::from(group.sources.insert(fingerprint)));
        } else if !group.sources.contains(&fingerprint) {
            self.sources_exact = false;
        }
    }

    fn add_other(&mut self, record: &Record<'_>, directory: Directory<'_>, form: Form<'_>) {
        let make = || OtherGroup {
            resource: directory.resource(),
            form: form.label(),
            clear: form.is_clear(),
            never_encrypted: directory.is_never_encrypted(),
            name: form.name().to_owned(),
            extent: Extent::default(),
            examples: Vec::new(),
        };
        let name = named(&[directory.as_bytes(), form.label().as_bytes(), form.name().as_bytes()]);
        match place(&mut self.others, name, make) {
            Some(group) => {
                group.extent.add(record);
                example(&mut group.examples, record.key);
            }
            None => self.ungrouped = self.ungrouped.saturating_add(1),
        }
    }

    fn add_damaged(&mut self, record: &Record<'_>, directory: Directory<'_>, damage: Damage) {
        let make =
            || DamagedGroup { resource: directory.resource(), damage, extent: Extent::default(), examples: Vec::new() };
        match place(&mut self.damaged, named(&[directory.as_bytes(), damage.reason().as_bytes()]), make) {
            Some(group) => {
                group.extent.add(record);
                example(&mut group.examples, record.key);
            }
            None => self.ungrouped = self.ungrouped.saturating_add(1),
        }
    }

    /// Adds what another tally counted, of other keys under the same prefix.
    pub fn merge(&mut self, other: Self) {
        self.all.merge(&other.all);
        self.ungrouped = self.ungrouped.saturating_add(other.ungrouped);
        self.sources_exact &= other.sources_exact;
        for (name, theirs) in other.groups {
            let empty =
                || Group { extent: Extent::default(), seeds: 0, keys: 0, sources: HashSet::new(), ..theirs.clone() };
            let Some(ours) = place(&mut self.groups, name, empty) else {
                self.ungrouped = self.ungrouped.saturating_add(theirs.extent.objects);
                continue;
            };
            ours.extent.merge(&theirs.extent);
            ours.seeds = ours.seeds.saturating_add(theirs.seeds);
            ours.keys = ours.keys.saturating_add(theirs.keys);
            for fingerprint in theirs.sources {
                if self.sources < SOURCES_MAX {
                    self.sources = self.sources.saturating_add(usize::from(ours.sources.insert(fingerprint)));
                } else if !ours.sources.contains(&fingerprint) {
                    self.sources_exact = false;
                }
            }
        }
        for (name, theirs) in other.others {
            let empty = || OtherGroup { extent: Extent::default(), examples: Vec::new(), ..theirs.clone() };
            match place(&mut self.others, name, empty) {
                Some(ours) => join(&mut ours.extent, &mut ours.examples, &theirs.extent, theirs.examples),
                None => self.ungrouped = self.ungrouped.saturating_add(theirs.extent.objects),
            }
        }
        for (name, theirs) in other.damaged {
            let empty = || DamagedGroup { extent: Extent::default(), examples: Vec::new(), ..theirs.clone() };
            match place(&mut self.damaged, name, empty) {
                Some(ours) => join(&mut ours.extent, &mut ours.examples, &theirs.extent, theirs.examples),
                None => self.ungrouped = self.ungrouped.saturating_add(theirs.extent.objects),
            }
        }
    }

    /// Everything that was counted.
    #[must_use]
    pub const fn all(&self) -> &Extent {
        &self.all
    }

    /// Objects that are in no group because there are too many groups; they are in [`Tally::all`].
    #[must_use]
    pub const fn ungrouped(&self) -> u64 {
        self.ungrouped
    }

    /// KMS v2, sorted by resource, provider, key_id, KEK.
    #[must_use]
    pub fn groups(&self) -> Vec<&Group> {
        let mut all: Vec<_> = self.groups.values().collect();
        all.sort_by(|a, b| {
            (&a.resource, &a.provider, &a.key_id, &a.kek, &a.recovery_keks).cmp(&(
                &b.resource,
                &b.provider,
                &b.key_id,
                &b.kek,
                &b.recovery_keks,
            ))
        });
        all
    }

    /// Everything that is not KMS v2, sorted by form, resource, name.
    #[must_use]
    pub fn others(&self) -> Vec<&OtherGroup> {
        let mut all: Vec<_> = self.others.values().collect();
        all.sort_by(|a, b| (a.form, &a.resource, &a.name).cmp(&(b.form, &b.resource, &b.name)));
        all
    }

    /// What would not be read, sorted by resource and damage.
    #[must_use]
    pub fn damaged(&self) -> Vec<&DamagedGroup> {
        let mut all: Vec<_> = self.damaged.values().collect();
        all.sort_by(|a, b| (&a.resource, a.damage).cmp(&(&b.resource, b.damage)));
        all
    }

    /// Distinct wrapped DEK sources over all groups: Decrypts after a cold start of one API server.
    #[must_use]
    pub fn distinct_sources(&self) -> Count {
        self.distinct_sources_of(|_| true)
    }

    /// The same over some groups. One source may be in several: the write state of a moment seals every resource.
    pub fn distinct_sources_of(&self, wanted: impl Fn(&Group) -> bool) -> Count {
        let mut union: HashSet<u128> = HashSet::new();
        for group in self.groups.values().filter(|group| wanted(group)) {
            union.extend(group.sources.iter());
        }
        Count {
            number: u64::try_from(union.len()).unwrap_or(u64::MAX),
            exact: self.sources_exact && self.ungrouped == 0,
        }
    }
}

/// Names a group by its parts.
fn named(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| lp(&mut hash, part));
    half(hash)
}

/// The group of this name, made when there is room for another.
fn place<G>(groups: &mut HashMap<u128, G>, name: u128, make: impl FnOnce() -> G) -> Option<&mut G> {
    if groups.len() >= GROUPS_MAX && !groups.contains_key(&name) {
        return None;
    }
    Some(groups.entry(name).or_insert_with(make))
}

fn example(examples: &mut Vec<String>, key: &[u8]) {
    if examples.len() < EXAMPLES {
        examples.push(printable(key).into_owned());
    }
}

fn join(extent: &mut Extent, examples: &mut Vec<String>, theirs: &Extent, more: Vec<String>) {
    extent.merge(theirs);
    examples.extend(more);
    examples.truncate(EXAMPLES);
}

#[cfg(test)]
mod tests;
