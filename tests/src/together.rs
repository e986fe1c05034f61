//! Threads of a test that go through something together: begun in one line, steps that they wait for, waits that end.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::{CpuId, clock, cpu, irq};
use rcu::{synchronize_rcu, synchronize_rcu_expedited};
use sched::Prio;
use sync::MaySleep;

use crate::{Failure, skip};

/// A millisecond in nanoseconds.
pub const MS: u64 = 1_000_000;

/// Starts a thread of normal priority, or fails the test.
pub fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    on: Option<CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<sched::JoinHandle<T>, Failure> {
    sched::spawn(cx, "test", Prio::NORMAL, on, f).map_err(|error| crate::__failed!("{error}"))
}

/// Sleeps until `cond`, at most 20 s; true if it came.
pub fn soon(cx: &mut MaySleep, cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS);
    }
    cond()
}

/// Spins until `cond`, at most 20 s; true if it came. For places that cannot sleep.
pub fn spin_until(cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        irq::relax();
    }
    cond()
}

/// Two CPUs; skips the test on a machine with one.
pub fn two_cpus() -> Result<(CpuId, CpuId), Failure> {
    let mut cpus = cpu::online().iter();
    match (cpus.next(), cpus.next()) {
        (Some(a), Some(b)) => Ok((a, b)),
        _ => skip!("needs two CPUs"),
    }
}

/// Steps that two threads go through together.
#[derive(Clone, Default)]
pub struct Steps(Arc<AtomicUsize>);

impl Steps {
    /// None reached yet.
    #[must_use]
    pub fn new() -> Steps {
        Steps::default()
    }
    /// This one is reached now.
    pub fn reach(&self, step: usize) {
        // Release: pairs with the Acquire below; a step is seen with what was done before it.
        self.0.store(step, Ordering::Release);
    }
    /// Whether it is reached.
    #[must_use]
    pub fn is_at(&self, step: usize) -> bool {
        self.0.load(Ordering::Acquire) >= step
    }
}

/// A thread on `on` that is a reader from step 1 to step 2. It returns false if step 2 did not come.
pub fn reader_between(cx: &mut MaySleep, on: CpuId, steps: &Steps) -> Result<sched::JoinHandle<bool>, Failure> {
    let steps = steps.clone();
    spawn(cx, Some(on), move |cx| {
        let guard = rcu::read_lock(cx);
        steps.reach(1);
        let released = spin_until(|| steps.is_at(2));
        drop(guard);
        released
    })
}

/// Both ways to wait for a grace period.
pub const WAITS: [fn(&mut MaySleep); 2] = [synchronize_rcu, synchronize_rcu_expedited];

/// The running thread above all that a test starts, boosted readers included, until this goes.
pub(crate) struct Urgent(Prio);

impl Urgent {
    pub(crate) fn new() -> Urgent {
        let before = sched::prio_of(sched::current());
        sched::set_prio(sched::current(), Prio::CRITICAL);
        Urgent(before)
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        sched::set_prio(sched::current(), self.0);
    }
}

/// Boosting as a test wants it, until this goes. A test whose reader waits for what less urgent threads do wants none.
pub struct BoostDelay(u64);

impl BoostDelay {
    /// In milliseconds; 0 is never.
    #[must_use]
    pub fn new(ms: u64) -> BoostDelay {
        let before = rcu::boost_delay();
        rcu::set_boost_delay(ms);
        BoostDelay(before)
    }
}

impl Drop for BoostDelay {
    fn drop(&mut self) {
        rcu::set_boost_delay(self.0);
    }
}
