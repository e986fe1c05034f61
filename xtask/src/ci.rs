//! `cargo xtask ci`: what the project's CI runs, step by step, each with its command and its time.

use std::process::Command;
use std::time::Instant;

use crate::cli::{CiArgs, CiStep};
use crate::exit::{self, Exit, stop};
use crate::process::{interrupted, quoted};
use crate::toolchain::{core, emulator};
use crate::workspace::Workspace;

/// The suites that boot, switch threads, send calls and end grace periods, in a few seconds a round.
const DETERMINISTIC: [&str; 14] = [
    "test",
    "--deterministic",
    "--explore",
    "--seed",
    "7",
    "--repeat",
    "3",
    "--load",
    "2",
    "calls",
    "explore",
    "rcu",
    "sync",
    "threads",
];

/// Schedules of all kinds of torture at once: minutes on two cores.
const SEEDS: [&str; 4] = ["torture", "--deterministic", "--seeds", "1..=500"];

/// One scenario a storey and more, for seconds.
const TORTURE: [&str; 11] =
    ["torture", "--minutes", "0.1", "SCHED01", "LOCK01", "TREE06", "TREE13", "SRCU-N", "TASKS02", "SLAB01", "KFREE01"];

/// What takes too long for every push, a night's work of an hour or more: each scenario in full, all bugs that are made on purpose,
/// and the tests that take minutes.
const NIGHTLY: [(CiStep, &str, &[&str]); 4] = [
    (CiStep::Nightly, "torture in full", &["torture"]),
    (CiStep::Nightly, "all mutants of torture", &["torture", "--mutants"]),
    (CiStep::Nightly, "all mutants of the tests", &["test", "--mutant", "all"]),
    (CiStep::Nightly, "slow tests", &["test", "--kernel-only", "--slow"]),
];

/// Runs the steps, all of them also when one fails; the tests come last, so that their counts are the last line.
///
/// # Errors
/// `Host` when something is missing and cannot be installed.
pub fn ci(workspace: &Workspace, args: &CiArgs) -> anyhow::Result<Exit> {
    let wanted = |step| args.step.map_or(step != CiStep::Nightly, |only| only == step);
    core::ensure(workspace)?;
    if !matches!(args.step, Some(CiStep::Lint | CiStep::Models)) {
        emulator::ensure(workspace, "qemu-system-x86_64".as_ref())?;
    }
    let mut worst = Exit::Passed;
    let mut failed = Vec::new();
    let steps: [(CiStep, &str, &[&str]); 8] = [
        (CiStep::Lint, "lint", &["lint"]),
        (CiStep::Models, "models", &["models"]),
        (CiStep::Deterministic, "deterministic", &DETERMINISTIC),
        (CiStep::Seeds, "seeds", &SEEDS),
        (CiStep::Torture, "torture", &TORTURE),
        (CiStep::Mutants, "mutants", &["torture", "--mutants", "--quick"]),
        (CiStep::Labs, "labs", &["lab", "check-all"]),
        (CiStep::Guard, "guard", &["bench", "guard"]),
    ];
    for (which, name, words) in steps.into_iter().chain(NIGHTLY) {
        if !wanted(which) || interrupted() {
            continue;
        }
        let started = Instant::now();
        let exit = step(workspace, words)?;
        println!("ci: {name} took {:.1} s: {}", started.elapsed().as_secs_f64(), exit.word());
        if exit != Exit::Passed {
            failed.push(name);
        }
        worst = worst.worst(exit);
    }
    if wanted(CiStep::Test) && !interrupted() {
        let note = format!("ci: {} failed; what it found is above", failed.join(" and "));
        let mut words = vec!["test"];
        if !failed.is_empty() {
            words.extend(["--note", &note]);
        }
        worst = worst.worst(step(workspace, &words)?);
    }
    Ok(worst)
}

/// Runs a command of this tool, shown as one types it.
fn step(workspace: &Workspace, words: &[&str]) -> anyhow::Result<Exit> {
    let this = std::env::current_exe().map_err(|error| stop(Exit::Host, format!("this program's path: {error}")))?;
    let mut command = Command::new(&this);
    command.args(words).current_dir(&workspace.root);
    if workspace.no_install {
        command.arg("--no-install");
    }
    let shown = words.iter().take_while(|&&word| word != "--note").map(|word| quoted(word.as_ref()));
    eprintln!("$ cargo xtask {}", shown.collect::<Vec<_>>().join(" "));
    let status = command.status().map_err(|error| stop(Exit::Host, format!("{}: {error}", this.display())))?;
    Ok(exit::from_code(status.code()))
}
