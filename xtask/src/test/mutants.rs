//! `cargo xtask test --mutant`: whether the tests find bugs that are made on purpose.
//!
//! The kernel of the profile `mutants` is built, and all tests that any of the chosen bugs names have to pass in it. Then it
//! is booted once for each bug, told to have it, and at least one of the tests that the bug names has to fail: as a failed
//! test, a panic, a report of a watchdog or a hang. A bug that no test finds is a survivor, and fails the command.

use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use serde_json::json;

use crate::cli::{KernelArgs, Profile, TestArgs};
use crate::exit::{Exit, stop};
use crate::kernel_tests::{Filter, KernelTest};
use crate::mutants::{self, Bug};
use crate::process::interrupted;
use crate::qemu::Machine;
use crate::rundir::RunDir;
use crate::shape::Defaults;
use crate::workspace::Workspace;

use super::campaign::Campaign;
use super::matrix::{Leg, Part};
use super::progress::Progress;
use super::{Kernel, Record, Results, Session, random_seed, report};

/// What became of a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// A test noticed: which, and what it said.
    Found { by: String, how: String },
    /// All tests that should notice passed.
    Survived,
    /// It cannot be told: why.
    Unclear(String),
}

/// Runs the command.
///
/// # Errors
/// `Usage` for a bug that is not known; `Build` for a bug that names no test; as for any boot.
pub(super) fn run(workspace: &Workspace, args: &TestArgs, names: &[String]) -> anyhow::Result<Exit> {
    let kernel_args = KernelArgs { profile: Some(Profile::Mutants), ..args.kernel.clone() };
    let mut args = TestArgs { kernel: kernel_args, kernel_only: true, ..args.clone() };
    // Deaths are what is wanted here: nobody looks at the memory they leave, and a hang need not be waited for in full.
    args.machine.no_core = true;
    args.timeout_scale *= 0.5;
    let machine = Machine::from_args(workspace, &args.machine, &args.qemu_args, Defaults { cpus: 4, nodes: 2 })?;
    let kernel = Kernel::make(workspace, &args)?;
    let bugs = mutants::list(&kernel.artifacts.kernel)?;
    if names.iter().any(|name| name == "list") {
        bugs.iter().for_each(|bug| println!("{:24} {}; found by {}", bug.name, bug.what, bug.found_by.join(" ")));
        return Ok(Exit::Passed);
    }
    let mut legs = Vec::new();
    for bug in mutants::chosen(&bugs, names)? {
        let leg = Leg {
            machine: machine.clone(),
            tests: tests_of(&bug, &kernel.tests)?,
            part: Part::All,
            bug: Some(bug.name.clone()),
        };
        legs.push((bug, leg));
    }
    let seed = args.seed.unwrap_or_else(random_seed);
    let dir = RunDir::create(workspace, "test")?;
    dir.describe(workspace, "test", &json!({ "seed": seed, "build_id": kernel.artifacts.build_id() }))?;
    println!("seed {seed:#x}; results in {}", workspace.short(dir.path()).display());
    let campaign = |session, leg| Campaign {
        session,
        artifacts: &kernel.artifacts,
        all: &kernel.tests,
        symbols: kernel.symbols.as_ref(),
        leg,
        seed,
        round: 0,
    };

    // Without a bug, all of them pass.
    let mut tests: Vec<KernelTest> = legs.iter().flat_map(|(_, leg)| leg.tests.clone()).collect();
    tests.sort_by(|a, b| a.id.cmp(&b.id));
    tests.dedup_by(|a, b| a.id == b.id);
    let sound = Leg { machine, tests, part: Part::All, bug: None };
    let progress = Progress::new();
    let session = Session { workspace, args: &args, dir: &dir, progress: &progress };
    let (records, exit) = campaign(&session, &sound).run()?;
    progress.finish();
    if exit != Exit::Passed || records.iter().any(|record| record.exit != Exit::Passed) {
        println!("without any bug the tests have to pass");
        return report::finish(&session, &Results { records, exit, rounds: 1 }, seed);
    }

    let quiet = Progress::silent();
    let session = Session { workspace, args: &args, dir: &dir, progress: &quiet };
    let mut told = Vec::new();
    for (bug, leg) in &legs {
        if interrupted() {
            return Ok(Exit::Interrupted);
        }
        let started = Instant::now();
        let (records, _) = campaign(&session, leg).boot(&leg.ids(), 0, 0)?;
        let (fate, took) = (fate(&records), started.elapsed());
        println!("{}", line(bug, &fate, took));
        told.push((bug, fate, took));
    }
    let found = told.iter().filter(|(_, fate, _)| matches!(fate, Fate::Found { .. })).count();
    let table = table(&told).to_string();
    dir.write("mutants.txt", &format!("{table}\n"))?;
    println!("{table}");
    println!("{found} bugs found, {} not", told.len() - found);
    Ok(if found == told.len() { Exit::Passed } else { Exit::TestsFailed })
}

