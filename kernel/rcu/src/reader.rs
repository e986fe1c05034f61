//! Preemptible readers.
//!
//! One per-CPU word holds the running thread's state; the context switch saves and restores it. Locking is `inc`,
//! unlocking `dec` and a branch on the flags of that same instruction: three instructions for the pair.
//!
//! | word | state |
//! |---|---|
//! | `0x8000_0000` | in no reader, nothing to do |
//! | `0x8000_0000 + n` | in `n` nested readers, the outermost unlock has nothing special to do |
//! | `n` > 0 | in `n` nested readers, the outermost unlock takes the special path |
//! | 0 | in no reader, special work is due: the unlock that got here does it, or it was put off |
//!
//! Bit 31 is "no special work", so that a count of zero *with* special work is the value zero, which `dec` reports for
//! free. It is cleared by its own CPU only: by the context switch that queues the thread as a blocked reader, by the
//! tick and by the expedited interrupt when they find a reader in the way. An interrupt's own readers nest on the
//! interrupted thread's word.
//!
//! Special work: leave the leaf's list of blocked readers, give up a boost ([`crate::boost`]), and report for the CPU. It needs node locks and may end a grace
//! period, and by the consolidated flavour the reader goes on anyway while preemption, soft interrupts or
//! interrupts are off. So when one of those is off at unlock it is put off (R-14), with the word left at zero, until:
//!
//! | put off because | comes back by |
//! |---|---|
//! | preemption or softirqs off | `need_resched`: the end of the section passes through the scheduler |
//! | interrupts off | an `irq_work` self-interrupt, which hits when they are on again |
//! | in an interrupt | nothing: there the word is zero only if the interrupted code is about to do it or has put it off |
//! | any, if the above came too early | the next tick, or the next outermost unlock |
//!
//! No step waits for another or queues itself again, so putting off cannot recurse.
//!
//! Invariants
//! - RD-1: bit 31 of the word is clear whenever the thread is on a blocked list, from the switch that queued it on.
//! - RD-2: a thread is unlinked by itself or by the context switch that takes it off the CPU; so a thread that runs
//!   on this CPU is unlinked by this CPU only.
//! - RD-3: NMI handlers may read; the special path leaves them alone, because it takes locks.
//!
//! Answers to Linux kernel/rcu/tree_plugin.h; rows R-13, R-14.

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use sched::Thread;
use sync::{ATOMIC, Cx, IrqGuard, IrqWork, bug, context};

use crate::blkd::Blocks;
use crate::boost;
use crate::cpu::{ByContract, own};
use crate::eqs;
use crate::exp;
#[cfg(loom)]
use crate::model::{arch, sched, sync};
use crate::qs;
use crate::report::report_unblocked;
use crate::tree::{Node, tree};

/// "No special work": see the table in the module documentation.
const NOTHING_SPECIAL: u32 = 1 << 31;

arch::per_cpu! {
    /// The word of the running thread.
    static READER: u32 = NOTHING_SPECIAL;
}

/// A read-side critical section; it ends when the guard goes.
///
/// While it lives, nothing that was reachable when it began and is retired through RCU is freed. The thread may be
/// preempted and migrate, but not sleep: the guard borrows the thread's token.
///
/// It cannot leave its thread:
///
/// ```compile_fail,E0277
/// fn needs_send<T: Send>(_: T) {}
/// fn reader(cx: &sync::MaySleep) {
///     needs_send(grange_rcu::read_lock(cx));
/// }
/// ```
#[must_use = "the section ends as soon as the guard is dropped"]
#[derive(Debug)]
pub struct RcuReadGuard<'c>(PhantomData<(&'c (), *mut ())>);

impl Cx for RcuReadGuard<'_> {}

/// Begins a read-side critical section. Nests.
///
/// Context: any, NMI included, wherever RCU watches (not in the idle loop). Wait-free, one instruction.
///
/// ```no_run
/// # fn thread(cx: &sync::MaySleep, table: &grange_rcu::Rcu<u64>) {
/// let guard = grange_rcu::read_lock(cx);
/// if let Some(value) = table.read(&guard) {
///     log::info!("{value}");
/// }
/// # }
/// ```
#[inline(always)]
pub fn read_lock<'c>(_cx: &'c (impl Cx + ?Sized)) -> RcuReadGuard<'c> {
    debug_assert!(eqs::watching_here(), "EQS-2: a reader where RCU does not watch (idle loop?)");
    READER.inc();
    RcuReadGuard(PhantomData)
}

impl Drop for RcuReadGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        debug_assert!(READER.get() & !NOTHING_SPECIAL != 0, "RCU: unlock without lock");
        if READER.dec_and_is_zero() {
            unlock_special();
        }
    }
}

/// Nested readers of the running thread (and of the interrupts on top of it).
///
/// Context: any.
#[inline]
pub fn read_depth() -> u32 {
    READER.get() & !NOTHING_SPECIAL
}

