//! Many objects in one call.
//!
//! What a tree gives up when it is torn down, or a batch of packets, is mostly of one cache. Then this is one lock and a store an
//! object, where a call for each is a lock each.
//!
//! ```no_run
//! use core::ptr::NonNull;
//! use grange_kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu_bulk};
//!
//! struct Leaf { keys: [u64; 7], rcu: RcuPtr }
//! has_rcu_ptr!(Leaf, rcu);
//!
//! fn tear_down(unlinked: &[NonNull<Leaf>]) {
//!     // SAFETY: leaves of a cache that no link points to any more, each named once.
//!     unsafe { kfree_rcu_bulk(unlinked) };
//! }
//! ```

use core::ptr::NonNull;

use slab::debug::may_wait;
use slab::rcu_free_many::free_many;
use sync::MaySleep;

use crate::head::{HasRcuPtr, head_of};
use crate::{backend, free_now};

/// [`kfree_rcu_object`](crate::kfree_rcu_object) for each of `objects`.
///
/// Context: task, softirq, hardirq; not NMI. Never sleeps, never fails.
///
/// # Safety
/// As for [`kfree_rcu_object`](crate::kfree_rcu_object); each stands there once.
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_rcu_bulk<T: HasRcuPtr>(objects: &[NonNull<T>]) {
    // SAFETY: as many pointers of the same size and validity.
    let addresses = unsafe { core::slice::from_raw_parts(objects.as_ptr().cast(), objects.len()) };
    let by_head = |object: NonNull<u8>| {
        // SAFETY: one of `objects`.
        let head = unsafe { head_of(object.cast::<T>()) };
        backend::enqueue(object, Some(head));
    };
    // SAFETY: the caller gives the objects up.
    unsafe { give(addresses, by_head) };
}

/// [`kfree_rcu_mightsleep`](crate::kfree_rcu_mightsleep) for each of `objects`, which need no heads. Those that there is no memory
/// to remember wait for one grace period together.
///
/// Context: task; may sleep.
///
/// # Safety
/// As for [`kfree_rcu_mightsleep`](crate::kfree_rcu_mightsleep); each stands there once.
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_rcu_bulk_mightsleep(objects: &[NonNull<u8>], cx: &mut MaySleep) {
    cx.assert_may_sleep();
    let mut has_waited = false;
    let by_address = |object| {
        if backend::enqueue(object, None) {
            return;
        }
        // All were given up before the call, so one wait does for those that follow, too.
        if !core::mem::replace(&mut has_waited, true) {
            rcu::synchronize_rcu(cx);
        }
        free_now(object);
    };
    // SAFETY: the caller gives the objects up.
    unsafe { give(objects, by_address) };
}

/// Into sheaves, or to `otherwise`.
///
/// # Safety
/// As for [`free_many`].
#[cfg_attr(debug_assertions, track_caller)]
unsafe fn give(mut objects: &[NonNull<u8>], mut otherwise: impl FnMut(NonNull<u8>)) {
    while !objects.is_empty() {
        let accepted = if cfg!(debug_assertions) { accepted(objects) } else { objects.len() };
        let (these, behind) = objects.split_at(accepted);
        if backend::sheaves_first() {
            // SAFETY: passed on from the caller.
            unsafe { free_many(these, &mut otherwise) };
        } else {
            these.iter().for_each(|&object| otherwise(object));
        }
        // The first of them was refused, and reported.
        objects = behind.get(1..).unwrap_or_default();
    }
}

/// How many of `objects`, in a row, may be given up.
#[cfg_attr(debug_assertions, track_caller)]
fn accepted(objects: &[NonNull<u8>]) -> usize {
    for (index, &object) in objects.iter().enumerate() {
        if !may_wait(object) {
            return index;
        }
    }
    objects.len()
}
