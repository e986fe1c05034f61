//! Runs tests one after the other, from the thread that calls [`run`].
//!
//! The order is by suite and name, whatever the linker did, so that a run that a crash cut short can
//! be taken up at the next test by its name. Every test gets its own random numbers, from the seed
//! and its name: it sees the same ones alone and among others.

use alloc::vec::Vec;
use core::fmt;

use sync::{MaySleep, Rng};

use crate::case::{TAG_SLOW, TestCase};
use crate::com2;
use crate::ensure_eq;
use crate::filter::Filter;
use crate::outcome::Failure;
use crate::report::{Ktap, Output, Start};

/// What a test is given.
pub struct Test<'a> {
    /// The token of the thread that runs it.
    pub cx: &'a mut MaySleep,
    /// Random numbers of its own.
    pub rng: Rng,
    /// The seed they came from, to derive more.
    pub seed: u64,
    /// Whether it does damage to slabs on purpose. A report about any other test's is a failure of that test.
    pub damages_slabs: bool,
    out: &'a mut dyn Output,
}

impl Test<'_> {
    /// Adds a line to the report.
    pub fn note(&mut self, text: fmt::Arguments<'_>) {
        self.out.ktap(format_args!("  # {text}"));
    }

    /// Reports a figure: a JSON object, on one line.
    pub fn figure(&mut self, object: fmt::Arguments<'_>) {
        self.out.figure(object);
    }
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Which tests.
    pub filter: Filter<'a>,
    /// Those tagged `slow`, too.
    pub slow: bool,
    /// `suite.name` of the test to begin with; those before it are left out.
    pub start_at: Option<&'a str>,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "whether tests failed is in here"]
pub struct Summary {
    /// Tests that were to run.
    pub planned: usize,
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that this machine cannot run.
    pub skipped: usize,
}

impl Summary {
    /// Whether at least one test ran and none failed.
    pub fn is_pass(&self) -> bool {
        self.failed == 0 && self.planned > 0
    }
}

/// Runs those of `cases` ([`TESTS`](crate::TESTS), or the cases of [`BENCHES`](crate::BENCHES)) that `plan` asks for, and
/// reports to `out`.
///
/// Context: a thread without any guard; may sleep if the tests do. Allocates.
pub fn run(
    cases: impl Iterator<Item = &'static TestCase>,
    plan: &Plan<'_>,
    cx: &mut MaySleep,
    out: &mut dyn Output,
) -> Summary {
    run_cases(&select(cases, plan), &Start::here(plan.seed), cx, out)
}

/// The tests to run, in their order.
pub fn select(cases: impl Iterator<Item = &'static TestCase>, plan: &Plan<'_>) -> Vec<&'static TestCase> {
    let wanted =
        |case: &&TestCase| (plan.slow || case.tags & TAG_SLOW == 0) && plan.filter.matches(case.suite, case.name);
    let mut chosen: Vec<_> = cases.filter(wanted).collect();
    chosen.sort_unstable_by_key(|case| (case.suite, case.name));
    if let Some((suite, name)) = plan.start_at.and_then(|id| id.split_once('.')) {
        chosen.retain(|case| (case.suite, case.name) >= (suite, name));
    }
    chosen
}

