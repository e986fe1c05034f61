//! `call_rcu`: have a function called after a grace period.
//!
//! The life of a callback:
//!
//! 1. [`call_rcu`] puts it on its CPU's list, untagged. With interrupts off that is all it does: no node lock, no wake-up;
//!    it never allocates. So it may be called under a run-queue or a sheaf lock.
//! 2. The tick sees untagged callbacks and raises the softirq. An idle CPU with callbacks keeps its tick.
//! 3. [`advance_and_request`] tags them with the grace periods that they need and asks for the normal one.
//! 4. A later tick sees that a tag is over; the softirq moves the callbacks to `done` and [`crate::invoke`] calls them,
//!    softirqs off.
//!
//! Those of an offloaded CPU take another way from step 1 on: [`crate::nocb`].
//!
//! # How a flood is met (R-6, S3-29, S3-36)
//!
//! All of it is told here and built in [`crate::invoke`] and [`crate::overload`]; it is visible in
//! [`callback_stats`](crate::callback_stats()). Memory is short only after callbacks have come in faster than they run for
//! a while, so RCU looks at their number and at their rate, and does not wait for a shrinker to tell it.
//!
//! - **Share**: one run calls [`config::BLIMIT`] callbacks, or a 128th of those waiting if that is more, so that a backlog
//!   shrinks by a share each run; and never for longer than [`config::BATCH_MAX_NS`].
//! - **Number**: above [`config::QHIMARK`] callbacks on a CPU the limit goes up to [`config::BLIMIT_HURRY`] until fewer than
//!   [`config::QLOWMARK`] wait, and the grace-period thread is told to look at the CPUs now instead of at the next tick, once
//!   for every QHIMARK more.
//! - **Rate**: the same as soon as the tick sees that, at the rate of the last tick, that many will wait before the next
//!   grace period can be over: about [`config::RATE_HORIZON_TICKS`] ticks before they do.
//! - **Overload**: above twice QHIMARK (`rcutree.qovld`) every CPU that owes a quiescent state is to pass through the
//!   scheduler at its next tick.
//! - **Help**: when [`config::HELP_AT`] callbacks could run but do not get to, each `call_rcu` in a thread with everything on
//!   runs [`config::HELP`] of them. It adds one and takes away several, so whoever floods its own CPU pays for it.
//! - What a softirq run leaves over is raised again, which the softirq's own budget moves to a thread.
//!
//! Answers to Linux kernel/rcu/tree.c (`call_rcu`, `rcu_do_batch`); rows, S3-24.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::CpuId;
use sync::callback::{CallbackFn, CallbackHead};
use sync::{ATOMIC, IrqGuard, LockClass, SpinLock, context};

use crate::cblist::{CbList, Tag};
use crate::cpu::{Own, own, shared, shared_here};
use crate::seq::Seq;
use crate::{eqs, exp, gp, misuse, nocb, overload};

// What the rest of this storey knows of callbacks, in one place: models put another in its stead.
pub(crate) use crate::invoke::{invoke, raise};
pub(crate) use crate::nocb_threads::gp_ended;
pub(crate) use crate::overload::{Load, is_overloaded, tick};

/// Calls `func(head)` after a grace period: when every reader that is in its section now has left it.
///
/// `func` runs once, on some CPU, with softirqs off, and may free the memory around `head` or queue it again. It must not
/// sleep. With lazy callbacks ([`crate::nocb`]) it may be seconds until it runs, as long as nobody waits for it in
/// [`rcu_barrier`](crate::rcu_barrier): whoever waits in another way uses [`call_rcu_hurry`].
///
/// Context: any but NMI, interrupts on or off, under any lock, before threads exist. Wait-free: an interrupts-off section
/// and a few stores (on offloaded CPUs also a lock that is never held for long); with interrupts on it may wake the
/// grace-period thread or run a few callbacks when callbacks flood. Never allocates.
///
/// # Safety
/// `head` is valid, and nobody else uses it, until `func` is called with it; `func` may be called with it on any CPU.
#[inline]
pub unsafe fn call_rcu(head: *mut CallbackHead, func: CallbackFn) {
    // SAFETY: passed on from the caller.
    unsafe { queue(head, func, true) };
}

