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

/// The system's allocator, and wiped on the way back. A program makes it its own with `#[global_allocator]`.
#[derive(Debug)]
pub struct WipingAllocator;

// SAFETY: memory comes from and goes to `System`, with the layouts that the callers give. `realloc` is the trait's own: a new
// allocation, a copy, and `dealloc` of the old one, which is wiped by that; the system's would move without wiping.
unsafe impl GlobalAlloc for WipingAllocator {
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
    use super::WipingAllocator;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    /// As in the program.
    #[global_allocator]
    static ALLOCATOR: WipingAllocator = WipingAllocator;

    /// In a process of its own: with nobody else at work in it, what was freed is still as it was left when it is read.
    #[test]
    fn what_is_freed_is_wiped_and_growing_leaves_nothing_behind() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["wiping::tests::child_frees", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .output()
            .unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "run as a child process: nothing else may be allocated between the free and the look"]
    fn child_frees() {
        // All there before anything is freed: a buffer made afterwards would be given the very place.
        let mut left = [vec![0; LEN], vec![0; LEN]];
        let own = std::fs::File::open("/proc/self/mem").unwrap();
        let (freed, mut grown, after) = (vec![0xA5_u8; LEN], vec![0xA5_u8; LEN], vec![1_u8; LEN]);
        let places = [freed.as_ptr().addr() as u64, grown.as_ptr().addr() as u64];
        grown.reserve_exact(1 << 20);
        drop(freed);
        for (left, place) in left.iter_mut().zip(places) {
            own.read_exact_at(left, place).unwrap();
        }
        assert_ne!(grown.as_ptr().addr() as u64, places[1], "it was moved");
        assert_eq!((grown[0], grown[LEN - 1], after[0]), (0xA5, 0xA5, 1));
        // The allocator keeps its lists in what is free; a run of our bytes it does not make.
        let runs = left.map(|left| left.windows(16).filter(|run| *run == [0xA5; 16]).count());
        assert_eq!(runs, [0, 0], "freed, grown");
    }

    /// More than the caches of freed places hold, and less than what has a mapping of its own and goes back to the kernel.
    const LEN: usize = 8192;
}
