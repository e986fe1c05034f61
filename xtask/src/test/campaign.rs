//! Boots one machine until each of its tests has a result.
//!
//! A test that panics, faults or hangs takes the kernel with it. It gets its verdict, and the kernel is booted again
//! with the test after it as the first. What the tests before it said stays valid: each of their lines had its CRC and
//! its place in the stream.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::artifact::Artifacts;
use crate::console;
use crate::exit::Exit;
use crate::frames::{Frame, Kind};
use crate::guest::{Boot, Left};
use crate::kernel_args::KernelLine;
use crate::kernel_tests::{KernelTest, filter_glob};
use crate::ktap::{Outcome, Parser, TestLine};
use crate::post_mortem;
use crate::process::{interrupted, quoted};
use crate::pulse::Limits;
use crate::rundir::write;
use crate::symbols::Symbols;
use crate::verdict::{Asked, TestId, Verdict, begun, id_of, judge, log_length};
use crate::watchdog;

use super::matrix::Leg;
use super::{Record, Session};

/// Lines of log shown with a failure.
const LOG_LINES: usize = 40;
/// Lines of log shown from a crash on: the backtraces of all CPUs are in it.
const CRASH_LINES: usize = 160;

/// The tests of one machine, once.
pub struct Campaign<'a> {
    /// What is shared.
    pub session: &'a Session<'a>,
    /// Loader and kernel.
    pub artifacts: &'a Artifacts,
    /// All tests of the kernel.
    pub all: &'a [KernelTest],
    /// For backtraces.
    pub symbols: Option<&'a Symbols>,
    /// The machine and its tests.
    pub leg: &'a Leg,
    /// Seed of the tests.
    pub seed: u64,
    /// Which repetition this is, from 0.
    pub round: u32,
}

/// The kernel command line for a boot that runs `tests`, beginning with `start`.
///
/// # Errors
/// `Usage` when it becomes too long.
pub fn kernel_line(
    leg: &Leg,
    all: &[KernelTest],
    tests: &[TestId],
    start: Option<&TestId>,
    seed: u64,
) -> anyhow::Result<String> {
    let mut line = KernelLine::new(&leg.machine.append);
    line.set("grange.run", "test")?;
    // Without slow ones among them the kernel leaves those out by itself, so that whole suites can still be named short.
    let slow = all.iter().any(|test| test.is_slow() && tests.contains(&test.id));
    let pool: Vec<KernelTest> = all.iter().filter(|test| slow || !test.is_slow()).cloned().collect();
    if pool.len() < all.len() {
        line.set("kunit.filter", "speed>slow")?;
    }
    if let Some(glob) = filter_glob(&pool, tests) {
        line.set("kunit.filter_glob", &glob)?;
    }
    line.set("grange.seed", &seed.to_string())?;
    if let Some(start) = start {
        line.set("grange.test_start", &start.to_string())?;
    }
    if let Some(bug) = &leg.bug {
        line.set("grange.bug", bug)?;
    }
    for (key, value) in leg.machine.kernel_words() {
        line.set(key, value)?;
    }
    Ok(line.finish()?.to_owned())
}

/// The name of the folder of a boot: the `boots`-th, from 0, of a leg in a round.
#[must_use]
pub fn folder(leg: &Leg, round: u32, boots: usize) -> String {
    let mut name = leg.slug();
    if round > 0 {
        name = format!("{name}-round{}", round + 1);
    }
    if boots > 0 {
        name = format!("{name}-again{boots}");
    }
    name
}

