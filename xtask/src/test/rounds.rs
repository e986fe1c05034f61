//! How often the in-kernel tests are run, with which seeds, and whether rounds that had to be alike were.
//!
//! | asked for | rounds |
//! |---|---|
//! | nothing | one |
//! | `--repeat N`, `--until-fail` | so many, each with the next seed |
//! | `--seeds A..B` | one for each seed |
//! | `--deterministic --repeat N` | so many with the same seed; each is compared with the first, byte by byte |
//!
//! A comparison is a test of its own, `deterministic.round_N_repeats_round_1`, and counts as one. A round that was ended
//! from outside, because it hung or QEMU died, was cut where the host happened to be, and is not compared.

use std::time::Duration;

use crate::exit::Exit;
use crate::ktap::Outcome;
use crate::process::interrupted;
use crate::replay::Trace;
use crate::verdict::TestId;

use super::campaign::{Campaign, again, folder};
use super::matrix::Leg;
use super::{Kernel, Record, Results, Session};

/// Runs all rounds on all machines.
///
/// # Errors
/// `Host` when QEMU cannot be started or the disk does not let files be written.
pub(super) fn run(
    session: &Session<'_>,
    kernel: &Kernel,
    legs: &[Leg],
    seed: u64,
    results: &mut Results,
) -> anyhow::Result<()> {
    let args = session.args;
    let endless = args.until_fail && args.repeat == 1;
    let rounds = args.seeds.map_or(u64::from(args.repeat), |seeds| (seeds.last - seeds.first).saturating_add(1));
    let mut comparisons: Vec<Comparison<'_>> =
        legs.iter().map(|leg| Comparison { leg, first: Vec::new(), alike: 0, all: 0 }).collect();
    let mut failed_seeds = Vec::new();
    let mut round: u32 = 0;
    while (endless || u64::from(round) < rounds) && !interrupted() && !legs.is_empty() {
        let same_seed = args.machine.deterministic && args.seeds.is_none();
        let seed = if same_seed { seed } else { seed.wrapping_add(u64::from(round)) };
        if round > 0 || endless {
            session.progress.close_place();
            session.progress.line(&format!("round {}, seed {seed:#x}", round + 1));
        }
        let mut worst = Exit::Passed;
        for comparison in &mut comparisons {
            if interrupted() {
                break;
            }
            let campaign = Campaign {
                session,
                artifacts: &kernel.artifacts,
                all: &kernel.tests,
                symbols: kernel.symbols.as_ref(),
                leg: comparison.leg,
                seed,
                round,
            };
            let (records, exit) = campaign.run()?;
            results.records.extend(records);
            worst = worst.worst(exit);
            if same_seed {
                results.records.extend(comparison.add(session, round, seed, exit)?);
            }
        }
        let failed = worst != Exit::Passed || results.records.iter().any(|record| record.exit != Exit::Passed);
        results.exit = results.exit.worst(worst);
        if worst != Exit::Passed {
            failed_seeds.push(seed);
        }
        round += 1;
        if args.until_fail && failed {
            break;
        }
    }
    results.rounds = round;
    session.progress.close_place();
    comparisons.iter().filter_map(Comparison::summary).for_each(|line| session.progress.line(&line));
    if args.seeds.is_some() {
        session.progress.line(&about_seeds(round, &failed_seeds));
    }
    Ok(())
}

/// Which seeds of a range failed.
fn about_seeds(tried: u32, failed: &[u64]) -> String {
    let seeds: String = failed.iter().map(|seed| format!(" {seed:#x}")).collect();
    match failed.len() {
        0 => format!("{tried} seeds, none failed"),
        1 => format!("{tried} seeds, 1 failed:{seeds}"),
        count => format!("{tried} seeds, {count} failed:{seeds}"),
    }
}

/// The rounds of one machine, held against the first.
struct Comparison<'a> {
    leg: &'a Leg,
    /// The boots of the first round; empty if they cannot be compared.
    first: Vec<Trace>,
    /// Rounds that were as the first, itself included.
    alike: u32,
    /// All rounds so far.
    all: u32,
}

impl Comparison<'_> {
    /// Takes a round that ended so; returns what its comparison says, if it was compared.
    fn add(&mut self, session: &Session<'_>, round: u32, seed: u64, exit: Exit) -> anyhow::Result<Option<Record>> {
        self.all += 1;
        if !matches!(exit, Exit::Passed | Exit::TestsFailed | Exit::Panicked | Exit::Incomplete) {
            return Ok(None);
        }
        let dirs = (0..).map(|boots| session.dir.path().join(folder(self.leg, round, boots)));
        let traces: Vec<Trace> =
            dirs.take_while(|dir| dir.exists()).map(|dir| Trace::read(&dir)).collect::<anyhow::Result<_>>()?;
        if round == 0 {
            self.first = traces;
            self.alike = 1;
            return Ok(None);
        }
        if self.first.is_empty() {
            return Ok(None);
        }
        let differences = difference(&self.first, &traces);
        self.alike += u32::from(differences.is_empty());
        let id = TestId { suite: "deterministic".into(), name: format!("round_{}_repeats_round_1", round + 1) };
        let (outcome, exit) = match differences.is_empty() {
            true => (Outcome::Passed, Exit::Passed),
            false => (Outcome::Failed, Exit::TestsFailed),
        };
        session.progress.test(&id.to_string(), outcome);
        Ok(Some(Record {
            place: self.leg.place(),
            slug: self.leg.slug(),
            suite: id.suite,
            name: id.name,
            outcome,
            exit,
            took: Duration::ZERO,
            detail: differences,
            log: String::new(),
            rerun: format!("{} --repeat {}", again(session, self.leg, None, seed), round + 1),
        }))
    }

    /// How many rounds were one, and how much was compared; `None` where there was nothing to compare.
    fn summary(&self) -> Option<String> {
        let first = self.first.first().filter(|_| self.all > 1)?;
        let (alike, all) = (self.alike, self.all);
        Some(format!("{alike} of {all} runs on {} are equal: {first}", self.leg.place()))
    }
}

/// In what the boots of two rounds differ; empty if they were one.
fn difference(first: &[Trace], now: &[Trace]) -> Vec<String> {
    if first.len() != now.len() {
        return vec![format!("round 1 took {} boots, this one {}", first.len(), now.len())];
    }
    first.iter().zip(now).find_map(|(first, now)| first.difference(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_that_failed_are_named() {
        assert_eq!(about_seeds(8, &[]), "8 seeds, none failed");
        assert_eq!(about_seeds(8, &[2]), "8 seeds, 1 failed: 0x2");
        assert_eq!(about_seeds(8, &[2, 16]), "8 seeds, 2 failed: 0x2 0x10");
    }
}
