//! `cargo xtask trace`.

use std::time::Duration;

use clap::Args;

use super::values::{number, seconds};
use super::{KernelArgs, MachineArgs};

/// Arguments of `trace`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask trace --points 'rcu.*,sched.switch' -- 'test rcu.*'
  cargo xtask trace latest

With commands a machine is booted, as by `run --exec`, with these points on from before the
first grace period. Without, RUN is a run that left a core and was traced: `latest`, its folder,
or how its name or id begins. Both leave trace.perfetto.json, which ui.perfetto.dev opens, and
trace.ftrace.txt in the run's folder.")]
pub struct TraceArgs {
    /// A run whose machine died
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// The trace points, as globs; `trace list` in the kernel's shell names them
    #[arg(long, value_name = "GLOB,GLOB", default_value = "*")]
    pub points: String,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Seed of the kernel's random numbers: 24301, 0x5eed
    #[arg(long, value_name = "S", value_parser = number)]
    pub seed: Option<u64>,
    /// Give up after this time: 30, 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Commands of the kernel's shell, separated by `;`
    #[arg(last = true, value_name = "COMMANDS")]
    pub commands: Vec<String>,
}
