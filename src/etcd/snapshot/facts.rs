//! What a snapshot says about itself: its revision, its compaction, which etcd wrote it.
//!
//! SPEC: go.etcd.io/etcd/server/v3 `storage/schema/bucket.go`: buckets `meta` and `cluster`.

use super::error::SnapshotError;
use super::file::Pages;
use super::revision;
use super::tree::{self, Bucket};
use bytes::Bytes;
use std::ops::ControlFlow;

/// A version is short; anything else is not printed.
const VERSION_MAX: usize = 32;

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// etcd's revision when it was taken: the newest entry, or the compaction when that is newer, because compaction may
    /// have removed the newest entry (a deletion). 1 when nothing was ever written, as etcd counts.
    pub revision: i64,
    /// The index in the write-ahead log up to which the database is complete.
    pub consistent_index: Option<u64>,
    /// The revision of the last compaction that was asked for.
    pub scheduled_compaction: Option<i64>,
    /// The revision of the last compaction that came to its end.
    pub finished_compaction: Option<i64>,
    /// The version that all members of the cluster had at least, as they agreed on it (`3.5.0`).
    pub cluster_version: Option<String>,
    /// The version of the storage format, from etcd 3.6 on.
    pub storage_version: Option<String>,
    /// Bytes of a page.
    pub page_size: u64,
    /// Pages of the database, free ones included.
    pub pages: u64,
}

impl Facts {
    /// Whether a compaction was under way. The live keys are the same before, during and after it.
    #[must_use]
    pub fn is_compacting(&self) -> bool {
        self.scheduled_compaction > self.finished_compaction
    }
}

/// Reads them.
pub(super) fn read(pages: &Pages, root: &Bucket, revisions: &Bucket) -> Result<Facts, SnapshotError> {
    let field = |bucket: &[u8], key: &[u8]| match tree::find(pages, root, bucket)? {
        Some(bucket) => tree::value(pages, &bucket, key),
        None => Ok(None),
    };
    let compaction = |key: &[u8]| -> Result<Option<i64>, SnapshotError> {
        Ok(field(b"meta", key)?.and_then(|value| revision::parse(&value)).map(|revision| revision.main))
    };
    let scheduled_compaction = compaction(b"scheduledCompactRev")?;
    let finished_compaction = compaction(b"finishedCompactRev")?;
    let newest = newest(pages, revisions)?;
    Ok(Facts {
        revision: newest.max(scheduled_compaction).max(finished_compaction).unwrap_or(1),
        consistent_index: field(b"meta", b"consistent_index")?
            .and_then(|value| value.as_ref().try_into().ok())
            .map(u64::from_be_bytes),
        scheduled_compaction,
        finished_compaction,
        cluster_version: version(field(b"cluster", b"clusterVersion")?),
        storage_version: version(field(b"meta", b"storageVersion")?),
        page_size: pages.page_size(),
        pages: pages.count(),
    })
}

fn newest(pages: &Pages, revisions: &Bucket) -> Result<Option<i64>, SnapshotError> {
    let mut newest = None;
    tree::descend(pages, revisions, &mut |_| {}, &mut |entry| {
        let revision = revision::parse(&entry.leaf.key).ok_or_else(|| entry.wrong("its key is no revision"))?;
        newest = Some(revision.main);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(newest)
}

/// SECURITY: a file may say anything here, and it is printed.
fn version(value: Option<Bytes>) -> Option<String> {
    let text = String::from_utf8(value?.to_vec()).ok()?;
    let harmless = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
    (!text.is_empty() && text.len() <= VERSION_MAX && text.chars().all(harmless)).then_some(text)
}
