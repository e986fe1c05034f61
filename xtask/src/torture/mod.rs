//! `cargo xtask torture`: scenarios of many loads at once, each a machine of its own.
//!
//! | module | does |
//! |---|---|
//! | [`scenario`], [`coverage`] | the files `torture/*.toml`, and a table of what they set |
//! | [`kinds`] | what a kernel can torture, from its ELF |
//! | [`boot`], [`bad`] | one boot, judged by the three witnesses and by its console |
//! | [`again`] | the words of the line that runs it again |
//! | [`deterministic`] | `--deterministic`: many seeds, and whether each repeats |
//! | [`mutants`] | `--mutants`: whether scenarios find bugs that are made on purpose |
//! | [`pool`] | as many boots at once as the host has cores for |
//! | [`results`], [`shard`], [`ledger`] | what came of it, for people and machines; parts of it put together; long runs added up |

pub mod again;
pub mod bad;
pub mod boot;
pub mod coverage;
pub mod deterministic;
pub mod kinds;
pub mod ledger;
pub mod mutants;
pub mod pool;
pub mod results;
pub mod scenario;
pub mod shard;

use std::collections::BTreeMap;
use std::path::PathBuf;

use comfy_table::{Table, presets};
use serde_json::json;

use crate::cli::{KernelArgs, MergeArgs, OutputArgs, Profile, TortureArgs, TortureWhat};
use crate::exit::{Exit, of, usage};
use crate::ledger as csv;
use crate::load::Load;
use crate::process::{interrupted, quoted};
use crate::qemu::{Machine, Wiring, script};
use crate::rundir::{self, RunDir, write};
use crate::test::{random_seed, report};
use crate::workspace::Workspace;

use boot::{Kernel, Run};
use results::{FILE, Outcome, Results};
use scenario::Scenario;
use shard::Shard;

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a scenario that fails is an [`Exit`] and not an error.
pub fn torture(workspace: &Workspace, args: &TortureArgs) -> anyhow::Result<Exit> {
    if let Some(TortureWhat::Merge(merge)) = &args.what {
        return self::merge(merge);
    }
    let all = scenario::all(&workspace.root.join("torture"))?;
    let list = match args.scenarios[..] {
        [] if args.mutants.is_some() => {
            all.iter().filter(|scenario| !scenario.file.finds.is_empty()).cloned().collect()
        }
        [] if args.machine.deterministic => scenario::chosen(&all, &[deterministic::SCENARIOS.to_owned()])?,
        _ => scenario::chosen(&all, &args.scenarios)?,
    };
    if args.list {
        // Who names none wants to see all, not only the default ones.
        show(if args.scenarios.is_empty() { &all } else { &list }, args.coverage);
        return Ok(Exit::Passed);
    }
    args.reports.ledger.as_deref().map_or(Ok(()), |path| csv::check(path, ledger::HEADER))?;
    let names: Vec<String> = list.iter().map(|scenario| scenario.name.clone()).collect();
    let shard = args.shard.unwrap_or(Shard::ALL);
    let cores = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32));
    if let Some(words) = &args.mutants {
        return mutants::command(workspace, args, &list, words, cores);
    }
    let numbered = numbered(&list);
    let mut due = Vec::new();
    for &(scenario, time) in shard.of(&numbered) {
        due.push((scenario, time, scenario.machine(workspace, &args.machine)?));
    }
    if due.is_empty() {
        return Err(usage(format!("--shard {shard}: the list has only {} scenarios", names.len())));
    }
    if args.machine.deterministic {
        for (option, given) in [("--junit", &args.reports.junit), ("--ledger", &args.reports.ledger)] {
            if given.is_some() {
                return Err(usage(format!(
                    "{option} with --deterministic: what seeds come to is written by --json alone"
                )));
            }
        }
    }
    if args.dry_run {
        dry_run(&due, args.minutes, cores);
        return Ok(Exit::Passed);
    }
    let kernels = kernels(workspace, args, &due)?;
    let seed = args.seed.unwrap_or_else(random_seed);
    let mut runs = Vec::new();
    for (scenario, time, machine) in due {
        let kernel = &kernels[&args.kernel.profile_or(scenario.profile).name()];
        runs.push(run_of(workspace, args, scenario, machine, kernel, seed.wrapping_add(time))?);
    }
    if args.machine.print_qemu {
        return print_qemu(workspace, &runs);
    }
    let _load = Load::start(args.load);
    if args.machine.deterministic {
        return deterministic::command(workspace, args, &runs, cores);
    }
    let dir = RunDir::create(workspace, "torture")?;
    let builds: Vec<_> = kernels.values().map(|kernel| &*kernel.build_id).collect();
    dir.describe(
        workspace,
        "torture",
        &json!({ "seed": seed, "shard": shard.to_string(), "build_id": builds.join(" ") }),
    )?;
    println!("seed {seed:#x}; results in {}", workspace.short(dir.path()).display());
    let (outcomes, exit) = boot_all(&runs, cores, &dir)?;
    let mut results = Results::new(names, shard, rundir::commit(workspace), seed, outcomes);
    results.took_s = dir.age().as_secs_f64();
    let exit = results.judge(if interrupted() { exit.worst(Exit::Interrupted) } else { exit });
    dir.write(FILE, &results.json()?)?;
    dir.write("junit.xml", &report::junit(&results.records())?)?;
    dir.write("summary.txt", &results.outcomes.iter().map(|outcome| outcome.line() + "\n").collect::<String>())?;
    report_to(&args.reports, &results)?;
    println!("torture took {:.1} s", results.took_s);
    println!("{}", results.counts());
    Ok(exit)
}

