//! `cargo xtask bench kfree-rcu`: every way to free after a grace period, on all machines that the question takes.
//!
//! | module | does |
//! |---|---|
//! | `answer` | who wins on which load |
//! | [`tables`] | the figures as tables in Markdown |
//! | [`plot`] | curves as SVG |
//! | [`page`] | puts both into docs/back-ends.md |
//!
//! All ways are taken in turn within one boot, so what else the host does hits all of them. Where times under the emulator
//! would say more of the host than of the kernel, instructions are counted.

mod answer;
pub mod page;
pub mod plot;
pub mod tables;

use serde_json::json;

use crate::artifact::{self, Artifacts};
use crate::cli::{Accel, KernelArgs, KfreeRcuArgs, LinuxArgs, MachineArgs, Profile, Thread};
use crate::exit::{Exit, usage};
use crate::kernel_tests::{self, Filter, KernelBench};
use crate::process::interrupted;
use crate::qemu::{Engine, Machine};
use crate::rundir::RunDir;
use crate::shape::Defaults;
use crate::workspace::Workspace;

use super::figures::Figures;
use super::linux::{self, Line};
use super::{Session, kernel_line, native};

/// The numbers of rcuscale's test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// CPUs, and as many threads.
    pub cpus: u32,
    /// Times that a thread gives up its objects.
    pub loops: u32,
    /// Objects that it gives up each time.
    pub objects: u32,
}

impl Scale {
    /// The two that Linux figures are known of.
    pub const ALL: [Scale; 2] =
        [Scale { cpus: 2, loops: 2_000, objects: 1_000 }, Scale { cpus: 4, loops: 1_000, objects: 1_000 }];

    /// For a kernel command line, Linux's or ours.
    #[must_use]
    pub fn words(&self) -> String {
        let Scale { cpus, loops, objects } = self;
        format!("rcuscale.kfree_nthreads={cpus} rcuscale.kfree_loops={loops} rcuscale.kfree_alloc_num={objects}")
    }
}

/// A machine and what is measured on it.
#[derive(Debug)]
struct Leg {
    name: String,
    cpus: u32,
    /// Instructions are counted here always.
    counted: bool,
    thread: Thread,
    append: String,
    benches: &'static [&'static str],
}

fn scale_leg(scale: &Scale) -> Leg {
    Leg {
        name: format!("rcuscale-{}", scale.cpus),
        cpus: scale.cpus,
        counted: false,
        thread: Thread::Multi,
        append: scale.words(),
        benches: &["kfree_rcu_scale.*"],
    }
}

fn legs() -> Vec<Leg> {
    let leg = |name: &str, cpus, counted, benches| {
        let (name, append) = (name.to_owned(), String::new());
        Leg { name, cpus, counted, thread: Thread::Auto, append, benches }
    };
    let mut legs: Vec<Leg> = Scale::ALL.iter().map(scale_leg).collect();
    legs.push(leg(
        "flood",
        16,
        false,
        &["kfree_rcu_flood.small", "kfree_rcu_flood.large", "kfree_rcu_flood.vmalloc", "kfree_rcu_flood.slow_readers"],
    ));
    legs.push(leg("counted", 2, true, &["kfree_rcu.*", "kfree_rcu_nolock.*", "kfree_rcu_barriers.*"]));
    legs.push(leg(
        "rates",
        4,
        true,
        &[
            "kfree_rcu_flood.held_rate",
            "kfree_rcu_flood.trickle",
            "kfree_rcu_flood.residence",
            "kfree_rcu_flood.waiting_bytes",
            "kfree_rcu_fragments.*",
        ],
    ));
    legs
}

/// The name of the part that is no machine.
const NATIVE: &str = "native";

/// All that was measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// The boots of each leg, by its name.
    pub legs: Vec<(String, Figures)>,
    /// The Linux image's lines.
    pub linux: Vec<(Scale, Vec<Line>)>,
    /// What the host program printed.
    pub native: Option<String>,
    /// What was measured and on what, in a line.
    pub about: String,
}

