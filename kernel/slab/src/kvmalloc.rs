//! `kvmalloc`: memory that is contiguous in addresses, and in frames if that is easily had.
//!
//! For tables that may be large: [`kmalloc`] first, which is cheaper in use; from a page on, if that fails, page by page from
//! `vmalloc`. Which of both a block is from, its address tells.
//!
//! Answers to `kvmalloc_node` and `kvfree` in Linux `mm/slub.c` (7.x), where the caller of `kvfree` must not be atomic.

use core::ptr::NonNull;

use arch::PAGE_SIZE;
use mm::AllocFlags;
use sync::MaySleep;

use crate::kmalloc::{kfree, kmalloc};
use crate::sleep::kmalloc_sleep;

/// Allocates `size` bytes, aligned to 8, and to a page if they are more than
/// [`MAX_CACHED`](crate::kmalloc::MAX_CACHED). Size 0 gives [`ZERO_SIZE`](crate::ZERO_SIZE).
///
/// Context: task; sleeps. Reclaims before it fails if the flags say MAY_SLEEP.
pub fn kvmalloc(size: usize, flags: AllocFlags, cx: &mut MaySleep) -> Option<NonNull<u8>> {
    cx.assert_may_sleep();
    if size <= PAGE_SIZE {
        return kmalloc_sleep(size, flags, cx);
    }
    // That no such block is left is nothing to report yet.
    kmalloc(size, flags | AllocFlags::NOWARN).or_else(|| {
        // What is more than all memory would use up all memory first.
        let fits = size.div_ceil(PAGE_SIZE) <= mm::stats::managed_pages();
        fits.then(|| mm::vmalloc::vmalloc_with(size, None, flags, cx).ok()).flatten()
    })
}

/// [`kvmalloc`] of `count` times `size` bytes; nothing if that is more than there are addresses.
pub fn kvmalloc_array(count: usize, size: usize, flags: AllocFlags, cx: &mut MaySleep) -> Option<NonNull<u8>> {
    kvmalloc(count.checked_mul(size)?, flags, cx)
}

/// Frees what [`kvmalloc`], the `kmalloc` family or `vmalloc` returned. An area of `vmalloc` is unmapped by an interrupt on this
/// CPU, soon after.
///
/// Context: any but NMI.
///
/// # Safety
/// As for [`kfree`].
pub unsafe fn kvfree(block: NonNull<u8>) {
    if mm::is_vmalloc(block.as_ptr()) {
        mm::vfree_deferred(block);
    } else {
        // SAFETY: passed on from the caller.
        unsafe { kfree(block) };
    }
}

/// [`kvfree`] for who may sleep: an area of `vmalloc` is unmapped at once.
///
/// Context: task; sleeps.
///
/// # Safety
/// As for [`kfree`].
pub unsafe fn kvfree_sleep(block: NonNull<u8>, cx: &mut MaySleep) {
    if mm::is_vmalloc(block.as_ptr()) {
        mm::vfree(block, cx);
    } else {
        // SAFETY: passed on from the caller.
        unsafe { kfree(block) };
    }
}
