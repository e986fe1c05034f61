//! What a run of benches found, as it is kept: everything that tables, plots and comparisons are made of.
//!
//! A record is one JSON object, `bench.json` of the run's folder. Its version changes when a field changes its meaning, and
//! [`Record::load`] refuses every other one.

use std::collections::BTreeMap;
use std::ops::Index;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Exit, stop, usage};
use crate::spread::median;
use crate::workspace::Workspace;

/// The version that is written and read.
pub const VERSION: u32 = 2;

/// What one operation costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Executed by all CPUs together.
    Instructions,
    /// Of the guest's clock.
    Ns,
    /// Whatever the bench counts.
    Times,
}

impl Unit {
    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Unit::Instructions => "instructions",
            Unit::Ns => "ns",
            Unit::Times => "times",
        }
    }
}

/// A bench's figure over all boots of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `suite.bench`
    pub bench: String,
    /// What the numbers are.
    pub unit: Unit,
    /// What the median should not exceed.
    pub goal: Option<u32>,
    /// Operations in all boots together.
    pub operations: u64,
    /// The least of all boots.
    pub min: f64,
    /// The greatest of all boots' 99th percentiles.
    pub p99: f64,
    /// The median of each boot.
    pub medians: Vec<f64>,
}

impl Figure {
    /// The median over the boots of their medians.
    #[must_use]
    pub fn p50(&self) -> f64 {
        median(self.medians.clone()).unwrap_or(f64::NAN)
    }

    /// Whether the goal is reached, if there is one. A tenth is what tables show, and what counts here.
    #[must_use]
    pub fn meets_goal(&self) -> Option<bool> {
        self.goal.map(|goal| (self.p50() * 10.0).round() <= f64::from(goal) * 10.0)
    }
}

/// What a bench told beside its figure: named numbers of something, from one boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `suite.bench`
    pub bench: String,
    /// What the numbers are of.
    pub of: String,
    /// The numbers.
    pub values: BTreeMap<String, f64>,
}

impl Row {
    /// The row that a JSON object of the kernel is, if it is one.
    #[must_use]
    pub fn read(object: &Value) -> Option<Row> {
        let text = |key: &str| object[key].as_str().map(str::to_owned);
        let numbers = object["values"].as_object()?.iter();
        let values = numbers.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
        Some(Row { bench: text("row")?, of: text("of")?, values })
    }
}

impl Index<&str> for Row {
    type Output = f64;

    /// A number of that name; one that is not there is no number.
    fn index(&self, name: &str) -> &f64 {
        self.values.get(name).unwrap_or(&f64::NAN)
    }
}

/// A machine, and what its boots gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Leg {
    /// Its name in the experiment.
    pub name: String,
    /// CPUs.
    pub cpus: u32,
    /// Nodes.
    pub nodes: u32,
    /// How QEMU ran it.
    pub engine: String,
    /// Whether instructions were counted.
    pub counted: bool,
    /// Boots.
    pub runs: u32,
    /// In the order of the benches.
    pub figures: Vec<Figure>,
    /// In the order in which they were told, those of one boot after those of another.
    pub rows: Vec<Row>,
    /// Benches that this machine cannot run, and why.
    pub skipped: Vec<(String, String)>,
}

impl Leg {
    /// The figure of a bench.
    #[must_use]
    pub fn figure(&self, bench: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.bench == bench)
    }
}

/// What rcuscale's line said of a Linux image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinuxLine {
    /// The leg whose machine it ran on.
    pub leg: String,
    /// The kernel's release, if it said so.
    pub release: String,
    /// Nanoseconds until all threads were done.
    pub ns: f64,
    /// Grace periods.
    pub batches: f64,
    /// MB.
    pub footprint: f64,
}

/// How long writers of a Linux image waited for grace periods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinuxWaits {
    /// The leg whose machine it ran on.
    pub leg: String,
    /// The kernel's release, if it said so.
    pub release: String,
    /// `normal` or `expedited`.
    pub kind: String,
    /// All waits of all writers, in nanoseconds.
    pub waits: Vec<f64>,
}

/// A figure of the host program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Native {
    /// The load.
    pub native: String,
    /// Threads.
    pub threads: u64,
    /// Whose allocator or reclaimer.
    pub by: String,
    /// Nanoseconds of one operation.
    pub ns: f64,
}

/// A shape of the boot experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Boots {
    /// CPUs.
    pub cpus: u32,
    /// Nodes.
    pub nodes: u32,
    /// How QEMU ran it.
    pub engine: String,
    /// Milliseconds to all CPUs online, of each boot.
    pub online_ms: Vec<f64>,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub v: u32,
    /// Which experiment.
    pub what: String,
    /// When it began.
    pub utc: String,
    /// What was checked out, with `+` if files were changed.
    pub commit: String,
    /// The compiler.
    pub rustc: String,
    /// The kernel's profile.
    pub profile: String,
    /// What the kernel says that it is.
    pub build: String,
    /// The machines.
    pub legs: Vec<Leg>,
    /// The Linux image's lines.
    pub linux: Vec<LinuxLine>,
    /// Its waits for grace periods.
    pub linux_waits: Vec<LinuxWaits>,
    /// The host program's figures.
    pub native: Vec<Native>,
    /// The boot experiment.
    pub boots: Vec<Boots>,
}