/// Each scenario with how often it came before in the list: the second boot of one has the next seed.
fn numbered(list: &[Scenario]) -> Vec<(&Scenario, u64)> {
    let before = |at: usize| list[..at].iter().filter(|scenario| scenario.name == list[at].name).count();
    list.iter().enumerate().map(|(at, scenario)| (scenario, before(at) as u64)).collect()
}

/// One kernel for each profile that is wanted.
fn kernels(
    workspace: &Workspace,
    args: &TortureArgs,
    due: &[(&Scenario, u64, Machine)],
) -> anyhow::Result<BTreeMap<&'static str, Kernel>> {
    let mut kernels = BTreeMap::new();
    for (scenario, ..) in due {
        let profile: Profile = args.kernel.profile_or(scenario.profile);
        if !kernels.contains_key(profile.name()) {
            let features: &[&str] = if args.machine.deterministic { &["events", "explore"] } else { &[] };
            let kernel = Kernel::make(workspace, profile, &KernelArgs { features, ..args.kernel.clone() })?;
            kernels.insert(profile.name(), kernel);
        }
    }
    Ok(kernels)
}

/// What a scenario comes to with the user's options.
///
/// # Errors
/// `Usage` for kinds that the kernel has not, or a command line that is too long.
pub fn run_of<'a>(
    workspace: &'a Workspace,
    args: &TortureArgs,
    scenario: &'a Scenario,
    machine: Machine,
    kernel: &'a Kernel,
    seed: u64,
) -> anyhow::Result<Run<'a>> {
    let kinds = kinds::chosen(&kernel.kinds, &scenario.file.kinds, &format!("{}.toml", scenario.name))?;
    let duration = scenario.duration(args.minutes);
    let run = Run {
        workspace,
        kernel,
        scenario: &scenario.name,
        machine,
        kinds,
        duration,
        limits: boot::limits(duration),
        seed,
        bug: None,
        again: format!("cargo xtask torture {}{} --seed {seed:#x}", scenario.name, again::options(args)),
    };
    run.kernel_line()?;
    Ok(run)
}

