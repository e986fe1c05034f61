//! `cargo xtask bench`: what operations of the kernel cost, in instructions or in time.
//!
//! | module | does |
//! |---|---|
//! | [`plan`] | which machines and benches an experiment takes |
//! | [`run`] | boots machines, and keeps what came of it |
//! | [`figures`] | what a boot said over COM2, put together over several boots |
//! | [`linux`], [`native`] | rcuscale's tests of a Linux image; the storeys as a host program, beside others |
//! | [`record`], [`rows`] | what a run found, as it is kept |
//! | [`compare`], [`headline`], [`waits`], [`kfree`] | what moved since a saved run; the figures that were to be reached; grace periods under load; the tables of docs/back-ends.md |
//! | [`report`], [`table`], [`curves`], [`html`] | what is shown of a record: tables, plots, a page |
//! | [`guard`] | exact bounds of instructions |
//!
//! Two kinds of figure, which are never mixed. With `--icount` QEMU's clock counts instructions (`-icount shift=0`): the
//! same each time, whatever else the host does. Without, it is time under the emulator, of which only ratios mean much.

pub mod compare;
pub mod curves;
pub mod figures;
pub mod guard;
pub mod headline;
pub mod html;
pub mod kfree;
pub mod linux;
pub mod native;
pub mod plan;
pub mod record;
pub mod report;
pub mod rows;
pub mod run;
pub mod table;
pub mod waits;

use crate::artifact::Artifacts;
use crate::cli::{BenchArgs, BenchWhat, ExperimentArgs, FigureArgs, ReportArgs};
use crate::exit::{Exit, usage};
use crate::kernel_tests::{Filter, KernelBench};
use crate::qemu::{Engine, Machine, Wiring, script};
use crate::rundir::write;
use crate::shape::Defaults;
use crate::workspace::Workspace;

use plan::{Experiment, Plan};
use record::Record;
use run::{Runner, kernel, kernel_line};

/// One CPU to measure on, and another for what needs two.
const DEFAULTS: Defaults = Defaults { cpus: 2, nodes: 1 };

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a goal that is missed is an [`Exit`], and only with `--check-goals`.
pub fn bench(workspace: &Workspace, args: &BenchArgs) -> anyhow::Result<Exit> {
    use BenchWhat::{All, Guard, KfreeRcu, Linux, Native, Rcu, Report, Slab, Smp};
    let (which, args) = match &args.what {
        None => return single(workspace, args),
        Some(Guard(args)) => return guard::guard(workspace, args),
        Some(Report(args)) => return again(workspace, args),
        Some(Slab(args)) => (Experiment::Slab, args),
        Some(Rcu(args)) => (Experiment::Rcu, args),
        Some(KfreeRcu(args)) => (Experiment::KfreeRcu, args),
        Some(Smp(args)) => (Experiment::Smp, args),
        Some(Native(args)) => (Experiment::Native, args),
        Some(Linux(args)) => (Experiment::Linux, args),
        Some(All(args)) => (Experiment::All, args),
    };
    experiment(workspace, which, args)
}

/// What is asked for before anything is measured, which may take long: places and names for what will come of it.
fn prepare(workspace: &Workspace, args: &FigureArgs) -> anyhow::Result<Option<Record>> {
    if let Some(name) = args.save.as_deref() {
        record::check_name(name)?;
    }
    for (option, path) in [("--html", &args.html), ("--json", &args.json)] {
        path.as_deref().map_or(Ok(()), |path| record::check_place(option, path))?;
    }
    args.against.as_deref().map(|name| Record::load(workspace, "--against", name)).transpose()
}

