//! One page of a B+tree, read with every offset checked.
//!
//! Guarantees: an element that is returned lies inside the page and behind the table of elements.
//! SPEC: bbolt `internal/common/page.go`: a header (id, flags, count, overflow), a table of 16-byte elements whose `pos`
//! counts from the element itself, then the bytes. All little-endian: bbolt writes the machine's own order.

use super::error::SnapshotError;
use bytes::Bytes;

const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// The flag of a leaf element that is a bucket.
const BUCKET: u32 = 0x01;

/// A branch or a leaf with its continuation.
#[derive(Debug)]
pub(super) struct Page {
    id: u64,
    bytes: Bytes,
    kind: Kind,
    count: usize,
}

/// What its elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pages further down.
    Branch,
    /// Keys and values.
    Leaf,
}

/// One key of a leaf. Slices of the page, not copies of it.
pub(super) struct Leaf {
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    pub(super) is_bucket: bool,
    /// Where its bytes begin in the page.
    pub(super) begin: usize,
}

impl Page {
    /// How many pages continue this one, by its first bytes.
    pub(super) fn continued(bytes: &[u8], id: u64) -> Result<u32, SnapshotError> {
        let wrong = |problem| SnapshotError::Page { page: id, problem };
        let stated = bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
        if stated != Some(id) {
            return Err(wrong("it says that it is another page"));
        }
        u32_at(bytes, 12).ok_or(wrong("it is shorter than its header"))
    }

    /// Checks the header and that the table of elements fits. `id` 0 is the page of an inline bucket.
    pub(super) fn parse(id: u64, bytes: Bytes) -> Result<Self, SnapshotError> {
        let wrong = |problem| SnapshotError::Page { page: id, problem };
        let short = || wrong("it is shorter than its header");
        let kind = match u16_at(&bytes, 8).ok_or_else(short)? {
            BRANCH => Kind::Branch,
            LEAF => Kind::Leaf,
            _ => return Err(wrong("it is neither a branch nor a leaf")),
        };
        let count = usize::from(u16_at(&bytes, 10).ok_or_else(short)?);
        if kind == Kind::Branch && count == 0 {
            return Err(wrong("it is a branch without children"));
        }
        if table_end(count) > bytes.len() {
            return Err(wrong("it has more elements than fit"));
        }
        Ok(Self { id, bytes, kind, count })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// How many elements there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many bytes it has, continuation included.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The child at this place of a branch.
    pub(super) fn child(&self, entry: usize) -> Result<u64, SnapshotError> {
        let wrong = || self.wrong(entry, "it lies outside its page");
        let at = self.element(entry).ok_or_else(wrong)?;
        u64_at(&self.bytes, at.saturating_add(8)).ok_or_else(wrong)
    }

    /// The key and value at this place of a leaf. They end where `next` is at the latest, which is where the bytes of the
    /// element behind it begin, or the end of the page.
    pub(super) fn leaf(&self, entry: usize, next: usize) -> Result<Leaf, SnapshotError> {
        let wrong = || self.wrong(entry, "it lies outside its page");
        let at = self.element(entry).ok_or_else(wrong)?;
        let field = |offset: usize| u32_at(&self.bytes, at.saturating_add(offset)).ok_or_else(wrong);
        let size = |offset: usize| field(offset).and_then(|n| usize::try_from(n).map_err(|_| wrong()));
        let key = at.checked_add(size(4)?).ok_or_else(wrong)?;
        let value = key.checked_add(size(8)?).ok_or_else(wrong)?;
        let end = value.checked_add(size(12)?).ok_or_else(wrong)?;
        if key < table_end(self.count) || end > self.bytes.len() {
            return Err(wrong());
        }
        // SECURITY: bbolt writes one behind the other. Thousands of elements over the same megabytes would be hours of work.
        if end > next {
            return Err(self.wrong(entry, "it overlaps the next one"));
        }
        let is_bucket = field(0)? & BUCKET != 0;
        Ok(Leaf { key: self.bytes.slice(key..value), value: self.bytes.slice(value..end), is_bucket, begin: key })
    }

    /// An error about one element.
    pub(super) fn wrong(&self, entry: usize, problem: &'static str) -> SnapshotError {
        SnapshotError::Entry { page: self.id, entry, problem }
    }

    fn element(&self, entry: usize) -> Option<usize> {
        (entry < self.count).then(|| table_end(entry))
    }
}

/// Where the table ends that has so many elements.
fn table_end(count: usize) -> usize {
    count.saturating_mul(ELEMENT).saturating_add(HEADER)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}
