//! The figures as tables in Markdown, each by the name of its place in docs/back-ends.md.

use std::fmt::Write as _;

use serde_json::Value;

use crate::bench::report::number;
use crate::bench::rows::{Row, benches, medians};
use crate::smp::measure::median;

use super::plot::Plot;
use super::{Measured, Scale};

/// One table.
#[derive(Debug)]
pub struct Section {
    /// Its place.
    pub name: &'static str,
    /// What stands above it on a terminal.
    pub title: &'static str,
    /// The table.
    pub markdown: String,
}

/// A column: its head, and its cell of a row.
type Column = (&'static str, fn(&Row) -> String);

/// A table of the rows of a bench, or of all whose names begin so.
struct Spec {
    name: &'static str,
    title: &'static str,
    bench: &'static str,
    /// What the first column is.
    of: &'static str,
    columns: &'static [Column],
}

const FLOOD: &[Column] = &[
    ("ns an object", |row| number(row["ns"] / row["objects"])),
    ("until all are free, ns", |row| number(row["free_ns"] / row["objects"])),
    ("grace periods", |row| number(row["gps"])),
    ("callbacks", |row| format!("{:.0}", row["callbacks"])),
    ("objects a callback", |row| number(row["objects"] / row["callbacks"])),
    ("peak MiB", |row| mib(row["peak"])),
    ("barn hits %", |row| percent(row["barn_get"], row["barn_get"] + row["barn_get_fail"])),
    ("failed allocations", |row| format!("{:.0}", row["failed"])),
];

const RATE: &[Column] = &[
    ("objects", |row| format!("{:.0}", row["objects"])),
    ("grace periods a second", |row| number(a_second(row, "gps"))),
    ("callbacks a second", |row| number(a_second(row, "callbacks"))),
    ("mean KiB", |row| number(row["footprint"] / 1024.0)),
    ("peak KiB", |row| number(row["peak"] / 1024.0)),
    ("until free after the last, ms", |row| number((row["free_ns"] - row["ns"]) / 1e6)),
];

const SPECS: &[Spec] = &[
    Spec {
        name: "flood",
        title: "16 CPUs, objects of 64 bytes as fast as they can",
        bench: "kfree_rcu_flood.small",
        of: "way",
        columns: FLOOD,
    },
    Spec {
        name: "large",
        title: "16 CPUs, blocks of 16 KiB as fast as they can",
        bench: "kfree_rcu_flood.large",
        of: "way",
        columns: FLOOD,
    },
    Spec {
        name: "vmalloc",
        title: "16 CPUs, areas of vmalloc of 8 KiB as fast as they can",
        bench: "kfree_rcu_flood.vmalloc",
        of: "way",
        columns: FLOOD,
    },
    Spec {
        name: "slow-readers",
        title: "16 CPUs, objects of 64 bytes, one CPU always in readers of 20 ms",
        bench: "kfree_rcu_flood.slow_readers",
        of: "way",
        columns: FLOOD,
    },
    Spec {
        name: "waiting",
        title: "100,000 objects of 64 bytes that wait for one grace period",
        bench: "kfree_rcu_flood.waiting_bytes",
        of: "way",
        columns: &[
            ("bytes an object", |row| number(row["bytes"] / row["objects"])),
            ("of them not the object's", |row| number(row["bytes"] / row["objects"] - 64.0)),
            ("instructions an object from the reader's end until all are free", |row| {
                number(row["free_ns"] / row["objects"])
            }),
        ],
    },
    Spec {
        name: "rates",
        title: "4 CPUs, so many objects each every 4 ms, for 2 s",
        bench: "kfree_rcu_flood.held_rate",
        of: "way/objects",
        columns: RATE,
    },
    Spec {
        name: "trickle",
        title: "4 CPUs, one object each every 4 ms, for 12 s",
        bench: "kfree_rcu_flood.trickle",
        of: "way",
        columns: RATE,
    },
    Spec {
        name: "residence",
        title: "4 CPUs, 256 objects each every 4 ms: how long at each stage",
        bench: "kfree_rcu_flood.residence",
        of: "way: stage",
        columns: &[
            ("sheaves, pages or batches", |row| format!("{:.0}", row["count"])),
            ("p50 ms", |row| ms(row["p50"])),
            ("p99 ms", |row| ms(row["p99"])),
            ("max ms", |row| ms(row["max"])),
        ],
    },
    Spec {
        name: "fragments",
        title: "6,000 and 1,500 objects of 64 bytes in turn, which ones go is random: the last eight times at the low water",
        bench: "kfree_rcu_fragments.rise_and_fall",
        of: "cache",
        columns: &[
            ("objects live", |row| format!("{:.0}", row["live"])),
            ("slabs", |row| number(row["slabs"])),
            ("of them partial", |row| number(row["partial"])),
            ("places not used %", |row| percent(row["places"] - row["live"], row["places"])),
            ("locks of barns and lists in 1,000 operations", |row| number(row["locks"] / row["operations"] * 1e3)),
        ],
    },
    Spec {
        name: "nolock",
        title: "A call from NMI",
        bench: "kfree_rcu_nolock.",
        of: "goes to",
        columns: &[
            ("calls", |row| format!("{:.0}", row["calls"])),
            ("p50 instructions", |row| number(row["p50"])),
            ("p99.9", |row| number(row["p99.9"])),
            ("most", |row| number(row["max"])),
            ("deferred", |row| format!("{:.0}", row["deferred"])),
            ("needed an interrupt", |row| format!("{:.0}", row["interrupts"])),
        ],
    },
];

/// The benches whose figures alone make a table, and its name.
const FIGURES: &[(&str, &str, &str)] = &[
    ("instructions", "Instructions of one object, everything counted", "kfree_rcu."),
    ("nolock-figures", "The same, and with the drain", "kfree_rcu_nolock."),
    ("barriers", "Barriers with objects waiting in 20 caches on every CPU", "kfree_rcu_barriers."),
];

const ANSWER: &str = "answer";
const RCUSCALE: &str = "rcuscale";
const NATIVE: &str = "native";

/// The names of all places.
#[cfg(test)]
pub(super) const NAMES: &[&str] = &[
    ANSWER,
    RCUSCALE,
    "flood",
    "large",
    "vmalloc",
    "slow-readers",
    "waiting",
    "rates",
    "trickle",
    "residence",
    "fragments",
    "instructions",
    "nolock",
    "nolock-figures",
    "barriers",
    NATIVE,
];

/// Linux 6.12 in the same emulator, another day: seconds, grace periods, MB.
const LINUX_BEFORE: [(Scale, [f64; 3]); 2] =
    [(Scale::ALL[0], [1.10, 116.0, 20.0]), (Scale::ALL[1], [1.44, 77.0, 35.0])];

/// The tables of all that was measured.
#[must_use]
pub fn all(measured: &Measured) -> Vec<Section> {
    let mut sections = Vec::new();
    if let Some(markdown) = super::answer::table(measured) {
        sections.push(Section { name: ANSWER, title: "Who wins", markdown });
    }
    if let Some(markdown) = rcuscale(measured) {
        let title = "rcuscale's test of kfree_rcu, objects of 24 bytes";
        sections.push(Section { name: RCUSCALE, title, markdown });
    }
    for spec in SPECS {
        let rows = rows_of(measured, spec.bench);
        if !rows.is_empty() {
            let heads = [spec.of].into_iter().chain(spec.columns.iter().map(|(head, _)| *head));
            let cells = |row: &Row| {
                let numbers = spec.columns.iter().map(|(_, cell)| cell(row));
                [row.of.clone()].into_iter().chain(numbers).collect()
            };
            let markdown = markdown(heads, rows.iter().map(cells));
            sections.push(Section { name: spec.name, title: spec.title, markdown });
        }
    }
    for (name, title, suite) in FIGURES {
        if let Some(markdown) = figures(measured, suite) {
            sections.push(Section { name, title, markdown });
        }
    }
    if let Some(markdown) = measured.native.as_deref().and_then(native) {
        sections.push(Section { name: NATIVE, title: "As a host program, ns an object", markdown });
    }
    sections
}

/// The curves of what was measured.
pub(super) fn plots(measured: &Measured) -> Vec<Plot> {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for row in rows_of(measured, "kfree_rcu_flood.held_rate") {
        let Some((way, _)) = row.of.split_once('/') else { continue };
        let point = (row["footprint"] / 1024.0, a_second(&row, "gps"));
        match lines.iter_mut().find(|(name, _)| name == way) {
            Some((_, points)) => points.push(point),
            None => lines.push((way.to_owned(), vec![point])),
        }
    }
    vec![Plot {
        name: "rates.svg",
        title: "Grace periods against memory, by the rate",
        axes: ("mean KiB", "grace periods a second"),
        lines,
    }]
}

/// The medians of all benches whose names begin so.
fn rows_of(measured: &Measured, bench: &str) -> Vec<Row> {
    let of_leg =
        |rows| benches(rows).into_iter().filter(|name| name.starts_with(bench)).flat_map(|name| medians(rows, name));
    measured.legs.iter().flat_map(|(_, figures)| of_leg(figures.rows())).collect()
}

fn a_second(row: &Row, what: &str) -> f64 {
    row[what] / (row["ns"] / 1e9)
}

/// A share; none of nothing.
fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { number(part / whole * 100.0) } else { "-".to_owned() }
}

