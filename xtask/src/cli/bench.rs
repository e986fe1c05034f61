//! `cargo xtask bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Accel, KernelArgs, MachineArgs, Thread};

/// Arguments of `bench`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask bench 'sched.*' --icount --check-goals
  cargo xtask bench all --against before --html bench.html

Figures are medians of a single operation. With --icount they are instructions and exact: the same in
every run of the same kernel. Without, they are nanoseconds under the emulator, and only their ratios
mean something. A figure that moved against a saved run is marked: instructions when they differ, time
when the boots of both runs, at least three each, have no figure in common and differ by more than
those of one run.")]
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
    /// End with status 1 if a figure misses its goal
    #[arg(long)]
    pub check_goals: bool,
    /// The machine.
    #[command(flatten)]
    pub machine: BenchMachine,
    /// The figures.
    #[command(flatten)]
    pub figures: FigureArgs,
    /// More arguments for QEMU, as they are
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu_args: Vec<String>,
}

/// The machine of single benches.
#[derive(Args, Clone, Debug, Default)]
pub struct BenchMachine {
    /// CPUs; of several numbers each is a machine, one after another [default: 2]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub cpus: Vec<u32>,
    /// NUMA nodes; the CPUs are dealt out as evenly as they go [default: 1]
    #[arg(long, value_name = "N")]
    pub nodes: Option<u32>,
    /// CPUs of each node, for uneven machines: 4,2,1
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', conflicts_with = "cpus")]
    pub node_cpus: Option<Vec<u32>>,
    /// Memory of the whole machine: 512M, 2G [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// KVM or emulation; auto takes KVM only where /dev/kvm opens and the CPU has vmx or svm
    #[arg(long, value_enum, default_value_t, conflicts_with = "icount")]
    pub accel: Accel,
    /// Host threads of the emulator; auto gives one a CPU up to the host's cores, else one for all
    #[arg(long, value_enum, default_value_t, conflicts_with = "icount")]
    pub thread: Thread,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// Kernel command line, as `key=value key=value`
    #[arg(long, value_name = "LINE", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Save no memory of a machine that dies
    #[arg(long)]
    pub no_core: bool,
    /// Print the QEMU line as a runnable script and stop
    #[arg(long)]
    pub print_qemu: bool,
}

impl BenchMachine {
    /// The machines, in the order in which they are asked for; one if no number of CPUs is.
    #[must_use]
    pub fn machines(&self) -> Vec<MachineArgs> {
        let machine = |cpus| MachineArgs {
            cpus,
            nodes: self.nodes,
            node_cpus: self.node_cpus.clone(),
            memory: self.memory.clone(),
            accel: self.accel,
            thread: self.thread,
            qemu: self.qemu.clone(),
            append: self.append.clone(),
            no_core: self.no_core,
            ..MachineArgs::default()
        };
        match self.cpus.as_slice() {
            [] => vec![machine(None)],
            several => several.iter().map(|&cpus| machine(Some(cpus))).collect(),
        }
    }
}

/// How figures are taken and what becomes of them.
#[derive(Args, Clone, Debug, Default)]
pub struct FigureArgs {
    /// Count instructions (-icount shift=0) on every machine instead of taking the time
    #[arg(long, alias = "count")]
    pub icount: bool,
    /// Boots of each machine; the median of their medians is the figure [default: 1; of an experiment's machines that take the
    /// time of short operations 3, from which on a later run can be compared]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: Option<u32>,
    /// Keep the figures under this name, for --against
    #[arg(long, value_name = "NAME")]
    pub save: Option<String>,
    /// Mark what moved against an earlier run: a name given to --save, or the folder of a run
    #[arg(long, alias = "baseline", value_name = "RUN")]
    pub against: Option<String>,
    /// Write a report with plots to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the figures as JSON to this file too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
}

/// Experiments that choose their machines and benches themselves.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchWhat {
    /// The slab allocator: instructions of its paths, and beside other allocators and without sheaves
    Slab(ExperimentArgs),
    /// RCU: readers by flavour, callbacks, grace periods and how long they take under load
    Rcu(ExperimentArgs),
    /// All ways to free after a grace period: the tables and plots of docs/back-ends.md
    KfreeRcu(ExperimentArgs),
    /// How fast machines bring their CPUs online
    Smp(ExperimentArgs),
    /// The slab allocator and RCU as a host program, beside others (needs a C++ compiler); boots nothing
    Native(ExperimentArgs),
    /// rcuscale's tests of kfree_rcu and of grace periods on a Linux image, and ours beside it on the same machines
    Linux(ExperimentArgs),
    /// All of these; Linux if its image is given
    All(ExperimentArgs),
    /// Hold the instructions of the fast paths against the bounds in tests/guard.toml: exact, at any load of the host
    Guard(GuardArgs),
    /// Make a report of a run that was saved or left in its folder
    Report(ReportArgs),
}

/// Arguments of an experiment.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
A run says at its beginning how long it takes, about: `all` a quarter of an hour on two idle cores.

Examples:
  cargo xtask bench slab --icount --cpus 1,2,4 --html slab.html
  cargo xtask bench kfree-rcu --write --bzimage bzImage --initrd initrd")]
pub struct ExperimentArgs {
    /// Numbers of CPUs, where the experiment goes over several [default: 1,2,4,8,16; of `smp` 64 as well]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub cpus: Vec<u32>,
    /// Only machines whose name holds this word; one that none holds is answered with all names
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
    /// The figures.
    #[command(flatten)]
    pub figures: FigureArgs,
}

/// Arguments of `bench guard`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask bench guard
  cargo xtask bench guard --write")]
pub struct GuardArgs {
    /// Make what is measured now the bounds
    #[arg(long)]
    pub write: bool,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
}

/// Arguments of `bench report`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask bench report before --html bench.html
  cargo xtask bench report after --against before")]
pub struct ReportArgs {
    /// The run: a name given to --save, or the folder of a run
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Mark what moved against this one
    #[arg(long, value_name = "RUN")]
    pub against: Option<String>,
    /// Write the report with plots to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Put tables and plots into docs/back-ends.md
    #[arg(long)]
    pub write: bool,
}
