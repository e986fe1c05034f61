//! `srcu_barrier`: wait until all callbacks of a domain that were queued before have run.
//!
//! Each CPU's list that is not empty gets one more callback, behind all of its present ones; the last of them to be accounted
//! for ends the wait. Accounted for, not run: so that whoever drops the domain next finds no callback on its way.
//!
//! Lists do not move when CPUs go offline, so one scan is enough. Threads that come while a barrier is under way wait for the
//! next one together.
//!
//! Row R-21. Answers to Linux kernel/rcu/srcutree.c (`srcu_barrier`).

use core::mem::offset_of;

use sched::{Completion, Mutex};
use sync::atomic::{AtomicUsize, Ordering};
use sync::callback::CallbackHead;
use sync::{LockClass, MaySleep};

use super::cpu::CpuData;
use super::domain::{Core, SrcuDomain};
use super::flavour::Flavour;
use crate::seq::SeqCounter;

/// Held while a barrier is under way: one at a time, because each CPU has one callback for it. Inside it: `srcu.list`.
static TURN_CLASS: LockClass = LockClass::new("srcu.barrier");

/// What a domain keeps for barriers.
pub(crate) struct Barrier {
    turn: Mutex<()>,
    /// Barriers begun and ended; written by who has the turn.
    seq: SeqCounter,
    /// Callbacks under way, and one for the scan.
    missing: AtomicUsize,
    /// Completed when `missing` gets to zero.
    all_ran: Completion,
}

impl Barrier {
    pub(crate) const fn new() -> Barrier {
        Barrier {
            turn: Mutex::new((), &TURN_CLASS),
            seq: SeqCounter::new(),
            missing: AtomicUsize::new(0),
            all_ran: Completion::new(),
        }
    }

    /// One callback is accounted for, or the scan is over.
    pub(super) fn one_less(&self) {
        // AcqRel: the last one to get here has seen what the callbacks before all others wrote, and hands it on through the
        // completion's lock.
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all_ran.complete();
        }
    }
}

/// Waits until every callback that `call_srcu` queued for `domain` before, on any CPU, has run.
///
/// What the callbacks did is visible on return. It does not wait for a grace period if there is no callback.
///
/// Context: task, sleeps. Not from a callback, nor in a section of `domain`.
pub fn srcu_barrier<F: Flavour>(domain: &SrcuDomain<F>, cx: &mut MaySleep) {
    domain.core().barrier(cx);
}

impl Core {
    /// [`srcu_barrier`] for who does not care for the flavour.
    pub fn barrier(&self, cx: &mut MaySleep) {
        cx.assert_may_sleep();
        let barrier = &self.barrier;
        let target = barrier.seq.snap();
        let _turn = barrier.turn.lock(cx);
        if barrier.seq.done(target) {
            return;
        }
        barrier.seq.start();
        barrier.missing.store(1, Ordering::Relaxed);
        for (_, data) in self.cpus() {
            entrain(self, data);
        }
        barrier.one_less();
        barrier.all_ran.wait(cx);
        barrier.seq.end();
    }
}

/// Puts the barrier's callback of one CPU behind all that are there. The caller has the turn.
fn entrain(core: &Core, data: &CpuData) {
    let head = data.barrier_head.get();
    let mut list = data.lock();
    // SAFETY: it is on no list, for the last barrier's have all run, and ours by the turn.
    unsafe { (*head).func = Some(ran) };
    core.barrier.missing.fetch_add(1, Ordering::Relaxed);
    // SAFETY: as above; it stays in place as long as the domain does.
    if unsafe { list.cbs.entrain(head) } {
        data.publish_len(&list);
    } else {
        // The scan's own count keeps this from being the last.
        core.barrier.missing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The barrier's callback: notes that it was called, for who called it to report when it has accounted for it.
///
/// # Safety
/// `head` is the `barrier_head` of a `CpuData`.
unsafe fn ran(head: *mut CallbackHead) {
    // SAFETY: by the caller.
    let data = unsafe { &*head.byte_sub(offset_of!(CpuData, barrier_head)).cast::<CpuData>() };
    data.barrier_ran.store(true, Ordering::Relaxed);
}
