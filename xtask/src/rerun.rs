//! `cargo xtask rerun RUN`: the same command line again, and what is different now.
//!
//! What a run was stands in its folder: the command line and the seed in `run.json`, the results in `results.json` (of
//! `test` and of `torture`) or `verdict.json` (of `run`), and what both serial lines said. The command is started as a process of its own, so
//! that it is the very same; its folder is found by the process id that it leaves in its own `run.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::CommandFactory as _;
use serde_json::Value;

use crate::cli::{Cli, RerunArgs};
use crate::exit::{self, Exit, usage};
use crate::process::quoted;
use crate::replay::Trace;
use crate::rundir;
use crate::workspace::Workspace;

/// Runs the command.
///
/// # Errors
/// `Usage` for a run that is not there or cannot be run again; what the new run ends with is an [`Exit`].
pub fn rerun(workspace: &Workspace, args: &RerunArgs) -> anyhow::Result<Exit> {
    let old = Past::read(&rundir::find(workspace, &args.run)?)?;
    let mut words = old.words()?;
    if args.only_failed {
        words = only_failed(&old, words)?;
    }
    let line: String = words.iter().map(|word| format!(" {}", quoted(word.as_ref()))).collect();
    eprintln!("$ cargo xtask{line}");
    let this = std::env::current_exe().context("this program's path")?;
    let mut command = Command::new(&this);
    command.args(&words);
    if let Some(dir) = old.about["cwd"].as_str().map(Path::new).filter(|dir| dir.is_dir()) {
        command.current_dir(dir);
    }
    let mut child = command.spawn().with_context(|| this.display().to_string())?;
    let exit = exit::from_code(child.wait()?.code());
    let Some(new) = run_of(workspace, child.id()) else {
        // It ended before it had a folder, and has said why.
        return Ok(exit);
    };
    let new = Past::read(&new)?;
    println!("\nrerun of {}:", old.name());
    for line in old.warnings(&new).into_iter().chain(changes(&old.results, &new.results)) {
        println!("  {line}");
    }
    let told = if args.only_failed { None } else { old.logs(&new)? };
    let Some(logs) = told else { return Ok(exit) };
    for line in logs.as_ref().map_or_else(|lines| lines.clone(), |line| vec![line.clone()]) {
        println!("  {line}");
    }
    let same_build = old.about["build_id"].is_string() && old.about["build_id"] == new.about["build_id"];
    Ok(if logs.is_err() && same_build { exit.worst(Exit::TestsFailed) } else { exit })
}

/// The folder of the run that a process began.
fn run_of(workspace: &Workspace, pid: u32) -> Option<PathBuf> {
    let entries = std::fs::read_dir(workspace.runs()).ok()?.flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| json(&path.join("run.json")).is_ok_and(|about| about["pid"] == pid);
    // Process ids come again: the latest is meant. The names begin with the time.
    entries.filter(|path| !path.is_symlink()).filter(is_it).max()
}

