//! What is shown of a record: sections of one table each, for a terminal and for a page, and a CSV.

use std::fmt::Write as _;

use super::compare;
use super::headline;
use super::kfree::tables;
use super::record::{Figure, Leg, Record};
use super::rows::{self, distinct};
use super::table::{Section, Table, number};

/// All sections: what the kernel is built to reach, what moved, the figures by machine, and the tables of experiments.
#[must_use]
pub fn sections(record: &Record, against: Option<&Record>) -> Vec<Section> {
    let mut sections: Vec<Section> = headline::section(record).into_iter().collect();
    if let Some(before) = against {
        sections.push(compare::moved(before, record));
    }
    for group in groups(record) {
        sections.extend(match group.legs.as_slice() {
            [leg] => one_machine(leg, against.and_then(|before| before.leg(&leg.name))),
            several => over_machines(&group.name, several),
        });
    }
    sections.extend(super::waits::section(record));
    sections.extend(tables::all(record));
    for leg in &record.legs {
        let others = rows::benches(&leg.rows).into_iter().filter(|bench| !tables::has_table_of(bench));
        sections.extend(others.flat_map(|bench| {
            let tables = rows::tables(&leg.rows, bench).into_iter().zip(1..);
            tables.map(move |(table, kind)| {
                let what = match table.rows.as_slice() {
                    [only] => format!("{bench}, {}", only[0]),
                    _ => bench.to_owned(),
                };
                let title = format!("{what}, on {}, medians", machine(leg));
                Section { name: format!("{}-{bench}-{kind}", leg.name), title, table }
            })
        }));
    }
    sections.extend(native(record));
    sections.extend(boots(record));
    sections
}

/// The sections for a terminal.
#[must_use]
pub fn text(record: &Record, against: Option<&Record>) -> String {
    let mut text = String::new();
    for section in sections(record, against) {
        let nothing = if section.table.rows.is_empty() { "nothing\n" } else { "" };
        let _ = write!(text, "\n{} ({})\n{}{nothing}", section.title, section.name, section.table.terminal());
    }
    for (id, why) in record.legs.iter().flat_map(|leg| &leg.skipped) {
        let _ = writeln!(text, "skipped: {id}: {why}");
    }
    let _ = writeln!(text, "\n{}", about(record));
    text
}

/// What was measured, in a line.
#[must_use]
pub fn about(record: &Record) -> String {
    let (commit, rustc) = (&record.commit, &record.rustc);
    let runs = || record.legs.iter().map(|leg| leg.runs);
    let Some((least, most)) = runs().min().zip(runs().max()) else { return format!("{commit}, {rustc}") };
    let boots = if least == most { many(most, "boot") } else { format!("{least} to {most} boots") };
    format!(
        "{}, {} kernel of {commit}, {rustc}, {boots} of each machine; what one operation costs, measuring itself subtracted",
        record.build, record.profile
    )
}

/// Legs that are the same but for the number of CPUs.
struct Group<'a> {
    name: String,
    legs: Vec<&'a Leg>,
}

fn groups(record: &Record) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for leg in record.legs.iter().filter(|leg| !leg.figures.is_empty()) {
        let name = leg.name.strip_suffix(&format!("-{}", leg.cpus)).unwrap_or(&leg.name);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.legs.push(leg),
            None => groups.push(Group { name: name.to_owned(), legs: vec![leg] }),
        }
    }
    groups
}

/// So many of them.
#[must_use]
pub fn many(n: u32, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn machine(leg: &Leg) -> String {
    format!("{} on {} ({})", many(leg.cpus, "CPU"), many(leg.nodes, "node"), leg.engine)
}

fn goal(figure: &Figure) -> String {
    figure.goal.map_or("-".to_owned(), |goal| format!("≤ {goal}"))
}

fn verdict(figure: &Figure) -> &'static str {
    figure.meets_goal().map_or("-", |met| if met { "met" } else { "missed" })
}