fn run_cases(cases: &[&'static TestCase], start: &Start, cx: &mut MaySleep, out: &mut dyn Output) -> Summary {
    let mut summary = Summary { planned: cases.len(), ..Summary::default() };
    let by_suite = || cases.chunk_by(|a, b| a.suite == b.suite);
    let mut ktap = Ktap::begin(out, start, by_suite().count());
    for suite in by_suite() {
        let name = suite[0].suite;
        ktap.begin_suite(name, suite.len());
        for case in suite {
            let result = run_case(case, start.seed, cx, ktap.out);
            match &result {
                Ok(()) => summary.passed += 1,
                Err(Failure::Failed { .. }) => summary.failed += 1,
                Err(Failure::Skipped(_)) => summary.skipped += 1,
            }
            ktap.verdict(case.name, &result);
        }
        ktap.end_suite(name);
    }
    ktap.out.end(&summary);
    summary
}

fn run_case(case: &TestCase, seed: u64, cx: &mut MaySleep, out: &mut dyn Output) -> Result<(), Failure> {
    let seed = seed_of(seed, case.suite, case.name);
    out.begin(case.suite, case.name, case.budget_ms);
    com2::set_deadline(Some(case.budget_ms));
    let before = slab::debug::reports();
    let mut test = Test { cx, rng: Rng::new(seed), seed, damages_slabs: false, out };
    let result = (case.run)(&mut test);
    com2::set_deadline(None);
    let reports = if test.damages_slabs { 0 } else { slab::debug::reports() - before };
    result.and_then(|()| {
        ensure_eq!(reports, 0, "damage to slabs was reported, see the log");
        Ok(())
    })
}

/// FNV-1a over the run's seed and the names of what has a seed of its own.
pub(crate) fn seed_of(seed: u64, suite: &str, name: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(suite.bytes()).chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip;

    fn pass(_: &mut Test<'_>) -> Result<(), Failure> {
        Ok(())
    }
    fn fail(t: &mut Test<'_>) -> Result<(), Failure> {
        t.note(format_args!("about to fail"));
        ensure_eq!(1, 2);
        Ok(())
    }
    fn cannot(_: &mut Test<'_>) -> Result<(), Failure> {
        skip!("needs\ntwo lines")
    }

    const fn case(suite: &'static str, name: &'static str, run: fn(&mut Test<'_>) -> Result<(), Failure>) -> TestCase {
        TestCase { suite, name, file: "f.rs", line: 1, tags: 0, budget_ms: 1000, run }
    }

    static CASES: [TestCase; 4] =
        [case("zeta", "b", pass), case("alpha", "z", cannot), case("zeta", "a", fail), case("alpha", "a", pass)];

    fn ids(plan: &Plan<'_>) -> Vec<String> {
        select(CASES.iter(), plan).iter().map(|c| format!("{}.{}", c.suite, c.name)).collect()
    }

    const ALL: Plan<'static> = Plan { filter: Filter::ALL, slow: false, start_at: None, seed: 7 };

    #[test]
    fn tests_are_ordered_by_suite_and_name() {
        assert_eq!(ids(&ALL), ["alpha.a", "alpha.z", "zeta.a", "zeta.b"]);
    }

    #[test]
    fn a_run_can_be_taken_up_at_a_test() {
        assert_eq!(ids(&Plan { start_at: Some("alpha.z"), ..ALL }), ["alpha.z", "zeta.a", "zeta.b"]);
        assert_eq!(ids(&Plan { start_at: Some("zeta.c"), ..ALL }), [] as [&str; 0]);
    }

    #[test]
    fn a_slow_test_runs_only_where_it_is_asked_for() {
        static CASES: [TestCase; 2] = [case("a", "fast", pass), TestCase { tags: TAG_SLOW, ..case("a", "slow", pass) }];
        let count = |slow| select(CASES.iter(), &Plan { slow, ..ALL }).len();
        assert_eq!((count(false), count(true)), (1, 2));
    }

    #[test]
    fn a_report_is_complete_ktap() {
        let mut lines = Vec::new();
        let mut keep = |line: fmt::Arguments<'_>| lines.push(line.to_string());
        let mut out = crate::report::PlainLines(&mut keep);
        // SAFETY: this host thread has no other token and no guard.
        let mut cx = unsafe { MaySleep::new() };
        let start = Start { seed: 7, cpus: 1, nodes: 1, build: "b" };
        let summary = run_cases(&select(CASES.iter(), &ALL), &start, &mut cx, &mut out);
        assert_eq!(summary, Summary { planned: 4, passed: 2, failed: 1, skipped: 1 });
        assert!(!summary.is_pass());
        let place = lines.iter().position(|line| line.contains("1 is 1, 2 is 2")).unwrap();
        lines[place] = "  # PLACE".to_string();
        assert_eq!(
            lines,
            [
                "# seed 0x7, 1 CPUs, 1 nodes, b",
                "KTAP version 1",
                "1..2",
                "  KTAP version 1",
                "  # Subtest: alpha",
                "  1..2",
                "  ok 1 a",
                "  ok 2 z # SKIP needs",
                "ok 1 alpha",
                "  KTAP version 1",
                "  # Subtest: zeta",
                "  1..2",
                "  # about to fail",
                "  # PLACE",
                "  not ok 1 a",
                "  ok 2 b",
                "not ok 2 zeta",
                "# 2 passed, 1 failed, 1 skipped",
            ]
        );
    }

    #[test]
    fn a_run_of_no_tests_is_not_a_pass() {
        assert!(!Summary::default().is_pass());
    }

    #[test]
    fn random_numbers_depend_on_the_test_and_the_seed_and_nothing_else() {
        assert_eq!(seed_of(7, "zeta", "b"), seed_of(7, "zeta", "b"));
        assert_ne!(seed_of(7, "zeta", "b"), seed_of(8, "zeta", "b"));
        assert_ne!(seed_of(7, "zeta", "b"), seed_of(7, "alpha", "z"));
    }
}
