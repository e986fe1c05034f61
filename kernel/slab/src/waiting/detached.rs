//! Sheaves that wait for a grace period: how many objects, and since when, without a list of them.
//!
//! RCU has the sheaves, in its lists of callbacks, so nobody can ask each for its age. But callbacks come back nearly in the
//! order in which they went, a grace period's worth at a time; so two *generations* will do. Sheaves enter the young one. When
//! the old one has come back whole, the young one has become the old one, and its place is taken by the other, empty.
//! The oldest sheaf is no older than the first of the older generation, and younger by a grace period at most.
//!
//! Two CPUs that begin a generation at the same time may see its time unset: then one residence is taken for none.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Binary logarithm of the nanoseconds in a unit of [`Stamp::after`]: 65 µs, so that a generation may collect for 4 s.
const UNIT: u32 = 16;

/// When a sheaf was detached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    /// Its generation is the second one.
    pub(crate) second: bool,
    /// How long the generation had been there, in units of 2^16 ns; the largest for longer.
    pub(crate) after: u16,
}

/// Those of one cache and node. Written by CPUs that detach sheaves or run their callbacks, one locked add each.
pub(crate) struct Detached {
    /// Which generation is the young one.
    young: AtomicUsize,
    generations: [Generation; 2],
}

struct Generation {
    /// Objects in sheaves that have not come back.
    objects: AtomicU64,
    /// When its first sheaf was detached. Says nothing while there are no objects.
    since_ns: AtomicU64,
}

impl Generation {
    const fn new() -> Self {
        Self { objects: AtomicU64::new(0), since_ns: AtomicU64::new(0) }
    }

    fn is_empty(&self) -> bool {
        self.objects.load(Relaxed) == 0
    }
}

impl Detached {
    pub(crate) const fn new() -> Self {
        Self { young: AtomicUsize::new(0), generations: [const { Generation::new() }; 2] }
    }

    /// A sheaf of `objects` is detached.
    pub(crate) fn enter(&self, objects: usize, now_ns: u64) -> Stamp {
        let mut index = self.young.load(Relaxed);
        if self.generations[1 - index].is_empty() && !self.generations[index].is_empty() {
            index = 1 - index;
            // Relaxed, and by a plain store: whoever still has the other index puts its sheaf there, which is as right.
            self.young.store(index, Relaxed);
        }
        let generation = &self.generations[index];
        if generation.objects.fetch_add(objects as u64, Relaxed) == 0 {
            generation.since_ns.store(now_ns, Relaxed);
        }
        let after = now_ns.saturating_sub(generation.since_ns.load(Relaxed)) >> UNIT;
        Stamp { second: index != 0, after: after.min(u16::MAX.into()) as u16 }
    }

    /// That sheaf has come back. Returns how long it was away, in nanoseconds.
    pub(crate) fn leave(&self, objects: usize, stamp: Stamp, now_ns: u64) -> u64 {
        let generation = &self.generations[usize::from(stamp.second)];
        let at_ns = generation.since_ns.load(Relaxed) + (u64::from(stamp.after) << UNIT);
        generation.objects.fetch_sub(objects as u64, Relaxed);
        now_ns.saturating_sub(at_ns)
    }

    pub(crate) fn objects(&self) -> u64 {
        self.generations.iter().map(|generation| generation.objects.load(Relaxed)).sum()
    }

    /// When the oldest was detached, or at most a grace period before that.
    pub(crate) fn since_ns(&self) -> Option<u64> {
        let filled = self.generations.iter().filter(|generation| !generation.is_empty());
        filled.map(|generation| generation.since_ns.load(Relaxed)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_age_is_that_of_the_first_of_the_older_generation() {
        let detached = Detached::new();
        assert_eq!((detached.objects(), detached.since_ns()), (0, None));
        let first = detached.enter(60, 100 * MS);
        // The other generation is empty, so the first one collects no more.
        let second = detached.enter(60, 110 * MS);
        let third = detached.enter(7, 120 * MS);
        assert_eq!([second, third].map(|stamp| stamp.second != first.second), [true; 2]);
        assert_eq!((detached.objects(), detached.since_ns()), (127, Some(100 * MS)));
        detached.leave(60, first, 140 * MS);
        assert_eq!((detached.objects(), detached.since_ns()), (67, Some(110 * MS)));
        let fourth = detached.enter(1, 150 * MS);
        assert_eq!(fourth.second, first.second, "the place that became empty");
        detached.leave(60, second, 160 * MS);
        assert_eq!(detached.since_ns(), Some(110 * MS), "older than the third, by less than a grace period");
        for (objects, stamp) in [(7, third), (1, fourth)] {
            detached.leave(objects, stamp, 160 * MS);
        }
        assert_eq!((detached.objects(), detached.since_ns()), (0, None));
    }

    #[test]
    fn residence_is_right_to_a_unit_for_as_long_as_a_generation_collects() {
        let detached = Detached::new();
        let held = detached.enter(1, 0);
        // Two more, so that neither generation is ever the young one anew.
        let _also = detached.enter(1, 0);
        for after in [0, 1, 5, 300, 4000] {
            let stamp = detached.enter(10, after * MS);
            let age = detached.leave(10, stamp, 10_000 * MS);
            let exact = (10_000 - after) * MS;
            assert!((exact..=exact + (1 << UNIT)).contains(&age), "{age} for {exact}");
        }
        assert_eq!(detached.leave(1, held, 10_000 * MS), 10_000 * MS);
    }
}