/// As [`call_rcu`], and never lazy: for callbacks that somebody waits for, or that hold much memory.
///
/// Context: as for [`call_rcu`].
///
/// # Safety
/// As for [`call_rcu`].
#[inline]
pub unsafe fn call_rcu_hurry(head: *mut CallbackHead, func: CallbackFn) {
    // SAFETY: passed on from the caller.
    unsafe { queue(head, func, false) };
}

/// # Safety
/// As for [`call_rcu`].
#[inline(always)]
unsafe fn queue(head: *mut CallbackHead, func: CallbackFn, may_be_lazy: bool) {
    debug_assert!(!context::in_nmi(), "RCU: call_rcu in NMI context");
    debug_assert!(!head.is_null() && head.is_aligned(), "RCU: no such callback {head:?}");
    debug_assert!(eqs::watching_here(), "RCU: call_rcu on a CPU that has left its callbacks to others");
    let irqs_were_on = arch::irq::enabled();
    let attention = {
        let irqs = IrqGuard::new(ATOMIC);
        // SAFETY: `head` is valid by the caller.
        if cfg!(debug_assertions) && unsafe { misuse::is_queued(head, func) } {
            return;
        }
        // SAFETY: `head` is valid and ours by the caller.
        unsafe { (*head).func = Some(func) };
        let me = own(&irqs);
        let before = || shared_here().cb_len.load(Ordering::Relaxed);
        sync::trace!("rcu.callback", head = head.addr(), func = func as usize, waiting = before() + 1);
        let mut cbs = me.cbs.borrow_mut();
        if cbs.is_empty() {
            // The list of an offloaded CPU is always empty (NOCB-1), so this is the only place that has to look.
            if me.offloaded.get() {
                drop(cbs);
                // SAFETY: passed on from the caller.
                return unsafe { nocb::enqueue(&irqs, head, may_be_lazy, irqs_were_on) };
            }
            if !sched::tick::runs_here() {
                // From an interrupt that came in idle: the idle loop must look again whether its tick may stay off.
                context::set_need_resched();
            }
        }
        // SAFETY: passed on from the caller; it leaves the list before its function is called.
        unsafe { cbs.enqueue(head) };
        let len = cbs.len();
        publish_len(len);
        len >= me.attention_at.get() && irqs_were_on
    };
    if attention {
        overload::attend();
    }
}

/// Makes the length of this CPU's own list visible to barriers on other CPUs.
pub(crate) fn publish_len(len: usize) {
    // Release: pairs with the Acquire in `barrier`; a barrier that sees zero sees what the callbacks wrote.
    shared_here().cb_len.store(len, Ordering::Release);
}

/// Whether callbacks on this CPU could be moved on or called.
pub(crate) fn has_work(me: &Own) -> bool {
    let cbs = me.cbs.borrow();
    cbs.has_done() || cbs.has_untagged() || cbs.first_tag().is_some_and(is_over)
}

/// Whether a grace period that `tag` names is over.
pub(crate) fn is_over(tag: Tag) -> bool {
    tag.is_over(|norm| gp::SEQ.done(norm), |exp| exp::SEQ.done(exp))
}

/// Step 3 and the first half of 4 for one list; the grace period to ask for, if one is needed.
pub(crate) fn move_on(cbs: &mut CbList) -> Option<Seq> {
    // In this order, else S5-11: snap, advance, accelerate. The snapshot is later than the queueing of all that
    // it tags, and has a full barrier of its own (ORD-1).
    let tag = Tag { norm: gp::SEQ.snap(), exp: exp::SEQ.snap() };
    cbs.advance(is_over);
    let untagged = cbs.has_untagged();
    cbs.accelerate(tag);
    untagged.then_some(tag.norm)
}