/// The tests that have to find a bug.
fn tests_of(bug: &Bug, all: &[KernelTest]) -> anyhow::Result<Vec<KernelTest>> {
    let filter = Filter::new(&bug.found_by)?;
    let tests: Vec<KernelTest> = all.iter().filter(|test| filter.wants(&test.id) && !test.is_slow()).cloned().collect();
    if bug.found_by.is_empty() || tests.is_empty() {
        let words = bug.found_by.join(" ");
        return Err(stop(Exit::Build, format!("the bug {} names no test that there is: {words:?}", bug.name)));
    }
    Ok(tests)
}

/// What the results of a boot say about its bug.
fn fate(records: &[Record]) -> Fate {
    let because = |record: &Record| record.detail.first().cloned().unwrap_or_default();
    let noticed = |record: &&Record| matches!(record.exit, Exit::TestsFailed | Exit::Panicked | Exit::Hung);
    // Where the boot itself fails, what follows are the tests that did not run.
    if let Some(boot) = records.iter().find(|record| record.suite.is_empty()) {
        let refused = because(boot).contains("refused");
        return match noticed(&boot) && !refused {
            true => Fate::Found { by: boot.name.clone(), how: how(boot) },
            false => Fate::Unclear(because(boot)),
        };
    }
    if let Some(test) = records.iter().find(noticed) {
        return Fate::Found { by: test.id(), how: how(test) };
    }
    match records.iter().find(|record| record.exit != Exit::Passed) {
        Some(other) => Fate::Unclear(because(other)),
        None => Fate::Survived,
    }
}

/// How a test failed, in a line.
fn how(record: &Record) -> String {
    // "tests/src/…rs:12: what": the place is found by running it again.
    let placed =
        record.detail.iter().find_map(|line| line.split_once(".rs:")?.1.split_once(": ").map(|(_, what)| what));
    let words = placed.or(record.detail.first().map(String::as_str)).unwrap_or_default();
    let kind = if record.exit == Exit::TestsFailed { String::new() } else { format!("{}: ", record.exit.word()) };
    (kind + words).chars().take(90).collect()
}

fn line(bug: &Bug, fate: &Fate, took: Duration) -> String {
    let (word, rest) = match fate {
        Fate::Found { by, how } => ("ok  ", format!("found by {by}: {how}")),
        Fate::Survived => ("FAIL", format!("survived {}", bug.found_by.join(" "))),
        Fate::Unclear(why) => ("FAIL", format!("nobody can tell: {why}")),
    };
    format!("{word} {}, {:.1} s, {rest}", bug.name, took.as_secs_f64())
}

fn table(told: &[(&Bug, Fate, Duration)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["bug", "found by", "s"]);
    for (bug, fate, took) in told {
        let by = match fate {
            Fate::Found { by, .. } => by.clone(),
            Fate::Survived => "NOBODY".to_owned(),
            Fate::Unclear(_) => "?".to_owned(),
        };
        table.add_row([bug.name.clone(), by, format!("{:.1}", took.as_secs_f64())]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktap::Outcome;

    fn record(suite: &str, exit: Exit, detail: &str) -> Record {
        Record {
            place: String::new(),
            slug: String::new(),
            suite: suite.to_owned(),
            name: "name".to_owned(),
            outcome: if exit == Exit::Passed { Outcome::Passed } else { Outcome::Failed },
            exit,
            took: Duration::ZERO,
            detail: vec![detail.to_owned()],
            log: String::new(),
            rerun: String::new(),
        }
    }

    #[test]
    fn a_bug_is_found_where_a_test_fails_and_survives_where_all_pass() {
        let passed = record("slab", Exit::Passed, "");
        let failed = record("slab", Exit::TestsFailed, "tests/src/a.rs:7: objects are lost");
        let found = Fate::Found { by: "slab.name".to_owned(), how: "objects are lost".to_owned() };
        assert_eq!(fate(&[passed.clone(), failed]), found);
        assert_eq!(fate(&[passed]), Fate::Survived);
    }

    #[test]
    fn a_boot_that_was_refused_or_told_nothing_finds_no_bug() {
        let unrun = record("slab", Exit::Panicked, "did not run: the boot failed");
        let refused = record("", Exit::Panicked, "the boot was refused");
        assert!(matches!(fate(&[refused, unrun.clone()]), Fate::Unclear(_)));
        let died = record("", Exit::Panicked, "panic at x.rs: gone");
        assert!(matches!(fate(&[died, unrun]), Fate::Found { .. }));
        assert!(matches!(fate(&[record("slab", Exit::Incomplete, "garbled")]), Fate::Unclear(_)));
    }
}
