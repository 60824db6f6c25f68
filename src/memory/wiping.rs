//! Memory that is given back is wiped, whoever had it.
//!
//! The AWS SDK, HTTP and TLS put data keys and seeds into buffers of their own and free them as they are; a process that lives
//! for months then keeps them on its heap until chance overwrites them (seen: a DEK in base64, minutes after its KEK was
//! revoked; test `a_revoked_kek_leaves_no_dek_in_the_memory_of_the_live_process`). Guarantees: no freed allocation keeps its
//! content. Refuses to know which of it was secret. What is not freed yet is not wiped: see SECURITY.md, "Host and memory".

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;

/// Bytes under the current frame that [`wipe_stack`] overwrites: more than the key schedules of AES-256 and GHASH take.
const STACK: usize = 16 * 1024;

/// The allocator of every program with this crate in it: the system's, and wiped on the way back.
struct Wiping;

#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

// SAFETY: memory comes from and goes to `System`, with the layouts that the callers give. `realloc` is the trait's own: a new
// allocation, a copy, and `dealloc` of the old one, which is wiped by that; the system's would move without wiping.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back `layout.size()` bytes that are its own and that nobody uses any more.
        unsafe { memory.write_bytes(0, layout.size()) };
        // Without this the compiler may leave the writes out: nobody reads what is freed.
        black_box(memory);
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Overwrites what calls before this one have left on the stack below their common caller.
#[inline(never)]
pub(super) fn wipe_stack() {
    let mut frame = [0_u8; STACK];
    black_box(&mut frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_is_wiped_and_growing_leaves_nothing_behind() {
        let layout = Layout::from_size_align(4096, 8).unwrap();
        // SAFETY: allocated here with this layout, written within it, given back once; read afterwards by /proc only.
        let freed = unsafe {
            let memory = ALLOCATOR.alloc(layout);
            memory.write_bytes(0xA5, 4096);
            let grown = ALLOCATOR.realloc(memory, layout, 1 << 20);
            assert_eq!((grown.read(), grown.add(4095).read()), (0xA5, 0xA5));
            ALLOCATOR.dealloc(grown, Layout::from_size_align(1 << 20, 8).unwrap());
            memory
        };
        let mut left = vec![0; 4096];
        let own = std::fs::File::open("/proc/self/mem").unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&own, &mut left, freed.addr() as u64).unwrap();
        // The allocator keeps its lists in what is free; a run of our bytes it does not make.
        assert!(!left.windows(16).any(|run| run == [0xA5; 16]));
    }
}
