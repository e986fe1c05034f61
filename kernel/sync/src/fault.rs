//! [`Injector`]: which of many attempts fail on purpose.
//!
//! An allocator keeps one as a static and asks it at each attempt. [`Injector::arm`] a [`Plan`], run the code under test,
//! drop the returned [`Armed`]. While nothing is armed an attempt pays one load. Attempts are counted only while armed,
//! over all CPUs and contexts, in the order in which they arrive.
//!
//! Invariants:
//! - **INJ-1** At most one plan of an injector is armed at a time.
//! - **INJ-2** With one CPU attempting, what fails is a function of the plan alone.
//!
//! Linux: `lib/fault-inject.c` (6.18). Rows: S5-16.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use crate::Rng;

/// Which attempts fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// The `n`-th from now on, counted from 1, and no other.
    Nth(u64),
    /// The `n`-th from now on, and each after it.
    From(u64),
    /// Each with a probability of `per_million` in a million, decided by `seed` and the number of the attempt.
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

/// Which attempts fail, as in Linux's `fail_page_alloc=` and `failslab=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// One in so many is looked at; at least 1.
    pub interval: u64,
    /// It fails with this probability, in a hundred.
    pub probability: u32,
    /// So much is given out before the first is looked at: pages, or bytes of objects.
    pub space: u32,
    /// After so many failures there are no more; `None` for never.
    pub times: Option<u32>,
}

impl Rule {
    /// What [`parse`](Self::parse) takes.
    pub const FORM: &str = "<interval>,<probability>,<space>,<times>: one allocation in <interval> (from 1) fails with \
                            <probability> (0 to 100) percent, after <space> pages or bytes, <times> times (-1 without end)";

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

impl core::fmt::Display for Rule {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { interval, probability, space, times } = self;
        write!(f, "{interval},{probability},{space},{}", times.map_or(-1, i64::from))
    }
}

/// Decides which attempts of one kind fail.
#[derive(Debug)]
pub struct Injector {
    /// Set while a plan is armed: what every attempt looks at.
    armed: AtomicBool,
    /// Held by whoever has armed a plan (INJ-1).
    owned: AtomicBool,
    /// The plan: kind, and two words. Written before `armed` is set.
    kind: AtomicU32,
    word: AtomicU64,
    seed: AtomicU64,
    /// What is left of a rule: what is given out before it begins, attempts since it looked at one, failures (-1 without
    /// end).
    space: AtomicU64,
    interval: AtomicU64,
    looked: AtomicU64,
    times: AtomicI64,
    /// Attempts and failures since the plan was armed.
    seen: AtomicU64,
    failed: AtomicU64,
}

impl Injector {
    /// One with no plan.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            armed: AtomicBool::new(false),
            owned: AtomicBool::new(false),
            kind: AtomicU32::new(0),
            word: AtomicU64::new(0),
            seed: AtomicU64::new(0),
            space: AtomicU64::new(0),
            interval: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            times: AtomicI64::new(0),
            seen: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Whether a plan is armed.
    ///
    /// Context: any.
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    /// Arms a plan.
    ///
    /// Context: task. `None` if another plan is armed.
    pub fn arm(&'static self, plan: Plan) -> Option<Armed> {
        // Acquire: pairs with the release in `drop`, so that the last owner's use is over.
        if self.owned.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return None;
        }
        let (kind, word, seed) = match plan {
            Plan::Nth(n) => (0, n, 0),
            Plan::From(n) => (1, n, 0),
            Plan::Fraction { per_million, seed } => (2, u64::from(per_million), seed),
            Plan::Rule { rule, seed } => {
                self.interval.store(rule.interval, Ordering::Relaxed);
                self.space.store(rule.space.into(), Ordering::Relaxed);
                self.times.store(rule.times.map_or(-1, i64::from), Ordering::Relaxed);
                self.looked.store(0, Ordering::Relaxed);
                (3, rule.probability.into(), seed)
            }
        };
        self.kind.store(kind, Ordering::Relaxed);
        self.word.store(word, Ordering::Relaxed);
        self.seed.store(seed, Ordering::Relaxed);
        self.seen.store(0, Ordering::Relaxed);
        self.failed.store(0, Ordering::Relaxed);
        // Release: pairs with the acquire in `should_fail`: whoever sees the plan armed sees all of it.
        self.armed.store(true, Ordering::Release);
        Some(Armed(self))
    }

    /// Whether this attempt, at something of `size` (in the unit of [`Rule::space`]), is to fail.
    ///
    /// Context: any. Wait-free but for the count-downs of a rule, which are lock-free.
    #[inline]
    pub fn should_fail(&self, size: u64) -> bool {
        // Acquire: pairs with the release in `arm`; a plain load on this machine.
        self.armed.load(Ordering::Acquire) && self.decide(size)
    }

    #[cold]
    fn decide(&self, size: u64) -> bool {
        let number = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let word = self.word.load(Ordering::Relaxed);
        let fails = match self.kind.load(Ordering::Relaxed) {
            0 => number == word,
            1 => number >= word,
            2 => self.draw(number, 1_000_000) < word,
            _ => self.picks(number, word, size),
        };
        if fails {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        fails
    }

    /// A number below `bound` for attempt `number`, each from a generator of its own (INJ-2).
    fn draw(&self, number: u64, bound: u64) -> u64 {
        Rng::stream(self.seed.load(Ordering::Relaxed), number).below(bound)
    }

    /// Whether the rule makes an attempt at so much fail.
    fn picks(&self, number: u64, probability: u64, size: u64) -> bool {
        // What reaches the end of the space is looked at.
        let skip = |left: u64| (left > size).then(|| left - size);
        if self.space.fetch_update(Ordering::Relaxed, Ordering::Relaxed, skip).is_ok() {
            return false;
        }
        let looked = self.looked.fetch_add(1, Ordering::Relaxed) + 1;
        if !looked.is_multiple_of(self.interval.load(Ordering::Relaxed)) || self.draw(number, 100) >= probability {
            return false;
        }
        let count_down = |left: i64| match left {
            -1 => Some(-1),
            0 => None,
            left => Some(left - 1),
        };
        self.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count_down).is_ok()
    }
}

