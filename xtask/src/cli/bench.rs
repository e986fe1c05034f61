//! `cargo xtask bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{KernelArgs, MachineArgs};

/// Arguments of `bench`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask bench 'sched.*' --count --check-goals
  cargo xtask bench rcu_scale --sizes 1,2,4,16,64 --runs 5 --baseline before

Figures are medians a single operation. With --count they are instructions and exact: the same
in every run of the same kernel. Without, they are nanoseconds under the emulator, and only their
ratios mean something.")]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// An experiment instead of single benches.
    #[command(subcommand)]
    pub what: Option<BenchWhat>,
    /// Benches to run: globs over `suite.bench`
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// List the benches and their goals, read from the kernel's ELF, and stop
    #[arg(long)]
    pub list: bool,
    /// Count instructions (-icount shift=0) instead of taking the time
    #[arg(long, conflicts_with_all = ["accel", "thread"])]
    pub count: bool,
    /// The slab allocator and RCU as a host program, beside others (needs a C++ compiler); boots nothing
    #[arg(long, exclusive = true)]
    pub native: bool,
    /// Boots; the median of their medians is the figure
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub runs: u32,
    /// Machines of so many CPUs, one after another, and a table over them
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', conflicts_with_all = ["cpus", "node_cpus", "save", "baseline"])]
    pub sizes: Vec<u32>,
    /// Keep the figures under this name, for --baseline
    #[arg(long, value_name = "NAME")]
    pub save: Option<String>,
    /// Show the ratio to an earlier run: a name given to --save, or the folder of a run
    #[arg(long, value_name = "RUN")]
    pub baseline: Option<String>,
    /// End with status 1 if a figure misses its goal
    #[arg(long)]
    pub check_goals: bool,
    /// The machine; 2 CPUs on 1 node if nothing is said.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// More arguments for QEMU, as they are
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu_args: Vec<String>,
}

/// Experiments that choose their machines and benches themselves.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchWhat {
    /// All ways to free after a grace period, on all machines that docs/back-ends.md tells of: its tables and plots
    KfreeRcu(KfreeRcuArgs),
    /// rcuscale's test of kfree_rcu on a Linux image, on the same machines, and ours beside it
    Linux(LinuxArgs),
}

/// Arguments of `bench kfree-rcu`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask bench kfree-rcu --only counted
  cargo xtask bench kfree-rcu --write --bzimage bzImage --initrd initrd")]
pub struct KfreeRcuArgs {
    /// Count instructions on every machine, not only where the experiment does anyway
    #[arg(long, visible_alias = "icount")]
    pub count: bool,
    /// Boots of each machine; medians are over all
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Only machines whose name holds this word: rcuscale-2, rcuscale-4, flood, counted, rates, native
    #[arg(long, value_name = "WORD")]
    pub only: Option<String>,
    /// Put tables and plots into docs/back-ends.md
    #[arg(long)]
    pub write: bool,
    /// A Linux image to measure in the same hour; see docs/linux.md
    #[arg(long, value_name = "FILE", requires = "initrd")]
    pub bzimage: Option<PathBuf>,
    /// Its initial file system
    #[arg(long, value_name = "FILE", requires = "bzimage")]
    pub initrd: Option<PathBuf>,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
}

/// Arguments of `bench linux`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask bench linux --bzimage bzImage --initrd initrd
  cargo xtask bench linux --count --bzimage bzImage --initrd initrd")]
pub struct LinuxArgs {
    /// The image, with rcuscale built in; see docs/linux.md
    #[arg(long, value_name = "FILE")]
    pub bzimage: PathBuf,
    /// Its initial file system
    #[arg(long, value_name = "FILE")]
    pub initrd: PathBuf,
    /// Count instructions instead of taking the time: repeatable, on a busy host too
    #[arg(long, visible_alias = "icount")]
    pub count: bool,
    /// Boots of each machine; medians are over all
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// Our kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
}
