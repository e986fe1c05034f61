//! `cargo xtask bench guard`: the instructions of the fast paths, held against bounds that are kept with the sources.
//!
//! Counted instructions are the same each time, on a busy host too, so a bound is the figure itself: a tenth more is a change of
//! the path. They depend on the compiler; with another one than the bounds were taken with only what is a tenth of the whole
//! above its bound fails. A figure below its bound passes and is told, so that the bound can follow it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cli::{Accel, GuardArgs, KernelArgs, MachineArgs};
use crate::exit::{Exit, stop, usage};
use crate::kernel_tests::KernelBench;
use crate::qemu::{Engine, Machine};
use crate::rundir::write;
use crate::workspace::Workspace;

use super::DEFAULTS;
use super::record::{Leg, Unit};
use super::run::{Runner, kernel};
use super::table::Table;

/// Where the bounds are.
const FILE: &str = "tests/guard.toml";

const HEAD: &str = "\
# Instructions of one operation on the fast paths: medians of counted benches on 2 CPUs, exact.
# `cargo xtask bench guard` holds the kernel against them, and `cargo xtask bench guard --write` takes new ones.
# To guard another bench, give it a line with any number and write.

";

/// What more an operation may take when another compiler made it.
const OTHER_COMPILER: f64 = 1.1;

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    /// What compiled the kernel that the bounds are of.
    rustc: String,
    /// By bench.
    instructions: BTreeMap<String, f64>,
}

/// What is to say of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Same,
    Better,
    Worse,
    /// The kernel has no such bench, or it counts no instructions.
    Missing,
}

impl Word {
    fn name(self) -> &'static str {
        match self {
            Word::Same => "same",
            Word::Better => "better",
            Word::Worse => "WORSE",
            Word::Missing => "MISSING",
        }
    }

    fn fails(self) -> bool {
        matches!(self, Word::Worse | Word::Missing)
    }
}

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a figure above its bound is an [`Exit`].
pub fn guard(workspace: &Workspace, args: &GuardArgs) -> anyhow::Result<Exit> {
    let path = workspace.root.join(FILE);
    let mut bounds = read(&path)?;
    let (artifacts, all) = kernel(workspace, &KernelArgs::default())?;
    let asked = MachineArgs { accel: Accel::Tcg, qemu: args.qemu.clone(), ..MachineArgs::default() };
    let mut machine = Machine::from_args(workspace, &asked, &[], DEFAULTS)?;
    machine.engine = Engine::Counted;
    let is_guarded = |bench: &&KernelBench| bounds.instructions.contains_key(&bench.test.id.to_string());
    let chosen: Vec<KernelBench> = all.iter().filter(is_guarded).cloned().collect();
    if chosen.is_empty() {
        return Err(usage(format!("{FILE}: none of its benches is in the kernel")));
    }
    let mut runner = Runner::new(workspace, "guard", &args.qemu, (&artifacts, &all), (None, true))?;
    runner.boot("guard", &machine, &chosen, 1)?;
    let record = runner.record();
    let leg = record.leg("guard").ok_or_else(|| stop(Exit::Incomplete, "no figures".to_owned()))?;
    let words = judge(&bounds, leg, &record.rustc);
    print!("{}", table(&words).terminal());
    if args.write {
        bounds.rustc.clone_from(&record.rustc);
        bounds.instructions = words.iter().filter_map(|(bench, _, now, _)| Some((bench.clone(), (*now)?))).collect();
        write(&path, &format!("{HEAD}{}", toml::to_string(&bounds)?))?;
        println!("bounds written to {FILE}");
        return Ok(Exit::Passed);
    }
    if record.rustc != bounds.rustc {
        println!("the bounds are of {}, this kernel of {}: a tenth more is let pass", bounds.rustc, record.rustc);
    }
    let of = |word: Word| words.iter().filter(move |(.., of)| *of == word).count();
    println!(
        "{} as they are bound, {} better, {} worse, {} missing",
        of(Word::Same),
        of(Word::Better),
        of(Word::Worse),
        of(Word::Missing)
    );
    if words.iter().any(|(.., word)| *word != Word::Same) {
        println!("if this is meant: cargo xtask bench guard --write");
    }
    Ok(if words.iter().any(|(.., word)| word.fails()) { Exit::TestsFailed } else { Exit::Passed })
}

