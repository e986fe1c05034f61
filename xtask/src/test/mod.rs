//! `cargo xtask test`: host tests, then the in-kernel tests on a matrix of machines.
//!
//! | module | does |
//! |---|---|
//! | [`host`] | `cargo nextest run` or `cargo test`, line by line |
//! | [`matrix`] | which tests run on which machines |
//! | [`rounds`] | how often, with which seeds, and whether repetitions were alike |
//! | [`campaign`] | boots one machine until each of its tests has a result |
//! | [`progress`] | what is shown meanwhile |
//! | [`report`] | what is shown and written at the end |
//! | [`mutants`] | `--mutant`: whether the tests find bugs that are made on purpose |

pub mod campaign;
pub mod host;
pub mod matrix;
pub mod mutants;
pub mod progress;
pub mod report;
pub mod rounds;

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use serde_json::json;

use crate::artifact::{self, Artifacts};
use crate::cli::{KernelArgs, Profile, TestArgs};
use crate::exit::{Exit, usage};
use crate::kernel_tests::{self, Filter, KernelTest};
use crate::ktap::Outcome;
use crate::ledger;
use crate::load::Load;
use crate::process::interrupted;
use crate::qemu::{Wiring, script};
use crate::rundir::RunDir;
use crate::symbols::Symbols;
use crate::workspace::Workspace;

use matrix::Leg;
use progress::Progress;

/// One test's result on one machine.
#[derive(Clone, Debug)]
pub struct Record {
    /// `host`, or the machine in words.
    pub place: String,
    /// Short name of the place, for JUnit and folders.
    pub slug: String,
    /// Package or suite.
    pub suite: String,
    /// Test.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// For a failure: what it does to the command's status.
    pub exit: Exit,
    /// Host time from its begin to its result.
    pub took: Duration,
    /// What the test said about itself.
    pub detail: Vec<String>,
    /// The log around it, readable.
    pub log: String,
    /// The line that runs it again.
    pub rerun: String,
}

impl Record {
    /// `suite.name`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}.{}", self.suite, self.name)
    }
}

/// What all parts of one `test` command share.
#[derive(Debug)]
pub struct Session<'a> {
    /// Where things lie.
    pub workspace: &'a Workspace,
    /// What the user asked for.
    pub args: &'a TestArgs,
    /// Where the results go.
    pub dir: &'a RunDir,
    /// What is shown meanwhile.
    pub progress: &'a Progress,
}

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; tests that fail are an [`Exit`] and not an error.
pub fn test(workspace: &Workspace, args: &TestArgs) -> anyhow::Result<Exit> {
    if let Some(names) = &args.mutant {
        return mutants::run(workspace, args, names);
    }
    let filter = Filter::new(&args.filters)?;
    if !(args.timeout_scale.is_finite() && args.timeout_scale > 0.0) {
        return Err(usage(format!("--timeout-scale {}: a number above 0", args.timeout_scale)));
    }
    if args.repeat == 0 {
        return Err(usage("--repeat 0: at least 1"));
    }
    if args.machine.deterministic && args.host_only {
        return Err(usage("--deterministic with --host-only: only the tests in the kernel can be repeatable"));
    }
    args.ledger.as_deref().map_or(Ok(()), |path| ledger::check(path, ledger::HEADER))?;
    // Everything that can be refused is refused before anything is built.
    let machines = if args.host_only { Vec::new() } else { matrix::machines(workspace, args)? };
    let kernel = if args.host_only && !args.list { None } else { Some(Kernel::make(workspace, args)?) };
    if let Some(kernel) = kernel.as_ref().filter(|_| args.list) {
        return list(workspace, &kernel.tests, &filter);
    }
    let mut legs =
        kernel.as_ref().map_or_else(Vec::new, |kernel| matrix::legs(machines, &kernel.tests, &filter, args.slow));
    for leg in &mut legs {
        leg.machine = leg.machine.clone().traced(args.trace.as_ref())?;
    }
    if args.machine.print_qemu {
        return print_qemu(workspace, &legs, kernel.as_ref());
    }
    let kernel_only = args.kernel_only || args.machine.deterministic;
    if legs.is_empty() && !filter.is_all() && (kernel_only || host::finds_none(workspace, args)) {
        return Err(usage(format!(
            "no test matches {}; `cargo xtask test --list` names those in the kernel, of which [slow] ones need --slow",
            args.filters.join(" ")
        )));
    }
    let seed = args.seeds.map(|seeds| seeds.first).or(args.seed).unwrap_or_else(random_seed);
    let dir = RunDir::create(workspace, "test")?;
    dir.describe(
        workspace,
        "test",
        &json!({
            "seed": seed,
            "profile": kernel.as_ref().map(|kernel| kernel.artifacts.profile),
            "build_id": kernel.as_ref().and_then(|kernel| kernel.artifacts.build_id()),
        }),
    )?;
    println!("seed {seed:#x}; results in {}", workspace.short(dir.path()).display());
    let progress = Progress::new();
    let session = Session { workspace, args, dir: &dir, progress: &progress };
    let mut results = Results::default();
    let _load = Load::start(args.load);
    if !kernel_only {
        let records = host::run(&session, &mut results.exit)?;
        results.records.extend(records);
    }
    if let Some(kernel) = &kernel {
        rounds::run(&session, kernel, &legs, seed, &mut results)?;
    }
    progress.finish();
    if results.records.is_empty() && !interrupted() && results.exit == Exit::Passed {
        println!("no test ran at all");
        results.exit = Exit::Incomplete;
    }
    if let Some(path) = &args.ledger {
        report::row(&session, &results, seed)?.append(path)?;
    }
    report::finish(&session, &results, seed)
}

