//! Blocks without a cache of their own: resized, zeroed, aligned, in arrays, wiped, large, and areas.

use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

use mm::AllocFlags;
use sync::{MaySleep, Rng};

use super::Slab;
use crate::Failure;
use crate::torture::control;

const QUIET: AllocFlags = AllocFlags::NOWARN;
/// The largest block, and the largest area.
const MOST: usize = 40_000;
const AREA: usize = 120_000;

/// Takes blocks in every way, resizes them and gives them back, and looks at their content on the way.
pub(super) fn play(slab: &Slab, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    while !control::stutter(cx) {
        let size = if rng.chance(1, 4) { rng.index(MOST) + 1 } else { rng.index(2_000) + 1 };
        let whole = match rng.index(6) {
            0 => resized(size, &mut rng),
            1 => zeroed(slab::kzalloc(size, QUIET), size),
            2 => zeroed(slab::kcalloc(size.div_ceil(8), 8, QUIET), size),
            3 => aligned(size, 64 << rng.index(4)),
            4 => wiped(size),
            _ => area(rng.index(AREA) + 1, &mut rng, cx),
        };
        slab.damaged.fetch_add(u64::from(!whole), Relaxed);
        slab.blocks.fetch_add(1, Relaxed);
        if rng.chance(1, 4) {
            sched::sleep_ns(cx, rng.below(100_000));
        }
        sched::cond_resched(cx);
    }
    Ok(())
}

fn fill(block: NonNull<u8>, size: usize, byte: u8) {
    // SAFETY: the caller's block has that many bytes.
    unsafe { block.as_ptr().write_bytes(byte, size) };
}

fn holds(block: NonNull<u8>, size: usize, byte: u8) -> bool {
    // SAFETY: as above, and the caller wrote them.
    unsafe { core::slice::from_raw_parts(block.as_ptr(), size) }.iter().all(|&found| found == byte)
}

/// A block that grows and shrinks keeps what fits.
fn resized(mut size: usize, rng: &mut Rng) -> bool {
    let byte = rng.next_u64() as u8;
    let Some(mut block) = slab::kmalloc(size, QUIET) else { return true };
    fill(block, size, byte);
    let mut whole = true;
    for _ in 0..rng.index(5) {
        let new_size = rng.index(MOST / 4) + 1;
        // SAFETY: ours; given up only if there is a new one.
        let Some(new) = (unsafe { slab::krealloc(Some(block), new_size, QUIET) }) else { break };
        whole &= holds(new, size.min(new_size), byte);
        (block, size) = (new, new_size);
        fill(block, size, byte);
    }
    whole &= holds(block, size, byte);
    // SAFETY: ours, and given up here.
    unsafe { slab::kfree(block) };
    whole
}

fn zeroed(block: Option<NonNull<u8>>, size: usize) -> bool {
    let Some(block) = block else { return true };
    let whole = holds(block, size, 0);
    fill(block, size, 0xa7);
    // SAFETY: ours, and given up here.
    unsafe { slab::kfree(block) };
    whole
}

fn aligned(size: usize, align: usize) -> bool {
    let Some(block) = slab::kmalloc_aligned(size, align, QUIET) else { return true };
    fill(block, size, 0x5c);
    let whole = block.addr().get().is_multiple_of(align) && holds(block, size, 0x5c);
    // SAFETY: ours, and given up here.
    unsafe { slab::kfree(block) };
    whole
}

fn wiped(size: usize) -> bool {
    let Some(block) = slab::kmalloc(size, QUIET) else { return true };
    fill(block, size, 0x99);
    let whole = holds(block, size, 0x99);
    // SAFETY: ours, and given up here.
    unsafe { slab::kfree_sensitive(block) };
    whole
}

/// A block or an area, as there is memory.
fn area(size: usize, rng: &mut Rng, cx: &mut MaySleep) -> bool {
    let Some(block) = slab::kvmalloc(size, QUIET, cx) else { return true };
    let byte = rng.next_u64() as u8;
    fill(block, size, byte);
    sched::cond_resched(cx);
    let whole = holds(block, size, byte);
    match rng.chance(1, 2) {
        // SAFETY: ours, and given up here; as below.
        true => unsafe { slab::kvfree_sleep(block, cx) },
        // SAFETY: as above.
        false => unsafe { slab::kvfree(block) },
    }
    whole
}
