//! Who is where on the locked pages: values of one size share pages, slot by slot.
//!
//! Guarantees: a slot has one owner; it is wiped when its owner goes, before another can have it; pages go back to the kernel
//! when their last slot does, and not before. Freed slots are taken again before new pages are, those of the fullest pages
//! first, so that the others become empty. Pages that are locked are preferred, and one that could not be locked is tried
//! again for each value that has to go there. What says which slots are taken is elsewhere, on the ordinary heap.

use super::pages::Pages;
use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use zeroize::Zeroize;

/// Sizes are rounded up to cache lines: two secrets never share one.
const LINE: usize = 64;
/// As many bits as a slab has for its slots.
const SLOTS_MAX: usize = 64;
/// Pages that are mapped at once at most. A page ends in the middle of a value, so that many together waste less than one
/// by one: 56 key schedules of AES-256-GCM fit on sixteen pages, and three on each single one.
const STEP: usize = 16;

static POOL: Mutex<Pool> = Mutex::new(Pool::new());

fn pool() -> MutexGuard<'static, Pool> {
    // A panic while it was held cannot leave it half changed: nothing in it panics.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for one value: zeros at first, wiped and given back when this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    place: NonNull<u8>,
    len: usize,
}

impl Room {
    /// Takes room for so many bytes, aligned for every type of that size whose alignment is a page at most.
    ///
    /// # Errors
    /// When the kernel gives no memory.
    pub(super) fn take(size: usize) -> io::Result<Self> {
        let len = size.max(1).next_multiple_of(LINE);
        // A size is a multiple of its alignment, and a slab begins with a page: multiples of either are aligned.
        let len = if len > rustix::param::page_size() / 2 { whole_pages(len) } else { len };
        Ok(Self { place: pool().take(len)?, len })
    }

    pub(super) const fn place(&self) -> NonNull<u8> {
        self.place
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = self.place.cast::<MaybeUninit<u8>>();
        // SAFETY: the slot is ours, `len` bytes, until it is given back below; whoever was in it has been dropped, and bytes
        // that may be uninitialized (padding) have no invalid values.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_ptr(), self.len) }.zeroize();
        pool().give_back(self.place);
    }
}

fn whole_pages(len: usize) -> usize {
    len.next_multiple_of(rustix::param::page_size())
}

/// Every slab, by its address.
#[derive(Debug)]
struct Pool {
    slabs: BTreeMap<usize, Slab>,
}

/// Pages with slots of one size.
#[derive(Debug)]
struct Slab {
    pages: Pages,
    slot: usize,
    slots: u32,
    /// A bit for each slot, the first one lowest.
    taken: u64,
}

impl Pool {
    const fn new() -> Self {
        Self { slabs: BTreeMap::new() }
    }

    fn take(&mut self, slot: usize) -> io::Result<NonNull<u8>> {
        let has_room = self.slabs.iter().filter(|(_, slab)| slab.slot == slot && slab.left() > 0);
        let best = has_room.min_by_key(|(_, slab)| (!slab.pages.is_locked(), slab.left()));
        let address = match best {
            Some((address, _)) => *address,
            None => self.grow(slot)?,
        };
        let slab = self.slabs.get_mut(&address);
        slab.and_then(Slab::take).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
    }

    /// Adds as much as there is of this size, so that few values take little and many waste little.
    fn grow(&mut self, slot: usize) -> io::Result<usize> {
        let page = rustix::param::page_size();
        let least = whole_pages(slot);
        let there = self.slabs.values().filter(|slab| slab.slot == slot);
        let there = there.map(|slab| slab.pages.len()).fold(0, usize::saturating_add);
        let usable = slot.saturating_mul(SLOTS_MAX).min(page.saturating_mul(STEP));
        let wish = there.min(usable.saturating_sub(usable.checked_rem(page).unwrap_or_default()));
        // Where the limit on locked memory leaves room for some pages, but not for so many, it is some.
        let many = if wish > least { Pages::map_locked(wish).ok() } else { None };
        let pages = match many {
            Some(pages) => pages,
            None => Pages::map(least)?,
        };
        let slots = pages.len().checked_div(slot).unwrap_or_default().min(SLOTS_MAX);
        let address = pages.base().addr().get();
        let slots = u32::try_from(slots).unwrap_or_default();
        self.slabs.insert(address, Slab { pages, slot, slots, taken: 0 });
        Ok(address)
    }

    fn give_back(&mut self, place: NonNull<u8>) {
        let address = place.addr().get();
        if let Some((base, slab)) = self.slabs.range_mut(..=address).next_back() {
            let base = *base;
            slab.give_back(address.saturating_sub(base));
            if slab.taken == 0 {
                self.slabs.remove(&base);
            }
        }
    }
}

impl Slab {
    const fn left(&self) -> u32 {
        self.slots.saturating_sub(self.taken.count_ones())
    }

    /// The first free slot.
    fn take(&mut self) -> Option<NonNull<u8>> {
        let index = self.taken.trailing_ones();
        if index >= self.slots {
            return None;
        }
        self.pages.lock();
        self.taken |= 1_u64.checked_shl(index)?;
        let offset = self.slot.checked_mul(usize::try_from(index).ok()?)?;
        NonNull::new(self.pages.base().as_ptr().wrapping_add(offset))
    }

    fn give_back(&mut self, offset: usize) {
        let index = offset.checked_div(self.slot).and_then(|index| u32::try_from(index).ok());
        self.taken &= !index.and_then(|index| 1_u64.checked_shl(index)).unwrap_or_default();
    }
}
