//! The heap across the boot: before and after `slab`, on a hosted machine.

use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::vec::Vec;

use arch::hosted::in_own_process;
use sched;

use super::*;

#[path = "../sched/tests/machine/mod.rs"]
mod machine;

/// The heap under test; the tests' own is `HostAlloc`.
static HEAP: KernelHeap = KernelHeap::new();

/// Bytes in use in the early heap.
fn early() -> usize {
    HEAP.chunks.lock_irqsave(ATOMIC).iter().map(Heap::used).sum()
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// Whether the first `len` bytes of a block are all `byte`.
fn is_all(block: *const u8, byte: u8, len: usize) -> bool {
    // SAFETY: callers pass blocks of at least `len` initialised bytes.
    unsafe { core::slice::from_raw_parts(block, len) }.iter().all(|&here| here == byte)
}

#[test]
fn blocks_of_the_early_heap_go_back_to_it_or_move_to_kmalloc() {
    /// Made before `slab`: one to be freed, one to grow, one to shrink.
    static MADE: [AtomicPtr<u8>; 3] = [const { AtomicPtr::new(ptr::null_mut()) }; 3];
    const EARLY: (usize, usize) = (1000, 64);
    fn before(_: &mut sync::MaySleep) {
        for slot in &MADE {
            // SAFETY: not of size 0.
            let block = unsafe { HEAP.alloc_zeroed(layout(EARLY.0, EARLY.1)) };
            assert!(block.addr().is_multiple_of(EARLY.1) && is_all(block, 0, EARLY.0));
            // SAFETY: a block of 1000 bytes.
            unsafe { block.write_bytes(0xee, EARLY.0) };
            slot.store(block, Relaxed);
        }
        assert!(early() >= 3 * EARLY.0);
        slab::init();
    }
    in_own_process(|| {
        machine::machine_with(1, before, |_| {
            let [free, grow, shrink] = MADE.each_ref().map(|slot| slot.load(Relaxed));
            let mut left = early();
            let mut one_less = || core::mem::replace(&mut left, early()) >= early() + EARLY.0;
            // SAFETY: each block is from this heap and has that layout; it is given up, or replaced by what comes back.
            unsafe {
                HEAP.dealloc(free, layout(EARLY.0, EARLY.1));
                assert!(one_less());
                for (block, size) in [(grow, 5000), (shrink, 10)] {
                    let moved = HEAP.realloc(block, layout(EARLY.0, EARLY.1), size);
                    assert!(one_less() && is_kmalloc(NonNull::new(moved).unwrap()));
                    assert!(moved.addr().is_multiple_of(EARLY.1) && is_all(moved, 0xee, size.min(EARLY.0)));
                    HEAP.dealloc(moved, layout(size, EARLY.1));
                }
            }
            assert_eq!(early(), 0);
        });
    });
}

#[test]
fn blocks_of_every_size_and_alignment_are_aligned_keep_their_content_and_grow() {
    in_own_process(|| {
        machine::machine_with(
            1,
            |_| slab::init(),
            |_| {
                let mut held = Vec::new();
                for align in (0..=16).map(|bit| 1 << bit) {
                    for size in [1, 24, 63, 200, 4097, 9000] {
                        // SAFETY: not of size 0; the block is written within its size, and replaced by what comes back.
                        let block = unsafe {
                            let block = HEAP.alloc_zeroed(layout(size, align));
                            assert!(is_all(block, 0, size), "{size} bytes aligned to {align}");
                            block.write_bytes(held.len() as u8, size);
                            HEAP.realloc(block, layout(size, align), 3 * size)
                        };
                        assert!(block.addr().is_multiple_of(align), "{block:p}: {size} bytes aligned to {align}");
                        held.push((block, size, align));
                    }
                }
                for (index, (block, size, align)) in held.into_iter().enumerate() {
                    assert!(is_all(block, index as u8, size), "{size} bytes aligned to {align}");
                    // SAFETY: from this heap with that layout, and given up here.
                    unsafe { HEAP.dealloc(block, layout(3 * size, align)) };
                }
                assert_eq!(early(), 0, "all of it was kmalloc's");
            },
        );
    });
}
