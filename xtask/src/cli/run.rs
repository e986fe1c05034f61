//! `cargo xtask run`.

use std::time::Duration;

use clap::Args;

use super::values::{number, seconds};
use super::{KernelArgs, MachineArgs};

/// Arguments of `run`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask run --cpus 8 --nodes 4
  cargo xtask run --exec \"cpus; mem\" --timeout 30s")]
pub struct RunArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Run these shell commands, separated by `;`, and leave with their status
    #[arg(long, value_name = "CMD; CMD")]
    pub exec: Option<String>,
    /// Switch on the trace points that fit, and leave what they recorded in the run's folder
    #[arg(long, value_name = "GLOB,GLOB")]
    pub trace: Option<String>,
    /// Seed of the kernel's random numbers: 24301, 0x5eed
    #[arg(long, value_name = "S", value_parser = number)]
    pub seed: Option<u64>,
    /// Give up after this time: 30, 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// More arguments for QEMU, as they are
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu_args: Vec<String>,
}
