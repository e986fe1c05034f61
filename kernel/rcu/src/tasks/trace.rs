//! Trace: readers that say so, but may sleep and be preempted: an SRCU domain with [`Fast`] readers.
//!
//! Each of its grace periods contains one of RCU, by the flavour. So who waits here has also waited for all RCU readers and
//! for all sections with preemption off.

use sync::MaySleep;
use sync::callback::{CallbackFn, CallbackHead};

use crate::srcu::{Fast, SrcuReadGuard, call_srcu, srcu_barrier, srcu_read_lock, synchronize_srcu};
use crate::srcu_domain;

srcu_domain! {
    static TASKS_TRACE: Fast;
}

/// Begins a section of the trace flavour, which may sleep. Nests. Two increments.
///
/// Context: any but NMI, where RCU watches.
#[inline]
pub fn read_lock_tasks_trace() -> SrcuReadGuard<'static, Fast> {
    srcu_read_lock(&TASKS_TRACE)
}

/// Waits until every section that was under way at the call is over, of this flavour and of RCU. Context: task, sleeps; in
/// no such section.
pub fn synchronize_rcu_tasks_trace(cx: &mut MaySleep) {
    synchronize_srcu(&TASKS_TRACE, cx);
}

/// Calls `func(head)` after such a grace period. Context: any but NMI.
///
/// # Safety
/// As for [`call_rcu`](crate::call_rcu).
pub unsafe fn call_rcu_tasks_trace(head: *mut CallbackHead, func: CallbackFn) {
    // SAFETY: passed on from the caller.
    unsafe { call_srcu(&TASKS_TRACE, head, func) };
}

/// Waits until all callbacks that [`call_rcu_tasks_trace`] has queued before have run. Context: task, sleeps.
pub fn rcu_barrier_tasks_trace(cx: &mut MaySleep) {
    srcu_barrier(&TASKS_TRACE, cx);
}
