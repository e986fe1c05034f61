//! `cargo xtask bench`: what operations of the kernel cost, in instructions or in time.
//!
//! | module | does |
//! |---|---|
//! | [`figures`] | what a boot said over COM2, put together over several boots, and judged by the goals |
//! | [`rows`] | what benches told beside their figure |
//! | [`kfree`] | `bench kfree-rcu`: all machines, tables and plots for the question of back ends |
//! | [`linux`] | `bench linux`: rcuscale's test of a Linux image on the same machines |
//! | [`native`] | the slab allocator and RCU as a host program, beside others |
//! | [`report`] | the table, JSON, CSV, and a saved run to compare with |
//!
//! Two kinds of figure, which are never mixed. With `--count` QEMU's clock counts instructions (`-icount shift=0`): the
//! same each time, whatever else the host does. Without, it is time under the emulator, of which only ratios mean much.

pub mod figures;
pub mod kfree;
pub mod linux;
pub mod native;
pub mod report;
pub mod rows;

use std::path::Path;

use serde_json::json;

use crate::artifact::{self, Artifacts};
use crate::cli::{BenchArgs, BenchWhat, MachineArgs, Profile};
use crate::console;
use crate::exit::{Exit, stop, usage};
use crate::guest::{Boot, Left};
use crate::kernel_args::KernelLine;
use crate::kernel_tests::{self, Filter, KernelBench, KernelTest, filter_glob};
use crate::process::interrupted;
use crate::pulse::Limits;
use crate::qemu::{Engine, Machine, Wiring, script};
use crate::rundir::{RunDir, write};
use crate::shape::Defaults;
use crate::symbols::Symbols;
use crate::verdict::{Asked, TestId, Verdict, judge};
use crate::workspace::Workspace;

use figures::Figures;
use report::{Baseline, Report};

/// One CPU to measure on, and another for what needs two.
const DEFAULTS: Defaults = Defaults { cpus: 2, nodes: 1 };