/// Every figure with its spread and goal, and what it was before.
fn one_machine(leg: &Leg, before: Option<&Leg>) -> Option<Section> {
    let heads = ["bench", "unit", "operations", "min", "p50", "p99", "boots", "goal", "verdict"];
    let mut table = Table::new(heads.into_iter().chain(before.map(|_| ["before", "moved"]).into_iter().flatten()));
    for figure in &leg.figures {
        let mut row = vec![
            figure.bench.clone(),
            figure.unit.name().to_owned(),
            figure.operations.to_string(),
            number(figure.min),
            number(figure.p50()),
            number(figure.p99),
            spread(figure),
            goal(figure),
            verdict(figure).to_owned(),
        ];
        if let Some(before) = before {
            let was = before.figure(&figure.bench);
            row.push(was.map_or("-".to_owned(), |was| number(was.p50())));
            row.push(was.map_or("-".to_owned(), |was| compare::figure(was, figure).cell()));
        }
        table.rows.push(row);
    }
    let title = format!("Figures on {}", machine(leg));
    (!table.rows.is_empty()).then_some(Section { name: leg.name.clone(), title, table })
}

/// From the least to the greatest of the boots' medians.
fn spread(figure: &Figure) -> String {
    match crate::spread::Spread::of(&figure.medians) {
        Some(spread) if spread.of > 1 => format!("{}–{}", number(spread.least), number(spread.most)),
        _ => "1".to_owned(),
    }
}

/// The median, with the boots' medians where they differ.
fn middle(figure: &Figure) -> String {
    let p50 = number(figure.p50());
    let boots = spread(figure);
    if figure.medians.len() == 1 || boots == format!("{p50}–{p50}") { p50 } else { format!("{p50} ({boots})") }
}

/// The medians, a column for each machine.
fn over_machines(name: &str, legs: &[&Leg]) -> Option<Section> {
    let one_engine = legs.iter().all(|leg| leg.engine == legs[0].engine);
    let size = |leg: &&Leg| match leg.engine.strip_prefix("tcg,").filter(|_| !one_engine) {
        Some(engine) => format!("{} ({engine})", many(leg.cpus, "CPU")),
        None => many(leg.cpus, "CPU"),
    };
    let sizes: Vec<String> = legs.iter().map(size).collect();
    let mut table = Table::new(["bench", "unit", "goal"].into_iter().chain(sizes.iter().map(String::as_str)));
    for bench in distinct(legs.iter().flat_map(|leg| &leg.figures).map(|figure| figure.bench.as_str())) {
        let Some(first) = legs.iter().find_map(|leg| leg.figure(bench)) else { continue };
        let mut row = vec![bench.to_owned(), first.unit.name().to_owned(), goal(first)];
        for leg in legs {
            let missed = |figure: &Figure| if figure.meets_goal() == Some(false) { " missed" } else { "" };
            row.push(leg.figure(bench).map_or("-".to_owned(), |figure| middle(figure) + missed(figure)));
        }
        table.rows.push(row);
    }
    let engine = if legs.iter().all(|leg| leg.counted) { "instructions counted" } else { "time under the emulator" };
    Some(Section { name: name.to_owned(), title: format!("{name}: medians over machines, {engine}"), table })
}

/// All loads of the host program.
fn native(record: &Record) -> Option<Section> {
    let who = distinct(record.native.iter().map(|line| line.by.as_str()));
    let mut table = Table::new(["load", "threads"].into_iter().chain(who.iter().copied()).chain(["ours / the better"]));
    for load in distinct(record.native.iter().map(|line| line.native.as_str())) {
        for threads in [1, 2] {
            let of = |by: &str| {
                let mut lines = record.native.iter();
                lines.find(|line| line.native == load && line.threads == threads && line.by == by).map(|line| line.ns)
            };
            let better = who.iter().filter(|by| **by != "grange").filter_map(|by| of(by)).fold(f64::INFINITY, f64::min);
            let Some(ours) = of("grange") else { continue };
            let cells = who.iter().map(|by| of(by).map_or("-".to_owned(), |ns| format!("{ns:.2}")));
            let first = [load.to_owned(), threads.to_string()].into_iter();
            table.rows.push(first.chain(cells).chain([format!("{:.2}", ours / better)]).collect());
        }
    }
    let title = "As a host program, ns of one operation, the best of three times".to_owned();
    (!table.rows.is_empty()).then_some(Section { name: "native-all".to_owned(), title, table })
}

/// The boot experiment.
fn boots(record: &Record) -> Option<Section> {
    let mut table = Table::new(["CPUs", "nodes", "engine", "online ms", "least", "most", "boots"]);
    for boots in &record.boots {
        let Some(spread) = crate::spread::Spread::of(&boots.online_ms) else { continue };
        let ms = [spread.middle, spread.least, spread.most].map(|ms| format!("{ms:.0}"));
        let what = [boots.cpus.to_string(), boots.nodes.to_string(), boots.engine.clone()];
        table.rows.push([&what, &ms, &[spread.of.to_string()][..]].concat());
    }
    let title = "From QEMU's start to all CPUs online".to_owned();
    (!table.rows.is_empty()).then_some(Section { name: "smp".to_owned(), title, table })
}

