//! The tool of the project: builds the kernel, boots it in QEMU, tests it, and judges what came out.
//!
//! | module | does |
//! |---|---|
//! | [`cli`], [`exit`], [`workspace`], [`process`] | arguments, exit status, where things lie, child processes |
//! | [`toolchain`], [`artifact`] | makes sure of a bare-metal core and of QEMU; builds loader and kernel |
//! | [`shape`], [`kernel_args`], [`qemu`], [`qmp`] | a machine's shape and the QEMU line that gives it |
//! | [`frames`], [`ktap`], [`verdict`] | what a guest said on COM2, and whether that is a pass: pure functions |
//! | [`kernel_tests`], [`mutants`], [`symbols`], [`console`] | what is read from the kernel's ELF, and its addresses made readable |
//! | [`guest`], [`pulse`], [`rundir`], [`post_mortem`] | one boot under watch, and the folder that keeps what it left |
//! | [`replay`], [`load`], [`ledger`] | whether two boots were one, also on a busy host; what is kept of long runs |
//! | [`mod@trace`] | what trace points recorded, from a machine's memory or a core: a timeline, and ftrace's text |
//! | [`mod@figures`] | pictures that are drawn from that |
//! | [`run`] with [`typist`], [`test`], [`mod@torture`], [`rerun`], [`mod@bench`], [`smp`], [`debug`] | the commands that boot |
//! | [`lab`] | exercises: hands them out, and grades answers |
//! | [`plot`], [`spread`] | curves as SVG; the middle of several figures |
//! | [`lint`], [`models`], [`ci`], [`doctor`] | the others |
//!
//! It is a library so that the tests in `tests/` can use the parsers and the writer of frames.

pub mod artifact;
pub mod bench;
pub mod ci;
pub mod cli;
pub mod console;
pub mod debug;
pub mod doctor;
pub mod exit;
pub mod figures;
pub mod frames;
pub mod guest;
pub mod host_share;
pub mod kernel_args;
pub mod kernel_tests;
pub mod ktap;
pub mod lab;
pub mod ledger;
pub mod lint;
pub mod load;
pub mod models;
pub mod mutants;
pub mod plot;
pub mod post_mortem;
pub mod process;
pub mod pulse;
pub mod qemu;
pub mod qmp;
pub mod replay;
pub mod rerun;
pub mod run;
pub mod rundir;
pub mod shape;
pub mod smp;
pub mod spread;
pub mod symbols;
pub mod test;
pub mod toolchain;
pub mod torture;
pub mod trace;
pub mod typist;
pub mod verdict;
pub mod watchdog;
pub mod workspace;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::exit::Exit;
use crate::workspace::Workspace;

/// Parses the arguments, runs the command and turns its end into the exit status of [`Exit`].
#[must_use]
pub fn main() -> ExitCode {
    process::end_quietly_when_nobody_reads();
    process::watch_for_interrupts();
    let cli = Cli::parse();
    let end = match dispatch(cli) {
        Ok(end) => end,
        Err(error) => {
            eprintln!("error: {error:#}");
            exit::of(&error)
        }
    };
    let end = if process::interrupted() { Exit::Interrupted } else { end };
    ExitCode::from(end.code())
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let workspace = Workspace::find(&cli.global)?;
    match cli.command {
        Command::Run(args) => run::run(&workspace, &args),
        Command::Test(args) => test::test(&workspace, &args),
        Command::Torture(args) => torture::torture(&workspace, &args),
        Command::Rerun(args) => rerun::rerun(&workspace, &args),
        Command::Bench(args) => bench::bench(&workspace, &args),
        Command::Lab(args) => lab::lab(&workspace, &args),
        Command::Smp(args) => smp::smp(&workspace, &args),
        Command::Trace(args) => trace::trace(&workspace, &args),
        Command::Figures(args) => figures::figures(&workspace, &args),
        Command::Debug(args) => debug::debug(&workspace, &args),
        Command::Lint(args) => lint::lint(&workspace, &args),
        Command::Models(args) => models::models(&workspace, &args),
        Command::Ci(args) => ci::ci(&workspace, &args),
        Command::Doctor(args) => doctor::doctor(&workspace, &args),
        Command::Build(args) => artifact::command(&workspace, &args),
    }
}
