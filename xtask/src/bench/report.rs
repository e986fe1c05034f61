//! What is shown of the figures and kept of them, and a kept run to compare with.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::exit::{Exit, stop, usage};
use crate::qemu::Machine;
use crate::workspace::Workspace;

use super::figures::{Figure, Figures};
use super::rows;

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

/// The medians of an earlier run.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    name: String,
    medians: HashMap<String, f64>,
}

impl Baseline {
    /// A run by the name it was saved under, by its folder, or by that folder's name.
    ///
    /// # Errors
    /// `Usage` when there is none, and when it was of the other kind: instructions and time do not compare.
    pub fn load(workspace: &Workspace, name: &str, counted: bool) -> anyhow::Result<Baseline> {
        let of_folder = |folder: PathBuf| folder.join("bench.json");
        let places =
            [saved(workspace, name), name.into(), of_folder(name.into()), of_folder(workspace.runs().join(name))];
        let Some(path) = places.into_iter().find(|path| path.is_file()) else {
            return Err(usage(format!(
                "--baseline {name}: neither a name given to --save, nor the folder of a bench run, nor its bench.json"
            )));
        };
        let text = std::fs::read_to_string(&path).map_err(|error| stop(Exit::Host, format!("{name}: {error}")))?;
        let baseline = Baseline::parse(name, &text, counted);
        baseline.map_err(|why| usage(format!("--baseline {name}: {why} ({})", path.display())))
    }

    fn parse(name: &str, text: &str, counted: bool) -> Result<Baseline, String> {
        let run: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
        match run["counted"].as_bool() {
            Some(of_run) if of_run == counted => {}
            Some(true) => return Err("its figures were counted, use --count".to_owned()),
            Some(false) => return Err("its figures were timed, leave --count out".to_owned()),
            None => return Err("not what a bench run writes".to_owned()),
        }
        let figures = run["figures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let median = |figure: &Value| Some((figure["bench"].as_str()?.to_owned(), figure["p50"].as_f64()?));
        Ok(Baseline { name: name.to_owned(), medians: figures.iter().filter_map(median).collect() })
    }

    /// Its median of a bench, if it has one.
    fn median(&self, figure: &Figure) -> Option<f64> {
        self.medians.get(&figure.id.to_string()).copied()
    }
}

/// All that there is to say.
#[derive(Debug)]
pub struct Report<'a> {
    /// What it ran on.
    pub machine: &'a Machine,
    /// The kernel's profile.
    pub profile: &'a str,
    /// The figures.
    pub figures: &'a Figures,
    /// What to compare them with.
    pub baseline: Option<&'a Baseline>,
}

impl Report<'_> {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let Report { machine, profile, figures, .. } = self;
        let runs = figures.runs();
        let mut text = format!("{}\n", self.table());
        let _ = writeln!(
            text,
            "{} ({}), {runs} boot{}; {}, {profile} kernel; what one operation costs, measuring itself subtracted",
            machine.shape,
            machine.engine.name(),
            if runs == 1 { "" } else { "s" },
            figures.build(),
        );
        for bench in rows::benches(figures.rows()) {
            let _ = write!(text, "{bench}, medians\n{}\n", rows::table(figures.rows(), bench));
        }
        for (id, why) in figures.skipped() {
            let _ = writeln!(text, "skipped: {id}: {why}");
        }
        text
    }

    fn table(&self) -> Table {
        let mut header = vec!["bench", "unit", "operations", "min", "p50", "p99", "goal", "verdict"];
        if let Some(baseline) = self.baseline {
            header.extend([baseline.name.as_str(), "ratio"]);
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(header);
        for figure in self.figures.iter() {
            let mut row = vec![
                figure.id.to_string(),
                figure.unit.name().to_owned(),
                figure.operations().to_string(),
                number(figure.min()),
                number(figure.p50()),
                number(figure.p99()),
                figure.goal.map_or("-".to_owned(), |goal| format!("<= {goal}")),
                figure.meets_goal().map_or("-", |met| if met { "met" } else { "missed" }).to_owned(),
            ];
            if let Some(baseline) = self.baseline {
                let before = baseline.median(figure);
                row.push(before.map_or("-".to_owned(), number));
                row.push(before.map_or("-".to_owned(), |before| format!("{:.2}", figure.p50() / before)));
            }
            table.add_row(row);
        }
        for column in [2, 3, 4, 5, 8, 9] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        format!("{:#}\n", self.value())
    }

    fn value(&self) -> Value {
        let figure = |figure: &Figure| {
            json!({
                "bench": figure.id.to_string(),
                "unit": figure.unit.name(),
                "operations": figure.operations(),
                "min": figure.min(), "p50": figure.p50(), "p99": figure.p99(),
                "runs_p50": figure.medians(),
                "goal": figure.goal, "met": figure.meets_goal(),
                "baseline_p50": self.baseline.and_then(|baseline| baseline.median(figure)),
            })
        };
        json!({
            "v": 1,
            "counted": self.figures.counted(),
            "build": self.figures.build(), "profile": self.profile,
            "cpus": self.machine.shape.cpus(), "nodes": self.machine.shape.nodes(), "engine": self.machine.engine.name(),
            "runs": self.figures.runs(),
            "baseline": self.baseline.map(|baseline| &baseline.name),
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
            "rows": self.figures.rows(),
        })
    }

    /// For spreadsheets.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut text = String::from("bench,unit,operations,min,p50,p99,goal,met\n");
        for figure in self.figures.iter() {
            let goal = figure.goal.map_or(String::new(), |goal| goal.to_string());
            let met = figure.meets_goal().map_or(String::new(), |met| met.to_string());
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{goal},{met}",
                figure.id,
                figure.unit.name(),
                figure.operations(),
                figure.min(),
                figure.p50(),
                figure.p99(),
            );
        }
        text
    }
}

