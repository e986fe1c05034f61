//! Fault injection: page allocations that fail on purpose.
//!
//! [`arm`] a [`Plan`], run the code under test, drop the returned [`Armed`]. While nothing is armed an allocation pays one
//! load. Allocations are counted only while armed, over all CPUs and contexts, in the order in which they arrive.
//!
//! `fail_page_alloc=<interval>,<probability>,<space>,<times>` on the command line arms a [`Rule`] from the end of the boot
//! on, for good; `grange.seed` decides what the probability leaves open. The four numbers mean what they mean in Linux;
//! unlike there, allocations of one page and those that may sleep are not spared.
//!
//! Invariants:
//! - **INJ-1** At most one plan is armed at a time.
//! - **INJ-2** With one CPU allocating, what fails is a function of the plan alone.
//!
//! Linux: `fail_page_alloc` (`mm/fail_page_alloc.c`, 6.18). Rows: S5-16.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

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
    /// Those that a rule picks.
    Rule {
        /// The rule.
        rule: Rule,
        /// What its probability leaves open.
        seed: u64,
    },
}

/// Which allocations fail, as in Linux's `fail_page_alloc=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// One in so many is looked at; at least 1.
    pub interval: u64,
    /// It fails with this probability, in a hundred.
    pub probability: u32,
    /// So many pages are given out before the first is looked at.
    pub space: u32,
    /// After so many failures there are no more; `None` for never.
    pub times: Option<u32>,
}

impl Rule {
    /// What [`parse`](Self::parse) takes.
    pub const FORM: &str = "<interval>,<probability>,<space>,<times>: one allocation in <interval> (from 1) fails with \
                            <probability> (0 to 100) percent, after <space> pages, <times> times (-1 without end)";

    /// Reads the four numbers.
    #[must_use]
    pub fn parse(text: &str) -> Option<Rule> {
        let mut words = text.split(',');
        let interval = words.next()?.parse().ok().filter(|&interval| interval >= 1)?;
        let probability = words.next()?.parse().ok().filter(|&percent| percent <= 100)?;
        let space = words.next()?.parse().ok()?;
        let times = match words.next()? {
            "-1" => None,
            times => Some(times.parse().ok()?),
        };
        words.next().is_none().then_some(Rule { interval, probability, space, times })
    }
}

sync::param! {
    /// Page allocations that fail on purpose once the boot is over; which ones also depends on grange.seed.
    static FAIL_PAGE_ALLOC: str = "fail_page_alloc", default "",
        if |text| Rule::parse(text).is_some(), form Rule::FORM;
}

/// Arms what the command line says, for good; nothing if it says nothing.
///
/// Context: task, once, at the end of the boot.
pub fn init(seed: u64) {
    let Some(rule) = Rule::parse(FAIL_PAGE_ALLOC.get()) else { return };
    let Some(armed) = arm(Plan::Rule { rule, seed }) else { return };
    core::mem::forget(armed);
    log::warn!("page allocations fail on purpose: fail_page_alloc={}, seed {seed}", FAIL_PAGE_ALLOC.get());
}

/// Whether a plan is armed.
///
/// Context: any.
pub fn is_armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// Set while a plan is armed: what every allocation looks at.
static ARMED: AtomicBool = AtomicBool::new(false);
/// Held by whoever has armed a plan (INJ-1).
static OWNED: AtomicBool = AtomicBool::new(false);
/// The plan: kind, and two words. Written before `ARMED` is set.
static KIND: AtomicU32 = AtomicU32::new(0);
static WORD: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
/// What is left of a rule: pages before it begins, allocations since it looked at one, failures (-1 without end).
static SPACE: AtomicU64 = AtomicU64::new(0);
static INTERVAL: AtomicU64 = AtomicU64::new(0);
static LOOKED: AtomicU64 = AtomicU64::new(0);
static TIMES: AtomicI64 = AtomicI64::new(0);
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
        Plan::Rule { rule, seed } => {
            INTERVAL.store(rule.interval, Ordering::Relaxed);
            SPACE.store(rule.space.into(), Ordering::Relaxed);
            TIMES.store(rule.times.map_or(-1, i64::from), Ordering::Relaxed);
            LOOKED.store(0, Ordering::Relaxed);
            (3, rule.probability.into(), seed)
        }
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

