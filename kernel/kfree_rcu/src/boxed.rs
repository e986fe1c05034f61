//! Boxes with the small head for what readers follow: [`rcu::Rcu`], lists, maps.
//!
//! [`rcu::RcuBox::new`] pays 16 bytes for a callback of its own, and the callback when the value is retired. A value that needs no
//! destructor need not: in a box of [`try_small_box`] it pays 8 bytes, and when it is retired it goes to
//! [`kfree_rcu`](crate::kfree_rcu), a sheaf or a page of pointers at a time. Whatever holds boxes takes either.
//!
//! ```no_run
//! use grange_kfree_rcu::try_small_box;
//! use rcu::{Rcu, read_lock};
//!
//! struct Limits { bytes: u64, files: u64 }
//!
//! fn change(limits: &Rcu<Limits>, new: Limits) {
//!     if let Ok(new) = try_small_box(new) {
//!         limits.publish(new);            // the old value is freed by kfree_rcu
//!     }
//! }
//! ```
//!
//! So this is the owner for values that readers *do* see: [`rcu::Retired`] can be retired once, and only what is out of reach is
//! one; kernel/rcu/tests/ui has what does not compile. A value with a destructor is refused:
//!
//! ```compile_fail,E0080
//! # use grange_kfree_rcu::try_small_box;
//! let _ = try_small_box(slab::KBox::try_new(1, mm::AllocFlags::NOWAIT));
//! ```
//!
//! Rows S1-4, D-13.

use core::alloc::Layout;
use core::ptr::NonNull;

use mm::AllocFlags;
use rcu::{Memory, RcuBox};
use slab::OutOfMemory;

// SAFETY: what `kmalloc_aligned` gives is of the layout, and goes by `kfree`, or by `kfree_rcu` with a head in its first page.
static MEMORY: Memory = unsafe { Memory::new(alloc, slab::kfree, free_after_grace_period) };

fn alloc(layout: Layout) -> Option<NonNull<u8>> {
    slab::kmalloc_aligned(layout.size(), layout.align(), AllocFlags::NOWAIT)
}

/// # Safety
/// `link` lies in front of a value in memory from [`alloc`], and no new reader can find that.
unsafe fn free_after_grace_period(link: NonNull<u8>) {
    // SAFETY: by the caller; the value is aligned to a page at most, so the link lies in the first one.
    unsafe { crate::kfree_rcu(link.cast()) };
}

/// Moves `value` into a box with the small head.
///
/// Context: any but NMI; never sleeps.
///
/// # Errors
/// [`OutOfMemory`] gives `value` back.
pub fn try_small_box<T>(value: T) -> Result<RcuBox<T>, OutOfMemory<T>> {
    const { assert!(align_of::<T>() <= arch::PAGE_SIZE, "the head must lie in the first page") };
    RcuBox::try_new_in(value, &MEMORY).map_err(OutOfMemory)
}
