//! `cargo xtask torture --mutants`: does the torture notice when the kernel is wrong?
//!
//! The file of a scenario names the bugs that it finds. The kernel of the profile `mutants` runs it deterministically: first
//! without a bug, which has to pass with each of the first seeds; then with one bug after the other, with one seed after the
//! other until a run fails, panics or hangs. With that seed, too, the kernel without a bug has to pass. A bug that no seed shows
//! is a survivor, and fails the command: the torture lacks something, or the file claims too much.

use std::ops::RangeInclusive;
use std::time::Duration;

use comfy_table::{Table, presets};
use globset::Glob;
use serde::Serialize;
use serde_json::json;

use crate::cli::{KernelArgs, MachineArgs, Profile, TortureArgs};
use crate::exit::{Exit, stop, usage};
use crate::mutants::{self, Bug};
use crate::process::interrupted;
use crate::pulse::Limits;
use crate::rundir::{RunDir, write};
use crate::workspace::Workspace;

use super::boot::{Kernel, Run};
use super::results::Outcome;
use super::scenario::Scenario;
use super::{pool, run_of};

/// Seeds that are tried with a bug. What one of them shows moves with each build of the kernel: several times as many as it takes.
const SEEDS: RangeInclusive<u64> = 1..=40;
/// Seeds that are tried without one, in any case and in a quick look.
const SOUND_SEEDS: RangeInclusive<u64> = 1..=12;
const QUICK_SEEDS: RangeInclusive<u64> = 1..=3;

/// A run with a bug counts as hung sooner than others: when a part takes four seconds of the guest's time.
const LIMITS: Limits = Limits {
    boot: Duration::from_secs(30),
    silence: Duration::from_secs(10),
    wall: Duration::from_secs(40),
    budget_percent: 1,
};

/// Bugs for a quick look: one of the first seeds shows them, and none of them hangs.
const QUICK: [&str; 13] = [
    "kfree_rcu.not_deferred",
    "rcu.barrier_bypass",
    "rcu.boost_kept",
    "rcu.gp_ends_early",
    "rcu.rude_first_cpu",
    "sched.mutex_overtaken",
    "sched.rq_let_go",
    "sched.timer_early",
    "slab.miscount",
    "srcu.no_flip",
    "srcu.no_second_look",
    "sync.call_answered_early",
    "sync.guard_end_blind",
];

/// A bug, and a scenario that has to find it.
#[derive(Clone, Copy)]
struct Case<'a> {
    bug: &'a Bug,
    run: &'a Run<'a>,
}

/// What became of it.
#[derive(Debug, Serialize)]
struct Fate {
    bug: String,
    what: String,
    scenario: String,
    /// The seed that showed it.
    seed: Option<u64>,
    /// The part of the run that noticed, or the boot.
    by: String,
    /// What it said.
    how: String,
    /// Runs until then, and the host's time for them.
    runs: u32,
    seconds: f64,
}

