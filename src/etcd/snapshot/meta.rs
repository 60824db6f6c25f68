//! The two meta pages: which one counts, and what it says.
//!
//! Guarantees: a [`Meta`] whose pages all lie inside the file. SPEC: bbolt `internal/common/meta.go`; each commit writes the
//! other one of the two, so the valid one with the higher transaction id is the last commit.

use super::error::SnapshotError;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Bytes of a page's header and of the meta data behind it.
const HEADER: usize = 16;
const META: usize = 64;
const CHECKSUMMED: usize = 56;
/// Page sizes that an operating system has: bbolt takes the system's.
const PAGE_SIZES: [u64; 7] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16];

/// What the valid meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    /// Bytes of a page.
    pub(super) page_size: u64,
    /// The page of the root bucket.
    pub(super) root: u64,
    /// How many pages are in use or free: the "high water mark".
    pub(super) pages: u64,
    transaction: u64,
}

/// The newest valid meta page of a database of `size` bytes.
pub(super) fn choose(file: &File, size: u64) -> Result<Meta, SnapshotError> {
    let at = |offset: u64| -> Result<Option<Result<Meta, &'static str>>, SnapshotError> {
        let mut bytes = [0; HEADER + META];
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > size) {
            return Ok(None);
        }
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Some(parse(&bytes)))
    };
    let first = at(0)?.unwrap_or(Err("it is shorter than a page"));
    let mut best = first.ok();
    for page_size in PAGE_SIZES {
        // The second one lies where its own page size says, whatever became of the first.
        if let Some(Ok(second)) = at(page_size)?
            && second.page_size == page_size
            && best.is_none_or(|best| best.page_size == page_size && second.transaction > best.transaction)
        {
            best = Some(second);
        }
    }
    let Some(meta) = best else { return Err(SnapshotError::NotBolt(first.err().unwrap_or("no valid meta page"))) };
    match meta.pages.checked_mul(meta.page_size) {
        Some(needed) if needed <= size => Ok(meta),
        _ => Err(SnapshotError::CutShort { pages: meta.pages, page_size: meta.page_size, size }),
    }
}

fn parse(page: &[u8; HEADER + META]) -> Result<Meta, &'static str> {
    let meta = page.get(HEADER..).unwrap_or_default();
    if u32_at(meta, 0) != Some(MAGIC) {
        return Err("its first page is no meta page of a little-endian machine");
    }
    if u32_at(meta, 4) != Some(VERSION) {
        return Err("its format version is not 2");
    }
    let checksum = meta.get(..CHECKSUMMED).map(fnv1a);
    if checksum.is_none() || checksum != u64_at(meta, CHECKSUMMED) {
        return Err("the checksum of its meta page is wrong");
    }
    let wrong = "its meta page is cut short";
    let page_size = u64::from(u32_at(meta, 8).ok_or(wrong)?);
    if !PAGE_SIZES.contains(&page_size) {
        return Err("its page size is none");
    }
    let word = |at| u64_at(meta, at).ok_or(wrong);
    Ok(Meta { page_size, root: word(16)?, pages: word(40)?, transaction: word(48)? })
}

/// 64-bit FNV-1a, which is what bbolt's checksum is: against torn writes, not against anybody.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a() {
        // SPEC: the known answers of the FNV authors.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
