#![no_std]
//! `kfree_rcu`: free this object once every reader that may still see it is gone.
//!
//! ```text
//! kfree_rcu ───────────► rcu_free sheaf of this CPU ──full──► call_rcu ──► barn ──► allocations
//!    │  no sheaf, remote node,                  (slab::rcu_free)
//!    │  large block, vmalloc
//!    └─────────────────► back end: pages of pointers, or what else is chosen
//! kfree_rcu_nolock ────► rcu_free sheaf, by try-lock
//!    │  busy
//!    └─────────────────► deferred list of this CPU ──end of a guard or an interrupt──► kfree_rcu
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`head`] | the 8-byte and the 16-byte head, and finding an object from either |
//! | [`boxed`] | boxes with the small head, for what readers follow |
//! | [`owned`] | boxes that are given up: nothing is freed twice, or while it is borrowed |
//! | [`bulk_call`] | many objects in one call |
//! | [`srcu`] | `kfree_srcu`: the same for the readers of a domain of SRCU |
//! | [`backend`] | what every back end does; the choice between them, and their counters |
//! | [`bulk`] | per-CPU pages of pointers (K-1 to K-9) |
//! | [`page_cache`] | spare pages for these, and what happens when memory is short |
//! | [`call`] | a callback for each object |
//! | [`pending`] | objects that wait by cookie, of any type, for RCU or an SRCU domain (S3) |
//! | [`barrier`] | waiting until everything given before is free |
//!
//! Which layer owns batching (S0-19): `slab` batches objects of its caches by the sheaf, because only it can reuse a whole
//! sheaf; everything else is batched here. Nothing is batched twice.
//!
//! # Contexts
//!
//! | | task | softirq | hardirq | NMI |
//! |---|---|---|---|---|
//! | [`kfree_rcu`] | yes | yes | yes | |
//! | [`kfree_rcu_nolock`] | yes | yes | yes | yes |
//! | [`kfree_rcu_mightsleep`], [`kvfree_rcu_barrier`] | yes | | | |
//!
//! None of them fails, loses an object, or waits for memory (S3-22, S3-23).
//!
//! # Lock order
//!
//! The back end's per-CPU lock is taken with interrupts off; inside it only page-allocator try-locks and the timer
//! base. Objects are freed with no lock held.
//!
//! Answers to `mm/slab_common.c` in Linux (7.x).

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod backend;
pub mod barrier;
pub mod boxed;
pub mod bulk;
pub mod bulk_call;
pub mod call;
pub mod head;
pub mod owned;
pub mod page_cache;
pub mod pending;
pub mod srcu;

mod bnode;
#[cfg(test)]
mod bnode_tests;
#[cfg(test)]
mod front_tests;
#[cfg(test)]
mod test_machine;

use core::ptr::NonNull;

use slab::Spin;
use slab::debug::may_wait;
use sync::{CallbackHead, LlistNode, MaySleep, bug};

pub use backend::{BackEnd, Head};
pub use barrier::{kvfree_rcu_barrier, kvfree_rcu_barrier_on_cache};
pub use boxed::try_small_box;
pub use bulk_call::{kfree_rcu_bulk, kfree_rcu_bulk_mightsleep};
pub use head::{HasRcuPtr, MAX_OFFSET, RcuPtr};
pub use owned::{kfree_rcu_owned, kfree_rcu_owned_mightsleep};
pub use srcu::{kfree_srcu, kfree_srcu_mightsleep, kfree_srcu_owned};

/// Brings the storey up.
///
/// Context: boot CPU, once, after `slab::init` and `rcu::init`. Objects given before this wait without a timer (S2-7).
pub fn init(cx: &mut MaySleep) {
    slab::deferred::RCU_OBJECT.set(undefer);
    slab::flush::BEFORE_DESTROY.set(barrier::kvfree_rcu_barrier_on_cache);
    slab::rcu_bound::init();
    backend::init(cx);
    mm::shrinker::register(&pending::SHRINKER);
}

/// Frees the object that `head` lies in after a grace period.
///
/// Context: task, softirq, hardirq; not NMI. Never sleeps, never fails.
///
/// # Safety
/// `head` lies less than [`MAX_OFFSET`] bytes into an object of `kmalloc`, a cache or `vmalloc`; no reader can find the
/// object any more, and the caller gives it up.
///
/// # Panics
/// If `head` lies in no such object.
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_rcu(head: NonNull<RcuPtr>) {
    // Builds with assertions alone ask: the others do without the object's start here.
    if cfg!(debug_assertions) && !may_wait(head::object_of(head).unwrap_or_else(|| bad_head(head))) {
        return;
    }
    if backend::sheaves_first() {
        // SAFETY: the caller gives the object up.
        unsafe { slab::rcu_free::free_or(head.cast(), Spin::May, |head| to_back_end(head.cast())) };
    } else {
        to_back_end(head);
    }
}