impl Record {
    /// The leg of that name.
    #[must_use]
    pub fn leg(&self, name: &str) -> Option<&Leg> {
        self.legs.iter().find(|leg| leg.name == name)
    }

    /// Whether nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.legs.is_empty() && self.linux.is_empty() && self.native.is_empty() && self.boots.is_empty()
    }

    /// For programs.
    ///
    /// # Errors
    /// Never for what was measured: every field has a form in JSON.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// A run by the name it was saved under, by its folder, or by that folder's name.
    ///
    /// # Errors
    /// `Usage` when there is none, or one of another version.
    pub fn load(workspace: &Workspace, option: &str, name: &str) -> anyhow::Result<Record> {
        let of_folder = |folder: PathBuf| folder.join("bench.json");
        let places =
            [saved(workspace, name), name.into(), of_folder(name.into()), of_folder(workspace.runs().join(name))];
        let Some(path) = places.into_iter().find(|path| path.is_file()) else {
            return Err(usage(format!(
                "{option} {name}: neither a name given to --save, nor the folder of a bench run, nor its bench.json"
            )));
        };
        let text = std::fs::read_to_string(&path).map_err(|error| stop(Exit::Host, format!("{name}: {error}")))?;
        Record::parse(&text).map_err(|why| usage(format!("{option} {name}: {why} ({})", path.display())))
    }

    fn parse(text: &str) -> Result<Record, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
        match value["v"].as_u64() {
            Some(v) if v == u64::from(VERSION) && value["legs"].is_array() => {}
            Some(v) => return Err(format!("a run of version {v}, and this reads {VERSION}: measure it again")),
            None => return Err("not what a bench run writes".to_owned()),
        }
        serde_json::from_value(value).map_err(|error| format!("not what a bench run writes: {error}"))
    }
}

/// Where a run that was saved under `name` lies.
#[must_use]
pub fn saved(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.target.join("grange/baselines").join(format!("{name}.json"))
}

/// Whether a run can be saved under `name`.
///
/// # Errors
/// `Usage` for one that is no plain file name.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err(usage(format!("--save {name}: a name of letters, digits, '-', '_' and '.'")));
    }
    Ok(())
}

/// Whether a file can be written there: it is asked before the run, which may take long.
///
/// # Errors
/// `Usage` if its folder is not there.
pub fn check_place(option: &str, path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => Err(usage(format!("{option} {}: there is no such folder", path.display()))),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A figure whose boots had these medians.
    pub(in crate::bench) fn figure(bench: &str, unit: Unit, medians: &[f64]) -> Figure {
        let (operations, medians) = (1_000, medians.to_vec());
        Figure { bench: bench.to_owned(), unit, goal: Some(150), operations, min: 100.5, p99: 200.0, medians }
    }

    /// A row with one number.
    pub(in crate::bench) fn row(bench: &str, of: &str, name: &str, value: f64) -> Row {
        Row { bench: bench.to_owned(), of: of.to_owned(), values: BTreeMap::from([(name.to_owned(), value)]) }
    }

    /// A record of one leg.
    pub(in crate::bench) fn record(leg: Leg) -> Record {
        Record { v: VERSION, legs: vec![leg], build: "grange 0.1.0".to_owned(), ..Record::default() }
    }

    /// A leg that counted.
    pub(in crate::bench) fn leg(name: &str, cpus: u32, figures: Vec<Figure>, rows: Vec<Row>) -> Leg {
        let engine = "tcg,counted".to_owned();
        Leg { name: name.to_owned(), cpus, nodes: 1, engine, counted: true, runs: 1, figures, rows, ..Leg::default() }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let figures = vec![figure("a.x", Unit::Instructions, &[120.0, 120.1])];
        let written = record(leg("counted", 2, figures, vec![row("a.x", "near", "ns", 5.0)]));
        assert_eq!(Record::parse(&written.json().unwrap()), Ok(written));
    }

    #[test]
    fn what_is_no_record_of_this_version_is_refused() {
        let refused = |text: &str| Record::parse(text).unwrap_err();
        assert!(refused("").contains("no JSON"));
        assert!(refused("{}").contains("not what a bench run writes"));
        assert!(refused(r#"{"v":1,"figures":[]}"#).contains("version 1"));
    }

    #[test]
    fn only_an_object_with_names_and_numbers_is_a_row() {
        let read = |text: &str| Row::read(&serde_json::from_str(text).unwrap());
        let row = read(r#"{"row":"a.x","of":"bulk","values":{"ns":5,"gps":2}}"#).unwrap();
        assert_eq!((row["ns"], row["gps"], row["none"].is_nan()), (5.0, 2.0, true));
        assert_eq!(read(r#"{"bench":"a.x","operations":1}"#), None);
        assert_eq!(read(r#"{"row":"a.x","of":"bulk"}"#), None);
    }

    #[test]
    fn a_goal_is_missed_from_a_tenth_above_it() {
        let meets = |median| figure("a.x", Unit::Instructions, &[median]).meets_goal();
        assert_eq!([150.0, 150.04, 150.1].map(meets), [Some(true), Some(true), Some(false)]);
    }

    #[test]
    fn names_to_save_under_are_plain() {
        assert!(check_name("main-2026.1").is_ok());
        for name in ["", "../x", ".hidden", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
