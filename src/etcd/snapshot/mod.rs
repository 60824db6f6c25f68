//! An etcd snapshot file, as `etcdctl snapshot save` makes it: a read-only reader of the live keys at its newest revision.
//!
//! Guarantees: nothing is written; what a hostile file says is checked before it is used, so that it ends in an error that
//! names the page, never in a panic, an endless loop or an allocation beyond the file's size; a page is read at most once
//! in a walk. Memory is one page for each level of the tree and 20 to 40 bytes for each distinct key (half as much again
//! while the set of them grows), however large the values are.
//! Refuses to know what a value means, and the write-ahead log: what a member has not yet committed to its database is not
//! in the file.
//! SPEC: the file format of go.etcd.io/bbolt (`internal/common`), the buckets and keys of go.etcd.io/etcd/server/v3
//! (`storage/schema`, `storage/mvcc`).

mod error;
mod facts;
mod file;
mod live;
mod meta;
mod page;
mod revision;
mod tree;

pub use error::SnapshotError;
pub use facts::Facts;
pub use live::Summary;

use crate::record::Record;
use std::ops::ControlFlow;
use std::path::Path;

/// Whether the SHA-256 at the end of the file was there. One that is there and wrong is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// It is there, and it is that of the content.
    Checked,
    /// It is not there: a copy of a member's own database. Nothing says that the copy is whole and unaltered.
    Missing,
}

/// What to do with a file that has no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unhashed {
    /// Refuse it.
    Refuse,
    /// Read it: the operator knows that it is a copy of `member/snap/db`.
    Accept,
}

/// How far the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub step: Step,
    /// Bytes done.
    pub done: u64,
    /// Bytes at most. Pages that hold nothing of interest are skipped and count as done at the end.
    pub total: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Snapshot::open`] reads the whole file for its hash.
    Hash,
    /// [`Snapshot::records`] reads the tree of revisions.
    Read,
}

/// An open snapshot file. Calls block on the disk. The file must not change meanwhile: a running member's own database does.
#[derive(Debug)]
pub struct Snapshot {
    pages: file::Pages,
    integrity: Integrity,
    facts: Facts,
    revisions: tree::Bucket,
}

impl Snapshot {
    /// Opens the file, checks its hash (which reads all of it) and finds its buckets.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, cut short or no etcd database, or has no hash and `unhashed` refuses that.
    pub fn open(path: &Path, unhashed: Unhashed, mut progress: impl FnMut(Progress)) -> Result<Self, SnapshotError> {
        let (pages, integrity) = file::open(path, unhashed, &mut progress)?;
        let root = tree::Bucket::Tree { root: pages.root() };
        let revisions = tree::find(&pages, &root, b"key")?.ok_or(SnapshotError::NoRevisions)?;
        let facts = facts::read(&pages, &root, &revisions)?;
        Ok(Self { pages, integrity, facts, revisions })
    }

    /// Whether the content is known to be what etcd wrote.
    #[must_use]
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// What the file says about itself.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Gives every key that begins with `prefix` and lives at the newest revision, once, the newest write first (not in the
    /// order of the keys), until `each` breaks.
    ///
    /// # Errors
    /// When a page or an entry is damaged. What was given until then is true but not all there is.
    pub fn records(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(Record<'_>) -> ControlFlow<()>,
        mut progress: impl FnMut(Progress),
    ) -> Result<Summary, SnapshotError> {
        live::records(&self.pages, &self.revisions, prefix, &mut each, &mut progress)
    }
}