fn experiment(workspace: &Workspace, which: Experiment, args: &ExperimentArgs) -> anyhow::Result<Exit> {
    let against = prepare(workspace, &args.figures)?;
    let image = args.bzimage.as_deref().zip(args.initrd.as_deref());
    match image {
        Some((bzimage, initrd)) => linux::check_files(bzimage, initrd)?,
        None if which == Experiment::Linux => {
            return Err(usage(
                "bench linux: --bzimage and --initrd name the image; docs/linux.md tells how to make it",
            ));
        }
        None => {}
    }
    if args.write && !matches!(which, Experiment::KfreeRcu | Experiment::Linux | Experiment::All) {
        return Err(usage(format!("--write: docs/back-ends.md shows nothing of bench {}", which.name())));
    }
    if image.is_some() && !matches!(which, Experiment::KfreeRcu | Experiment::Linux | Experiment::Rcu | Experiment::All)
    {
        return Err(usage(format!("--bzimage: bench {} runs nothing on a Linux image", which.name())));
    }
    if args.write && args.figures.icount {
        return Err(usage("--write with --icount: the page tells of times where there are times"));
    }
    let mut plan = Plan::of(which, &args.cpus);
    if args.figures.icount {
        plan = plan.counted();
    }
    if let Some(word) = args.only.as_deref() {
        let names = plan.names().join(", ");
        plan.keep(word);
        if plan.names().is_empty() {
            return Err(usage(format!("--only {word}: bench {} has {names}", which.name())));
        }
    }
    let (artifacts, all) = if plan.boots_nothing() {
        let (loader, kernel) = Default::default();
        (Artifacts { loader, kernel, profile: "release" }, Vec::new())
    } else {
        kernel(workspace, &args.figures.kernel)?
    };
    let how = (args.figures.runs, args.figures.icount);
    let mut runner = Runner::new(workspace, which.name(), &args.qemu, (&artifacts, &all), how)?;
    let minutes = plan.minutes(args.figures.runs, image.is_some());
    eprintln!("{} parts: about {minutes} min if nothing else runs on two cores", plan.names().len());
    let exit = runner.carry_out(&plan, image)?;
    runner.keep(&args.figures, against.as_ref())?;
    if args.write {
        kfree::page::write(workspace, runner.record())?;
    }
    Ok(exit)
}

/// Benches by their names.
fn single(workspace: &Workspace, args: &BenchArgs) -> anyhow::Result<Exit> {
    let filter = Filter::new(&args.filters)?;
    let against = prepare(workspace, &args.figures)?;
    let mut machines = Vec::new();
    for asked in args.machine.machines() {
        let mut machine = Machine::from_args(workspace, &asked, &args.qemu_args, DEFAULTS)?;
        if args.figures.icount {
            machine.engine = Engine::Counted;
        }
        machines.push(machine);
    }
    let (artifacts, all) = kernel(workspace, &args.figures.kernel)?;
    let chosen: Vec<KernelBench> = all.iter().filter(|bench| filter.wants(&bench.test.id)).cloned().collect();
    if chosen.is_empty() {
        return Err(usage(format!(
            "no bench matches {}; `cargo xtask bench --list` names them",
            if filter.is_all() { "in this kernel".to_owned() } else { args.filters.join(" ") }
        )));
    }
    if args.list {
        list(workspace, &chosen);
        return Ok(Exit::Passed);
    }
    if args.machine.print_qemu {
        for machine in &machines {
            let frames = workspace.target.join("grange/com2.log");
            let wiring = Wiring { terminal: true, console: None, frames, qmp: None, reboots: false, memory: None };
            let line = kernel_line(machine, &all, &chosen)?;
            print!("{}", script(&machine.command(&artifacts, &line, 0, &wiring)));
        }
        return Ok(Exit::Passed);
    }
    let how = (args.figures.runs, args.figures.icount);
    let mut runner = Runner::new(workspace, "benches", &args.machine.qemu, (&artifacts, &all), how)?;
    for machine in &machines {
        runner.boot(&format!("benches-{}", machine.shape.cpus()), machine, &chosen, 1)?;
    }
    runner.keep(&args.figures, against.as_ref())?;
    let legs = runner.record().legs.iter();
    let missed: Vec<String> = legs
        .flat_map(|leg| leg.figures.iter().map(move |figure| (leg, figure)))
        .filter(|(_, figure)| figure.meets_goal() == Some(false))
        .map(|(leg, figure)| format!("{} on {} CPUs", figure.bench, leg.cpus))
        .collect();
    if args.check_goals && !missed.is_empty() {
        println!("goals missed: {}", missed.join(", "));
        return Ok(Exit::TestsFailed);
    }
    Ok(Exit::Passed)
}

/// `bench report`: what was measured before, shown once more.
fn again(workspace: &Workspace, args: &ReportArgs) -> anyhow::Result<Exit> {
    let record = Record::load(workspace, "bench report", &args.run)?;
    let against = args.against.as_deref().map(|name| Record::load(workspace, "--against", name)).transpose()?;
    print!("{}", report::text(&record, against.as_ref()));
    if let Some(path) = &args.html {
        write(path, &html::page(&record, against.as_ref())?)?;
        println!("report in {}", path.display());
    }
    if args.write {
        kfree::page::write(workspace, &record)?;
    }
    Ok(Exit::Passed)
}

/// One line a bench, with its goals.
fn list(workspace: &Workspace, benches: &[KernelBench]) {
    for KernelBench { test, counted, timed } in benches {
        let goal = |limit: &u32, unit| if *limit == 0 { String::new() } else { format!("  <= {limit} {unit}") };
        let place = format!("{}:{}", test.file, test.own_line(&workspace.root));
        println!("{}{}{}  {place}", test.id, goal(counted, "counted"), goal(timed, "ns timed"));
    }
}
