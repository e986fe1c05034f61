//! `cargo xtask torture --deterministic`: many seeds, several machines at once, and each the same whenever it is repeated.
//!
//! A seed is a schedule: all CPUs of a machine are on one host thread, which goes on to the next CPU where the seed says so.
//! Machines with other seeds run beside it, as many as there are host cores. Of a seed that passed nothing is kept; of one
//! that failed everything is, with the lines that show it once more.
//!
//! Who names scenarios has each of them run with each seed. Else the seeds go round through those that are made for this, which
//! have all kinds of torture between them: one machine with all kinds would cost as much as twenty with some of them.
//!
//! With `--repeat` each seed runs so often, and both its serial lines have to hold the same bytes each time.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cli::{SeedRange, TortureArgs};
use crate::exit::Exit;
use crate::host_share::TICK;
use crate::process::interrupted;
use crate::qemu::Engine;
use crate::replay::Trace;
use crate::rundir::{RunDir, write};
use crate::workspace::Workspace;

use super::boot::Run;
use super::pool;
use super::results::Outcome;

/// The scenarios that are made for this, and what stands for all of them together.
pub const SCENARIOS: &str = "DET*";
const TOGETHER: &str = "DET";

/// How many boots.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seeds: SeedRange,
    /// How often each.
    repeat: u32,
    /// So many at once.
    jobs: u32,
}

/// A boot that is over.
struct Round {
    seed: u64,
    /// How often that seed was run before.
    nth: u32,
    outcome: Outcome,
    /// What it left on both serial lines; `None` where nobody compares it, or where it was cut from outside.
    trace: Option<Trace>,
}

/// What they cost.
#[derive(Clone, Copy)]
struct Took {
    /// Of the host's clock.
    seconds: f64,
    /// Of CPU time, over all machines.
    used_s: f64,
}

/// What came of all of them.
#[derive(Debug, Default)]
struct Tally {
    boots: u64,
    failed: Vec<u64>,
    /// What each seed left the first time.
    first: HashMap<u64, Trace>,
    /// Repetitions, and those that were as the first.
    again: u64,
    alike: u64,
}

