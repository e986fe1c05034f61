//! `kfree_srcu`: free this object once every reader of its domain that may still see it is gone.
//!
//! An object's head has no room to name a domain, and a cache's objects may be read in several (S3-32). So the caller names a
//! *tracker*, which knows its domain, and keeps what waits for it:
//!
//! ```no_run
//! use grange_kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_srcu_owned, srcu::SrcuTracker};
//! use rcu::srcu::Normal;
//! use slab::KBox;
//!
//! rcu::srcu_domain! { static CONFIG: Normal; }
//!
//! struct Setting { value: u64, rcu: RcuPtr }
//! has_rcu_ptr!(Setting, rcu);
//!
//! fn change(tracker: &SrcuTracker<Normal>, old: KBox<Setting>) {
//!     kfree_srcu_owned(tracker, old);
//! }
//!
//! fn thread(cx: &mut sync::MaySleep) -> Result<(), grange_kfree_rcu::pending::NotMade> {
//!     let tracker = SrcuTracker::new("config", &CONFIG)?;
//!     // ... changes ...
//!     tracker.exit(cx);               // waits for all that were given up
//!     Ok(())
//! }
//! ```
//!
//! What the other calls of this storey do for RCU, sheaves and the chosen back end, is not done here: sheaves are submitted to
//! RCU, and would have to be kept for each domain. [`Pending`] batches by the domain's cookies. [`Pending::flush`] is the
//! barrier; [`kvfree_rcu_barrier`](crate::kvfree_rcu_barrier) does not wait for trackers, and a cache is destroyed after
//! the trackers that its objects wait in have been flushed.
//!
//! The same calls take a tracker of RCU's own ([`TreeRcu`](crate::pending::TreeRcu)): a user who wants what waits for *her*
//! apart, to be flushed or counted by itself, has that.
//!
//! Linux has no `kfree_srcu`; rows S3-32, G-7.

use core::ptr::NonNull;

use rcu::srcu::SrcuDomain;
use slab::debug::may_wait;
use sync::MaySleep;

use crate::head::{HasRcuPtr, RcuPtr, object_of};
use crate::owned::{Owner, assert_plain};
use crate::pending::{GivenUp, GracePeriods, Pending};

/// What waits for the readers of a domain of flavour `F`.
pub type SrcuTracker<F> = Pending<GivenUp, &'static SrcuDomain<F>>;

/// Frees the object that `head` lies in after a grace period of the tracker's domain.
///
/// Context: task, softirq, hardirq; not NMI. Never sleeps, never fails.
///
/// # Safety
/// `head` lies less than [`MAX_OFFSET`](crate::MAX_OFFSET) bytes into an object of `kmalloc`, a cache or `vmalloc`; no reader of
/// the domain can find the object any more, no other reader knows it, and the caller gives it up.
///
/// # Panics
/// If `head` lies in no such object.
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_srcu<D: GracePeriods>(tracker: &Pending<GivenUp, D>, head: NonNull<RcuPtr>) {
    let object = object_of(head).unwrap_or_else(|| crate::bad_head(head));
    if !may_wait(object) {
        return;
    }
    // SAFETY: the caller gives the object up, and the head lies in it.
    let given_up = unsafe { GivenUp::new(object, Some(head)) };
    tracker.enqueue(given_up).expect("an object with a head is taken");
}

/// [`kfree_srcu`] for an object without a head. Waits for a grace period itself if there is no memory to remember the object.
///
/// Context: task; may sleep; not in a section of the domain.
///
/// # Safety
/// `object` is the start of an object of `kmalloc`, a cache or `vmalloc`; the rest as for [`kfree_srcu`].
#[cfg_attr(debug_assertions, track_caller)]
pub unsafe fn kfree_srcu_mightsleep<D: GracePeriods>(
    tracker: &Pending<GivenUp, D>,
    object: NonNull<u8>,
    cx: &mut MaySleep,
) {
    cx.assert_may_sleep();
    if !may_wait(object) {
        return;
    }
    // SAFETY: the caller gives the object up.
    tracker.enqueue_mightsleep(unsafe { GivenUp::new(object, None) }, cx);
}

/// [`kfree_srcu`] for a box; see [`owned`](crate::owned).
///
/// Context: as for [`kfree_srcu`].
#[cfg_attr(debug_assertions, track_caller)]
pub fn kfree_srcu_owned<O: Owner, D: GracePeriods>(tracker: &Pending<GivenUp, D>, owner: O)
where
    O::Value: HasRcuPtr,
{
    const { assert_plain::<O::Value>() };
    // SAFETY: the owner was the only one, and is gone; the trait says that a head lies at this offset.
    unsafe { kfree_srcu(tracker, owner.give_up().byte_add(O::Value::OFFSET).cast()) };
}
