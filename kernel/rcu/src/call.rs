//! `call_rcu`: have a function called after a grace period.
//!
//! The life of a callback:
//!
//! 1. [`call_rcu`] puts it on its CPU's list, untagged. With interrupts off that is all it does: no node lock, no wake-up;
//!    it never allocates. So it may be called under a run-queue or a sheaf lock.
//! 2. The tick sees untagged callbacks and raises the softirq. An idle CPU with callbacks keeps its tick.
//! 3. [`advance_and_request`] tags them with the grace periods that they need and asks for the normal one.
//! 4. A later tick sees that a tag is over; the softirq moves the callbacks to `done` and [`invoke`] calls them, softirqs off.
//!
//! # How a flood is met (R-6, S3-29, S3-36)
//!
//! All of it is here, and visible in [`crate::stats`]:
//! - one softirq run calls [`config::BLIMIT`] callbacks, or a 128th of those waiting if that is more, so that a backlog
//!   shrinks by a share each run; and never for longer than [`config::BATCH_MAX_NS`];
//! - above [`config::QHIMARK`] callbacks on a CPU the limit goes up to [`config::BLIMIT_HURRY`] until fewer than
//!   [`config::QLOWMARK`] wait, and the grace-period thread is told to look at the CPUs now instead of at the next tick,
//!   once for every QHIMARK more;
//! - what a softirq run leaves over is raised again, which the softirq's own budget moves to a thread.
//!
//! Answers to Linux kernel/rcu/tree.c (`call_rcu`, `rcu_do_batch`); rows, S3-24.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::clock;
use sched::softirq::{self, Softirq};
use sync::callback::{CallbackFn, CallbackHead};
use sync::{ATOMIC, IrqGuard, LockClass, SpinLock, context};

use crate::cblist::{CbList, Tag};
use crate::config;
use crate::cpu::{Own, own, shared_here};
use crate::{eqs, exp, gp};

/// Calls `func(head)` after a grace period: when every reader that is in its section now has left it.
///
/// `func` runs once, on some CPU, in softirq context, and may free the memory around `head` or queue it again.
///
/// Context: any but NMI, interrupts on or off, under any lock, before threads exist. Wait-free: an interrupts-off section
/// and a few stores; with interrupts on it may wake the grace-period thread when callbacks flood. Never allocates.
///
/// # Safety
/// `head` is valid, and nobody else uses it, until `func` is called with it; `func` may be called with it on any CPU.
#[inline]
pub unsafe fn call_rcu(head: *mut CallbackHead, func: CallbackFn) {
    debug_assert!(!context::in_nmi(), "RCU: call_rcu in NMI context");
    debug_assert!(!head.is_null() && head.is_aligned(), "RCU: no such callback {head:?}");
    debug_assert!(eqs::watching_here(), "RCU: call_rcu on a CPU that has left its callbacks to others");
    let irqs_were_on = arch::irq::enabled();
    let hurry = {
        let irqs = IrqGuard::new(ATOMIC);
        // SAFETY: `head` is valid and ours by the caller.
        unsafe { (*head).func = Some(func) };
        let me = own(&irqs);
        let mut cbs = me.cbs.borrow_mut();
        // SAFETY: passed on from the caller; it leaves the list in `invoke`, before its function is called.
        unsafe { cbs.enqueue(head) };
        let len = cbs.len();
        publish_len(len);
        if len == 1 && !sched::tick::runs_here() {
            // From an interrupt that came in idle: the idle loop must look again whether its tick may stay off.
            context::set_need_resched();
        }
        len >= me.hurry_at.get() && irqs_were_on
    };
    if hurry {
        flood();
    }
}

/// Makes the length visible to barriers on other CPUs.
fn publish_len(len: usize) {
    // Release: pairs with the Acquire in `barrier`; a barrier that sees zero sees what the callbacks wrote.
    shared_here().cb_len.store(len, Ordering::Release);
}

/// Too many callbacks here. Interrupts are on.
#[cold]
#[inline(never)]
fn flood() {
    {
        let irqs = IrqGuard::new(ATOMIC);
        let me = own(&irqs);
        me.hurry.set(true);
        me.hurry_at.set(me.cbs.borrow().len() + config::QHIMARK.get() as usize);
    }
    FLOODS.fetch_add(1, Ordering::Relaxed);
    advance_and_request();
    gp::hurry();
}

/// Times a CPU crossed the high-water mark.
pub(crate) static FLOODS: AtomicU64 = AtomicU64::new(0);

/// Whether callbacks on this CPU could be moved on or called.
pub(crate) fn has_work(me: &Own) -> bool {
    let cbs = me.cbs.borrow();
    cbs.has_done() || cbs.has_untagged() || cbs.first_tag().is_some_and(is_over)
}

fn is_over(tag: Tag) -> bool {
    tag.is_over(|norm| gp::SEQ.done(norm), |exp| exp::SEQ.done(exp))
}

