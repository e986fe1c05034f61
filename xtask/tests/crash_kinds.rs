//! Every way to die, on a real machine: what the command ends with, what the kernel says, and how long it takes.
//!
//! One row a way. The kernel's own list (`panic --list`) must have no kind without a row. A machine is never judged by
//! the host's clock: the report says by the guest's how long it took.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use object::{Object as _, ObjectSection as _};
use xtask::artifact::{self, Artifacts};
use xtask::cli::{Global, KernelArgs, Profile};
use xtask::exit::{self, Exit};
use xtask::workspace::Workspace;

/// From the crash to the last word, by the guest's clock.
const LIMIT_MS: u64 = 2_000;

/// How often a row is tried whose host did not let it finish in time.
const TRIES: u32 = 3;

/// Machines at once; most of the time of a hang is spent waiting.
const AT_ONCE: usize = 4;

/// How the kernel is made to die.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The shell's `panic KIND CPU`.
    Shell(&'static str, u32),
    /// `grange.crash=KIND`.
    Early(&'static str),
    /// By a kernel file that was damaged before the boot.
    Damaged(Damage),
}
use Way::{Damaged, Early, Shell};

/// What is wrong with the kernel file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// Its configuration asks the loader for another place than its code: the kernel's first statements refuse that,
    /// before the serial line, the interrupt table or the command line.
    Config,
    /// The file is cut short: the loader refuses it.
    CutShort,
}

/// A way to die, and what must come of it.
#[derive(Clone, Copy, Debug)]
struct Row {
    cpus: u32,
    way: Way,
    exit: Exit,
    /// What the kernel says.
    says: &'static str,
    /// What is among the functions; empty where there is nothing to symbolize.
    shows: &'static str,
}

/// A row whose command ends as a panic.
const fn dies(cpus: u32, way: Way, says: &'static str, shows: &'static str) -> Row {
    Row { cpus, way, exit: Exit::Panicked, says, shows }
}

/// A row whose command ends as a hang.
const fn hangs(cpus: u32, way: Way, says: &'static str, shows: &'static str) -> Row {
    Row { cpus, way, exit: Exit::Hung, says, shows }
}

