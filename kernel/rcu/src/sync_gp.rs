//! `synchronize_rcu`: wait for a grace period, without a callback.
//!
//! A waiter is a node on its thread's stack on one lock-free list. The grace-period thread takes the whole list before
//! it steps the counter, so the list's emptiness *is* the boundary between grace periods, and wakes what it took when
//! that grace period is over. (Linux keeps one list with marker nodes and bounds the number of waiters that are served
//! without a callback; taking the list whole needs neither: docs/architecture.md.)
//!
//! No waiter is left behind: one that queues after the list was taken asks for a grace period by the counter it reads
//! *after* queueing. If it read the old value, it queued before clean-up looks at the list again (both sides have full
//! barriers: the counter's fences), and clean-up starts another grace period; else it asked for the next one itself.
//!
//! Answers to Linux kernel/rcu/tree.c (`synchronize_rcu_normal`, `rcu_sr_normal_*`); rows R-11, S5-12.

use sched::Completion;
use sync::{LlistChain, LlistHead, LlistNode, MaySleep, static_or_lazy};

use crate::gp;
use crate::mode::{self, Kind};
#[cfg(loom)]
use crate::model::{sched, sync};
use crate::seq::Seq;

/// A thread in `synchronize_rcu`, on its stack.
#[repr(C)]
struct Waiter {
    /// First, so that a node is its waiter.
    node: LlistNode,
    /// The counter's snapshot from before it queued, to check the wake-up by (S5-12).
    since: Seq,
    done: Completion,
}

static_or_lazy! {
    /// Waiters that no grace period has taken yet.
    static WAITERS: LlistHead = LlistHead::new();
}

/// Waits until every reader that was in its section at the call has left it.
///
/// On return, what was unreachable before the call is used by nobody.
///
/// Context: task, sleeps, on the order of a tick when CPUs are busy. The token cannot be had inside a reader:
///
/// ```compile_fail,E0502
/// fn thread(cx: &mut sync::MaySleep) {
///     let guard = grange_rcu::read_lock(cx);
///     grange_rcu::synchronize_rcu(cx);
///     drop(guard);
/// }
/// ```
pub fn synchronize_rcu(cx: &mut MaySleep) {
    cx.assert_may_sleep();
    mode::wait(Kind::Normal, cx);
}

/// Waits for a normal grace period. Context: task, after [`crate::init`].
pub(crate) fn wait(cx: &mut MaySleep) {
    let waiter = Waiter { node: LlistNode::new(), since: gp::SEQ.snap(), done: Completion::new() };
    // SAFETY: the waiter stays on this stack until `done`, which is the last that the grace-period thread touches; only
    // one list, once.
    unsafe { WAITERS.add((&raw const waiter.node).cast_mut()) };
    gp::request(gp::SEQ.snap());
    sync::trace!("rcu.sync_wait", gp = waiter.since.raw());
    waiter.done.wait(cx);
    sync::trace!("rcu.sync_done", gp = waiter.since.raw());
    debug_assert!(gp::SEQ.done(waiter.since), "S5-12: woken before the snapshot was due");
}

/// All that wait now, oldest last. Before the counter steps.
pub(crate) fn take_waiters() -> LlistChain {
    WAITERS.take_all()
}

/// Whether somebody waits who has not been taken.
pub(crate) fn has_waiters() -> bool {
    !WAITERS.is_empty()
}

/// Wakes the waiters that a grace period has served.
pub(crate) fn wake(served: LlistChain) {
    for node in served {
        // SAFETY: only waiters are on the list, the node is first in each, and it stays until `complete` lets it go.
        let waiter = unsafe { &*node.cast::<Waiter>() };
        waiter.done.complete();
    }
}
