//! What a domain keeps on each CPU: the readers' counters, and the callbacks that were queued there.
//!
//! The counters are written by whatever runs on their CPU, one instruction an increment, and read by grace periods from
//! afar. The list is under a lock, because grace periods, barriers and workers on other CPUs come to it as well; so the
//! callbacks of a CPU that goes offline stay where they are, and need nobody to move them.
//!
//! Answers to Linux include/linux/srcutree.h (`struct srcu_data`); rows.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::AtomicBool;

use sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use sync::callback::CallbackHead;
use sync::{ATOMIC, LockClass, SpinIrqGuard, SpinLock};

use super::callbacks;
use super::domain::Core;
use super::flood::Flood;
use crate::cblist::CbList;
use crate::seq::Seq;

/// Protects [`List`] of one CPU in one domain. Nothing is taken inside it; interrupts are off.
static LIST_CLASS: LockClass = LockClass::new("srcu.list");

/// The counters of one index. The order is what `flavour` counts by.
#[repr(C)]
pub(crate) struct Pair {
    pub(crate) locks: AtomicU64,
    pub(crate) unlocks: AtomicU64,
}

/// Bytes from one pair to the next.
pub(crate) const PAIR: usize = size_of::<Pair>();

/// One CPU's part of a domain.
#[repr(C, align(64))]
pub struct CpuData {
    /// First, so that a pair's place is the domain's place, or [`PAIR`] bytes behind it.
    pub(crate) pairs: [Pair; 2],
    list: SpinLock<List>,
    /// Callbacks here that have not run, as [`CbList::len`]. Written under the lock.
    len: AtomicUsize,
    /// Callbacks that have run.
    pub(crate) ran: AtomicU64,
    /// Times that callbacks here were a flood.
    pub(crate) floods: AtomicU64,
    /// The barrier's callback: on the list while a barrier is under way, else of who has the barrier's turn.
    pub(crate) barrier_head: UnsafeCell<CallbackHead>,
    /// It has been called, and is to be reported once it is accounted for. Of `work`.
    pub(crate) barrier_ran: AtomicBool,
    /// Runs what is done. Queued by grace periods; only while `domain` says where it belongs.
    pub(crate) work: sched::WorkItem,
    /// The domain. Written before `work` is queued first, always with the same value.
    pub(crate) domain: AtomicPtr<Core>,
}

/// What the lock protects.
pub(crate) struct List {
    pub(crate) cbs: CbList,
    /// End of the furthest grace period that was asked for here.
    pub(crate) asked: Seq,
    pub(crate) flood: Flood,
}

// SAFETY: the list, the only part that is not atomic or `Sync`, owns its callbacks, which may run on any CPU (`call_srcu`); it
// is behind the lock.
unsafe impl Send for List {}

impl CpuData {
    /// Without readers and callbacks.
    #[allow(clippy::new_without_default, reason = "made by the thousand nowhere; a constant is what statics need")]
    pub const fn new() -> CpuData {
        let list = List { cbs: CbList::new(), asked: Seq::INITIAL, flood: Flood::new() };
        CpuData {
            pairs: [const { Pair { locks: AtomicU64::new(0), unlocks: AtomicU64::new(0) } }; 2],
            list: SpinLock::new(list, &LIST_CLASS),
            len: AtomicUsize::new(0),
            ran: AtomicU64::new(0),
            floods: AtomicU64::new(0),
            barrier_head: UnsafeCell::new(CallbackHead::new()),
            barrier_ran: AtomicBool::new(false),
            work: sched::WorkItem::new(callbacks::run),
            domain: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Takes the list's lock. Context: any but NMI.
    pub(crate) fn lock(&self) -> SpinIrqGuard<'_, List> {
        self.list.lock_irqsave(ATOMIC)
    }

    /// Callbacks here that have not run; a hint without the lock.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Says how long the list is now. Its lock is held.
    pub(crate) fn publish_len(&self, list: &List) {
        self.len.store(list.cbs.len(), Ordering::Relaxed);
    }
}
