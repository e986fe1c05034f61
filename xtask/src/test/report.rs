//! What is left of a test run: the failures on the terminal, JUnit and JSON in files, one last line.

use std::path::Path;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::ktap::Outcome;
use crate::ledger::Row;
use crate::process::{interrupted, quoted};
use crate::rundir::write;

use super::{Record, Results, Session};

/// Passed, failed, skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed, and boots that failed without a test to blame.
    pub failed: usize,
    /// Tests that said they could not run here.
    pub skipped: usize,
}

impl Counts {
    /// Counts records.
    #[must_use]
    pub fn of(records: &[Record]) -> Counts {
        let count = |outcome| records.iter().filter(|record| record.outcome == outcome).count();
        Counts { passed: count(Outcome::Passed), failed: count(Outcome::Failed), skipped: count(Outcome::Skipped) }
    }

    /// The last line of every test run.
    #[must_use]
    pub fn line(self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Writes the files, prints the failures and the last line, and says how the command ends.
///
/// # Errors
/// When a file cannot be written.
pub fn finish(session: &Session<'_>, results: &Results, seed: u64) -> anyhow::Result<Exit> {
    let counts = Counts::of(&results.records);
    let exit = results.records.iter().fold(results.exit, |worst, record| worst.worst(record.exit));
    let exit = if interrupted() { exit.worst(Exit::Interrupted) } else { exit };
    let junit = junit(&results.records)?;
    let json = format!("{:#}\n", as_json(&results.records, counts, exit, seed));
    let text: String = results.records.iter().filter(|record| record.outcome == Outcome::Failed).map(failure).collect();
    let summary = format!("{text}{}\n", counts.line());
    session.dir.write("junit.xml", &junit)?;
    session.dir.write("results.json", &json)?;
    session.dir.write("summary.txt", &summary)?;
    for (path, content) in [(&session.args.junit, &junit), (&session.args.json, &json)] {
        if let Some(path) = path {
            write(Path::new(path), content)?;
        }
    }
    if exit != Exit::Passed && counts.failed == 0 {
        // Nothing that counts failed, and still this is no pass: say so before a line that looks like one.
        println!("no pass: {}", exit.word());
    }
    print!("{text}");
    println!("tests took {:.1} s", session.dir.age().as_secs_f64());
    if let Some(note) = &session.args.note {
        println!("{note}");
    }
    println!("{}", counts.line());
    Ok(exit)
}

/// What the ledger keeps of it.
///
/// # Errors
/// When `run.json` cannot be read back.
pub fn row(session: &Session<'_>, results: &Results, seed: u64) -> anyhow::Result<Row> {
    let counts = Counts::of(&results.records);
    let about: Value = serde_json::from_str(&std::fs::read_to_string(session.dir.path().join("run.json"))?)?;
    let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
    let words = about["argv"].as_array().into_iter().flatten().skip(1).filter_map(Value::as_str);
    let failed = results.records.iter().filter(|record| record.outcome == Outcome::Failed).map(|record| {
        let kind = if record.exit == Exit::TestsFailed { "" } else { record.exit.word() };
        let id = if record.suite.is_empty() { record.name.clone() } else { record.id() };
        [&*id, "on", &*record.place, kind].join(" ").trim_end().to_owned()
    });
    Ok(Row {
        commit: text("commit").chars().take(12).collect::<String>() + if about["changed"] == true { "+" } else { "" },
        build_id: text("build_id"),
        command: words.fold("cargo xtask".to_owned(), |line, word| line + " " + &quoted(word.as_ref())),
        seed,
        runs: results.rounds,
        tests: counts.passed + counts.failed,
        failures: counts.failed,
        skipped: counts.skipped,
        took: session.dir.age(),
        failed: failed.collect(),
    })
}

/// One failure: what, where, why, the log around it, and how to see it again.
fn failure(record: &Record) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let kind = if record.exit == Exit::TestsFailed { String::new() } else { format!(" ({})", record.exit.word()) };
    let id = if record.suite.is_empty() { record.name.clone() } else { record.id() };
    let _ = writeln!(text, "\nFAIL {id}{kind}  [{}]", record.place);
    for line in &record.detail {
        let _ = writeln!(text, "  {line}");
    }
    if !record.log.trim().is_empty() {
        let _ = writeln!(text, "  log:");
        for line in record.log.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    let _ = writeln!(text, "  again: {}\n", record.rerun);
    text
}

fn as_json(records: &[Record], counts: Counts, exit: Exit, seed: u64) -> Value {
    let tests: Vec<Value> = records
        .iter()
        .map(|record| {
            json!({
                "suite": record.suite, "name": record.name, "place": record.place,
                "outcome": match record.outcome {
                    Outcome::Passed => "passed",
                    Outcome::Failed => "failed",
                    Outcome::Skipped => "skipped",
                },
                "kind": record.exit.word(),
                "took_s": record.took.as_secs_f64(),
                "detail": record.detail, "log": record.log, "again": record.rerun,
            })
        })
        .collect();
    json!({
        "v": 1, "verdict": exit.word(), "exit": exit.code(), "seed": seed,
        "passed": counts.passed, "failed": counts.failed, "skipped": counts.skipped, "tests": tests,
    })
}

pub(crate) fn junit(records: &[Record]) -> anyhow::Result<String> {
    let mut report = Report::new("grange");
    let mut suites: Vec<(String, TestSuite)> = Vec::new();
    for record in records {
        let name = format!("{}.{}", record.slug, if record.suite.is_empty() { "boot" } else { &record.suite });
        let mut status = match record.outcome {
            Outcome::Passed => TestCaseStatus::success(),
            Outcome::Skipped => TestCaseStatus::skipped(),
            Outcome::Failed if record.exit == Exit::TestsFailed => TestCaseStatus::non_success(NonSuccessKind::Failure),
            Outcome::Failed => TestCaseStatus::non_success(NonSuccessKind::Error),
        };
        if !record.detail.is_empty() {
            status.set_message(record.detail.join("\n"));
        }
        let mut case = TestCase::new(record.name.clone(), status);
        case.set_classname(name.clone()).set_time(record.took.max(Duration::from_micros(1)));
        if !record.log.is_empty() {
            case.set_system_out(format!("{}\nagain: {}\n", record.log, record.rerun));
        }
        match suites.iter_mut().find(|(suite, _)| *suite == name) {
            Some((_, suite)) => {
                suite.add_test_case(case);
            }
            None => {
                let mut suite = TestSuite::new(name.clone());
                suite.add_test_case(case);
                suites.push((name, suite));
            }
        }
    }
    report.add_test_suites(suites.into_iter().map(|(_, suite)| suite));
    Ok(report.to_string()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(outcome: Outcome, exit: Exit) -> Record {
        Record {
            place: "2 CPUs on 2 nodes (tcg,thread=multi)".into(),
            slug: "2c2n".into(),
            suite: "nmi".into(),
            name: "nested".into(),
            outcome,
            exit,
            took: Duration::from_millis(3),
            detail: vec!["expected 1, found <2>".into()],
            log: "PANIC cpu 1\n".into(),
            rerun: "cargo xtask test --kernel-only nmi.nested".into(),
        }
    }

    #[test]
    fn a_failure_says_what_where_why_and_how_to_see_it_again() {
        let text = failure(&record(Outcome::Failed, Exit::Panicked));
        for part in ["FAIL nmi.nested (panic)  [2 CPUs", "expected 1", "    PANIC cpu 1", "again: cargo xtask test"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn junit_tells_failures_from_crashes_and_escapes_text() {
        let records = [
            record(Outcome::Passed, Exit::Passed),
            record(Outcome::Failed, Exit::TestsFailed),
            record(Outcome::Failed, Exit::Hung),
            record(Outcome::Skipped, Exit::Passed),
        ];
        let xml = junit(&records).unwrap();
        assert!(
            xml.contains(r#"tests="4""#) && xml.contains(r#"failures="1""#) && xml.contains(r#"errors="1""#),
            "{xml}"
        );
        assert!(xml.contains("found &lt;2&gt;"), "{xml}");
    }

    #[test]
    fn the_last_line_counts_every_record() {
        let records = [record(Outcome::Passed, Exit::Passed), record(Outcome::Failed, Exit::Hung)];
        assert_eq!(Counts::of(&records).line(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(as_json(&records, Counts::of(&records), Exit::Hung, 7)["verdict"], "hang");
    }
}
