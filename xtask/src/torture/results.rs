//! What came of scenarios: for people, for machines, and for `torture merge`, which puts shards together again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Exit, from_code, usage};
use crate::ktap;
use crate::test::Record;

use super::shard::Shard;

/// Version of the format below.
const VERSION: u32 = 1;
/// The part that stands for the time in which all ran.
const TOGETHER: &str = "run";
/// Counts that say most about how much a kind did: readers' sections, instructions that were stepped over, allocations that failed.
const TELLING: [&str; 3] = ["sections", "boundaries", "points"];
/// The file of a run's folder that holds it.
pub const FILE: &str = "results.json";

/// All of one `cargo xtask torture`, or of several merged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Version of the format.
    pub v: u32,
    /// Each scenario of the whole list, in its order, also those of other shards.
    pub list: Vec<String>,
    /// Which of them were due here.
    pub shard: Shard,
    /// The commit, with a `+` if files of it were changed.
    pub commit: String,
    /// The seed of all.
    pub seed: u64,
    /// One a scenario that ran.
    pub outcomes: Vec<Outcome>,
    /// Host time, over all shards.
    pub took_s: f64,
    /// How it ended, as a word and as the status.
    pub verdict: String,
    /// The status.
    pub exit: u8,
}

/// What came of one scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The scenario.
    pub scenario: String,
    /// Its machine, in words.
    pub machine: String,
    /// The kernel's profile.
    pub profile: String,
    /// The kernel.
    pub build_id: String,
    /// The seed.
    pub seed: u64,
    /// How long it was to torture, in the guest's seconds.
    pub asked_s: f64,
    /// Host time from QEMU's start to its end.
    pub took_s: f64,
    /// How it ended, as a word.
    pub verdict: String,
    /// The same as a status.
    pub exit: u8,
    /// What each kind and disturber came to.
    pub parts: Vec<Part>,
    /// What else speaks against a pass.
    pub complaints: Vec<String>,
    /// The last statistics of each part.
    pub stats: Vec<Stats>,
    /// Lines of the console that look bad.
    pub bad: Vec<String>,
    /// The folder with its log.
    pub folder: PathBuf,
    /// The line that runs it again.
    pub again: String,
}

/// What a kind or a disturber came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// `passed`, `failed` or `skipped`.
    pub outcome: String,
    /// What it said.
    pub detail: Vec<String>,
}

/// A part's last statistics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Its name.
    pub part: String,
    /// It is a disturber.
    pub disturbs: bool,
    /// When, in milliseconds after the begin.
    pub ms: u64,
    /// Its counts.
    pub counts: Value,
}

impl Results {
    /// With the verdict that the outcomes and `exit` give.
    #[must_use]
    pub fn new(list: Vec<String>, shard: Shard, commit: String, seed: u64, outcomes: Vec<Outcome>) -> Results {
        let mut results =
            Results { v: VERSION, list, shard, commit, seed, outcomes, took_s: 0.0, verdict: String::new(), exit: 0 };
        results.judge(Exit::Passed);
        results
    }

    /// Judges: the worst of all outcomes and of `exit`; incomplete if a scenario that was due has none.
    pub fn judge(&mut self, exit: Exit) -> Exit {
        let mut exit = self.outcomes.iter().fold(exit, |worst, outcome| worst.worst(outcome.end()));
        if !self.missing().is_empty() || self.outcomes.is_empty() {
            exit = exit.worst(Exit::Incomplete);
        }
        self.verdict = exit.word().to_owned();
        self.exit = exit.code();
        exit
    }

    /// Scenarios that were due and have no outcome.
    #[must_use]
    pub fn missing(&self) -> Vec<&str> {
        let mut have: Vec<&str> = self.outcomes.iter().map(|outcome| outcome.scenario.as_str()).collect();
        let mut missing = Vec::new();
        for name in self.shard.of(&self.list) {
            match have.iter().position(|had| had == name) {
                Some(at) => {
                    have.swap_remove(at);
                }
                None => missing.push(name.as_str()),
            }
        }
        missing
    }

    /// Reads a run's folder, or a file.
    ///
    /// # Errors
    /// `Usage` for something else.
    pub fn read(path: &Path) -> anyhow::Result<Results> {
        let file = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
        let text = std::fs::read_to_string(&file).map_err(|error| usage(format!("{}: {error}", file.display())))?;
        let bad = |what: String| usage(format!("{}: not the results of a torture: {what}", file.display()));
        let results: Results = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if results.v != VERSION {
            return Err(bad(format!("version {}, this tool reads {VERSION}", results.v)));
        }
        Ok(results)
    }

    /// As JSON.
    ///
    /// # Errors
    /// None that happens.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self).context("results as JSON")? + "\n")
    }

    /// As records of tests, for JUnit: a suite a scenario, a test a part.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.outcomes.iter().flat_map(Outcome::records).collect()
    }

    /// The last line.
    #[must_use]
    pub fn counts(&self) -> String {
        let failed = self.outcomes.iter().filter(|outcome| outcome.end() != Exit::Passed).count();
        let missing = self.missing().len();
        let missing = if missing > 0 { format!(", {missing} missing") } else { String::new() };
        format!("{} scenarios passed, {failed} failed{missing}", self.outcomes.len() - failed)
    }
}

impl Outcome {
    /// How it ended.
    #[must_use]
    pub fn end(&self) -> Exit {
        from_code(Some(self.exit.into()))
    }

    /// A count of the time in which all parts ran together.
    #[must_use]
    pub fn together(&self, key: &str) -> Option<u64> {
        self.stats.iter().find(|stats| stats.part == TOGETHER).and_then(|stats| stats.counts[key].as_u64())
    }

