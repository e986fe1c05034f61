//! What the seeded PAUSE points of the build feature `explore` find: two races that are planted here, one that every seed
//! hits and one that some do. Which ones, and how often, is the same each time in a deterministic run.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::cpu;
use sync::explore::{self, point};
use sync::{param, smp};

use crate::{ensure, ktest, skip};

param! {
    /// The suite `explore` fails where it finds the rare one of its planted races, instead of counting it.
    static PLANTED: bool = "grange.planted_race", default false;
}

/// Adds one, on every CPU, each time as a load and a store with `between` in between. Returns how often that took away
/// what another CPU had added meanwhile.
fn racy_updates(between: fn()) -> u64 {
    const EACH: u64 = 2_000;
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static RACED: AtomicU64 = AtomicU64::new(0);
    RACED.store(0, Relaxed);
    smp::run_on_mask(&cpu::online(), |_| {
        for _ in 0..EACH {
            let before = COUNT.load(Relaxed);
            between();
            if COUNT.swap(before + 1, Relaxed) != before {
                RACED.fetch_add(1, Relaxed);
            }
        }
    });
    RACED.load(Relaxed)
}

/// Every CPU takes a place that looks free to it. Returns how many took it.
fn claim_one_place() -> u64 {
    static PLACE: AtomicU64 = AtomicU64::new(0);
    static TAKERS: AtomicU64 = AtomicU64::new(0);
    PLACE.store(0, Relaxed);
    TAKERS.store(0, Relaxed);
    smp::run_on_mask(&cpu::online(), |id| {
        if PLACE.load(Relaxed) == 0 {
            point();
            PLACE.store(id.index() as u64 + 1, Relaxed);
            TAKERS.fetch_add(1, Relaxed);
        }
    });
    TAKERS.load(Relaxed)
}

ktest! {
    /// Every seed finds a load and a store that belong together and are apart.
    fn a_point_in_an_update_that_is_not_atomic_loses_updates(t: &mut Test) {
        if !explore::ENABLED || cpu::online_count() < 2 {
            skip!("needs a kernel with the feature `explore` and two CPUs");
        }
        let (without, with) = (racy_updates(|| ()), racy_updates(point));
        t.note(format_args!("{without} updates raced without points, {with} with them"));
        // Without points a CPU is interrupted by a timer's deadline only: now and then at just this place.
        ensure!(with > 10 && with > 4 * without, "{without} updates raced without points, {with} with them");
        Ok(())
    }

    /// Some seeds find a place that is taken twice. With `grange.planted_race` they fail here.
    fn a_place_that_is_looked_at_and_then_taken_is_taken_twice_with_some_seeds(t: &mut Test) {
        const ROUNDS: usize = 16;
        if !explore::ENABLED || cpu::online_count() < 2 {
            skip!("needs a kernel with the feature `explore` and two CPUs");
        }
        let raced = (0..ROUNDS).filter(|_| claim_one_place() > 1).count();
        t.note(format_args!("taken twice in {raced} of {ROUNDS} rounds"));
        ensure!(raced == 0 || !PLANTED.get(), "taken twice in {raced} of {ROUNDS} rounds");
        Ok(())
    }
}