/// Runs the command with those of the `scenarios` that claim to find one of the bugs that `words` name.
///
/// # Errors
/// `Usage` for words that name no bug; `TestsFailed` when the kernel without a bug does not pass; `Host` when QEMU cannot be
/// started or a file cannot be written.
pub fn command(
    workspace: &Workspace,
    args: &TortureArgs,
    scenarios: &[Scenario],
    words: &[String],
    jobs: u32,
) -> anyhow::Result<Exit> {
    let kernel_args = KernelArgs { features: &["explore"], ..args.kernel.clone() };
    let kernel = Kernel::make(workspace, Profile::Mutants, &kernel_args)?;
    let all = mutants::list(&kernel.artifacts.kernel)?;
    let named = mutants::chosen(&all, words)?;
    // Deaths are what is wanted here: nobody looks at the memory they leave, and a hang need not be waited for in full.
    let user = MachineArgs { deterministic: true, no_core: true, ..args.machine.clone() };
    let mut claims = Vec::new();
    for scenario in scenarios {
        let bugs = claimed(&all, &scenario.file.finds, &scenario.name)?;
        let run = run_of(workspace, args, scenario, scenario.machine(workspace, &user)?, &kernel, 0)?;
        claims.push((Run { limits: LIMITS, ..run }, bugs));
    }
    let wanted = |bug: &&&Bug| named.contains(bug) && (!args.quick || QUICK.contains(&bug.name.as_str()));
    let cases: Vec<Case<'_>> =
        claims.iter().flat_map(|(run, bugs)| bugs.iter().filter(wanted).map(move |bug| Case { bug, run })).collect();
    if cases.is_empty() {
        return Err(usage("no scenario claims to find any of these bugs: `finds` in its file"));
    }
    let dir = RunDir::create(workspace, "torture")?;
    dir.describe(workspace, "torture", &json!({ "mutants": words, "build_id": kernel.build_id }))?;
    println!("results in {}", workspace.short(dir.path()).display());
    let dir = &dir;
    let sound_seeds = if args.quick { QUICK_SEEDS } else { SOUND_SEEDS };
    let sound: Vec<_> = claims
        .iter()
        .filter(|(run, _)| cases.iter().any(|case| case.run.scenario == run.scenario))
        .flat_map(|(run, _)| sound_seeds.clone().map(move |seed| (run, seed)))
        .collect();
    let mut wrong = Vec::new();
    let boot_sound = |at: usize| boot(sound[at].0, sound[at].1, None, dir);
    pool::run(&vec![1; sound.len()], jobs, boot_sound, |_, outcome| wrong.extend(not_passed(outcome)));
    if let Some(why) = wrong.first() {
        return Err(unsound(why));
    }
    let (mut fates, mut trouble) = (Vec::new(), None);
    pool::run(
        &vec![1; cases.len()],
        jobs,
        |at| try_all(cases[at], &sound_seeds, dir),
        |_, fate| match fate {
            Ok(fate) => {
                println!("{}", fate.line());
                fates.push(fate);
            }
            Err(error) => trouble = trouble.take().or(Some(error)),
        },
    );
    if let Some(error) = trouble {
        return Err(error);
    }
    fates.sort_by(|a, b| (&a.bug, &a.scenario).cmp(&(&b.bug, &b.scenario)));
    let survivors = fates.iter().filter(|fate| fate.seed.is_none()).count();
    let text = format!("{}\n", table(&fates));
    let told = json!({ "v": 1, "build_id": kernel.build_id, "survivors": survivors, "bugs": fates });
    let told = format!("{told:#}\n");
    dir.write("mutants.txt", &text)?;
    dir.write("mutants.json", &told)?;
    args.reports.json.as_ref().map_or(Ok(()), |path| write(path, &told))?;
    print!("{text}");
    println!("{} bugs found, {survivors} not, in {:.0} s", fates.len() - survivors, dir.age().as_secs_f64());
    Ok(match survivors {
        _ if interrupted() => Exit::Interrupted,
        0 => Exit::Passed,
        _ => Exit::TestsFailed,
    })
}

