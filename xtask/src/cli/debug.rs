//! `cargo xtask debug`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum as _};

use super::values::{number, seconds};
use super::{CoreRoute, KernelArgs, MachineArgs};

/// Arguments of `debug`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask debug --test 'sched_mutex.*' --cpus 4
  cargo xtask debug --core latest --exec \"gr-cpus; gr-tasks\"

The kernel stops at its first instruction or at the first of --break and --test, and where it panics or a test fails.
Commands of gdb for Grange: gr-cpus, gr-tasks, gr-bt-all [threads], gr-percpu NAME [CPU].
RUN is a folder of a run, the beginning of its name or of its id, or `latest`.")]
pub struct DebugArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Run these tests and stop where each begins: a glob over `suite.test`
    #[arg(long, value_name = "GLOB", conflicts_with_all = ["core", "replay"])]
    pub test: Option<String>,
    /// Stop here too: a function (panic::die) or file:line
    #[arg(long = "break", value_name = "PLACE", conflicts_with = "core")]
    pub breaks: Vec<String>,
    /// Open the core file that a run left
    #[arg(long = "core", id = "core", value_name = "RUN", conflicts_with = "replay")]
    core_or_route: Option<String>,
    /// Run the machine of a failed run once more, with the same kernel and the same line
    #[arg(long, value_name = "RUN")]
    pub replay: Option<String>,
    /// Run these commands of gdb, separated by `;`, and leave; a failed one is status 1
    #[arg(long, value_name = "CMD; CMD")]
    pub exec: Option<String>,
    /// Seed of the tests' random numbers: 24301, 0x5eed
    #[arg(long, value_name = "S", value_parser = number, default_value = "1")]
    pub seed: u64,
    /// Give up after this time: 30, 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// The gdb program
    #[arg(long, value_name = "PATH", default_value = "gdb")]
    pub gdb: PathBuf,
    /// More arguments for QEMU, as they are
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu_args: Vec<String>,
}

impl DebugArgs {
    /// The run whose core is to be opened. The global option of the same name leaves its words here, too.
    #[must_use]
    pub fn core_of(&self) -> Option<&str> {
        self.core_or_route.as_deref().filter(|word| CoreRoute::from_str(word, false).is_err())
    }
}