const ROWS: &[Row] = &[
    // Before the command line is known.
    dies(
        2,
        Damaged(Damage::Config),
        "PANIC cpu 0: the loader mapped memory at",
        "start_machine at kernel/src/start.rs",
    ),
    dies(2, Damaged(Damage::CutShort), "grange-boot: cannot start the kernel", ""),
    // As soon as it is.
    dies(1, Early("panic"), "PANIC cpu 0: a panic on purpose", "panic at kernel/src/crash/panics.rs"),
    dies(1, Early("bug"), "PANIC cpu 0: assertion `left == right` failed", "bug at kernel/src/crash/panics.rs"),
    dies(2, Early("array_bounds"), "PANIC cpu 0: index out of bounds", "array_bounds at kernel/src/crash/panics.rs"),
    dies(
        1,
        Early("panic_log"),
        "PANIC cpu 0: a panic on purpose, while text",
        "panic_log at kernel/src/crash/panics.rs",
    ),
    dies(
        1,
        Early("panic_panic"),
        "and again, while saying so: PANIC cpu 0: a panic",
        "panic at kernel/src/crash/panics.rs",
    ),
    dies(1, Early("panic_panics"), "PANIC cpu 0: the first panic", ""),
    dies(
        1,
        Early("access_null"),
        "PANIC cpu 0: page fault: read from 0x8",
        "access_null at kernel/src/crash/faults.rs",
    ),
    dies(
        1,
        Early("access_wild"),
        "PANIC cpu 0: general protection fault",
        "non_canonical at kernel/arch/src/bare/wreck.rs",
    ),
    dies(1, Early("write_ro"), "which is read-only", "write_ro at kernel/src/crash/faults.rs"),
    dies(1, Early("write_kern"), "which is read-only", "write_kern at kernel/src/crash/faults.rs"),
    dies(1, Early("exec_data"), "which is not executable", "call at kernel/src/crash/faults.rs"),
    dies(
        1,
        Early("exec_null"),
        "PANIC cpu 0: page fault: instruction fetch from 0x1",
        "call at kernel/src/crash/faults.rs",
    ),
    dies(1, Early("exhaust_stack"), "PANIC cpu 0: stack overflow", "deeper at kernel/src/crash/faults.rs"),
    dies(1, Early("invalid_opcode"), "PANIC cpu 0: invalid instruction", "invalid_opcode at kernel/"),
    dies(1, Early("double_fault"), "PANIC cpu 0: double fault", "double_fault at kernel/"),
    dies(1, Early("triple_fault"), "the machine was reset: a triple fault", ""),
    hangs(1, Early("loop"), "NMI on cpu 0 during early boot", "endless_loop at kernel/src/crash/hangs.rs"),
    hangs(2, Early("hardlockup"), "NMI on cpu 0 during early boot", "hardlockup at kernel/src/crash/hangs.rs"),
    // On the boot CPU, alone.
    dies(1, Shell("panic", 0), "PANIC cpu 0: a panic on purpose", "panic at kernel/src/crash/panics.rs"),
    dies(1, Shell("panic_irq", 0), "in an interrupt over task crash/", "at kernel/src/crash/panics.rs"),
    dies(1, Shell("panic_nmi", 0), "in an NMI over task crash/", "at kernel/sync/src/nmi.rs"),
    dies(1, Shell("panic_print", 0), "in an NMI over task crash/", "log_line at kernel/src/console.rs"),
    dies(1, Shell("panic_all", 0), "PANIC cpu 0: a panic on purpose, everywhere", "at kernel/src/crash/panics.rs"),
    dies(
        1,
        Shell("exhaust_stack", 0),
        "PANIC cpu 0: stack overflow of task crash/",
        "deeper at kernel/src/crash/faults.rs",
    ),
    dies(1, Shell("double_fault", 0), "PANIC cpu 0: double fault", "double_fault at kernel/"),
    hangs(1, Shell("hardlockup", 0), "cpu 0 was in task crash/", "hardlockup at kernel/src/crash/hangs.rs"),
    hangs(1, Shell("halt", 0), "cpu 0 was in task crash/", "at kernel/src/crash/hangs.rs"),
    // On another CPU.
    dies(2, Shell("panic", 1), "PANIC cpu 1: a panic on purpose", "panic at kernel/src/crash/panics.rs"),
    dies(2, Shell("bug", 1), "PANIC cpu 1: assertion `left == right` failed", "bug at kernel/src/crash/panics.rs"),
    dies(2, Shell("array_bounds", 1), "PANIC cpu 1: index out of bounds", "array_bounds at kernel/src/crash/panics.rs"),
    dies(
        2,
        Shell("panic_irq", 1),
        "PANIC cpu 1: a panic on purpose, in an interrupt",
        "run_raised at kernel/sync/src/irq_work.rs",
    ),
    dies(2, Shell("panic_softirq", 1), "in a softirq over task crash/", "at kernel/src/crash/panics.rs"),
    dies(2, Shell("panic_nmi", 1), "PANIC cpu 1: a panic on purpose, in an NMI", "at kernel/sync/src/nmi.rs"),
    dies(2, Shell("panic_lock", 1), "  holds \"kernel.crash\" (", "panic_lock at kernel/src/crash/panics.rs"),
    dies(
        2,
        Shell("panic_console", 1),
        "a line that cannot be printed at once",
        "panic_console at kernel/src/crash/panics.rs",
    ),
    dies(
        2,
        Shell("panic_log", 1),
        "PANIC cpu 1: a panic on purpose, while text",
        "panic_log at kernel/src/crash/panics.rs",
    ),
    dies(2, Shell("panic_print", 1), "a line that is interrupted", "log_line at kernel/src/console.rs"),
    dies(
        2,
        Shell("panic_panic", 1),
        "and again, while saying so: PANIC cpu 1: a panic",
        "panic at kernel/src/crash/panics.rs",
    ),
    dies(2, Shell("panic_panics", 1), "PANIC cpu 1: the first panic", ""),
    dies(2, Shell("panic_all", 1), ": a panic on purpose, everywhere", "at kernel/src/crash/panics.rs"),
    dies(2, Shell("panic_all_nmi", 1), "PANIC cpu 0: a panic on purpose, in an NMI", "at kernel/src/crash/panics.rs"),
    dies(2, Shell("panic_all_nmi", 0), "PANIC cpu 1: a panic on purpose, in an NMI", "at kernel/src/crash/panics.rs"),
    dies(
        2,
        Shell("oom", 1),
        "PANIC cpu 1: memory allocation of 65536 bytes failed",
        "oom at kernel/src/crash/panics.rs",
    ),
    dies(
        2,
        Shell("access_null", 1),
        "PANIC cpu 1: page fault: read from 0x8",
        "access_null at kernel/src/crash/faults.rs",
    ),
    dies(
        2,
        Shell("access_wild", 1),
        "PANIC cpu 1: general protection fault",
        "non_canonical at kernel/arch/src/bare/wreck.rs",
    ),
    dies(2, Shell("write_ro", 1), "which is read-only", "write_ro at kernel/src/crash/faults.rs"),
    dies(2, Shell("write_kern", 1), "which is read-only", "write_kern at kernel/src/crash/faults.rs"),
    dies(2, Shell("exec_data", 1), "which is not executable", "call at kernel/src/crash/faults.rs"),
    dies(
        2,
        Shell("exec_null", 1),
        "PANIC cpu 1: page fault: instruction fetch from 0x1",
        "call at kernel/src/crash/faults.rs",
    ),
    dies(
        2,
        Shell("exhaust_stack", 1),
        "PANIC cpu 1: stack overflow of task crash/",
        "deeper at kernel/src/crash/faults.rs",
    ),
    dies(2, Shell("invalid_opcode", 1), "PANIC cpu 1: invalid instruction", "invalid_opcode at kernel/"),
    dies(2, Shell("double_fault", 1), "PANIC cpu 1: double fault", "double_fault at kernel/"),
    dies(2, Shell("triple_fault", 1), "the machine was reset: a triple fault", ""),
    dies(2, Shell("deadlock", 1), "PANIC cpu 1: self-deadlock on lock", "deadlock at kernel/src/crash/hangs.rs"),
    hangs(2, Shell("loop", 1), "cpu 1 was in task crash/", "endless_loop at kernel/src/crash/hangs.rs"),
    hangs(2, Shell("softlockup", 1), "cpu 1 was in task crash/", "softlockup at kernel/src/crash/hangs.rs"),
    hangs(2, Shell("hardlockup", 1), "cpu 1 was in task crash/", "hardlockup at kernel/src/crash/hangs.rs"),
    hangs(2, Shell("spinlockup", 1), "cpu 1 was in task crash/", "spinlockup at kernel/src/crash/hangs.rs"),
    hangs(
        2,
        Shell("smp_call_lockup", 1),
        "cpu 0 was in an interrupt over task ",
        "hardlockup at kernel/src/crash/hangs.rs",
    ),
    dies(2, Shell("rcu_stall", 1), "PANIC cpu 0: RCU stall: grace period ", "report at kernel/rcu/src/stall/report.rs"),
    hangs(2, Shell("hung_task", 1), "INFO: task crash:", "hung_task at kernel/src/crash/hangs.rs"),
    hangs(2, Shell("halt", 1), "cpu 0 was in an interrupt over task ", "at kernel/src/crash/hangs.rs"),
    // Among four.
    dies(4, Shell("panic", 2), "PANIC cpu 2: a panic on purpose", "panic at kernel/src/crash/panics.rs"),
    dies(4, Shell("panic_all", 3), ": a panic on purpose, everywhere", "at kernel/src/crash/panics.rs"),
    dies(4, Shell("panic_all_nmi", 3), "PANIC cpu 2: a panic on purpose, in an NMI", "at kernel/src/crash/panics.rs"),
    dies(4, Shell("panic_nmi", 3), "PANIC cpu 3: a panic on purpose, in an NMI", "at kernel/sync/src/nmi.rs"),
    hangs(4, Shell("hardlockup", 2), "cpu 2 was in task crash/", "hardlockup at kernel/src/crash/hangs.rs"),
    hangs(4, Shell("halt", 1), "cpu 3 was in an interrupt over task ", "at kernel/src/crash/hangs.rs"),
];

