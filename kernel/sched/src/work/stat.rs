//! What reports show of queues, pools and workers: copies, taken one after another.
//!
//! The pools' locks are taken, one at a time.

use core::sync::atomic::Ordering;

use sync::MaySleep;

use super::pool::{self, Home, pool_of};
use super::queue::{self, Kind};
use crate::thread::Thread;

/// A queue, as it was.
#[derive(Copy, Clone, Debug)]
pub struct QueueStat {
    /// Its name.
    pub name: &'static str,
    /// Its kind, with the limit.
    pub kind: Kind,
    /// Items queued and not ended.
    pub in_flight: usize,
    /// Of these: on a pool's list or running.
    pub active: usize,
    /// Items whose time runs.
    pub delayed: usize,
}

/// A pool, as it was.
#[derive(Copy, Clone, Debug)]
pub struct PoolStat {
    /// Whose it is.
    pub home: Home,
    /// Items on its list.
    pub pending: usize,
    /// Workers in all.
    pub workers: usize,
    /// Workers that have nothing to do.
    pub idle: usize,
    /// Of a CPU's pool: workers that run or wait for the CPU.
    pub running: usize,
    /// Items that have run to their end since boot.
    pub ended: u64,
}

/// A worker that runs an item, as it was.
#[derive(Copy, Clone, Debug)]
pub struct WorkerStat {
    /// Its thread.
    pub thread: &'static Thread,
    /// The queue of the item.
    pub queue: &'static str,
    /// Address of the item's function.
    pub func: usize,
    /// When the function was called.
    pub since_ns: u64,
}

/// Calls `f` for each queue, newest first.
///
/// Context: task, sleeps; `f` must not create or destroy a queue.
pub fn queues(cx: &mut MaySleep, mut f: impl FnMut(QueueStat)) {
    queue::for_each(cx, |queue| {
        let (mut in_flight, mut active) = (0, 0);
        for lane in &queue.lanes {
            let _inner = lane.pool.lock();
            in_flight += lane.in_flight[0].get() + lane.in_flight[1].get();
            active += lane.active.get() as usize;
        }
        let delayed = queue.delayed.load(Ordering::Relaxed);
        f(QueueStat { name: queue.name, kind: queue.kind, in_flight, active, delayed });
    });
}

/// The pools: CPUs first, then nodes.
///
/// Context: task, softirq, hardirq.
pub fn pools() -> impl Iterator<Item = PoolStat> {
    pool::all().map(|number| {
        let inner = pool_of(number).lock();
        PoolStat {
            home: Home::of(number),
            pending: inner.pending.iter().count(),
            workers: inner.idlers + inner.busy.iter().count(),
            idle: inner.idlers,
            running: inner.running,
            ended: inner.ended,
        }
    })
}

/// The `at`-th of the workers of a pool that run an item. Workers may come and go between two calls.
///
/// Context: task, softirq, hardirq.
pub fn worker_stat(home: Home, at: usize) -> Option<WorkerStat> {
    let inner = pool_of(home.number()).lock();
    let mut working = inner.busy.iter().filter_map(|worker| worker.func().map(|func| (worker, func)));
    working.nth(at).map(|(worker, func)| WorkerStat {
        thread: worker.thread,
        queue: worker.lane().queue().name,
        func: func as usize,
        since_ns: worker.since_ns.get(),
    })
}
