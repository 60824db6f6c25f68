//! What `scan` found, in the form in which programs get it.

use kube_kms_etcd::tally::{Count, Extent, Tally};
use kube_kms_etcd::verdict::{Verdict, key_id_hash};
use serde::Serialize;
use std::collections::BTreeMap;

/// Where it was read.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub(super) enum Source {
    /// A live etcd.
    Etcd(EtcdSource),
    /// A snapshot file.
    Snapshot(SnapshotSource),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotSource {
    pub(super) file: String,
    /// Whether the file has its hash, and it is right.
    pub(super) hash_checked: bool,
    pub(super) revision: i64,
    pub(super) cluster_version: Option<String>,
    pub(super) prefix: String,
    pub(super) resources: Vec<String>,
    pub(super) millis: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EtcdSource {
    pub(super) member: String,
    pub(super) version: String,
    pub(super) prefix: String,
    pub(super) resources: Vec<String>,
    pub(super) serializable: bool,
    pub(super) first_revision: i64,
    pub(super) last_revision: i64,
    /// What etcd compacted under the scan, so that it was read again.
    pub(super) restarts: Vec<String>,
    /// How often a member or a leader was lost.
    pub(super) interruptions: u64,
    pub(super) millis: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) source: Source,
    pub(super) all: Size,
    pub(super) kms_v2: Size,
    pub(super) clear: Size,
    pub(super) other_encryption: Size,
    pub(super) damaged: Size,
    pub(super) ungrouped_objects: u64,
    /// Decrypts of one API server after a cold start.
    pub(super) wrapped_dek_sources: Number,
    pub(super) keys: Vec<Key>,
    pub(super) not_kms_v2: Vec<Other>,
    pub(super) damaged_groups: Vec<Damaged>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expect_only: Option<Verdict>,
    pub(super) not_covered: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Size {
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Number {
    pub(super) number: u64,
    pub(super) exact: bool,
}

/// One key_id of one provider, under one KEK.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Key {
    pub(super) provider: String,
    pub(super) key_id: String,
    pub(super) key_id_hash: String,
    pub(super) kek: Option<String>,
    pub(super) recovery_keks: Vec<String>,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) oldest_revision: i64,
    pub(super) newest_revision: i64,
    pub(super) wrapped_dek_sources: Number,
    pub(super) resources: Vec<InResource>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InResource {
    pub(super) resource: String,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    /// Objects whose DEK source is a seed (type 1).
    pub(super) seeds: u64,
    /// Objects whose DEK source is the key itself (type 0).
    pub(super) keys: u64,
    pub(super) wrapped_dek_sources: usize,
    pub(super) oldest_revision: i64,
    pub(super) newest_revision: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Other {
    pub(super) form: &'static str,
    pub(super) name: String,
    pub(super) resource: String,
    pub(super) never_encrypted: bool,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) oldest_revision: i64,
    pub(super) newest_revision: i64,
    pub(super) examples: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Damaged {
    pub(super) reason: &'static str,
    pub(super) resource: String,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) oldest_revision: i64,
    pub(super) newest_revision: i64,
    pub(super) examples: Vec<String>,
}

/// What no scan of one etcd can tell.
const NOT_COVERED: [&str; 4] = [
    "backups and snapshots of etcd: restoring one needs the keys of its time",
    "other etcd prefixes and clusters (kube-apiserver's --etcd-servers-overrides)",
    "what API servers write from now on: see in their metrics first that all have moved",
    "what other software has under the same KEK, in or out of Kubernetes",
];

/// What a snapshot file does not tell.
const NOT_IN_SNAPSHOT: [&str; 3] = [
    "the live etcd and every other backup: retire a key only when all of them do without it",
    "other etcd prefixes and clusters (kube-apiserver's --etcd-servers-overrides)",
    "what other software has under the same KEK, in or out of Kubernetes",
];

impl Size {
    fn add(&mut self, extent: &Extent) {
        self.objects = self.objects.saturating_add(extent.objects);
        self.bytes = self.bytes.saturating_add(extent.bytes);
    }
}

impl From<Count> for Number {
    fn from(count: Count) -> Self {
        Self { number: count.number, exact: count.exact }
    }
}

impl Report {
    pub(super) fn new(tally: &Tally, source: Source, expect_only: Option<Verdict>) -> Self {
        let not_covered = match &source {
            Source::Etcd(_) => NOT_COVERED.to_vec(),
            Source::Snapshot(_) => NOT_IN_SNAPSHOT.to_vec(),
        };
        let mut report = Self {
            source,
            all: Size { objects: tally.all().objects, bytes: tally.all().bytes },
            kms_v2: Size::default(),
            clear: Size::default(),
            other_encryption: Size::default(),
            damaged: Size::default(),
            ungrouped_objects: tally.ungrouped(),
            wrapped_dek_sources: tally.distinct_sources().into(),
            keys: keys(tally),
            not_kms_v2: Vec::new(),
            damaged_groups: Vec::new(),
            expect_only,
            not_covered,
        };
        tally.groups().iter().for_each(|group| report.kms_v2.add(&group.extent));
        for group in tally.others() {
            if group.clear {
                report.clear.add(&group.extent)
            } else {
                report.other_encryption.add(&group.extent)
            }
            report.not_kms_v2.push(Other {
                form: group.form,
                name: group.name.clone(),
                resource: group.resource.clone(),
                never_encrypted: group.never_encrypted,
                objects: group.extent.objects,
                bytes: group.extent.bytes,
                oldest_revision: group.extent.oldest,
                newest_revision: group.extent.newest,
                examples: group.examples.clone(),
            });
        }
        for group in tally.damaged() {
            report.damaged.add(&group.extent);
            report.damaged_groups.push(Damaged {
                reason: group.damage.reason(),
                resource: group.resource.clone(),
                objects: group.extent.objects,
                bytes: group.extent.bytes,
                oldest_revision: group.extent.oldest,
                newest_revision: group.extent.newest,
                examples: group.examples.clone(),
            });
        }
        report
    }
}

/// The groups by key, the one with the most objects first.
fn keys(tally: &Tally) -> Vec<Key> {
    let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for group in tally.groups() {
        let key = (&group.provider, &group.key_id, &group.kek, &group.recovery_keks);
        by_key.entry(key).or_default().push(group);
    }
    let mut keys: Vec<Key> = by_key
        .into_iter()
        .map(|((provider, key_id, kek, recovery_keks), groups)| {
            let mut all = Extent::default();
            groups.iter().for_each(|group| all.merge(&group.extent));
            let same = tally.distinct_sources_of(|g| {
                (&g.provider, &g.key_id, &g.kek, &g.recovery_keks) == (provider, key_id, kek, recovery_keks)
            });
            Key {
                provider: provider.clone(),
                key_id: key_id.clone(),
                key_id_hash: key_id_hash(key_id),
                kek: kek.clone(),
                recovery_keks: recovery_keks.clone(),
                objects: all.objects,
                bytes: all.bytes,
                oldest_revision: all.oldest,
                newest_revision: all.newest,
                wrapped_dek_sources: same.into(),
                resources: groups
                    .iter()
                    .map(|group| InResource {
                        resource: group.resource.clone(),
                        objects: group.extent.objects,
                        bytes: group.extent.bytes,
                        seeds: group.seeds,
                        keys: group.keys,
                        wrapped_dek_sources: group.distinct_sources(),
                        oldest_revision: group.extent.oldest,
                        newest_revision: group.extent.newest,
                    })
                    .collect(),
            }
        })
        .collect();
    keys.sort_by_key(|key| std::cmp::Reverse(key.objects));
    keys
}
