//! One boot of a scenario: the machine runs under watch, is judged by the three witnesses and by its console, and leaves a folder.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::artifact::{self, Artifacts};
use crate::cli::{KernelArgs, Profile};
use crate::console;
use crate::exit::Exit;
use crate::frames::Kind as FrameKind;
use crate::guest::{Boot, Left};
use crate::kernel_args::KernelLine;
use crate::ktap::Outcome as TestOutcome;
use crate::post_mortem;
use crate::pulse::Limits;
use crate::qemu::Machine;
use crate::rundir::write;
use crate::symbols::Symbols;
use crate::verdict::{Asked, Verdict, judge};
use crate::watchdog;
use crate::workspace::Workspace;

use super::bad;
use super::kinds::{self, Kind};
use super::results::{Outcome, Part, Stats};

/// What a boot may take beyond the time that it tortures: to come up, to finish work that is missing, to stop all parts.
const BEYOND: Duration = Duration::from_secs(600);
/// How much longer than the guest's time a loaded host may take.
const SLOWNESS: u32 = 2;
/// Lines of log kept with a failure.
const LOG_LINES: usize = 40;
const CRASH_LINES: usize = 160;

/// A kernel with torture in it.
#[derive(Debug)]
pub struct Kernel {
    /// Loader and kernel.
    pub artifacts: Artifacts,
    /// Its profile.
    pub profile: Profile,
    /// What the linker signed it with.
    pub build_id: String,
    /// What it can torture.
    pub kinds: Vec<Kind>,
}

impl Kernel {
    /// Builds it.
    ///
    /// # Errors
    /// As [`artifact::make`] and [`kinds::list`].
    pub fn make(workspace: &Workspace, profile: Profile, args: &KernelArgs) -> anyhow::Result<Kernel> {
        let artifacts = artifact::make(workspace, args, profile)?;
        let build_id = artifacts.build_id().unwrap_or_default();
        let kinds = kinds::list(&artifacts.kernel)?;
        Ok(Kernel { artifacts, profile, build_id, kinds })
    }
}

/// A boot to be.
#[derive(Debug)]
pub struct Run<'a> {
    /// Where things lie.
    pub workspace: &'a Workspace,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The scenario's name.
    pub scenario: &'a str,
    /// Its machine.
    pub machine: Machine,
    /// Its kinds, by name.
    pub kinds: Vec<String>,
    /// How long it tortures, in the guest's time.
    pub duration: Duration,
    /// When it counts as hung.
    pub limits: Limits,
    /// Seed of the random numbers.
    pub seed: u64,
    /// A bug that the kernel is told to have.
    pub bug: Option<&'a str>,
    /// The line that runs it again.
    pub again: String,
}

/// When a boot that tortures for so long counts as hung.
#[must_use]
pub fn limits(duration: Duration) -> Limits {
    Limits { wall: duration * SLOWNESS + BEYOND, ..Limits::scaled(2.0) }
}

