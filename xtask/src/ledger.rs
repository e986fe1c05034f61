//! The ledger of soaks: a CSV file with a row for each long run, so that runs of many days add up.
//!
//! | column | what |
//! |---|---|
//! | `utc` | when the run ended |
//! | `commit` | what was checked out, with a `+` if files of it were changed |
//! | `build_id` | of the kernel: rows with the same one may be added up |
//! | `command` | as it was typed |
//! | `seed` | the first seed |
//! | `runs` | how often all tests were gone through |
//! | `tests`, `failures`, `skipped` | over all runs; a boot that died and rounds that differ count, too |
//! | `seconds` | host time |
//! | `causes` | for each failure which test, how it ended, and why: "cause not known yet" is for a person to replace |

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;

use crate::exit::usage;

/// First line of the file.
pub const HEADER: &str = "utc,commit,build_id,command,seed,runs,tests,failures,skipped,seconds,causes";

/// A row.
#[derive(Clone, Debug)]
pub struct Row {
    /// The commit, with a `+` if there were changes.
    pub commit: String,
    /// Of the kernel; empty without one.
    pub build_id: String,
    /// The words after the program's name.
    pub command: String,
    /// The first seed.
    pub seed: u64,
    /// Rounds that were gone through.
    pub runs: u32,
    /// Tests that passed or failed.
    pub tests: usize,
    /// Tests that failed.
    pub failures: usize,
    /// Tests that were skipped.
    pub skipped: usize,
    /// Host time.
    pub took: Duration,
    /// Names and kinds of what failed.
    pub failed: Vec<String>,
}

impl Row {
    fn fields(&self) -> [String; 10] {
        [
            self.commit.clone(),
            self.build_id.clone(),
            self.command.clone(),
            format!("{:#x}", self.seed),
            self.runs.to_string(),
            self.tests.to_string(),
            self.failures.to_string(),
            self.skipped.to_string(),
            format!("{:.0}", self.took.as_secs_f64()),
            causes(&self.failed),
        ]
    }

    /// Adds it to a ledger of soaks.
    ///
    /// # Errors
    /// As [`append`].
    pub fn append(&self, path: &Path) -> anyhow::Result<()> {
        append(path, HEADER, &self.fields())
    }
}

/// What stands in the column `causes` until a person knows better.
#[must_use]
pub fn causes(failed: &[String]) -> String {
    let causes: Vec<String> = failed.iter().map(|what| format!("{what}: cause not known yet")).collect();
    causes.join("; ")
}

fn line(utc: SystemTime, fields: &[String]) -> String {
    let utc = humantime::format_rfc3339_seconds(utc).to_string();
    std::iter::once(&utc).chain(fields).map(|field| quoted(field)).collect::<Vec<_>>().join(",")
}

/// A field, in quotes where CSV wants them.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.to_owned() }
}

/// Refuses, before anything runs, a file that rows cannot be added to.
///
/// # Errors
/// `Usage` for one that is something else, or cannot be there.
pub fn check(path: &Path, header: &str) -> anyhow::Result<()> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.is_empty() || text.lines().next() == Some(header) => Ok(()),
        Ok(_) => {
            Err(usage(format!("--ledger {}: its first line is not that of this ledger: {header}", path.display())))
        }
        Err(_) if !path.exists() && path.parent().is_some_and(|dir| dir.as_os_str().is_empty() || dir.is_dir()) => {
            Ok(())
        }
        Err(error) => Err(usage(format!("--ledger {}: {error}", path.display()))),
    }
}

/// Adds a row: the time, then these fields. A new file gets its header first.
///
/// # Errors
/// When the disk does not let it.
pub fn append(path: &Path, header: &str, fields: &[String]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let file = file.as_mut().map_err(|error| usage(format!("--ledger {}: {error}", path.display())))?;
    let header = if file.metadata()?.len() == 0 { format!("{header}\n") } else { String::new() };
    // One write: a row of somebody else comes before or after it.
    let text = format!("{header}{}\n", line(SystemTime::now(), fields));
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            commit: "abc+".into(),
            build_id: "01ff".into(),
            command: "cargo xtask test --append 'a=\"b\"'".into(),
            seed: 7,
            runs: 20,
            tests: 1740,
            failures: 2,
            skipped: 20,
            took: Duration::from_millis(61_700),
            failed: vec!["sched.x (hang, seed 0x7)".into(), "mm.y (seed 0x8)".into()],
        }
    }

    #[test]
    fn a_row_has_a_field_for_each_column_and_quotes_what_holds_a_comma() {
        assert_eq!(
            line(SystemTime::UNIX_EPOCH, &row().fields()),
            "1970-01-01T00:00:00Z,abc+,01ff,\"cargo xtask test --append 'a=\"\"b\"\"'\",0x7,20,1740,2,20,62,\
             \"sched.x (hang, seed 0x7): cause not known yet; mm.y (seed 0x8): cause not known yet\""
        );
        let clean = Row { failed: Vec::new(), command: "cargo xtask test".into(), ..row() };
        assert_eq!(line(SystemTime::UNIX_EPOCH, &clean.fields()).matches(',').count(), HEADER.matches(',').count());
    }

    #[test]
    fn the_first_row_of_a_file_comes_after_the_header_and_others_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("soak.csv");
        for _ in 0..2 {
            check(&path, HEADER).unwrap();
            row().append(&path).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert_eq!(text.lines().next(), Some(HEADER));
    }

    #[test]
    fn a_file_that_is_no_ledger_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.csv");
        std::fs::write(&path, "a,b\n1,2\n").unwrap();
        for (path, part) in [(path, "first line"), (dir.path().join("no/soak.csv"), "No such file")] {
            let error = check(&path, HEADER).unwrap_err();
            assert_eq!(crate::exit::of(&error), crate::exit::Exit::Usage);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