/// Runs each scenario with all seeds, or all scenarios in turn if the user has named none.
///
/// # Errors
/// `Host` when QEMU cannot be started or the disk does not let files be written.
pub fn command(workspace: &Workspace, args: &TortureArgs, runs: &[Run<'_>], jobs: u32) -> anyhow::Result<Exit> {
    let one = args.seed.map(|seed| SeedRange { first: seed, last: seed });
    let seeds = args.seeds.or(one).unwrap_or(SeedRange { first: 1, last: 100 });
    let plan = Plan { seeds, repeat: args.repeat, jobs };
    let dir = RunDir::create(workspace, "torture")?;
    let builds: Vec<_> = runs.iter().map(|run| &*run.kernel.build_id).collect();
    dir.describe(workspace, "torture", &json!({ "seeds": [seeds.first, seeds.last], "build_id": builds.join(" ") }))?;
    println!("results in {}", workspace.short(dir.path()).display());
    let mut worst = Exit::Passed;
    let mut told = Vec::new();
    let apart = if args.scenarios.is_empty() { runs.len() } else { 1 };
    for runs in runs.chunks(apart) {
        let (exit, about) = explore(runs, plan, &dir)?;
        worst = worst.worst(exit);
        told.push(about);
    }
    let told = format!("{:#}\n", json!({ "v": 1, "scenarios": told }));
    dir.write("seeds.json", &told)?;
    args.reports.json.as_ref().map_or(Ok(()), |path| write(path, &told))?;
    Ok(if interrupted() { worst.worst(Exit::Interrupted) } else { worst })
}

/// Runs all seeds of the plan, each with one of the scenarios, which depends on the seed alone; prints a line for each failure and
/// one at the end, and returns the figures.
fn explore(runs: &[Run<'_>], plan: Plan, dir: &RunDir) -> anyhow::Result<(Exit, Value)> {
    let (begun, used_s) = (Instant::now(), used_by_machines_s()?);
    let of = |seed: u64| &runs[(seed % runs.len() as u64) as usize];
    let (mut worst, mut tally, mut trouble) = (Exit::Passed, Tally::default(), None);
    let SeedRange { first, last } = plan.seeds;
    let boots = (last - first + 1) as usize * plan.repeat as usize;
    let seed = |at: usize| first + (at / plan.repeat as usize) as u64;
    let boot = |at: usize| boot(of(seed(at)), seed(at), at as u32 % plan.repeat, plan, dir);
    let mut take = |round: Round| tally.take(of(round.seed), round, dir);
    pool::run(&vec![1; boots], plan.jobs, boot, |_, round| match round.and_then(&mut take) {
        Ok(exit) => worst = worst.worst(exit),
        Err(error) => trouble = trouble.take().or(Some(error)),
    });
    if let Some(error) = trouble {
        return Err(error);
    }
    let took = Took { seconds: begun.elapsed().as_secs_f64(), used_s: used_by_machines_s()? - used_s };
    println!("{}", tally.line(if let [run] = runs { run.scenario } else { TOGETHER }, plan, took));
    let scenarios: Vec<&str> = runs.iter().map(|run| run.scenario).collect();
    let told = json!({
        "scenarios": scenarios, "seeds": [first, last], "repeat": plan.repeat, "jobs": plan.jobs, "boots": tally.boots,
        "failed": tally.failed, "repeated": tally.again, "alike": tally.alike, "seconds": took.seconds,
        "cpu_seconds": took.used_s,
    });
    Ok((worst, told))
}

/// CPU time of the machines that have ended so far, in seconds: what our children used, who are nobody else while seeds run.
fn used_by_machines_s() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/self/stat").context("/proc/self/stat")?;
    // From the state on: the name before it may hold anything. `cutime` and `cstime` are numbers 16 and 17 of all.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u32 = fields.skip(13).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    Ok((ticks * TICK).as_secs_f64())
}

fn boot(run: &Run<'_>, seed: u64, nth: u32, plan: Plan, dir: &RunDir) -> anyhow::Result<Round> {
    let again = once_more(&run.again, run.machine.engine, seed);
    let name = format!("{}-seed-{seed:x}", run.scenario);
    let folder = dir.sub(&if nth == 0 { name } else { format!("{name}-again{nth}") })?;
    let outcome = Run { seed, again, kinds: run.kinds.clone(), machine: run.machine.clone(), ..*run }.boot(&folder)?;
    let whole = matches!(outcome.end(), Exit::Passed | Exit::TestsFailed | Exit::Panicked);
    let trace = (plan.repeat > 1 && whole).then(|| Trace::read(&folder)).transpose()?;
    Ok(Round { seed, nth, outcome, trace })
}

/// The line that runs one seed again: the scenario's own, which ends with a seed.
fn once_more(line: &str, engine: Engine, seed: u64) -> String {
    let words = line.rsplit_once(" --seed ").map_or(line, |(words, _)| words);
    format!("{words} {} --seeds {seed:#x}..={seed:#x}", engine.options())
}

impl Tally {
    /// Counts a boot, tells of it if something is wrong, and removes its folder if not.
    fn take(&mut self, run: &Run<'_>, round: Round, dir: &RunDir) -> anyhow::Result<Exit> {
        let Round { seed, nth, outcome, trace } = round;
        let exit = outcome.end();
        if exit == Exit::Interrupted {
            return Ok(exit);
        }
        self.boots += 1;
        dir.event("seed", &json!({ "seed": seed, "verdict": exit.word(), "took": outcome.took_s }));
        let differs = trace.and_then(|trace| self.compare(seed, trace));
        if exit == Exit::Passed && differs.is_none() {
            fs::remove_dir_all(&outcome.folder)?;
            return Ok(Exit::Passed);
        }
        if let Some(how) = &differs {
            println!("FAIL seed {seed:#x}: its run {} is another than the first", nth + 1);
            how.iter().for_each(|line| println!("  {line}"));
        }
        print!("{}", outcome.failure());
        println!("  gdb: cargo xtask debug --replay {}", run.workspace.short(&outcome.folder).display());
        if !self.failed.contains(&seed) {
            self.failed.push(seed);
        }
        Ok(if differs.is_some() { exit.worst(Exit::TestsFailed) } else { exit })
    }

    /// Holds a boot against the first with its seed; in what it differs.
    fn compare(&mut self, seed: u64, trace: Trace) -> Option<Vec<String>> {
        let Some(first) = self.first.get(&seed) else {
            self.first.insert(seed, trace);
            return None;
        };
        let difference = first.difference(&trace);
        self.again += 1;
        self.alike += u64::from(difference.is_none());
        difference
    }

    fn line(&self, scenario: &str, plan: Plan, took: Took) -> String {
        let mut line = format!("{scenario}: {} seeds", plan.seeds.last - plan.seeds.first + 1);
        if plan.repeat > 1 {
            line += &format!(", {} of {} replays are bit-equal", self.alike, self.again);
        }
        let failed: String = self.failed.iter().map(|seed| format!(" {seed:#x}")).collect();
        line += &match self.failed.len() {
            0 => ", none failed".to_owned(),
            count => format!(", {count} failed:{failed}"),
        };
        let Took { seconds, used_s } = took;
        let (an_hour, each) = (self.boots as f64 * 3600.0 / seconds.max(0.001), used_s / self.boots.max(1) as f64);
        line += &format!("; {} boots in {seconds:.0} s, {} at once: {an_hour:.0} an hour", self.boots, plan.jobs);
        line + &format!(", {each:.2} s of a core each")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_run_again_with_all_that_the_user_said() {
        let line = "cargo xtask torture DET --minutes 0.1 --append a=1 --seed 0x5";
        assert_eq!(
            once_more(line, Engine::Deterministic { shift: 6 }, 0x1f),
            "cargo xtask torture DET --minutes 0.1 --append a=1 --deterministic --shift 6 --seeds 0x1f..=0x1f"
        );
    }

    #[test]
    fn the_line_names_the_seeds_that_failed_and_counts_replays() {
        let plan = Plan { seeds: SeedRange { first: 1, last: 10 }, repeat: 1, jobs: 2 };
        let tally = Tally { boots: 10, failed: vec![2, 16], ..Tally::default() };
        assert_eq!(
            tally.line("DET", plan, Took { seconds: 10.0, used_s: 5.5 }),
            "DET: 10 seeds, 2 failed: 0x2 0x10; 10 boots in 10 s, 2 at once: 3600 an hour, 0.55 s of a core each"
        );
        let tally = Tally { boots: 20, again: 10, alike: 9, ..Tally::default() };
        let line = tally.line("DET", Plan { repeat: 2, ..plan }, Took { seconds: 1.0, used_s: 1.0 });
        assert!(line.starts_with("DET: 10 seeds, 9 of 10 replays are bit-equal, none failed; 20 boots"), "{line}");
    }
}
