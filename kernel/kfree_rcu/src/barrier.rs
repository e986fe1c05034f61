//! Barriers: everything given to `kfree_rcu` before is free after (S0-22, S1-16, K-10).
//!
//! The order matters, because each step feeds the next:
//! 1. the deferred lists of all CPUs are drained: their objects enter sheaves or the back end;
//! 2. partly filled rcu_free sheaves are submitted;
//! 3. the deferred lists once more: a sheaf that was partly filled in step 1, and full before step 2 came to it, may have
//!    been deferred (RCUF-1 of `slab::rcu_free`);
//! 4. `rcu_barrier`, *always*: sheaves submitted earlier are in flight even if step 2 found none; and what their callbacks left to
//!    a worker (`slab::rcu_return`);
//! 5. the back ends are drained.
//!
//! No CPU goes offline during the first three steps: it could take objects past them. From the fourth on they are callbacks, or in
//! the back end, and both know where those of a CPU that went are.
//!
//! `rcu_barrier` alone is not enough (S2-4): what sits in a sheaf or page that is not full yet is no callback.

use sched::hotplug::{CpusGuard, keep_cpus};
use slab::RawCache;
use sync::{MaySleep, bug};

/// Waits until all objects given to `kfree_rcu` before are free: those of calls that have returned, which of
/// [`kfree_rcu_mightsleep`](crate::kfree_rcu_mightsleep) alone makes a difference.
///
/// Context: task; sleeps.
pub fn kvfree_rcu_barrier(cx: &mut MaySleep) {
    barrier(cx, |cpus, cx| slab::registry::for_each_unlocked(cx, |cache| cache.flush_rcu_free(cpus)));
}

/// The same for the objects of one cache; other caches' sheaves are left alone (S5-6).
///
/// Context: task; sleeps. `cache` stays alive meanwhile.
pub fn kvfree_rcu_barrier_on_cache(cache: &'static RawCache, cx: &mut MaySleep) {
    barrier(cx, |cpus, _| cache.flush_rcu_free(cpus));
}

/// The five steps, of which `submit` is the second.
fn barrier(cx: &mut MaySleep, submit: impl FnOnce(&CpusGuard, &mut MaySleep)) {
    cx.assert_may_sleep();
    let cpus = keep_cpus(cx);
    if !bug!(
        "kfree_rcu.barrier_deferred_late",
        "a barrier drains deferred lists when sheaves have gone",
        "kfree_rcu_hooks"
    ) {
        slab::deferred::flush(&cpus, cx);
    }
    if !bug!(
        "kfree_rcu.barrier_no_submit",
        "a barrier leaves sheaves that are not full where they are",
        "kfree_rcu_barrier"
    ) {
        submit(&cpus, cx);
    }
    slab::deferred::flush(&cpus, cx);
    drop(cpus);
    if !bug!(
        "kfree_rcu.barrier_no_wait",
        "a barrier does not wait for sheaves under way",
        "kfree_rcu_barrier.*under_way*"
    ) {
        slab::rcu_return::wait(cx);
    }
    if !bug!("kfree_rcu.barrier_no_drain", "a barrier leaves the back end alone", "kfree_rcu_barrier.*nothing_is_left")
    {
        crate::backend::drain(cx);
    }
}
