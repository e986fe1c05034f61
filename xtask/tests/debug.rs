//! `cargo xtask debug` with a real kernel, QEMU and gdb: cores, a live machine, a replay. Where one of the three cannot be
//! had the tests say so and do nothing.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use xtask::toolchain::find_program;

/// Loader and kernel, built once, or why there are none.
fn build() -> &'static Result<[PathBuf; 2], String> {
    static BUILD: OnceLock<Result<[PathBuf; 2], String>> = OnceLock::new();
    BUILD.get_or_init(|| {
        for program in ["gdb", "qemu-system-x86_64"] {
            find_program(Path::new(program)).ok_or_else(|| format!("no {program}"))?;
        }
        let output = xtask(&["build", "--profile", "checking", "--no-install"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.code() == Some(6) {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = |what: &str| {
            let line = text.lines().find(|line| line.starts_with(what)).unwrap();
            Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(line.split_whitespace().nth(1).unwrap())
        };
        Ok([path("loader"), path("kernel")])
    })
}

fn xtask(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(words);
    command
}

/// A place for runs of its own.
struct Bench {
    target: tempfile::TempDir,
    files: &'static [PathBuf; 2],
}

impl Bench {
    fn new(test: &str) -> Option<Bench> {
        match build() {
            Ok(files) => Some(Bench { target: tempfile::tempdir().unwrap(), files }),
            Err(why) => {
                // Not by a macro, whose output the test harness would keep to itself.
                let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
                None
            }
        }
    }

    fn xtask(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = xtask(words);
        command.env("CARGO_TARGET_DIR", self.target.path());
        if !words.contains(&"--core") && !words.contains(&"--replay") {
            command.arg("--loader").arg(&self.files[0]).arg("--kernel").arg(&self.files[1]);
        }
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', "")).concat();
        (status.code(), text)
    }
}

/// The rows of a table whose head begins with `head`, each cut into words.
fn table<'a>(text: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let rows = text.lines().skip_while(|line| !line.trim_start().starts_with(head)).skip(1);
    let rows = rows.map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.take_while(|row| row.first().is_some_and(|first| first.parse::<u32>().is_ok())).collect()
}

#[test]
fn a_panic_leaves_a_core_that_names_the_cpu_and_has_all_threads_of_all_nodes() {
    let Some(bench) = Bench::new("a panic leaves a core") else { return };
    let (status, ran) = bench.xtask(&["run", "--cpus", "3", "--nodes", "2", "--exec", "ps; panic"]);
    assert_eq!(status, Some(3), "{ran}");
    assert!(ran.contains("cargo xtask debug --core "), "{ran}");
    let commands = "gr-cpus; gr-tasks; gr-percpu PREEMPT_COUNT 1; gr-bt-all threads";
    let (status, seen) = bench.xtask(&["debug", "--core", "latest", "--exec", commands]);
    assert_eq!(status, Some(0), "{seen}");
    let cpus = table(&seen, "cpu  state");
    assert_eq!(cpus.len(), 3, "{seen}");
    let dying: Vec<_> = cpus.iter().filter(|row| row.concat().contains("grange::panic::")).collect();
    assert_eq!(dying.len(), 1, "{seen}");
    assert_eq!(&dying[0][..4], ["0", "online", "boot/1", "busy"], "{seen}");
    // The same stop: `panic` follows `ps` at once. Only counts may have gone on, and a pool may have started a worker, which
    // then comes last.
    let (ps, tasks) = (table(&ran, "tid"), table(&seen, "tid"));
    assert!(ps.len() > 8, "{ran}");
    assert!(tasks.len() >= ps.len() && tasks[ps.len()..].iter().all(|row| row[1].starts_with("kworker/")), "{seen}");
    for (shell, gdb) in ps.iter().zip(&tasks) {
        // ps: tid name state cpu bound prio voluntary involuntary; gr-tasks leaves out `bound`.
        assert_eq!((&shell[..2], shell[5]), (&gdb[..2], gdb[4]), "{seen}");
        if shell[4] == "yes" {
            assert_eq!(shell[3], gdb[3], "{seen}");
        }
        let number = |word: &str| word.parse::<u64>().unwrap();
        assert!(number(gdb[5]) >= number(shell[6]) && number(gdb[6]) >= number(shell[7]), "{seen}");
    }
    assert!(seen.contains("cpu 1 at 0xffff"), "{seen}");
    let sleeper = seen.split("task rcu_preempt/").nth(1).expect("a backtrace of the sleeping thread");
    assert!(sleeper.contains("grange_rcu::gp::"), "{seen}");
}

#[test]
fn a_core_says_whom_a_grace_period_waits_for() {
    let Some(bench) = Bench::new("a core of a stalled grace period") else { return };
    let stall = "grange.panic_on_rcu_stall rcupdate.rcu_exp_cpu_stall_timeout=100";
    let (status, ran) =
        bench.xtask(&["run", "--cpus", "3", "--nodes", "1", "--append", stall, "--exec", "panic rcu_stall 2"]);
    assert_eq!(status, Some(3), "{ran}");
    let (status, seen) = bench.xtask(&["debug", "--core", "latest", "--exec", "gr-rcu"]);
    assert_eq!(status, Some(0), "{seen}");
    assert!(seen.contains("expedited grace period -300 runs\nwaits for cpu 2\n"), "{seen}");
    let nodes = table(&seen, "level  cpus");
    assert_eq!(nodes.len(), 1, "{seen}");
    assert_eq!((nodes[0][1], nodes[0][4], nodes[0][5]), ("0-2", "0x4", "0x7"), "{seen}");
    let cpus = table(&seen, "cpu  watched");
    assert_eq!(cpus.len(), 3, "{seen}");
    // The one that stalls and the one that reports it are not idle.
    assert_eq!((cpus[0][1], cpus[2][1]), ("yes", "yes"), "{seen}");
}

#[test]
fn a_live_machine_stops_where_it_is_told_to_and_a_command_that_fails_is_status_1() {
    let Some(bench) = Bench::new("a live machine stops") else { return };
    let live = |exec: &str| {
        bench.xtask(&[
            "debug",
            "--cpus",
            "2",
            "--nodes",
            "1",
            "--append",
            "grange.exec=panic",
            "--break",
            "speak",
            "--exec",
            exec,
            "--timeout",
            "60",
        ])
    };
    // The first stop is where every death passes; --break adds its own behind it.
    let (status, seen) = live("bt 1; continue; gr-cpus; bt");
    assert_eq!(status, Some(0), "{seen}");
    assert!(seen.contains("#0  die ()"), "{seen}");
    assert!(table(&seen, "cpu  state")[0].concat().contains("grange::panic::"), "{seen}");
    assert!(seen.contains("kernel/src/shell/"), "the frames of the command: {seen}");
    for (exec, said) in [
        ("gr-percpu NO_SUCH", "no per-CPU variable NO_SUCH"),
        ("gr-percpu CURRENT 7", "no CPU 7"),
        ("gr-rcu 1", "gr-rcu takes no argument"),
        ("python static('grange_sched::no_such')", "no static grange_sched::no_such"),
        ("python field(current(0).value, 'no_such')", "has no field no_such"),
    ] {
        let (status, seen) = live(exec);
        assert_eq!(status, Some(1), "{seen}");
        assert!(seen.contains(said), "{seen}");
    }
}

#[test]
fn a_deterministic_failure_is_met_again_with_the_frames_behind_its_interrupt() {
    let Some(bench) = Bench::new("a deterministic failure is met again") else { return };
    let (status, ran) = bench.xtask(&["run", "--deterministic", "--exec", "panic panic_irq", "--no-core"]);
    assert_eq!(status, Some(3), "{ran}");
    // Of the CPU that dies everything; QEMU may let the others run on for a part of their turn before it stops them.
    let exec = "info registers; gr-percpu CURRENT 0; bt";
    let again: Vec<_> = (0..3)
        .map(|_| {
            let (status, seen) = bench.xtask(&["debug", "--replay", "latest", "--exec", exec, "--timeout", "100"]);
            assert_eq!(status, Some(0), "{seen}");
            let from = seen.find("rax  ").unwrap_or_else(|| panic!("{seen}"));
            seen[from..].lines().take_while(|line| !line.starts_with('[')).collect::<Vec<_>>().join("\n")
        })
        .collect();
    assert!(again[0] == again[1] && again[1] == again[2], "{}\n{}\n{}", again[0], again[1], again[2]);
    let behind = again[0].split("grange_trap_").nth(1).unwrap_or_else(|| panic!("{}", again[0]));
    assert!(behind.contains("kernel/src/shell/"), "gdb finds its way through the interrupt: {}", again[0]);
}

#[test]
fn what_cannot_be_opened_is_refused_in_one_line() {
    let target = tempfile::tempdir().unwrap();
    for (words, status, part) in [
        (&["debug", "--gdb", "/no/such/gdb"][..], 6, "apt-get install"),
        (&["debug", "--gdb", "sh", "--core", "latest"], 2, "has a core"),
        (&["debug", "--gdb", "sh", "--core", "ffff"], 2, "no run \"ffff\""),
        (&["debug", "--gdb", "sh", "--core", "latest", "--cpus", "2"], 2, "--core with --cpus"),
        (&["debug", "--gdb", "sh", "--replay", "latest"], 2, "no run in"),
        (&["debug", "--gdb", "sh", "--exec", " ; "], 2, "--exec names no command"),
    ] {
        let output = xtask(words).env("CARGO_TARGET_DIR", target.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
        assert!(said.contains(part) && said.lines().count() == 1, "{words:?}: {said}");
    }
}