/// The outermost reader ended with the special bit set.
#[cold]
#[inline(never)]
fn unlock_special() {
    if context::in_nmi() || context::in_hardirq() {
        return;
    }
    let irqs_were_on = arch::irq::enabled();
    let irqs = IrqGuard::new(ATOMIC);
    if READER.get() != 0 {
        // An interrupt or a context switch between the `dec` and here has done it.
        return;
    }
    let puts_off = context::preempt_count() != 0 || !irqs_were_on;
    if puts_off
        && bug!("rcu.deferred_lost", "what the end of a reader puts off is forgotten", "rcu_torture.*a_grace_period")
    {
        READER.set(NOTHING_SPECIAL);
    } else if context::preempt_count() != 0 {
        note_deferred();
        context::set_need_resched();
    } else if !irqs_were_on {
        note_deferred();
        crate::cpu::deferred_here(&irqs).queue();
    } else {
        finish_special(&irqs);
        drop(irqs);
        // A boost that ended here may leave somebody else the most urgent: the end of a pin looks, with interrupts on (PC-5).
        #[cfg(not(loom))]
        drop(sync::PreemptGuard::new(ATOMIC));
    }
}

/// Readers whose special work was put off, and those of them for which it has been done since.
pub(crate) static DEFERRED: AtomicU64 = AtomicU64::new(0);
pub(crate) static DEFERRED_DONE: AtomicU64 = AtomicU64::new(0);

/// The running thread's special work is put off. Once for several readers if each ends before it is done.
fn note_deferred() {
    if !sched::current().rcu.deferred.swap(true, Ordering::Relaxed) {
        DEFERRED.fetch_add(1, Ordering::Relaxed);
    }
}

/// The special work of `thread` is done now.
fn note_done(thread: &Thread) {
    if thread.rcu.deferred.swap(false, Ordering::Relaxed) {
        DEFERRED_DONE.fetch_add(1, Ordering::Relaxed);
    }
}

/// Self-interrupt after a reader that ended with interrupts off. Context: hardirq.
pub(crate) fn deferred_irq_work(_: &IrqWork) {
    let irqs = IrqGuard::new(ATOMIC);
    retry_special(&irqs);
}

/// Tries again, from an interrupt, what an unlock has put off. Context: hardirq, interrupts off.
pub(crate) fn retry_special(irqs: &IrqGuard<'_>) {
    if READER.get() != 0 {
        return;
    }
    if interrupted_sections() != 0 {
        context::set_need_resched();
    } else {
        finish_special(irqs);
    }
}

/// Levels of "preemption off" and "softirqs off" of the code that the present hard interrupt hit, as the count has them.
/// (That code has interrupts on. Where there is no interrupt: of the caller.)
pub(crate) fn interrupted_sections() -> u32 {
    const BELOW_HARDIRQ: u32 = context::HARDIRQ_OFFSET - 1;
    context::preempt_count() & BELOW_HARDIRQ
}

/// The special work of a reader that is over: the word is zero and no section keeps it open. Interrupts are off.
fn finish_special(irqs: &IrqGuard<'_>) {
    READER.set(NOTHING_SPECIAL);
    let thread = sched::current();
    note_done(thread);
    unlink_if_blocked(thread);
    let me = own(irqs);
    if me.owes_exp.take()
        && !bug!("rcu.exp_answer", "an expedited answer that a reader owes is lost", "rcu_readers.a_reader_that_ends*")
    {
        exp::report_this_cpu(irqs);
    }
    if me.report_at_unlock.take() {
        me.qs_passed.set(true);
        qs::report_this_cpu(irqs);
    }
}

/// Has the running reader's outermost unlock take the special path. Interrupts off; false if there is no reader.
pub(crate) fn ask_special(_irqs: &IrqGuard<'_>) -> bool {
    let in_reader = read_depth() != 0;
    if in_reader {
        READER.and(!NOTHING_SPECIAL);
    }
    in_reader
}

/// Hook: the CPU passes through the scheduler. See [`sched::hooks::Hooks::context_switch`].
///
/// Afterwards this CPU has passed a quiescent state: a reader that is switched out holds the grace period up as a
/// blocked reader from here on, not as this CPU.
///
/// Nearly always there is no reader and nobody waits for this CPU in a hurry. That way keeps nothing across a call, so it
/// saves no register: whatever calls something is in [`context_switch_slow`].
pub(crate) fn context_switch(prev: &'static Thread, next: &'static Thread, preempted: bool) {
    // SAFETY: the hook is called with interrupts off, and leaves them so.
    let irqs = unsafe { ByContract::irqs_off() };
    let me = own(&irqs);
    if READER.get() != NOTHING_SPECIAL || me.owes_exp.get() {
        return context_switch_slow(prev, next, preempted);
    }
    me.qs_passed.set(true);
    me.report_at_unlock.set(false);
    change_words(NOTHING_SPECIAL, prev, next);
}

