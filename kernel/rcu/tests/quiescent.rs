//! Each source of quiescent states, by itself: a CPU that has no other reports by it.
//!
//! The grace-period thread looks at CPUs only after a second here, so a grace period that ends without a look ended because
//! the CPU reported; and by itself, if nobody has called it. A busy host may be slower than that; so each source has some attempts, and one must do.
//!
//! A CPU that has been asked is asked urgently by its second tick, and reports by its third. What a tick itself is the source
//! of is over by then.

#[path = "../../sched/tests/machine/mod.rs"]
mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use arch::hosted::in_own_process;
use arch::{CpuId, clock, irq, vector};
use grange_rcu as rcu;
use machine::{machine_with, spawn};
use sched::softirq::{self, Softirq};
use sched::{self, Prio, tick};
use sync::{MaySleep, PreemptGuard};

const MS: u64 = 1_000_000;
/// The first look comes as late as can be.
const LATE_LOOKS: &str = "rcutree.jiffies_till_first_fqs=10000 rcutree.jiffies_till_next_fqs=10000";
const ATTEMPTS: usize = 6;

/// What CPU 1 has been told, and what happens there.
#[derive(Default)]
struct Stage {
    /// CPU 1 is where the source wants it.
    ready: AtomicBool,
    /// It shall stop.
    stop: AtomicBool,
}

impl Stage {
    fn goes_on(&self) -> bool {
        self.ready.store(true, SeqCst);
        !self.stop.load(SeqCst)
    }
}

fn spin(ns: u64) {
    let until = clock::now_ns() + ns;
    while clock::now_ns() < until {
        irq::relax();
    }
}

/// A grace period runs, and CPU 1 has its bit in its leaf (the only one).
fn is_asked() -> bool {
    rcu::stats().gp_seq.is_running() && rcu::node_stats().any(|node| node.qsmask & 2 != 0)
}

/// Interrupts by which the scheduler has had CPU 1 pass through it.
fn calls() -> u64 {
    sync::irq::count(CpuId::new(1), vector::RESCHEDULE)
}

/// Attempts until a grace period that CPU 1 held up ended without a look, after `ticks` of its ticks at most. `occupy` starts what CPU 1 does until it is told to
/// stop, or has held the grace period up.
fn ends_by_report(ticks: u64, occupy: impl Fn(&mut MaySleep, Arc<Stage>) + Send + 'static) {
    sync::param::parse(LATE_LOOKS).expect("the tests' own command line");
    let up = |cx: &mut MaySleep| {
        rcu::init(cx);
        rcu::boot_ended();
    };
    machine_with(2, up, |cx| {
        let one = sched::spawn(cx, "asker", Prio::HIGH, Some(CpuId::BOOT), move |cx| {
            (0..ATTEMPTS).any(|_| {
                let stage = Arc::<Stage>::default();
                occupy(cx, stage.clone());
                while !stage.ready.load(SeqCst) {
                    sched::sleep_ns(cx, MS);
                }
                let (looks, ticked, called) = (rcu::stats().scans, tick::count_on(CpuId::new(1)), calls());
                let cookie = rcu::start_poll_full();
                let until = clock::now_ns() + 400 * MS;
                let mut held = false;
                while !rcu::poll(cookie) && clock::now_ns() < until {
                    held |= is_asked();
                    sched::sleep_ns(cx, MS / 10);
                }
                let over = rcu::poll(cookie) && tick::count_on(CpuId::new(1)) - ticked <= ticks;
                let by_report = rcu::stats().scans == looks && calls() == called;
                stage.stop.store(true, SeqCst);
                rcu::synchronize_rcu(cx);
                over && by_report && held
            })
        });
        assert!(one.expect("memory for a thread").join(cx), "no grace period ended by a report");
    });
}

/// Sections with preemption off, each longer than a few ticks; `between` is what the thread does between two.
fn sections(stage: &Stage, cx: &mut MaySleep, between: fn(&mut MaySleep)) {
    while stage.goes_on() {
        let off = PreemptGuard::new(&*cx);
        spin(50 * MS);
        drop(off);
        between(cx);
    }
}

#[test]
fn a_tick_outside_of_sections_is_a_quiescent_state() {
    in_own_process(|| {
        ends_by_report(2, |cx, stage| {
            spawn(cx, Some(1), move |_| while stage.goes_on() {}).detach();
        });
    });
}

#[test]
fn a_context_switch_is_a_quiescent_state() {
    in_own_process(|| {
        ends_by_report(u64::MAX, |cx, stage| {
            for _ in 0..2 {
                let stage = stage.clone();
                spawn(cx, Some(1), move |cx| sections(&stage, cx, sched::yield_now)).detach();
            }
        });
    });
}

#[test]
fn a_cpu_that_is_never_seen_outside_of_sections_is_asked_urgently() {
    in_own_process(|| {
        ends_by_report(u64::MAX, |cx, stage| {
            spawn(cx, Some(1), move |cx| sections(&stage, cx, |_| ())).detach();
        });
    });
}

#[test]
fn a_cpu_that_goes_idle_reports() {
    in_own_process(|| {
        ends_by_report(u64::MAX, |cx, stage| {
            spawn(cx, Some(1), move |cx| {
                let _off = PreemptGuard::new(&*cx);
                while stage.goes_on() && !is_asked() {
                    irq::relax();
                }
            })
            .detach();
        });
    });
}

/// Softirqs that raise themselves for as long as they are wanted: their thread is asked to pass through the scheduler.
#[test]
fn a_flood_of_softirqs_lets_quiescent_states_pass() {
    static STAGE: std::sync::Mutex<Option<Arc<Stage>>> = std::sync::Mutex::new(None);
    in_own_process(|| {
        let handler = || {
            spin(MS / 10);
            if STAGE.lock().unwrap().as_ref().is_some_and(|stage| stage.goes_on()) {
                softirq::raise(Softirq::Test);
            }
        };
        ends_by_report(u64::MAX, move |cx, stage| {
            if STAGE.lock().unwrap().replace(stage).is_none() {
                softirq::register(Softirq::Test, handler);
            }
            spawn(cx, Some(1), |_| softirq::raise(Softirq::Test)).detach();
        });
    });
}
