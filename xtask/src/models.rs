//! `cargo xtask models`: loom's models, and unit tests under Miri.
//!
//! Both build the same sources in another way, so each has a target directory of its own below the workspace's. What
//! Miri cannot run (link sections, signals) is left out by `cfg(miri)` where it stands.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cli::{ModelKind, ModelsArgs};
use crate::exit::{Exit, stop, usage};
use crate::ktap::Outcome;
use crate::process::{interrupted, output_of, quoted, shell_line};
use crate::test::host::{add_logs, watch};
use crate::toolchain::{Step, find_program, install};
use crate::workspace::Workspace;

/// A checker that prints nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(300);

/// How a model is compiled: fast code matters less than being there soon.
const LOOM_PROFILE: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
];

/// The crates whose tests run under Miri. Those of mm's tests that need no machine take minutes, and its descriptors
/// live for ever, which Miri calls a leak.
const MIRI_CRATES: [&str; 2] = ["grange-sync", "grange-arch"];

/// Some tables are found by their address, so pointers are made from integers.
const MIRI_FLAGS: &str = "-Zmiri-permissive-provenance";

/// How many of the tests that were due passed, failed, and did not run.
#[derive(Debug, Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Runs the command.
///
/// # Errors
/// `Build` when something does not compile, `Hung` when a checker makes no progress.
pub fn models(workspace: &Workspace, args: &ModelsArgs) -> anyhow::Result<Exit> {
    let wanted = |kind| args.kind.is_none_or(|only| only == kind);
    let mut counts = Counts::default();
    let mut worst = Exit::Passed;
    if wanted(ModelKind::Loom) {
        let (mut cargo, dir) = loom(workspace);
        worst = worst.worst(counts.run(&mut cargo, &dir, &args.filters)?);
    }
    if wanted(ModelKind::Miri) && !interrupted() {
        match nightly(workspace) {
            Ok(()) => {
                let (mut cargo, dir) = miri(workspace);
                worst = worst.worst(counts.run(&mut cargo, &dir, &args.filters)?);
            }
            Err(why) => {
                println!("SKIP miri: {why}");
                counts.skipped += 1;
            }
        }
    }
    let Counts { passed, failed, skipped } = counts;
    if passed + failed + skipped == 0 && worst == Exit::Passed && !interrupted() {
        return Err(usage(format!("no model or test has {} in its path", args.filters.join(" or "))));
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(worst)
}

/// The command that runs loom's models, and its target directory.
fn loom(workspace: &Workspace) -> (Command, PathBuf) {
    let dir = workspace.target.join("models/loom");
    let mut cargo = workspace.cargo();
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    cargo.env("RUSTFLAGS", format!("{flags} --cfg loom").trim_start()).envs(LOOM_PROFILE).env("CARGO_TARGET_DIR", &dir);
    // A program built for loom has no other tests than models.
    cargo.args(["test", "--release", "--lib", "--no-fail-fast", "--color=never"]);
    cargo.args(["-p", "grange-sync", "-p", "grange-sched", "-p", "grange-rcu"]);
    (cargo, dir)
}

/// The command that runs tests under Miri, and its target directory.
fn miri(workspace: &Workspace) -> (Command, PathBuf) {
    let dir = workspace.target.join("models/miri");
    let mut rustup = Command::new("rustup");
    rustup.current_dir(&workspace.root).env("CARGO_TARGET_DIR", &dir);
    // What the cargo that started this tool said about itself is not meant for another toolchain's.
    rustup.env_remove("CARGO").env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_PKG_NAME");
    let flags = std::env::var("MIRIFLAGS").unwrap_or_default();
    rustup.env("MIRIFLAGS", format!("{flags} {MIRI_FLAGS}").trim_start());
    rustup.args(["run", "nightly", "cargo", "miri", "test", "--lib", "--no-fail-fast", "--color=never"]);
    rustup.args(MIRI_CRATES.iter().flat_map(|name| ["-p", name]));
    (rustup, dir)
}

/// Makes sure of a nightly toolchain with what Miri needs; if there is none, what is missing and what gets it.
fn nightly(workspace: &Workspace) -> Result<(), String> {
    const TOOLCHAIN: &str = "rustup toolchain install nightly --profile minimal --component miri,rust-src";
    if find_program(Path::new("rustup")).is_none() {
        return Err(format!("no rustup, which would have a nightly toolchain. With it, type: {TOOLCHAIN}"));
    }
    let Some(missing) = missing_components() else {
        return Err(format!("no nightly toolchain. Type: {TOOLCHAIN}"));
    };
    if missing.is_empty() {
        return Ok(());
    }
    let step = Step::user(&format!("rustup component add --toolchain nightly {}", missing.join(" ")));
    install(workspace, "Miri", &[step]).map_err(|error| error.to_string())
}

/// Components that the nightly toolchain lacks; `None` without one.
fn missing_components() -> Option<Vec<&'static str>> {
    let installed =
        output_of(Command::new("rustup").args(["component", "list", "--toolchain", "nightly", "--installed"]))?;
    Some(lacking(&installed))
}

