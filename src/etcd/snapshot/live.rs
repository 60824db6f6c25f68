//! Which entries of the file are live keys.
//!
//! The rule: of the entries of one key that are in the file, the one with the highest revision decides; the key lives unless
//! that is a deletion. It is what etcd itself makes of the file when it starts on it (`mvcc` `kvstore.go`, `restore`).
//! It holds while a compaction is under way, too. Compaction at a revision R removes, of the entries up to R, all but the
//! newest of each key, and that one as well when it is a deletion (`key_index.go`); it goes from the lowest revision to the
//! highest and commits whole batches (`kvstore_compaction.go`, `scheduleCompaction`). So when a deletion is gone from the file,
//! everything of that key below it went before or with it, and nothing is left that could come back to life.

use super::error::SnapshotError;
use super::file::Pages;
use super::tree::{self, Bucket};
use super::{Progress, Step, revision};
use crate::record::Record;
use hashbrown::HashSet;
use sha2::{Digest as _, Sha256};
use std::ops::ControlFlow;

/// What was found on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys that were given.
    pub live: u64,
    /// Keys whose newest entry is a deletion.
    pub deleted: u64,
    /// Entries that a newer one of the same key hides.
    pub superseded: u64,
    /// Entries of keys with another prefix.
    pub elsewhere: u64,
    /// Entries without a key: what `etcdutl snapshot restore --bump-revision` leaves.
    pub markers: u64,
    /// Pages that were read.
    pub pages_read: u64,
    /// Whether everything was read, and `each` did not break.
    pub is_complete: bool,
}

/// See [`super::Snapshot::records`].
pub(super) fn records(
    pages: &Pages,
    revisions: &Bucket,
    prefix: &[u8],
    each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, SnapshotError> {
    let total = pages.count().saturating_mul(pages.page_size());
    let mut summary = Summary { is_complete: true, ..Summary::default() };
    let mut seen = HashSet::new();
    let read = tree::descend(
        pages,
        revisions,
        &mut |read| progress(Progress { step: Step::Read, done: read.saturating_mul(pages.page_size()), total }),
        &mut |entry| {
            let revision = revision::parse(&entry.leaf.key).ok_or_else(|| entry.wrong("its key is no revision"))?;
            if entry.leaf.is_bucket {
                return Err(entry.wrong("it is a bucket among revisions"));
            }
            // Fail closed: an entry whose key is unknown may be any key.
            let found = revision::decode(entry.leaf.value.clone());
            let found = found.ok_or_else(|| entry.wrong("its value is no mvccpb.KeyValue"))?;
            if found.key.is_empty() {
                return Ok(count(&mut summary.markers));
            }
            if !found.key.starts_with(prefix) {
                return Ok(count(&mut summary.elsewhere));
            }
            if !seen.insert(fingerprint(&found.key)) {
                return Ok(count(&mut summary.superseded));
            }
            if revision.is_deletion {
                return Ok(count(&mut summary.deleted));
            }
            let _ = count(&mut summary.live);
            let flow = each(Record {
                key: &found.key,
                value: &found.value,
                mod_revision: revision.main,
                create_revision: found.create_revision,
            });
            summary.is_complete = flow.is_continue();
            Ok(flow)
        },
    )?;
    summary.pages_read = read;
    progress(Progress { step: Step::Read, done: total, total });
    Ok(summary)
}

fn count(counter: &mut u64) -> ControlFlow<()> {
    *counter = counter.saturating_add(1);
    ControlFlow::Continue(())
}

/// Stands for a key in the set of those already met. 128 bits of SHA-256: a billion keys meet by chance with a probability of
/// 2^-69, and whoever wants to hide one key behind another has 2^64 hashes to compute.
fn fingerprint(key: &[u8]) -> u128 {
    Sha256::digest(key).first_chunk().map_or(0, |half| u128::from_le_bytes(*half))
}
