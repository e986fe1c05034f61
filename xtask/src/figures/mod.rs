//! `cargo xtask figures`: the book's pictures, drawn from runs.
//!
//! | file | draws |
//! |---|---|
//! | [`grace_period`] | a grace period on its way up the tree |
//! | [`sheaf`] | what sheaves go through between slabs, CPUs, grace periods and the barn |
//! | [`nmi`] | where an NMI in the middle of a swap gets its object from |
//! | [`lanes`] | what these three are: bars, dots and lines in lanes |
//!
//! Each boots the kernel with a test that does what the figure shows, and reads what trace points recorded. The tests
//! are ordinary ones (`tests/src/suites/figures.rs`, `rcu_torture.rs`), so what is drawn is also checked. Where
//! instructions are shown it is the release kernel that runs, else the one that tests have.

pub mod grace_period;
pub mod lanes;
pub mod nmi;
pub mod sheaf;

use std::path::Path;

use clap::Parser;

use crate::cli::{FiguresArgs, RunArgs};
use crate::exit::{Exit, stop};
use crate::run::{self, Traced};
use crate::rundir::write;
use crate::symbols::Symbols;
use crate::workspace::Workspace;

use lanes::Lanes;

/// What the figures are called.
pub const NAMES: [&str; 3] = ["grace-period", "sheaf", "nmi"];

/// A figure: the run that it is drawn from, and how.
struct Figure {
    name: &'static str,
    /// Words of `cargo xtask run`.
    words: &'static [&'static str],
    draw: fn(&Traced, &Symbols) -> anyhow::Result<Lanes>,
}

const FIGURES: [Figure; 3] = [
    Figure {
        name: NAMES[0],
        words: &[
            "--cpus=8",
            "--profile=checking",
            "--append=rcutree.rcu_fanout_leaf=2 grange.rcu_fanout=2",
            "--trace=rcu.gp_*,rcu.qs_report,rcu.fqs",
            "--exec=test rcu_torture.no_reader_outlasts_a_grace_period",
        ],
        draw: |traced, _| grace_period::lanes(&traced.trace),
    },
    Figure {
        name: NAMES[1],
        words: &[
            "--cpus=2",
            "--nodes=1",
            "--profile=checking",
            "--trace=slab.*,rcu.gp_start,rcu.gp_end",
            "--exec=test figures.a_sheaf_comes_back*",
        ],
        draw: |traced, _| sheaf::lanes(&traced.trace),
    },
    Figure {
        name: NAMES[2],
        words: &[
            "--cpus=2",
            "--nodes=1",
            "--append=grange.trace_kib=2048",
            "--trace=figures.*",
            "--exec=test figures.an_nmi*",
        ],
        draw: |traced, symbols| nmi::lanes(&traced.trace, symbols),
    },
];

/// The words of `run` as a command line of their own.
#[derive(Parser)]
struct RunLine {
    #[command(flatten)]
    args: RunArgs,
}

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a kernel that fails is an [`Exit`] and not an error.
pub fn figures(workspace: &Workspace, args: &FiguresArgs) -> anyhow::Result<Exit> {
    for figure in FIGURES.iter().filter(|figure| args.name.as_deref().is_none_or(|name| name == figure.name)) {
        let line = ["run", "--deterministic", "--seed=7"].iter().chain(figure.words);
        let (exit, traced) = run::traced(workspace, &RunLine::try_parse_from(line)?.args)?;
        let Some(traced) = traced.filter(|_| exit == Exit::Passed) else { return Ok(exit) };
        let symbols = Symbols::load(&traced.kernel, &workspace.root)
            .ok_or_else(|| stop(Exit::Host, format!("{}: no debug information", traced.kernel.display())))?;
        let svg = (figure.draw)(&traced, &symbols)?.svg()?;
        let folder = if args.write { workspace.root.join("docs/figures") } else { traced.dir.clone() };
        println!("{}", put(&folder, figure.name, &svg)?);
    }
    Ok(Exit::Passed)
}

fn put(folder: &Path, name: &str, svg: &str) -> anyhow::Result<String> {
    std::fs::create_dir_all(folder)?;
    let file = folder.join(name).with_extension("svg");
    write(&file, svg)?;
    Ok(format!("{name}: {}", file.display()))
}

/// What is said where a trace does not have what a figure needs.
fn nothing(what: &str) -> anyhow::Error {
    stop(Exit::Incomplete, format!("the trace has no {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_name_and_a_line_that_run_takes() {
        for (figure, name) in FIGURES.iter().zip(NAMES) {
            assert_eq!(figure.name, name);
            let line = RunLine::try_parse_from(["run", "--deterministic"].iter().chain(figure.words)).unwrap();
            assert!(line.args.trace.is_some() && line.args.exec.is_some(), "{name}");
        }
    }
}
