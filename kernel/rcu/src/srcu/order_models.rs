//! Models of the reader and the grace period over one domain's counters, with barriers and steps left out one at a time.
//!
//! Two CPUs have counters; a reader may count its lock on one and its unlock on the other. What readers find through `published`
//! is a cell that the updater writes when it has waited: loom calls it a race if a reader's look at it is not ordered before.

use std::sync::Arc;
use std::vec::Vec;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use super::{All, Barriers, all_gone, begin, end, flip};
use crate::seq::SeqCounter;
use sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const OLD: usize = 0;
const NEW: usize = 1;

/// What a model leaves out of the grace period.
#[derive(Copy, Clone)]
struct Steps {
    first_look: bool,
    flip: bool,
    second_look: bool,
}

const ALL_STEPS: Steps = Steps { first_look: true, flip: true, second_look: true };

struct Domain {
    current: AtomicUsize,
    /// By index and CPU.
    locks: [[AtomicU64; 2]; 2],
    unlocks: [[AtomicU64; 2]; 2],
    seq: SeqCounter,
    /// Which version readers find.
    published: AtomicUsize,
    old: UnsafeCell<u64>,
}

// SAFETY: `old` is what the model is about: loom checks each access.
unsafe impl Sync for Domain {}
// SAFETY: as above.
unsafe impl Send for Domain {}

impl Domain {
    fn new() -> Arc<Domain> {
        let counters = || core::array::from_fn(|_| core::array::from_fn(|_| AtomicU64::new(0)));
        Arc::new(Domain {
            current: AtomicUsize::new(0),
            locks: counters(),
            unlocks: counters(),
            seq: SeqCounter::new(),
            published: AtomicUsize::new(OLD),
            old: UnsafeCell::new(0),
        })
    }

    /// A section that begins on one CPU and ends on another, or the same.
    fn read<O: Barriers>(&self, from: usize, to: usize) {
        let index = self.current.load(Ordering::Relaxed);
        begin::<O>(|| _ = self.locks[index][from].fetch_add(1, Ordering::Relaxed));
        if self.published.load(Ordering::Relaxed) == OLD {
            self.old.with(|old| {
                // SAFETY: loom checks that nobody writes meanwhile.
                unsafe { old.read() }
            });
        }
        end::<O>(|| _ = self.unlocks[index][to].fetch_add(1, Ordering::Relaxed));
    }

    fn look<O: Barriers>(&self) {
        let idle = 1 - self.current.load(Ordering::Relaxed);
        let sum = |counters: &[AtomicU64; 2]| counters.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        while !all_gone(|| sum(&self.unlocks[idle]), O::a, || sum(&self.locks[idle])) {
            thread::yield_now();
        }
    }

    fn grace_period<O: Barriers>(&self, steps: Steps) {
        self.seq.start();
        if steps.first_look {
            self.look::<O>();
        }
        if steps.flip {
            flip::<O>(|| self.current.store(1 - self.current.load(Ordering::Relaxed), Ordering::Relaxed));
        }
        if steps.second_look {
            self.look::<O>();
        }
        self.seq.end();
    }

    /// Publishes another version, waits for a grace period, frees the old one.
    fn update<O: Barriers>(&self, steps: Steps) {
        self.published.store(NEW, Ordering::Relaxed);
        let target = self.seq.snap();
        self.grace_period::<O>(steps);
        assert!(self.seq.done(target));
        self.old.with_mut(|old| {
            // SAFETY: loom checks that nobody reads meanwhile, which is what a grace period is for.
            unsafe { old.write(1) };
        });
    }
}

fn bounded(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Readers by the CPUs that they begin and end on, and an updater that has waited for `before` grace periods already while
/// they may be under way.
fn readers_and_updater<O: Barriers + 'static>(readers: &'static [(usize, usize)], before: usize, steps: Steps) {
    bounded(3, move || {
        let domain = Domain::new();
        let threads: Vec<_> = readers
            .iter()
            .map(|&(from, to)| {
                let domain = domain.clone();
                thread::spawn(move || domain.read::<O>(from, to))
            })
            .collect();
        for _ in 0..before {
            domain.grace_period::<O>(steps);
        }
        domain.update::<O>(steps);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// One that moves between the CPUs, and one that stays where the other ends.
const TWO: &[(usize, usize)] = &[(0, 1), (1, 1)];
const ONE: &[(usize, usize)] = &[(0, 0)];

#[test]
fn loom_no_reader_outlasts_a_grace_period() {
    readers_and_updater::<All>(TWO, 0, ALL_STEPS);
}

#[test]
fn loom_a_reader_with_an_index_from_an_earlier_grace_period_is_waited_for() {
    readers_and_updater::<All>(ONE, 1, ALL_STEPS);
}

/// `All` but for some letters.
macro_rules! without {
    ($name:ident, $($letter:ident),+) => {
        struct $name;
        impl Barriers for $name {
            $(fn $letter() {})+
        }
    };
}

without!(NoA, a);
without!(NoB, b);
without!(NoC, c);
without!(NoD, d);
without!(NoDorE, d, e);

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_without_a_a_reader_hides_behind_another_ones_unlock() {
    readers_and_updater::<NoA>(TWO, 0, ALL_STEPS);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_without_b_a_reader_is_not_seen() {
    readers_and_updater::<NoB>(ONE, 0, ALL_STEPS);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_without_c_a_reader_reads_behind_its_unlock() {
    readers_and_updater::<NoC>(ONE, 0, ALL_STEPS);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_without_the_first_look_a_late_reader_is_missed() {
    readers_and_updater::<All>(ONE, 1, Steps { first_look: false, ..ALL_STEPS });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_without_the_flip_one_index_is_never_looked_at() {
    readers_and_updater::<All>(ONE, 0, Steps { flip: false, ..ALL_STEPS });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_without_the_second_look_nobody_is_waited_for() {
    readers_and_updater::<All>(ONE, 0, Steps { second_look: false, ..ALL_STEPS });
}

/// Safety does not need D and E.
#[test]
fn loom_without_d_and_e_no_reader_outlasts_a_grace_period() {
    readers_and_updater::<NoDorE>(TWO, 0, ALL_STEPS);
}

/// Progress needs D: if the look after a flip misses a reader's unlock, the section that the reader begins after its next one is
/// at the new index.
fn progress<O: Barriers + 'static>() {
    loom::model(|| {
        let domain = Domain::new();
        let theirs = domain.clone();
        let reader = thread::spawn(move || {
            end::<O>(|| _ = theirs.unlocks[0][0].fetch_add(1, Ordering::Relaxed));
            begin::<O>(|| _ = theirs.locks[0][0].fetch_add(1, Ordering::Relaxed));
            theirs.current.load(Ordering::Relaxed)
        });
        flip::<O>(|| domain.current.store(1, Ordering::Relaxed));
        let missed = domain.unlocks[0][0].load(Ordering::Relaxed) == 0;
        let next = reader.join().unwrap();
        assert!(!missed || next == 1, "the reader comes back to the index that is looked at");
    });
}

#[test]
fn loom_a_reader_that_a_look_misses_leaves_its_index() {
    progress::<All>();
}

#[test]
#[should_panic(expected = "comes back to the index")]
fn loom_without_d_it_may_come_back() {
    progress::<NoD>();
}