/// One table of several machines: the medians, a column for each number of CPUs.
#[must_use]
pub fn text_of(reports: &[Report<'_>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let sizes = reports.iter().map(|report| format!("{} CPUs", report.machine.shape.cpus()));
    table.set_header(["bench", "unit", "goal"].map(str::to_owned).into_iter().chain(sizes));
    let mut ids: Vec<&Figure> = Vec::new();
    for figure in reports.iter().flat_map(|report| report.figures.iter()) {
        if ids.iter().all(|known| known.id != figure.id) {
            ids.push(figure);
        }
    }
    for first in ids {
        let goal = first.goal.map_or("-".to_owned(), |goal| format!("<= {goal}"));
        let mut row = vec![first.id.to_string(), first.unit.name().to_owned(), goal];
        for report in reports {
            let figure = report.figures.iter().find(|figure| figure.id == first.id);
            let missed = |figure: &Figure| if figure.meets_goal() == Some(false) { " missed" } else { "" };
            row.push(figure.map_or("-".to_owned(), |figure| number(figure.p50()) + missed(figure)));
        }
        table.add_row(row);
    }
    for column in 3..3 + reports.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let engine = reports.first().map_or("", |report| report.machine.engine.name());
    format!("{table}\nmedians; {engine} on the smallest machine\n")
}

/// An array of what [`Report::json`] gives for each.
#[must_use]
pub fn json_of(reports: &[Report<'_>]) -> String {
    format!("{:#}\n", Value::from(reports.iter().map(Report::value).collect::<Vec<_>>()))
}

/// What [`Report::csv`] gives, with the number of CPUs before each line.
#[must_use]
pub fn csv_of(reports: &[Report<'_>]) -> String {
    let mut text = String::new();
    for report in reports {
        let csv = report.csv();
        let mut lines = csv.lines();
        let header = lines.next().unwrap_or_default();
        if text.is_empty() {
            let _ = writeln!(text, "cpus,{header}");
        }
        lines.for_each(|line| {
            let _ = writeln!(text, "{},{line}", report.machine.shape.cpus());
        });
    }
    text
}

/// With a decimal where that says something.
pub(super) fn number(value: f64) -> String {
    if value < 1_000.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::of_boots;
    use crate::qemu::Engine;
    use crate::shape::Shape;

    fn machine() -> Machine {
        let (shape, engine) = (Shape::even(2, 1).unwrap(), Engine::Counted);
        Machine {
            program: "qemu".into(),
            shape,
            engine,
            append: String::new(),
            extra: Vec::new(),
            cores: false,
            trace: None,
        }
    }

    #[test]
    fn a_run_is_its_own_baseline_with_ratio_one() {
        let (machine, figures) = (machine(), of_boots(true, &[120.0]));
        let report = Report { machine: &machine, profile: "release", figures: &figures, baseline: None };
        let baseline = Baseline::parse("old", &report.json(), true).unwrap();
        let figures = of_boots(true, &[180.0]);
        let text = Report { figures: &figures, baseline: Some(&baseline), ..report }.text();
        let row = text.lines().find(|line| line.contains("sched.switch")).unwrap();
        for part in ["instructions", "1000", "180.0", "<= 150", "missed", "120.0", "1.50"] {
            assert!(row.contains(part), "{row}\nlacks {part}");
        }
        assert!(
            text.contains("tcg,counted") && text.contains("grange 0.1.0, assertions off, release kernel"),
            "{text}"
        );
        assert!(text.contains("skipped: sched.call: needs two CPUs"), "{text}");
    }

    #[test]
    fn counted_and_timed_runs_are_not_compared() {
        let (machine, figures) = (machine(), of_boots(false, &[120.0]));
        let run = Report { machine: &machine, profile: "release", figures: &figures, baseline: None }.json();
        assert!(Baseline::parse("old", &run, true).unwrap_err().contains("leave --count out"));
        assert!(Baseline::parse("old", "{}", true).unwrap_err().contains("not what a bench run writes"));
        assert!(Baseline::parse("old", "", true).unwrap_err().contains("no JSON"));
    }

    #[test]
    fn the_csv_has_a_line_a_bench() {
        let (machine, figures) = (machine(), of_boots(true, &[120.0]));
        let csv = Report { machine: &machine, profile: "release", figures: &figures, baseline: None }.csv();
        assert!(csv.contains("sched.switch,instructions,1000,100.5,120,200,150,true\n"), "{csv}");
    }

    #[test]
    fn several_machines_make_one_table_with_a_column_each() {
        let machines = [machine(), Machine { shape: Shape::even(4, 1).unwrap(), ..machine() }];
        let figures = [of_boots(true, &[120.0]), of_boots(true, &[180.0])];
        let reports: Vec<Report<'_>> = machines
            .iter()
            .zip(&figures)
            .map(|(machine, figures)| Report { machine, profile: "release", figures, baseline: None })
            .collect();
        let text = text_of(&reports);
        let row = text.lines().find(|line| line.contains("sched.switch")).unwrap();
        assert!(text.contains("2 CPUs") && text.contains("4 CPUs"), "{text}");
        assert!(row.contains("120.0") && row.contains("180.0 missed"), "{row}");
        assert!(csv_of(&reports).contains("\n4,sched.switch,instructions,"), "{}", csv_of(&reports));
        assert_eq!(serde_json::from_str::<Value>(&json_of(&reports)).unwrap()[1]["cpus"], 4);
    }

    #[test]
    fn names_to_save_under_are_plain() {
        assert!(check_name("main-2026.1").is_ok());
        for name in ["", "../x", ".hidden", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
