//! Unit tests on the host: `cargo nextest run` where it is installed, else `cargo test`; read line by line.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cli::TestArgs;
use crate::exit::{Exit, stop};
use crate::ktap::Outcome;
use crate::process::{Owned, POLL, interrupted, output_of, shell_line};
use crate::toolchain::find_program;
use crate::workspace::Workspace;

use super::{Record, Session};

/// Host tests that print nothing for so long hang.
const SILENCE_SECONDS: f64 = 300.0;

/// Runs the host tests and returns their records; `worst` becomes worse when something other than a test failed.
///
/// # Errors
/// `Build` when they do not compile, `Host` when cargo cannot be started.
pub fn run(session: &Session<'_>, worst: &mut Exit) -> anyhow::Result<Vec<Record>> {
    session.progress.place("host", 0);
    let words = words(session.args);
    let mut runs = Vec::new();
    let mut cargo = session.workspace.cargo();
    if find_program(Path::new("cargo-nextest")).is_some() {
        cargo.args([
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--color=never",
            "--no-tests=pass",
            "--status-level=all",
        ]);
        cargo.args(["--final-status-level=none", "--show-progress=none", "--no-input-handler"]).args(&words);
        runs.push(cargo);
        // Samples in the documentation are tests too, and nextest does not run them.
        if words.is_empty() {
            let mut samples = session.workspace.cargo();
            samples.args(["test", "--workspace", "--doc", "--no-fail-fast", "--color=never"]);
            runs.push(samples);
        }
    } else {
        cargo.args(["test", "--workspace", "--no-fail-fast", "--color=never", "--"]).args(&words);
        runs.push(cargo);
    }
    let mut records = Vec::new();
    for (number, command) in runs.iter_mut().enumerate() {
        let log = session.dir.path().join(if number == 0 { "host.log" } else { "host-doc.log" });
        let before = records.len();
        let silence = Duration::from_secs_f64(SILENCE_SECONDS * session.args.timeout_scale);
        let succeeded = watch(command, &log, silence, &mut |record| {
            // nextest also names each test that the filters leave out.
            if record.outcome == Outcome::Skipped && !words.is_empty() {
                return;
            }
            session.progress.test(&record.id(), record.outcome);
            records.push(record);
        })?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        add_logs(&mut records[before..], &text);
        let failed = records[before..].iter().any(|record| record.outcome == Outcome::Failed);
        if !succeeded && !failed && !interrupted() {
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            if text.contains("could not compile") {
                return Err(stop(Exit::Build, format!("the host tests did not build; `{}`", shell_line(command))));
            }
            // A test program that dies takes its verdicts with it.
            *worst = worst.worst(Exit::Incomplete);
            eprintln!("`{}` failed, and no test says why; see {}", shell_line(command), log.display());
        }
    }
    Ok(records)
}

/// The filters as the host's test programs take them.
fn words(args: &TestArgs) -> Vec<String> {
    args.filters.iter().map(|word| word.trim_matches(['*', '.']).replace('.', "::")).collect()
}

/// Whether no host test is meant by the filters. Builds the tests to know; when that fails the run is to tell of it.
#[must_use]
pub fn finds_none(workspace: &Workspace, args: &TestArgs) -> bool {
    eprintln!("no in-kernel test matches; looking among the host's");
    let mut cargo = workspace.cargo();
    if find_program(Path::new("cargo-nextest")).is_some() {
        cargo.args(["nextest", "list", "--workspace", "--color=never"]).args(words(args));
        output_of(&mut cargo).is_some_and(|list| list.trim().is_empty())
    } else {
        cargo.args(["test", "--workspace", "--quiet", "--color=never", "--", "--list"]).args(words(args));
        output_of(&mut cargo).is_some_and(|list| !list.lines().any(|line| line.ends_with(": test")))
    }
}