/// Step 3, and the first half of 4. Context: any but NMI.
pub(crate) fn advance_and_request() {
    let wish = {
        let irqs = IrqGuard::new(ATOMIC);
        let me = own(&irqs);
        let mut cbs = me.cbs.borrow_mut();
        // In this order, else S5-11: snap, advance, accelerate. The snapshot is later than the queueing of all that
        // it tags, and has a full barrier of its own (ORD-1).
        let tag = Tag { norm: gp::SEQ.snap(), exp: exp::SEQ.snap() };
        cbs.advance(is_over);
        let untagged = cbs.has_untagged();
        cbs.accelerate(tag);
        untagged.then_some(tag.norm)
    };
    if let Some(target) = wish {
        gp::request(target);
    }
}

/// Calls what is done, within the limits. Context: softirq.
pub(crate) fn invoke() {
    let (mut taken, limit) = {
        let irqs = IrqGuard::new(ATOMIC);
        let me = own(&irqs);
        let mut cbs = me.cbs.borrow_mut();
        (cbs.take_done(), limit(me, cbs.len()))
    };
    if taken.is_empty() {
        return;
    }
    let until = clock::now_ns() + config::BATCH_MAX_NS;
    let mut ran = 0;
    while let Some(head) = taken.pop() {
        // SAFETY: it was queued, so it is valid and its function was set; it is off every list and goes to it now.
        let func = unsafe { (*head).func };
        let func = func.expect("RCU: a callback lost its function (queued twice, or written after call_rcu?)");
        // SAFETY: `call_rcu`'s caller promised that the function may be called with its head on any CPU.
        unsafe { func(head) };
        ran += 1;
        if ran >= limit || (ran % config::CLOCK_EVERY == 0 && clock::now_ns() > until) {
            break;
        }
    }
    let more = {
        let irqs = IrqGuard::new(ATOMIC);
        let me = own(&irqs);
        let mut cbs = me.cbs.borrow_mut();
        cbs.put_back(taken);
        cbs.ran(ran);
        publish_len(cbs.len());
        shared_here().cb_ran.fetch_add(ran as u64, Ordering::Relaxed);
        if cbs.len() < config::QLOWMARK.get() as usize {
            me.hurry.set(false);
            me.hurry_at.set(config::QHIMARK.get() as usize);
        }
        cbs.has_done()
    };
    if more {
        softirq::raise(Softirq::Rcu);
    }
}

/// Callbacks for one run, with `waiting` on the list.
fn limit(me: &Own, waiting: usize) -> usize {
    if me.hurry.get() {
        return config::BLIMIT_HURRY;
    }
    (config::BLIMIT.get() as usize).max(waiting >> config::BATCH_DIVISOR)
}

/// Protects [`ORPHANS`]. Nothing is taken inside it; it is taken with interrupts off.
static ORPHANS_CLASS: LockClass = LockClass::new("rcu.orphans");
/// Callbacks between two CPUs: of those that went offline, until a thread elsewhere adopts them.
static ORPHANS: SpinLock<CbList> = SpinLock::new(CbList::new(), &ORPHANS_CLASS);
/// Times callbacks changed their CPU. Written under the lock; a barrier that saw it change begins again.
static MOVES: AtomicU64 = AtomicU64::new(0);

/// Leaves this CPU's callbacks to others. Context: `cpu_down`; no callback is being called here.
pub(crate) fn hand_over(irqs: &IrqGuard<'_>) {
    let me = own(irqs);
    let mut cbs = me.cbs.borrow_mut();
    cbs.advance(is_over);
    {
        let mut orphans = ORPHANS.lock_irqsave(ATOMIC);
        orphans.adopt(&mut cbs);
        note_move();
    }
    assert!(cbs.is_empty(), "RCU: a CPU goes offline while it calls callbacks");
    // After the move is noted: a barrier that sees zero and did not see the move cannot be.
    publish_len(0);
    me.hurry.set(false);
    me.hurry_at.set(config::QHIMARK.get() as usize);
}

/// Takes over the callbacks of CPUs that went offline, and asks for what they wait for. Context: task.
pub(crate) fn adopt() {
    {
        let irqs = IrqGuard::new(ATOMIC);
        let mut cbs = own(&irqs).cbs.borrow_mut();
        let mut orphans = ORPHANS.lock_irqsave(ATOMIC);
        if orphans.is_empty() {
            return;
        }
        cbs.adopt(&mut orphans);
        // Before they leave the orphans, so that they are seen in one place at least.
        publish_len(cbs.len());
        note_move();
    }
    advance_and_request();
}

/// The orphans' lock is held.
fn note_move() {
    // Relaxed: the orphans' lock orders it.
    MOVES.fetch_add(1, Ordering::Relaxed);
}

/// How often callbacks have changed their CPU so far, and how many are between two CPUs.
pub(crate) fn moves() -> (u64, usize) {
    let orphans = ORPHANS.lock_irqsave(ATOMIC);
    (MOVES.load(Ordering::Relaxed), orphans.len())
}
