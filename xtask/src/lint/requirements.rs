//! `docs/requirements.md`: a row that says it ended in a test must name one that exists.
//!
//! The file holds tables. A row's first cell is its name (`R-5`), its last cell its state: `open`, or what it ended in.
//! Tests are named in backquotes as `test: suite.name` for those in the kernel and `test: path::name` for those on the
//! host; several are separated by commas.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::workspace::Workspace;

/// One row of a table.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    name: &'a str,
    state: &'a str,
    line: usize,
}

/// Prints one line for each test that is named and not found, and how many rows are open.
///
/// # Errors
/// When a source file cannot be read.
pub fn check(workspace: &Workspace) -> anyhow::Result<bool> {
    let path = workspace.root.join("docs/requirements.md");
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("docs/requirements.md is not there yet");
        return Ok(true);
    };
    let functions = functions(&workspace.root)?;
    let rows: Vec<Row<'_>> = rows(&text).collect();
    let mut passed = true;
    for row in &rows {
        for test in named_tests(row.state).filter(|test| !functions.iter().any(|function| matches(function, test))) {
            println!("docs/requirements.md:{}: {} names the test {test}, which does not exist", row.line, row.name);
            passed = false;
        }
    }
    let open: Vec<&str> = rows.iter().filter(|row| row.state.starts_with("open")).map(|row| row.name).collect();
    println!("requirements: {} rows, {} open{}", rows.len(), open.len(), shown(&open));
    Ok(passed)
}

fn shown(open: &[&str]) -> String {
    if open.is_empty() { String::new() } else { format!(": {}", open.join(" ")) }
}

/// The rows whose first cell is a name such as `R-5` or `S5-11`.
fn rows(text: &str) -> impl Iterator<Item = Row<'_>> {
    text.lines().enumerate().filter_map(|(number, line)| {
        let cells: Vec<&str> = line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
        let (&name, &state) = (cells.first()?, cells.last()?);
        let name = name.trim_matches(['`', '*']);
        let (letters, digits) = name.split_once('-')?;
        let named =
            letters.starts_with(|c: char| c.is_ascii_uppercase()) && digits.starts_with(|c: char| c.is_ascii_digit());
        (named && cells.len() > 1).then_some(Row { name, state, line: number + 1 })
    })
}

/// The tests named in a state.
fn named_tests(state: &str) -> impl Iterator<Item = &str> {
    let quoted = state.split('`').skip(1).step_by(2).filter_map(|text| text.strip_prefix("test:"));
    quoted.flat_map(|list| list.split(',')).map(str::trim).filter(|test| !test.is_empty())
}

/// A test function: the file it stands in and its name.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    module: String,
    name: String,
}

/// Whether the function is the one meant by `suite.name`, `path::name` or a bare name.
fn matches(function: &Function, test: &str) -> bool {
    let mut parts = test.rsplit(['.', ':']).filter(|part| !part.is_empty() && *part != "tests");
    parts.next() == Some(&function.name) && parts.next().is_none_or(|module| module == function.module)
}

/// Every function of the workspace's sources that may be a test.
fn functions(root: &Path) -> anyhow::Result<Vec<Function>> {
    let mut functions = Vec::new();
    let mut folders: Vec<PathBuf> = ["boot", "kernel", "tests", "xtask"].map(|folder| root.join(folder)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                functions.extend(functions_in(&path, &text));
            }
        }
    }
    Ok(functions)
}

fn functions_in<'a>(path: &Path, text: &'a str) -> impl Iterator<Item = Function> + 'a {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let parent = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let module = if stem == "mod" || stem == "lib" { parent } else { stem };
    text.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix("fn ")?;
        let name: String = rest.chars().take_while(|&c| c.is_ascii_alphanumeric() || c == '_').collect();
        (!name.is_empty()).then(|| Function { module: module.clone(), name })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
| row | must | state |
|---|---|---|
| R-5 | readers nest | open |
| `S5-11` | frees wait | `test: rcu.a_reader_delays, slab::barn::keeps` |
| text | no row | open |
";

    #[test]
    fn rows_are_those_with_a_name_and_a_state() {
        let seen: Vec<_> = rows(TEXT).map(|row| (row.name, row.line)).collect();
        assert_eq!(seen, [("R-5", 3), ("S5-11", 4)]);
    }

    #[test]
    fn tests_are_found_by_suite_or_module_and_name() {
        let state = rows(TEXT).nth(1).unwrap().state;
        assert_eq!(named_tests(state).collect::<Vec<_>>(), ["rcu.a_reader_delays", "slab::barn::keeps"]);
        let function = |module: &str, name: &str| Function { module: module.into(), name: name.into() };
        assert!(matches(&function("rcu", "a_reader_delays"), "rcu.a_reader_delays"));
        assert!(matches(&function("barn", "keeps"), "slab::barn::tests::keeps"));
        assert!(matches(&function("barn", "keeps"), "keeps"));
        assert!(!matches(&function("nmi", "a_reader_delays"), "rcu.a_reader_delays"));
    }

    #[test]
    fn a_folders_own_file_stands_for_the_folder() {
        let names: Vec<_> =
            functions_in(Path::new("tests/src/suites/nmi/mod.rs"), "    fn nested(t: &mut Test) {\nlet fnx;\n")
                .collect();
        assert_eq!(names, [Function { module: "nmi".into(), name: "nested".into() }]);
    }
}
