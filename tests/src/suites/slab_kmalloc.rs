//! The calls around `kmalloc` (resizing, `kvmalloc`), and the global allocator on top of it.

use alloc::alloc::{alloc_zeroed, dealloc, realloc};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr::NonNull;

use arch::{PAGE_SIZE, cpu};
use mm::AllocFlags;
use sched::Prio;
use slab::{krealloc, kvfree, kvfree_sleep, kvmalloc};
use sync::{ATOMIC, PreemptGuard, Rng};

use crate::{Failure, ensure, ensure_eq, ktest};

/// Byte `index` of a block with that seed.
fn pattern(seed: u64, index: usize) -> u8 {
    (seed as usize).wrapping_add(index).wrapping_mul(31) as u8
}

fn fill(block: NonNull<u8>, from: usize, to: usize, seed: u64) {
    for index in from..to {
        // SAFETY: callers own `to` bytes.
        unsafe { block.add(index).write(pattern(seed, index)) };
    }
}

fn is_filled(block: NonNull<u8>, len: usize, seed: u64) -> bool {
    // SAFETY: callers own `len` bytes, which they have filled.
    (0..len).all(|index| unsafe { block.add(index).read() } == pattern(seed, index))
}

/// One block that is resized at random; how often its content was wrong.
fn resize_at_random(rng: &mut Rng) -> u64 {
    let seed = rng.next_u64();
    let (mut block, mut size, mut damaged) = (None, 0, 0);
    for _ in 0..60 {
        // Around all classes, and beyond the largest.
        let scale = rng.index(12);
        let wanted = 1 + rng.index(16 << scale);
        // SAFETY: the block is ours, and replaced by the answer.
        let Some(new) = (unsafe { krealloc(block, wanted, AllocFlags::NOWAIT) }) else { continue };
        damaged += u64::from(!is_filled(new, size.min(wanted), seed));
        fill(new, size.min(wanted), wanted, seed);
        (block, size) = (Some(new), wanted);
    }
    // SAFETY: ours, and given up here.
    unsafe { krealloc(block, 0, AllocFlags::NOWAIT) };
    damaged
}

/// A value of that alignment.
#[repr(align(256))]
struct Wide([u8; 300]);

#[repr(align(8192))]
struct WiderThanAPage(u64);