impl Campaign<'_> {
    /// Boots as often as it takes. Returns a record for each test and the worst end of all boots.
    ///
    /// # Errors
    /// `Host` when QEMU cannot be started or the disk does not let files be written.
    pub fn run(&self) -> anyhow::Result<(Vec<Record>, Exit)> {
        let ids = self.leg.ids();
        self.session.progress.place(&self.leg.place(), ids.len());
        let (mut records, mut worst, mut next, mut boots) = (Vec::new(), Exit::Passed, 0, 0);
        while next < ids.len() && !interrupted() {
            let (boot_records, exit) = self.boot(&ids, next, boots)?;
            worst = worst.worst(exit);
            boots += 1;
            // At least one test gets its result from each boot, so this ends.
            next += boot_records.iter().filter(|record| !record.suite.is_empty()).count().max(1);
            records.extend(boot_records);
        }
        Ok((records, worst))
    }

    /// Boots once for those of the tests that are not before the `first`; `boots` is how often it was done before.
    ///
    /// # Errors
    /// As [`Campaign::run`].
    pub fn boot(&self, ids: &[TestId], first: usize, boots: usize) -> anyhow::Result<(Vec<Record>, Exit)> {
        let name = folder(self.leg, self.round, boots);
        let dir = self.session.dir.sub(&name)?;
        let start = (first > 0).then(|| &ids[first]);
        let line = kernel_line(self.leg, self.all, ids, start, self.seed)?;
        let due = &ids[first..];
        let boot = Boot {
            machine: &self.leg.machine,
            artifacts: self.artifacts,
            kernel_line: &line,
            seed: self.seed,
            dir: &dir,
            limits: Limits::scaled(self.session.args.timeout_scale),
        };
        self.session.dir.event("boot", &json!({ "dir": name, "line": line }));
        let mut watch = Watch::default();
        let left = boot.watch(&mut |frame| {
            if let Some(test) = watch.frame(frame) {
                self.session.progress.test(&id_of(test).to_string(), test.outcome);
                self.session
                    .dir
                    .event("test", &json!({ "test": id_of(test), "outcome": format!("{:?}", test.outcome) }));
            }
        })?;
        let shape = &self.leg.machine.shape;
        let asked = Asked { seed: self.seed, cpus: shape.cpus(), nodes: shape.nodes(), tests: due.to_vec() };
        let verdict = judge(&left.stream, &left.ending, &asked).with_reports(&left.reports);
        self.keep(&dir, &left, &verdict)?;
        self.session
            .dir
            .event("verdict", &json!({ "dir": name, "verdict": verdict.exit.word(), "took": left.took.as_secs_f64() }));
        let records = self.records(due, &left, &verdict, &watch, &dir);
        Ok((records, verdict.exit))
    }

    /// Writes what TOOLS' users look for in a boot's folder.
    fn keep(&self, dir: &Path, left: &Left, verdict: &Verdict) -> anyhow::Result<()> {
        let ktap = left.stream.frames.iter().filter(|frame| frame.kind == Kind::Ktap);
        let ktap: String = ktap.map(|frame| format!("{}\n", frame.payload)).collect();
        write(&dir.join("results.ktap"), &ktap)?;
        if !matches!(verdict.exit, Exit::Passed | Exit::Interrupted) {
            post_mortem::keep_build(self.session.workspace, self.artifacts, dir)?;
        }
        let log = String::from_utf8_lossy(&left.console).replace('\r', "");
        let log = watchdog::annotated(&log, &left.reports);
        write(&dir.join("console.sym.log"), &console::symbolized(&log, self.symbols))?;
        let told = json!({
            "v": 1,
            "verdict": verdict.exit.word(),
            "ending": format!("{:?}", left.ending),
            "took_s": left.took.as_secs_f64(),
            "seed": self.seed,
            "witnesses": verdict.witnesses,
            "tests": verdict.tests.len(),
            "watchdogs": left.reports,
        });
        write(&dir.join("verdict.json"), &format!("{told:#}\n"))
    }

    /// One record for each test that has a result now, or for the one that took the kernel with it.
    fn records(&self, due: &[TestId], left: &Left, verdict: &Verdict, watch: &Watch, dir: &Path) -> Vec<Record> {
        let mut records: Vec<Record> = verdict
            .tests
            .iter()
            .filter(|test| due.contains(&id_of(test)))
            .map(|test| self.record_of_line(test, left, watch))
            .collect();
        if matches!(verdict.exit, Exit::Passed | Exit::TestsFailed | Exit::Interrupted) {
            return records;
        }
        let log = String::from_utf8_lossy(&left.console).replace('\r', "");
        let mut reasons: Vec<String> = match console::refusal(&log) {
            // Nothing else is wrong: no test could run.
            Some(_) => vec!["the boot was refused".to_owned()],
            None => verdict.complaints().cloned().collect(),
        };
        reasons.extend(console::crash_line(&log).map(str::to_owned));
        reasons.extend(left.stderr.lines().take(3).map(|line| format!("QEMU: {line}")));
        reasons.push(format!("see {}", self.session.workspace.short(dir).display()));
        reasons.push(post_mortem::remark(self.session.workspace, dir, &left.why_no_core));
        let without: Vec<&TestId> =
            due.iter().filter(|id| !records.iter().any(|record| record.id() == id.to_string())).collect();
        let culprit = verdict.unfinished.as_ref().filter(|id| without.contains(id));
        match culprit {
            Some(id) => {
                let from = watch.marks.get(id).map_or(0, |mark| mark.from);
                records.push(self.failure(id, verdict.exit, reasons, self.crash(left, from)));
            }
            None if verdict.any_began && !without.is_empty() => {
                // It died between two tests: the next one due has to answer for it.
                records.push(self.failure(without[0], verdict.exit, reasons, self.crash(left, 0)));
            }
            None => {
                // It died before the first test or after the last: no test is to blame, and booting again would not help.
                let nobody = TestId { suite: String::new(), name: format!("boot of {}", self.leg.place()) };
                records.push(self.failure(&nobody, verdict.exit, reasons, self.crash(left, 0)));
                let unrun = without.iter().map(|id| {
                    self.failure(id, verdict.exit, vec!["did not run: the boot failed".to_owned()], String::new())
                });
                records.extend(unrun.collect::<Vec<_>>());
            }
        }
        records
    }

    fn record_of_line(&self, test: &TestLine, left: &Left, watch: &Watch) -> Record {
        let id = id_of(test);
        let mark = watch.marks.get(&id).copied().unwrap_or_default();
        let failed = test.outcome == Outcome::Failed;
        let log = if failed {
            console::symbolized(&console::around(&left.console, mark.from, mark.to, LOG_LINES), self.symbols)
        } else {
            String::new()
        };
        let mut record =
            self.failure(&id, if failed { Exit::TestsFailed } else { Exit::Passed }, test.detail.clone(), log);
        record.outcome = test.outcome;
        record.took = mark.took;
        record
    }

    fn failure(&self, id: &TestId, exit: Exit, detail: Vec<String>, log: String) -> Record {
        let record = Record {
            place: self.leg.place(),
            slug: self.leg.slug(),
            suite: id.suite.clone(),
            name: id.name.clone(),
            outcome: Outcome::Failed,
            exit,
            took: Duration::ZERO,
            detail,
            log,
            rerun: again(self.session, self.leg, Some(id).filter(|id| !id.suite.is_empty()), self.seed),
        };
        if !matches!(exit, Exit::Passed | Exit::TestsFailed) {
            self.session.progress.test(&format!("{id}"), Outcome::Failed);
        }
        record
    }

    /// The log of a boot that did not end well, and where its CPUs were at last.
    fn crash(&self, left: &Left, from: usize) -> String {
        let log = console::of_crash(&left.console, from, LOG_LINES, CRASH_LINES);
        console::symbolized(&(log + &left.cpus), self.symbols)
    }
}

