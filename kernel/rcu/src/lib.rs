//! Tree RCU: readers that cost three instructions, updaters that wait for them.
//!
//! # The problem and the words
//!
//! A *reader* follows pointers without a lock. An *updater* takes an object out of reach and may free it only when no
//! reader that could have found it is still at work. It waits for a **grace period**: a span in which every CPU and
//! every preempted reader has passed a **quiescent state**, a moment outside of all read-side sections. Who enters a
//! section after the object was taken out of reach cannot find it, so only older readers matter.
//!
//! This is one consolidated flavour: a section is [`read_lock`] to the guard's end, and also any stretch with preemption,
//! soft interrupts or interrupts off.
//!
//! # The calls
//!
//! | call | for | context |
//! |---|---|---|
//! | [`read_lock`] | a read-side section | any, NMI included |
//! | [`call_rcu`], [`call_rcu_hurry`] | a function after a grace period | any but NMI; interrupts off: only enqueues |
//! | [`Rcu`], [`RcuCell`], [`RcuList`], [`RcuHashMap`] | pointers, lists and maps whose reads borrow from a section | reading any, updating any but NMI |
//! | [`RcuBox`], [`Retired`], [`Polled`] | values before they are published, and after | any but NMI |
//! | [`synchronize_rcu`], [`synchronize_rcu_expedited`] | waiting for one | task, sleeps |
//! | [`get_state`], [`start_poll`], [`start_poll_expedited`], [`poll`](poll()), [`poll_any`], [`cond_synchronize`] | asking later | any; `start_poll…` not NMI; the last sleeps |
//! | [`rcu_barrier`] | waiting for all callbacks queued before | task, sleeps |
//! | [`srcu`] | the same in domains, whose readers may sleep | see there |
//!
//! # The modules
//!
//! | module | what it is |
//! |---|---|
//! | [`seq`], [`geometry`], [`cblist`], [`pending`], `blkd` | pure: sequence numbers, the tree's shape, callback lists, what waits by cookie, blocked readers' list |
//! | `tree`, `report` | nodes; quiescent states on their way up |
//! | `eqs`, `qs`, `reader` | where quiescent states come from: idle, tick and switch, the reader's end |
//! | `gp`, `exp` | the normal and the expedited grace period |
//! | `boost` | urgency for readers that hold one up |
//! | `mode` | which of the two a thread waits for |
//! | `hotplug` | CPUs that come and go |
//! | `call`, `sync_gp`, `poll`, `barrier` | the ways to wait for one |
//! | `invoke`, `overload`, `misuse` | calling callbacks, too many of them, wrong ones |
//! | [`nocb`], `nocb_threads` | callbacks that wait and run on other CPUs, and lazy ones |
//! | `boxed`, `link`, `ptr`, [`list`], [`hash`] | what readers follow |
//! | `tasks` | Tasks RCU: grace periods of voluntary switches |
//! | [`config`], [`stats`](stats()), [`hist`], `stall` | parameters, counters, histograms, reports |
//!
//! Why a grace period is long enough (ORD-1 to ORD-6) is argued in one place: docs/rcu-ordering.md.
//!
//! # Locks
//!
//! `rcu.node` (one at a time, nothing inside), `rcu.exp_asked` (nothing inside), `rcu.nocb` with `rcu.nocb_bypass` and
//! `rcu.orphans` inside (nothing inside those); all with interrupts off, all below whatever the caller holds. No thread is
//! woken under any of them. Those of [`srcu`] are listed there.
//!
//! Answers to Linux kernel/rcu/ as of 7.x; rows, S3-18, S3-24 to S3-30.
#![no_std]
// A model calls the steps one by one, and not all of them.
#![cfg_attr(loom, allow(dead_code))]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

#[cfg(not(loom))]
mod barrier;
mod blkd;
#[cfg(not(loom))]
mod boost;
#[cfg(not(loom))]
mod boxed;
#[cfg(not(loom))]
mod call;
pub mod cblist;
pub mod config;
mod cpu;
mod eqs;
mod exp;
mod fqs;
pub mod geometry;
mod gp;
#[cfg(not(loom))]
pub mod hash;
pub mod hist;
#[cfg(not(loom))]
mod hotplug;
#[cfg(not(loom))]
mod invoke;
#[cfg(not(loom))]
mod link;
#[cfg(not(loom))]
pub mod list;
#[cfg(not(loom))]
mod misuse;
mod mode;
#[cfg(loom)]
mod model;
#[cfg(not(loom))]
pub mod nocb;
#[cfg(not(loom))]
mod nocb_threads;
#[cfg(not(loom))]
mod overload;
#[cfg(not(loom))]
pub mod pending;
mod poll;
#[cfg(not(loom))]
mod ptr;
mod qs;
mod reader;
mod report;
#[cfg(all(test, not(loom)))]
mod report_tests;
pub mod seq;
pub mod srcu;
#[cfg(not(loom))]
pub mod stall;
#[cfg(not(loom))]
mod stats;
mod sync_gp;
#[cfg(not(loom))]
mod tasks;
mod tree;

