//! What becomes of a sheaf when its grace period is over.
//!
//! | sheaf | goes |
//! |---|---|
//! | full | to the barn it was detached for, with all its objects (S0-8, S0-10) |
//! | full, and the barn has too many | its objects to their slabs; then it is an empty one for the barn, or is freed |
//! | submitted before it was full | its objects to their slabs, and it is freed (S0-11) |
//! | one of the last two, of more than [`MOST`] objects | to a worker, which does the same |
//!
//! # Invariants
//! - **RETURN-1** A callback gives back at most [`MOST`] objects one by one, whatever the sheaf's capacity: those behind it do
//!   not wait for long, and the stack stays flat (S0-21, S5-10).
//! - **RETURN-2** What the worker has is on [`LARGE`] or in its hands: [`wait`] is over only when neither has a sheaf
//!   that was submitted before.
//!
//! Context of the callbacks: softirq, or wherever RCU runs callbacks; they spin, and neither allocate nor sleep.
//!
//! Linux: `rcu_free_sheaf`, `rcu_free_sheaf_nobarn` in `mm/slub.c` (7.x), which give back whatever a sheaf holds.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sched::WorkItem;
use sync::{CallbackHead, LlistHead, MaySleep, bug, hook};

use crate::sheaf::SheafRef;
use crate::stats::Stat;
use crate::{Spin, exchange, rcu_bound, waiting};

/// Objects that a callback gives back to their slabs: as many as the sheaves have unless they are tuned.
pub const MOST: usize = 64;

/// Sheaves for the worker.
static LARGE: LlistHead = LlistHead::new();
static WORKER: WorkItem = WorkItem::new(work);
/// How many it got.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Sheaves that callbacks have left to the worker.
///
/// Context: any.
pub fn left_to_worker() -> u64 {
    LEFT.load(Relaxed)
}

/// After the grace period of a full sheaf (S0-10).
///
/// # Safety
/// `head` is that of a sheaf that was handed to RCU with this function.
pub(crate) unsafe fn to_barn(head: *mut CallbackHead) {
    // SAFETY: the caller's contract.
    let sheaf = unsafe { SheafRef::from_rcu_head(head) };
    let cache = sheaf.cache();
    let Some(back) = waiting::returned(sheaf) else { return };
    sync::trace!(
        "slab.rcu_done",
        cache = sync::trace::text(cache.name()),
        sheaf = sheaf.as_ptr().addr(),
        objects = sheaf.size()
    );
    let barn = cache.node(sheaf.node()).map(|node| &node.barn);
    let refused = match barn.map(|barn| barn.take_back(sheaf, back)) {
        Some(Ok(over)) => {
            cache.count(Stat::BarnPut);
            if over {
                rcu_bound::watch();
            }
            return;
        }
        Some(Err(sheaf)) => sheaf,
        None => sheaf,
    };
    cache.count(Stat::BarnPutFail);
    if is_large(refused) {
        return leave_to_worker(refused);
    }
    cache.flush(refused);
    match barn.filter(|barn| barn.has_room_for_empty()) {
        Some(barn) => exchange::put_empty(barn, refused),
        None => {
            refused.free(Spin::May);
        }
    }
}

/// After the grace period of a sheaf that was submitted before it was full (RCUF-3).
///
/// # Safety
/// As for [`to_barn`].
pub(crate) unsafe fn to_slabs(head: *mut CallbackHead) {
    // SAFETY: the caller's contract.
    let sheaf = unsafe { SheafRef::from_rcu_head(head) };
    if waiting::returned(sheaf).is_none() {
        return;
    }
    if is_large(sheaf) {
        return leave_to_worker(sheaf);
    }
    sheaf.cache().flush_and_free(sheaf);
}

fn is_large(sheaf: SheafRef) -> bool {
    sheaf.size() > MOST
        && !bug!("rcu_return.unbounded", "a callback gives back whatever a sheaf holds", "rcu_sheaf.*large*")
}

fn leave_to_worker(sheaf: SheafRef) {
    LEFT.fetch_add(1, Relaxed);
    // SAFETY: the sheaf is ours, and the list's from here on.
    unsafe { LARGE.add(sheaf.llist_node().as_ptr()) };
    hook!("slab.rcu_return.large");
    // After the push: a worker that takes the list before does not see it, and is queued again (RETURN-2).
    sched::queue_work(&WORKER);
}

fn work(_: &WorkItem, cx: &mut MaySleep) {
    for node in LARGE.take_all() {
        let node = NonNull::new(node).expect("a chain yields nodes");
        // SAFETY: pushed by `leave_to_worker`.
        let sheaf = unsafe { SheafRef::from_llist_node(node) };
        sheaf.cache().flush_and_free(sheaf);
        sched::cond_resched(cx);
    }
}

/// Waits until every sheaf that was submitted before has come back, and its objects are free.
///
/// Context: task; sleeps.
pub fn wait(cx: &mut MaySleep) {
    rcu::rcu_barrier(cx);
    if bug!("rcu_return.not_waited", "a barrier does not wait for the worker", "rcu_sheaf.*large*") {
        return;
    }
    WORKER.flush(cx);
}