/// The line that runs a test again, on the same machine with the same seed: alone where that is the same to it, else with
/// all that ran.
#[must_use]
pub fn again(session: &Session<'_>, leg: &Leg, test: Option<&TestId>, seed: u64) -> String {
    if let Some(bug) = &leg.bug {
        return format!("cargo xtask test --mutant {bug} {} --seed {seed:#x}", leg.machine.options());
    }
    let filter = match test.filter(|_| !leg.machine.engine.is_deterministic()) {
        Some(id) => format!(" {id}"),
        None => session.args.filters.iter().map(|word| format!(" {}", quoted(word.as_ref()))).collect(),
    };
    let slow = if session.args.slow { " --slow" } else { "" };
    let explore = if session.args.explore { " --explore" } else { "" };
    format!("cargo xtask test --kernel-only{filter}{slow} {}{explore} --seed {seed:#x}", leg.machine.options())
}

/// Where a test's lines are in the console's log, by the guest's own count, and how long it took. By when a frame is read
/// it cannot be told: the two serial lines are read apart, and a short test is over before anybody looks.
#[derive(Clone, Copy, Debug)]
struct Mark {
    from: usize,
    to: usize,
    took: Duration,
}

impl Default for Mark {
    fn default() -> Self {
        Mark { from: 0, to: usize::MAX, took: Duration::ZERO }
    }
}

/// Follows a boot's frames to know where each test is.
#[derive(Default)]
struct Watch {
    parser: Parser,
    broken: bool,
    running: Option<(TestId, Instant)>,
    /// The test that began last: its part of the log goes up to the next mark.
    last: Option<TestId>,
    marks: HashMap<TestId, Mark>,
}

impl Watch {
    /// Takes a frame; returns the test whose result it is.
    fn frame(&mut self, frame: &Frame) -> Option<&TestLine> {
        match frame.kind {
            Kind::Begin => {
                let id = begun(&frame.payload)?;
                let from = log_length(&frame.payload);
                self.close(from);
                self.marks.insert(id.clone(), Mark { from: from.unwrap_or(0), ..Mark::default() });
                self.last = Some(id.clone());
                self.running = Some((id, Instant::now()));
                None
            }
            Kind::End => {
                self.close(log_length(&frame.payload));
                None
            }
            Kind::Ktap if !self.broken => {
                let Ok(test) = self.parser.line(&frame.payload) else {
                    self.broken = true;
                    return None;
                };
                let test = test?;
                if let Some((id, since)) = self.running.take()
                    && let Some(mark) = self.marks.get_mut(&id)
                {
                    mark.took = since.elapsed();
                }
                Some(test)
            }
            _ => None,
        }
    }

    /// The part of the test that began last ends here.
    fn close(&mut self, to: Option<usize>) {
        if let (Some(to), Some(mark)) = (to, self.last.take().and_then(|id| self.marks.get_mut(&id))) {
            mark.to = to;
        }
    }
}
