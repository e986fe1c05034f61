//! Quiescent states of a CPU: when one passes, when it is told to the leaf, and what the tick and the softirq do.
//!
//! A CPU learns of a new grace period by itself, at its next tick, softirq or idle entry ([`note_gp`]). Only a quiescent
//! state *after* that counts: `qs_passed` is cleared when it learns, set when one passes, and told by
//! [`report_this_cpu`].
//!
//! | event | quiescent when | told |
//! |---|---|---|
//! | pass through the scheduler | always: readers are queued as blocked | next softirq or idle entry |
//! | tick | it hit idle, or code outside of readers with preemption and softirqs on | the softirq it raises |
//! | outermost unlock after a tick asked | when nothing else keeps the section open | at once |
//! | idle entry | always | at once, so that the CPU need not be looked at |
//! | idle, offline | always | by the grace-period thread or the CPU's last act ([`crate::hotplug`]) |
//!
//! Rows. Answers to Linux kernel/rcu/tree.c (`rcu_sched_clock_irq`, `rcu_core`, `note_gp_changes`).

use arch::cpu;
use sched::hooks::TickFrom;
use sync::atomic::Ordering;
use sync::{ATOMIC, IrqGuard, bug, context};

use crate::call;
use crate::config::TICKS_TILL_RESCHED;
use crate::cpu::{Own, own, shared_here};
#[cfg(loom)]
use crate::model::{arch, sched, sync};
use crate::reader::{ask_special, interrupted_sections, read_depth, retry_special};
use crate::report::report;
use crate::seq::Seq;
use crate::tree::{Node, tree};
use crate::{eqs, exp, stall};

/// Learns from the leaf whether a grace period began or ended. Interrupts are off.
///
/// Returns this CPU's leaf.
pub(crate) fn note_gp(irqs: &IrqGuard<'_>) -> &'static Node {
    let me = own(irqs);
    let leaf = tree().leaf_of(cpu::current());
    // Acquire: pairs with the Release of set-up: what follows on this CPU sees the update that this grace period waits for,
    // and whether it asks for this CPU (ORD-4). No lock: a busy CPU takes its leaf's once a grace period, to report.
    let gp = leaf.gp_seq.current_acquire();
    if gp != me.gp_seq.get() {
        let asked = Seq::from_raw(shared_here().gp_asked.load(Ordering::Relaxed));
        me.gp_seq.set(gp);
        sync::trace!("rcu.gp_noted", gp = gp.raw(), owes = gp == asked);
        me.owes_qs.set(gp == asked);
        me.ticks_owing.set(0);
        me.qs_passed.set(bug!(
            "rcu.qs_not_passed",
            "a CPU that learns of a grace period reports a quiescent state that it has not passed",
            "rcu_readers.a_section* rcu_torture.*a_grace_period"
        ));
        me.report_at_unlock.set(false);
    }
    leaf
}

/// Tells the leaf, if this CPU owes a quiescent state and one has passed. Interrupts are off, or it is pinned with
/// interrupts off by the caller's guard; no node lock is held.
pub(crate) fn report_this_cpu(irqs: &IrqGuard<'_>) {
    let me = own(irqs);
    if !me.owes_qs.get() || !me.qs_passed.get() {
        return;
    }
    let here = cpu::current();
    let leaf = tree().leaf_of(here);
    let state = leaf.lock(ATOMIC);
    me.owes_qs.set(false);
    // For another grace period than the one that the quiescent state came after, it is ignored (REP-1).
    report(leaf, state, leaf.bit_of(here), me.gp_seq.get());
}

/// Hook: the tick. Context: hardirq, interrupts off.
pub(crate) fn tick(from: TickFrom) {
    let irqs = IrqGuard::new(ATOMIC);
    let me = own(&irqs);
    retry_special(&irqs);
    note_gp(&irqs);
    stall::tick();
    // The idle thread lives with preemption off, and that is no reader of its own.
    let own_sections = u32::from(from == TickFrom::Idle);
    if read_depth() == 0 && interrupted_sections() == own_sections {
        me.qs_passed.set(true);
        if me.owes_exp.take() {
            exp::report_this_cpu(&irqs);
        }
    } else if me.owes_qs.get() && !me.qs_passed.get() {
        let ticks = me.ticks_owing.get() + 1;
        me.ticks_owing.set(ticks);
        if ask_special(&irqs) {
            me.report_at_unlock.set(true);
        }
        if ticks >= TICKS_TILL_RESCHED || call::is_overloaded() {
            context::set_need_resched();
        }
    }
    call::tick(me);
    if has_work(me) {
        call::raise();
    }
}

/// Whether the softirq would find something to do.
fn has_work(me: &Own) -> bool {
    if me.owes_qs.get() && me.qs_passed.get() {
        return true;
    }
    call::has_work(me)
}

/// Learn, report, advance and request, invoke. Context: softirq, or a thread with softirqs off.
pub(crate) fn core() {
    stall::softirq_ran();
    {
        let irqs = IrqGuard::new(ATOMIC);
        note_gp(&irqs);
        report_this_cpu(&irqs);
    }
    call::advance_and_request();
    call::invoke();
}

/// Hook: this CPU is about to halt or poll. Context: idle thread, interrupts off.
pub(crate) fn idle_enter() {
    {
        let irqs = IrqGuard::new(ATOMIC);
        debug_assert!(read_depth() == 0, "RCU: idle inside a reader");
        note_gp(&irqs);
        // The idle thread is in no reader, and what follows is not either.
        own(&irqs).qs_passed.set(true);
        report_this_cpu(&irqs);
    }
    eqs::idle_enter();
}

/// Hook: does this idle CPU still need its tick? Only for callbacks: its quiescent states are seen without it.
pub(crate) fn needs_tick() -> bool {
    let irqs = IrqGuard::new(ATOMIC);
    !own(&irqs).cbs.borrow().is_empty()
}