ktest! {
    /// All CPUs resize blocks up and down; what a block held up to the smaller size stays.
    #[tags(race)]
    #[budget_ms(30_000)]
    fn blocks_keep_their_content_through_every_change_of_size(t: &mut Test) {
        let mut threads = Vec::new();
        for on in cpu::online().iter() {
            let mut rng = Rng::new(t.rng.next_u64());
            let thread = sched::spawn(t.cx, "resize", Prio::NORMAL, Some(on), move |cx| {
                let mut damaged = 0;
                for _ in 0..8 {
                    damaged += resize_at_random(&mut rng);
                    sched::cond_resched(cx);
                }
                damaged
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        let damaged: u64 = threads.into_iter().map(|thread| thread.join(t.cx)).sum();
        ensure_eq!(damaged, 0, "blocks lost their content");
        Ok(())
    }

    /// Values of odd alignments in `Box`, `Vec` and `Arc`, and blocks that grow step by step.
    fn the_global_allocator_aligns_grows_and_zeroes(_t: &mut Test) {
        let boxes: Vec<Box<Wide>> = (0..40).map(|index| Box::new(Wide([index; 300]))).collect();
        let arcs: Vec<Arc<WiderThanAPage>> = (0..4).map(|index| Arc::new(WiderThanAPage(index))).collect();
        for (index, boxed) in boxes.iter().enumerate() {
            ensure!((&raw const **boxed).addr().is_multiple_of(256));
            ensure!(boxed.0.iter().all(|&byte| byte == index as u8));
        }
        for (index, arc) in arcs.iter().enumerate() {
            ensure!((&raw const **arc).addr().is_multiple_of(8192));
            ensure_eq!(arc.0, index as u64);
        }
        let mut wide: Vec<Wide> = Vec::new();
        let mut words: Vec<u64> = Vec::new();
        for index in 0..40_u8 {
            wide.push(Wide([index; 300]));
            words.extend((0..100).map(|word| u64::from(index) * 100 + word));
            ensure!(wide.as_ptr().addr().is_multiple_of(256));
        }
        ensure!(wide.iter().enumerate().all(|(index, value)| value.0.iter().all(|&byte| byte == index as u8)));
        ensure!(words.iter().enumerate().all(|(index, &word)| word == index as u64));
        words.truncate(10);
        words.shrink_to_fit();
        ensure!(words.iter().enumerate().all(|(index, &word)| word == index as u64));
        Ok(())
    }

    /// Every size with every alignment up to eight pages, zeroed, grown and shrunk, by the allocator's own calls.
    fn a_layout_of_any_alignment_is_served(_t: &mut Test) {
        for align in (0..=15).map(|bit| 1_usize << bit) {
            for size in [1, 40, 100, PAGE_SIZE, 9000] {
                every_call(size, align)?;
            }
        }
        Ok(())
    }

    /// A large table comes page by page, and goes back from where its owner may not sleep, too.
    fn kvmalloc_falls_over_to_vmalloc_and_kvfree_tells_them_apart(t: &mut Test) {
        mm::vmalloc::purge(t.cx);
        let (areas, _) = mm::vmalloc::usage();
        for (size, paged) in [(100, false), (50_000, false), ((PAGE_SIZE << mm::MAX_ORDER) + 5000, true)] {
            for atomic in [false, true] {
                let Some(block) = kvmalloc(size, AllocFlags::ZERO, t.cx) else {
                    return Err(crate::__failed!("no memory for {size} bytes"));
                };
                ensure_eq!(mm::is_vmalloc(block.as_ptr()), paged, "{size} bytes");
                for at in (0..size).step_by(PAGE_SIZE).chain([size - 1]) {
                    // SAFETY: inside the block, which is ours and zeroed.
                    ensure_eq!(unsafe { block.add(at).read() }, 0, "byte {at} of {size}");
                    // SAFETY: as above.
                    unsafe { block.add(at).write(0xff) };
                }
                // SAFETY: ours, and given up here.
                unsafe {
                    if atomic {
                        let _pin = PreemptGuard::new(ATOMIC);
                        kvfree(block);
                    } else {
                        kvfree_sleep(block, t.cx);
                    }
                }
            }
        }
        mm::vmalloc::purge(t.cx);
        ensure_eq!(mm::vmalloc::usage().0, areas, "areas of vmalloc are lost");
        Ok(())
    }
}

/// A zeroed block of that layout, filled, resized up and down, and given back.
fn every_call(size: usize, align: usize) -> Result<(), Failure> {
    let layout = |size| Layout::from_size_align(size, align).expect("a small power of two");
    // SAFETY: not of size 0.
    let Some(mut block) = NonNull::new(unsafe { alloc_zeroed(layout(size)) }) else {
        return Err(crate::__failed!("no memory for {size} bytes aligned to {align}"));
    };
    // SAFETY: `size` bytes are ours and zeroed.
    ensure!((0..size).all(|index| unsafe { block.add(index).read() } == 0), "{size} bytes aligned to {align}");
    fill(block, 0, size, size as u64);
    let mut held = size;
    for next in [size + 1, 3 * size, size / 2 + 1] {
        // SAFETY: from this allocator with that layout; replaced by the answer.
        let Some(moved) = NonNull::new(unsafe { realloc(block.as_ptr(), layout(held), next) }) else {
            return Err(crate::__failed!("no memory for {next} bytes aligned to {align}"));
        };
        ensure!(moved.as_ptr().addr().is_multiple_of(align), "{moved:p} for {next} bytes aligned to {align}");
        ensure!(is_filled(moved, size.min(next), size as u64), "{held} to {next} bytes aligned to {align}");
        (block, held) = (moved, next);
    }
    // SAFETY: as above, given up here.
    unsafe { dealloc(block.as_ptr(), layout(held)) };
    Ok(())
}
