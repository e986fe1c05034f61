//! Fault injection: page allocations that fail on purpose.
//!
//! [`arm`] a [`Plan`], run the code under test, drop the returned [`Armed`]. While nothing is armed an allocation pays one
//! load. Allocations are counted only while armed, over all CPUs and contexts, in the order in which they arrive.
//!
//! Invariants:
//! - **INJ-1** At most one plan is armed at a time.
//! - **INJ-2** With one CPU allocating, what fails is a function of the plan alone.
//!
//! Linux: `fail_page_alloc` (`mm/fail_page_alloc.c`, 6.18). Rows: S5-16.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use sync::Rng;

/// Which allocations fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// The `n`-th from now on, counted from 1, and no other.
    Nth(u64),
    /// The `n`-th from now on, and each after it.
    From(u64),
    /// Each with a probability of `per_million` in a million, decided by `seed` and the number of the allocation.
    Fraction {
        /// Failures in a million.
        per_million: u32,
        /// Which ones.
        seed: u64,
    },
}

/// Set while a plan is armed: what every allocation looks at.
static ARMED: AtomicBool = AtomicBool::new(false);
/// Held by whoever has armed a plan (INJ-1).
static OWNED: AtomicBool = AtomicBool::new(false);
/// The plan: kind, and two words. Written before `ARMED` is set.
static KIND: AtomicU32 = AtomicU32::new(0);
static WORD: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
/// Allocations and failures since the plan was armed.
static SEEN: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// A plan is armed while this lives.
#[must_use = "the plan is disarmed as soon as this is dropped"]
#[derive(Debug)]
pub struct Armed(());

/// Arms a plan.
///
/// Context: task. `None` if another plan is armed.
pub fn arm(plan: Plan) -> Option<Armed> {
    // Acquire: pairs with the release in `drop`, so that the last owner's use is over.
    if OWNED.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return None;
    }
    let (kind, word, seed) = match plan {
        Plan::Nth(n) => (0, n, 0),
        Plan::From(n) => (1, n, 0),
        Plan::Fraction { per_million, seed } => (2, u64::from(per_million), seed),
    };
    KIND.store(kind, Ordering::Relaxed);
    WORD.store(word, Ordering::Relaxed);
    SEED.store(seed, Ordering::Relaxed);
    SEEN.store(0, Ordering::Relaxed);
    FAILED.store(0, Ordering::Relaxed);
    // Release: pairs with the acquire in `should_fail`: whoever sees the plan armed sees all of it.
    ARMED.store(true, Ordering::Release);
    Some(Armed(()))
}

impl Armed {
    /// Allocations since the plan was armed.
    pub fn seen(&self) -> u64 {
        SEEN.load(Ordering::Relaxed)
    }

    /// Those of them that were made to fail.
    pub fn failed(&self) -> u64 {
        FAILED.load(Ordering::Relaxed)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        ARMED.store(false, Ordering::Relaxed);
        // Release: pairs with the acquire in `arm`.
        OWNED.store(false, Ordering::Release);
    }
}

/// Whether this allocation is to fail.
///
/// Context: any.
#[inline]
pub(crate) fn should_fail() -> bool {
    // Acquire: pairs with the release in `arm`; a plain load on this machine.
    ARMED.load(Ordering::Acquire) && decide()
}

#[cold]
fn decide() -> bool {
    let number = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
    let word = WORD.load(Ordering::Relaxed);
    let fails = match KIND.load(Ordering::Relaxed) {
        0 => number == word,
        1 => number >= word,
        // Each allocation draws from a generator of its own (INJ-2).
        _ => Rng::stream(SEED.load(Ordering::Relaxed), number).below(1_000_000) < word,
    };
    if fails {
        FAILED.fetch_add(1, Ordering::Relaxed);
    }
    fails
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test: the plan is global (INJ-1).
    #[test]
    fn plans_fail_what_they_say_and_nothing_when_disarmed() {
        assert!((0..100).all(|_| !should_fail()));
        {
            let armed = arm(Plan::Nth(3)).unwrap();
            assert!(arm(Plan::Nth(1)).is_none(), "INJ-1");
            let failed: std::vec::Vec<_> = (1..=6).filter(|_| should_fail()).collect();
            assert_eq!(failed, [3]);
            assert_eq!((armed.seen(), armed.failed()), (6, 1));
        }
        {
            let _armed = arm(Plan::From(5)).unwrap();
            assert_eq!((1..=8).filter(|_| should_fail()).collect::<std::vec::Vec<_>>(), [5, 6, 7, 8]);
        }
        let run = |seed| {
            let _armed = arm(Plan::Fraction { per_million: 100_000, seed }).unwrap();
            (0..10_000).filter(|_| should_fail()).collect::<std::vec::Vec<_>>()
        };
        assert_eq!(run(7), run(7), "INJ-2");
        assert_ne!(run(7), run(8));
        assert!((800..1200).contains(&run(7).len()));
        assert!(!should_fail());
    }
}
