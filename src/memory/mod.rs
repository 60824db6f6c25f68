//! Memory for secrets: locked against swapping, left out of core dumps, not inherited by a fork, wiped on drop.
//!
//! A leaf under `core`: it knows nothing of keys or KMSs. Each [`Locked`] has pages of its own, so that unlocking one never
//! unlocks a neighbour. Where the limit on locked memory (RLIMIT_MEMLOCK) is used up, the memory is still left out of
//! dumps and wiped, and [`unlocked_bytes`] says so: an operator can see it, and serving goes on. What others copy a secret
//! into (the SDK's requests, HTTP's buffers) is wiped by the allocator of `wiping.rs` when it is freed.
//!
//! This is the only module with `unsafe`: anonymous mappings have no safe interface, and the allocator gives neither
//! whole pages nor a way to lock them.
#![expect(unsafe_code, reason = "anonymous mappings, mlock and madvise have no safe interface; see the module doc")]

mod wiping;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use zeroize::Zeroize;

static LOCKED: AtomicUsize = AtomicUsize::new(0);
static UNLOCKED: AtomicUsize = AtomicUsize::new(0);

/// Bytes of secrets that are locked now.
#[must_use]
pub fn locked_bytes() -> usize {
    LOCKED.load(Ordering::Relaxed)
}

/// Bytes of secrets that the kernel refused to lock; they may be swapped out. 0 is what an operator wants to see.
#[must_use]
pub fn unlocked_bytes() -> usize {
    UNLOCKED.load(Ordering::Relaxed)
}

/// One value on locked pages of its own. No `Clone`, no `Serialize`; `Debug` prints no content.
pub struct Locked<T> {
    place: NonNull<T>,
    len: usize,
    locked: bool,
}

impl<T> Locked<T> {
    /// Maps and locks pages, and puts what `build` returns on them.
    ///
    /// # Errors
    /// When the kernel gives no memory. A refused lock is not an error; see [`unlocked_bytes`].
    pub fn new(build: impl FnOnce() -> T) -> io::Result<Self> {
        let made = Self::place(build);
        wiping::wipe_stack();
        made
    }

    /// Apart, so that what `build` leaves on the stack lies below the frame of `new`.
    #[inline(never)]
    fn place(build: impl FnOnce() -> T) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let len = size_of::<T>().max(1).next_multiple_of(page);
        debug_assert!(align_of::<T>() <= page, "a page is aligned for every type");
        // SAFETY: no address is asked for and the mapping is private and anonymous, so no other memory is touched.
        let raw = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let place = NonNull::new(raw.cast::<T>()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: `raw` and `len` are the mapping just made; mlock changes no content.
        let locked = unsafe { mlock(raw, len) }.is_ok();
        // Not everywhere there (a kernel without it, a sandbox): the process-wide "no dumps" still holds.
        // SAFETY: as above; these two set flags of the mapping and change no content.
        let _ = unsafe { madvise(raw, len, Advice::LinuxDontDump) };
        // SAFETY: as above.
        let _ = unsafe { madvise(raw, len, Advice::LinuxDontFork) };
        let counter = if locked { &LOCKED } else { &UNLOCKED };
        counter.fetch_add(len, Ordering::Relaxed);
        let guard = Self { place, len, locked };
        // SAFETY: `place` is aligned (a page is), big enough (`len` >= size of T) and ours alone; nothing is there to drop.
        unsafe { guard.place.as_ptr().write(build()) };
        Ok(guard)
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` put a T there, and only `drop` takes it away.
        unsafe { self.place.as_ref() }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { self.place.as_mut() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        let raw = self.place.as_ptr();
        // SAFETY: the T is there and is not used again.
        unsafe { raw.drop_in_place() };
        // SAFETY: the whole mapping is ours, readable and writable, `u8` has no invalid values, and the T is gone.
        unsafe { std::slice::from_raw_parts_mut(raw.cast::<u8>(), self.len) }.zeroize();
        let counter = if self.locked { &LOCKED } else { &UNLOCKED };
        counter.fetch_sub(self.len, Ordering::Relaxed);
        // SAFETY: the mapping of `new`, not used after this; unmapping unlocks it. It cannot fail for a valid mapping.
        let _ = unsafe { munmap(raw.cast(), self.len) };
    }
}

// SAFETY: `Locked` owns its T as a Box does, so it may move to another thread when the T may.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: `&Locked<T>` only gives `&T`.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn the_value_is_there_can_be_changed_and_is_dropped_once() {
        struct Counts(Rc<Cell<u32>>, [u8; 5000]);
        impl Drop for Counts {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let drops = Rc::new(Cell::new(0));
        let mut locked = Locked::new(|| Counts(Rc::clone(&drops), [7; 5000])).unwrap();
        locked.1[4999] = 9;
        assert_eq!((locked.1[0], locked.1[4999]), (7, 9));
        assert_eq!(drops.get(), 0);
        drop(locked);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn debug_prints_no_content() {
        let locked = Locked::new(|| [0xAB_u8; 32]).unwrap();
        assert_eq!(format!("{locked:?}"), "Locked(secret)");
    }

    #[test]
    fn the_pages_are_locked_and_left_out_of_dumps() {
        let locked = Locked::new(|| [1_u8; 32]).unwrap();
        assert!(locked_bytes() + unlocked_bytes() >= 4096);
        let address = std::ptr::from_ref::<[u8; 32]>(&locked).addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let mut flags = None;
        for line in smaps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let hex = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(from), Some(to))) = range.map(|(from, to)| (hex(from), hex(to))) {
                inside = (from..to).contains(&address);
            }
            if inside && line.starts_with("VmFlags:") {
                flags = Some(line.to_owned());
            }
        }
        let flags = flags.expect("the mapping is in smaps");
        assert!(flags.contains(" lo") && flags.contains(" dd") && flags.contains(" dc"), "{flags}");
    }
}