/// The QEMU line of each boot.
fn print_qemu(workspace: &Workspace, runs: &[Run<'_>]) -> anyhow::Result<Exit> {
    for run in runs {
        let frames = workspace.target.join("grange/com2.log");
        let wiring = Wiring { terminal: true, console: None, frames, qmp: None, reboots: false, memory: None };
        println!("# {}", run.scenario);
        print!("{}", script(&run.machine.command(&run.kernel.artifacts, &run.kernel_line()?, run.seed, &wiring)));
    }
    Ok(Exit::Passed)
}

/// Boots all, prints a line for each as it ends, and returns the outcomes in the order of the list.
fn boot_all(runs: &[Run<'_>], cores: u32, dir: &RunDir) -> anyhow::Result<(Vec<Outcome>, Exit)> {
    let folders: Vec<PathBuf> = (0..runs.len()).map(|at| dir.sub(&folder(runs, at))).collect::<anyhow::Result<_>>()?;
    let weights: Vec<u32> = runs.iter().map(|run| pool::cores_of(&run.machine)).collect();
    let mut outcomes: Vec<Option<Outcome>> = vec![None; runs.len()];
    let mut exit = Exit::Passed;
    pool::run(
        &weights,
        cores,
        |at| runs[at].boot(&folders[at]),
        |at, result| match result {
            Ok(outcome) => {
                println!("{}", outcome.line());
                print!("{}", outcome.failure());
                dir.event("outcome", &json!({ "scenario": outcome.scenario, "verdict": outcome.verdict }));
                outcomes[at] = Some(outcome);
            }
            Err(error) => {
                println!("{}: {error:#}", runs[at].scenario);
                exit = exit.worst(of(&error));
            }
        },
    );
    Ok((outcomes.into_iter().flatten().collect(), exit))
}

/// The name of a boot's folder: the scenario's, with a number where it is not the first.
fn folder(runs: &[Run<'_>], at: usize) -> String {
    let name = runs[at].scenario;
    match runs[..at].iter().filter(|run| run.scenario == name).count() {
        0 => name.to_owned(),
        before => format!("{name}.{}", before + 1),
    }
}

/// `torture merge`.
fn merge(args: &MergeArgs) -> anyhow::Result<Exit> {
    args.reports.ledger.as_deref().map_or(Ok(()), |path| csv::check(path, ledger::HEADER))?;
    let shards = args.shards.iter().map(|path| Results::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let (results, missing) = shard::merge(shards)?;
    results.outcomes.iter().for_each(|outcome| println!("{}", outcome.line()));
    results.outcomes.iter().for_each(|outcome| print!("{}", outcome.failure()));
    missing.iter().for_each(|line| println!("{line}"));
    report_to(&args.reports, &results)?;
    println!("{}", results.counts());
    Ok(crate::exit::from_code(Some(results.exit.into())))
}

/// Writes what the user wants written.
fn report_to(args: &OutputArgs, results: &Results) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        write(path, &results.json()?)?;
    }
    if let Some(path) = &args.junit {
        write(path, &report::junit(&results.records())?)?;
    }
    if let Some(path) = &args.ledger {
        let words = std::env::args().skip(1);
        let command = words.fold("cargo xtask".to_owned(), |line, word| line + " " + &quoted(word.as_ref()));
        println!("{}", ledger::add(path, results, &command)?);
    }
    Ok(())
}

fn show(scenarios: &[Scenario], coverage: bool) {
    if coverage {
        println!("{}", coverage::table(scenarios));
        return;
    }
    for scenario in scenarios {
        let mark = if scenario.file.default { "" } else { "  (not in the default list)" };
        println!("{:10} {:>4} min  {}{mark}", scenario.name, scenario.file.minutes, scenario.file.covers);
    }
}

fn dry_run(due: &[(&Scenario, u64, Machine)], minutes: Option<f64>, cores: u32) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["scenario", "min", "machine", "cores", "kinds"]);
    let mut jobs = Vec::new();
    for (scenario, _, machine) in due {
        let minutes = scenario.duration(minutes).as_secs_f64() / 60.0;
        let weight = pool::cores_of(machine).min(cores);
        jobs.push((weight, minutes));
        table.add_row([
            scenario.name.clone(),
            format!("{minutes:.2}"),
            format!("{} ({})", machine.shape, machine.engine.name()),
            weight.to_string(),
            scenario.file.kinds.join(" "),
        ]);
    }
    println!("{table}");
    let plural = if cores == 1 { "" } else { "s" };
    println!("{:.1} minutes on {cores} core{plural}, without building and booting", pool::makespan(&jobs, cores));
}
