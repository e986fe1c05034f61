//! `docs/requirements.md`: every row is there once, and whatever a row says it ended in exists.
//!
//! The format is described at the top of that file. In short: a table that begins with `| id | what | state |` holds
//! rows; a state is `open`, `open: what is there`, or endings separated by `; `. Other tables are not looked at.
//!
//! Open rows are counted, for the file says what is still to be done; in a series that is closed they are refused.

use std::collections::BTreeMap;

use crate::workspace::Workspace;

use super::evidence::Evidence;

/// The file, from the root of the workspace.
const FILE: &str = "docs/requirements.md";
/// The first line of a table of rows.
const HEADER: [&str; 3] = ["id", "what", "state"];
/// The series of rows and how many each has. A row that is added or dropped changes its number here too, so that none
/// gets lost by accident.
const SERIES: [(&str, u32); 12] = [
    ("S0", 25),
    ("S1", 21),
    ("S2", 9),
    ("S3", 38),
    ("S4", 12),
    ("S5", 16),
    ("R", 25),
    ("M", 21),
    ("K", 13),
    ("D", 13),
    ("C", 14),
    ("G", 8),
];

/// Series in which no row may be open (any more).
const CLOSED: [&str; 7] = ["S0", "S1", "S2", "S3", "S4", "S5", "K"];

/// Prints one line for each thing that is wrong, and how many rows are open; with `show_open` also which.
///
/// # Errors
/// When a source file cannot be read.
pub fn check(workspace: &Workspace, show_open: bool) -> anyhow::Result<bool> {
    let Ok(text) = std::fs::read_to_string(workspace.root.join(FILE)) else {
        println!("{FILE} is not there");
        return Ok(false);
    };
    let report = judge(&text, &Evidence::of(&workspace.root)?, &SERIES, &CLOSED);
    report.complaints.iter().for_each(|complaint| println!("{complaint}"));
    if show_open {
        report.open.iter().for_each(|(id, note)| println!("open {id}: {note}"));
    }
    let hint = if show_open { "" } else { "; `cargo xtask lint --open-rows` lists them" };
    println!("requirements: {} rows, {} open{hint}", report.rows, report.open.len());
    Ok(report.complaints.is_empty())
}

/// What the file says of itself.
#[derive(Debug, Default)]
struct Report {
    rows: usize,
    /// Id and note of each open row.
    open: Vec<(String, String)>,
    complaints: Vec<String>,
}

fn judge(text: &str, evidence: &Evidence, series: &[(&str, u32)], closed: &[&str]) -> Report {
    let mut report = Report::default();
    let mut first_line: BTreeMap<&str, usize> = BTreeMap::new();
    for (line, cells) in rows(text) {
        report.rows += 1;
        let [id, what, state] = cells[..] else {
            report.complaints.push(format!("{FILE}:{line}: {}: {} cells where 3 are due", cells[0], cells.len()));
            continue;
        };
        let mut complain = |complaint: String| report.complaints.push(format!("{FILE}:{line}: {id}: {complaint}"));
        if let Some(before) = first_line.insert(id, line) {
            complain(format!("the row stands in line {before} already"));
        }
        if !is_known(id, series) {
            complain("no such row: the series and their lengths stand in xtask's requirements check".to_owned());
        }
        if what.is_empty() {
            complain("says nothing".to_owned());
        }
        match State::read(state) {
            Ok(State::Open(note)) => {
                if id.split_once('-').is_some_and(|(name, _)| closed.contains(&name)) {
                    complain("open, in a series that is closed".to_owned());
                }
                report.open.push((id.to_owned(), note.to_owned()));
            }
            Ok(State::Ended(endings)) => endings.iter().filter_map(|ending| ending.flaw(evidence)).for_each(complain),
            Err(complaint) => complain(complaint),
        }
    }
    for (name, count) in series {
        let due = (1..=*count).map(|number| format!("{name}-{number}"));
        let missing = due.filter(|id| !first_line.contains_key(id.as_str()));
        report.complaints.extend(missing.map(|id| format!("{FILE}: {id}: the row is missing")));
    }
    report
}

