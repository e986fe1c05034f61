//! `cargo xtask torture`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::{SeedRange, number, seed_range};
use super::{KernelArgs, MachineArgs};
use crate::torture::shard::Shard;

/// Arguments of `torture`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask torture TREE01 'SLAB*' --minutes 5
  cargo xtask torture --shard 2/8 --seed 1

A scenario is a file torture/NAME.toml; 3*TREE01 is three boots of one. Without names the default list runs, as many
boots at once as the host has cores for. docs/torture.md tells what the lines say and how to use many machines.")]
#[command(args_conflicts_with_subcommands = true)]
pub struct TortureArgs {
    /// What to do instead of torturing.
    #[command(subcommand)]
    pub what: Option<TortureWhat>,
    /// Scenarios: names or globs, with a number and * before one for so many boots
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// List the scenarios and what they cover, and stop
    #[arg(long)]
    pub list: bool,
    /// With --list: a table of what each scenario sets
    #[arg(long, requires = "list")]
    pub coverage: bool,
    /// Say what would run, in which order and how long, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// How long each scenario tortures, in minutes of the guest's time, instead of what its file says
    #[arg(long, value_name = "N", value_parser = minutes)]
    pub minutes: Option<f64>,
    /// Seed of the random numbers: 24301, 0x5eed
    #[arg(long, value_name = "S", value_parser = number)]
    pub seed: Option<u64>,
    /// With --deterministic: a boot with each of these seeds, 1..100 or 1..=100 [default: 1..=100]
    #[arg(long, value_name = "A..B", value_parser = seed_range, requires = "deterministic", conflicts_with = "seed")]
    pub seeds: Option<SeedRange>,
    /// With --deterministic: boot each seed so often, and compare what it left byte by byte
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..),
        requires = "deterministic")]
    pub repeat: u32,
    /// Keep so many busy loops running on the host meanwhile
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub load: u32,
    /// Make these bugs on purpose, one after the other, and see which scenarios notice: names or globs such as `rcu.*`;
    /// without any, all that the scenarios' files name
    #[arg(long, value_name = "NAME,NAME,…", value_delimiter = ',', num_args = 0..=1, default_missing_value = "all",
        conflicts_with_all = ["shard", "seeds", "seed", "deterministic", "load", "dry_run", "print_qemu", "junit", "ledger",
            "profile", "release", "debug", "kernel"])]
    pub mutants: Option<Vec<String>>,
    /// With --mutants: a few that show at once
    #[arg(long, requires = "mutants")]
    pub quick: bool,
    /// Cores of the host to use [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: Option<u32>,
    /// Only the K-th of N parts of the list; `torture merge` puts the results together
    #[arg(long, value_name = "K/N", value_parser = Shard::parse)]
    pub shard: Option<Shard>,
    /// Where the results go.
    #[command(flatten)]
    pub reports: OutputArgs,
    /// The machine, where it is to be another than the scenario's.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
}

/// Where results go.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputArgs {
    /// Also write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also write the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Add a row about this run to a ledger such as docs/torture.csv
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
}

/// What else `torture` does.
#[derive(Clone, Debug, Subcommand)]
pub enum TortureWhat {
    /// Put the results of shards together: one table, one verdict, and the names of shards that are missing
    Merge(MergeArgs),
}

/// Arguments of `torture merge`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask torture merge shard-*.json
  cargo xtask torture merge /cluster/out/* --ledger docs/torture.csv")]
pub struct MergeArgs {
    /// Folders of runs, or what they wrote with --json
    #[arg(value_name = "DIR", required = true)]
    pub shards: Vec<PathBuf>,
    /// Where the results go.
    #[command(flatten)]
    pub reports: OutputArgs,
}

/// Minutes, also parts of one.
fn minutes(text: &str) -> Result<f64, String> {
    let parsed = text.parse::<f64>().ok().filter(|minutes| *minutes > 0.0 && *minutes <= 1440.0);
    parsed.ok_or_else(|| "minutes above 0 and up to 1440, such as 0.5 or 30".to_owned())
}
