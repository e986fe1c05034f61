//! A histogram that anything may feed: buckets by powers of two, each update a few relaxed atomics.
//!
//! Bucket 0 counts zeros, bucket `n` the values from `2^(n-1)` up to but not including `2^n`. Percentiles are read off the
//! buckets, by the share of the bucket that lies below, and never leave the span of what was recorded: right to a factor of
//! two, mostly far better.
//!
//! Invariants
//! - HIST-1: [`Histogram::record`] takes no lock, so it may come from an NMI that hit another `record`.
//! - HIST-2: a [`Snapshot`] counts only what its buckets hold: its figures belong together even if values came in while it
//!   was taken (the sum and the extremes may be ahead of the buckets by those).
//!
//! Rows R-4, R-6 (their figures are shown by it).

use core::sync::atomic::{AtomicU64, Ordering};

/// Zero, and one for each bit.
const BUCKETS: usize = 65;

/// See the module documentation.
///
/// ```
/// use grange_rcu::hist::Histogram;
/// static LENGTHS: Histogram = Histogram::new();
/// for ns in [900, 1_000, 1_100, 40_000] {
///     LENGTHS.record(ns);
/// }
/// let seen = LENGTHS.snapshot();
/// assert_eq!((seen.count, seen.min, seen.max, seen.mean()), (4, 900, 40_000, 10_750));
/// assert!((900..2_048).contains(&seen.percentile(50)));
/// ```
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
}

impl Histogram {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "these are statics, which no Default can make")]
    pub const fn new() -> Self {
        Histogram {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
        }
    }

    /// Counts `value`. Context: any, NMI included (HIST-1); wait-free. The sum wraps.
    pub fn record(&self, value: u64) {
        // Looked at first: few values are extremes, and a locked exchange costs more than a look.
        if value < self.min.load(Ordering::Relaxed) {
            self.min.fetch_min(value, Ordering::Relaxed);
        }
        if value > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(value, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
        self.buckets[bucket_of(value)].fetch_add(1, Ordering::Relaxed);
    }

    /// What has been recorded so far (HIST-2). Context: any.
    pub fn snapshot(&self) -> Snapshot {
        let buckets = core::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed));
        let count = buckets.iter().sum();
        let min = if count == 0 { 0 } else { self.min.load(Ordering::Relaxed) };
        let (sum, max) = (self.sum.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed));
        Snapshot { buckets, count, sum, min, max }
    }
}

/// What a [`Histogram`] held.
#[derive(Clone, Debug)]
pub struct Snapshot {
    buckets: [u64; BUCKETS],
    /// How many values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The least; 0 of none.
    pub min: u64,
    /// The greatest; 0 of none.
    pub max: u64,
}

impl Snapshot {
    /// Their mean; 0 of none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// An estimate of the value that `percent` of all values are not above; 0 of none.
    pub fn percentile(&self, percent: u64) -> u64 {
        let rank = (u128::from(self.count) * u128::from(percent.min(100))).div_ceil(100).max(1) as u64;
        let mut below = 0;
        for (index, &here) in self.buckets.iter().enumerate() {
            if below + here >= rank {
                let (low, high) = span_of(index);
                let share = u128::from(high - low) * u128::from(rank - below) / u128::from(here);
                return (low + share as u64).clamp(self.min, self.max);
            }
            below += here;
        }
        0
    }

    /// What came after `before`, an earlier snapshot of the same histogram. Its extremes are those of its buckets, within what
    /// was ever recorded.
    #[must_use]
    pub fn since(&self, before: &Snapshot) -> Snapshot {
        let buckets: [u64; BUCKETS] = core::array::from_fn(|i| self.buckets[i] - before.buckets[i]);
        let filled = |&bucket: &usize| buckets[bucket] > 0;
        let count = buckets.iter().sum();
        let min = (0..BUCKETS).find(filled).map_or(0, |bucket| span_of(bucket).0.max(self.min));
        let max = (0..BUCKETS).rfind(filled).map_or(0, |bucket| span_of(bucket).1.min(self.max));
        Snapshot { buckets, count, sum: self.sum.wrapping_sub(before.sum), min, max }
    }

    /// The buckets that hold something, smallest first: least value, greatest value, how many.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(index, &count)| {
            let (low, high) = span_of(index);
            (low, high, count)
        })
    }
}

fn bucket_of(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

/// The least and the greatest value of a bucket.
fn span_of(bucket: usize) -> (u64, u64) {
    match bucket {
        0 => (0, 0),
        _ => (1 << (bucket - 1), u64::MAX >> (BUCKETS - 1 - bucket)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn of(values: &[u64]) -> Snapshot {
        let h = Histogram::new();
        values.iter().for_each(|&v| h.record(v));
        h.snapshot()
    }

    #[test]
    fn an_empty_histogram_says_zero_throughout() {
        let s = of(&[]);
        assert_eq!((s.count, s.sum, s.min, s.max, s.mean(), s.percentile(50)), (0, 0, 0, 0, 0, 0));
        assert_eq!(s.buckets().count(), 0);
    }

    #[test]
    fn what_came_since_a_snapshot_is_told_apart_from_what_was_before() {
        let h = Histogram::new();
        [1, 5_000].iter().for_each(|&v| h.record(v));
        let before = h.snapshot();
        assert_eq!(h.snapshot().since(&before).count, 0);
        [90, 100].iter().for_each(|&v| h.record(v));
        let s = h.snapshot().since(&before);
        assert_eq!((s.count, s.sum, s.min, s.max), (2, 190, 64, 127));
        assert!((64..128).contains(&s.percentile(50)));
    }

    #[test]
    fn the_extremes_of_the_type_have_buckets() {
        let s = of(&[0, 1, u64::MAX]);
        let found: Vec<_> = s.buckets().collect();
        assert_eq!(found, [(0, 0, 1), (1, 1, 1), (1 << 63, u64::MAX, 1)]);
        assert_eq!((s.percentile(1), s.percentile(100)), (0, u64::MAX));
    }

    #[test]
    fn equal_values_are_their_own_percentiles() {
        let s = of(&[700; 9]);
        assert_eq!((s.percentile(1), s.percentile(50), s.percentile(99), s.mean()), (700, 700, 700, 700));
    }

    proptest! {
        /// An estimate shares its bucket with the true value.
        #[test]
        fn a_percentile_is_right_to_a_factor_of_two(mut values in proptest::collection::vec(0..1_u64 << 40, 1..200),
                                                    percent in 1..=100_u64) {
            let s = of(&values);
            values.sort_unstable();
            let exact = values[(values.len() * percent as usize).div_ceil(100).max(1) - 1];
            let estimate = s.percentile(percent);
            prop_assert_eq!(bucket_of(estimate), bucket_of(exact));
            prop_assert!((s.min..=s.max).contains(&estimate));
        }

        #[test]
        fn every_value_is_in_the_span_of_its_bucket(value in any::<u64>()) {
            let (low, high) = span_of(bucket_of(value));
            prop_assert!((low..=high).contains(&value));
        }
    }
}
