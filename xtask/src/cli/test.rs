//! `cargo xtask test` and `cargo xtask rerun`.

use std::path::PathBuf;

use clap::Args;

use super::values::{SeedRange, number, seed_range};
use super::{KernelArgs, MachineArgs};

/// Arguments of `test`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask test 'percpu.*' --cpus 8 --nodes 4
  cargo xtask test --kernel-only --repeat 100 --until-fail --seed 0x5eed

A filter is a glob over `suite.test`; one without a dot means a whole suite or a test of any suite. Host tests are
chosen by the same words, with `::` for the dot. Without filters everything runs.

With --deterministic the in-kernel tests run on 4 CPUs on 2 nodes, unless a shape is given; every repetition has the same
seed and must leave the same bytes on both serial lines. The first that does not is a failure (status 1), told with the
first event that differs.")]
pub struct TestArgs {
    /// Tests to run: globs over `suite.test`
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Run the tests tagged `slow`, too: they take minutes
    #[arg(long)]
    pub slow: bool,
    /// List the in-kernel tests, read from the kernel's ELF, and stop
    #[arg(long)]
    pub list: bool,
    /// The machine; a shape given here takes the place of the matrix.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Go through the in-kernel tests so many times, each time with the next seed; with --deterministic always with the
    /// same, and compare
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub repeat: u32,
    /// Go through the in-kernel tests once with each of these seeds: 1..100, 1..=100
    #[arg(long, value_name = "A..B", value_parser = seed_range, conflicts_with_all = ["seed", "repeat", "until_fail"])]
    pub seeds: Option<SeedRange>,
    /// Pause at random places of lock and list code, which the seed chooses: another seed, another schedule
    #[arg(long, requires = "deterministic", conflicts_with = "kernel")]
    pub explore: bool,
    /// Make these bugs on purpose, one after the other, and run the tests that have to find them: names
    /// or globs such as `rcu.*`, `all`, or `list`
    #[arg(long, value_name = "NAME,NAME,…", value_delimiter = ',', conflicts_with_all = [
        "filters", "list", "host_only", "deterministic", "repeat", "seeds", "until_fail", "kernel", "profile", "release",
        "debug", "ledger", "junit", "json", "print_qemu"
    ])]
    pub mutant: Option<Vec<String>>,
    /// Keep so many busy loops running on the host meanwhile
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub load: u32,
    /// Switch on the trace points that fit, and leave what they recorded in each boot's folder
    #[arg(long, value_name = "GLOB,GLOB")]
    pub trace: Option<String>,
    /// Add a row about this run to a ledger such as docs/soak.csv
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Stop after the first repetition with a failure; without --repeat, repeat until there is one
    #[arg(long)]
    pub until_fail: bool,
    /// Seed of the tests' random numbers: 24301, 0x5eed
    #[arg(long, value_name = "S", value_parser = number)]
    pub seed: Option<u64>,
    /// Multiply every time limit by this
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub timeout_scale: f64,
    /// Also write the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Also write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only the unit tests on the host
    #[arg(long, conflicts_with = "kernel_only")]
    pub host_only: bool,
    /// Only the tests in the kernel
    #[arg(long)]
    pub kernel_only: bool,
    /// Said just before the last line: what else of CI failed
    #[arg(long, value_name = "TEXT", hide = true)]
    pub note: Option<String>,
    /// More arguments for QEMU, as they are
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu_args: Vec<String>,
}

/// Arguments of `rerun`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask rerun latest
  cargo xtask rerun 4db5 --only-failed

The command line of the run is taken from its run.json, with the seed that it had. The status is that of the new run; it is
1 as well where a deterministic run of the same build left other logs.")]
pub struct RerunArgs {
    /// The run: `latest`, the folder, or how its name or the id at its end begins
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Only the tests that failed then
    #[arg(long)]
    pub only_failed: bool,
}
