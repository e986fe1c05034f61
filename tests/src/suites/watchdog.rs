//! The watchdogs: what is broken on purpose is found and reported with names, and nothing else is.
//!
//! Each test has limits of its own for its duration, marked as a drill, so that whoever reads the log knows that the
//! reports are wanted.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{CpuId, clock, cpu, irq};
use sched::watchdog::{self, Kind, Limits};
use sched::{Completion, JoinHandle, Mutex, Prio};
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, SpinLock, lock_class};

use crate::logged::last_report;
use crate::run::Test;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

const MS: u64 = 1_000_000;

/// What counts as too long on a CPU here, in nanoseconds.
const CPU_NS: u64 = 200 * MS;
/// For a thread.
const TASK_NS: u64 = 200 * MS;
/// How long a test waits for a report: an emulated machine may be many times slower than it should be.
const PATIENCE_NS: u64 = 20_000 * MS;

/// Runs `f` under limits for a drill; the old ones come back.
fn drill<R>(t: &mut Test<'_>, cpu_ns: u64, task_ns: u64, f: impl FnOnce(&mut Test<'_>) -> R) -> R {
    let old = watchdog::set_limits(Limits { cpu_ns, task_ns, drill: true }, t.cx);
    let result = f(t);
    watchdog::set_limits(old, t.cx);
    result
}

/// Drills of all kinds so far.
fn drills() -> [u64; Kind::ALL.len()] {
    Kind::ALL.map(|kind| watchdog::reports(kind).1)
}

/// Waits for one more report of `kind` than `before`; false if it does not come.
fn wait_for_report(cx: &mut MaySleep, kind: Kind, before: u64) -> bool {
    let end = clock::now_ns() + PATIENCE_NS;
    while watchdog::reports(kind).1 <= before {
        if clock::now_ns() > end {
            return false;
        }
        sched::sleep_ns(cx, 5 * MS);
    }
    true
}

/// A CPU other than this one, which the test thread is bound to stay away from by its own affinity.
fn other_cpu() -> Option<CpuId> {
    let here = cpu::current();
    cpu::online().iter().find(|&cpu| cpu != here)
}

/// A thread on `cpu` that does `f` until the flag, which `f` polls, is set.
fn culprit(
    t: &mut Test<'_>,
    cpu: CpuId,
    f: impl FnOnce(&mut MaySleep, &AtomicBool) + Send + 'static,
) -> Result<(Arc<AtomicBool>, JoinHandle<()>), Failure> {
    let over = Arc::new(AtomicBool::new(false));
    let theirs = over.clone();
    let thread = sched::spawn(t.cx, "culprit", Prio::NORMAL, Some(cpu), move |cx| f(cx, &theirs));
    Ok((over, thread.map_err(|error| crate::__failed!("{error}"))?))
}

/// Spins until the flag is set, or so long that the test has failed anyway.
fn spin(over: &AtomicBool) {
    let end = clock::now_ns() + PATIENCE_NS;
    while !over.load(Ordering::Relaxed) && clock::now_ns() < end {
        irq::relax();
    }
}

/// Lets a thread on another CPU run `f`, and returns the report of `kind` that comes of it.
fn provoke(
    t: &mut Test<'_>,
    kind: Kind,
    words: &str,
    f: impl FnOnce(&mut MaySleep, &AtomicBool) + Send + 'static,
) -> Result<String, Failure> {
    let target = other_cpu().expect("the caller has looked");
    drill(t, CPU_NS, 0, |t| {
        let before = watchdog::reports(kind).1;
        let (over, thread) = culprit(t, target, f)?;
        let came = wait_for_report(t.cx, kind, before);
        over.store(true, Ordering::Relaxed);
        thread.join(t.cx);
        ensure!(came, "no report of a {} on CPU {target}", kind.name());
        Ok(last_report(words))
    })
}

