//! `cargo xtask torture` against a program that stands in for QEMU: what a scenario leaves, and what makes it no pass.

#[expect(dead_code, reason = "each test program uses a part of it")]
mod support;

use support::Transcript;
use support::machine::Machine;
use xtask::frames::Kind;

/// The results that the scenario SCHED01 owes with the pretended kernel.
const DUE: [(&str, &str); 4] =
    [("torture", "run"), ("torture", "stutter"), ("torture", "sched"), ("torture", "timers")];

/// A machine that says this about SCHED01, and ends with this status.
fn machine(console: &str, failing: &[&str], dies_in: Option<&str>, end: &str) -> Machine {
    let machine = Machine::new();
    machine.prepare("first", console, &frames(failing, dies_in), end);
    machine
}

/// What it says on COM2.
fn frames(failing: &[&str], dies_in: Option<&str>) -> String {
    let mut log = Transcript::run(7, (4, 2), &DUE, failing, dies_in);
    let statistics = [
        r#"{"torture":"timers","ms":900,"last":false,"stat":{"armed":5,"fired":4}}"#,
        r#"{"torture":"timers","ms":1200,"last":true,"stat":{"armed":9,"fired":8}}"#,
        r#"{"torture":"run","ms":1200,"last":true,"stat":{"GPs":24}}"#,
    ];
    for (at, json) in statistics.into_iter().enumerate() {
        log.frames.insert(4 + at, (Kind::Json, json.to_owned()));
    }
    // The end mark counts the frames before it.
    let count = log.frames.len() - 1;
    if let Some((Kind::End, payload)) = log.frames.last_mut() {
        *payload = payload.replace(&format!("\"frames\":{}", count - 3), &format!("\"frames\":{count}"));
    }
    log.encode()
}

#[test]
fn a_run_is_run_again_with_its_seed_and_what_is_other_is_told() {
    let machine = machine("fine\n", &["timers"], None, "35");
    assert_eq!(machine.torture(&["SCHED01", "--minutes", "0.5"]).code(), 1);
    machine.prepare("first", "fine\n", &frames(&[], None), "33");
    let run = machine.rerun(&["latest"]);
    assert_eq!(run.code(), 0, "{}", run.out());
    for part in ["torture --seed 7 SCHED01 --minutes 0.5", "was failed, now passed: SCHED01 of seed 0x7  [4 CPUs"] {
        assert!(run.out().contains(part), "{}\nlacks {part}", run.out());
    }
}