/// [`context_switch`] out of a reader, or with an expedited grace period waiting.
#[cold]
#[inline(never)]
fn context_switch_slow(prev: &'static Thread, next: &'static Thread, preempted: bool) {
    let irqs = IrqGuard::new(ATOMIC);
    let mut word = READER.get();
    if word & !NOTHING_SPECIAL != 0 {
        if ptr::eq(prev, next) {
            return; // the reader goes on, nothing is quiescent
        }
        debug_assert!(preempted, "RCU: {prev:?} sleeps inside a reader");
        queue_blocked(prev);
        word &= !NOTHING_SPECIAL;
    } else if word == 0 {
        // Put off, or between the `dec` and the special path: over in any case, since a pass through the scheduler
        // happens only where preemption, softirqs and interrupts are on (the caller's own aside).
        note_done(prev);
        unlink_if_blocked(prev);
        word = NOTHING_SPECIAL;
        READER.set(word);
    }
    let me = own(&irqs);
    me.qs_passed.set(true);
    me.report_at_unlock.set(false);
    if me.owes_exp.take() {
        exp::report_this_cpu(&irqs);
    }
    change_words(word, prev, next);
}

/// Puts the word of `prev` by and takes up that of `next`.
#[inline(always)]
fn change_words(word: u32, prev: &Thread, next: &Thread) {
    if !ptr::eq(prev, next) {
        // Kept with the special bit inverted, so that a fresh thread's zero means "nothing".
        // Relaxed: the scheduler orders a thread's stay on one CPU before its stay on the next (SCHED-5).
        prev.rcu.nesting.store(word ^ NOTHING_SPECIAL, Ordering::Relaxed);
        READER.set(next.rcu.nesting.load(Ordering::Relaxed) ^ NOTHING_SPECIAL);
    }
}

/// Puts a reader that is being switched out on its leaf's list, once for each outermost section.
fn queue_blocked(thread: &'static Thread) {
    // Relaxed, here and below: written by the thread's own CPU only (RD-2).
    if !thread.rcu.blocked_node.load(Ordering::Relaxed).is_null() {
        return;
    }
    let cpu = arch::cpu::current();
    let node = tree().leaf_of(cpu);
    let bit = node.bit_of(cpu);
    let mut state = node.lock(ATOMIC);
    // A CPU that has reported (its bit is clear) can only have begun this reader after it did, or be in no reader that
    // the grace period waits for: the report comes from a place outside of readers, or this thread would be queued.
    let mut blocks = Blocks { norm: state.qsmask & bit != 0, exp: state.expmask & bit != 0 };
    if bug!(
        "rcu.blocked_ignored",
        "a reader that is switched out while it is waited for holds no grace period up",
        "rcu_readers.a_preempted_reader* rcu_torture.*a_grace_period"
    ) {
        blocks = Blocks::default();
    }
    state.blkd.queue(thread, blocks);
    sync::trace!(
        "rcu.blocked",
        gp = node.gp_seq.current().raw(),
        tid = thread.tid(),
        norm = blocks.norm,
        exp = blocks.exp
    );
    thread.rcu.blocked_node.store(ptr::from_ref(node).cast_mut().cast(), Ordering::Relaxed);
}

/// Takes a thread whose reader is over off its leaf's list, reports what that frees, and ends its boost. Takes a node's lock,
/// then the thread's run queue's: nobody who comes here holds either, since interrupts were on, or the scheduler says so.
fn unlink_if_blocked(thread: &'static Thread) {
    let node = thread.rcu.blocked_node.load(Ordering::Relaxed).cast::<Node>();
    // SAFETY: null, or a `&'static Node` from `queue_blocked`.
    let Some(node) = (unsafe { node.as_ref::<'static>() }) else {
        return;
    };
    let mut state = node.lock(ATOMIC);
    let last = state.blkd.remove(thread);
    let boosted = boost::end(thread);
    sync::trace!(
        "rcu.unblocked",
        gp = node.gp_seq.current().raw(),
        tid = thread.tid(),
        last_norm = last.norm,
        last_exp = last.exp
    );
    thread.rcu.blocked_node.store(ptr::null_mut(), Ordering::Relaxed);
    if last.norm {
        report_unblocked(node, state);
    } else {
        drop(state);
    }
    if last.exp {
        exp::report_unblocked(node);
    }
    if boosted {
        sched::follow_boost(thread);
    }
}

/// Hook: a thread has run its last line, outside of all readers; its structure must be as new.
pub(crate) fn thread_exit(thread: &'static Thread) {
    assert!(read_depth() == 0, "RCU: {thread:?} exits inside a reader");
    let irqs = IrqGuard::new(ATOMIC);
    if READER.get() == 0 {
        finish_special(&irqs);
    }
}
