//! Boosting: a preempted reader that gets no CPU does not hold grace periods up for ever.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{CpuId, clock, cpu, irq};
use rcu::{read_lock, set_boost_delay, synchronize_rcu, synchronize_rcu_expedited};
use sched::{JoinHandle, Prio, Thread};
use sync::{ATOMIC, MaySleep};

use crate::together::{BoostDelay, MS, Urgent, WAITS, soon};
use crate::{Failure, Test, ensure, ensure_eq, ktest};

fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    name: &str,
    prio: Prio,
    on: Option<CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<JoinHandle<T>, Failure> {
    sched::spawn(cx, name, prio, on, f).map_err(|error| crate::__failed!("{error}"))
}

/// A reader of little urgency in its section, without a CPU, and on every CPU a thread that computes and is more urgent. One
/// that is dropped ends by itself.
struct Starved {
    reader: Option<JoinHandle<Prio>>,
    hogs: Vec<JoinHandle<()>>,
    /// The reader may end its section.
    release: Arc<AtomicBool>,
    /// The hogs may end.
    stop: Arc<AtomicBool>,
    /// Steps of the reader: it moves only if it gets a CPU.
    steps: Arc<AtomicU64>,
}

impl Starved {
    /// The reader returns the level that it has once its section is over.
    fn new(t: &mut Test<'_>) -> Result<Starved, Failure> {
        let (release, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let steps = Arc::new(AtomicU64::new(0));
        let on = cpu::online().iter().last();
        let (released, stepped) = (release.clone(), steps.clone());
        let reader = spawn(t.cx, "reader", Prio::BACKGROUND, on, move |_| {
            let guard = read_lock(ATOMIC);
            while !released.load(Ordering::Relaxed) {
                stepped.fetch_add(1, Ordering::Relaxed);
                irq::relax();
            }
            drop(guard);
            sched::prio_of(sched::current())
        })?;
        ensure!(soon(t.cx, || steps.load(Ordering::Relaxed) > 0), "the reader does not begin");
        let mut starved = Starved { reader: Some(reader), hogs: Vec::new(), release, stop, steps };
        for on in cpu::online().iter() {
            let stopped = starved.stop.clone();
            starved.hogs.push(spawn(t.cx, "hog", Prio::HIGH, Some(on), move |_| {
                while !stopped.load(Ordering::Relaxed) {
                    irq::relax();
                }
            })?);
        }
        let thread = starved.thread();
        ensure!(soon(t.cx, || thread.involuntary_switches() > 0), "the reader keeps its CPU");
        Ok(starved)
    }

    fn thread(&self) -> &'static Thread {
        self.reader.as_ref().expect("it is there till the end").thread()
    }

    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Ends all of it; the level that the reader had after its section.
    fn end(mut self, cx: &mut MaySleep) -> Prio {
        self.let_go();
        self.hogs.drain(..).for_each(|hog| hog.join(cx));
        self.reader.take().expect("it is there till now").join(cx)
    }