/// What both commands need.
struct Bench<'a> {
    workspace: &'a Workspace,
    qemu: &'a std::path::Path,
    artifacts: Artifacts,
    all: Vec<KernelBench>,
    count: bool,
    runs: u32,
    dir: RunDir,
}

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`].
pub fn bench(workspace: &Workspace, args: &KfreeRcuArgs) -> anyhow::Result<Exit> {
    let wanted = |name: &str| args.only.as_deref().is_none_or(|word| name.contains(word));
    let legs: Vec<Leg> = legs().into_iter().filter(|leg| wanted(&leg.name)).collect();
    if legs.is_empty() && !wanted(NATIVE) {
        let word = args.only.as_deref().unwrap_or_default();
        return Err(usage(format!(
            "--only {word}: rcuscale-2, rcuscale-4, flood, counted, rates and native are there"
        )));
    }
    if args.write && args.count {
        return Err(usage("--write with --count: the page tells of times where there are times"));
    }
    let image = args.bzimage.as_deref().zip(args.initrd.as_deref());
    if let Some((bzimage, initrd)) = image {
        linux::check_files(bzimage, initrd)?;
    }
    let bench = Bench::new(workspace, &args.qemu, &args.kernel, args.count, args.runs, "bench-kfree")?;
    let mut measured = Measured { about: bench.about(), ..Measured::default() };
    for leg in &legs {
        if interrupted() {
            return Ok(Exit::Interrupted);
        }
        let figures = bench.leg(leg)?;
        measured.legs.push((leg.name.clone(), figures));
        let scale = Scale::ALL.iter().find(|scale| scale_leg(scale).name == leg.name);
        if let Some(((bzimage, initrd), scale)) = image.zip(scale) {
            measured.linux.push((*scale, bench.linux(leg, scale, bzimage, initrd)?));
        }
    }
    if wanted(NATIVE) {
        measured.native = Some(native::run(workspace)?);
    }
    bench.keep(&measured)?;
    if args.write {
        page::write(workspace, &measured)?;
    }
    Ok(Exit::Passed)
}

/// `bench linux`: the image and ours, one after the other on each machine.
///
/// # Errors
/// See [`crate::exit`].
pub fn beside_linux(workspace: &Workspace, args: &LinuxArgs) -> anyhow::Result<Exit> {
    linux::check_files(&args.bzimage, &args.initrd)?;
    let bench = Bench::new(workspace, &args.qemu, &args.kernel, args.count, args.runs, "bench-linux")?;
    let mut measured = Measured { about: bench.about(), ..Measured::default() };
    for scale in &Scale::ALL {
        if interrupted() {
            return Ok(Exit::Interrupted);
        }
        let leg = scale_leg(scale);
        measured.linux.push((*scale, bench.linux(&leg, scale, &args.bzimage, &args.initrd)?));
        measured.legs.push((leg.name.clone(), bench.leg(&leg)?));
    }
    bench.keep(&measured)?;
    Ok(Exit::Passed)
}

impl<'a> Bench<'a> {
    fn new(
        workspace: &'a Workspace,
        qemu: &'a std::path::Path,
        kernel: &KernelArgs,
        count: bool,
        runs: u32,
        command: &str,
    ) -> anyhow::Result<Bench<'a>> {
        let artifacts = artifact::make(workspace, kernel, Profile::Release)?;
        let all = kernel_tests::list_benches(&artifacts.kernel)?;
        let dir = RunDir::create(workspace, command)?;
        dir.describe(workspace, command, &json!({ "profile": artifacts.profile, "counted": count }))?;
        Ok(Bench { workspace, qemu, artifacts, all, count, runs, dir })
    }

    fn about(&self) -> String {
        let boots = if self.runs == 1 { "1 boot".to_owned() } else { format!("{} boots", self.runs) };
        let engine = if self.count { "instructions counted on all" } else { "QEMU's TCG" };
        format!("{} kernel, {boots} of each machine, {engine}", self.artifacts.profile)
    }

    fn machine(&self, leg: &Leg) -> anyhow::Result<Machine> {
        let asked = MachineArgs {
            cpus: Some(leg.cpus),
            nodes: Some(1),
            accel: Accel::Tcg,
            thread: leg.thread,
            qemu: self.qemu.to_owned(),
            append: leg.append.clone(),
            ..MachineArgs::default()
        };
        let mut machine = Machine::from_args(self.workspace, &asked, &[], Defaults { cpus: leg.cpus, nodes: 1 })?;
        if leg.counted || self.count {
            machine.engine = Engine::Counted;
        }
        Ok(machine)
    }

    /// Boots the leg's machine and takes its figures.
    fn leg(&self, leg: &Leg) -> anyhow::Result<Figures> {
        let machine = self.machine(leg)?;
        let filter = Filter::new(&leg.benches.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())?;
        let chosen: Vec<KernelBench> = self.all.iter().filter(|bench| filter.wants(&bench.test.id)).cloned().collect();
        let line = kernel_line(&machine, &self.all, &chosen)?;
        let session = Session {
            workspace: self.workspace,
            machine: &machine,
            artifacts: &self.artifacts,
            line: &line,
            chosen: &chosen,
            dir: &self.dir,
            name: &leg.name,
        };
        let mut figures = Figures::new(machine.engine == Engine::Counted, &chosen);
        for run in 0..self.runs {
            eprintln!("{}: {} ({})", leg.name, machine.shape, machine.engine.name());
            session.run(run, &mut figures)?;
        }
        Ok(figures)
    }

    /// Boots the image on the leg's machine.
    fn linux(
        &self,
        leg: &Leg,
        scale: &Scale,
        bzimage: &std::path::Path,
        initrd: &std::path::Path,
    ) -> anyhow::Result<Vec<Line>> {
        let machine = self.machine(&Leg { append: String::new(), name: leg.name.clone(), ..*leg })?;
        let boot = |run| {
            eprintln!("{}: Linux on {} ({})", leg.name, machine.shape, machine.engine.name());
            linux::measure(&machine, bzimage, initrd, scale, &self.dir.sub(&format!("linux-{}-{run}", leg.name))?)
        };
        (0..self.runs).map(boot).collect()
    }

    /// Prints the tables and leaves them, the plots and all rows in the folder of the run.
    fn keep(&self, measured: &Measured) -> anyhow::Result<()> {
        let mut text = format!("{}\n", measured.about);
        for section in tables::all(measured) {
            text.push_str(&format!("\n{} ({})\n\n{}", section.title, section.name, section.markdown));
        }
        print!("{text}");
        self.dir.write("tables.md", &text)?;
        for (name, svg) in plot::all(measured)? {
            self.dir.write(&name, &svg)?;
        }
        let rows = measured.legs.iter().map(|(leg, figures)| json!({ "machine": leg, "rows": figures.rows() }));
        self.dir.write("rows.json", &format!("{:#}\n", serde_json::Value::from_iter(rows)))?;
        if let Some(native) = &measured.native {
            self.dir.write("native.txt", native)?;
        }
        println!("\ntables, plots and rows in {}", self.workspace.short(self.dir.path()).display());
        Ok(())
    }
}