/// For spreadsheets: a line for each figure.
#[must_use]
pub fn csv(record: &Record) -> String {
    let mut text = String::from("machine,cpus,bench,unit,operations,min,p50,p99,goal,met\n");
    for leg in &record.legs {
        for figure in &leg.figures {
            let goal = figure.goal.map_or(String::new(), |goal| goal.to_string());
            let met = figure.meets_goal().map_or(String::new(), |met| met.to_string());
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{},{},{goal},{met}",
                leg.name,
                leg.cpus,
                figure.bench,
                figure.unit.name(),
                figure.operations,
                figure.min,
                figure.p50(),
                figure.p99,
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::{figure, leg, record};
    use crate::bench::record::{Native, Unit};

    fn counted(name: &str, cpus: u32, median: f64) -> Leg {
        leg(name, cpus, vec![figure("sched.switch", Unit::Instructions, &[median])], vec![])
    }

    #[test]
    fn a_figure_stands_with_its_goal_and_what_it_was_before() {
        let (before, now) = (record(counted("here", 2, 120.0)), record(counted("here", 2, 180.0)));
        let text = text(&now, Some(&before));
        let row = text.lines().rfind(|line| line.contains("sched.switch")).unwrap();
        for part in ["instructions", "1000", "180.0", "≤ 150", "missed", "120.0", "+50.0 %"] {
            assert!(row.contains(part), "{row}\nlacks {part}");
        }
        assert!(text.contains("Figures on 2 CPUs on 1 node (tcg,counted)") && text.contains("grange 0.1.0"), "{text}");
        assert!(text.contains("Moved against"), "{text}");
    }

    #[test]
    fn machines_of_one_experiment_make_one_table_with_a_column_each() {
        let both = Record { legs: vec![counted("x-2", 2, 120.0), counted("x-4", 4, 180.0)], ..Record::default() };
        let sections = sections(&both, None);
        assert_eq!(sections[0].table.heads[3..], ["2 CPUs", "4 CPUs"]);
        assert_eq!(sections[0].table.rows[0][3..], ["120.0", "180.0 missed"]);
        assert!(about(&both).contains("1 boot of each machine"), "{}", about(&both));
        assert!(csv(&both).contains("\nx-4,4,sched.switch,instructions,1000,100.5,180,200,150,false\n"));
    }

    #[test]
    fn columns_of_machines_that_are_emulated_differently_say_how() {
        let of = |cpus, engine: &str| Leg { engine: engine.to_owned(), ..counted(&format!("x-{cpus}"), cpus, 1.0) };
        let both = Record { legs: vec![of(2, "tcg,thread=multi"), of(4, "tcg,thread=single")], ..Record::default() };
        assert_eq!(sections(&both, None)[0].table.heads[3..], ["2 CPUs (thread=multi)", "4 CPUs (thread=single)"]);
    }

    #[test]
    fn boots_that_differ_are_told_with_the_median() {
        let of = |medians: &[f64]| middle(&figure("a.x", Unit::Ns, medians));
        assert_eq!([of(&[3.0]), of(&[3.0, 3.0]), of(&[3.0, 9.0, 4.0])], ["3.0", "3.0", "4.0 (3.0–9.0)"]);
        let boots = |runs| Leg { runs, ..counted(&format!("x-{runs}"), 2, 1.0) };
        let record = Record { legs: vec![boots(1), boots(3)], ..Record::default() };
        assert!(about(&record).contains("1 to 3 boots of each machine"), "{}", about(&record));
        assert_eq!(about(&Record { commit: "c".to_owned(), rustc: "r".to_owned(), ..Record::default() }), "c, r");
    }

    #[test]
    fn the_host_programs_loads_are_held_against_the_better_peer() {
        let line = |by: &str, ns| Native { native: "pair".to_owned(), threads: 1, by: by.to_owned(), ns };
        let native = vec![line("grange", 10.0), line("mimalloc", 20.0), line("snmalloc", 40.0)];
        let section = native_of(&Record { native, ..Record::default() });
        assert_eq!(section.rows, [["pair", "1", "10.00", "20.00", "40.00", "0.50"].map(str::to_owned)]);
    }

    fn native_of(record: &Record) -> Table {
        native(record).unwrap().table
    }
}
