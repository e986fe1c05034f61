//! The ledger of torture, a CSV file with a row for each run, and the bound that it gives.
//!
//! | column | what |
//! |---|---|
//! | `utc`, `commit`, `build_id` | when it ended; what was checked out, `+` for changed files; the kernels |
//! | `command`, `seed` | as it was typed; the seed of all |
//! | `scenarios`, `failures` | boots, and those that were no pass; without any that the user interrupted |
//! | `guest_s`, `gps` | seconds that kernels were tortured, in their own time; grace periods meanwhile |
//! | `seconds` | host time |
//! | `causes` | for each failure which scenario, how it ended, and why: "cause not known yet" is for a person to replace |

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;

use crate::exit::Exit;
use crate::ledger::{append, causes};

use super::results::{Outcome, Results};

/// First line of the file.
pub const HEADER: &str = "utc,commit,build_id,command,seed,scenarios,failures,guest_s,gps,seconds,causes";
/// Places of columns.
const BUILD: usize = 2;
const FAILURES: usize = 6;
const GUEST: usize = 7;

/// Adds a row, and says what all rows of the same kernels promise.
///
/// # Errors
/// When the disk does not let it.
pub fn add(path: &Path, results: &Results, command: &str) -> anyhow::Result<String> {
    let outcomes: Vec<&Outcome> = results.outcomes.iter().filter(|it| it.end() != Exit::Interrupted).collect();
    let builds: BTreeSet<&str> = outcomes.iter().map(|outcome| outcome.build_id.as_str()).collect();
    let builds = builds.into_iter().collect::<Vec<_>>().join(" ");
    let together = |key: &str| outcomes.iter().filter_map(|outcome| outcome.together(key)).sum::<u64>();
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.end() != Exit::Passed).collect();
    let told: Vec<String> =
        failed.iter().map(|outcome| format!("{} ({})", outcome.scenario, outcome.verdict)).collect();
    let fields = [
        results.commit.clone(),
        builds.clone(),
        command.to_owned(),
        format!("{:#x}", results.seed),
        outcomes.len().to_string(),
        failed.len().to_string(),
        format!("{:.0}", outcomes.iter().map(|outcome| outcome.guest_s()).sum::<f64>()),
        together("GPs").to_string(),
        format!("{:.0}", results.took_s),
        causes(&told),
    ];
    append(path, HEADER, &fields)?;
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(promise(&text, &builds))
}

/// What the rows of these kernels, and of no others, say together: with no failure in T hours, the rate of failures is below 3/T an hour with a
/// probability of 95 percent (Poisson).
#[must_use]
pub fn promise(ledger: &str, builds: &str) -> String {
    let (mut hours, mut failures) = (0.0, 0);
    // A part of the list may need but one of them.
    let is_ours = |row: &String| row.split(' ').all(|id| builds.split(' ').any(|ours| ours == id));
    for fields in ledger.lines().skip(1).map(fields).filter(|fields| fields.get(BUILD).is_some_and(is_ours)) {
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        hours += number(GUEST) / 3600.0;
        failures += number(FAILURES) as u64;
    }
    match failures {
        0 if hours > 0.0 => format!(
            "{hours:.2} h of torture without a failure on this build: with 95 % there are less than {:.2} an hour",
            3.0 / hours
        ),
        1 => format!("1 failure in {hours:.2} h of torture on this build"),
        failures => format!("{failures} failures in {hours:.2} h of torture on this build"),
    }
}

/// The fields of a line of CSV.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torture::results::tests::outcome;
    use crate::torture::shard::Shard;

    #[test]
    fn rows_of_one_build_add_up_to_a_bound_and_a_failure_takes_it_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("torture.csv");
        let run = |exit| {
            let outcomes = vec![outcome("A", exit), outcome("B", Exit::Passed)];
            Results::new(vec!["A".to_owned(), "B".to_owned()], Shard::ALL, "abc".to_owned(), 7, outcomes)
        };
        let say = |exit| add(&path, &run(exit), "cargo xtask torture 'A, B'").unwrap();
        assert!(say(Exit::Passed).contains("0.01 h of torture without a failure"));
        assert!(say(Exit::Passed).ends_with("less than 270.00 an hour"));
        // Who interrupts a run ends a machine that was well.
        assert!(say(Exit::Interrupted).ends_with("less than 216.00 an hour"));
        assert_eq!(say(Exit::Hung), "1 failure in 0.02 h of torture on this build");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|line| fields(line).len() == HEADER.split(',').count()), "{text}");
        assert!(text.ends_with("A (hang): cause not known yet\n"), "{text}");
        assert_eq!(promise(&text, "01ff 02aa"), promise(&text, "01ff"));
        assert_eq!(promise(&text.replace("01ff", "01ff 02aa"), "01ff"), promise(&text, "other"));
        assert_eq!(promise(&text, "other"), "0 failures in 0.00 h of torture on this build");
    }
}