impl Default for Injector {
    fn default() -> Self {
        Self::new()
    }
}

/// A plan is armed while this lives.
#[must_use = "the plan is disarmed as soon as this is dropped"]
#[derive(Debug)]
pub struct Armed(&'static Injector);

impl Armed {
    /// Attempts since the plan was armed.
    pub fn seen(&self) -> u64 {
        self.0.seen.load(Ordering::Relaxed)
    }

    /// Those of them that were made to fail.
    pub fn failed(&self) -> u64 {
        self.0.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.0.armed.store(false, Ordering::Relaxed);
        // Release: pairs with the acquire in `arm`.
        self.0.owned.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    static INJECTOR: Injector = Injector::new();

    fn arm(plan: Plan) -> Option<Armed> {
        INJECTOR.arm(plan)
    }

    fn should_fail(order: usize) -> bool {
        INJECTOR.should_fail(1 << order)
    }

    // One test: they share the injector (INJ-1).
    #[test]
    fn plans_fail_what_they_say_and_nothing_when_disarmed() {
        assert!((0..100).all(|_| !should_fail(0)));
        {
            let armed = arm(Plan::Nth(3)).unwrap();
            assert!(arm(Plan::Nth(1)).is_none(), "INJ-1");
            let failed: Vec<_> = (1..=6).filter(|_| should_fail(0)).collect();
            assert_eq!(failed, [3]);
            assert_eq!((armed.seen(), armed.failed()), (6, 1));
        }
        {
            let _armed = arm(Plan::From(5)).unwrap();
            assert_eq!((1..=8).filter(|_| should_fail(0)).collect::<Vec<_>>(), [5, 6, 7, 8]);
        }
        let rule = |text| {
            let _armed = arm(Plan::Rule { rule: Rule::parse(text).unwrap(), seed: 7 }).unwrap();
            (1..=12).filter(|_| should_fail(1)).collect::<Vec<_>>()
        };
        assert_eq!(rule("1,100,0,-1"), (1..=12).collect::<Vec<_>>());
        assert_eq!(rule("1,0,0,-1"), [0; 0]);
        assert_eq!(rule("3,100,0,-1"), [3, 6, 9, 12]);
        assert_eq!(rule("3,100,0,2"), [3, 6]);
        assert_eq!(rule("3,100,8,2"), [6, 9], "three allocations of two pages lie within the space");
        assert_eq!(rule("1,100,0,0"), [0; 0]);
        assert_eq!(rule("1,50,0,-1"), rule("1,50,0,-1"), "INJ-2");
        let run = |seed| {
            let _armed = arm(Plan::Fraction { per_million: 100_000, seed }).unwrap();
            (0..10_000).filter(|_| should_fail(0)).collect::<Vec<_>>()
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
        assert_eq!(rule.to_string(), "10,50,3,-1");
        for bad in
            ["", "1", "1,2,3", "1,2,3,4,5", "0,2,3,4", "1,101,3,4", "1,2,-3,4", "1,2,3,-2", "a,2,3,4", "1, 2,3,4"]
        {
            assert_eq!(Rule::parse(bad), None, "{bad}");
        }
    }
}
