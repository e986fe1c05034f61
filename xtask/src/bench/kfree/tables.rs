//! The figures as tables in Markdown, each by the name of its place in docs/back-ends.md.

use crate::bench::headline::linux_before;
use crate::bench::plan::{FLOOD_CPUS, Scale};
use crate::bench::record::{Leg, LinuxLine, Native, Record, Row};
use crate::bench::rows::{benches, medians};
use crate::bench::table::{Section, Table, number};
use crate::spread::median;

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

/// Whether the leg's rows belong into these tables: a flood on other machines is a point of a curve.
pub(super) fn is_of_tables(leg: &Leg) -> bool {
    !leg.name.contains("flood-") || leg.name == format!("flood-{FLOOD_CPUS}")
}

/// Whether the rows of a bench stand in one of these tables.
#[must_use]
pub fn has_table_of(bench: &str) -> bool {
    SPECS.iter().any(|spec| bench.starts_with(spec.bench)) || bench == SCALE
}

/// The tables of all that was measured.
#[must_use]
pub fn all(record: &Record) -> Vec<Section> {
    let section = |name: &str, title: &str, table| Section { name: name.to_owned(), title: title.to_owned(), table };
    let mut sections = Vec::new();
    sections.extend(super::answer::table(record).map(|table| section(ANSWER, "Who wins", table)));
    let title = "rcuscale's test of kfree_rcu, objects of 24 bytes";
    sections.extend(rcuscale(record).map(|table| section(RCUSCALE, title, table)));
    for spec in SPECS {
        let heads = [spec.of].into_iter().chain(spec.columns.iter().map(|(head, _)| *head));
        let mut table = Table::new(heads);
        for row in rows_of(record, spec.bench) {
            let numbers = spec.columns.iter().map(|(_, cell)| cell(&row));
            table.rows.push([row.of.clone()].into_iter().chain(numbers).collect());
        }
        if !table.rows.is_empty() {
            sections.push(section(spec.name, spec.title, table));
        }
    }
    for (name, title, suite) in FIGURES {
        sections.extend(figures(record, suite).map(|table| section(name, title, table)));
    }
    sections.extend(native(&record.native).map(|table| section(NATIVE, "As a host program, ns an object", table)));
    sections
}

/// The medians of all benches whose names begin so.
fn rows_of(record: &Record, bench: &str) -> Vec<Row> {
    let of_leg = |leg: &Leg| -> Vec<Row> {
        let names = benches(&leg.rows).into_iter().filter(|name| name.starts_with(bench));
        names.flat_map(|name| medians(&leg.rows, name)).collect()
    };
    record.legs.iter().filter(|leg| is_of_tables(leg)).flat_map(of_leg).collect()
}

