//! Stall reports: whoever holds a grace period up is named, nobody else is, and a machine that is merely busy gives no alarm.
//!
//! Each test sets limits of its own, marked as a drill, so that whoever reads the log knows that the reports are wanted. What
//! a report found is taken from a notifier, what it says from the log.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::{CpuId, CpuMask, clock, cpu, irq};
use rcu::Kind;
use rcu::stall::{self, Limits, Notifier, Stall};
use sched::{JoinHandle, Prio, Thread};
use sync::{ATOMIC, IrqGuard, LockClass, MaySleep, Once, PreemptGuard, SpinLock};

use crate::logged::last_report;
use crate::run::Test;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

const MS: u64 = 1_000_000;

/// What counts as too long here, in nanoseconds.
const LIMIT_NS: u64 = 100 * MS;
/// How long a test waits for a report: an emulated machine may be many times slower than it should be.
const PATIENCE_NS: u64 = 20_000 * MS;

/// Protects [`SEEN`]; nothing is taken inside it.
static SEEN_CLASS: LockClass = LockClass::new("test.stalls");
/// What reports found, since [`drill`] began.
static SEEN: SpinLock<[Option<Stall>; 8]> = SpinLock::new([const { None }; 8], &SEEN_CLASS);

static NOTIFIER: Notifier = Notifier::new(|stall| {
    // Those that are too many are not needed.
    if let Some(slot) = SEEN.lock_irqsave(ATOMIC).iter_mut().find(|slot| slot.is_none()) {
        *slot = Some(stall.clone());
    }
});

/// What reports have found so far.
fn seen() -> Vec<Stall> {
    let slots = SEEN.lock_irqsave(ATOMIC).clone();
    slots.into_iter().flatten().collect()
}

/// Runs `f` under these limits, as a drill; the old ones come back.
fn drill<R>(limits: (u64, u64), f: impl FnOnce() -> R) -> R {
    static REGISTERED: Once<()> = Once::new();
    REGISTERED.call_once(|| stall::register(&NOTIFIER));
    *SEEN.lock_irqsave(ATOMIC) = [const { None }; 8];
    let old = stall::set_limits(Limits { normal_ns: limits.0, expedited_ns: limits.1, drill: true });
    let result = f();
    stall::set_limits(old);
    result
}

/// Waits for a report that is `like` this.
fn wait_for(cx: &mut MaySleep, like: impl Fn(&Stall) -> bool) -> Option<Stall> {
    let end = clock::now_ns() + PATIENCE_NS;
    loop {
        let found = seen().into_iter().find(&like);
        if found.is_some() || clock::now_ns() > end {
            return found;
        }
        sched::sleep_ns(cx, 5 * MS);
    }
}

/// A CPU other than this one.
fn other_cpu() -> Result<CpuId, Failure> {
    let here = cpu::current();
    match cpu::online().iter().find(|&cpu| cpu != here) {
        Some(other) => Ok(other),
        None => skip!("needs two CPUs"),
    }
}

fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    name: &str,
    prio: Prio,
    on: CpuId,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<JoinHandle<T>, Failure> {
    sched::spawn(cx, name, prio, Some(on), f).map_err(|error| crate::__failed!("{error}"))
}

/// Spins until the flag is set, or so long that the test has failed anyway.
fn spin(over: &AtomicBool) {
    let end = clock::now_ns() + PATIENCE_NS;
    while !over.load(Ordering::Relaxed) && clock::now_ns() < end {
        irq::relax();
    }
}

/// How a CPU is kept from passing a quiescent state.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Hold {
    PreemptOff,
    IrqsOff,
    /// A reader that keeps its CPU.
    Reader,
}

/// Flags of a culprit: it has begun, it shall end.
#[derive(Default)]
struct Flags {
    begun: AtomicBool,
    over: AtomicBool,
}

/// A thread on `cpu` that holds grace periods up, and has begun to.
fn culprit(cx: &mut MaySleep, cpu: CpuId, hold: Hold) -> Result<(Arc<Flags>, JoinHandle<()>), Failure> {
    let flags = Arc::<Flags>::default();
    let theirs = flags.clone();
    let thread = spawn(cx, "culprit", Prio::NORMAL, cpu, move |cx| {
        let stay = || {
            theirs.begun.store(true, Ordering::Relaxed);
            spin(&theirs.over);
        };
        match hold {
            Hold::PreemptOff => {
                let _off = PreemptGuard::new(cx);
                stay();
            }
            Hold::IrqsOff => {
                let _off = IrqGuard::new(cx);
                stay();
            }
            Hold::Reader => {
                let _reader = rcu::read_lock(cx);
                stay();
            }
        }
    })?;
    while !flags.begun.load(Ordering::Relaxed) {
        sched::sleep_ns(cx, MS);
    }
    Ok((flags, thread))
}