fn read(path: &PathBuf) -> anyhow::Result<Bounds> {
    let text = std::fs::read_to_string(path).map_err(|error| stop(Exit::Host, format!("{FILE}: {error}")))?;
    parse(&text).map_err(usage)
}

fn parse(text: &str) -> Result<Bounds, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        format!("{FILE}:{line}: {}", error.message())
    })
}

/// Each bound with the figure, to a tenth, and what is to say of it.
fn judge(bounds: &Bounds, leg: &Leg, rustc: &str) -> Vec<(String, f64, Option<f64>, Word)> {
    let more = if rustc == bounds.rustc { 1.0 } else { OTHER_COMPILER };
    let one = |(bench, &bound): (&String, &f64)| {
        let figure = leg.figure(bench).filter(|figure| figure.unit == Unit::Instructions);
        let now = figure.map(|figure| (figure.p50() * 10.0).round() / 10.0);
        let word = match now {
            None => Word::Missing,
            Some(now) if now > bound * more => Word::Worse,
            Some(now) if now < bound => Word::Better,
            Some(_) => Word::Same,
        };
        (bench.clone(), bound, now, word)
    };
    bounds.instructions.iter().map(one).collect()
}

fn table(words: &[(String, f64, Option<f64>, Word)]) -> Table {
    let mut table = Table::new(["bench", "bound", "now", ""]);
    for (bench, bound, now, word) in words {
        let now = now.map_or("-".to_owned(), |now| format!("{now:.1}"));
        table.rows.push(vec![bench.clone(), format!("{bound:.1}"), now, word.name().to_owned()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::{figure, leg};

    fn bounds(all: &[(&str, f64)]) -> Bounds {
        let instructions = all.iter().map(|(bench, bound)| ((*bench).to_owned(), *bound)).collect();
        Bounds { rustc: "rustc 1".to_owned(), instructions }
    }

    fn words(rustc: &str, now: f64) -> Vec<Word> {
        let leg =
            leg("guard", 2, vec![figure("a.x", Unit::Instructions, &[now]), figure("a.t", Unit::Ns, &[1.0])], vec![]);
        let all = bounds(&[("a.x", 34.0), ("a.t", 5.0), ("a.gone", 5.0)]);
        let mut words: Vec<(String, Word)> =
            judge(&all, &leg, rustc).into_iter().map(|(bench, _, _, word)| (bench, word)).collect();
        assert_eq!(words.remove(0), ("a.gone".to_owned(), Word::Missing));
        assert_eq!(words.remove(0), ("a.t".to_owned(), Word::Missing));
        words.into_iter().map(|(_, word)| word).collect()
    }

    #[test]
    fn a_tenth_more_is_worse_and_a_tenth_less_is_better() {
        assert_eq!(words("rustc 1", 34.0), [Word::Same]);
        assert_eq!(words("rustc 1", 34.04), [Word::Same]);
        assert_eq!(words("rustc 1", 34.1), [Word::Worse]);
        assert_eq!(words("rustc 1", 33.9), [Word::Better]);
        assert!(Word::Worse.fails() && Word::Missing.fails() && !Word::Better.fails());
    }

    #[test]
    fn another_compiler_gets_a_tenth_of_the_whole() {
        assert_eq!(words("rustc 2", 37.0), [Word::Same]);
        assert_eq!(words("rustc 2", 38.0), [Word::Worse]);
    }

    #[test]
    fn the_file_is_read_as_it_is_written_and_unknown_keys_are_refused() {
        let all = bounds(&[("a.x", 34.0)]);
        let text = format!("{HEAD}{}", toml::to_string(&all).unwrap());
        assert_eq!(toml::from_str::<Bounds>(&text).unwrap(), all);
        assert!(toml::from_str::<Bounds>(&format!("{text}\n[other]\n")).is_err());
        let wrong = parse("rustc = \"1\"\n[instructions]\n\"a.x\" = \"34\"\n").unwrap_err();
        assert!(wrong.starts_with("tests/guard.toml:3: ") && wrong.contains("\"34\""), "{wrong}");
        let kept = include_str!("../../../tests/guard.toml");
        assert!(kept.starts_with(HEAD) && toml::from_str::<Bounds>(kept).is_ok());
    }
}