/// What all rows share.
struct Bench {
    artifacts: Artifacts,
    /// Where run folders and damaged kernels go.
    dir: tempfile::TempDir,
}

impl Bench {
    /// With the kernel that tests run; none where this host can build or boot none.
    fn new() -> Option<Bench> {
        let global = Global { no_install: true, ..Global::default() };
        let workspace = Workspace::find(&global).unwrap();
        let made = xtask::toolchain::emulator::ensure(&workspace, Path::new("qemu-system-x86_64"))
            .and_then(|_| artifact::make(&workspace, &KernelArgs::default(), Profile::Checking));
        match made {
            Ok(artifacts) => Some(Bench { artifacts, dir: tempfile::tempdir().unwrap() }),
            Err(error) if exit::of(&error) == Exit::Host => {
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Boots and returns the status and all that was said.
    fn run(&self, kernel: &Path, words: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["run", "--no-install", "--no-core", "--nodes", "1"]).args(words);
        command.arg("--loader").arg(&self.artifacts.loader).arg("--kernel").arg(kernel);
        let output = command.env("CARGO_TARGET_DIR", self.dir.path()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).replace('\r', ""))
    }

    /// A kernel file with this damage.
    fn damaged(&self, damage: Damage) -> PathBuf {
        let mut file = std::fs::read(&self.artifacts.kernel).unwrap();
        match damage {
            Damage::Config => {
                let (at, size) = object::File::parse(&*file)
                    .unwrap()
                    .section_by_name(".bootloader-config")
                    .and_then(|section| section.file_range())
                    .unwrap();
                let config = &mut file[at as usize..(at + size) as usize];
                let asked = 0xffff_8880_0000_0000_u64.to_le_bytes();
                let at = config.windows(8).position(|bytes| bytes == asked).unwrap();
                config[at..at + 8].copy_from_slice(&0xffff_9000_0000_0000_u64.to_le_bytes());
            }
            Damage::CutShort => file.truncate(file.len() / 2),
        }
        let path = self.dir.path().join(format!("{damage:?}"));
        std::fs::write(&path, file).unwrap();
        path
    }

    /// Lets the kernel die; what is wrong with how it died, if anything.
    fn check(&self, row: &Row) -> Result<(), String> {
        for attempt in 1.. {
            let cpus = row.cpus.to_string();
            let limit = format!("{}s", if row.exit == Exit::Hung { 2 << attempt } else { 60 });
            let mut words = vec!["--cpus", &cpus, "--timeout", &limit];
            let (mut kernel, line) = (
                self.artifacts.kernel.clone(),
                match row.way {
                    Shell(kind, cpu) => format!("panic {kind} {cpu}"),
                    Early(kind) => format!("grange.crash={kind}"),
                    Damaged(_) => String::new(),
                },
            );
            if matches!(row.way, Shell("hung_task", _)) {
                // All CPUs idle; the watchdog knows who should not, and is told not to wait for two minutes.
                words.extend(["--append", "hung_task_timeout_secs=1"]);
            }
            if matches!(row.way, Shell("rcu_stall", _)) {
                words.extend(["--append", "grange.panic_on_rcu_stall rcupdate.rcu_exp_cpu_stall_timeout=100"]);
            }
            match row.way {
                Shell(..) => words.extend(["--exec", &line]),
                Early(_) => words.extend(["--append", &line]),
                Damaged(damage) => kernel = self.damaged(damage),
            }
            let (code, said) = self.run(&kernel, &words);
            match judge(row, code, &said) {
                Ok(()) => return Ok(()),
                Err(Wrong::Slow(_)) if attempt < TRIES => {}
                Err(Wrong::Slow(what) | Wrong::Bad(what)) => return Err(format!("{row:?}: {what}\n{said}")),
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// Why a row does not hold.
enum Wrong {
    /// It took too long, which may be the host's doing.
    Slow(String),
    Bad(String),
}

fn judge(row: &Row, code: Option<i32>, said: &str) -> Result<(), Wrong> {
    let bad = |what: String| Err(Wrong::Bad(what));
    if code == Some(Exit::Hung.code().into()) && !matches!(row.way, Damaged(_)) && !said.contains("dying on purpose: ")
    {
        return Err(Wrong::Slow("the time was over before the crash".to_owned()));
    }
    if code != Some(row.exit.code().into()) {
        return bad(format!("ended with {code:?}"));
    }
    if !said.contains(row.says) {
        return bad(format!("does not say {:?}", row.says));
    }
    if !row.shows.is_empty() {
        let functions = said.split_once("With the functions:").map_or("", |(_, functions)| functions);
        if !functions.contains(row.shows) {
            return bad(format!("{:?} is not among the functions", row.shows));
        }
    }
    let reports = matches!(row.way, Shell(..)) && !row.says.contains("triple fault");
    for cpu in (0..row.cpus).filter(|_| reports) {
        let (dies, was) = (format!("PANIC cpu {cpu}: "), format!("cpu {cpu} was in "));
        if !said.contains(&dies) && !said.contains(&was) {
            return bad(format!("nothing about cpu {cpu}"));
        }
    }
    let end = said.split_once("end of the report, ").and_then(|(_, rest)| rest.split_once(" ms after"));
    match end.map(|(ms, _)| ms.parse::<u64>()) {
        Some(Ok(ms)) if ms <= LIMIT_MS => Ok(()),
        Some(ms) => Err(Wrong::Slow(format!("the report took {ms:?} ms"))),
        None if reports && row.exit == Exit::Panicked => bad("the report has no end".to_owned()),
        None => Ok(()),
    }
}

#[test]
fn every_way_to_die_ends_in_its_status_and_is_told_with_functions() {
    let Some(bench) = Bench::new() else { return };
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(row) = ROWS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(failure) = bench.check(row) {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), ROWS.len(), failures.join("\n\n"));
}

#[test]
fn every_kind_that_the_kernel_knows_has_a_row() {
    let Some(bench) = Bench::new() else { return };
    let (code, said) = bench.run(&bench.artifacts.kernel, &["--cpus", "1", "--exec", "panic --list --json"]);
    assert_eq!(code, Some(0), "{said}");
    let json = said.lines().find(|line| line.starts_with('{')).unwrap();
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let rows = json["panic"].as_array().unwrap();
    let named = |early: bool| -> BTreeSet<&str> {
        let of_row = |row: &Row| match row.way {
            Shell(kind, _) if !early => Some(kind),
            Early(kind) if early => Some(kind),
            _ => None,
        };
        ROWS.iter().filter_map(of_row).collect()
    };
    let known = |early: bool| -> BTreeSet<&str> {
        let rows = rows.iter().filter(|row| !early || row["on the command line"] == true);
        rows.map(|row| row["kind"].as_str().unwrap()).collect()
    };
    assert_eq!(known(false), named(false));
    assert_eq!(known(true), named(true));
}

#[test]
fn a_kind_that_is_none_is_refused_with_all_that_are() {
    let Some(bench) = Bench::new() else { return };
    let (code, said) = bench.run(&bench.artifacts.kernel, &["--cpus", "1", "--exec", "panic nul"]);
    assert_eq!(code, Some(Exit::TestsFailed.code().into()), "{said}");
    assert!(said.contains("panic: no such kind: nul; allowed: panic, bug, "), "{said}");
    let (code, said) = bench.run(&bench.artifacts.kernel, &["--cpus", "1", "--append", "grange.crash=nul"]);
    assert_eq!(code, Some(Exit::Usage.code().into()), "{said}");
    assert!(said.contains("bad value \"nul\" for \"grange.crash\": allowed is none, panic, bug, "), "{said}");
}

#[test]
fn a_cpu_that_is_offline_is_named_as_that_and_not_waited_for() {
    let Some(bench) = Bench::new() else { return };
    let (code, said) = bench.run(&bench.artifacts.kernel, &["--cpus", "2", "--exec", "cpu 1 off; panic"]);
    assert_eq!(code, Some(Exit::Panicked.code().into()), "{said}");
    assert!(said.contains("cpu 1 is offline") && !said.contains("does not answer"), "{said}");
}

#[test]
fn backtraces_of_a_running_machine_name_the_functions_of_cpus_and_of_sleeping_threads() {
    let Some(bench) = Bench::new() else { return };
    let (code, said) = bench.run(&bench.artifacts.kernel, &["--cpus", "2", "--exec", "bt cpu 1; bt all"]);
    assert_eq!(code, Some(0), "{said}");
    let (_, functions) = said.split_once("With the functions:").expect(&said);
    for (who, function) in [
        ("cpu 0: task boot/1, ", "bt at kernel/src/shell/views/bt.rs"),
        ("cpu 1: task idle/1/", "idle_once at kernel/sched/src/idle.rs"),
        ("task rcu_preempt/", "at kernel/rcu/src/gp"),
    ] {
        let (_, from_there) = functions.rsplit_once(who).unwrap_or_else(|| panic!("no {who} in {said}"));
        let trace = from_there.split("\ntask ").next().unwrap_or_default();
        let trace = trace.split("\ncpu ").next().unwrap_or_default();
        assert!(trace.contains(function), "{who}: {trace}");
    }
    let (code, said) = bench.run(&bench.artifacts.kernel, &["--cpus", "1", "--exec", "bt task 999"]);
    assert_eq!(code, Some(Exit::TestsFailed.code().into()), "{said}");
    assert!(said.contains("bt: 999 is no thread; `ps` lists them"), "{said}");
}
