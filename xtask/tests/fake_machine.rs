//! `cargo xtask test` and `run` against a program that stands in for QEMU: every test gets its verdict, whatever the
//! guest does, and the status says what it was.

#[expect(dead_code, reason = "each test program uses a part of it")]
mod support;

use support::machine::Machine;
use support::{TESTS, Transcript};
use xtask::frames::Kind;

#[test]
fn a_run_in_which_all_tests_pass_passes_and_leaves_its_files() {
    let machine = Machine::new();
    machine.prepare_run(0, &[], None, "33");
    let run = machine.test(&[]);
    assert_eq!((run.code(), run.last_line().as_str()), (0, "4 passed, 0 failed, 0 skipped"), "{}", run.out());
    assert!(run.file("4c2n/qemu-cmd").contains("-append 'grange.run=test grange.seed=7'"));
    assert!(run.file("4c2n/results.ktap").starts_with("KTAP version 1\n1..3\n"));
    assert_eq!(run.file("4c2n/console.log"), "fine\n");
    assert!(run.file("4c2n/verdict.json").contains(r#""verdict": "passed""#));
    assert!(
        run.file("junit.xml").contains(r#"tests="4" skipped="0" failures="0" errors="0""#),
        "{}",
        run.file("junit.xml")
    );
    assert!(run.file("run.json").contains(r#""seed": 7"#));
    assert_eq!(run.file("events.jsonl").matches(r#""event":"test""#).count(), 4);
}

#[test]
fn a_failed_test_is_shown_with_its_reason_and_the_line_to_run_it_again() {
    let machine = Machine::new();
    machine.prepare_run(0, &["a_storm_loses_none"], None, "35");
    let run = machine.test(&[]);
    assert_eq!((run.code(), run.last_line().as_str()), (1, "3 passed, 1 failed, 0 skipped"), "{}", run.out());
    for part in [
        "FAIL ipi.a_storm_loses_none",
        "fake.rs:1: 2 is 2, 3 is 3",
        "again: cargo xtask test --kernel-only ipi.a_storm_loses_none --cpus 4 --nodes 2",
        "--seed 0x7",
    ] {
        assert!(run.out().contains(part), "{}\nlacks {part}", run.out());
    }
}

#[test]
fn a_watchdogs_report_makes_a_passed_run_a_stall_unless_it_was_a_drill() {
    const REPORT: &str = "[   30.1] sched: error: watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [burn/17]";
    for (console, code) in [(format!("{REPORT}\n"), 4), (format!("{REPORT} (drill)\n"), 0)] {
        let machine = Machine::new();
        machine.prepare_run(0, &[], None, "33");
        std::fs::write(machine.path("first.com1"), &console).unwrap();
        let run = machine.test(&[]);
        assert_eq!(run.code(), code, "{console}{}", run.out());
        let verdict: serde_json::Value = serde_json::from_str(&run.file("4c2n/verdict.json")).unwrap();
        let reports = verdict["watchdogs"].as_array().unwrap();
        assert_eq!(reports.len(), usize::from(code == 4), "{verdict}");
        if code == 4 {
            assert_eq!((&reports[0]["line"], &reports[0]["starved"]), (&REPORT.into(), &false.into()));
            assert!(run.out().contains("a watchdog reported"), "{}", run.out());
            assert!(run.file("4c2n/console.sym.log").contains("not the host's fault"));
        }
    }
}

/// What both serial lines say while each test logs its name, the second fails and the last panics: in one piece, or in
/// one for each test.
fn told_by_two_lines(in_one_burst: bool) -> Vec<(String, String)> {
    let mut run = Transcript::run(7, (4, 2), &TESTS, &["a_storm_loses_none"], Some("areas_are_isolated"));
    let mut consoles = vec!["booting\r\n".to_owned()];
    let mut length = consoles[0].len();
    for (_, name) in TESTS {
        run.replace(
            &format!(r#""{name}","budget_ms":10000"#),
            &format!(r#""{name}","budget_ms":10000,"com1":{length}"#),
        );
        let crash = if name == TESTS[3].1 { "PANIC cpu 1: oops\r\nbacktrace:\r\n" } else { "" };
        consoles.push(format!("{name} logs this\r\n{crash}"));
        length += consoles[consoles.len() - 1].len();
    }
    let frames = run.encode();
    let mut lines = frames.split_inclusive('\n');
    let mut pieces = Vec::new();
    for console in consoles {
        // Up to the mark of the next test; the log after it belongs to that one.
        let mut piece = String::new();
        for line in lines.by_ref() {
            piece.push_str(line);
            if line.contains("budget_ms") {
                break;
            }
        }
        pieces.push((console, piece));
    }
    if in_one_burst {
        let (consoles, frames): (Vec<_>, Vec<_>) = pieces.into_iter().unzip();
        pieces = vec![(consoles.concat(), frames.concat())];
    }
    pieces
}

#[test]
fn a_failure_is_shown_with_its_own_part_of_the_log_however_the_lines_come() {
    for (in_one_burst, pause) in [(true, "0"), (false, "0.05")] {
        let machine = Machine::new();
        machine.prepare_pieces(&told_by_two_lines(in_one_burst), pause, "37");
        let run = machine.test(&[]);
        assert_eq!((run.code(), run.last_line().as_str()), (3, "2 passed, 2 failed, 0 skipped"), "{}", run.out());
        let failed = "  log:\n    a_storm_loses_none logs this\n  again:";
        assert!(run.out().contains(failed), "burst {in_one_burst}: {}", run.out());
        let died = "  log:\n    areas_are_isolated logs this\n    PANIC cpu 1: oops\n    backtrace:\n  again:";
        assert!(run.out().contains(died), "burst {in_one_burst}: {}", run.out());
        let json: serde_json::Value = serde_json::from_str(&run.file("results.json")).unwrap();
        let logs: Vec<_> = json["tests"].as_array().unwrap().iter().filter_map(|test| test["log"].as_str()).collect();
        assert_eq!(logs[1], "a_storm_loses_none logs this\n");
        assert!(logs[3].contains("logs this\nPANIC"), "{logs:?}");
        assert!(run.file("junit.xml").contains("a_storm_loses_none logs this"));
    }
}

#[test]
fn a_test_that_panics_fails_alone_and_the_kernel_is_booted_again_at_the_next() {
    let machine = Machine::new();
    machine.prepare_run(0, &[], Some("a_storm_loses_none"), "37");
    machine.prepare_run(2, &[], None, "33");
    let run = machine.test(&[]);
    assert_eq!((run.code(), run.last_line().as_str()), (3, "3 passed, 1 failed, 0 skipped"), "{}", run.out());
    assert_eq!(run.tests("failed"), ["ipi.a_storm_loses_none"]);
    assert!(run.out().contains("PANIC cpu 1: oops"), "{}", run.out());
    assert!(machine.boots()[1].contains("grange.test_start=nmi.arrives_with_interrupts_off"));
}

#[test]
fn the_last_test_may_die_too_and_every_test_may() {
    let machine = Machine::new();
    for (first, (_, name)) in TESTS.iter().enumerate() {
        machine.prepare_run(first, &[], Some(name), "0");
    }
    let run = machine.test(&[]);
    assert_eq!((run.code(), run.last_line().as_str()), (3, "0 passed, 4 failed, 0 skipped"), "{}", run.out());
    assert_eq!(machine.boots().len(), 4);
    assert!(run.out().contains("a triple fault or a reset"));
}

#[test]
fn a_test_that_hangs_is_ended_and_the_next_ones_run() {
    let machine = Machine::new();
    machine.prepare_run(0, &[], Some("a_call_runs_once"), "hang");
    machine.prepare_run(1, &[], None, "33");
    let run = machine.test(&["--timeout-scale", "0.05"]);
    assert_eq!((run.code(), run.last_line().as_str()), (4, "3 passed, 1 failed, 0 skipped"), "{}", run.out());
    assert!(run.out().contains("FAIL ipi.a_call_runs_once (hang)"), "{}", run.out());
    assert!(run.out().contains("no sign of life"), "{}", run.out());
}

#[test]
fn a_kernel_that_does_not_boot_is_not_booted_again_for_each_test() {
    let machine = Machine::new();
    machine.prepare("first", "boot: a damaged thing\nPANIC cpu 0: no memory\n", "", "37");
    let run = machine.test(&[]);
    assert_eq!((run.code(), machine.boots().len()), (3, 1), "{}", run.out());
    assert_eq!(run.last_line(), "0 passed, 5 failed, 0 skipped");
    assert!(run.out().contains("PANIC cpu 0: no memory"));
    assert!(run.out().contains("did not run: the boot failed"));
}

#[test]
fn qemu_that_refuses_to_run_is_the_hosts_trouble_and_is_quoted() {
    let machine = Machine::new();
    machine.prepare("first", "", "", "1");
    std::fs::write(machine.path("first.stderr"), "qemu: cannot set up guest memory\n").unwrap();
    let run = machine.test(&[]);
    assert_eq!(run.code(), 6, "{}", run.out());
    assert!(run.out().contains("QEMU: qemu: cannot set up guest memory"), "{}", run.out());
}

#[test]
fn qemu_that_is_killed_from_outside_is_the_hosts_trouble() {
    let machine = Machine::new();
    machine.prepare_run(0, &[], Some("areas_are_isolated"), "killed");
    assert_eq!(machine.test(&[]).code(), 6);
}

#[test]
fn a_complete_log_without_the_right_status_is_no_pass() {
    for (end, code) in [("0", 3), ("35", 5), ("39", 4), ("77", 5)] {
        let machine = Machine::new();
        machine.prepare_run(0, &[], None, end);
        let run = machine.test(&[]);
        assert_eq!(run.code(), code, "status {end}: {}", run.out());
        assert!(!run.last_line().contains(" 0 failed"), "status {end}: {}", run.last_line());
    }
}

#[test]
fn a_garbled_log_with_the_right_status_is_no_pass() {
    let machine = Machine::new();
    let log = Transcript::run(7, (4, 2), &TESTS, &[], None).encode().replacen("isolated", "isolatad", 1);
    machine.prepare("first", "", &log, "33");
    let run = machine.test(&[]);
    assert_eq!(run.code(), 5, "{}", run.out());
    assert!(run.out().contains("wrong CRC"), "{}", run.out());
}

#[test]
fn filters_choose_tests_and_reach_the_kernel_as_globs() {
    let machine = Machine::new();
    let log = Transcript::run(7, (4, 2), &TESTS[2..], &[], None);
    machine.prepare("first", "", &log.encode(), "33");
    let run = machine.test(&["nmi", "percpu.*"]);
    assert_eq!((run.code(), run.last_line().as_str()), (0, "2 passed, 0 failed, 0 skipped"), "{}", run.out());
    assert!(machine.boots()[0].contains("kunit.filter_glob=nmi.*,percpu.*"), "{:?}", machine.boots());
}

#[test]
fn a_filter_that_matches_nothing_is_refused_before_anything_boots() {
    let machine = Machine::new();
    let run = machine.test(&["no_such_suite"]);
    assert_eq!(run.code(), 2, "{}", run.out());
    assert!(run.out().contains("no test matches no_such_suite"));
    assert!(!machine.path("target/grange/runs").exists(), "no folder for a run that never began");
    assert!(machine.boots().is_empty());
}

#[test]
fn the_list_comes_from_the_elf_without_a_boot() {
    let machine = Machine::new();
    let run = machine.xtask(&["test", "--list"]);
    assert_eq!(run.code(), 0, "{}", run.out());
    assert!(
        run.out().contains("nmi.arrives_with_interrupts_off [race]  tests/src/suites/fake.rs:12\n"),
        "{}",
        run.out()
    );
    assert_eq!(run.out().lines().count(), 4);
    assert!(machine.boots().is_empty());
}

#[test]
fn until_fail_stops_at_the_first_round_with_a_failure_and_repeat_counts_rounds() {
    let machine = Machine::new();
    machine.prepare_run(0, &["a_storm_loses_none"], None, "35");
    assert_eq!(machine.test(&["--until-fail"]).code(), 1);
    assert_eq!(machine.boots().len(), 1);
    assert_eq!(machine.test(&["--repeat", "2"]).code(), 5, "the second round's seed is another");
    assert_eq!(machine.boots().len(), 3);
    let run = machine.test(&["--repeat", "2"]);
    let at = |text: &str| run.out().find(text).unwrap_or_else(|| panic!("{}\nlacks {text}", run.out()));
    assert!(at("FAIL 4 CPUs on 2 nodes") < at("round 2, seed 0x8"), "{}", run.out());
}

#[test]
fn bad_shapes_are_refused_in_one_line_before_qemu_starts() {
    let machine = Machine::new();
    for (words, part) in [
        (&["run", "--cpus", "0"][..], "0 CPUs"),
        (&["run", "--cpus", "256"], "255 ids"),
        (&["run", "--cpus", "2", "--nodes", "3"], "more nodes than CPUs"),
        (&["run", "--memory", "1M"], "too small"),
        (&["test", "--kernel-only", "--cpus", "0"], "0 CPUs"),
        (&["run", "--append", &"x".repeat(3001)], "at most 3000"),
        (&["run", "--exec", "say \"hi\""], "no double quote"),
        (&["run", "--deterministic"], "--deterministic without --exec"),
        (&["test", "--deterministic", "--accel", "kvm"], "--accel kvm: only the emulator is repeatable"),
        (&["test", "--deterministic", "--thread", "multi"], "needs one host thread"),
        (&["test", "--deterministic", "--host-only"], "only the tests in the kernel"),
        (&["test", "--deterministic", "--append", "idle=halt"], "idle=halt"),
        (&["test", "--deterministic", "--", "-icount", "shift=auto"], "-icount for QEMU"),
    ] {
        let run = machine.xtask(words);
        assert_eq!(run.code(), 2, "{words:?}: {}", run.out());
        assert!(run.out().contains(part) && run.out().lines().count() == 1, "{words:?}: {}", run.out());
    }
    assert!(machine.boots().is_empty());
}

#[test]
fn print_qemu_gives_a_script_and_starts_nothing() {
    let machine = Machine::new();
    let run = machine.xtask(&["run", "--cpus", "7", "--nodes", "3", "--print-qemu", "--exec", "cpus; mem"]);
    assert_eq!(run.code(), 0, "{}", run.out());
    assert!(run.out().starts_with("#!/bin/sh\nexec "), "{}", run.out());
    assert!(run.out().contains(r#"-append 'grange.exec="cpus; mem"'"#), "{}", run.out());
    assert!(machine.boots().is_empty());
}

#[test]
fn run_gives_the_kernels_own_end_as_its_status() {
    for (end, code) in [("33", 0), ("35", 1), ("37", 3), ("39", 4), ("1", 6), ("0", 5)] {
        let machine = Machine::new();
        machine.prepare("first", "", "", end);
        let run = machine.xtask(&["run", "--exec", "cpus"]);
        assert_eq!(run.code(), code, "status {end}: {}", run.out());
    }
}

#[test]
fn run_ends_a_guest_that_outlives_its_time() {
    let machine = Machine::new();
    machine.prepare("first", "", "", "hang");
    let run = machine.xtask(&["run", "--exec", "cpus", "--timeout", "0.3"]);
    assert_eq!(run.code(), 4, "{}", run.out());
    assert!(run.out().contains("--timeout"), "{}", run.out());
}

#[test]
fn a_command_line_that_the_kernel_refuses_is_the_users_mistake() {
    let machine = Machine::new();
    machine.prepare("first", "grange: command line refused: unknown parameter \"foo\"\n", "", "37");
    let run = machine.xtask(&["run", "--exec", "cpus", "--append", "foo=1"]);
    assert_eq!(run.code(), 2, "{}", run.out());
    assert!(run.out().contains("unknown parameter"), "{}", run.out());
    assert!(run.out().trim_end().ends_with("the boot was refused"), "{}", run.out());
}

/// A passing run with points of the rolling hash in it, of which the last is `last`.
fn with_points(last: &str) -> String {
    let mut run = Transcript::run(7, (4, 2), &TESTS, &[], None);
    let points = format!(r#"{{"first":64,"period":64,"points":"00000001s0 {last}"}}"#);
    run.frames.insert(5, (Kind::Events, points));
    let frames = run.frames.len();
    run.replace(&format!(r#""frames":{}"#, frames - 2), &format!(r#""frames":{}"#, frames - 1));
    run.encode()
}

#[test]
fn deterministic_rounds_have_one_seed_and_are_compared_byte_by_byte() {
    let machine = Machine::new();
    machine.prepare("first", "fine\n", &with_points("00000002i1"), "33");
    let run = machine.test(&["--deterministic", "--repeat", "3", "--load", "1"]);
    assert_eq!((run.code(), run.last_line().as_str()), (0, "14 passed, 0 failed, 0 skipped"), "{}", run.out());
    let equal = "3 of 3 runs on 4 CPUs on 2 nodes (tcg,deterministic) are equal: 5 bytes on COM1, ";
    assert!(run.out().contains(equal) && run.out().contains(", 128 events with hash 00000002"), "{}", run.out());
    for boot in machine.boots() {
        let part = "-icount shift=4,sleep=off -rtc base=2026-01-01,clock=vm -seed 7 ";
        assert!(boot.contains(part) && boot.contains("grange.seed=7 idle=poll"), "{boot}");
    }
}

#[test]
fn a_round_that_is_not_as_the_first_fails_and_the_first_event_that_differs_is_named() {
    let machine = Machine::new();
    machine.prepare("first", "fine\n", &with_points("00000002i1"), "33");
    machine.prepare_boot(3, &with_points("000000ffs2"));
    let run = machine.test(&["--deterministic", "--repeat", "4"]);
    assert_eq!((run.code(), run.last_line().as_str()), (1, "18 passed, 1 failed, 0 skipped"), "{}", run.out());
    assert_eq!(run.tests("failed"), ["deterministic.round_3_repeats_round_1"]);
    for part in [
        "diverged at event 65 .. 128 (interrupt on CPU 1 before, context switch on CPU 2 now)",
        "com2.log: line 6 was ",
        "3 of 4 runs on 4 CPUs on 2 nodes (tcg,deterministic) are equal",
        "again: cargo xtask test --kernel-only --cpus 4 --nodes 2 --deterministic --seed 0x7 --repeat 3",
    ] {
        assert!(run.out().contains(part), "{}\nlacks {part}", run.out());
    }
}

#[test]
fn each_seed_of_a_range_gets_its_round_and_those_that_fail_are_named() {
    let machine = Machine::new();
    machine.prepare_run(0, &["a_storm_loses_none"], None, "35");
    let words = ["test", "--deterministic", "--shift", "5", "--seeds", "7..9"];
    let run = machine.xtask(&words);
    assert_eq!(run.code(), 5, "the second transcript has the wrong seed: {}", run.out());
    let seeds: Vec<bool> =
        machine.boots().iter().zip(7..).map(|(boot, seed)| boot.contains(&format!("grange.seed={seed} "))).collect();
    assert_eq!(seeds, [true, true]);
    assert!(run.out().contains("2 seeds, 2 failed: 0x7 0x8"), "{}", run.out());
    // Alone the test would have another schedule.
    let again = "again: cargo xtask test --kernel-only --cpus 4 --nodes 2 --deterministic --shift 5 --seed 0x7\n";
    assert!(run.out().contains(again), "{}", run.out());
}

#[test]
fn a_deterministic_run_shows_the_log_and_takes_nothing_from_the_terminal() {
    let machine = Machine::new();
    machine.prepare("first", "what the kernel logs\n", "", "33");
    let run = machine.xtask(&["run", "--deterministic", "--seed", "9", "--exec", "cpus"]);
    assert_eq!(run.code(), 0, "{}", run.out());
    assert!(run.out().contains("what the kernel logs"), "{}", run.out());
    let boot = &machine.boots()[0];
    assert!(boot.contains("-chardev file,id=com1") && !boot.contains("stdio"), "{boot}");
    assert!(boot.contains("-seed 9 ") && boot.contains("grange.seed=9 idle=poll"), "{boot}");
}

#[test]
fn a_run_is_run_again_with_its_seed_and_what_is_other_is_told() {
    let machine = Machine::new();
    machine.prepare_run(0, &["a_storm_loses_none"], None, "35");
    assert_eq!(machine.test(&[]).code(), 1);
    machine.prepare_run(0, &[], None, "33");
    let run = machine.rerun(&["latest"]);
    assert_eq!((run.code(), machine.boots().len()), (0, 2), "{}", run.out());
    for part in [
        "$ cargo xtask --no-install test --kernel-only --seed 7 --cpus 4 --nodes 2",
        "was failed, now passed: ipi.a_storm_loses_none  [4 CPUs on 2 nodes",
        "3 as before, 1 changed",
    ] {
        assert!(run.out().contains(part), "{}\nlacks {part}", run.out());
    }
}

#[test]
fn a_deterministic_run_that_is_run_again_has_to_leave_the_same_logs() {
    let machine = Machine::new();
    machine.prepare("first", "fine\n", &with_points("00000002i1"), "33");
    assert_eq!(machine.test(&["--deterministic"]).code(), 0);
    let run = machine.rerun(&["latest"]);
    assert_eq!(run.code(), 0, "{}", run.out());
    assert!(run.out().contains("logs are equal, byte by byte: 5 bytes on COM1"), "{}", run.out());
    machine.prepare_boot(3, &with_points("000000ffs2"));
    let run = machine.rerun(&["latest"]);
    assert!(
        run.out().contains("logs differ in 4c2n:") && run.out().contains("diverged at event 65 .. 128"),
        "{}",
        run.out()
    );
    // The pretended kernel has no build id, so it may have been another one.
    assert_eq!(run.code(), 0, "{}", run.out());
}

#[test]
fn only_the_tests_that_failed_are_run_again_if_that_is_wanted() {
    let machine = Machine::new();
    machine.prepare_run(0, &["arrives_with_interrupts_off"], None, "35");
    assert_eq!(machine.test(&[]).code(), 1);
    let alone = Transcript::run(7, (4, 2), &TESTS[2..3], &[], None);
    machine.prepare("first", "", &alone.encode(), "33");
    let run = machine.rerun(&["latest", "--only-failed"]);
    assert_eq!(run.code(), 0, "{}", run.out());
    assert!(machine.boots()[1].contains("kunit.filter_glob=nmi.* "), "{:?}", machine.boots());
    assert!(run.out().contains("was failed, now passed: nmi.arrives_with_interrupts_off"), "{}", run.out());
    let run = machine.rerun(&["latest", "--only-failed"]);
    assert_eq!(run.code(), 2, "{}", run.out());
    assert!(run.out().contains("no test failed in ") && run.out().lines().count() == 1, "{}", run.out());
}

#[test]
fn a_run_that_is_not_there_is_refused_in_one_line() {
    let run = Machine::new().rerun(&["7777"]);
    assert_eq!(run.code(), 2, "{}", run.out());
    assert!(run.out().contains("no run \"7777\"") && run.out().lines().count() == 1, "{}", run.out());
}

#[test]
fn a_ledger_gets_a_row_for_each_run_that_asks_for_it() {
    let machine = Machine::new();
    let ledger = machine.path("soak.csv");
    let option = ["--ledger", ledger.to_str().unwrap()];
    machine.prepare("first", "fine\n", &with_points("00000002i1"), "33");
    assert_eq!(machine.test(&[&option[..], &["--deterministic", "--repeat", "2"]].concat()).code(), 0);
    machine.prepare_run(0, &["a_storm_loses_none"], None, "35");
    assert_eq!(machine.test(&option).code(), 1);
    let text = std::fs::read_to_string(&ledger).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, xtask::ledger::HEADER));
    assert!(lines[1].contains(",0x7,2,9,0,0,"), "{text}");
    assert!(lines[2].contains(",0x7,1,4,1,0,"), "{text}");
    assert!(lines[2].contains("ipi.a_storm_loses_none on 4 CPUs on 2 nodes (tcg,"), "{text}");
    assert!(lines[2].replace('"', "").ends_with(": cause not known yet"), "{text}");
    std::fs::write(&ledger, "something else\n").unwrap();
    let run = machine.test(&option);
    assert_eq!((run.code(), machine.boots().len()), (2, 3), "{}", run.out());
}