ktest! {
    /// A CPU that spins with interrupts off is found by its neighbour, though all others idle: by name, place and lock.
    #[budget_ms(30_000)]
    fn a_cpu_stuck_with_interrupts_off_is_reported_by_its_neighbour(t: &mut Test) {
        let Some(target) = other_cpu() else { skip!("needs two CPUs") };
        let report = provoke(t, Kind::HardLockup, "Watchdog detected hard LOCKUP", |_, over| {
            let lock = SpinLock::new((), lock_class!("test.stuck"));
            let _held = lock.lock_irqsave(ATOMIC);
            spin(over);
        })?;
        ensure!(report.contains(&format!("hard LOCKUP on cpu {target} (drill)")), "{report}");
        ensure!(report.contains("it is in task culprit/") && report.contains("irqs off"), "{report}");
        ensure!(!cfg!(debug_assertions) || report.contains("\"test.stuck\""), "the lock: {report}");
        ensure!(report.contains("which looks after it"), "the evidence: {report}");
        ensure!(report.contains("  #2 0x"), "a backtrace: {report}");
        Ok(())
    }

    /// A CPU that takes interrupts but never schedules finds out itself, and says where preemption went off.
    #[budget_ms(30_000)]
    fn a_cpu_that_does_not_schedule_is_reported_as_a_soft_lockup(t: &mut Test) {
        let Some(target) = other_cpu() else { skip!("needs two CPUs") };
        let report = provoke(t, Kind::SoftLockup, "BUG: soft lockup", |_, over| {
            let _off = PreemptGuard::new(ATOMIC);
            spin(over);
        })?;
        ensure!(report.contains(&format!("soft lockup - CPU#{target} stuck for 0s! [culprit/")), "{report}");
        ensure!(!cfg!(debug_assertions) || report.contains("preemption was switched off at tests/src/suites/watchdog.rs"), "{report}");
        ensure!(report.contains("  #2 0x"), "a backtrace: {report}");
        Ok(())
    }

    /// A clock event that is taken away behind the scheduler's back is told from a CPU that is stuck.
    #[budget_ms(30_000)]
    fn a_clock_event_that_does_not_come_is_reported_as_a_lost_timer(t: &mut Test) {
        let Some(target) = other_cpu() else { skip!("needs two CPUs") };
        let stuck = watchdog::reports(Kind::HardLockup).1;
        let report = provoke(t, Kind::LostTimer, "BUG: lost timer", |_, over| {
            let pin = PreemptGuard::new(ATOMIC);
            // An interrupt from elsewhere may have the event programmed again.
            let end = clock::now_ns() + PATIENCE_NS;
            while !over.load(Ordering::Relaxed) && clock::now_ns() < end {
                arch::timer::stop();
                irq::relax();
            }
            // What was programmed is overdue by now.
            arch::timer::oneshot_ns(1);
            drop(pin);
        })?;
        ensure!(report.contains(&format!("lost timer - CPU#{target} stuck for")), "{report}");
        ensure!(report.contains("its interrupts are on") && report.contains("overdue for"), "{report}");
        ensure_eq!(watchdog::reports(Kind::HardLockup).1, stuck);
        Ok(())
    }

    /// A thread that waits for a mutex is reported with the owner, both threads' locks, and where it sleeps.
    #[budget_ms(30_000)]
    fn a_thread_that_waits_too_long_for_a_mutex_is_reported_with_its_owner(t: &mut Test) {
        drill(t, 0, TASK_NS, |t| {
            let before = watchdog::reports(Kind::HungTask).1;
            let mutex = Arc::new(Mutex::new((), lock_class!("test.wanted")));
            let theirs = mutex.clone();
            let held = mutex.lock(t.cx);
            let waiter = sched::spawn(t.cx, "waiter", Prio::NORMAL, None, move |cx| {
                let other = Mutex::new((), lock_class!("test.held"));
                let _other = other.lock(cx);
                drop(theirs.lock(cx));
            });
            let waiter = waiter.map_err(|error| crate::__failed!("{error}"))?;
            let (name, tid) = (sched::current().name(), sched::current().tid());
            let came = wait_for_report(t.cx, Kind::HungTask, before);
            drop(held);
            waiter.join(t.cx);
            ensure!(came, "no report of a hung task");
            let report = last_report("INFO: task waiter:");
            ensure!(report.contains("blocked for more than 0 seconds. (drill)"), "{report}");
            ensure!(report.contains(&format!("a mutex that {name}/{tid} holds")), "{report}");
            if cfg!(debug_assertions) {
                ensure!(report.contains("\"test.held\"") && report.contains("\"test.wanted\""), "locks of both: {report}");
            }
            ensure!(report.contains("  #2 0x"), "a backtrace: {report}");
            Ok(())
        })
    }

    /// A hang is told once, then when its age has doubled, and no more often.
    #[budget_ms(30_000)]
    fn a_hang_that_goes_on_is_told_again_when_its_age_has_doubled(t: &mut Test) {
        drill(t, 0, TASK_NS, |t| {
            let before = watchdog::reports(Kind::HungTask).1;
            let never = Arc::new(Completion::new());
            let theirs = never.clone();
            let waiter = sched::spawn(t.cx, "waiter", Prio::NORMAL, None, move |cx| theirs.wait(cx));
            let waiter = waiter.map_err(|error| crate::__failed!("{error}"))?;
            let start = clock::now_ns();
            let twice = wait_for_report(t.cx, Kind::HungTask, before + 1);
            let took = clock::now_ns() - start;
            never.complete();
            waiter.join(t.cx);
            ensure!(twice, "told {} times", watchdog::reports(Kind::HungTask).1 - before);
            ensure!(took >= 2 * TASK_NS, "told twice within {took} ns");
            Ok(())
        })
    }

    /// Threads that sleep by the clock, daemons that wait for work, and CPUs that idle are no reports.
    #[budget_ms(30_000)]
    fn an_idle_machine_is_no_report(t: &mut Test) {
        drill(t, CPU_NS, TASK_NS, |t| {
            let before = drills();
            sched::sleep_ns(t.cx, 5 * TASK_NS);
            ensure_eq!(drills(), before);
            for id in cpu::online().iter() {
                ensure!(watchdog::beat_of(id).beats > 0, "CPU {id} does not beat");
            }
            Ok(())
        })
    }

    /// CPUs that are busy, switch off interrupts and preemption for a while, and hand a mutex round, are no reports.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_busy_machine_is_no_report(t: &mut Test) {
        // Longer than elsewhere: where several CPUs share one of the host's, each waits for its turn.
        drill(t, 10 * CPU_NS, 10 * TASK_NS, |t| {
            let before = drills();
            let turns = Arc::new(Mutex::new(0_u64, lock_class!("test.turns")));
            let end = clock::now_ns() + 20 * CPU_NS;
            let mut threads = alloc::vec::Vec::new();
            for id in cpu::online().iter() {
                let turns = turns.clone();
                let thread = sched::spawn(t.cx, "busy", Prio::NORMAL, Some(id), move |cx| {
                    while clock::now_ns() < end {
                        *turns.lock(cx) += 1;
                        {
                            let _off = IrqGuard::new(ATOMIC);
                            clock::udelay(200);
                        }
                        let _pin = PreemptGuard::new(ATOMIC);
                        clock::udelay(500);
                    }
                });
                threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
            }
            // Not by joining them: who waits for four seconds does hang, by these limits.
            sched::sleep_until(t.cx, end);
            threads.into_iter().for_each(|thread| thread.join(t.cx));
            ensure_eq!(drills(), before);
            ensure!(*turns.lock(t.cx) > 0, "nobody had a turn");
            Ok(())
        })
    }

    /// A thread that is ready but gets no CPU, because a more urgent one never gives it up, is reported as starved.
    #[budget_ms(30_000)]
    fn a_thread_that_gets_no_cpu_is_reported(t: &mut Test) {
        static RAN: AtomicU64 = AtomicU64::new(0);
        let Some(target) = other_cpu() else { skip!("needs two CPUs") };
        drill(t, 0, TASK_NS, |t| {
            let before = watchdog::reports(Kind::StarvedTask).1;
            RAN.store(0, Ordering::Relaxed);
            let (over, hog) = culprit(t, target, |_, over| {
                sched::set_prio(sched::current(), Prio::HIGH);
                RAN.store(1, Ordering::Relaxed);
                spin(over);
            })?;
            while RAN.load(Ordering::Relaxed) == 0 {
                sched::sleep_ns(t.cx, MS);
            }
            let poor = sched::spawn(t.cx, "poor", Prio::NORMAL, Some(target), |_| ());
            let came = wait_for_report(t.cx, Kind::StarvedTask, before);
            over.store(true, Ordering::Relaxed);
            hog.join(t.cx);
            poor.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
            ensure!(came, "no report of a starved task");
            let report = last_report("got no CPU for more than");
            ensure!(report.contains("INFO: task poor:"), "{report}");
            Ok(())
        })
    }
}