/// Runs one cargo, whose output goes to `log`, and hands each test's result on; returns whether it succeeded.
///
/// # Errors
/// `Hung` when it prints nothing for the time `silence`, `Host` when it cannot be started.
pub fn watch(
    command: &mut Command,
    log: &Path,
    silence: Duration,
    on_record: &mut dyn FnMut(Record),
) -> anyhow::Result<bool> {
    let out = File::create(log).with_context(|| log.display().to_string())?;
    command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
    // A group of their own, so that tests can be ended along with cargo.
    command.process_group(0);
    let mut child = Owned::start(command)?;
    let mut tail = File::open(log)?;
    let (mut parser, mut partial, mut last) = (HostParser::default(), String::new(), Instant::now());
    loop {
        let status = child.0.try_wait()?;
        let at = tail.stream_position()?;
        let mut bytes = Vec::new();
        tail.read_to_end(&mut bytes)?;
        if tail.stream_position()? > at {
            last = Instant::now();
        }
        partial.push_str(&String::from_utf8_lossy(&bytes));
        while let Some(end) = partial.find('\n') {
            let line: String = partial.drain(..=end).collect();
            if let Some(record) = parser.line(line.trim_end()) {
                on_record(record);
            }
        }
        if let Some(status) = status {
            return Ok(status.success());
        }
        let hung = last.elapsed() > silence;
        if hung || interrupted() {
            let group = format!("-{}", child.0.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            child.kill();
            if hung {
                return Err(stop(
                    Exit::Hung,
                    format!("`{}`: nothing for {} s; see {}", shell_line(command), silence.as_secs(), log.display()),
                ));
            }
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
}

/// Knows the lines of nextest and of cargo test.
#[derive(Debug, Default)]
struct HostParser {
    /// The crate whose tests cargo test runs now.
    krate: String,
}

impl HostParser {
    fn line(&mut self, line: &str) -> Option<Record> {
        let text = line.trim_start();
        if let Some(program) = text.strip_prefix("Running ").and_then(|rest| rest.split_once('(')).map(|(_, path)| path)
        {
            self.krate = crate_of(program.trim_end_matches(')'));
            return None;
        }
        if let Some(krate) = text.strip_prefix("Doc-tests ") {
            krate.clone_into(&mut self.krate);
            return None;
        }
        self.cargo_test(text).or_else(|| nextest(text))
    }

    /// `test path::name ... ok`
    fn cargo_test(&self, text: &str) -> Option<Record> {
        let (name, word) = text.strip_prefix("test ")?.rsplit_once(" ... ")?;
        let outcome = match word.split([' ', ',']).next()? {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            "ignored" => Outcome::Skipped,
            _ => return None,
        };
        Some(record(&self.krate, name.trim_end_matches(" - should panic"), outcome, Duration::ZERO))
    }
}

/// `PASS [   0.006s] (1/67) xtask cli::tests::name`
fn nextest(text: &str) -> Option<Record> {
    let (word, rest) = text.split_once(" [")?;
    let outcome = match word.trim() {
        "PASS" | "LEAK" => Outcome::Passed,
        "FAIL" | "TIMEOUT" | "ABORT" | "SIGSEGV" | "SIGABRT" | "SIGBUS" | "SIGILL" | "SIGKILL" | "SIGTRAP" => {
            Outcome::Failed
        }
        "SKIP" => Outcome::Skipped,
        _ => return None,
    };
    let (time, rest) = rest.split_once(']')?;
    let rest = rest.trim_start();
    let rest = if rest.starts_with('(') { rest.split_once(") ")?.1 } else { rest };
    let (krate, name) = rest.trim().split_once(' ')?;
    let took = time.trim().strip_suffix('s').and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
    Some(record(krate, name, outcome, Duration::try_from_secs_f64(took).unwrap_or_default()))
}

fn record(krate: &str, name: &str, outcome: Outcome, took: Duration) -> Record {
    Record {
        place: "host".to_owned(),
        slug: "host".to_owned(),
        suite: krate.to_owned(),
        name: name.to_owned(),
        outcome,
        exit: if outcome == Outcome::Failed { Exit::TestsFailed } else { Exit::Passed },
        took,
        detail: Vec::new(),
        log: String::new(),
        rerun: format!("cargo xtask test --host-only {name}"),
    }
}

/// `target/debug/deps/grange_arch-0123456789abcdef` to `grange_arch`.
fn crate_of(program: &str) -> String {
    let file = program.rsplit('/').next().unwrap_or(program);
    file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned()
}

/// Gives each failure the lines that its test printed: between its own heading and the next.
pub fn add_logs(records: &mut [Record], log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    for record in records.iter_mut().filter(|record| record.outcome == Outcome::Failed) {
        let heads = [format!("---- {} stdout ----", record.name), format!("{} {}", record.suite, record.name)];
        let is_head =
            |line: &str| line == heads[0] || (line.ends_with(&heads[1]) && nextest(line.trim_start()).is_some());
        let Some(at) = lines.iter().position(|line| is_head(line)) else {
            continue;
        };
        let ends =
            |line: &str| line.starts_with("---- ") || line == "failures:" || nextest(line.trim_start()).is_some();
        let block: Vec<&str> = lines[at + 1..].iter().take_while(|line| !ends(line)).take(60).copied().collect();
        record.log = block.join("\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &str) -> Vec<Record> {
        let mut parser = HostParser::default();
        let mut records: Vec<Record> = log.lines().filter_map(|line| parser.line(line)).collect();
        add_logs(&mut records, log);
        records
    }

    const CARGO: &str = "
     Running unittests src/lib.rs (target/debug/deps/grange_sync-0123456789abcdef)
running 3 tests
test llist::tests::order ... ok
test lock::tests::rank ... FAILED
test log::tests::slow ... ignored, takes a minute
test kept - should panic ... ok

failures:

---- lock::tests::rank stdout ----
thread panicked at lock.rs:4
left: 1

failures:
    lock::tests::rank
test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out
   Doc-tests grange_sync
test kernel/sync/src/cx.rs - cx (line 3) ... ok
";

    const NEXTEST: &str = "
    Starting 3 tests across 2 binaries
        PASS [   0.006s] (1/3) grange-sync llist::tests::order
        FAIL [   1.011s] (2/3) grange-sync lock::tests::rank
  stdout ───
    thread panicked at lock.rs:4
        SKIP [         ] (3/3) grange-mm buddy::tests::slow
     Summary [   1.2s] 2 tests run: 1 passed, 1 failed, 1 skipped
        FAIL [   1.011s] (2/3) grange-sync lock::tests::rank
";

    #[test]
    fn cargo_tests_lines_are_counted_under_their_crate() {
        let records = read(CARGO);
        let seen: Vec<_> = records.iter().map(|record| (record.id(), record.outcome)).collect();
        assert_eq!(seen[0], ("grange_sync.llist::tests::order".into(), Outcome::Passed));
        assert_eq!(seen[1], ("grange_sync.lock::tests::rank".into(), Outcome::Failed));
        assert_eq!(seen[2].1, Outcome::Skipped);
        assert_eq!(seen.len(), 5);
        assert!(records[1].log.contains("lock.rs:4"), "{}", records[1].log);
    }

    #[test]
    fn nextests_lines_carry_their_times_and_output() {
        let records = read(NEXTEST);
        assert_eq!(records[0].took, Duration::from_millis(6));
        assert_eq!(records[1].outcome, Outcome::Failed);
        assert!(records[1].log.contains("lock.rs:4"));
        assert_eq!(records[2].outcome, Outcome::Skipped);
    }
}