/// The rows of all tables of rows: line number and cells.
fn rows(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let mut in_table = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let Some(cells) = cells(line) else {
            in_table = false;
            return None;
        };
        let is_rule = cells.iter().all(|cell| !cell.is_empty() && cell.bytes().all(|byte| b"-:".contains(&byte)));
        let is_header = cells == HEADER;
        let is_row = in_table && !is_rule && !is_header;
        in_table |= is_header;
        is_row.then_some((index + 1, cells))
    })
}

/// The cells of a line of a table. A bar inside a cell is written `\|`.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    let mut cells = Vec::new();
    let mut start = 0;
    for (at, _) in inner.match_indices('|').filter(|&(at, _)| !inner[..at].ends_with('\\')) {
        cells.push(inner[start..at].trim());
        start = at + 1;
    }
    cells.push(inner[start..].trim());
    Some(cells)
}

/// `S0-7`, or `D-5b`: a row of its own beside row 5.
fn is_known(id: &str, series: &[(&str, u32)]) -> bool {
    let Some((name, number)) = id.split_once('-') else { return false };
    let digits = number.strip_suffix(|c: char| c.is_ascii_lowercase()).unwrap_or(number);
    let plain = !digits.starts_with(['0', '+']);
    let number = digits.parse::<u32>().ok().filter(|_| plain);
    series.iter().any(|(known, count)| *known == name && number.is_some_and(|number| (1..=*count).contains(&number)))
}

/// What has become of a row.
#[derive(Debug, PartialEq, Eq)]
enum State<'a> {
    /// Not done; what is there.
    Open(&'a str),
    /// Done, by all of these.
    Ended(Vec<Ending<'a>>),
}

/// Makes an ending of what stands behind its first words.
type Kind<'a> = fn(&'a str) -> Ending<'a>;