/// A thread that waits for a grace period of this kind.
fn waiter(cx: &mut MaySleep, kind: Kind) -> Result<JoinHandle<()>, Failure> {
    let thread = sched::spawn(cx, "waiter", Prio::NORMAL, None, move |cx| match kind {
        Kind::Normal => rcu::synchronize_rcu(cx),
        Kind::Expedited => rcu::synchronize_rcu_expedited(cx),
    });
    thread.map_err(|error| crate::__failed!("{error}"))
}

/// Limits for one kind only.
fn limit(kind: Kind) -> (u64, u64) {
    match kind {
        Kind::Normal => (LIMIT_NS, 0),
        Kind::Expedited => (0, LIMIT_NS),
    }
}

/// The first line of a report.
fn headline(kind: Kind) -> &'static str {
    match kind {
        Kind::Normal => "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks: (drill)",
        Kind::Expedited => "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: (drill)",
    }
}

/// Waits for a report of `kind` that names the CPU `target` and nobody else.
fn names_only(cx: &mut MaySleep, kind: Kind, target: CpuId) -> Option<Stall> {
    let only = CpuMask::of(target);
    wait_for(cx, |it| it.kind == kind && it.awaited.cpus == only && it.awaited.threads().next().is_none())
}

/// Lets a CPU hold up a grace period of this kind, and checks the report.
fn check_cpu(t: &mut Test<'_>, kind: Kind, hold: Hold) -> Result<(), Failure> {
    let target = other_cpu()?;
    drill(limit(kind), || {
        let (flags, thread) = culprit(t.cx, target, hold)?;
        let waiter = waiter(t.cx, kind)?;
        let found = names_only(t.cx, kind, target);
        let report = last_report(headline(kind));
        flags.over.store(true, Ordering::Relaxed);
        let tid = thread.thread().tid();
        thread.join(t.cx);
        waiter.join(t.cx);
        ensure!(found.is_some(), "no {kind:?} report names CPU {target} alone: {:?}", seen());
        let early = seen().iter().any(|stall| stall.age_ns < LIMIT_NS || !stall.awaited.cpus.contains(target));
        ensure!(!early, "too early, or of somebody else: {:?}", seen());
        ensure!(report.contains(&format!("it waits for CPUs {target};")), "{report}");
        ensure!(report.contains(&format!("CPU {target} has not passed a quiescent state")), "{report}");
        // Where interrupts are on the NMI may have hit one.
        let irqs = if hold == Hold::IrqsOff { " off" } else { "" };
        ensure!(report.contains(&format!("task culprit/{tid}, irqs{irqs}")), "{report}");
        ensure!(report.contains("  #1 0x"), "a backtrace: {report}");
        ensure!(report.contains("node of level 0, "), "the tree: {report}");
        ensure!(
            kind == Kind::Expedited || report.contains("the grace-period thread, runs: waits for readers"),
            "{report}"
        );
        Ok(())
    })
}

/// The grace-period thread.
fn gp_thread() -> Option<&'static Thread> {
    let mut found = None;
    sched::thread::for_each(|thread| {
        if thread.name().as_str() == "rcu_preempt" {
            found = Some(thread);
        }
    });
    found
}