    fn let_go(&self) {
        self.release.store(true, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// A thread that waits for a grace period, and says when it is over.
fn waiter(t: &mut Test<'_>, wait: fn(&mut MaySleep)) -> Result<(JoinHandle<()>, Arc<AtomicBool>), Failure> {
    let over = Arc::new(AtomicBool::new(false));
    let theirs = over.clone();
    let waits = move |cx: &mut MaySleep| {
        wait(cx);
        theirs.store(true, Ordering::Relaxed);
    };
    Ok((spawn(t.cx, "waiter", Prio::CRITICAL, None, waits)?, over))
}

ktest! {
    /// the reader gets a CPU for its section, and not for longer. Without boosting it gets none.
    #[budget_ms(60_000)]
    fn a_starved_reader_is_raised_until_its_outermost_unlock(t: &mut Test) {
        for wait in WAITS {
            let _setting = (Urgent::new(), BoostDelay::new(0));
            let before = rcu::stats().boosts;
            let starved = Starved::new(t)?;
            let (waits, over) = waiter(t, wait)?;
            sched::sleep_ns(t.cx, 20 * MS);
            // 25 ticks and more, for all of which the reader stands still.
            let stood = starved.steps();
            sched::sleep_ns(t.cx, 100 * MS);
            ensure_eq!(starved.steps(), stood);
            ensure!(!over.load(Ordering::Relaxed) && rcu::stats().boosts == before, "boosted although it is off");
            ensure_eq!(sched::prio_of(starved.thread()), Prio::BACKGROUND);

            set_boost_delay(10);
            ensure!(soon(t.cx, || starved.steps() > stood), "it still has no CPU");
            ensure_eq!(sched::prio_of(starved.thread()), Prio::RCU);
            ensure!(!over.load(Ordering::Relaxed), "over while the reader reads");
            ensure_eq!(rcu::stats().boosts, before + 1);
            starved.release.store(true, Ordering::Relaxed);
            ensure!(soon(t.cx, || over.load(Ordering::Relaxed)), "the hogs still hold the grace period up");
            waits.join(t.cx);
            let thread = starved.thread();
            ensure!(soon(t.cx, || sched::prio_of(thread) == Prio::BACKGROUND), "raised beyond its section");
            ensure_eq!(starved.end(t.cx), Prio::BACKGROUND);
        }
        Ok(())
    }

    /// BST-3: what the owner sets during a boost is what the reader has afterwards.
    fn a_level_set_during_a_boost_holds_after_it(t: &mut Test) {
        let _setting = (Urgent::new(), BoostDelay::new(1));
        let starved = Starved::new(t)?;
        let (waits, _) = waiter(t, synchronize_rcu)?;
        let thread = starved.thread();
        ensure!(soon(t.cx, || sched::prio_of(thread) == Prio::RCU), "not boosted");
        sched::set_prio(thread, Prio::NORMAL);
        ensure_eq!(sched::prio_of(thread), Prio::RCU);
        ensure_eq!(starved.end(t.cx), Prio::NORMAL);
        waits.join(t.cx);
        Ok(())
    }

    /// BST-1 and BST-2, where the two sides meet: readers that leave their sections and exit while they are being raised,
    /// and their threads used again at once.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_thread_that_follows_a_boosted_one_is_raised(t: &mut Test) {
        let _setting = (Urgent::new(), BoostDelay::new(1));
        let stop = Arc::new(AtomicBool::new(false));
        let mut waiters = Vec::new();
        for _ in 0..2 {
            let stopped = stop.clone();
            waiters.push(spawn(t.cx, "waiter", Prio::HIGH, None, move |cx| {
                while !stopped.load(Ordering::Relaxed) {
                    synchronize_rcu_expedited(cx);
                    sched::sleep_ns(cx, MS);
                }
            })?);
        }
        let before = rcu::stats().boosts;
        let until = clock::now_ns() + 20_000 * MS;
        let mut turns = 0;
        while turns < 40 || (rcu::stats().boosts < before + 10 && clock::now_ns() < until) {
            turns += 1;
            let mut readers = Vec::new();
            for on in cpu::online().iter().chain(cpu::online().iter()) {
                // As long as a tick or two, so that some are preempted and some of those are raised.
                let ns = t.rng.below(8 * MS);
                readers.push(spawn(t.cx, "reader", Prio::NORMAL, Some(on), move |_| {
                    let at_first = sched::prio_of(sched::current());
                    let guard = read_lock(ATOMIC);
                    clock::udelay(ns / 1_000);
                    drop(guard);
                    (at_first, sched::prio_of(sched::current()))
                })?);
            }
            for reader in readers {
                ensure_eq!(reader.join(t.cx), (Prio::NORMAL, Prio::NORMAL));
            }
        }
        stop.store(true, Ordering::Relaxed);
        waiters.into_iter().for_each(|waiter| waiter.join(t.cx));
        let boosts = rcu::stats().boosts - before;
        t.note(format_args!("{boosts} boosts of {turns} rounds of readers"));
        ensure!(boosts >= 10, "too few boosts: {boosts}");
        Ok(())
    }
}
