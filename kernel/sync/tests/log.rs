//! The log and its console, from all CPUs and from NMIs, on the hosted machine.
#![cfg(not(any(loom, miri)))]

mod common;

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use arch::{
    cpu,
    hosted::{self, in_own_process},
};
use common::{cpu, machine, wait_until};
use grange_sync::{
    self as sync,
    nmi::{self, NmiHandler, as_nmi},
    smp,
};

/// What the console got, a line each.
static CONSOLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn console(line: &[u8]) {
    hosted::host_call(|| CONSOLE.lock().unwrap().push(String::from_utf8(line.to_vec()).unwrap()));
}

/// The lines without their times.
fn printed() -> Vec<String> {
    let lines = CONSOLE.lock().unwrap();
    let text = |line: &String| line.split_once("] ").map_or(line.as_str(), |(_, text)| text).trim_end().to_string();
    lines.iter().map(text).collect()
}

#[test]
fn lines_come_out_whole_in_order_and_with_their_time() {
    in_own_process(|| {
        sync::log::init(log::LevelFilter::Info);
        machine(1, |_| {
            log::info!(target: "grange_mm::buddy", "before the console");
            sync::log::set_console(console);
            log::warn!(target: "grange", "two\nlines");
            log::debug!("below the level");
            log::info!(target: "kernel", "{}", "x".repeat(300));
        });
        let (head, tail) = ("x".repeat(224), "x".repeat(76));
        let expected = ["mm: before the console", "warning: two", "lines", &head, &format!("…{tail}")];
        assert_eq!(printed(), expected);
        let mut again = Vec::new();
        sync::log::for_each_line(|line| again.push(String::from_utf8(line.to_vec()).unwrap()));
        assert_eq!(again, *CONSOLE.lock().unwrap(), "dmesg shows the same");
        assert!(again[0].starts_with("[") && again[0].as_bytes()[6] == b'.', "{}", again[0]);
    });
}

#[test]
fn all_cpus_and_their_nmis_log_at_once_and_no_line_is_torn_or_lost() {
    in_own_process(|| {
        static OF_NMI: AtomicUsize = AtomicUsize::new(0);
        static HANDLER: NmiHandler = NmiHandler::new("test", |_| {
            let n = OF_NMI.fetch_add(1, Ordering::Relaxed);
            log::info!(target: "kernel", "nmi {n} {n} {n}");
            true
        });
        const CPUS: usize = 4;
        const EACH: usize = 100;
        sync::log::init(log::LevelFilter::Info);
        sync::log::set_console(console);
        nmi::register(&HANDLER);
        machine(CPUS, |_| {
            smp::call_all(
                |_| {
                    for n in 0..EACH {
                        log::info!(target: "kernel", "cpu {n} {n} {n}");
                        if n.is_multiple_of(10) {
                            arch::ipi::send_nmi(cpu::current());
                        }
                    }
                },
                0,
                true,
            );
            // Whatever is still on its way is printed at the latest by what comes next.
            log::info!(target: "kernel", "end 0 0 0");
            wait_until(|| printed().len() == CPUS * EACH + OF_NMI.load(Ordering::Relaxed) + 1);
        });
        for line in printed() {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(words.len(), 4, "torn: {line}");
            assert!(words[1] == words[2] && words[2] == words[3], "torn: {line}");
        }
        let lines = printed();
        assert_eq!(lines.iter().filter(|line| line.starts_with("cpu ")).count(), CPUS * EACH);
        assert!(OF_NMI.load(Ordering::Relaxed) > 0);
    });
}

#[test]
fn an_nmi_may_log_at_any_instruction_of_logging() {
    in_own_process(|| {
        static STEPS: AtomicUsize = AtomicUsize::new(0);
        static LINES: AtomicUsize = AtomicUsize::new(0);
        sync::log::init(log::LevelFilter::Info);
        sync::log::set_console(console);
        machine(1, |_| {
            let boundaries = arch::step::single_step(
                || log::info!(target: "kernel", "outer 1 1"),
                || {
                    as_nmi(|| {
                        // Every 16th boundary, so that the ring holds out; and not for ever: an
                        // interrupt that prints may itself be stepped through.
                        let step = STEPS.fetch_add(1, Ordering::Relaxed);
                        if step.is_multiple_of(16) && step < 16 * 900 {
                            let n = LINES.fetch_add(1, Ordering::Relaxed);
                            log::info!(target: "kernel", "inner {n} {n}");
                        }
                    });
                },
            );
            assert!(boundaries > 100);
            sync::log::flush();
        });
        let (outer, inner): (Vec<_>, Vec<_>) = printed().into_iter().partition(|line| line == "outer 1 1");
        assert_eq!(outer.len(), 1);
        assert_eq!(inner.len(), LINES.load(Ordering::Relaxed), "none lost, none doubled");
        for line in inner {
            let words: Vec<_> = line.split(' ').collect();
            assert!(words[0] == "inner" && words[1] == words[2], "torn: {line}");
        }
    });
}

#[test]
fn what_the_ring_loses_is_told_in_its_place() {
    in_own_process(|| {
        sync::log::init(log::LevelFilter::Info);
        machine(1, |_| {
            let lines = sync::log::RECORDS + 12;
            for n in 0..lines {
                log::info!(target: "kernel", "line {n}");
            }
            sync::log::set_console(console);
            log::info!(target: "kernel", "after");
            let printed = printed();
            assert_eq!(printed[0], "** 12 log lines lost **");
            assert_eq!(printed[1], "line 12");
            assert_eq!(printed.last().unwrap(), "after");
            assert_eq!(printed.len(), sync::log::RECORDS + 2);
        });
    });
}

#[test]
fn an_emergency_prints_although_the_last_printer_never_came_back() {
    in_own_process(|| {
        static STUCK: AtomicBool = AtomicBool::new(true);
        fn stuck_console(line: &[u8]) {
            console(line);
            if cpu::current().index() == 1 && STUCK.load(Ordering::Relaxed) {
                STUCK.store(false, Ordering::Relaxed);
                // Stopped for good in the middle of printing.
                wait_until(|| false);
            }
        }
        sync::log::init(log::LevelFilter::Info);
        sync::log::set_console(stuck_console);
        machine(2, |_| {
            smp::call_on(cpu(1), |_| log::info!(target: "kernel", "stuck"), 0, false);
            wait_until(|| !STUCK.load(Ordering::Relaxed));
            log::error!(target: "kernel", "not printed yet");
            assert_eq!(printed(), ["stuck"]);
            sync::log::emergency();
            as_nmi(|| log::error!(target: "kernel", "in an NMI"));
        });
        let expected = ["stuck", "", "stuck", "error: not printed yet", "error: in an NMI"];
        assert_eq!(printed(), expected);
    });
}
