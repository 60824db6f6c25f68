//! The file: its size, its hash, and its pages one by one.
//!
//! Guarantees: no read outside the pages that the meta page counts, and these are inside the file. Plain reads, no memory
//! map: a file that is cut while it is read is an error here and would be a SIGBUS there.

use super::error::SnapshotError;
use super::meta::{self, Meta};
use super::page::Page;
use super::{Integrity, Progress, Step, Unhashed};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const HASH: u64 = 32;
/// Every database is whole pages, and the smallest page is this or a multiple of it. SPEC: etcdctl tells a hash the same way.
const SECTOR: u64 = 512;
const CHUNK: usize = 1 << 20;

/// The pages of the database.
#[derive(Debug)]
pub(super) struct Pages {
    file: File,
    meta: Meta,
}

/// Opens it, checks the hash, chooses the meta page.
pub(super) fn open(
    path: &Path,
    unhashed: Unhashed,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Pages, Integrity), SnapshotError> {
    // Asked before opening: a pipe without a writer would block there.
    if !fs::metadata(path)?.is_file() {
        return Err(SnapshotError::NotRegular);
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let (size, integrity) = match size.checked_rem(SECTOR) {
        Some(0) if size > 0 => (size, Integrity::Missing),
        Some(HASH) if size > HASH => (size.saturating_sub(HASH), Integrity::Checked),
        _ => return Err(SnapshotError::Size(size)),
    };
    match integrity {
        Integrity::Checked => check_hash(&file, size, progress)?,
        Integrity::Missing if unhashed == Unhashed::Refuse => return Err(SnapshotError::HashMissing),
        Integrity::Missing => {}
    }
    let meta = meta::choose(&file, size)?;
    Ok((Pages { file, meta }, integrity))
}

fn check_hash(file: &File, size: u64, progress: &mut dyn FnMut(Progress)) -> Result<(), SnapshotError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let take = usize::try_from(size.saturating_sub(at)).map_or(CHUNK, |left| left.min(CHUNK));
        let part = buffer.get_mut(..take).unwrap_or_default();
        file.read_exact_at(part, at)?;
        hash.update(&*part);
        at = at.saturating_add(u64::try_from(take).unwrap_or(u64::MAX));
        progress(Progress { step: Step::Hash, done: at, total: size });
    }
    let mut stated = [0; 32];
    file.read_exact_at(&mut stated, size)?;
    if hash.finalize().as_slice() == stated { Ok(()) } else { Err(SnapshotError::HashMismatch) }
}

impl Pages {
    /// The page of the root bucket.
    pub(super) fn root(&self) -> u64 {
        self.meta.root
    }

    /// How many pages there are, free ones included.
    pub(super) fn count(&self) -> u64 {
        self.meta.pages
    }

    /// Bytes of a page.
    pub(super) fn page_size(&self) -> u64 {
        self.meta.page_size
    }

    /// Reads one page of a tree and those that continue it; `claim` is asked about each before it is read. The buffer is
    /// never larger than the file.
    pub(super) fn read(
        &self,
        id: u64,
        mut claim: impl FnMut(u64) -> Result<(), SnapshotError>,
    ) -> Result<Page, SnapshotError> {
        let wrong = |problem| SnapshotError::Page { page: id, problem };
        // SPEC: pages 0 and 1 are the meta pages.
        if id < 2 || id >= self.meta.pages {
            return Err(wrong("it is outside the database"));
        }
        claim(id)?;
        let at = id.checked_mul(self.meta.page_size).ok_or(wrong("it is outside the database"))?;
        let one = usize::try_from(self.meta.page_size).map_err(|_| wrong("it does not fit into memory"))?;
        let mut bytes = vec![0; one];
        self.file.read_exact_at(&mut bytes, at)?;
        let more = u64::from(Page::continued(&bytes, id)?);
        if more > 0 {
            let end = id.saturating_add(more);
            if end >= self.meta.pages {
                return Err(wrong("it continues beyond the end of the database"));
            }
            for next in id.saturating_add(1)..=end {
                claim(next)?;
            }
            let whole = more.saturating_add(1).saturating_mul(self.meta.page_size);
            let whole = usize::try_from(whole).map_err(|_| wrong("it does not fit into memory"))?;
            bytes.resize(whole, 0);
            let rest = bytes.get_mut(one..).unwrap_or_default();
            self.file.read_exact_at(rest, at.saturating_add(self.meta.page_size))?;
        }
        Page::parse(id, bytes.into())
    }
}