fn ms(ns: f64) -> String {
    format!("{:.2}", ns / 1e6)
}

fn mib(bytes: f64) -> String {
    format!("{:.1}", bytes / f64::from(1 << 20))
}

pub(super) fn markdown(heads: impl Iterator<Item = &'static str>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let heads: Vec<&str> = heads.collect();
    let mut text = format!("| {} |\n|---|{}\n", heads.join(" | "), "--:|".repeat(heads.len() - 1));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

fn rcuscale(measured: &Measured) -> Option<String> {
    let mut rows = Vec::new();
    for (scale, before) in LINUX_BEFORE {
        let Scale { cpus, loops, objects } = scale;
        let ours: Vec<Row> = measured
            .legs
            .iter()
            .filter(|(leg, _)| *leg == super::scale_leg(&scale).name)
            .flat_map(|(_, figures)| medians(figures.rows(), "kfree_rcu_scale.kfree_rcu_test"))
            .collect();
        let of_linux =
            measured.linux.iter().find(|(measured, _)| *measured == scale).map(|(_, lines)| lines.as_slice());
        if ours.is_empty() && of_linux.is_none() {
            continue;
        }
        let what = format!("{cpus} × {loops} × {objects}");
        let linux = of_linux.map(|lines| {
            let middle =
                |number: fn(&super::Line) -> f64| median(lines.iter().map(number).collect()).unwrap_or(f64::NAN);
            let release = lines.first().map_or("", |line| line.release.as_str());
            (
                format!("Linux {release}, same hour"),
                [middle(|l| l.ns / 1e9), middle(|l| l.batches), middle(|l| l.footprint)],
            )
        });
        let (name, [seconds, gps, mb]) = linux.unwrap_or(("Linux 6.12, another day".to_owned(), before));
        let number = |value: f64, places: usize| format!("{value:.places$}");
        rows.push(
            [&what, &name, &number(seconds, 2), "1.00", &number(gps, 0), &number(mb, 0), "-", "-"]
                .map(str::to_owned)
                .to_vec(),
        );
        for row in &ours {
            rows.push(vec![
                what.clone(),
                row.of.clone(),
                number(row["ns"] / 1e9, 2),
                number(row["ns"] / 1e9 / seconds, 2),
                number(row["gps"], 0),
                number((row["footprint"] / f64::from(1 << 20)).floor(), 0),
                mib(row["peak"]),
                number(row["free_ns"] / 1e9, 2),
            ]);
        }
    }
    let heads = [
        "threads × loops × objects",
        "by",
        "s",
        "of Linux's",
        "grace periods",
        "footprint MB",
        "peak MiB",
        "all free, s",
    ];
    (!rows.is_empty()).then(|| markdown(heads.into_iter(), rows.into_iter()))
}

/// Figures of all benches of a suite.
fn figures(measured: &Measured, suite: &str) -> Option<String> {
    let of_suite = measured.legs.iter().flat_map(|(_, figures)| figures.iter());
    let rows: Vec<Vec<String>> = of_suite
        .filter(|figure| figure.id.to_string().starts_with(suite))
        .map(|figure| {
            let goal = figure.goal.map_or("-".to_owned(), |goal| format!("≤ {goal}"));
            let figures = [figure.min(), figure.p50(), figure.p99()].map(number);
            [vec![figure.id.name.replace('_', " "), figure.unit.name().to_owned()], figures.to_vec(), vec![goal]]
                .concat()
        })
        .collect();
    let heads = ["what", "unit", "least", "p50", "p99", "goal"];
    (!rows.is_empty()).then(|| markdown(heads.into_iter(), rows.into_iter()))
}

/// From the JSON lines of the host program.
fn native(printed: &str) -> Option<String> {
    let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let ns = |load: &str, threads: u64, by: &str| {
        let found = lines.iter().find(|line| line["native"] == load && line["threads"] == threads && line["by"] == by);
        found.and_then(|line| line["ns"].as_f64())
    };
    let mut rows = Vec::new();
    for load in ["kfree_rcu", "kfree_rcu_cpu", "defer_free", "defer_free_cpu"] {
        for threads in [1, 2] {
            let (ours, crossbeam) = (ns(load, threads, "grange")?, ns(load, threads, "crossbeam")?);
            let seize = ns(load, threads, "seize")?;
            rows.push(vec![
                load.to_owned(),
                threads.to_string(),
                number(ours),
                number(crossbeam),
                number(seize),
                format!("{:.2}", ours / crossbeam),
            ]);
        }
    }
    let heads = ["load", "threads", "Grange", "crossbeam-epoch", "seize", "of crossbeam's"];
    Some(markdown(heads.into_iter(), rows.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::linux::Line;

    fn names(measured: &Measured) -> Vec<&'static str> {
        all(measured).iter().map(|section| section.name).collect()
    }

    #[test]
    fn what_was_not_measured_makes_no_table() {
        assert_eq!(names(&Measured::default()), [] as [&str; 0]);
    }

    #[test]
    fn linux_of_the_same_hour_takes_the_place_of_the_figures_from_before() {
        let line = Line { release: "6.12.1".to_owned(), ns: 2.2e9, batches: 120.0, footprint: 21.0 };
        let measured = Measured { linux: vec![(Scale::ALL[0], vec![line])], ..Measured::default() };
        let text = &all(&measured)[0].markdown;
        assert!(text.contains("| 2 × 2000 × 1000 | Linux 6.12.1, same hour | 2.20 | 1.00 | 120 | 21 |"), "{text}");
        assert!(!text.contains("another day") && !text.contains("4 ×"), "{text}");
    }

    #[test]
    fn the_host_programs_lines_become_a_table_with_the_ratio_that_the_goal_is_about() {
        let line = |load: &str, threads: u64, by: &str, ns: f64| {
            format!(r#"{{"native":"{load}","threads":{threads},"by":"{by}","ns":{ns}}}"#)
        };
        let mut printed = Vec::new();
        for load in ["kfree_rcu", "kfree_rcu_cpu", "defer_free", "defer_free_cpu"] {
            for threads in [1, 2] {
                printed.extend(
                    [("grange", 30.0), ("crossbeam", 120.0), ("seize", 60.0)]
                        .map(|(by, ns)| line(load, threads, by, ns)),
                );
            }
        }
        let measured = Measured { native: Some(printed.join("\n")), ..Measured::default() };
        let text = &all(&measured)[0].markdown;
        assert!(text.contains("| kfree_rcu | 2 | 30.0 | 120.0 | 60.0 | 0.25 |"), "{text}");
        assert_eq!(native("no JSON"), None);
    }

    #[test]
    fn every_table_has_a_name_of_its_own() {
        let mut known: Vec<&str> = SPECS.iter().map(|spec| spec.name).chain(FIGURES.iter().map(|f| f.0)).collect();
        known.extend([ANSWER, RCUSCALE, NATIVE]);
        known.sort_unstable();
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        assert_eq!(known, names);
    }
}
