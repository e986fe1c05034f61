//! KTAP version 1 (Linux: `Documentation/dev-tools/ktap.rst`), two levels: suites and their tests.
//!
//! ```text
//! KTAP version 1
//! 1..1
//!   KTAP version 1
//!   # Subtest: percpu
//!   1..2
//!   ok 1 areas_are_isolated
//!   # percpu.rs:40: a is 3, b is 4
//!   not ok 2 counters_add_up
//! not ok 1 percpu
//! ```

use core::fmt;

use crate::outcome::Failure;
use crate::run::Summary;

/// What a run began with.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The seed of every test's random numbers.
    pub seed: u64,
    /// CPUs online.
    pub cpus: usize,
    /// Nodes online.
    pub nodes: usize,
    /// What was built: version and profile.
    pub build: &'static str,
}

/// What a report says was built.
const BUILD: &str = if cfg!(debug_assertions) {
    concat!("grange ", env!("CARGO_PKG_VERSION"), ", assertions on")
} else {
    concat!("grange ", env!("CARGO_PKG_VERSION"), ", assertions off")
};

impl Start {
    /// A run with this seed on the machine as it is now.
    pub(crate) fn here(seed: u64) -> Start {
        let nodes = arch::cpu::nodes_online().count_ones() as usize;
        Start { seed, cpus: arch::cpu::online_count(), nodes, build: BUILD }
    }
}

/// Where a run's report goes.
pub trait Output {
    /// The run begins.
    fn start(&mut self, start: &Start);
    /// A test begins that may take so many milliseconds of guest time.
    fn begin(&mut self, suite: &str, name: &str, budget_ms: u32);
    /// A line of KTAP.
    fn ktap(&mut self, line: fmt::Arguments<'_>);
    /// A figure, as a JSON object.
    fn figure(&mut self, object: fmt::Arguments<'_>);
    /// The run is over.
    fn end(&mut self, summary: &Summary);
}

/// The report of one run, in KTAP's words.
pub(crate) struct Ktap<'a> {
    pub(crate) out: &'a mut dyn Output,
    suites: usize,
    tests: usize,
    failed_here: bool,
}

impl<'a> Ktap<'a> {
    pub(crate) fn begin(out: &'a mut dyn Output, start: &Start, suites: usize) -> Self {
        out.start(start);
        out.ktap(format_args!("KTAP version 1"));
        out.ktap(format_args!("1..{suites}"));
        Self { out, suites: 0, tests: 0, failed_here: false }
    }

    pub(crate) fn begin_suite(&mut self, name: &str, tests: usize) {
        (self.tests, self.failed_here) = (0, false);
        self.out.ktap(format_args!("  KTAP version 1"));
        self.out.ktap(format_args!("  # Subtest: {name}"));
        self.out.ktap(format_args!("  1..{tests}"));
    }

    pub(crate) fn verdict(&mut self, name: &str, result: &Result<(), Failure>) {
        self.tests += 1;
        let number = self.tests;
        match result {
            Ok(()) => self.out.ktap(format_args!("  ok {number} {name}")),
            Err(Failure::Skipped(why)) => {
                // One line: what KTAP takes as the reason ends with it.
                let why = why.lines().next().unwrap_or_default();
                self.out.ktap(format_args!("  ok {number} {name} # SKIP {why}"));
            }
            Err(Failure::Failed { file, line, message }) => {
                self.failed_here = true;
                let mut place = Some((file, line));
                for text in message.lines() {
                    match place.take() {
                        Some((file, line)) => {
                            self.out.ktap(format_args!("  # {file}:{line}: {text}"));
                        }
                        None => self.out.ktap(format_args!("  #   {text}")),
                    }
                }
                self.out.ktap(format_args!("  not ok {number} {name}"));
            }
        }
    }

    pub(crate) fn end_suite(&mut self, name: &str) {
        self.suites += 1;
        let word = if self.failed_here { "not ok" } else { "ok" };
        self.out.ktap(format_args!("{word} {} {name}", self.suites));
    }
}

/// The report as plain KTAP lines, for people: the shell's `test`.
pub struct PlainLines<'a>(pub &'a mut dyn FnMut(fmt::Arguments<'_>));

impl Output for PlainLines<'_> {
    fn start(&mut self, start: &Start) {
        (self.0)(format_args!("# seed {:#x}, {} CPUs, {} nodes, {}", start.seed, start.cpus, start.nodes, start.build));
    }

    fn begin(&mut self, _suite: &str, _name: &str, _budget_ms: u32) {}

    fn ktap(&mut self, line: fmt::Arguments<'_>) {
        (self.0)(line);
    }

    fn figure(&mut self, object: fmt::Arguments<'_>) {
        (self.0)(format_args!("  # {object}"));
    }

    fn end(&mut self, summary: &Summary) {
        let Summary { passed, failed, skipped, .. } = summary;
        (self.0)(format_args!("# {passed} passed, {failed} failed, {skipped} skipped"));
    }
}