/// Those of `bugs` that a scenario claims to find by `globs`.
fn claimed<'a>(bugs: &'a [Bug], globs: &[String], scenario: &str) -> anyhow::Result<Vec<&'a Bug>> {
    let mut found = Vec::new();
    for word in globs {
        let bad = |why: &dyn std::fmt::Display| usage(format!("{scenario}.toml: finds: {word}: {why}"));
        let glob = Glob::new(word).map_err(|error| bad(&error))?.compile_matcher();
        let before = found.len();
        found.extend(bugs.iter().filter(|bug| glob.is_match(&bug.name)));
        if found.len() == before {
            return Err(bad(&"the kernel has no such bug"));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup();
    Ok(found)
}

/// Why a boot is no pass; one that is leaves nothing.
fn not_passed(outcome: anyhow::Result<Outcome>) -> Option<String> {
    match outcome {
        Ok(outcome) if outcome.end() == Exit::Passed => {
            // A folder that stays harms nothing.
            let _ = std::fs::remove_dir_all(&outcome.folder);
            None
        }
        Ok(outcome) => Some(outcome.failure()),
        Err(error) => Some(format!("{error:#}")),
    }
}

fn boot(run: &Run<'_>, seed: u64, bug: Option<&str>, dir: &RunDir) -> anyhow::Result<Outcome> {
    let folder = dir.sub(&format!("{}-{}-seed-{seed:x}", run.scenario, bug.unwrap_or("sound")))?;
    let again = match bug {
        Some(bug) => format!("cargo xtask torture {} --mutants {bug}", run.scenario),
        None => {
            format!("cargo xtask torture {} --deterministic --profile mutants --seeds {seed}..={seed}", run.scenario)
        }
    };
    Run { seed, bug, again, kinds: run.kinds.clone(), machine: run.machine.clone(), ..*run }.boot(&folder)
}

fn unsound(why: &str) -> anyhow::Error {
    stop(Exit::TestsFailed, format!("without any bug the scenarios have to pass\n{why}"))
}

/// Tries one seed after the other until one shows the bug; the kernel without it passes with the seeds `sound`.
fn try_all(case: Case<'_>, sound: &RangeInclusive<u64>, dir: &RunDir) -> anyhow::Result<Fate> {
    let Case { bug, run } = case;
    let mut fate = Fate {
        bug: bug.name.clone(),
        what: bug.what.clone(),
        scenario: run.scenario.to_owned(),
        seed: None,
        by: String::new(),
        how: String::new(),
        runs: 0,
        seconds: 0.0,
    };
    for seed in SEEDS.take_while(|_| !interrupted()) {
        let outcome = boot(run, seed, Some(&bug.name), dir)?;
        fate.runs += 1;
        fate.seconds += outcome.took_s;
        if interrupted() {
            // The machine was ended from outside: that is nobody's notice.
            return Err(stop(Exit::Interrupted, format!("with the bug {}: interrupted", bug.name)));
        }
        let noticed = matches!(outcome.end(), Exit::TestsFailed | Exit::Panicked | Exit::Hung);
        if noticed {
            (fate.by, fate.how) = witness(&outcome);
            fate.seed = Some(seed);
            let why = if sound.contains(&seed) { None } else { not_passed(boot(run, seed, None, dir)) };
            if let Some(why) = why {
                return Err(unsound(&why));
            }
            break;
        }
        if outcome.end() != Exit::Passed {
            return Err(stop(outcome.end(), format!("with the bug {}: {}", bug.name, outcome.failure().trim())));
        }
        std::fs::remove_dir_all(&outcome.folder)?;
    }
    Ok(fate)
}

/// Who noticed, and what was said first.
fn witness(outcome: &Outcome) -> (String, String) {
    let part = outcome.parts.iter().find(|part| part.outcome == "failed");
    let said = part.map_or(&outcome.complaints, |part| &part.detail);
    // "tests/src/…rs:12: what": the place is found by running it again.
    let placed = said.iter().find_map(|line| line.split_once(".rs:")?.1.split_once(": ").map(|(_, what)| what));
    let first = placed.or_else(|| said.iter().chain(&outcome.bad).next().map(String::as_str)).unwrap_or_default();
    let by = part.map_or_else(|| outcome.verdict.clone(), |part| part.name.clone());
    (by, first.chars().take(80).collect())
}

impl Fate {
    fn line(&self) -> String {
        let Fate { bug, scenario, by, how, seconds, runs, .. } = self;
        match self.seed {
            Some(seed) => format!("ok   {bug}, {seconds:.1} s, {scenario} with seed {seed}: {by}: {how}"),
            None => format!("FAIL {bug}, {seconds:.1} s, survived {runs} runs of {scenario}"),
        }
    }
}

fn table(fates: &[Fate]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["bug", "scenario", "noticed by", "seed", "s"]);
    for Fate { bug, scenario, by, seed, seconds, .. } in fates {
        let (by, seed) = match seed {
            Some(seed) => (by.as_str(), seed.to_string()),
            None => ("NOBODY", "-".to_owned()),
        };
        table.add_row([bug, scenario, by, &seed, &format!("{seconds:.1}")]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bug(name: &str) -> Bug {
        Bug { name: name.to_owned(), what: String::new(), found_by: Vec::new() }
    }

    #[test]
    fn a_quick_look_is_for_bugs_that_scenarios_claim_to_find() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../torture");
        let scenarios = crate::torture::scenario::all(&folder).unwrap();
        let claims = |bug: &str| scenarios.iter().any(|scenario| scenario.file.finds.iter().any(|found| found == bug));
        for bug in QUICK {
            assert!(claims(bug), "{bug}");
        }
    }

    #[test]
    fn a_scenario_claims_bugs_by_globs_that_must_fit() {
        let bugs = [bug("rcu.a"), bug("rcu.b"), bug("slab.a")];
        let names = |globs: &[&str]| {
            let globs: Vec<String> = globs.iter().map(|&glob| glob.to_owned()).collect();
            claimed(&bugs, &globs, "DET").map(|bugs| bugs.iter().map(|bug| bug.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(&["slab.a", "*.a"]).unwrap(), ["rcu.a", "slab.a"]);
        assert_eq!(names(&[]).unwrap(), [] as [String; 0]);
        let error = names(&["rcu.c"]).unwrap_err().to_string();
        assert_eq!(error, "DET.toml: finds: rcu.c: the kernel has no such bug");
    }
}
