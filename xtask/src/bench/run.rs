//! Boots machines and puts together what they say.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::artifact::{self, Artifacts};
use crate::cli::{Accel, FigureArgs, KernelArgs, MachineArgs, Profile};
use crate::console;
use crate::exit::{self, Exit, stop};
use crate::guest::{Boot, Left};
use crate::kernel_args::KernelLine;
use crate::kernel_tests::{self, Filter, KernelBench, KernelTest, filter_glob};
use crate::process::interrupted;
use crate::pulse::Limits;
use crate::qemu::{Engine, Machine};
use crate::rundir::{RunDir, write};
use crate::shape::Defaults;
use crate::smp::measure;
use crate::symbols::Symbols;
use crate::verdict::{Asked, TestId, Verdict, judge};
use crate::workspace::Workspace;

use super::figures::Figures;
use super::plan::{self, LinuxTest, Plan};
use super::record::{self, Boots, LinuxLine, Record, VERSION};
use super::{curves, html, linux, native, report};

/// Lines of log shown when a boot fails.
const LOG_LINES: usize = 40;

/// The two files of a Linux image.
pub type Image<'a> = (&'a Path, &'a Path);

/// What all boots of one command share.
#[derive(Debug)]
pub struct Runner<'a> {
    workspace: &'a Workspace,
    qemu: &'a Path,
    artifacts: &'a Artifacts,
    all: &'a [KernelBench],
    runs: Option<u32>,
    dir: RunDir,
    record: Record,
}