#[cfg(not(loom))]
use {
    sched::Thread,
    sched::hooks::Hooks,
    sched::softirq::{self, Softirq},
    sync::hooks::HOOKS,
    sync::{ATOMIC, IrqGuard, MaySleep},
};

#[cfg(loom)]
use model::{boost, call, stall};

#[cfg(not(loom))]
pub use barrier::rcu_barrier;
#[cfg(not(loom))]
pub use boost::{boost_delay, set_boost_delay};
#[cfg(not(loom))]
pub use boxed::{Memory, Polled, RcuBox, Retired};
#[cfg(not(loom))]
pub use call::{call_rcu, call_rcu_hurry};
pub use exp::synchronize_rcu_expedited;
pub use gp::Phase;
#[cfg(not(loom))]
pub use hash::{HashNode, NoMemory, RcuHashMap};
#[cfg(not(loom))]
pub use invoke::{callback_batches, callbacks_run_on};
#[cfg(not(loom))]
pub use list::{ListNode, RcuList};
pub use mode::{Held, Kind, boot_ended, expedite, only_normal};
#[cfg(not(loom))]
pub use overload::{CallbackStats, callback_stats, callback_waits};
pub use poll::{
    Cookie, FullCookie, Pollable, cond_synchronize, cond_synchronize_expedited, get_state, get_state_full, poll,
    poll_any, start_poll, start_poll_expedited, start_poll_expedited_full, start_poll_full,
};
#[cfg(not(loom))]
pub use ptr::{Rcu, RcuCell};
pub use reader::{RcuReadGuard, read_depth, read_lock};
#[cfg(not(loom))]
pub use stats::{CpuStats, NodeStats, Stats, age_ns, cpu_stats, gp_seqs, histograms, node_stats, segments, stats};
pub use sync::callback::{CallbackFn, CallbackHead};
pub use sync_gp::synchronize_rcu;
#[cfg(not(loom))]
pub use tasks::{
    call_rcu_tasks, call_rcu_tasks_trace, cond_resched_tasks, rcu_barrier_tasks, rcu_barrier_tasks_trace,
    read_lock_tasks_trace, synchronize_rcu_tasks, synchronize_rcu_tasks_rude, synchronize_rcu_tasks_trace,
};

/// For macros.
#[doc(hidden)]
#[cfg(not(loom))]
pub mod private {
    pub use arch;
    pub use sync::private::linkme;
}

/// What the scheduler calls.
#[cfg(not(loom))]
static SCHED_HOOKS: Hooks = Hooks {
    context_switch,
    idle_enter: qs::idle_enter,
    idle_exit: eqs::idle_exit,
    tick: qs::tick,
    needs_tick: qs::needs_tick,
    thread_exit: reader::thread_exit,
    cpu_up: hotplug::cpu_up,
    cpu_down: hotplug::cpu_down,
};

/// Hook: the CPU passes through the scheduler. See [`Hooks::context_switch`].
#[cfg(not(loom))]
fn context_switch(prev: &'static Thread, next: &'static Thread, preempted: bool) {
    tasks::switched(prev, next, preempted);
    reader::context_switch(prev, next, preempted);
}

/// Builds the tree, plugs into scheduler and interrupts, and starts the grace-period thread.
///
/// Callbacks that were queued before are kept; from here on grace periods run. Readers are legal before. Until
/// [`boot_ended`] those that threads wait for are expedited.
///
/// Context: task, boot CPU, after `sched::init` and before other CPUs start; once.
///
/// # Panics
/// If the fan-outs of the command line cannot hold the CPUs (one line says so), or there is no memory for the thread.
#[cfg(not(loom))]
pub fn init(cx: &mut MaySleep) {
    mode::init();
    stall::init();
    boost::init();
    let last = arch::cpu::present().iter().last().expect("the boot CPU is present");
    let shape = config::shape(last.index() + 1).unwrap_or_else(|e| panic!("{e}"));
    log::debug!("rcu: {shape}");
    tree::build(shape);
    softirq::register(Softirq::Rcu, qs::core);
    {
        // The boot CPU comes online for RCU and gets its hooks in one step, as seen from its interrupts.
        let _irqs = IrqGuard::new(ATOMIC);
        hotplug::cpu_up(arch::cpu::current());
        HOOKS.irq_enter.set(eqs::irq_enter);
        HOOKS.irq_exit.set(eqs::irq_exit);
        HOOKS.nmi_enter.set(eqs::irq_enter);
        HOOKS.nmi_exit.set(eqs::irq_exit);
        sched::hooks::set_hooks(&SCHED_HOOKS);
    }
    sched::hotplug::register(&hotplug::NOTIFIER);
    let spawned = sched::spawn(cx, "rcu_preempt", config::kthread_prio(), None, gp::thread);
    spawned.expect("RCU: no memory for the grace-period thread").detach();
    srcu::init(cx);
    invoke::init(cx);
    nocb::init(cx);
    tasks::init(cx);
    poll::init();
}