/// Lines of log shown when a boot fails.
const LOG_LINES: usize = 40;

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a goal that is missed is an [`Exit`], and only with `--check-goals`.
pub fn bench(workspace: &Workspace, args: &BenchArgs) -> anyhow::Result<Exit> {
    match &args.what {
        Some(BenchWhat::KfreeRcu(args)) => return kfree::bench(workspace, args),
        Some(BenchWhat::Linux(args)) => return kfree::beside_linux(workspace, args),
        None => {}
    }
    if args.native {
        let printed = native::run(workspace)?;
        println!("{printed}");
        let dir = RunDir::create(workspace, "bench")?;
        dir.describe(workspace, "bench", &json!({ "native": true }))?;
        let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with('{')).collect();
        dir.write("native.jsonl", &(lines.join("\n") + "\n"))?;
        println!("JSON lines in {}", workspace.short(dir.path()).display());
        return Ok(Exit::Passed);
    }
    if args.runs == 0 {
        return Err(usage("--runs 0: at least 1"));
    }
    if args.machine.deterministic {
        return Err(usage("--deterministic: its clock is no measure of time; --count is repeatable too"));
    }
    if let Some(name) = args.save.as_deref() {
        report::check_name(name)?;
    }
    let filter = Filter::new(&args.filters)?;
    let machine_of = |cpus: Option<u32>| {
        let asked = MachineArgs { cpus: cpus.or(args.machine.cpus), ..args.machine.clone() };
        let mut machine = Machine::from_args(workspace, &asked, &args.qemu_args, DEFAULTS)?;
        if args.count {
            machine.engine = Engine::Counted;
        }
        anyhow::Ok(machine)
    };
    let machines: Vec<Machine> = match args.sizes.as_slice() {
        [] => vec![machine_of(None)?],
        sizes => sizes.iter().map(|&cpus| machine_of(Some(cpus))).collect::<Result<_, _>>()?,
    };
    let baseline = args.baseline.as_deref().map(|name| Baseline::load(workspace, name, args.count)).transpose()?;
    let artifacts = artifact::make(workspace, &args.kernel, Profile::Release)?;
    let all = kernel_tests::list_benches(&artifacts.kernel)?;
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
    let dir = RunDir::create(workspace, "bench")?;
    dir.describe(workspace, "bench", &json!({ "profile": artifacts.profile, "counted": args.count }))?;
    let mut measured = Vec::new();
    for machine in &machines {
        let line = kernel_line(machine, &all, &chosen)?;
        let name = machine.shape.slug();
        let (artifacts, line, name) = (&artifacts, line.as_str(), name.as_str());
        let session = Session { workspace, machine, artifacts, line, chosen: &chosen, dir: &dir, name };
        let mut figures = Figures::new(args.count, &chosen);
        for run in 0..args.runs {
            if interrupted() {
                return Ok(Exit::Interrupted);
            }
            session.run(run, &mut figures)?;
        }
        measured.push(figures);
    }
    let reports: Vec<Report<'_>> = machines
        .iter()
        .zip(&measured)
        .map(|(machine, figures)| Report { machine, profile: artifacts.profile, figures, baseline: baseline.as_ref() })
        .collect();
    let (text, json, csv) = match reports.as_slice() {
        [report] => (report.text(), report.json(), report.csv()),
        several => (report::text_of(several), report::json_of(several), report::csv_of(several)),
    };
    print!("{text}");
    dir.write("bench.json", &json)?;
    dir.write("bench.csv", &csv)?;
    dir.write("summary.txt", &text)?;
    println!("JSON and CSV in {}", workspace.short(dir.path()).display());
    if let Some(name) = args.save.as_deref() {
        let path = report::saved(workspace, name);
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        write(&path, &json)?;
        println!("saved: --baseline {name} compares with it");
    }
    let missed = |report: &Report<'_>| {
        let on = |figure: &figures::Figure| format!("{} on {}", figure.id, report.machine.shape);
        report.figures.missed().map(on).collect::<Vec<_>>()
    };
    let missed: Vec<String> = reports.iter().flat_map(missed).collect();
    if args.check_goals && !missed.is_empty() {
        println!("goals missed: {}", missed.join(", "));
        return Ok(Exit::TestsFailed);
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

/// The kernel command line of each boot.
fn kernel_line(machine: &Machine, all: &[KernelBench], chosen: &[KernelBench]) -> anyhow::Result<String> {
    let mut line = KernelLine::new(&machine.append);
    line.set("grange.run", "bench")?;
    let all: Vec<KernelTest> = all.iter().map(|bench| bench.test.clone()).collect();
    if let Some(glob) = filter_glob(&all, &ids(chosen)) {
        line.set("kunit.filter_glob", &glob)?;
    }
    Ok(line.finish()?.to_owned())
}

fn ids(benches: &[KernelBench]) -> Vec<TestId> {
    benches.iter().map(|bench| bench.test.id.clone()).collect()
}

/// What all boots of one command share.
struct Session<'a> {
    workspace: &'a Workspace,
    machine: &'a Machine,
    artifacts: &'a Artifacts,
    line: &'a str,
    chosen: &'a [KernelBench],
    dir: &'a RunDir,
    /// What the folders of its boots begin with.
    name: &'a str,
}

impl Session<'_> {
    /// Boots once and takes the figures in.
    fn run(&self, run: u32, figures: &mut Figures) -> anyhow::Result<()> {
        let dir = self.dir.sub(&format!("{}-{run}", self.name))?;
        let boot = Boot {
            machine: self.machine,
            artifacts: self.artifacts,
            kernel_line: self.line,
            seed: 0,
            dir: &dir,
            limits: Limits::scaled(1.0),
        };
        let left = boot.watch(&mut |_| {})?;
        let shape = &self.machine.shape;
        let asked = Asked { seed: 0, cpus: shape.cpus(), nodes: shape.nodes(), tests: ids(self.chosen) };
        let verdict = judge(&left.stream, &left.ending, &asked);
        if verdict.exit != Exit::Passed {
            return Err(self.failure(&left, &verdict, &dir));
        }
        figures.take(&left.stream, &verdict)
    }

    /// What the user is told of a boot that gave no figures.
    fn failure(&self, left: &Left, verdict: &Verdict, dir: &Path) -> anyhow::Error {
        let symbols = Symbols::load(&self.artifacts.kernel, &self.workspace.root);
        let log = console::of_crash(&left.console, 0, LOG_LINES, LOG_LINES);
        eprintln!("{}{}", console::symbolized(&log, symbols.as_ref()), left.cpus);
        let of_benches = verdict.tests.iter().flat_map(|test| test.detail.iter());
        let why: Vec<&str> = of_benches.chain(verdict.complaints()).map(String::as_str).collect();
        stop(verdict.exit, format!("{}; see {}", why.join("; "), self.workspace.short(dir).display()))
    }
}