/// Which components a list of installed ones lacks: `miri-x86_64-unknown-linux-gnu`, `rust-src`.
fn lacking(installed: &str) -> Vec<&'static str> {
    let there = |name: &str| installed.lines().any(|line| line.starts_with(name));
    ["miri", "rust-src"].into_iter().filter(|name| !there(name)).collect()
}

impl Counts {
    /// Compiles, runs and counts.
    fn run(&mut self, cargo: &mut Command, dir: &Path, filters: &[String]) -> anyhow::Result<Exit> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let started = Instant::now();
        compile(cargo)?;
        let compiled = started.elapsed();
        if interrupted() {
            return Ok(Exit::Interrupted);
        }
        if !filters.is_empty() {
            cargo.arg("--").args(filters);
        }
        eprintln!("$ {}", typed(cargo));
        let log = dir.join("tests.log");
        let mut records = Vec::new();
        let succeeded = watch(cargo, &log, SILENCE, &mut |record| {
            let word = match record.outcome {
                Outcome::Passed => "ok  ",
                Outcome::Failed => "FAIL",
                Outcome::Skipped => "SKIP",
            };
            println!("{word} {}", record.id());
            records.push(record);
        })?;
        let count = |outcome| records.iter().filter(|record| record.outcome == outcome).count();
        let failed = count(Outcome::Failed);
        self.passed += count(Outcome::Passed);
        self.failed += failed;
        self.skipped += count(Outcome::Skipped);
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        add_logs(&mut records, &text);
        for record in records.iter().filter(|record| record.outcome == Outcome::Failed) {
            eprintln!("---- {} ----\n{}", record.id(), record.log);
        }
        println!("{:.1} s, {:.1} s of them to compile", started.elapsed().as_secs_f64(), compiled.as_secs_f64());
        Ok(match (succeeded, failed) {
            _ if interrupted() => Exit::Interrupted,
            (true, 0) => Exit::Passed,
            (_, 1..) => Exit::TestsFailed,
            (false, 0) => {
                // A test program that dies takes its verdicts with it; Miri ends one at the first finding.
                let lines: Vec<&str> = text.lines().collect();
                lines[lines.len().saturating_sub(60)..].iter().for_each(|line| eprintln!("{line}"));
                eprintln!("no test says why this failed; see {}", log.display());
                Exit::Incomplete
            }
        })
    }
}

/// The command as one types it, with the flags that it gives to the compiler.
fn typed(command: &Command) -> String {
    let flags = command.get_envs().filter(|(name, _)| name.to_string_lossy().ends_with("FLAGS"));
    let flags = flags.filter_map(|(name, value)| Some(format!("{}={} ", name.display(), quoted(value?))));
    flags.collect::<String>() + &shell_line(command)
}

/// Compiles what the command would run.
fn compile(cargo: &Command) -> anyhow::Result<()> {
    let mut build = Command::new(cargo.get_program());
    build.args(cargo.get_args()).arg("--no-run");
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => build.env(name, value),
            None => build.env_remove(name),
        };
    }
    if let Some(dir) = cargo.get_current_dir() {
        build.current_dir(dir);
    }
    eprintln!("$ {}", typed(&build));
    let status = build.stdin(Stdio::null()).status();
    let status = status.map_err(|error| stop(Exit::Host, format!("cannot start {}: {error}", shell_line(&build))))?;
    if status.success() || interrupted() {
        return Ok(());
    }
    Err(stop(Exit::Build, format!("`{}` failed", shell_line(&build))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_known_with_and_without_their_target() {
        assert_eq!(lacking("cargo-x86_64-unknown-linux-gnu\nmiri-x86_64-unknown-linux-gnu\nrust-src"), [""; 0]);
        assert_eq!(lacking("cargo-x86_64-unknown-linux-gnu\nrust-std-x86_64"), ["miri", "rust-src"]);
        assert_eq!(lacking("miri-preview-x\nrust-std"), ["rust-src"]);
    }
}