#[test]
fn a_scenario_that_passes_is_one_line_and_leaves_its_files() {
    let machine = machine("fine\n", &[], None, "33");
    let run = machine.torture(&["SCHED01", "--minutes", "0.5"]);
    assert_eq!((run.code(), run.last_line().as_str()), (0, "1 scenarios passed, 0 failed"), "{}", run.out());
    assert!(run.out().contains("SCHED01 ------- 24 GPs (20.0/s) 1 s [timers armed: 9 fired: 8]\n"), "{}", run.out());
    let words = "grange.run=torture torture.kinds=sched,timers torture.duration_ms=30000 grange.seed=7";
    assert!(run.file("SCHED01/qemu-cmd").contains(words));
    assert_eq!(run.file("SCHED01/stats.jsonl").lines().count(), 3);
    assert!(run.file("results.json").contains(r#""verdict": "passed""#));
    assert!(run.file("junit.xml").contains(r#"tests="4" skipped="0" failures="0" errors="0""#));
}

#[test]
fn a_kind_that_fails_is_told_with_its_reason_its_folder_and_the_line_that_runs_it_again() {
    let machine = machine("fine\n", &["timers"], None, "35");
    let run = machine.torture(&["SCHED01", "--memory", "256M"]);
    assert_eq!((run.code(), run.last_line().as_str()), (1, "0 scenarios passed, 1 failed"), "{}", run.out());
    let again = "again: cargo xtask torture SCHED01 --memory 256M --kernel ";
    for part in ["!!! failed", "timers: fake.rs:1: 2 is 2, 3 is 3", again, " --seed 0x7\n"] {
        assert!(run.out().contains(part), "{}\nlacks {part}", run.out());
    }
    assert!(run.file("SCHED01/failure.txt").contains("timers: fake.rs:1"));
}

#[test]
fn a_kernel_that_dies_is_a_panic_and_what_it_was_at_is_named() {
    let machine = machine("PANIC cpu 1: oops\nbacktrace:\n", &[], Some("run"), "37");
    let run = machine.torture(&["SCHED01"]);
    assert_eq!(run.code(), 3, "{}", run.out());
    assert!(run.out().contains("PANIC cpu 1: oops") && run.out().contains("while run was on"), "{}", run.out());
    assert!(run.file("SCHED01/console.sym.log").contains("PANIC cpu 1"));
}

#[test]
fn a_console_that_looks_bad_makes_a_failure_of_a_run_that_passed() {
    for (console, code) in [
        ("[ 1.0] BUG kmalloc-8: Right Redzone overwritten\n", 1),
        ("[ 1.0] torture: on purpose: BUG: RCU\n[ 1.1] BUG: RCU: queued again\n", 0),
    ] {
        let run = machine(console, &[], None, "33").torture(&["SCHED01"]);
        assert_eq!(run.code(), code, "{console}{}", run.out());
        assert_eq!(run.out().contains("Redzone"), code == 1);
    }
}

#[test]
fn a_kind_without_a_result_is_no_pass() {
    let machine = machine("fine\n", &[], None, "33");
    machine.prepare("first", "fine\n", &Transcript::run(7, (4, 2), &DUE[..3], &[], None).encode(), "33");
    let run = machine.torture(&["SCHED01"]);
    assert_eq!(run.code(), 5, "{}", run.out());
    assert!(run.out().contains("no result for 1 of 4 tests, first torture.timers"), "{}", run.out());
}

#[test]
fn shards_are_put_together_and_a_missing_one_is_named() {
    let machine = machine("fine\n", &[], None, "33");
    let files: Vec<_> = (1..=2).map(|k| machine.path(&format!("shard-{k}.json"))).collect();
    for (k, file) in (1..).zip(&files) {
        let (shard, json) = (format!("{k}/2"), file.to_string_lossy());
        // The second boot has the next seed, which the pretended kernel does not know.
        let run = machine.torture(&["2*SCHED01", "--shard", &shard, "--json", &json]);
        assert_eq!(run.code(), if k == 1 { 0 } else { 5 }, "{}", run.out());
    }
    let both = machine.merge(&files);
    assert_eq!((both.code(), both.last_line().as_str()), (5, "1 scenarios passed, 1 failed"), "{}", both.out());
    let one = machine.merge(&files[..1]);
    assert_eq!((one.code(), one.last_line().as_str()), (5, "1 scenarios passed, 0 failed, 1 missing"));
    assert!(one.out().contains("shard 2/2 is missing: SCHED01"), "{}", one.out());
    let twice = machine.merge(&[files[0].clone(), files[0].clone()]);
    assert!(twice.code() == 2 && twice.out().contains("shard 1/2 is given twice"), "{}", twice.out());
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line_before_anything_boots() {
    let machine = machine("fine\n", &[], None, "33");
    for (words, part) in [
        (&["SCHED1"][..], "did you mean SCHED01"),
        (&["SCHED01", "--shard", "2/2"], "the list has only 1 scenarios"),
        (&["SCHED01", "--shard", "3/2"], "K/N with K from 1 to N"),
        (&["SCHED01", "--cpus", "999"], "SCHED01.toml: "),
        (&["SCHED01", "--minutes", "0"], "minutes above 0"),
    ] {
        let run = machine.torture(words);
        assert!(run.code() == 2 && run.out().contains(part), "{words:?}: {}", run.out());
    }
    assert!(machine.boots().is_empty());
}
