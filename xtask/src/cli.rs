//! The command line. The doc comments here are the help text.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Run an earlier `test` or `run` again, and tell what is different now
    Rerun(RerunArgs),
    /// Measure what operations of the kernel cost, in instructions or in time
    Bench(BenchArgs),
    /// Measure how fast machines of many shapes bring their CPUs online
    Smp(SmpArgs),
    /// Record what happens while the kernel runs commands, as a timeline; or take it out of the core of a run that failed
    Trace(TraceArgs),
    /// Look into the kernel with gdb: while it runs, or at the core of a run that failed
    Debug(DebugArgs),
    /// Check format, clippy, the order of the storeys, and the rows of the requirements
    Lint(LintArgs),
    /// Check lock-less code beyond what a test can: loom's models, and tests under Miri
    Models(ModelsArgs),
    /// What the project's CI runs: lint, models, then test
    Ci(CiArgs),
    /// Say what this machine has and lacks, and with --fix install it
    Doctor(DoctorArgs),
    /// Build the loader and the kernel
    Build(BuildArgs),
}

/// A CPU and memory shape, and how QEMU is to run it.
#[derive(Args, Clone, Debug, Default)]
pub struct MachineArgs {
    /// CPUs, 1 to 255 [default: 4; of `bench` 2, of `test` those of its matrix]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// NUMA nodes; the CPUs are dealt out as evenly as they go [default: 2; of `bench` 1]
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

/// Arguments of `smp`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask smp
  cargo xtask smp --cpus 2,8,16,64 --nodes 1 --runs 5")]
pub struct SmpArgs {
    /// Numbers of CPUs
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4,8,16,64")]
    pub cpus: Vec<u32>,
    /// Numbers of nodes; a shape with fewer CPUs than nodes is left out
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4")]
    pub nodes: Vec<u32>,
    /// Boots of each shape; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub runs: u32,
    /// Memory of the whole machine
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: String,
    /// KVM or emulation
    #[arg(long, value_enum, default_value_t)]
    pub accel: Accel,
    /// Host threads of the emulator
    #[arg(long, value_enum, default_value_t)]
    pub thread: Thread,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Kernel command line, as `key=value key=value`
    #[arg(long, value_name = "LINE", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Write the table as JSON to this file too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the plot to this file too
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

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

/// Arguments of `lint`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask lint
  cargo xtask lint --open-rows")]
pub struct LintArgs {
    /// Also list the rows of docs/requirements.md that are still open
    #[arg(long)]
    pub open_rows: bool,
}

/// Arguments of `models`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask models
  cargo xtask models loom log_ring

Miri needs a nightly toolchain with the components miri and rust-src; without one that part counts as one skipped test.")]
pub struct ModelsArgs {
    /// Only this kind
    #[arg(value_enum)]
    pub kind: Option<ModelKind>,
    /// Only tests with one of these in their path: log_ring, llist::
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
}

/// Checkers of lock-less code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelKind {
    /// Every order in which the threads of a small model can run
    Loom,
    /// Unit tests under an interpreter that finds undefined behaviour and data races
    Miri,
}

/// Arguments of `ci`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask ci
  cargo xtask ci lint")]
pub struct CiArgs {
    /// Only this step
    #[arg(value_enum)]
    pub step: Option<CiStep>,
}

/// The steps of CI, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CiStep {
    /// `cargo xtask lint`
    Lint,
    /// `cargo xtask models`
    Models,
    /// A few suites with exploration points, three times with one seed on a busy host: all have to be equal
    Deterministic,
    /// `cargo xtask test`
    Test,
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask doctor
  cargo xtask doctor --fix")]
pub struct DoctorArgs {
    /// Install what is missing
    #[arg(long)]
    pub fix: bool,
    /// One JSON object instead of lines
    #[arg(long)]
    pub json: bool,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
}

/// Arguments of `build`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask build
  cargo xtask build --profile checking")]
pub struct BuildArgs {
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
}

/// A time: bare numbers are seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    parsed.or_else(|| humantime::parse_duration(text).ok()).ok_or_else(|| "a time such as 30, 30s or 5m".to_owned())
}

/// Seeds that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedRange {
    /// The first.
    pub first: u64,
    /// The last, not before the first.
    pub last: u64,
}

/// Seeds as Rust writes a range.
fn seed_range(text: &str) -> Result<SeedRange, String> {
    let what = || "seeds such as 1..100 (without the 100) or 1..=100, at least one".to_owned();
    let (first, end) = text.split_once("..").ok_or_else(what)?;
    let first = number(first)?;
    let last = match end.strip_prefix('=') {
        Some(last) => number(last)?,
        None => number(end)?.checked_sub(1).ok_or_else(what)?,
    };
    if first <= last { Ok(SeedRange { first, last }) } else { Err(what()) }
}

/// A number, decimal or with 0x.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a number below 2^64 such as 24301 or 0x5eed".to_owned())
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
    fn times_and_seeds_are_read_in_their_usual_forms() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("5m"), Ok(Duration::from_secs(300)));
        assert!(seconds("-1").is_err());
        assert_eq!(number("0x5eed"), Ok(0x5eed));
        assert!(number("seed").is_err());
        assert_eq!(seed_range("1..100"), Ok(SeedRange { first: 1, last: 99 }));
        assert_eq!(seed_range("0x10..=16"), Ok(SeedRange { first: 16, last: 16 }));
        for bad in ["7", "5..5", "1..0", "0..0", "a..3", "2..=1", "1...3"] {
            assert!(seed_range(bad).is_err(), "{bad}");
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