/// What no sheaf takes.
#[cold]
#[inline(never)]
fn to_back_end(head: NonNull<RcuPtr>) {
    let object = head::object_of(head).unwrap_or_else(|| bad_head(head));
    backend::enqueue(object, Some(Head::Link(head)));
}

/// [`kfree_rcu`] for an object that was asked whether it may.
///
/// # Safety
/// As for [`kfree_rcu`].
unsafe fn accepted(object: NonNull<u8>, head: Head) {
    // SAFETY: the caller gives the object up.
    if backend::sheaves_first() && unsafe { slab::rcu_free::free(object, Spin::May) } {
        return;
    }
    backend::enqueue(object, Some(head));
}

/// [`kfree_rcu`] for a typed object, with its own head of either kind.
///
/// Context: as for [`kfree_rcu`].
///
/// # Safety
/// `object` came from `kmalloc`, a cache or `vmalloc`; no reader can find it any more, and the caller gives it up.
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_rcu_object<T: HasRcuPtr>(object: NonNull<T>) {
    // SAFETY: passed on from the caller.
    match unsafe { head::head_of(object) } {
        // SAFETY: as above.
        Head::Link(head) => unsafe { kfree_rcu(head) },
        // SAFETY: as above.
        Head::Callback(head) => unsafe { kfree_rcu_callback(head) },
    }
}

/// [`kfree_rcu`] by a head of 16 bytes. Under the back end of callbacks the object needs no memory to be remembered by.
///
/// Context: as for [`kfree_rcu`].
///
/// # Safety
/// As for [`kfree_rcu`].
///
/// # Panics
/// As for [`kfree_rcu`].
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_rcu_callback(head: NonNull<CallbackHead>) {
    let link = RcuPtr::in_callback(head);
    let object = head::object_of(link).unwrap_or_else(|| bad_head(link));
    if may_wait(object) {
        // SAFETY: the caller gives the object up.
        unsafe { accepted(object, Head::Callback(head)) };
    }
}

/// Frees the object that `head` lies in after a grace period, from any context.
///
/// Context: any, NMI included, also one that interrupted this function or the allocator. It only tries locks and
/// allocates nothing that could wait. Where the quick way is closed, the object goes to this CPU's deferred list through
/// its own head, so it cannot fail (S1-9).
///
/// # Safety
/// As for [`kfree_rcu`].
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_rcu_nolock(head: NonNull<RcuPtr>) {
    if let Some(object) = slab::object_of(head.cast()) {
        if !may_wait(object) {
            return;
        }
        // SAFETY: the caller gives the object up.
        if backend::sheaves_first() && unsafe { slab::rcu_free::free(object, Spin::Never) } {
            return;
        }
    }
    if bug!(
        "kfree_rcu.not_deferred",
        "kfree_rcu_nolock forgets an object that its sheaf cannot take",
        "slab_nolock.stepped*path"
    ) {
        return;
    }
    // SAFETY: given up by the caller, and not taken by the sheaf.
    unsafe { slab::deferred::defer_rcu_object(RcuPtr::node(head)) };
}

/// Frees an object without a head after a grace period. Waits for one itself if there is no memory to remember the object.
///
/// Context: task; may sleep.
///
/// # Safety
/// `object` came from `kmalloc`, a cache or `vmalloc`; no reader can find it any more, and the caller gives it up.
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_rcu_mightsleep(object: NonNull<u8>, cx: &mut MaySleep) {
    cx.assert_may_sleep();
    if !may_wait(object) {
        return;
    }
    // SAFETY: the caller gives the object up.
    if backend::sheaves_first() && unsafe { slab::rcu_free::free(object, Spin::May) } {
        return;
    }
    if backend::enqueue_headless(object, cx) {
        return;
    }
    rcu::synchronize_rcu(cx);
    free_now(object);
}

/// A deferred object, which was accepted, comes back in a context that may take locks.
///
/// # Safety
/// As for [`kfree_rcu`].
unsafe fn undefer(node: NonNull<LlistNode>) {
    let head = RcuPtr::from_node(node);
    // SAFETY: the caller's contract; the node is the object's head.
    unsafe { accepted(head::object_of(head).unwrap_or_else(|| bad_head(head)), Head::Link(head)) };
}

/// Frees an object whose grace period is over.
fn free_now(object: NonNull<u8>) {
    slab::debug::wait_over(object);
    if mm::is_vmalloc(object.as_ptr()) {
        mm::vfree_deferred(object);
    } else {
        // SAFETY: the object was given up, and all readers are gone.
        unsafe { slab::kfree(object) };
    }
}

#[cold]
fn bad_head(head: NonNull<RcuPtr>) -> ! {
    panic!("kfree_rcu: {head:p} lies in no object of kmalloc, a cache or vmalloc")
}
