//! Grace periods that are held up on purpose: by stalls that have to be reported, and by short delays of their thread.
//!
//! A **stall** keeps a CPU from its quiescent state for `rcutorture.stall_cpu` seconds: with preemption off, with interrupts
//! off (`stall_cpu_irqsoff`), or in a reader that has lost its CPU (`stall_cpu_block`); or it keeps the grace-period thread from
//! its CPU (`stall_gp_kthread`). Half that time is the limit meanwhile, so a report has to come; it is marked as a drill. On a
//! host that is busy elsewhere it comes later, because RCU counts only time that the guest got: so a stall lasts until it is
//! reported, and has failed after [`PATIENCE_NS`].
//!
//! A **delay** sends the grace-period thread to a CPU and computes there at the highest priority for a while, so that any step
//! of a grace period may come late: its begin, its set-up at each node, its end. (Linux sleeps at three places for that.)
//!
//! Linux: `rcu_torture_stall` in kernel/rcu/rcutorture.c, `rcu_gp_slow` in kernel/rcu/tree.c; row C-7.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::Arc;
use arch::{CpuMask, clock, cpu};
use rcu::stall::{self, Limits};
use sched::{Prio, Thread};
use sync::{IrqGuard, MaySleep, PreemptGuard, Rng};

use super::Torture;
use super::setup::StallWay;
use crate::torture::control;
use crate::{Failure, ensure};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// A report that has not come after so long never will.
const PATIENCE_NS: u64 = 20_000 * MS;

/// The grace-period thread.
pub(crate) fn gp_thread() -> Option<&'static Thread> {
    let mut found = None;
    sched::thread::for_each(|thread| {
        if thread.name().as_str() == "rcu_preempt" {
            found = Some(thread);
        }
    });
    found
}

/// Computes for `ns`, whatever is off.
fn compute(ns: u64) {
    let end = clock::now_ns() + ns;
    while clock::now_ns() < end {
        clock::udelay(100);
    }
}

/// A stall as its threads see it.
#[derive(Copy, Clone)]
struct Lasting {
    /// For so long at least.
    ns: u64,
    /// Drills reported before it.
    reports: u64,
}

impl Lasting {
    fn is_reported(self) -> bool {
        stall::reports().1 != self.reports
    }

    /// Computes until it is over.
    fn stay(self) {
        let begun_ns = clock::now_ns();
        compute(self.ns);
        while !self.is_reported() && clock::now_ns() - begun_ns < PATIENCE_NS {
            clock::udelay(100);
        }
    }
}

impl Torture {
    /// The thread that delays grace periods.
    pub(super) fn delay_grace_periods(&self, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        let most_ns = self.setup.gp_delay_ns;
        let Some(thread) = gp_thread() else { return Err(crate::__failed!("there is no thread rcu_preempt")) };
        while !control::rest(cx, rng.below(8 * most_ns)) {
            if control::is_paused() {
                continue;
            }
            let here = {
                let _pin = PreemptGuard::new(&*cx);
                cpu::current()
            };
            // A CPU that goes meanwhile takes the wish with it.
            let sent = sched::affinity::set_affinity(thread, &CpuMask::of(here), cx);
            if sent.is_ok() {
                compute(rng.below(most_ns));
            }
            let everywhere = sched::affinity::set_affinity(thread, &cpu::present(), cx);
            ensure!(everywhere.is_ok(), "{everywhere:?}");
            self.gp_delays.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Stalls, and reports of them.
#[derive(Default)]
pub(crate) struct Stalls {
    pub(crate) made: AtomicU64,
    /// Those that nobody reported.
    pub(crate) unseen: AtomicU64,
}

impl Torture {
    /// The thread that makes stalls.
    pub(super) fn stall(self: &Arc<Self>, way: StallWay, cx: &mut MaySleep) -> Result<(), Failure> {
        while !control::rest(cx, self.setup.stall_holdoff_ns) {
            if control::is_paused() {
                continue;
            }
            let stall = Lasting { ns: self.setup.stall_ns, reports: stall::reports().1 };
            let limit = stall.ns / 2;
            let old = stall::set_limits(Limits { normal_ns: limit, expedited_ns: limit, drill: true });
            // One that the stall is in the way of.
            let cookie = rcu::start_poll_full();
            match way {
                StallWay::NoPreemption => {
                    let _off = PreemptGuard::new(&*cx);
                    stall.stay();
                }
                StallWay::NoInterrupts => {
                    let _off = IrqGuard::new(&*cx);
                    stall.stay();
                }
                StallWay::LostCpu => self.stall_without_a_cpu(stall, cx)?,
                StallWay::GpThread => self.stall_gp_thread(stall, cx)?,
            }
            while !rcu::poll(cookie) && !control::should_stop() {
                sched::sleep_ns(cx, MS);
            }
            stall::set_limits(old);
            self.stalls.made.fetch_add(1, Ordering::Relaxed);
            if !stall.is_reported() {
                self.stalls.unseen.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// A reader of the least priority, behind this thread on its CPU, and not boosted.
    fn stall_without_a_cpu(&self, stall: Lasting, cx: &mut MaySleep) -> Result<(), Failure> {
        let _no_boosting = crate::together::BoostDelay::new(0);
        let stay = sched::MigrateGuard::new(&*cx);
        let begun = Arc::new(AtomicU64::new(0));
        let theirs = begun.clone();
        let reader = sched::spawn(cx, "stall reader", Prio::BACKGROUND, Some(cpu::current()), move |cx| {
            let section = rcu::read_lock(cx);
            theirs.store(1, Ordering::Relaxed);
            while theirs.load(Ordering::Relaxed) == 1 {
                clock::udelay(10);
            }
            drop(section);
        })
        .map_err(|error| crate::__failed!("stall: {error}"))?;
        while begun.load(Ordering::Relaxed) == 0 {
            sched::sleep_ns(cx, MS);
        }
        stall.stay();
        begun.store(2, Ordering::Relaxed);
        drop(stay);
        reader.join(cx);
        Ok(())
    }

    fn stall_gp_thread(&self, stall: Lasting, cx: &mut MaySleep) -> Result<(), Failure> {
        let Some(thread) = gp_thread() else { return Err(crate::__failed!("there is no thread rcu_preempt")) };
        let stay = sched::MigrateGuard::new(&*cx);
        let sent = sched::affinity::set_affinity(thread, &CpuMask::of(cpu::current()), cx);
        stall.stay();
        drop(stay);
        let everywhere = sched::affinity::set_affinity(thread, &cpu::present(), cx);
        ensure!(sent.is_ok() && everywhere.is_ok(), "{sent:?}, {everywhere:?}");
        Ok(())
    }
}