fn json(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// A run as its folder tells of it.
struct Past {
    dir: PathBuf,
    /// `run.json`.
    about: Value,
    /// Place and test, or the command as a whole, and how it ended.
    results: BTreeMap<(String, String), String>,
}

impl Past {
    fn read(dir: &Path) -> anyhow::Result<Past> {
        let about = json(&dir.join("run.json"))?;
        let mut results = BTreeMap::new();
        if let Ok(verdict) = json(&dir.join("verdict.json")) {
            let word = verdict["verdict"].as_str().unwrap_or_default();
            results.insert((String::new(), "the command".to_owned()), word.to_owned());
        }
        if let Ok(all) = json(&dir.join("results.json")) {
            for test in all["tests"].as_array().into_iter().flatten() {
                let text = |key: &str| test[key].as_str().unwrap_or_default().to_owned();
                let word = match (&*text("outcome"), &*text("kind")) {
                    ("failed", "failed") => "failed".to_owned(),
                    ("failed", kind) => format!("failed ({kind})"),
                    (outcome, _) => outcome.to_owned(),
                };
                let name = if text("suite").is_empty() { text("name") } else { text("suite") + "." + &text("name") };
                // Of several rounds a failed one counts.
                let entry = results.entry((text("place"), name)).or_insert_with(|| word.clone());
                if word.starts_with("failed") {
                    *entry = word;
                }
            }
            for boot in all["outcomes"].as_array().into_iter().flatten() {
                let text = |key: &str| boot[key].as_str().unwrap_or_default().to_owned();
                let seed = boot["seed"].as_u64().unwrap_or_default();
                results.insert((text("machine"), format!("{} of seed {seed:#x}", text("scenario"))), text("verdict"));
            }
        }
        Ok(Past { dir: dir.to_path_buf(), about, results })
    }

    fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The words after the program's name, with the seed that the run had.
    fn words(&self) -> anyhow::Result<Vec<String>> {
        let command = self.about["command"].as_str().unwrap_or_default();
        if !["test", "run", "torture"].contains(&command) {
            let what = "`test`, `run` and `torture` can be run again";
            return Err(usage(format!("{} is a run of {command:?}: {what}", self.name())));
        }
        let argv = self.about["argv"].as_array().context("run.json names no command line")?;
        let mut words: Vec<String> = argv.iter().skip(1).filter_map(Value::as_str).map(str::to_owned).collect();
        let has_seed = words.iter().any(|word| word.starts_with("--seed"));
        if let Some(seed) = self.about["seed"].as_u64().filter(|_| command != "run" && !has_seed) {
            add(&mut words, &["--seed".to_owned(), format!("{seed:#x}")]);
        }
        Ok(words)
    }

    /// What is not as it was, apart from results.
    fn warnings(&self, new: &Past) -> Vec<String> {
        let mut out = Vec::new();
        for (key, what) in [("commit", "commit"), ("build_id", "kernel"), ("rustc", "compiler")] {
            let (old, new) = (&self.about[key], &new.about[key]);
            if let (Some(old), Some(new)) = (old.as_str(), new.as_str())
                && old != new
            {
                let short = |text: &str| text.chars().take(24).collect::<String>();
                out.push(format!("warning: another {what}: was {}, is {}", short(old), short(new)));
            }
        }
        if self.about["changed"] == true || new.about["changed"] == true {
            out.push("warning: the sources are or were not those of the commit".to_owned());
        }
        out
    }

    /// For deterministic runs: whether both left the same logs, and how much that was, or in what they differ.
    fn logs(&self, new: &Past) -> anyhow::Result<Option<Result<String, Vec<String>>>> {
        let argv = self.about["argv"].as_array();
        if !argv.is_some_and(|argv| argv.iter().any(|word| word == "--deterministic")) {
            return Ok(None);
        }
        let (old, new) = (self.boots()?, new.boots()?);
        if !old.keys().eq(new.keys()) {
            return Ok(Some(Err(vec![format!("logs differ: of {} boots then, of {} now", old.len(), new.len())])));
        }
        for (name, trace) in &old {
            if let Some(lines) = trace.difference(&new[name]) {
                let place = if name.is_empty() { String::new() } else { format!(" in {name}") };
                let lines = lines.into_iter().map(|line| format!("  {line}"));
                return Ok(Some(Err(std::iter::once(format!("logs differ{place}:")).chain(lines).collect())));
            }
        }
        Ok(old.values().next().map(|trace| Ok(format!("logs are equal, byte by byte: {trace}"))))
    }

    /// What each boot left, by its folder's name; that of `run` is the run's own.
    fn boots(&self) -> anyhow::Result<BTreeMap<String, Trace>> {
        let own = (String::new(), self.dir.clone());
        let entries = std::fs::read_dir(&self.dir)?.flatten();
        let inner = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
        let boots = std::iter::once(own).chain(inner).filter(|(_, path)| path.join("com2.log").is_file());
        boots.map(|(name, path)| Ok((name, Trace::read(&path)?))).collect()
    }

    /// Tests that failed: in the kernel, and on the host.
    fn failed(&self) -> (Vec<String>, Vec<String>) {
        let failed = self.results.iter().filter(|(_, word)| word.starts_with("failed"));
        let (mut kernel, mut host) = (Vec::new(), Vec::new());
        for ((place, name), _) in failed {
            match name.split_once('.') {
                // The comparison of two rounds is no test that could be run.
                Some(("deterministic", _)) => {}
                Some((_, test)) if place == "host" => host.push(test.to_owned()),
                // A whole boot has no dot in its name.
                Some(_) if !name.contains(' ') => kernel.push(name.clone()),
                _ => {}
            }
        }
        for list in [&mut kernel, &mut host] {
            list.sort_unstable();
            list.dedup();
        }
        (kernel, host)
    }
}

/// Adds words before those that go to QEMU as they are.
fn add(words: &mut Vec<String>, more: &[String]) {
    let at = words.iter().position(|word| word == "--").unwrap_or(words.len());
    words.splice(at..at, more.iter().cloned());
}

/// The same words with the tests that failed instead of the filters.
fn only_failed(old: &Past, mut words: Vec<String>) -> anyhow::Result<Vec<String>> {
    if old.about["command"] != "test" {
        return Err(usage(format!("--only-failed: {} is not a run of tests", old.name())));
    }
    let (kernel, host) = old.failed();
    if kernel.is_empty() && host.is_empty() {
        return Err(usage(format!("--only-failed: no test failed in {}", old.name())));
    }
    for at in positionals(&words).into_iter().skip(1).rev() {
        words.remove(at);
    }
    let side = if host.is_empty() { "--kernel-only" } else { "--host-only" };
    if (kernel.is_empty() || host.is_empty()) && !words.iter().any(|word| word == side) {
        add(&mut words, &[side.to_owned()]);
    }
    if words.iter().any(|word| word == "--deterministic") {
        eprintln!("warning: a test alone has another schedule than among others; without --only-failed it is the same");
    }
    add(&mut words, &[kernel, host].concat());
    Ok(words)
}

/// Where in a command line the words are that are neither options nor their values: the command first, then its filters.
fn positionals(words: &[String]) -> Vec<usize> {
    let cli = Cli::command();
    let known = |name: &str| {
        let all = std::iter::once(&cli).chain(cli.get_subcommands()).flat_map(clap::Command::get_arguments);
        let is_it = |arg: &&clap::Arg| match name.strip_prefix("--") {
            Some(long) => arg.get_long() == Some(long),
            None => arg.get_short().is_some_and(|short| name == format!("-{short}")),
        };
        all.into_iter().find(is_it).is_some_and(|arg| arg.get_action().takes_values())
    };
    let (mut out, mut is_value) = (Vec::new(), false);
    for (at, word) in words.iter().enumerate().take_while(|(_, word)| *word != "--") {
        let is_option = !is_value && word.starts_with('-') && word.len() > 1;
        if !is_value && !is_option {
            out.push(at);
        }
        is_value = is_option && known(word);
    }
    out
}

/// What became of each test, one line a test that is other, and how many are as they were.
fn changes(old: &BTreeMap<(String, String), String>, new: &BTreeMap<(String, String), String>) -> Vec<String> {
    let mut out = Vec::new();
    let mut same = 0;
    for (key @ (place, name), now) in new {
        let place = if place.is_empty() { String::new() } else { format!("  [{place}]") };
        match old.get(key) {
            Some(before) if before == now => same += 1,
            Some(before) => out.push(format!("was {before}, now {now}: {name}{place}")),
            None => out.push(format!("was not there, now {now}: {name}{place}")),
        }
    }
    let gone = old.keys().filter(|key| !new.contains_key(key)).count();
    let count = |count: usize, what: &str| (count > 0).then(|| format!("{count} {what}"));
    let parts = [count(same, "as before"), count(out.len(), "changed"), count(gone, "not run this time")];
    out.push(parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn results(list: &[(&str, &str, &str)]) -> BTreeMap<(String, String), String> {
        list.iter().map(|(place, name, word)| (((*place).into(), (*name).into()), (*word).into())).collect()
    }

    fn past(argv: &str, list: &[(&str, &str, &str)]) -> Past {
        let about = serde_json::json!({ "command": "test", "seed": 31, "argv": words(argv) });
        Past { dir: "/runs/x-test-54cb".into(), about, results: results(list) }
    }

    #[test]
    fn filters_are_told_from_options_and_their_values() {
        let line = words("--verbose test nmi --cpus 4 --append a=1 slab.* --deterministic --seed=7 rcu -- -d int");
        assert_eq!(positionals(&line), [1, 2, 7, 10]);
        assert_eq!(positionals(&words("--core target test -v x")), [2, 4]);
    }

    #[test]
    fn the_seed_that_was_drawn_is_given_again_before_what_goes_to_qemu() {
        let again = past("xtask test nmi -- -d int", &[]).words().unwrap();
        assert_eq!(again.join(" "), "test nmi --seed 0x1f -- -d int");
        assert_eq!(past("xtask test --seed=5", &[]).words().unwrap().join(" "), "test --seed=5");
        assert_eq!(past("xtask test --seeds 1..5", &[]).words().unwrap().join(" "), "test --seeds 1..5");
    }

    #[test]
    fn only_failed_puts_the_tests_that_failed_in_the_place_of_the_filters() {
        let list = [
            ("4c", "nmi.nested", "failed (hang)"),
            ("2c", "nmi.nested", "failed"),
            ("4c", "nmi.other", "passed"),
            ("4c", "boot of 4 CPUs (tcg,thread=multi)", "failed"),
            ("4c", "deterministic.round_2_repeats_round_1", "failed"),
        ];
        let argv = "xtask test nmi slab --cpus 4";
        let kernel = past(argv, &list);
        let chosen = only_failed(&kernel, kernel.words().unwrap()).unwrap();
        assert_eq!(chosen.join(" "), "test --cpus 4 --seed 0x1f --kernel-only nmi.nested");
        let host = past("xtask test", &[("host", "grange-sync.rng::tests::a", "failed")]);
        let chosen = only_failed(&host, host.words().unwrap()).unwrap();
        assert_eq!(chosen.join(" "), "test --seed 0x1f --host-only rng::tests::a");
        let none = past(argv, &list[2..]);
        let error = only_failed(&none, none.words().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no test failed in x-test-54cb"), "{error}");
    }

    #[test]
    fn changed_results_get_a_line_each_and_the_rest_is_counted() {
        let old = results(&[
            ("4c", "a.x", "passed"),
            ("4c", "a.y", "failed"),
            ("4c", "a.z", "passed"),
            ("2c", "b.b", "passed"),
        ]);
        let new = results(&[
            ("4c", "a.x", "passed"),
            ("4c", "a.y", "passed"),
            ("4c", "a.z", "failed (hang)"),
            ("4c", "a.new", "skipped"),
        ]);
        assert_eq!(
            changes(&old, &new),
            [
                "was not there, now skipped: a.new  [4c]",
                "was failed, now passed: a.y  [4c]",
                "was passed, now failed (hang): a.z  [4c]",
                "1 as before, 3 changed, 1 not run this time",
            ]
        );
    }

    #[test]
    fn another_commit_or_kernel_is_warned_of() {
        let mut old = past("xtask test", &[]);
        let mut new = past("xtask test", &[]);
        old.about["commit"] = "aaaa".into();
        new.about["commit"] = "aaaa".into();
        assert_eq!(old.warnings(&new), [""; 0]);
        new.about["commit"] = "bbbb".into();
        old.about["build_id"] = "11".into();
        new.about["build_id"] = "22".into();
        assert_eq!(
            old.warnings(&new),
            ["warning: another commit: was aaaa, is bbbb", "warning: another kernel: was 11, is 22"]
        );
    }
}
