//! A lab's page, `docs/labs/NN-name.md`: the only place where its title, level, machine and marks stand.
//!
//! Three things are read out of it: the heading `# Lab N: title`, the rows `level` and `machine` of the table under it, and
//! the table under `## What is graded`, with a row a point: marks, the test that decides in backticks, what it means.

use std::path::Path;

use anyhow::Context as _;

use crate::exit::{Exit, stop};

/// A lab.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lab {
    /// Its number.
    pub number: u32,
    /// The name of its files: `01-counter`.
    pub name: String,
    /// What it is about.
    pub title: String,
    /// How hard it is.
    pub level: String,
    /// CPUs and nodes of its machine; none for a lab that is graded on the host.
    pub machine: Option<(u32, u32)>,
    /// What there are marks for, in the order of the page.
    pub points: Vec<Point>,
    /// The whole page.
    pub text: String,
}

/// What there are marks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// How many.
    pub marks: u32,
    /// The test that decides.
    pub test: String,
}

impl Lab {
    /// All marks.
    #[must_use]
    pub fn marks(&self) -> u32 {
        self.points.iter().map(|point| point.marks).sum()
    }
}

/// Every lab that has a page, by number.
///
/// # Errors
/// When a page cannot be read, or lacks what is read out of it.
pub fn all(root: &Path) -> anyhow::Result<Vec<Lab>> {
    let folder = root.join("docs/labs");
    let mut labs = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let lab = parse(&name, text);
            labs.push(lab.map_err(|what| stop(Exit::Build, format!("docs/labs/{name}.md: {what}")))?);
        }
    }
    labs.sort_by_key(|lab| lab.number);
    Ok(labs)
}

fn parse(name: &str, text: String) -> Result<Lab, String> {
    let number = name.split('-').next().and_then(|number| number.parse().ok()).ok_or("a name such as 01-counter")?;
    let heading = text.lines().next().unwrap_or_default();
    let title = heading.strip_prefix(&format!("# Lab {number}: ")).ok_or(format!("no heading `# Lab {number}: …`"))?;
    let fact = |key: &str| {
        let row = text.lines().filter_map(cells).find(|cells| cells[0] == key && cells.len() == 2);
        row.map(|cells| cells[1].to_owned()).ok_or(format!("no row `| {key} | … |`"))
    };
    let graded = text.split_once("\n## What is graded\n").ok_or("no section `## What is graded`")?.1;
    let rows = graded.lines().take_while(|line| !line.starts_with("## ")).filter_map(cells);
    let points: Vec<Point> = rows.filter_map(|cells| point(&cells)).collect();
    if points.is_empty() {
        return Err("no row `| marks | `test` | … |` under `## What is graded`".to_owned());
    }
    Ok(Lab {
        number,
        name: name.to_owned(),
        title: title.to_owned(),
        level: fact("level")?,
        machine: machine(&fact("machine")?)?,
        points,
        text,
    })
}

/// The cells of a table's row.
fn cells(line: &str) -> Option<Vec<&str>> {
    Some(line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect())
}

fn point(cells: &[&str]) -> Option<Point> {
    let [marks, test, _] = cells else { return None };
    Some(Point { marks: marks.parse().ok()?, test: test.trim_matches('`').to_owned() })
}

fn machine(words: &str) -> Result<Option<(u32, u32)>, String> {
    if words == "the host" {
        return Ok(None);
    }
    let split = words.split_whitespace().collect::<Vec<_>>();
    match split[..] {
        [cpus, "CPU" | "CPUs", "on", nodes, "node" | "nodes"] => Some((cpus.parse().ok(), nodes.parse().ok())),
        _ => None,
    }
    .and_then(|(cpus, nodes)| Some(Some((cpus?, nodes?))))
    .ok_or(format!("machine `{words}`: `the host`, or such as `2 CPUs on 2 nodes`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Lab 3: Find the leak

| | |
|---|---|
| level | easy |
| machine | 2 CPUs on 1 node |

## What is graded

| marks | point | what |
|---|---|---|
| 2 | `nothing_leaks` | All goes back. |
| 1 | `nothing_is_freed_twice` | Once. |

## Further
| 9 | `not_this` | It is not graded. |
";

    #[test]
    fn a_page_says_what_there_are_marks_for() {
        let lab = parse("03-leak", PAGE.to_owned()).unwrap();
        assert_eq!((lab.number, &*lab.title, &*lab.level), (3, "Find the leak", "easy"));
        assert_eq!((lab.machine, lab.marks()), (Some((2, 1)), 3));
        let tests: Vec<&str> = lab.points.iter().map(|point| &*point.test).collect();
        assert_eq!(tests, ["nothing_leaks", "nothing_is_freed_twice"]);
        assert_eq!(parse("03-leak", PAGE.replace("2 CPUs on 1 node", "the host")).unwrap().machine, None);
    }

    #[test]
    fn what_a_page_lacks_is_named() {
        for (from, to, what) in [
            ("# Lab 3:", "# Lab 4:", "no heading `# Lab 3: …`"),
            ("| level |", "| hard |", "no row `| level | … |`"),
            ("2 CPUs on 1 node", "2 CPUs", "machine `2 CPUs`: `the host`, or such as `2 CPUs on 2 nodes`"),
            ("## What is graded", "## Graded", "no section `## What is graded`"),
            ("| 2 | `n", "| two | `n", ""),
        ] {
            let found = parse("03-leak", PAGE.replace(from, to));
            match what {
                "" => assert_eq!(found.unwrap().marks(), 1),
                what => assert_eq!(found.unwrap_err(), what),
            }
        }
    }

    #[test]
    fn every_lab_of_this_workspace_has_its_files() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let labs = all(root).unwrap();
        let names: Vec<&str> = labs.iter().map(|lab| &*lab.name).collect();
        for folder in ["starts", "solutions", "graders"] {
            let entries = root.join("labs").join(folder).read_dir().unwrap();
            let mut there: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            there.sort();
            assert_eq!(there, names.iter().map(|name| format!("{name}.rs")).collect::<Vec<_>>(), "labs/{folder}");
        }
        let numbers: Vec<u32> = labs.iter().map(|lab| lab.number).collect();
        assert_eq!(numbers, (1..=labs.len() as u32).collect::<Vec<_>>());
    }
}
