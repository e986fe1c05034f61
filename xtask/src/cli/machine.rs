//! Which machine and which kernel: what the commands that boot have in common.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// A CPU and memory shape, and how QEMU is to run it.
#[derive(Args, Clone, Debug, Default)]
pub struct MachineArgs {
    /// CPUs, 1 to 255 [default: 4; of `test` those of its matrix]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// NUMA nodes; the CPUs are dealt out as evenly as they go [default: 2]
    #[arg(long, value_name = "N")]
    pub nodes: Option<u32>,
    /// CPUs of each node, for uneven machines: 4,2,1
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub node_cpus: Option<Vec<u32>>,
    /// Memory of the whole machine: 512M, 2G [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Memory of each node, for uneven machines: 256M,64M,0
    #[arg(long, value_name = "SIZE,SIZE,…", value_delimiter = ',', conflicts_with = "memory")]
    pub node_memory: Option<Vec<String>>,
    /// Distances between nodes in the SLIT
    #[arg(long, value_enum, default_value_t)]
    pub distance: Distance,
    /// KVM or emulation; auto takes KVM only where /dev/kvm opens and the CPU has vmx or svm
    #[arg(long, value_enum, default_value_t)]
    pub accel: Accel,
    /// Host threads of the emulator; auto gives one a CPU up to the host's cores, else one for all
    #[arg(long, value_enum, default_value_t)]
    pub thread: Thread,
    /// Bit-for-bit repeatable runs: one host thread, instruction counting, CPUs that never halt
    #[arg(long)]
    pub deterministic: bool,
    /// In deterministic runs an instruction takes 2^N ns of the guest's time; another N is another schedule
    #[arg(long, value_name = "N", requires = "deterministic", value_parser = clap::value_parser!(u8).range(0..=10))]
    pub shift: Option<u8>,
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

/// Node distances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Distance {
    /// Nodes stand in a ring: 10 to oneself, 10 more a hop
    #[default]
    Ring,
    /// Nodes stand in a row
    Line,
    /// No SLIT at all
    None,
}

/// Accelerators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM where it is real, else TCG
    #[default]
    Auto,
    /// The emulator
    Tcg,
    /// Hardware virtualisation
    Kvm,
}

/// TCG's host threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Thread {
    /// Multi up to the host's cores, single above
    #[default]
    Auto,
    /// One host thread a CPU: real concurrency
    Multi,
    /// One host thread for all CPUs: faster and fairer with many of them
    Single,
}

/// Build profiles of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// What figures are taken from
    Release,
    /// Optimised, with assertions: what tests run
    Checking,
    /// Not optimised
    Dev,
    /// `checking` with hooks inside locked sections, and a bug made on purpose if grange.bug= names one
    Mutants,
}

/// Which kernel.
#[derive(Args, Clone, Debug, Default)]
pub struct KernelArgs {
    /// Build profile of the kernel
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// Short for --profile release
    #[arg(long, conflicts_with_all = ["profile", "debug"])]
    pub release: bool,
    /// Short for --profile dev
    #[arg(long, conflicts_with = "profile")]
    pub debug: bool,
    /// Boot this kernel ELF instead of building one
    #[arg(long, value_name = "ELF", conflicts_with_all = ["profile", "release", "debug"])]
    pub kernel: Option<PathBuf>,
    /// Boot with this loader ELF instead of building one
    #[arg(long, value_name = "ELF")]
    pub loader: Option<PathBuf>,
    /// Features to build the kernel with; the commands choose them.
    #[arg(skip)]
    pub features: &'static [&'static str],
    /// With the feature `labs`: which answers, in the words of labs/build.rs.
    #[arg(skip)]
    pub labs: Option<String>,
}

impl KernelArgs {
    /// The profile asked for, or `default`.
    #[must_use]
    pub fn profile_or(&self, default: Profile) -> Profile {
        match (self.release, self.debug) {
            (true, _) => Profile::Release,
            (_, true) => Profile::Dev,
            _ => self.profile.unwrap_or(default),
        }
    }
}