/// Whether this allocation, of `1 << order` pages, is to fail.
///
/// Context: any.
#[inline]
pub(crate) fn should_fail(order: usize) -> bool {
    // Acquire: pairs with the release in `arm`; a plain load on this machine.
    ARMED.load(Ordering::Acquire) && decide(order)
}

#[cold]
fn decide(order: usize) -> bool {
    let number = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
    let word = WORD.load(Ordering::Relaxed);
    let fails = match KIND.load(Ordering::Relaxed) {
        0 => number == word,
        1 => number >= word,
        2 => draw(number, 1_000_000) < word,
        _ => picks(number, word, 1 << order),
    };
    if fails {
        FAILED.fetch_add(1, Ordering::Relaxed);
    }
    fails
}

/// A number below `bound` for allocation `number`, each from a generator of its own (INJ-2).
fn draw(number: u64, bound: u64) -> u64 {
    Rng::stream(SEED.load(Ordering::Relaxed), number).below(bound)
}

/// Whether the rule makes an allocation of so many pages fail.
fn picks(number: u64, probability: u64, pages: u64) -> bool {
    // What reaches the end of the space is looked at.
    let skip = |left: u64| (left > pages).then(|| left - pages);
    if SPACE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, skip).is_ok() {
        return false;
    }
    let looked = LOOKED.fetch_add(1, Ordering::Relaxed) + 1;
    if !looked.is_multiple_of(INTERVAL.load(Ordering::Relaxed)) || draw(number, 100) >= probability {
        return false;
    }
    let count_down = |left: i64| match left {
        -1 => Some(-1),
        0 => None,
        left => Some(left - 1),
    };
    TIMES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count_down).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test: the plan is global (INJ-1).
    #[test]
    fn plans_fail_what_they_say_and_nothing_when_disarmed() {
        assert!((0..100).all(|_| !should_fail(0)));
        {
            let armed = arm(Plan::Nth(3)).unwrap();
            assert!(arm(Plan::Nth(1)).is_none(), "INJ-1");
            let failed: std::vec::Vec<_> = (1..=6).filter(|_| should_fail(0)).collect();
            assert_eq!(failed, [3]);
            assert_eq!((armed.seen(), armed.failed()), (6, 1));
        }
        {
            let _armed = arm(Plan::From(5)).unwrap();
            assert_eq!((1..=8).filter(|_| should_fail(0)).collect::<std::vec::Vec<_>>(), [5, 6, 7, 8]);
        }
        let rule = |text| {
            let _armed = arm(Plan::Rule { rule: Rule::parse(text).unwrap(), seed: 7 }).unwrap();
            (1..=12).filter(|_| should_fail(1)).collect::<std::vec::Vec<_>>()
        };
        assert_eq!(rule("1,100,0,-1"), (1..=12).collect::<std::vec::Vec<_>>());
        assert_eq!(rule("1,0,0,-1"), [0; 0]);
        assert_eq!(rule("3,100,0,-1"), [3, 6, 9, 12]);
        assert_eq!(rule("3,100,0,2"), [3, 6]);
        assert_eq!(rule("3,100,8,2"), [6, 9], "three allocations of two pages lie within the space");
        assert_eq!(rule("1,100,0,0"), [0; 0]);
        assert_eq!(rule("1,50,0,-1"), rule("1,50,0,-1"), "INJ-2");
        let run = |seed| {
            let _armed = arm(Plan::Fraction { per_million: 100_000, seed }).unwrap();
            (0..10_000).filter(|_| should_fail(0)).collect::<std::vec::Vec<_>>()
        };
        assert_eq!(run(7), run(7), "INJ-2");
        assert_ne!(run(7), run(8));
        assert!((800..1200).contains(&run(7).len()));
        assert!(!should_fail(0));
    }

    #[test]
    fn a_rule_has_four_numbers_in_their_ranges() {
        let rule = Rule { interval: 10, probability: 50, space: 3, times: None };
        assert_eq!(Rule::parse("10,50,3,-1"), Some(rule));
        assert_eq!(Rule::parse("10,50,3,4"), Some(Rule { times: Some(4), ..rule }));
        for bad in
            ["", "1", "1,2,3", "1,2,3,4,5", "0,2,3,4", "1,101,3,4", "1,2,-3,4", "1,2,3,-2", "a,2,3,4", "1, 2,3,4"]
        {
            assert_eq!(Rule::parse(bad), None, "{bad}");
        }
    }
}
