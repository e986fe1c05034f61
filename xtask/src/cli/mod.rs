//! The command line: what holds for every command, and the list of commands. Each command has its own file; the doc
//! comments are the help text.

mod bench;
mod checks;
mod debug;
mod figures;
mod lab;
mod machine;
mod run;
mod setup;
mod smp;
mod test;
mod torture;
mod trace;
mod values;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

pub use bench::{BenchArgs, BenchMachine, BenchWhat, ExperimentArgs, FigureArgs, GuardArgs, ReportArgs};
pub use checks::{CiArgs, CiStep, LintArgs, ModelKind, ModelsArgs};
pub use debug::DebugArgs;
pub use figures::FiguresArgs;
pub use lab::{LabArgs, LabWhat};
pub use machine::{Accel, Distance, KernelArgs, MachineArgs, Profile, Thread};
pub use run::RunArgs;
pub use setup::{BuildArgs, DoctorArgs};
pub use smp::SmpArgs;
pub use test::{RerunArgs, TestArgs};
pub use torture::{MergeArgs, OutputArgs, TortureArgs, TortureWhat};
pub use trace::TraceArgs;
pub use values::SeedRange;

/// Build, boot, test and measure Grange.
///
/// Every command first makes sure of QEMU and of a Rust core library for the bare machine, and installs what is
/// missing where it may. `cargo xtask doctor` says what this machine has.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, after_help = EXIT_HELP, propagate_version = true)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_HELP: &str = "\
Examples:
  cargo xtask run                       boot to the shell, 4 CPUs on 2 nodes; Ctrl-A X leaves
  cargo xtask test                      all tests, on the host and in the kernel

Exit status (the first that applies wins):
  130 interrupted   7 build failed   2 usage   6 host or QEMU trouble   3 panic
  4 hang or time-out   5 output incomplete   1 tests failed   0 passed";

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Install nothing: stop with the commands to type instead
    #[arg(long, global = true)]
    pub no_install: bool,
    /// How to get a core library for the bare machine
    #[arg(long, global = true, value_name = "ROUTE", value_parser = core_routes(), default_value = "auto")]
    pub core: String,
    /// Print each child process that is started
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

impl Global {
    /// The way to a core library. `debug` has a `--core` of its own, which is a core file: there it is the usual way.
    #[must_use]
    pub fn core_route(&self) -> CoreRoute {
        CoreRoute::from_str(&self.core, false).unwrap_or_default()
    }
}

/// The words for [`CoreRoute`], with their help.
fn core_routes() -> PossibleValuesParser {
    let routes = CoreRoute::value_variants().iter();
    routes.filter_map(ValueEnum::to_possible_value).collect::<Vec<_>>().into()
}

/// Ways to a core library for x86_64-unknown-none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CoreRoute {
    /// The installed target, else rustup adds it, else build-std
    #[default]
    Auto,
    /// Only the target that comes with the toolchain
    Target,
    /// Compile core and alloc from the toolchain's own source
    BuildStd,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot in QEMU, with this terminal as the kernel's serial console
    Run(RunArgs),
    /// Run the tests: on the host, then in the kernel on a matrix of machines
    Test(TestArgs),
    /// Torture the kernel: scenarios of many loads at once, for minutes or hours
    Torture(TortureArgs),
    /// Run an earlier `test`, `torture` or `run` again, and tell what is different now
    Rerun(RerunArgs),
    /// Measure what operations of the kernel cost, in instructions or in time
    Bench(Box<BenchArgs>),
    /// Measure how fast machines of many shapes bring their CPUs online
    Smp(SmpArgs),
    /// Record what happens while the kernel runs commands, as a timeline; or take it out of the core of a run that failed
    Trace(TraceArgs),
    /// Exercises of a course: hand one out, grade an answer to it, or check that the graders are right
    Lab(LabArgs),
    /// Draw the book's figures from runs
    Figures(FiguresArgs),
    /// Look into the kernel with gdb: while it runs, or at the core of a run that failed
    Debug(DebugArgs),
    /// Check format, clippy, the order of the storeys, the rows of the requirements, and the links of the book
    Lint(LintArgs),
    /// Check lock-less code beyond what a test can: loom's models, and tests under Miri
    Models(ModelsArgs),
    /// What the project's CI runs: lint, models, a little torture, labs, the guard of fast paths, then test
    Ci(CiArgs),
    /// Say what this machine has and lacks, and with --fix install it
    Doctor(DoctorArgs),
    /// Build the loader and the kernel
    Build(BuildArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_with_options_shows_two_examples() {
        for command in Cli::command().get_subcommands().filter(|command| command.get_arguments().count() > 0) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = help.lines().filter(|line| line.starts_with("  cargo xtask")).count();
            assert_eq!(examples, 2, "{}", command.get_name());
        }
    }

    #[test]
    fn core_is_a_run_for_debug_and_a_route_for_all_commands() {
        let parse = |words: &[&str]| {
            let cli = Cli::try_parse_from([&["xtask", "debug"], words].concat()).unwrap();
            let Command::Debug(args) = cli.command else { panic!("not debug") };
            (args.core_of().map(str::to_owned), cli.global.core_route())
        };
        assert_eq!(parse(&[]), (None, CoreRoute::Auto));
        assert_eq!(parse(&["--core", "latest"]), (Some("latest".to_owned()), CoreRoute::Auto));
        assert_eq!(parse(&["--core", "build-std"]), (None, CoreRoute::BuildStd));
        assert!(Cli::try_parse_from(["xtask", "run", "--core", "latest"]).is_err());
        for more in [["--test", "nmi"], ["--break", "die"], ["--replay", "latest"]] {
            assert!(
                Cli::try_parse_from([&["xtask", "debug", "--core", "latest"], &more[..]].concat()).is_err(),
                "{more:?}"
            );
        }
    }

    #[test]
    fn everything_after_two_dashes_goes_to_qemu() {
        let cli = Cli::try_parse_from(["xtask", "run", "--cpus", "2", "--", "-d", "int"]).unwrap();
        let Command::Run(args) = cli.command else { panic!("not run") };
        assert_eq!(args.qemu_args, ["-d", "int"]);
        assert_eq!(args.machine.cpus, Some(2));
    }
}