    /// How long the kernel was tortured, in its own seconds.
    #[must_use]
    pub fn guest_s(&self) -> f64 {
        self.stats.iter().find(|stats| stats.part == TOGETHER).map_or(0.0, |stats| stats.ms as f64 / 1e3)
    }

    /// One line about it, as rcutorture's: how many grace periods, then what each kind did, then the verdict if it is not a pass.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("{} ------- ", self.scenario);
        let (gps, seconds) = (self.together("GPs").unwrap_or(0), self.guest_s());
        let rate = if seconds > 0.0 { gps as f64 / seconds } else { 0.0 };
        line.push_str(&format!("{gps} GPs ({rate:.1}/s) {seconds:.0} s"));
        for stats in self.stats.iter().filter(|stats| stats.part != TOGETHER && !stats.disturbs) {
            // Two counts that are not 0 say how much was done.
            let counts = stats.counts.as_object().into_iter().flatten();
            let mut counts: Vec<_> = counts.filter(|(_, value)| value.as_u64() > Some(0)).collect();
            counts.sort_by_key(|(name, _)| !TELLING.contains(&name.as_str()));
            let counts: Vec<String> = counts.iter().take(2).map(|(name, value)| format!("{name}: {value}")).collect();
            line.push_str(&format!(" [{} {}]", stats.part, counts.join(" ")));
        }
        if self.end() != Exit::Passed {
            line.push_str(&format!(" !!! {}", self.verdict));
        }
        line
    }

    /// What went wrong, for people; empty for a pass.
    #[must_use]
    pub fn failure(&self) -> String {
        if self.end() == Exit::Passed {
            return String::new();
        }
        let mut text = format!("FAIL {} ({})  [{}, {}]\n", self.scenario, self.verdict, self.machine, self.profile);
        for part in self.parts.iter().filter(|part| part.outcome == "failed") {
            text.push_str(&format!("  {}: {}\n", part.name, part.detail.join("; ")));
        }
        for line in self.complaints.iter().chain(&self.bad) {
            text.push_str(&format!("  {line}\n"));
        }
        text.push_str(&format!("  see {}: failure.txt, console.sym.log\n", self.folder.display()));
        text.push_str(&format!("  again: {}\n", self.again));
        text
    }

    fn records(&self) -> Vec<Record> {
        let record = |name: &str, outcome, exit, detail: Vec<String>| Record {
            place: self.machine.clone(),
            slug: "torture".to_owned(),
            suite: self.scenario.clone(),
            name: name.to_owned(),
            outcome,
            exit,
            took: Duration::from_secs_f64(self.took_s),
            detail,
            log: self.failure(),
            rerun: self.again.clone(),
        };
        let parts = self.parts.iter().map(|part| match part.outcome.as_str() {
            "passed" => record(&part.name, ktap::Outcome::Passed, Exit::Passed, Vec::new()),
            "skipped" => record(&part.name, ktap::Outcome::Skipped, Exit::Passed, part.detail.clone()),
            _ => record(&part.name, ktap::Outcome::Failed, Exit::TestsFailed, part.detail.clone()),
        });
        let mut records: Vec<Record> = parts.collect();
        let none_failed = records.iter().all(|record| record.exit == Exit::Passed);
        // A boot that died, or whose log looks bad, though each part that spoke passed.
        if self.end() != Exit::Passed && none_failed {
            let detail = self.complaints.iter().chain(&self.bad).cloned().collect();
            records.push(record("boot", ktap::Outcome::Failed, self.end(), detail));
        }
        records
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn outcome(scenario: &str, exit: Exit) -> Outcome {
        let stats = |part: &str, counts| Stats { part: part.to_owned(), disturbs: part == "nmi", ms: 10_000, counts };
        Outcome {
            scenario: scenario.to_owned(),
            build_id: "01ff".to_owned(),
            verdict: exit.word().to_owned(),
            exit: exit.code(),
            asked_s: 10.0,
            took_s: 12.0,
            parts: vec![Part { name: "rcu".to_owned(), outcome: "passed".to_owned(), detail: Vec::new() }],
            stats: vec![
                stats("rcu", json!({ "rtc": "0x7", "ver": 3, "tfle": 0, "rta": 3, "sections": 9 })),
                stats("nmi", json!({ "sent": 9 })),
                stats("run", json!({ "GPs": 568 })),
            ],
            ..Outcome::default()
        }
    }

    #[test]
    fn a_scenario_is_one_line_with_its_grace_periods_first() {
        let line = outcome("TREE01", Exit::Passed).line();
        assert_eq!(line, "TREE01 ------- 568 GPs (56.8/s) 10 s [rcu sections: 9 ver: 3]");
        assert!(outcome("TREE01", Exit::Hung).line().ends_with(" !!! hang"));
    }

    #[test]
    fn a_boot_that_died_is_an_error_in_junit_though_its_parts_passed() {
        let dead = outcome("TREE01", Exit::Panicked).records();
        assert_eq!(dead.iter().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["rcu", "boot"]);
        assert_eq!(outcome("TREE01", Exit::Passed).records().len(), 1);
    }

    #[test]
    fn a_scenario_without_outcome_makes_the_whole_incomplete() {
        let list = vec!["A".to_owned(), "B".to_owned(), "B".to_owned()];
        let mut results = Results::new(list, Shard::ALL, String::new(), 1, vec![outcome("B", Exit::Passed)]);
        assert_eq!((results.judge(Exit::Passed), results.missing()), (Exit::Incomplete, vec!["A", "B"]));
        results.outcomes.extend([outcome("A", Exit::Passed), outcome("B", Exit::TestsFailed)]);
        assert_eq!(results.judge(Exit::Passed), Exit::TestsFailed);
        assert_eq!(results.counts(), "2 scenarios passed, 1 failed");
    }
}