/// One thing that a row ended in.
#[derive(Debug, PartialEq, Eq)]
enum Ending<'a> {
    /// `suite.name`
    KernelTest(&'a str),
    /// `crate::module::name`
    HostTest(&'a str),
    /// `name`
    Bench(&'a str),
    /// `docs/file.md#section`
    Decision(&'a str),
    /// The reason.
    NotApplicable(&'a str),
}

impl<'a> State<'a> {
    fn read(state: &'a str) -> Result<Self, String> {
        if state == "open" {
            return Ok(State::Open(""));
        }
        if let Some(note) = state.strip_prefix("open: ") {
            return Ok(State::Open(note.trim()));
        }
        state.split("; ").map(Ending::read).collect::<Result<_, _>>().map(State::Ended)
    }
}

impl<'a> Ending<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        let kinds: [(&str, Kind<'a>); 5] = [
            ("test host ", Ending::HostTest),
            ("test ", Ending::KernelTest),
            ("bench ", Ending::Bench),
            ("decision ", Ending::Decision),
            ("not applicable: ", Ending::NotApplicable),
        ];
        let found = kinds.into_iter().find_map(|(word, kind)| Some((word, kind, text.strip_prefix(word)?.trim())));
        let (word, kind, rest) = found.ok_or_else(|| format!("`{text}` is no state"))?;
        let is_prose = word.ends_with(": ");
        if rest.is_empty() || (!is_prose && rest.contains(char::is_whitespace)) {
            return Err(format!("`{text}` is no state: one name is due after `{}`", word.trim_end()));
        }
        Ok(kind(rest))
    }

    /// Why the ending does not count.
    fn flaw(&self, evidence: &Evidence) -> Option<String> {
        match *self {
            Ending::KernelTest(name) => {
                (!evidence.has_kernel_test(name)).then(|| format!("no test {name} in the kernel"))
            }
            Ending::HostTest(path) => (!evidence.has_host_test(path)).then(|| format!("no test {path} on the host")),
            Ending::Bench(name) => (!evidence.has_bench(name)).then(|| format!("no bench {name}")),
            Ending::Decision(place) => (!evidence.has_section(place)).then(|| format!("no section {place}")),
            Ending::NotApplicable(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [(&str, u32); 1] = [("R", 2)];

    fn evidence() -> Evidence {
        let mut evidence = Evidence::default();
        evidence.read_suite("suites/rcu.rs", "    fn a_reader_delays(t: &mut Test) {\n");
        evidence.read_host_file("slab", "src/barn.rs", "    #[test]\n    fn keeps() {\n");
        evidence.read_page("docs/rcu.md", "# RCU\n\n## Who is `first`, and why\n");
        evidence
    }

    fn complaints(lines: &str) -> Vec<String> {
        judge(&format!("| id | what | state |\n|---|---|---|\n{lines}\n"), &evidence(), &TWO, &[]).complaints
    }

    #[test]
    fn rows_are_read_from_tables_with_the_header_and_from_no_others() {
        let text = "| state | means |\n|---|---|\n| R-9 | no row |\n\n| id | what | state |\n|:--|---|---|\n| R-1 | a \\| b | open |\n\n| R-2 | outside | open |\n";
        assert_eq!(rows(text).collect::<Vec<_>>(), [(7, vec!["R-1", "a \\| b", "open"])]);
    }

    #[test]
    fn a_row_whose_endings_all_exist_is_in_order() {
        let both = "test rcu.a_reader_delays; test host slab::barn::tests::keeps";
        let other = "decision docs/rcu.md#who-is-first-and-why; not applicable: no RT build";
        assert_eq!(complaints(&format!("| R-1 | x | {both} |\n| R-2 | y | {other} |")), [] as [&str; 0]);
    }

    #[test]
    fn an_ending_that_does_not_exist_is_a_complaint_that_names_the_row() {
        for (state, expected) in [
            ("test rcu.gone", "no test rcu.gone in the kernel"),
            ("test slab.a_reader_delays", "no test slab.a_reader_delays in the kernel"),
            ("test host slab::gone", "no test slab::gone on the host"),
            ("test host mm::barn::keeps", "no test mm::barn::keeps on the host"),
            ("bench gone", "no bench gone"),
            ("decision docs/rcu.md#gone", "no section docs/rcu.md#gone"),
            ("decision docs/gone.md#rcu", "no section docs/gone.md#rcu"),
            ("done", "`done` is no state"),
            ("", "`` is no state"),
            ("test a b", "`test a b` is no state: one name is due after `test`"),
            ("not applicable: ", "`not applicable:` is no state"),
        ] {
            let told = complaints(&format!("| R-1 | x | open |\n| R-2 | y | {state} |"));
            assert_eq!(told, [format!("docs/requirements.md:4: R-2: {expected}")], "{state}");
        }
    }

    #[test]
    fn a_row_that_is_missing_doubled_or_unheard_of_is_named() {
        assert_eq!(
            complaints("| R-1 | x | open |\n| R-1 | y | open |\n| R-3 | z | open |\n| R-01 | z | open |"),
            [
                "docs/requirements.md:4: R-1: the row stands in line 3 already",
                "docs/requirements.md:5: R-3: no such row: the series and their lengths stand in xtask's requirements check",
                "docs/requirements.md:6: R-01: no such row: the series and their lengths stand in xtask's requirements check",
                "docs/requirements.md: R-2: the row is missing",
            ]
        );
    }

    #[test]
    fn a_row_of_another_form_is_a_complaint_and_not_left_out() {
        assert_eq!(
            complaints("| R-1 | x | open |\n| R-2 | a | b | open |\n| R-1b |  | open |"),
            [
                "docs/requirements.md:4: R-2: 4 cells where 3 are due",
                "docs/requirements.md:5: R-1b: says nothing",
                "docs/requirements.md: R-2: the row is missing",
            ]
        );
    }

    #[test]
    fn open_rows_are_counted_with_their_notes() {
        let text = "| id | what | state |\n|---|---|---|\n| R-1 | x | open: half of it |\n| R-2 | y | open |\n";
        let report = judge(text, &evidence(), &TWO, &["S"]);
        assert_eq!((report.rows, report.complaints.len()), (2, 0));
        assert_eq!(report.open, [("R-1".into(), "half of it".into()), ("R-2".into(), String::new())]);
    }
    #[test]
    fn an_open_row_of_a_closed_series_is_a_complaint() {
        let text = "| id | what | state |\n|---|---|---|\n| R-1 | x | open: half of it |\n| R-2 | y | bench gone |\n";
        let complaints = judge(text, &evidence(), &TWO, &["S", "R"]).complaints;
        assert_eq!(complaints[0], "docs/requirements.md:3: R-1: open, in a series that is closed");
        assert_eq!(complaints.len(), 2);
    }
}