impl<'a> Runner<'a> {
    /// One that has measured nothing.
    ///
    /// # Errors
    /// `Host` when its folder cannot be made.
    pub fn new(
        workspace: &'a Workspace,
        what: &str,
        qemu: &'a Path,
        (artifacts, all): (&'a Artifacts, &'a [KernelBench]),
        (runs, icount): (Option<u32>, bool),
    ) -> anyhow::Result<Runner<'a>> {
        let dir = RunDir::create(workspace, "bench")?;
        let profile = artifacts.profile;
        let about =
            dir.describe(workspace, "bench", &json!({ "what": what, "profile": profile, "counted": icount }))?;
        let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
        let commit: String = text("commit").chars().take(12).collect();
        let changed = if about["changed"].as_bool().unwrap_or(false) { "+" } else { "" };
        let record = Record {
            v: VERSION,
            what: what.to_owned(),
            utc: text("utc"),
            commit: commit + changed,
            rustc: text("rustc"),
            profile: profile.to_owned(),
            ..Record::default()
        };
        Ok(Runner { workspace, qemu, artifacts, all, runs, dir, record })
    }

    /// What was measured so far.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Boots `machine` for the benches that are chosen, `boots` times if nothing was said, and keeps the figures as a leg of that
    /// name.
    ///
    /// # Errors
    /// With the status of a boot that gave no figures.
    pub fn boot(&mut self, name: &str, machine: &Machine, chosen: &[KernelBench], boots: u32) -> anyhow::Result<()> {
        let line = kernel_line(machine, self.all, chosen)?;
        let leg = record::Leg {
            name: name.to_owned(),
            cpus: machine.shape.cpus(),
            nodes: machine.shape.nodes(),
            engine: machine.engine.name().to_owned(),
            counted: machine.engine == Engine::Counted,
            ..record::Leg::default()
        };
        let mut figures = Figures::new(leg, chosen);
        for run in 0..self.runs.unwrap_or(boots) {
            if interrupted() {
                return Err(stop(Exit::Interrupted, "interrupted".to_owned()));
            }
            self.boot_once(&format!("{name}-{run}"), machine, &line, chosen, &mut figures)?;
        }
        let (leg, build) = figures.finish();
        self.record.build = build;
        self.record.legs.push(leg);
        Ok(())
    }

    fn boot_once(
        &self,
        name: &str,
        machine: &Machine,
        line: &str,
        chosen: &[KernelBench],
        figures: &mut Figures,
    ) -> anyhow::Result<()> {
        let dir = self.dir.sub(name)?;
        let (artifacts, limits) = (self.artifacts, Limits::scaled(1.0));
        let boot = Boot { machine, artifacts, kernel_line: line, seed: 0, dir: &dir, limits };
        let left = boot.watch(&mut |_| {})?;
        let asked = Asked { seed: 0, cpus: machine.shape.cpus(), nodes: machine.shape.nodes(), tests: ids(chosen) };
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

    /// All that is planned. A part that fails is told and left out, and the worst status of all is given back.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn carry_out(&mut self, plan: &Plan, image: Option<Image<'_>>) -> anyhow::Result<Exit> {
        let mut worst = Exit::Passed;
        let mut part = |runner: &mut Self, name: &str, run: &mut dyn FnMut(&mut Self) -> anyhow::Result<()>| {
            eprintln!("{name} …");
            let began = Instant::now();
            match run(runner) {
                Ok(()) => eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64()),
                Err(error) if exit::of(&error) == Exit::Interrupted => return Err(error),
                Err(error) => {
                    eprintln!("{name}: {error:#}");
                    worst = worst.worst(exit::of(&error));
                }
            }
            anyhow::Ok(())
        };
        for leg in &plan.legs {
            part(self, &leg.name, &mut |runner| runner.leg(leg))?;
            for (image, test) in image.into_iter().flat_map(|image| leg.linux.iter().map(move |test| (image, test))) {
                let name = format!("Linux, {}, on {}", test.name(), leg.name);
                part(self, &name, &mut |runner| runner.linux(leg, test, image))?;
            }
        }
        if plan.native {
            part(self, plan::NATIVE, &mut |runner| {
                runner.record.native = native::run(runner.workspace)?;
                Ok(())
            })?;
        }
        for &cpus in &plan.boots {
            part(self, &format!("smp-{cpus}"), &mut |runner| runner.smp(cpus))?;
        }
        Ok(worst)
    }

    fn machine(&self, leg: &plan::Leg) -> anyhow::Result<Machine> {
        let asked = MachineArgs {
            cpus: Some(leg.cpus),
            nodes: Some(leg.nodes),
            accel: Accel::Tcg,
            thread: leg.thread,
            qemu: self.qemu.to_owned(),
            append: leg.append.clone(),
            ..MachineArgs::default()
        };
        let defaults = Defaults { cpus: leg.cpus, nodes: leg.nodes };
        let mut machine = Machine::from_args(self.workspace, &asked, &[], defaults)?;
        if leg.counted {
            machine.engine = Engine::Counted;
        }
        Ok(machine)
    }

    fn leg(&mut self, leg: &plan::Leg) -> anyhow::Result<()> {
        let machine = self.machine(leg)?;
        let filter = Filter::new(&leg.benches.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())?;
        let chosen: Vec<KernelBench> = self.all.iter().filter(|bench| filter.wants(&bench.test.id)).cloned().collect();
        self.boot(&leg.name, &machine, &chosen, leg.boots)
    }

    /// Boots the image on the leg's machine.
    fn linux(&mut self, leg: &plan::Leg, test: &LinuxTest, (bzimage, initrd): Image<'_>) -> anyhow::Result<()> {
        let machine = self.machine(&plan::Leg { append: String::new(), ..leg.clone() })?;
        for run in 0..self.runs.unwrap_or(1) {
            let dir = self.dir.sub(&format!("linux-{}-{}-{run}", leg.name, test.name()))?;
            let said = linux::run(&machine, bzimage, initrd, test, &dir)?;
            let none = || stop(Exit::Incomplete, format!("Linux: no figures; see {}", dir.display()));
            match test {
                LinuxTest::Kfree(_) => {
                    let line = linux::line(&said, &leg.name).ok_or_else(none)?;
                    let LinuxLine { release, ns, batches, footprint, .. } = &line;
                    eprintln!("Linux {release}: {:.2} s, {batches} grace periods, {footprint} MB", ns / 1e9);
                    self.record.linux.push(line);
                }
                LinuxTest::Waits { .. } => {
                    self.record.linux_waits.push(linux::waits(&said, &leg.name, test.name()).ok_or_else(none)?);
                }
            }
        }
        Ok(())
    }

    /// Boots a machine of the boot experiment, as often as `cargo xtask smp` does at least.
    fn smp(&mut self, cpus: u32) -> anyhow::Result<()> {
        let asked =
            MachineArgs { cpus: Some(cpus), nodes: Some(1), qemu: self.qemu.to_owned(), ..MachineArgs::default() };
        let machine = Machine::from_args(self.workspace, &asked, &[], Defaults { cpus, nodes: 1 })?;
        let mut boots = Boots { cpus, nodes: 1, engine: machine.engine.name().to_owned(), online_ms: Vec::new() };
        for run in 0..plan::boots_of(self.runs) {
            let dir = self.dir.sub(&format!("smp-{cpus}-{run}"))?;
            let boot = measure::Boot { machine: &machine, artifacts: self.artifacts, dir: &dir };
            boots.online_ms.push(boot.measure()?.online_ms());
        }
        self.record.boots.push(boots);
        Ok(())
    }

    /// Prints the tables, and leaves everything in the folder of the run and where the user wants it.
    ///
    /// # Errors
    /// `Host` when the disk does not let it.
    pub fn keep(&self, args: &FigureArgs, against: Option<&Record>) -> anyhow::Result<()> {
        let (text, json) = (report::text(&self.record, against), self.record.json()?);
        print!("{text}");
        let page = html::page(&self.record, against)?;
        self.dir.write("bench.json", &json)?;
        self.dir.write("bench.csv", &report::csv(&self.record))?;
        self.dir.write("summary.txt", &text)?;
        self.dir.write("report.html", &page)?;
        for plot in curves::all(&self.record) {
            self.dir.write(&format!("{}.svg", plot.name), &plot.svg()?)?;
        }
        for (path, content) in [(&args.html, &page), (&args.json, &json)] {
            if let Some(path) = path {
                write(path, content)?;
            }
        }
        println!("report.html, bench.json, bench.csv and plots in {}", self.workspace.short(self.dir.path()).display());
        if let Some(name) = args.save.as_deref() {
            let path = record::saved(self.workspace, name);
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            write(&path, &json)?;
            println!("saved: --against {name} compares with it");
        }
        Ok(())
    }
}

/// Builds the kernel and reads its benches.
///
/// # Errors
/// `Build` when it does not build.
pub fn kernel(workspace: &Workspace, args: &KernelArgs) -> anyhow::Result<(Artifacts, Vec<KernelBench>)> {
    let artifacts = artifact::make(workspace, args, Profile::Release)?;
    let all = kernel_tests::list_benches(&artifacts.kernel)?;
    Ok((artifacts, all))
}

/// The kernel command line of each boot.
///
/// # Errors
/// `Usage` for a line that is too long or says something twice.
pub fn kernel_line(machine: &Machine, all: &[KernelBench], chosen: &[KernelBench]) -> anyhow::Result<String> {
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
