//! Owners that are given to `kfree_rcu`: what is given up cannot be given up again, nor while somebody borrows it.
//!
//! ```no_run
//! use grange_kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu_owned};
//! use mm::AllocFlags;
//! use slab::KBox;
//!
//! struct Node { key: u64, rcu: RcuPtr }
//! has_rcu_ptr!(Node, rcu);
//!
//! # fn f() -> Option<()> {
//! let node = KBox::try_new(Node { key: 7, rcu: RcuPtr::new() }, AllocFlags::NOWAIT).ok()?;
//! kfree_rcu_owned(node);
//! # Some(()) }
//! ```
//!
//! No destructor runs after the grace period, only memory is freed. So a value that needs one is refused by the compiler; such
//! values are for [`rcu::RcuBox`] and [`rcu::Retired`], whose callback drops them.
//!
//! ```compile_fail,E0080
//! # use grange_kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu_owned};
//! # use slab::KBox;
//! struct Named { name: KBox<u64>, rcu: RcuPtr }
//! has_rcu_ptr!(Named, rcu);
//! fn f(named: KBox<Named>) {
//!     kfree_rcu_owned(named);
//! }
//! # fn main() { let _: fn(KBox<Named>) = f; }
//! ```
//!
//! Readers come by raw pointers or links that the owner handed out; the owner comes back into its box (`from_raw`) when it has
//! unlinked the object, and here gives it up. More promises, as files with the compiler's answers: tests/ui.

use core::mem::needs_drop;
use core::ptr::NonNull;

use slab::KBox;
use slab::typed::CacheBox;
use sync::MaySleep;

use crate::head::HasRcuPtr;
use crate::{kfree_rcu_mightsleep, kfree_rcu_object};

/// A box whose memory is of `kmalloc` or of a cache, and the only way to its value. Sealed.
pub trait Owner: sealed::GiveUp {}

impl<O: sealed::GiveUp> Owner for O {}

mod sealed {
    use core::ptr::NonNull;

    /// # Safety
    /// What `give_up` returns is an object that nobody else owns, at its start, or if the value has no size no object.
    #[doc(hidden)]
    pub unsafe trait GiveUp {
        /// What it owns.
        type Value;
        /// The value's place; it is the caller's now.
        fn give_up(self) -> NonNull<Self::Value>;
    }
}

// SAFETY: KBOX-1.
unsafe impl<T> sealed::GiveUp for KBox<T> {
    type Value = T;
    fn give_up(self) -> NonNull<T> {
        KBox::into_raw(self)
    }
}

// SAFETY: TYPED-1. The cache may be destroyed meanwhile: that waits for what was given up.
unsafe impl<T> sealed::GiveUp for CacheBox<'_, T> {
    type Value = T;
    fn give_up(self) -> NonNull<T> {
        CacheBox::into_raw(self)
    }
}

/// Refuses values with a destructor.
pub(crate) const fn assert_plain<T>() {
    assert!(!needs_drop::<T>(), "kfree_rcu runs no destructor: use rcu::RcuBox");
}

/// Frees the box's object after a grace period, by its head.
///
/// Context: task, softirq, hardirq; not NMI. Never sleeps, never fails.
#[cfg_attr(debug_assertions, track_caller)]
pub fn kfree_rcu_owned<O: Owner>(owner: O)
where
    O::Value: HasRcuPtr,
{
    const { assert_plain::<O::Value>() };
    // SAFETY: the owner was the only one, and is gone.
    unsafe { kfree_rcu_object(owner.give_up()) };
}

/// [`kfree_rcu_mightsleep`] for a box: without a head.
///
/// Context: task; may sleep.
#[cfg_attr(debug_assertions, track_caller)]
pub fn kfree_rcu_owned_mightsleep<O: Owner>(owner: O, cx: &mut MaySleep) {
    const { assert_plain::<O::Value>() };
    let object = owner.give_up();
    if size_of::<O::Value>() != 0 {
        // SAFETY: as in `kfree_rcu_owned`; a value that has a size lies in an object.
        unsafe { kfree_rcu_mightsleep(object.cast(), cx) };
    }
}
