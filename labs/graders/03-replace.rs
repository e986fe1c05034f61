//! Grades lab 3: values that count how often they are dropped, replaced while somebody looks at them.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::CpuId;
use rcu::{rcu_barrier, read_lock};
use sync::{ATOMIC, IrqGuard, MaySleep, Once};
use tests::stepping::{Visit, runs, step};
use tests::together::{MS, Steps, spawn, spin_until, two_cpus};
use tests::{Failure, ensure, ensure_eq, ktest};

use super::answer::Shared;
use crate::elsewhere;

/// Values that were dropped.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// A value that says who it is, and is somebody else once it was dropped.
struct Value([u64; 4]);

impl Value {
    fn is(&self, id: u64) -> bool {
        self.0 == [id; 4]
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Relaxed);
        self.0 = [u64::MAX; 4];
    }
}

fn shared(id: u64) -> Result<Shared<Value>, Failure> {
    Shared::new(Value([id; 4])).map_err(|_| Failure::Skipped("no memory".into()))
}

fn replace(shared: &Shared<Value>, id: u64) {
    assert!(shared.replace(Value([id; 4])).is_ok(), "no memory");
}

/// How many values are dropped while this runs, and by what it leaves behind.
fn dropped_by(cx: &mut MaySleep, doing: impl FnOnce(&mut MaySleep) -> Result<(), Failure>) -> Result<u64, Failure> {
    rcu_barrier(cx);
    let before = DROPPED.load(Relaxed);
    doing(cx)?;
    rcu_barrier(cx);
    Ok(DROPPED.load(Relaxed) - before)
}

/// The other CPU does its work.
struct Elsewhere;

impl Visit for Elsewhere {
    fn visit() {
        elsewhere::ask();
    }
}

/// For `step`: a visit at each boundary.
const EVERYWHERE: (usize, usize) = (1, 0);

/// Callbacks of a CPU that have not run.
fn queued_on(cpu: CpuId) -> usize {
    rcu::cpu_stats().find(|stats| stats.cpu == cpu).map_or(0, |stats| stats.callbacks)
}

ktest! {
    /// Whoever comes after a replacement finds the new value.
    #[budget_ms(2_000)]
    fn readers_find_the_newest_value(t: &mut Test) {
        let shared = shared(1)?;
        ensure!(shared.get(&read_lock(t.cx)).is(1), "the first value");
        for id in 2..100 {
            replace(&shared, id);
            ensure!(shared.get(&read_lock(t.cx)).is(id), "value {id}, which was put there last");
        }
        Ok(())
    }

    /// A reader on another CPU goes on looking at what it found.
    #[budget_ms(3_000)]
    fn what_a_reader_has_found_outlasts_its_replacement(t: &mut Test) {
        let (_, other) = two_cpus()?;
        let (steps, theirs) = (Steps::new(), Steps::new());
        let (shared, before) = (alloc::sync::Arc::new(shared(1)?), DROPPED.load(Relaxed));
        let reader = {
            let (shared, steps, theirs) = (shared.clone(), steps.clone(), theirs.clone());
            spawn(t.cx, Some(other), move |cx| {
                let guard = read_lock(cx);
                let value = shared.get(&guard);
                theirs.reach(1);
                spin_until(|| steps.is_at(1)) && value.is(1)
            })?
        };
        ensure!(spin_until(|| theirs.is_at(1)), "the reader begins");
        replace(&shared, 2);
        sched::sleep_ns(t.cx, 60 * MS);
        let dropped = DROPPED.load(Relaxed) - before;
        steps.reach(1);
        let whole = reader.join(t.cx);
        ensure_eq!(dropped, 0, "values that were dropped while a reader looked at them");
        ensure!(whole, "the reader's value is what it was");
        Ok(())
    }

    /// Not even where the caller is a reader itself.
    #[budget_ms(1_000)]
    fn a_replacement_waits_for_nobody(t: &mut Test) {
        let shared = shared(1)?;
        let guard = read_lock(t.cx);
        let value = shared.get(&guard);
        replace(&shared, 2);
        ensure!(value.is(1) && shared.get(&guard).is(2), "the old value and the new one, side by side");
        Ok(())
    }

    /// All that was replaced is gone after its grace period, and what was there last goes with the whole.
    #[budget_ms(3_000)]
    fn every_value_is_dropped_once(t: &mut Test) {
        let dropped = dropped_by(t.cx, |_| {
            let shared = shared(1)?;
            (2..=50).for_each(|id| replace(&shared, id));
            Ok(())
        })?;
        ensure_eq!(dropped, 50, "values that were dropped, of 50");
        Ok(())
    }

    /// At no instruction boundary is a value given up that can still be found.
    #[budget_ms(5_000)]
    fn a_value_is_out_of_reach_before_it_is_given_up(t: &mut Test) {
        static SHARED: Once<Shared<Value>> = Once::new();
        static EARLY: AtomicUsize = AtomicUsize::new(0);
        /// The value that is to be replaced, callbacks that wait before, values that were dropped before.
        static OLD: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
        let (here, other) = two_cpus()?;
        let shared = SHARED.try_call_once(|| shared(0))?;
        let look = move || {
            let [id, queued, dropped] = [0, 1, 2].map(|at| OLD[at].load(Relaxed));
            let is_there = shared.get(&read_lock(ATOMIC)).is(id as u64);
            let is_given_up = queued_on(here) > queued || DROPPED.load(Relaxed) > dropped as u64;
            EARLY.fetch_add(usize::from(is_there && is_given_up), Relaxed);
        };
        elsewhere::with(t.cx, other, look, |cx| {
            for next in 1..=3 {
                rcu_barrier(cx);
                let _irqs_off = IrqGuard::new(ATOMIC);
                let then = [next - 1, queued_on(here), DROPPED.load(Relaxed) as usize];
                OLD.iter().zip(then).for_each(|(old, now)| old.store(now, Relaxed));
                let boundaries = step::<Elsewhere>(EVERYWHERE, || replace(shared, next as u64));
                let early = EARLY.load(Relaxed);
                ensure_eq!(early, 0, "boundaries, of {boundaries}, with the old value given up and still to be found");
            }
            Ok(())
        })?
    }

    /// Another CPU replaces the value at any instruction boundary of a replacement.
    #[budget_ms(5_000)]
    fn two_that_replace_at_the_same_time_lose_no_value(t: &mut Test) {
        static SHARED: Once<Shared<Value>> = Once::new();
        static REPLACED: AtomicU64 = AtomicU64::new(0);
        let (_, other) = two_cpus()?;
        let shared = SHARED.try_call_once(|| shared(0))?;
        let theirs = move || replace(shared, 1_000 + REPLACED.fetch_add(1, Relaxed));
        let dropped = dropped_by(t.cx, |cx| {
            elsewhere::with(cx, other, theirs, |_| {
                let mine = || replace(shared, REPLACED.fetch_add(1, Relaxed));
                runs(&[1, 2, 3]).for_each(|run| _ = step::<Elsewhere>(run, mine));
            })
        })?;
        ensure_eq!(dropped, REPLACED.load(Relaxed), "values that were dropped, of those that were replaced");
        Ok(())
    }
}
