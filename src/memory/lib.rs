//! Memory for secrets: locked against swapping, left out of core dumps, not inherited by a fork, wiped on drop.
//!
//! A leaf under `core`: it knows nothing of keys or KMSs. Small values of one size share pages (`pool.rs`); nothing else is on
//! them, and a page is unlocked only by being unmapped, when nobody is on it any more, so that unlocking one value never
//! unlocks a neighbour. Where the limit on locked memory (RLIMIT_MEMLOCK) is used up, the memory is still left out of
//! dumps and wiped, and [`unlocked_bytes`] says so: an operator can see it, and serving goes on. What others copy a secret
//! into (the SDK's requests, HTTP's buffers) is wiped by the allocator of `wiping.rs` when it is freed.
//!
//! This is the only module with `unsafe`: anonymous mappings have no safe interface, and the allocator gives neither
//! whole pages nor a way to lock them.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]
#![expect(unsafe_code, reason = "anonymous mappings, mlock and madvise have no safe interface; see the module doc")]

mod pages;
mod pool;
#[cfg(test)]
mod tests;
pub mod wiping;

pub use pages::{locked_bytes, unlocked_bytes};

use pool::Room;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Maps a page that can be executed, of this file or of none, and gives it back. For the test that the sandbox refuses it.
///
/// # Errors
/// Those of mmap(2).
#[cfg(feature = "fixture")]
pub fn map_executable(file: Option<&std::fs::File>, how: rustix::mm::MapFlags) -> rustix::io::Result<()> {
    use rustix::mm::{ProtFlags, mmap, mmap_anonymous, munmap};
    let (any, len, prot) = (std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::EXEC);
    // SAFETY: no address is asked for, so no other memory is touched, and the mapping is given back unused.
    unsafe {
        let mapped = match file {
            Some(file) => mmap(any, len, prot, how, file, 0)?,
            None => mmap_anonymous(any, len, prot, how)?,
        };
        munmap(mapped, len)
    }
}

/// One value in locked memory. No `Clone`, no `Serialize`; `Debug` prints no content.
pub struct Locked<T> {
    room: Room,
    value: PhantomData<T>,
}

impl<T> Locked<T> {
    /// Takes a place on locked pages, and puts what `build` returns there.
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
        const { assert!(align_of::<T>() <= 4096, "a page is the most that the pool can align to") };
        // A `build` that panics drops it as it is: wiped, and without a T.
        let room = Room::take(size_of::<T>())?;
        // SAFETY: the place is aligned and big enough for a T (`Room::take`) and ours alone; nothing is there to drop.
        unsafe { room.place().cast::<T>().write(build()) };
        Ok(Self { room, value: PhantomData })
    }

    const fn at(&self) -> NonNull<T> {
        self.room.place().cast()
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `place` put a T there, and only `drop` takes it away.
        unsafe { self.at().as_ref() }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { self.at().as_mut() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: the T is there and is not used again. Its room is wiped and given back after this, by its own `drop`.
        unsafe { self.at().drop_in_place() };
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
