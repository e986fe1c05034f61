//! CPUs that come and go, as RCU sees them.
//!
//! | when | where | what |
//! |---|---|---|
//! | [`cpu_up`] | on the CPU, before it runs threads | watched again; in its leaf's mask from the next grace period on |
//! | [`cpu_down`] | on the CPU, the last thing before it parks | out of its leaf's mask, reported to both kinds of grace period, callbacks left to others, not watched |
//! | [`dead`] | the thread that took it offline | adopts the callbacks |
//!
//! A grace period takes the mask that it sees when it sets up a leaf, under the leaf's lock (TREE-4). Between the moment
//! when a CPU leaves `cpu::online()` and [`cpu_down`] it still has interrupts to answer and threads to leave: it counts as
//! online here, so what it reads then is covered, and what it queues is handed over with the rest.
//!
//! - A CPU in the mask that can no longer be interrupted does not hold an expedited grace period up: its answer is
//!   [`cpu_down`].
//! - Readers that were preempted on the CPU stay on its leaf's list. A leaf without CPUs waits for them like any other.
//! - A report in [`cpu_down`] may end a grace period. The thread is then woken by another CPU's interrupt (`IW-4`).
//! - Callbacks are on one CPU's list, or among the orphans, and a barrier looks at both ([`crate::barrier`]).
//!
//! - Callbacks of an offloaded CPU stay where they are, as they wait and run elsewhere anyway ([`crate::nocb`]).
//!
//! Invariants
//! - HP-1: a CPU that is not in its leaf's `online` has no callbacks on its own list, owes nothing, and is not watched (but for NMIs, whose
//!   handlers must not read on a parked CPU: nobody waits for them).
//!
//! Orderings: ORD-6 in docs/rcu-ordering.md. Answers to Linux kernel/rcu/tree.c (`rcutree_report_cpu_starting`,
//! `rcutree_report_cpu_dead`, `rcutree_migrate_callbacks`, where moved callbacks wait anew); row R-17.

use arch::CpuId;
use sched::hotplug::{Notifier, Order};
use sync::{ATOMIC, IrqGuard, MaySleep};

use crate::cpu::own;
use crate::report::report;
use crate::tree::tree;
use crate::{call, eqs, exp, nocb};

/// Tells this storey when a CPU is gone.
pub(crate) static NOTIFIER: Notifier = Notifier::new("rcu", Order::RCU).dead(dead);

/// Hook: this CPU has entered the scheduler. Context: its idle thread, interrupts off.
pub(crate) fn cpu_up(here: CpuId) {
    // Before it is in the mask: a grace period that finds it there must not find it idle.
    eqs::cpu_up();
    let irqs = IrqGuard::new(ATOMIC);
    let leaf = tree().leaf_of(here);
    let mut state = leaf.lock(ATOMIC);
    state.online |= leaf.bit_of(here);
    let me = own(&irqs);
    // Not part of a grace period that runs (TREE-4): it owes nothing until the next.
    me.gp_seq.set(leaf.gp_seq.current());
    me.owes_qs.set(false);
    me.qs_passed.set(true);
    drop(state);
    nocb::cpu_up(me);
}

/// Hook: this CPU leaves the scheduler. Context: its idle thread, interrupts off.
pub(crate) fn cpu_down(here: CpuId) {
    let irqs = IrqGuard::new(ATOMIC);
    let me = own(&irqs);
    me.owes_qs.set(false);
    me.owes_exp.set(false);
    me.report_at_unlock.set(false);
    call::hand_over(&irqs);
    let leaf = tree().leaf_of(here);
    let bit = leaf.bit_of(here);
    {
        let mut state = leaf.lock(ATOMIC);
        state.online &= !bit;
        let gp = leaf.gp_seq.current();
        report(leaf, state, bit, gp);
    }
    exp::report_cpu(leaf, bit);
    eqs::cpu_down();
}

/// Notifier: the CPU is parked.
fn dead(_: CpuId, _: &mut MaySleep) {
    call::adopt();
}