pub(in crate::bench) fn a_second(row: &Row, what: &str) -> f64 {
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

/// The bench of rcuscale's test.
const SCALE: &str = "kfree_rcu_scale.kfree_rcu_test";

fn rcuscale(record: &Record) -> Option<Table> {
    let mut table = Table::new([
        "threads × loops × objects",
        "by",
        "s",
        "of Linux's",
        "grace periods",
        "footprint MB",
        "peak MiB",
        "all free, s",
    ]);
    let number = |value: f64, places: usize| format!("{value:.places$}");
    for scale in Scale::ALL {
        let Scale { cpus, loops, objects } = scale;
        let ours: Vec<Row> = record.leg(&scale.leg()).map(|leg| medians(&leg.rows, SCALE)).unwrap_or_default();
        let linux: Vec<&LinuxLine> = record.linux.iter().filter(|line| line.leg == scale.leg()).collect();
        if ours.is_empty() && linux.is_empty() {
            continue;
        }
        let what = format!("{cpus} × {loops} × {objects}");
        let middle =
            |of: fn(&LinuxLine) -> f64| median(linux.iter().map(|line| of(line)).collect()).unwrap_or(f64::NAN);
        let (name, [seconds, gps, mb]) = match linux.first() {
            Some(line) => (
                format!("Linux {}, same hour", line.release),
                [middle(|line| line.ns / 1e9), middle(|line| line.batches), middle(|line| line.footprint)],
            ),
            None => ("Linux 6.12, another day".to_owned(), linux_before(&scale)),
        };
        table.rows.push(
            [&what, &name, &number(seconds, 2), "1.00", &number(gps, 0), &number(mb, 0), "-", "-"]
                .map(str::to_owned)
                .to_vec(),
        );
        for row in &ours {
            table.rows.push(vec![
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
    (!table.rows.is_empty()).then_some(table)
}

/// Figures of all benches of a suite.
fn figures(record: &Record, suite: &str) -> Option<Table> {
    let mut table = Table::new(["what", "unit", "least", "p50", "p99", "goal"]);
    let all = record.legs.iter().flat_map(|leg| &leg.figures);
    for figure in all.filter(|figure| figure.bench.starts_with(suite)) {
        let goal = figure.goal.map_or("-".to_owned(), |goal| format!("≤ {goal}"));
        let numbers = [figure.min, figure.p50(), figure.p99].map(number);
        let name = figure.bench[suite.len()..].replace('_', " ");
        table.rows.push([vec![name, figure.unit.name().to_owned()], numbers.to_vec(), vec![goal]].concat());
    }
    (!table.rows.is_empty()).then_some(table)
}

/// The host program's reclaimers.
fn native(lines: &[Native]) -> Option<Table> {
    let ns = |load: &str, threads: u64, by: &str| {
        let found = lines.iter().find(|line| line.native == load && line.threads == threads && line.by == by);
        found.map(|line| line.ns)
    };
    let mut table = Table::new(["load", "threads", "Grange", "crossbeam-epoch", "seize", "of crossbeam's"]);
    for load in ["kfree_rcu", "kfree_rcu_cpu", "defer_free", "defer_free_cpu"] {
        for threads in [1, 2] {
            let (ours, crossbeam) = (ns(load, threads, "grange")?, ns(load, threads, "crossbeam")?);
            let seize = ns(load, threads, "seize")?;
            let numbers = [number(ours), number(crossbeam), number(seize), format!("{:.2}", ours / crossbeam)];
            table.rows.push([&[load.to_owned(), threads.to_string()], &numbers[..]].concat());
        }
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::{leg, record, row};

    fn names(record: &Record) -> Vec<String> {
        all(record).into_iter().map(|section| section.name).collect()
    }

    #[test]
    fn what_was_not_measured_makes_no_table() {
        assert_eq!(names(&Record::default()), [] as [&str; 0]);
    }

    #[test]
    fn linux_of_the_same_hour_takes_the_place_of_the_figures_from_before() {
        let (leg, release) = ("rcuscale-2".to_owned(), "6.12.1".to_owned());
        let line = LinuxLine { leg, release, ns: 2.2e9, batches: 120.0, footprint: 21.0 };
        let measured = Record { linux: vec![line], ..Record::default() };
        let text = all(&measured)[0].table.markdown();
        assert!(text.contains("| 2 × 2000 × 1000 | Linux 6.12.1, same hour | 2.20 | 1.00 | 120 | 21 |"), "{text}");
        assert!(!text.contains("another day") && !text.contains("4 ×"), "{text}");
    }

    #[test]
    fn floods_on_other_machines_are_not_in_the_tables() {
        let flood = |name: &str, cpus, way: &str| {
            let rows = vec![row("kfree_rcu_flood.small", way, "ns", 5.0)];
            record(leg(name, cpus, vec![], rows)).legs
        };
        let legs =
            [flood("flood-2", 2, "two"), flood("flood-16", 16, "sixteen"), flood("counted-flood-16", 16, "counted")];
        let measured = Record { legs: legs.concat(), ..Record::default() };
        let flood = all(&measured).into_iter().find(|section| section.name == "flood").unwrap();
        let ways: Vec<&str> = flood.table.rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(ways, ["sixteen"]);
    }

    #[test]
    fn the_host_programs_figures_become_a_table_with_the_ratio_that_the_goal_is_about() {
        let mut lines = Vec::new();
        for load in ["kfree_rcu", "kfree_rcu_cpu", "defer_free", "defer_free_cpu"] {
            for threads in [1, 2] {
                lines.extend([("grange", 30.0), ("crossbeam", 120.0), ("seize", 60.0)].map(|(by, ns)| Native {
                    native: load.to_owned(),
                    threads,
                    by: by.to_owned(),
                    ns,
                }));
            }
        }
        let text = native(&lines).unwrap().markdown();
        assert!(text.contains("| kfree_rcu | 2 | 30.0 | 120.0 | 60.0 | 0.25 |"), "{text}");
        assert_eq!(native(&[]), None);
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
