//! `kmalloc` blocks that change their size, and blocks whose content nobody may find later.
//!
//! A block stays where it is while it fits, also when it shrinks; else it moves. Whether it stays or moves, it is of the
//! `kmalloc` family afterwards.
//!
//! # Zeroes
//!
//! Nobody knows how many of a block's bytes ([`ksize`]) its holder asked for. So ZERO is a promise about a block's whole
//! life: if it was allocated with ZERO, each [`krealloc`] of it said ZERO, and its holder never wrote beyond what he had asked
//! for, then every byte that a [`krealloc`] adds is zero. What makes it true: a fresh block is zeroed to its end, and a block
//! that stays is zeroed from its new size to its end.
//!
//! Answers to `krealloc_node_align` and `kfree_sensitive` in Linux `mm/slub.c` and `mm/slab_common.c` (7.x).

use core::ptr::NonNull;

use mm::{AllocFlags, PageKind};

use crate::kmalloc::{ZERO_SIZE, kfree, kmalloc_aligned, ksize};

/// Gives a block another size. Its content stays up to the smaller of both sizes.
///
/// No block, and that of size 0, is allocated anew; size 0 frees the block and gives [`ZERO_SIZE`]. `None` if there is no
/// memory: then the block is as it was. For ZERO see the [module](self).
///
/// Context: any but NMI; never sleeps.
///
/// # Safety
/// As for [`kfree`]; if the answer is `None` the block was not given up.
pub unsafe fn krealloc(block: Option<NonNull<u8>>, size: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
    // SAFETY: passed on from the caller.
    unsafe { krealloc_aligned(block, size, 1, flags) }
}

/// The same with an alignment, as for [`kmalloc_aligned`]: a block that is not aligned so moves.
///
/// # Safety
/// As for [`krealloc`].
pub unsafe fn krealloc_aligned(
    block: Option<NonNull<u8>>,
    size: usize,
    align: usize,
    flags: AllocFlags,
) -> Option<NonNull<u8>> {
    let Some(block) = block.filter(|&block| block != ZERO_SIZE) else { return kmalloc_aligned(size, align, flags) };
    if size == 0 {
        // SAFETY: the caller gives it up.
        unsafe { kfree(block) };
        return Some(ZERO_SIZE);
    }
    // SAFETY: the caller's.
    let usable = unsafe { ksize(block) };
    if size <= usable && block.as_ptr().addr().is_multiple_of(align) {
        stay(block, size, usable, flags);
        return Some(block);
    }
    let new = kmalloc_aligned(size, align, flags)?;
    // SAFETY: both blocks hold as many bytes, and the new one is not part of the old one, which is alive.
    unsafe { new.copy_from_nonoverlapping(block, size.min(usable)) };
    // SAFETY: the caller gives it up.
    unsafe { kfree(block) };
    Some(new)
}

/// Does what a block needs that keeps its place with `size` of its `usable` bytes.
fn stay(block: NonNull<u8>, size: usize, usable: usize, flags: AllocFlags) {
    if flags.contains(AllocFlags::ZERO) {
        // SAFETY: inside the block, beyond what its holder has asked for.
        unsafe { block.add(size).write_bytes(0, usable - size) };
    }
    if let Some(page) = mm::page_of(block.as_ptr()).filter(|page| page.kind() == PageKind::Large) {
        page.set_large(size);
    }
}

/// [`kfree`] of a block whose content is a secret: it is wiped first, to the block's end.
///
/// Context: any but NMI.
///
/// # Safety
/// As for [`kfree`]; and the block is not of a cache whose objects keep their content when they are free: one with a
/// constructor, or TYPESAFE_BY_RCU.
pub unsafe fn kfree_sensitive(block: NonNull<u8>) {
    // SAFETY: the caller's.
    for index in 0..unsafe { ksize(block) } {
        // SAFETY: inside the block. Volatile, so that nobody leaves it out because the block goes.
        unsafe { block.add(index).write_volatile(0) };
    }
    // SAFETY: the caller gives it up.
    unsafe { kfree(block) };
}
