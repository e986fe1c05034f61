//! Boosting: a reader without a CPU, behind threads that compute on all of them, does not keep a grace period from its end.
//!
//! A trial: a reader of the least priority is in its section; on every CPU a thread of higher priority begins to compute. The
//! section can end only when the reader gets a CPU, and it gets one only if it is boosted. Everything else that is tortured
//! stands still meanwhile. A trial fails if the grace period is not over after [`CAP_NS`], in which the threads have computed
//! for [`COMPUTED`] steps each: a host that gives no time is not RCU's fault.
//!
//! Linux: `rcu_torture_boost` in kernel/rcu/rcutorture.c (`rtbf`, `rtb`); row C-7.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{clock, cpu, irq};
use rcu::poll;
use sched::Prio;
use sync::{ATOMIC, MaySleep, Rng};

use super::Torture;
use crate::Failure;
use crate::torture::control;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// A grace period that takes longer than this is held up.
const CAP_NS: u64 = 8_000 * MS;
/// A step is so long, and so many have to be taken by each thread before a trial has failed.
const STEP_US: u64 = 10;
const COMPUTED: u64 = 100_000;

/// Trials, those that failed, readers that were raised in them, and what was missing for some.
#[derive(Default)]
pub(crate) struct Boosts {
    pub(crate) trials: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Threads that could not be had for one.
    pub(crate) no_threads: AtomicU64,
    pub(crate) raised: AtomicU64,
}

/// A trial's threads.
#[derive(Default)]
struct Trial {
    /// The reader is in its section.
    reads: AtomicBool,
    /// Everybody who computes does so: the reader may end its section, if it can.
    computing: AtomicBool,
    /// It is over.
    over: AtomicBool,
}

impl Torture {
    /// The thread that leads trials, more urgent than all others.
    pub(super) fn boost(&self, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        while !control::rest(cx, self.setup.boost_interval_ns) {
            if !control::is_paused() && rcu::boost_delay() != 0 {
                self.try_to_boost(&mut rng, cx)?;
            }
        }
        Ok(())
    }

    fn try_to_boost(&self, rng: &mut Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        let failed = |error| crate::__failed!("boost: {error}");
        let before = rcu::stats().boosts;
        let trial = Arc::<Trial>::default();
        let theirs = trial.clone();
        let online = cpu::online();
        let on = online.iter().nth(rng.index(online.count()));
        let reader = sched::spawn(cx, "boost reader", Prio::BACKGROUND, on, move |_| {
            let section = rcu::read_lock(ATOMIC);
            theirs.reads.store(true, Ordering::Relaxed);
            while !theirs.computing.load(Ordering::Relaxed) && !theirs.over.load(Ordering::Relaxed) {
                irq::relax();
            }
            drop(section);
        })
        .map_err(failed)?;
        while !trial.reads.load(Ordering::Relaxed) {
            sched::sleep_ns(cx, MS);
        }
        let mut hogs = Vec::new();
        let steps: Arc<Vec<AtomicU64>> = Arc::new(online.iter().map(|_| AtomicU64::new(0)).collect());
        for (at, on) in online.iter().enumerate() {
            let (trial, steps) = (trial.clone(), steps.clone());
            let hog = sched::spawn(cx, "boost hog", Prio::HIGH, Some(on), move |_| {
                while !trial.over.load(Ordering::Relaxed) {
                    clock::udelay(STEP_US);
                    steps[at].fetch_add(1, Ordering::Relaxed);
                }
            });
            match hog {
                Ok(hog) => hogs.push(hog),
                Err(_) => _ = self.boosts.no_threads.fetch_add(1, Ordering::Relaxed),
            }
        }
        // Somebody else's grace period may have the reader raised before all compute. On its CPU nobody will begin to then.
        let is_raised = || rcu::stats().boosts != before;
        let least = || steps.iter().map(|steps| steps.load(Ordering::Relaxed)).min().unwrap_or(0);
        while least() == 0 && !is_raised() && !control::should_stop() && hogs.len() == online.count() {
            sched::sleep_ns(cx, MS);
        }
        trial.computing.store(true, Ordering::Relaxed);
        let (cookie, begun_ns) = (rcu::start_poll_full(), clock::now_ns());
        let lasted = || clock::now_ns() - begun_ns;
        while !poll(cookie) && (lasted() < CAP_NS || least() < COMPUTED) {
            sched::sleep_ns(cx, MS);
        }
        if !poll(cookie) {
            self.boosts.failed.fetch_add(1, Ordering::Relaxed);
        }
        trial.over.store(true, Ordering::Relaxed);
        hogs.into_iter().for_each(|hog| hog.join(cx));
        reader.join(cx);
        self.boosts.trials.fetch_add(1, Ordering::Relaxed);
        self.boosts.raised.fetch_add(rcu::stats().boosts - before, Ordering::Relaxed);
        Ok(())
    }
}