impl Run<'_> {
    /// The kernel command line.
    ///
    /// # Errors
    /// `Usage` when it becomes too long.
    pub fn kernel_line(&self) -> anyhow::Result<String> {
        let mut line = KernelLine::new(&self.machine.append);
        line.set("grange.run", "torture")?;
        line.set("torture.kinds", &self.kinds.join(","))?;
        line.set("torture.duration_ms", &self.duration.as_millis().max(1).to_string())?;
        line.set("grange.seed", &self.seed.to_string())?;
        if let Some(bug) = self.bug {
            line.set("grange.bug", bug)?;
        }
        for (key, value) in self.machine.kernel_words() {
            line.set(key, value)?;
        }
        Ok(line.finish()?.to_owned())
    }

    /// Boots, and judges.
    ///
    /// # Errors
    /// `Host` when QEMU cannot be started or the disk does not let files be written.
    pub fn boot(&self, dir: &Path) -> anyhow::Result<Outcome> {
        let line = self.kernel_line()?;
        let boot = Boot {
            machine: &self.machine,
            artifacts: &self.kernel.artifacts,
            kernel_line: &line,
            seed: self.seed,
            dir,
            limits: self.limits,
        };
        let started = Instant::now();
        let left = boot.watch(&mut |_| ())?;
        let shape = &self.machine.shape;
        let asked = Asked {
            seed: self.seed,
            cpus: shape.cpus(),
            nodes: shape.nodes(),
            tests: kinds::due(&self.kernel.kinds, &self.kinds),
        };
        let verdict = judge(&left.stream, &left.ending, &asked).with_reports(&left.reports);
        let log = String::from_utf8_lossy(&left.console).replace('\r', "");
        let bad = bad::lines(&log, &left.reports);
        let exit = if bad.is_empty() { verdict.exit } else { verdict.exit.worst(Exit::TestsFailed) };
        let outcome = Outcome {
            scenario: self.scenario.to_owned(),
            machine: format!("{shape} ({})", self.machine.engine.name()),
            profile: self.kernel.artifacts.profile.to_owned(),
            build_id: self.kernel.build_id.clone(),
            seed: self.seed,
            asked_s: self.duration.as_secs_f64(),
            took_s: started.elapsed().as_secs_f64(),
            verdict: exit.word().to_owned(),
            exit: exit.code(),
            parts: parts(&verdict),
            complaints: self.complaints(&log, &left, &verdict, exit),
            stats: stats(&left, &self.kernel.kinds),
            bad,
            folder: dir.to_owned(),
            again: self.again.clone(),
        };
        self.keep(dir, &left, &log, exit, &outcome)?;
        Ok(outcome)
    }

    /// What speaks against a pass and is no result of a part.
    fn complaints(&self, log: &str, left: &Left, verdict: &Verdict, exit: Exit) -> Vec<String> {
        let mut reasons: Vec<String> = match console::refusal(log) {
            Some(line) => vec![line.to_owned()],
            None => verdict.complaints().cloned().collect(),
        };
        if !matches!(exit, Exit::Passed | Exit::TestsFailed | Exit::Interrupted) {
            reasons.extend(console::crash_line(log).map(str::to_owned));
            reasons.extend(verdict.unfinished.iter().map(|id| format!("while {} was on", id.name)));
            reasons.extend(left.stderr.lines().take(3).map(|line| format!("QEMU: {line}")));
        }
        reasons.dedup();
        reasons
    }

    /// Writes what people look for in a boot's folder.
    fn keep(&self, dir: &Path, left: &Left, log: &str, exit: Exit, outcome: &Outcome) -> anyhow::Result<()> {
        let frames = |kind| left.stream.frames.iter().filter(move |frame| frame.kind == kind);
        let lines = |kind| frames(kind).map(|frame| format!("{}\n", frame.payload)).collect::<String>();
        write(&dir.join("results.ktap"), &lines(FrameKind::Ktap))?;
        write(&dir.join("stats.jsonl"), &lines(FrameKind::Json))?;
        write(&dir.join("verdict.json"), &format!("{:#}\n", json!(outcome)))?;
        if matches!(exit, Exit::Passed | Exit::Interrupted) {
            return Ok(());
        }
        post_mortem::keep_build(self.workspace, &self.kernel.artifacts, dir)?;
        let symbols = Symbols::load(&self.kernel.artifacts.kernel, &self.workspace.root);
        let log = watchdog::annotated(log, &left.reports);
        write(&dir.join("console.sym.log"), &console::symbolized(&log, symbols.as_ref()))?;
        let crash = match exit {
            Exit::TestsFailed => console::around(&left.console, 0, left.console.len(), LOG_LINES),
            _ => console::of_crash(&left.console, 0, LOG_LINES, CRASH_LINES) + &left.cpus,
        };
        let mut text = format!("{}\n", outcome.failure());
        text.push_str(&console::symbolized(&crash, symbols.as_ref()));
        text.push_str(&format!("{}\n", post_mortem::remark(self.workspace, dir, &left.why_no_core)));
        write(&dir.join("failure.txt"), &text)
    }
}

fn parts(verdict: &Verdict) -> Vec<Part> {
    let part = |test: &crate::ktap::TestLine| Part {
        name: test.name.clone(),
        outcome: match test.outcome {
            TestOutcome::Passed => "passed",
            TestOutcome::Failed => "failed",
            TestOutcome::Skipped => "skipped",
        }
        .to_owned(),
        detail: test.detail.clone(),
    };
    verdict.tests.iter().map(part).collect()
}

/// The last statistics of each part, in the order in which they came.
fn stats(left: &Left, kinds: &[Kind]) -> Vec<Stats> {
    let mut all: Vec<Stats> = Vec::new();
    for frame in left.stream.frames.iter().filter(|frame| frame.kind == FrameKind::Json) {
        let Ok(value) = serde_json::from_str::<Value>(&frame.payload) else { continue };
        let Some(name) = value["torture"].as_str() else { continue };
        let stats = Stats {
            part: name.to_owned(),
            disturbs: kinds.iter().any(|kind| kind.name == name && kind.disturbs),
            ms: value["ms"].as_u64().unwrap_or(0),
            counts: value["stat"].clone(),
        };
        match all.iter_mut().find(|old| old.part == name) {
            Some(old) => *old = stats,
            None => all.push(stats),
        }
    }
    all
}