/// Everything that ran, and the worst that came of it.
#[derive(Debug)]
pub struct Results {
    /// One a test and machine.
    pub records: Vec<Record>,
    /// The status the command ends with.
    pub exit: Exit,
    /// How often the in-kernel tests were gone through.
    pub rounds: u32,
}

impl Default for Results {
    fn default() -> Self {
        Results { records: Vec::new(), exit: Exit::Passed, rounds: 0 }
    }
}

/// A kernel with the tests in it.
struct Kernel {
    artifacts: Artifacts,
    tests: Vec<KernelTest>,
    symbols: Option<Symbols>,
}

impl Kernel {
    fn make(workspace: &Workspace, args: &TestArgs) -> anyhow::Result<Kernel> {
        let features: &[&str] = match (args.machine.deterministic, args.explore) {
            (_, true) => &["events", "explore"],
            (true, _) => &["events"],
            _ => &[],
        };
        let args = KernelArgs { features, ..args.kernel.clone() };
        let artifacts = artifact::make(workspace, &args, Profile::Checking)?;
        let tests = kernel_tests::list(&artifacts.kernel)?;
        let symbols = Symbols::load(&artifacts.kernel, &workspace.root);
        Ok(Kernel { artifacts, tests, symbols })
    }
}

fn list(workspace: &Workspace, tests: &[KernelTest], filter: &Filter) -> anyhow::Result<Exit> {
    let chosen: Vec<&KernelTest> = tests.iter().filter(|test| filter.wants(&test.id)).collect();
    if chosen.is_empty() && !filter.is_all() {
        return Err(usage("no in-kernel test matches; without a filter `--list` names them all"));
    }
    for test in &chosen {
        let tags: String = test.tag_names().map(|tag| format!(" [{tag}]")).collect();
        println!("{}{tags}  {}:{}", test.id, test.file, test.own_line(&workspace.root));
    }
    Ok(Exit::Passed)
}

fn print_qemu(workspace: &Workspace, legs: &[Leg], kernel: Option<&Kernel>) -> anyhow::Result<Exit> {
    for (leg, kernel) in legs.iter().zip(std::iter::repeat(kernel).flatten()) {
        let frames = workspace.target.join("grange/com2.log");
        let wiring = Wiring { terminal: true, console: None, frames, qmp: None, reboots: false, memory: None };
        let line = campaign::kernel_line(leg, &kernel.tests, &leg.ids(), None, 0)?;
        println!("# {}", leg.place());
        print!("{}", script(&leg.machine.command(&kernel.artifacts, &line, 0, &wiring)));
    }
    Ok(Exit::Passed)
}

/// A seed nobody chose: from the standard library's own random keys. 32 bits are easier to type again.
pub(crate) fn random_seed() -> u64 {
    let hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.finish() & 0xffff_ffff
}