/// Step 3, and the first half of 4. Context: any but NMI.
pub(crate) fn advance_and_request() {
    let wish = {
        let irqs = IrqGuard::new(ATOMIC);
        let me = own(&irqs);
        let wish = move_on(&mut me.cbs.borrow_mut());
        overload::set_attention(me);
        wish
    };
    if let Some(target) = wish {
        gp::request(target);
    }
}

/// Protects [`ORPHANS`]. Nothing is taken inside it; it is taken with interrupts off.
static ORPHANS_CLASS: LockClass = LockClass::new("rcu.orphans").innermost();
/// Callbacks between two CPUs: of those that went offline, until a thread elsewhere adopts them.
static ORPHANS: SpinLock<CbList> = SpinLock::new(CbList::new(), &ORPHANS_CLASS);
/// Times callbacks changed their list. Written under the lock; a barrier that saw it change begins again.
static MOVES: AtomicU64 = AtomicU64::new(0);

/// Leaves this CPU's callbacks to others. Context: `cpu_down`; no callback is being called here.
pub(crate) fn hand_over(irqs: &IrqGuard<'_>) {
    let me = own(irqs);
    {
        let mut cbs = me.cbs.borrow_mut();
        cbs.advance(is_over);
        orphan(&mut cbs);
        assert!(cbs.is_empty(), "RCU: a CPU goes offline while it calls callbacks");
    }
    // After the move is noted: a barrier that sees zero and did not see the move cannot be.
    publish_len(0);
    overload::relax(me, 0);
    nocb::cpu_down(me);
}

/// Takes over the callbacks of CPUs that went offline, and asks for what they wait for. Context: task.
pub(crate) fn adopt() {
    {
        let irqs = IrqGuard::new(ATOMIC);
        let me = own(&irqs);
        if me.offloaded.get() {
            return nocb::adopt_orphans(&irqs);
        }
        let mut cbs = me.cbs.borrow_mut();
        take_orphans(&mut cbs, |cbs, _| publish_len(cbs.len()));
    }
    advance_and_request();
}

/// Leaves what is on `cbs` to whoever adopts it. Interrupts are off.
pub(crate) fn orphan(cbs: &mut CbList) {
    let mut orphans = ORPHANS.lock_irqsave(ATOMIC);
    orphans.adopt(cbs);
    bump_moves();
}

/// Moves the orphans to `cbs`, and has `count` count them there. Interrupts are off.
pub(crate) fn take_orphans(cbs: &mut CbList, count: impl FnOnce(&CbList, usize)) {
    let mut orphans = ORPHANS.lock_irqsave(ATOMIC);
    let moved = orphans.len();
    if moved == 0 {
        return;
    }
    cbs.adopt(&mut orphans);
    // Before others find the orphans gone, so that they are seen in one place at least.
    count(cbs, moved);
    bump_moves();
}

/// Notes that callbacks go from one list to another: a barrier that has looked at one of them looks again. They are counted
/// where they come to before this, and where they come from until after it.
pub(crate) fn note_move() {
    let _orphans = ORPHANS.lock_irqsave(ATOMIC);
    bump_moves();
}

/// The orphans' lock is held.
fn bump_moves() {
    // Relaxed: the orphans' lock orders it.
    MOVES.fetch_add(1, Ordering::Relaxed);
}

/// How often callbacks have changed their list so far, and how many are between two CPUs.
pub(crate) fn moves() -> (u64, usize) {
    let orphans = ORPHANS.lock_irqsave(ATOMIC);
    (MOVES.load(Ordering::Relaxed), orphans.len())
}

/// Callbacks of `cpu` that have not run, wherever they are to.
pub(crate) fn waiting_on(cpu: CpuId) -> usize {
    shared(cpu).cb_len.load(Ordering::Relaxed) + nocb::waiting_on(cpu)
}
