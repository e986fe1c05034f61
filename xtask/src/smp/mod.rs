//! `cargo xtask smp`: the boot experiment. How fast machines of many shapes bring their CPUs online, and how fast those
//! CPUs then reach each other.
//!
//! [`measure`] is one boot: time to the line that says that all CPUs are online, then the shell's views as JSON.

pub mod measure;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::artifact;
use crate::bench::{curves, record};
use crate::cli::{MachineArgs, Profile, SmpArgs};
use crate::exit::{Exit, usage};
use crate::process::interrupted;
use crate::qemu::Machine;
use crate::rundir::{RunDir, write};
use crate::shape::Defaults;
use crate::spread::median;
use crate::workspace::Workspace;

use measure::{Boot, Figures};

/// All boots of one shape.
#[derive(Debug)]
pub struct Row {
    /// CPUs.
    pub cpus: u32,
    /// Nodes.
    pub nodes: u32,
    /// The machine's engine in a word.
    pub engine: &'static str,
    /// The boots, the fastest first.
    pub boots: Vec<Figures>,
}

impl Row {
    /// The median over the boots of one figure.
    fn over_boots(&self, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        median(self.boots.iter().filter_map(figure).collect())
    }

    /// The same for a least, middle and greatest one.
    fn spread(&self, figure: impl Fn(&Figures) -> Option<[f64; 3]>) -> Option<[f64; 3]> {
        let of = |which: usize| self.over_boots(|figures| figure(figures).map(|all| all[which]));
        Some([of(0)?, of(1)?, of(2)?])
    }

    fn for_record(&self) -> record::Boots {
        let online_ms = self.boots.iter().map(Figures::online_ms).collect();
        record::Boots { cpus: self.cpus, nodes: self.nodes, engine: self.engine.to_owned(), online_ms }
    }

    /// Milliseconds to all CPUs online, median over the boots.
    #[must_use]
    pub fn online_ms(&self) -> f64 {
        self.over_boots(|figures| Some(figures.online_ms())).unwrap_or_default()
    }
}

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a machine that does not boot ends the experiment.
pub fn smp(workspace: &Workspace, args: &SmpArgs) -> anyhow::Result<Exit> {
    if args.runs == 0 {
        return Err(usage("--runs 0: at least 1"));
    }
    let machines = machines(workspace, args)?;
    let artifacts = artifact::make(workspace, &args.kernel, Profile::Release)?;
    let dir = RunDir::create(workspace, "smp")?;
    dir.describe(workspace, "smp", &json!({ "profile": artifacts.profile }))?;
    let mut rows = Vec::new();
    for machine in &machines {
        let mut row = Row {
            cpus: machine.shape.cpus(),
            nodes: machine.shape.nodes(),
            engine: machine.engine.name(),
            boots: Vec::new(),
        };
        for run in 0..args.runs {
            if interrupted() {
                return Ok(Exit::Interrupted);
            }
            let boot =
                Boot { machine, artifacts: &artifacts, dir: &dir.sub(&format!("{}-{run}", machine.shape.slug()))? };
            row.boots.push(boot.measure()?);
        }
        row.boots.sort_by_key(|figures| figures.online);
        eprintln!("{}: {:.0} ms", machine.shape, row.online_ms());
        rows.push(row);
    }
    let json = format!("{:#}\n", as_json(&rows));
    let svg = curves::boots(&rows.iter().map(Row::for_record).collect::<Vec<_>>()).svg()?;
    dir.write("smp.json", &json)?;
    dir.write("smp.svg", &svg)?;
    for (path, content) in [(&args.json, &json), (&args.svg, &svg)] {
        if let Some(path) = path {
            write(path, content)?;
        }
    }
    println!("{}", table(&rows));
    println!(
        "online: from QEMU's start to the line that says so, median of {} boots; {} kernel",
        args.runs, artifacts.profile
    );
    println!(
        "arrived, up: the first, middle and last CPU in the kernel, and at work, on the guest's clock after reset"
    );
    println!("plot and JSON in {}", workspace.short(dir.path()).display());
    Ok(Exit::Passed)
}

/// Every shape that is asked for and possible.
fn machines(workspace: &Workspace, args: &SmpArgs) -> anyhow::Result<Vec<Machine>> {
    let mut machines = Vec::new();
    for &nodes in &args.nodes {
        for &cpus in args.cpus.iter().filter(|&&cpus| cpus >= nodes) {
            let wanted = MachineArgs {
                cpus: Some(cpus),
                nodes: Some(nodes),
                memory: Some(args.memory.clone()),
                accel: args.accel,
                thread: args.thread,
                qemu: args.qemu.clone(),
                append: args.append.clone(),
                ..MachineArgs::default()
            };
            machines.push(Machine::from_args(workspace, &wanted, &[], Defaults { cpus, nodes })?);
        }
    }
    if machines.is_empty() {
        return Err(usage("--cpus and --nodes leave no shape with as many CPUs as nodes"));
    }
    Ok(machines)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "CPUs",
        "nodes",
        "engine",
        "online ms",
        "min",
        "max",
        "arrived µs",
        "up µs",
        "call µs",
        "NMI µs",
        "MiB a node",
        "distances",
    ]);
    for row in rows {
        let us = |ns: Option<f64>| ns.map_or("-".to_owned(), |ns| format!("{:.1}", ns / 1e3));
        let spread = |all: Option<[f64; 3]>| {
            all.map_or("-".to_owned(), |[least, middle, most]| format!("{least:.0} {middle:.0} {most:.0}"))
        };
        let (first, last) = (&row.boots[0], &row.boots[row.boots.len() - 1]);
        table.add_row([
            row.cpus.to_string(),
            row.nodes.to_string(),
            row.engine.to_owned(),
            format!("{:.0}", row.online_ms()),
            format!("{:.0}", first.online_ms()),
            format!("{:.0}", last.online_ms()),
            spread(row.spread(Figures::arrived_us)),
            spread(row.spread(Figures::up_us)),
            us(row.over_boots(Figures::call_ns)),
            us(row.over_boots(Figures::nmi_ns)),
            first.memory().join(" "),
            first.distances().join(" / "),
        ]);
    }
    table
}

fn as_json(rows: &[Row]) -> Value {
    let boot = |figures: &Figures| {
        json!({
            "online_ms": figures.online_ms(),
            "guest_ms": figures.guest_ms,
            "arrived_us": figures.arrived_us(),
            "up_us": figures.up_us(),
            "call_p50_ns": figures.call_ns(),
            "nmi_p50_ns": figures.nmi_ns(),
            "views": figures.views,
        })
    };
    let row = |row: &Row| {
        let boots: Vec<Value> = row.boots.iter().map(boot).collect();
        json!({
            "cpus": row.cpus, "nodes": row.nodes, "engine": row.engine,
            "online_ms": row.online_ms(),
            "arrived_us": row.spread(Figures::arrived_us), "up_us": row.spread(Figures::up_us),
            "call_p50_ns": row.over_boots(Figures::call_ns), "nmi_p50_ns": row.over_boots(Figures::nmi_ns),
            "boots": boots,
        })
    };
    json!({ "v": 1, "shapes": rows.iter().map(row).collect::<Vec<_>>() })
}
