//! Buckets: B+trees of pages, walked from the last key to the first.
//!
//! Guarantees: keys come strictly descending, or there is an error; no page comes twice, so a walk ends and reads no more
//! than the file has; no more than [`DEPTH_MAX`] pages are held, which together are no more than the file.
//! SPEC: bbolt `bucket.go`: a bucket is a leaf element with a flag; its value is a root page and a sequence, and when the
//! root is 0, its only page follows inline.

use super::error::SnapshotError;
use super::file::Pages;
use super::page::{Kind, Leaf, Page};
use bytes::Bytes;
use std::ops::ControlFlow;

/// Levels of a tree at most. A page has at least two children, so a sound tree of this depth has more pages than there are.
const DEPTH_MAX: usize = 64;
/// Bytes of a bucket's value in front of its inline page.
const BUCKET_HEADER: usize = 16;
/// Pages between two calls for progress.
const PROGRESS_STEP: u64 = 256;

/// Where the keys of a bucket are.
#[derive(Clone, Debug)]
pub(super) enum Bucket {
    /// In a tree.
    Tree {
        /// Its root page.
        root: u64,
    },
    /// In one page inside the parent's.
    Inline {
        /// That page.
        page: Bytes,
    },
}

/// One key of a bucket, and where it stands.
pub(super) struct Entry<'a> {
    pub(super) leaf: Leaf,
    page: &'a Page,
    at: usize,
}

impl Entry<'_> {
    /// An error about this entry.
    pub(super) fn wrong(&self, problem: &'static str) -> SnapshotError {
        self.page.wrong(self.at, problem)
    }
}

/// The bucket of this name.
pub(super) fn find(pages: &Pages, parent: &Bucket, name: &[u8]) -> Result<Option<Bucket>, SnapshotError> {
    let mut found = None;
    descend(pages, parent, &mut |_| {}, &mut |entry| {
        if !entry.leaf.is_bucket || entry.leaf.key != name {
            return Ok(ControlFlow::Continue(()));
        }
        let Some(root) = entry.leaf.value.first_chunk().map(|b| u64::from_le_bytes(*b)) else {
            return Err(entry.wrong("it is a bucket without a root"));
        };
        found = Some(if root > 0 {
            Bucket::Tree { root }
        } else if entry.leaf.value.len() >= BUCKET_HEADER {
            // A copy: the slice would keep the parent's page alive.
            Bucket::Inline { page: Bytes::copy_from_slice(&entry.leaf.value.slice(BUCKET_HEADER..)) }
        } else {
            return Err(entry.wrong("it is a bucket without a page"));
        });
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// The value of this key, unless it is a bucket.
pub(super) fn value(pages: &Pages, bucket: &Bucket, key: &[u8]) -> Result<Option<Bytes>, SnapshotError> {
    let mut found = None;
    descend(pages, bucket, &mut |_| {}, &mut |entry| {
        if entry.leaf.is_bucket || entry.leaf.key != key {
            return Ok(ControlFlow::Continue(()));
        }
        found = Some(Bytes::copy_from_slice(&entry.leaf.value));
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Gives every entry of a bucket, the last key first, until `each` breaks or fails. `read` hears how many pages were read.
/// Returns how many that was.
pub(super) fn descend(
    pages: &Pages,
    bucket: &Bucket,
    read: &mut dyn FnMut(u64),
    each: &mut dyn FnMut(Entry<'_>) -> Result<ControlFlow<()>, SnapshotError>,
) -> Result<u64, SnapshotError> {
    let mut walk = Walk { pages, stack: Vec::new(), seen: Seen::new(pages), pages_read: 0 };
    match bucket {
        Bucket::Tree { root } => walk.enter(*root)?,
        Bucket::Inline { page } => {
            let page = Page::parse(0, page.clone())?;
            if page.kind() == Kind::Branch {
                return Err(page.wrong(0, "an inline bucket has no branches"));
            }
            walk.stack.push(Level::of(page));
        }
    }
    let mut after: Option<Bytes> = None;
    let mut told = 0;
    while let Some(Level { page, left, next }) = walk.stack.last_mut() {
        let Some(at) = left.checked_sub(1) else {
            walk.stack.pop();
            continue;
        };
        *left = at;
        if page.kind() == Kind::Branch {
            let child = page.child(at)?;
            walk.enter(child)?;
            if walk.pages_read.saturating_sub(told) >= PROGRESS_STEP {
                told = walk.pages_read;
                read(told);
            }
            continue;
        }
        let leaf = page.leaf(at, *next)?;
        *next = leaf.begin;
        if after.as_ref().is_some_and(|after| leaf.key >= *after) {
            return Err(page.wrong(at, "its key is not in order"));
        }
        let key = leaf.key.clone();
        if each(Entry { leaf, page, at })?.is_break() {
            break;
        }
        // The slice keeps its page, which is the one on the stack or the one before it.
        after = Some(key);
    }
    Ok(walk.pages_read)
}

struct Walk<'a> {
    pages: &'a Pages,
    /// From the root down.
    stack: Vec<Level>,
    seen: Seen,
    pages_read: u64,
}

struct Level {
    page: Page,
    /// How many of its elements are left.
    left: usize,
    /// Where the bytes of the last leaf element begin that was taken.
    next: usize,
}

impl Level {
    fn of(page: Page) -> Self {
        Self { left: page.count(), next: page.len(), page }
    }
}

impl Walk<'_> {
    fn enter(&mut self, id: u64) -> Result<(), SnapshotError> {
        let wrong = |problem| SnapshotError::Page { page: id, problem };
        if self.stack.len() >= DEPTH_MAX {
            return Err(wrong("the tree is too deep"));
        }
        let Self { seen, pages_read, .. } = self;
        // SECURITY: before it is read, so that a page that names itself a thousand times is not read a thousand times.
        let page = self.pages.read(id, |page| {
            *pages_read = pages_read.saturating_add(1);
            seen.mark(page)
        })?;
        self.stack.push(Level::of(page));
        Ok(())
    }
}

/// One bit for each page: what has been read in this walk.
struct Seen {
    bits: Vec<u64>,
    count: u64,
}

impl Seen {
    fn new(pages: &Pages) -> Self {
        let words = usize::try_from(pages.count().div_ceil(64)).unwrap_or(0);
        Self { bits: vec![0; words], count: pages.count() }
    }

    fn mark(&mut self, id: u64) -> Result<(), SnapshotError> {
        let wrong = |problem| SnapshotError::Page { page: id, problem };
        let word = usize::try_from(id >> 6).ok().and_then(|at| self.bits.get_mut(at));
        let Some(word) = word.filter(|_| id < self.count) else { return Err(wrong("it is outside the database")) };
        let bit = 1_u64 << (id & 63);
        if *word & bit != 0 {
            return Err(wrong("it is in the tree twice"));
        }
        *word |= bit;
        Ok(())
    }
}