ktest! {
    /// A CPU with preemption off, one with interrupts off and one with a long reader are named with what they do.
    #[budget_ms(60_000)]
    fn a_cpu_that_holds_up_a_normal_grace_period_is_named_and_nobody_else(t: &mut Test) {
        [Hold::PreemptOff, Hold::IrqsOff, Hold::Reader].into_iter().try_for_each(|hold| check_cpu(t, Kind::Normal, hold))
    }

    /// The same by the thread that waits for an expedited grace period, under a limit of its own.
    #[budget_ms(60_000)]
    fn a_cpu_that_holds_up_an_expedited_grace_period_is_named_and_nobody_else(t: &mut Test) {
        [Hold::PreemptOff, Hold::IrqsOff, Hold::Reader].into_iter().try_for_each(|hold| check_cpu(t, Kind::Expedited, hold))
    }

    /// A reader that has lost its CPU is named as a thread; the CPU that it lost is not.
    #[budget_ms(60_000)]
    fn a_preempted_reader_is_named_as_a_thread_and_no_cpu_is(t: &mut Test) {
        let target = other_cpu()?;
        for kind in [Kind::Normal, Kind::Expedited] {
            drill(limit(kind), || {
                let (flags, reader) = culprit(t.cx, target, Hold::Reader)?;
                let tid = reader.thread().tid();
                // More urgent, so that it takes the CPU while the reader reads.
                let theirs = flags.clone();
                let rival = spawn(t.cx, "rival", Prio::HIGH, target, move |_| spin(&theirs.over))?;
                while reader.thread().involuntary_switches() == 0 {
                    sched::sleep_ns(t.cx, MS);
                }
                let waiter = waiter(t.cx, kind)?;
                let found = wait_for(t.cx, |it| {
                    it.awaited.cpus.is_empty() && it.awaited.threads().map(|(_, tid)| tid).eq([tid])
                });
                let report = last_report(headline(kind));
                flags.over.store(true, Ordering::Relaxed);
                rival.join(t.cx);
                reader.join(t.cx);
                waiter.join(t.cx);
                ensure!(found.is_some(), "no {kind:?} report names thread {tid} alone: {:?}", seen());
                ensure!(report.contains("it waits for preempted readers, 1 of them;"), "{report}");
                ensure!(report.contains(&format!("culprit/{tid} was preempted inside a reader and has not left it")), "{report}");
                ensure!(report.contains("  #1 0x"), "a backtrace: {report}");
                ensure!(report.contains("and for preempted readers"), "the tree: {report}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A stall that goes on is told again after three limits more, and not before.
    #[budget_ms(60_000)]
    fn a_stall_is_told_again_after_three_limits_more(t: &mut Test) {
        let target = other_cpu()?;
        for kind in [Kind::Normal, Kind::Expedited] {
            drill(limit(kind), || {
                let (flags, thread) = culprit(t.cx, target, Hold::PreemptOff)?;
                let waiter = waiter(t.cx, kind)?;
                let again = wait_for(t.cx, |it| it.age_ns >= 4 * LIMIT_NS);
                flags.over.store(true, Ordering::Relaxed);
                thread.join(t.cx);
                waiter.join(t.cx);
                ensure!(again.is_some(), "told once only");
                let ages: Vec<u64> = seen().iter().map(|stall| stall.age_ns).collect();
                ensure!(ages.windows(2).all(|two| two[1] >= two[0] + 3 * LIMIT_NS), "too often, at {ages:?} ns");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// When the grace-period thread gets no CPU the tick says so, who has its CPU, and blames no reader.
    #[budget_ms(60_000)]
    fn a_starved_grace_period_thread_is_told_from_a_slow_reader(t: &mut Test) {
        let target = other_cpu()?;
        let Some(thread) = gp_thread() else { return Err(crate::__failed!("no thread rcu_preempt")) };
        sched::set_affinity(thread, &CpuMask::of(target), t.cx).map_err(|error| crate::__failed!("{error}"))?;
        let result = drill((LIMIT_NS, 0), || {
            let over = Arc::new(AtomicBool::new(false));
            let theirs = over.clone();
            // It passes through the scheduler all the time, so its CPU holds nothing up.
            let hog = spawn(t.cx, "hog", Prio::CRITICAL, target, move |cx| {
                let end = clock::now_ns() + PATIENCE_NS;
                while !theirs.load(Ordering::Relaxed) && clock::now_ns() < end {
                    sched::cond_resched(cx);
                }
            })?;
            let waiter = waiter(t.cx, Kind::Normal)?;
            let found = wait_for(t.cx, |it| it.starved_ns.is_some());
            let report = last_report(headline(Kind::Normal));
            over.store(true, Ordering::Relaxed);
            let tid = hog.thread().tid();
            hog.join(t.cx);
            waiter.join(t.cx);
            let Some(found) = found else { return Err(crate::__failed!("no report")) };
            ensure!(found.awaited.is_empty(), "a reader is blamed: {found:?}");
            ensure!(report.contains("rcu_preempt kthread starved for "), "{report}");
            ensure!(report.contains(&format!("it is ready to run on CPU {target}")), "{report}");
            ensure!(report.contains(&format!("that CPU is in task hog/{tid}")) || report.contains(&format!("task hog/{tid}")), "{report}");
            Ok(())
        });
        sched::set_affinity(thread, &cpu::present(), t.cx).map_err(|error| crate::__failed!("{error}"))?;
        result
    }

    /// Where the grace-period thread sits behind a CPU with preemption off, that CPU says so itself, as it does where it is
    /// the only one.
    #[budget_ms(60_000)]
    fn a_cpu_that_holds_up_the_grace_period_thread_as_well_reports_itself(t: &mut Test) {
        let target = other_cpu()?;
        let Some(thread) = gp_thread() else { return Err(crate::__failed!("no thread rcu_preempt")) };
        let result = drill((LIMIT_NS, 0), || {
            let (flags, culprit) = culprit(t.cx, target, Hold::PreemptOff)?;
            let waiter = waiter(t.cx, Kind::Normal)?;
            // Set up elsewhere, so that it waits for the CPU, behind which its thread is sent then.
            while rcu::stats().phase != rcu::Phase::Wait {
                sched::sleep_ns(t.cx, MS);
            }
            let sent = sched::set_affinity(thread, &CpuMask::of(target), t.cx);
            let found = wait_for(t.cx, |it| it.starved_ns.is_some());
            let report = last_report("rcu: INFO: rcu_preempt self-detected stall on CPU (drill)");
            flags.over.store(true, Ordering::Relaxed);
            culprit.join(t.cx);
            waiter.join(t.cx);
            ensure!(sent.is_ok());
            let Some(found) = found else { return Err(crate::__failed!("no report")) };
            ensure_eq!(found.awaited.cpus, CpuMask::of(target), "{found:?}");
            ensure!(report.contains("over task culprit/"), "{report}");
            ensure!(report.contains("rcu_preempt kthread starved for "), "{report}");
            Ok(())
        });
        sched::set_affinity(thread, &cpu::present(), t.cx).map_err(|error| crate::__failed!("{error}"))?;
        result
    }

    /// Without limits, as `rcupdate.rcu_cpu_stall_suppress` sets them, nothing is said.
    fn a_stall_without_a_limit_is_not_reported(t: &mut Test) {
        let target = other_cpu()?;
        let before = stall::reports();
        drill((0, 0), || {
            let (flags, thread) = culprit(t.cx, target, Hold::PreemptOff)?;
            let waiters = [waiter(t.cx, Kind::Normal)?, waiter(t.cx, Kind::Expedited)?];
            sched::sleep_ns(t.cx, 3 * LIMIT_NS);
            flags.over.store(true, Ordering::Relaxed);
            thread.join(t.cx);
            waiters.into_iter().for_each(|waiter| waiter.join(t.cx));
            ensure_eq!(stall::reports(), before);
            Ok(())
        })
    }

    /// CPUs that read, switch off preemption and interrupts for a while and queue callbacks hold nobody up for long.
    #[tags(race, slow)]
    #[budget_ms(60_000)]
    fn a_busy_machine_is_no_report(t: &mut Test) {
        // Longer than elsewhere: where several CPUs share one of the host's, each waits for its turn.
        const BUSY_NS: u64 = 10 * LIMIT_NS;
        let before = stall::reports();
        let periods = rcu::stats().gps;
        drill((BUSY_NS, BUSY_NS), || {
            let end = clock::now_ns() + BUSY_NS + BUSY_NS / 2;
            let mut threads = Vec::new();
            for id in cpu::online().iter() {
                threads.push(spawn(t.cx, "busy", Prio::NORMAL, id, move |cx| {
                    while clock::now_ns() < end {
                        {
                            let _reader = rcu::read_lock(cx);
                            clock::udelay(300);
                        }
                        {
                            let _off = IrqGuard::new(cx);
                            clock::udelay(200);
                        }
                        let _off = PreemptGuard::new(cx);
                        clock::udelay(500);
                    }
                })?);
            }
            while clock::now_ns() < end {
                rcu::synchronize_rcu(t.cx);
                rcu::synchronize_rcu_expedited(t.cx);
            }
            threads.into_iter().for_each(|thread| thread.join(t.cx));
            ensure_eq!(stall::reports(), before, "{:?}", seen());
            ensure!(rcu::stats().gps > periods, "no grace period passed");
            Ok(())
        })
    }
}
