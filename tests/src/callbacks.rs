//! Callbacks that say when and where they ran: what the suites `rcu_callbacks` and `rcu_nocb` share.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use arch::{AtomicCpuMask, CpuId, CpuMask, clock, cpu};
use rcu::{CallbackHead, call_rcu, call_rcu_hurry};
use sched::{JoinHandle, Prio};
use sync::MaySleep;

use crate::Failure;
use crate::toggle::MS;

/// What many callbacks have done.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) queued: AtomicUsize,
    pub(crate) ran: AtomicUsize,
    /// Nanoseconds between queueing and running, the least of all; `u64::MAX` before the first.
    pub(crate) least_ns: AtomicU64,
    ran_on: AtomicCpuMask,
}

#[repr(C)]
struct Counted {
    head: CallbackHead,
    tally: Arc<Tally>,
    queued_ns: u64,
}

/// # Safety
/// `head` is that of a `Counted` that was leaked to the callback.
unsafe fn count(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head is the first field.
    let counted = unsafe { Box::from_raw(head.cast::<Counted>()) };
    let tally = &counted.tally;
    tally.least_ns.fetch_min(clock::now_ns() - counted.queued_ns, Relaxed);
    tally.ran_on.set(cpu::current());
    tally.ran.fetch_add(1, SeqCst);
}

impl Tally {
    pub(crate) fn new() -> Arc<Tally> {
        let tally = Tally::default();
        tally.least_ns.store(u64::MAX, Relaxed);
        Arc::new(tally)
    }

    /// Queues one more, lazy if the CPU's callbacks are.
    pub(crate) fn queue(self: &Arc<Tally>) {
        // SAFETY: leaked to the callback.
        unsafe { call_rcu(self.one_more(), count) };
    }

    /// Queues one more, never lazy.
    pub(crate) fn queue_hurry(self: &Arc<Tally>) {
        // SAFETY: leaked to the callback.
        unsafe { call_rcu_hurry(self.one_more(), count) };
    }

    fn one_more(self: &Arc<Tally>) -> *mut CallbackHead {
        self.queued.fetch_add(1, SeqCst);
        let counted = Counted { head: CallbackHead::new(), tally: self.clone(), queued_ns: clock::now_ns() };
        Box::into_raw(Box::new(counted)).cast()
    }

    /// Those that have not run.
    pub(crate) fn waiting(&self) -> usize {
        // In this order: none has run that is not counted as queued.
        let ran = self.ran.load(SeqCst);
        self.queued.load(SeqCst) - ran
    }

    /// CPUs where any ran.
    pub(crate) fn ran_on(&self) -> CpuMask {
        self.ran_on.load()
    }
}

/// Runs `f` in a thread on `cpu` and returns what it returns.
pub(crate) fn on_cpu<T: Send + 'static>(
    cx: &mut MaySleep,
    cpu: CpuId,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<T, Failure> {
    start(cx, Prio::NORMAL, Some(cpu), f).map(|thread| thread.join(cx))
}

/// Starts a thread.
pub(crate) fn start<T: Send + 'static>(
    cx: &mut MaySleep,
    prio: Prio,
    on: Option<CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<JoinHandle<T>, Failure> {
    sched::spawn(cx, "callbacks", prio, on, f).map_err(|error| crate::__failed!("{error}"))
}

/// Sleeps until `cond`, at most 20 s; true if it came.
pub(crate) fn soon(cx: &mut MaySleep, cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS);
    }
    cond()
}

/// Times that node locks of RCU were taken, the sum of the root's and the most of any.
pub(crate) fn node_locks() -> u64 {
    let stats = rcu::stats();
    stats.root_locked + stats.most_locked
}
