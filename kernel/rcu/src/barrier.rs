//! `rcu_barrier`: wait until all callbacks that were queued before have run.
//!
//! Each CPU with callbacks gets one more, behind all of its present ones ([`CbList::entrain`](crate::cblist::CbList::entrain));
//! the last of these to run ends the wait. A CPU without callbacks, be it idle or busy, is not disturbed.
//!
//! An offloaded CPU is not disturbed either: its callbacks are elsewhere, and whoever asks puts one more there
//! ([`nocb::entrain`]). A CPU that is being deoffloaded may have callbacks in both places, so it has two barrier callbacks.
//!
//! Callbacks of a CPU that goes offline or is switched meanwhile move to another list, perhaps behind that one's barrier callback or
//! past the scan. So the scan is repeated if any have moved or are between two CPUs, or if it met a CPU with callbacks
//! that could not be asked, because it is on its way out. A repeated scan waits for a superset.
//!
//! Answers to Linux kernel/rcu/tree.c (`rcu_barrier`); rows.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::{CpuId, cpu};
use sched::{Completion, WaitQueue};
use sync::callback::CallbackHead;
use sync::{ATOMIC, IrqGuard, MaySleep, smp};

use crate::cpu::{own, shared};
use crate::seq::SeqCounter;
use crate::{call, nocb};

/// Somebody has the turn: one barrier at a time, because each CPU has one barrier callback.
static TURN: AtomicBool = AtomicBool::new(false);
/// Where the others wait.
static TURNS: WaitQueue = WaitQueue::new();
/// Barriers begun and ended, so that one that waited through a whole one need not run its own.
static SEQ: SeqCounter = SeqCounter::new();
/// Barrier callbacks under way, and one for the scan itself.
static MISSING: AtomicUsize = AtomicUsize::new(0);
/// Completed when `MISSING` gets to zero.
static ALL_RAN: Completion = Completion::new();
/// Barriers so far.
pub(crate) static COUNT: AtomicU64 = AtomicU64::new(0);

arch::per_cpu! {
    /// This CPU's barrier callback; on a list only during a barrier.
    static HEAD: CallbackHead = CallbackHead::new();
}

arch::per_cpu! {
    /// The same, for its callbacks that run elsewhere.
    static NOCB_HEAD: CallbackHead = CallbackHead::new();
}

/// Waits until every callback that `call_rcu` queued before, on any CPU, has run.
///
/// What the callbacks did is visible on return. It does not wait for a grace period if there is no callback, nor for what
/// others have yet to hand to `call_rcu`: the back end of `kfree_rcu` and sheaves that are not full have a barrier of
/// their own.
///
/// Context: task, sleeps. Not from a callback.
pub fn rcu_barrier(cx: &mut MaySleep) {
    cx.assert_may_sleep();
    // Whoever has the turn may wait for callbacks between two CPUs. If this is the thread that took the CPU offline, in a
    // notifier that comes before this storey's, nobody else would adopt them.
    call::adopt();
    let target = SEQ.snap();
    let mut served = false;
    TURNS.wait_until(cx, || {
        served = SEQ.done(target);
        // Acquire: pairs with the Release below.
        served || !TURN.swap(true, Ordering::Acquire)
    });
    if served {
        return;
    }
    SEQ.start();
    sync::trace!("rcu.barrier_start", number = target.raw());
    loop {
        let (before, _) = call::moves();
        let asked_all = scan_and_wait(cx);
        let (after, between) = call::moves();
        if asked_all && before == after && between == 0 {
            break;
        }
        call::adopt();
        sched::yield_now(cx);
    }
    SEQ.end();
    sync::trace!("rcu.barrier_end", number = target.raw());
    COUNT.fetch_add(1, Ordering::Relaxed);
    // Release: pairs with the Acquire above.
    TURN.store(false, Ordering::Release);
    TURNS.wake_all();
}

/// False if a CPU with callbacks could not be asked.
fn scan_and_wait(cx: &mut MaySleep) -> bool {
    ALL_RAN.reset();
    MISSING.store(1, Ordering::Relaxed);
    let mut asked_all = true;
    for cpu in cpu::present().iter() {
        // Acquire: pairs with the Release in `publish_len`: zero means that what ran is seen. A `call_rcu` that comes
        // before this barrier in any order that the callers know of is counted.
        if shared(cpu).cb_len.load(Ordering::Acquire) != 0 {
            asked_all &= ask(cpu);
        }
        if nocb::waiting_on(cpu) != 0 {
            ask_elsewhere(cpu);
        }
    }
    one_less();
    ALL_RAN.wait(cx);
    asked_all
}

/// Has `cpu` entrain its barrier callback; false if it is on its way offline.
fn ask(cpu: CpuId) -> bool {
    smp::run_on(cpu, entrain).is_some()
}

/// Puts a barrier callback behind those of `cpu` that run elsewhere.
fn ask_elsewhere(cpu: CpuId) {
    let head = NOCB_HEAD.ptr_on(cpu);
    MISSING.fetch_add(1, Ordering::Relaxed);
    // SAFETY: as in `entrain`: that CPU's head, on no list, and only the barrier uses it.
    unsafe { (*head).func = Some(ran) };
    // SAFETY: as above.
    if !unsafe { nocb::entrain(cpu, head) } {
        MISSING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Context: hardirq, or the caller's own CPU with interrupts off.
fn entrain() {
    let irqs = IrqGuard::new(ATOMIC);
    let head = HEAD.this_ptr();
    MISSING.fetch_add(1, Ordering::Relaxed);
    // SAFETY: this CPU's head, in place for ever; on no list, because the last barrier's have all run (TURN) and a scan
    // asks each CPU once.
    unsafe { (*head).func = Some(ran) };
    // SAFETY: as above.
    let entrained = unsafe { own(&irqs).cbs.borrow_mut().entrain(head) };
    sync::trace!("rcu.barrier_cpu", entrained = entrained);
    if !entrained {
        // All callbacks have run since `cb_len` was read. The scan's own count keeps this from being the last.
        MISSING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A barrier callback's function. Context: softirq.
///
/// # Safety
/// As for all callbacks; it leaves the head alone.
unsafe fn ran(_: *mut CallbackHead) {
    one_less();
}

fn one_less() {
    // AcqRel: the last one to get here has seen what the callbacks before all others wrote, and hands it on through the
    // completion's lock.
    if MISSING.fetch_sub(1, Ordering::AcqRel) == 1 {
        ALL_RAN.complete();
    }
}
