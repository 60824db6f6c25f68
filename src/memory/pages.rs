//! Whole pages from the kernel: locked against swapping, left out of core dumps, not inherited by a fork.
//!
//! Guarantees: what is mapped is counted, as locked or as not; it goes back whole, unlocked by that, and nothing else with it.
//! Refuses to know what is on them and who wipes it. SPEC: mmap(2), mlock(2), madvise(2).

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

static LOCKED: AtomicUsize = AtomicUsize::new(0);
static UNLOCKED: AtomicUsize = AtomicUsize::new(0);

/// Bytes of the pages for secrets that are locked now: whole pages, as the kernel counts them against RLIMIT_MEMLOCK.
#[must_use]
pub fn locked_bytes() -> usize {
    LOCKED.load(Ordering::Relaxed)
}

/// Bytes of the pages for secrets that the kernel refused to lock; they may be swapped out. 0 is what an operator wants to see.
#[must_use]
pub fn unlocked_bytes() -> usize {
    UNLOCKED.load(Ordering::Relaxed)
}

/// Pages that are counted.
#[derive(Debug)]
pub(super) struct Pages {
    mapping: Mapping,
    locked: bool,
}

impl Pages {
    /// Maps so many bytes, which must be whole pages, and locks them. They hold zeros.
    ///
    /// # Errors
    /// When the kernel gives no memory, or refuses to lock it.
    pub(super) fn map_locked(len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(len)?;
        if !mapping.lock() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        LOCKED.fetch_add(len, Ordering::Relaxed);
        Ok(Self { mapping, locked: true })
    }

    /// As [`Pages::map_locked`], but a refused lock is not an error; see [`Pages::is_locked`].
    ///
    /// # Errors
    /// When the kernel gives no memory.
    pub(super) fn map(len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(len)?;
        let locked = mapping.lock();
        counter(locked).fetch_add(len, Ordering::Relaxed);
        Ok(Self { mapping, locked })
    }

    /// Tries to lock them unless they are: the limit may have been raised, or others may have given back what they had.
    pub(super) fn lock(&mut self) {
        if !self.locked && self.mapping.lock() {
            self.locked = true;
            LOCKED.fetch_add(self.len(), Ordering::Relaxed);
            UNLOCKED.fetch_sub(self.len(), Ordering::Relaxed);
        }
    }

    pub(super) const fn is_locked(&self) -> bool {
        self.locked
    }

    pub(super) const fn base(&self) -> NonNull<u8> {
        self.mapping.base
    }

    pub(super) const fn len(&self) -> usize {
        self.mapping.len
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        counter(self.locked).fetch_sub(self.len(), Ordering::Relaxed);
    }
}

const fn counter(locked: bool) -> &'static AtomicUsize {
    if locked { &LOCKED } else { &UNLOCKED }
}

/// One mapping, ours alone.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: no address is asked for and the mapping is private and anonymous, so no other memory is touched.
        let raw = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let base = NonNull::new(raw.cast::<u8>()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // Not everywhere there (a kernel without it, a sandbox): the process-wide "no dumps" still holds.
        // SAFETY: `raw` and `len` are the mapping just made; these two set flags of it and change no content.
        let _ = unsafe { madvise(raw, len, Advice::LinuxDontDump) };
        // SAFETY: as above.
        let _ = unsafe { madvise(raw, len, Advice::LinuxDontFork) };
        Ok(Self { base, len })
    }

    fn lock(&self) -> bool {
        // SAFETY: the mapping is ours; mlock changes no content.
        unsafe { mlock(self.base.as_ptr().cast(), self.len) }.is_ok()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, whole, and nobody has a pointer into it any more: `pool` drops pages only when no
        // slot of them is taken. Unmapping unlocks it, and cannot fail for a valid mapping.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: `Mapping` owns its memory as a Box does.
unsafe impl Send for Mapping {}
