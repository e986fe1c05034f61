//! Readers, wherever they read and however they end: none is overlooked, and none holds a grace period longer than it lasts.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch::trap::TrapFrame;
use arch::{CpuId, CpuMask, cpu, ipi};
use rcu::{CallbackHead, call_rcu, poll, read_lock, start_poll_expedited_full, start_poll_full, synchronize_rcu};
use sched::{MigrateGuard, Prio};
use sync::nmi::NmiHandler;
use sync::{ATOMIC, IrqGuard, IrqWork, MaySleep, Once, PreemptGuard, SoftirqGuard, SpinLock, lock_class};

use crate::together::{MS, Steps, Urgent, WAITS, soon, spawn, spin_until, two_cpus};
use crate::{Failure, Test, ensure, ensure_eq, ktest, skip};

/// Where a reader stands that is held in its section: outside, inside, or to leave.
static STAND: AtomicUsize = AtomicUsize::new(OUTSIDE);
const OUTSIDE: usize = 0;
const INSIDE: usize = 1;
const LEAVE: usize = 2;

/// Reads until [`STAND`] says that it is to leave. Any context.
fn read_until_told() {
    let guard = read_lock(ATOMIC);
    STAND.store(INSIDE, Ordering::SeqCst);
    spin_until(|| STAND.load(Ordering::SeqCst) == LEAVE);
    STAND.store(OUTSIDE, Ordering::SeqCst);
    drop(guard);
}

/// In a softirq: callbacks run there.
fn read_in_softirq() {
    static HEAD: SpinLock<CallbackHead> = SpinLock::new(CallbackHead::new(), lock_class!("test.rcu_readers.head"));
    let head = &raw mut *HEAD.lock_irqsave(ATOMIC);
    // SAFETY: a static head that is on no list: the last reader has left, and its callback is not used after that.
    unsafe { call_rcu(head, |_| read_until_told()) };
}

/// In a hard interrupt that no caller of other CPUs waits for.
static READ_IN_HARDIRQ: IrqWork = IrqWork::new(|_| read_until_told());

/// The NMI that comes next on a CPU is to read there.
static NMI_IS_OURS: AtomicBool = AtomicBool::new(false);

fn read_in_nmi(_: &mut TrapFrame) -> bool {
    let ours = NMI_IS_OURS.swap(false, Ordering::Relaxed);
    if ours {
        read_until_told();
    }
    ours
}

/// Has a reader begin on `there`, in an interrupt or NMI that hits whatever runs there.
fn begin_on(there: CpuId, place: &str) {
    static HANDLER: NmiHandler = NmiHandler::new("rcu_readers", read_in_nmi);
    static REGISTERED: Once<()> = Once::new();
    match place {
        "softirq" => sync::smp::call_on(there, |_| read_in_softirq(), 0, false),
        "hardirq" => {
            READ_IN_HARDIRQ.queue_on(there);
        }
        _ => {
            REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
            NMI_IS_OURS.store(true, Ordering::Relaxed);
            ipi::send_nmi(there);
        }
    }
}

/// A reader that is in its section when both kinds of grace period are asked for delays both; it is held by `begin`.
fn delays_both(t: &mut Test<'_>, place: &str, there: CpuId) -> Result<(), Failure> {
    STAND.store(OUTSIDE, Ordering::SeqCst);
    begin_on(there, place);
    ensure!(spin_until(|| STAND.load(Ordering::SeqCst) == INSIDE), "no reader in {place}");
    let (normal, expedited) = (start_poll_full(), start_poll_expedited_full());
    sched::sleep_ns(t.cx, 30 * MS);
    let over = poll(normal) || poll(expedited);
    STAND.store(LEAVE, Ordering::SeqCst);
    ensure!(!over, "a reader in {place} was overlooked");
    ensure!(soon(t.cx, || poll(normal) && poll(expedited)), "a reader in {place} is still waited for");
    ensure_eq!(STAND.load(Ordering::SeqCst), OUTSIDE);
    Ok(())
}

/// Has the reader on this CPU lose it for a moment, to a thread that is more urgent.
fn preempt(on: Option<CpuId>, cx: &mut MaySleep) -> Result<(), Failure> {
    let rival = sched::spawn(cx, "rival", Prio::HIGH, on, |cx| sched::sleep_ns(cx, MS));
    rival.map_err(|error| crate::__failed!("{error}"))?.join(cx);
    Ok(())
}

ktest! {
    /// Held in a softirq, a hard interrupt and an NMI, each on an idle CPU and on a busy one. (In a thread:
    /// `rcu.a_reader_from_before_the_grace_period_delays_it`.)
    #[tags(race)]
    fn a_reader_in_an_interrupt_or_nmi_delays_grace_periods(t: &mut Test) {
        let _urgent = Urgent::new();
        let _stay = MigrateGuard::new(&*t.cx);
        let here = cpu::current();
        let Some(there) = cpu::online().iter().find(|&cpu| cpu != here) else { skip!("needs two CPUs") };
        for place in ["softirq", "hardirq", "NMI"] {
            delays_both(t, place, there)?;
        }
        let steps = Steps::new();
        let theirs = steps.clone();
        let busy = spawn(t.cx, Some(there), move |_| spin_until(|| theirs.is_at(1)))?;
        let result = ["softirq", "hardirq", "NMI"].into_iter().try_for_each(|place| delays_both(t, place, there));
        steps.reach(1);
        ensure!(busy.join(t.cx));
        result
    }

    /// Reading works in hard interrupts and NMIs, also on top of a reader that was asked to report.
    fn readers_nest_in_interrupts_and_nmis(t: &mut Test) {
        for cpu in cpu::online().iter() {
            let depth = sync::smp::run_on(cpu, || {
                let _irq = read_lock(ATOMIC);
                sync::nmi::as_nmi(|| {
                    let _nmi = read_lock(ATOMIC);
                    rcu::read_depth()
                })
            });
            ensure!(depth.is_some_and(|depth| depth >= 2), "CPU {cpu}: {depth:?}");
        }
        synchronize_rcu(t.cx);
        ensure_eq!(rcu::read_depth(), 0);
        Ok(())
    }

    /// A reader that lost its CPU inside its section, before a grace period began or while it is waited for, holds it up as a
    /// blocked thread, nested ones until the outermost ends.
    #[tags(race)]
    fn a_preempted_reader_30_deep_holds_the_grace_period_until_the_outermost_unlock(t: &mut Test) {
        let _urgent = Urgent::new();
        let on = cpu::online().iter().last();
        for (wait, waited_for) in WAITS.into_iter().flat_map(|wait| [(wait, false), (wait, true)]) {
            let steps = Steps::new();
            let theirs = steps.clone();
            let reader = spawn(t.cx, on, move |_| {
                let outer = read_lock(ATOMIC);
                let mut inner: Vec<_> = (0..29).map(|_| read_lock(ATOMIC)).collect();
                theirs.reach(1);
                let first = spin_until(|| theirs.is_at(2));
                while inner.pop().is_some() {}
                theirs.reach(3);
                let last = spin_until(|| theirs.is_at(4));
                drop(outer);
                first && last
            })?;
            ensure!(soon(t.cx, || steps.is_at(1)));
            if !waited_for {
                preempt(on, t.cx)?;
                ensure!(reader.thread().involuntary_switches() > 0, "the reader kept its CPU");
            }
            let done = Steps::new();
            let theirs = done.clone();
            let waiter = spawn(t.cx, None, move |cx| {
                wait(cx);
                theirs.reach(1);
            })?;
            if waited_for {
                sched::sleep_ns(t.cx, 20 * MS);
                preempt(on, t.cx)?;
            }
            steps.reach(2);
            ensure!(soon(t.cx, || steps.is_at(3)));
            sched::sleep_ns(t.cx, 50 * MS);
            ensure!(!done.is_at(1), "over while the outermost section lasts");
            steps.reach(4);
            waiter.join(t.cx);
            ensure!(reader.join(t.cx));
        }
        Ok(())
    }

    /// From CPU to CPU inside one section, which is from leaf to leaf where the tree has several: the reader stays on the list
    /// of the leaf that it was first preempted under.
    #[tags(race)]
    fn a_reader_that_is_moved_from_cpu_to_cpu_delays_grace_periods(t: &mut Test) {
        two_cpus()?;
        let _urgent = Urgent::new();
        let steps = Steps::new();
        let theirs = steps.clone();
        let reader = spawn(t.cx, None, move |cx| {
            let guard = read_lock(cx);
            theirs.reach(1);
            let released = spin_until(|| theirs.is_at(2));
            drop(guard);
            released
        })?;
        ensure!(soon(t.cx, || steps.is_at(1)));
        let (normal, expedited) = (start_poll_full(), start_poll_expedited_full());
        let thread = reader.thread();
        let mut result = Ok(());
        for to in cpu::online().iter().chain(cpu::online().iter()) {
            let mut only = CpuMask::EMPTY;
            only.insert(to);
            result = result.and(sched::set_affinity(thread, &only, t.cx));
            sched::sleep_ns(t.cx, 2 * MS);
            if poll(normal) || poll(expedited) || thread.cpu() != to {
                break;
            }
        }
        let over = poll(normal) || poll(expedited);
        let moves = thread.involuntary_switches();
        steps.reach(2);
        ensure!(reader.join(t.cx));
        ensure!(result.is_ok(), "{result:?}");
        ensure!(moves > 0 && !over, "over after {moves} moves, while the reader reads");
        ensure!(soon(t.cx, || poll(normal) && poll(expedited)));
        Ok(())
    }

    /// Sections with preemption, softirqs or interrupts off are readers too.
    #[tags(race)]
    fn a_section_with_preemption_softirqs_or_interrupts_off_is_a_reader(t: &mut Test) {
        let (_, there) = two_cpus()?;
        let _urgent = Urgent::new();
        for kind in 0..3 {
            for wait in WAITS {
                let steps = Steps::new();
                let theirs = steps.clone();
                let section = spawn(t.cx, Some(there), move |_| {
                    let hold = || {
                        theirs.reach(1);
                        spin_until(|| theirs.is_at(2))
                    };
                    match kind {
                        0 => {
                            let _off = PreemptGuard::new(ATOMIC);
                            hold()
                        }
                        1 => {
                            let _off = SoftirqGuard::new(ATOMIC);
                            hold()
                        }
                        _ => {
                            let _off = IrqGuard::new(ATOMIC);
                            hold()
                        }
                    }
                })?;
                ensure!(soon(t.cx, || steps.is_at(1)));
                let done = Steps::new();
                let theirs = done.clone();
                let waiter = spawn(t.cx, None, move |cx| {
                    wait(cx);
                    theirs.reach(1);
                })?;
                sched::sleep_ns(t.cx, 50 * MS);
                ensure!(!done.is_at(1), "kind {kind} did not hold the grace period");
                steps.reach(2);
                ensure!(section.join(t.cx));
                waiter.join(t.cx);
            }
        }
        Ok(())
    }

    /// a reader that ends with interrupts, softirqs or preemption off, in each combination, is reported although it cannot
    /// do so itself, while the thread goes on without ever giving up the CPU; preempted in its section, and merely asked.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_reader_that_ends_where_it_cannot_report_is_reported(t: &mut Test) {
        let (_, there) = two_cpus()?;
        let _urgent = Urgent::new();
        let before = rcu::stats();
        for (off, preempted) in (0..8).flat_map(|off| [(off, false), (off, true)]) {
            let steps = Steps::new();
            let theirs = steps.clone();
            let reader = spawn(t.cx, Some(there), move |_| {
                let guard = read_lock(ATOMIC);
                theirs.reach(1);
                let first = spin_until(|| theirs.is_at(2));
                {
                    let _preempt = (off & 1 != 0).then(|| PreemptGuard::new(ATOMIC));
                    let _softirqs = (off & 2 != 0).then(|| SoftirqGuard::new(ATOMIC));
                    let _irqs = (off & 4 != 0).then(|| IrqGuard::new(ATOMIC));
                    drop(guard);
                }
                first && spin_until(|| theirs.is_at(3))
            })?;
            ensure!(soon(t.cx, || steps.is_at(1)));
            if preempted {
                preempt(Some(there), t.cx)?;
            }
            let cookies = [rcu::start_poll_full(), start_poll_expedited_full()];
            // Long enough for the interrupt of the one and a tick of the other.
            sched::sleep_ns(t.cx, 10 * MS);
            let over = cookies.map(poll);
            steps.reach(2);
            let reported = soon(t.cx, || cookies.iter().all(poll));
            steps.reach(3);
            ensure!(reader.join(t.cx));
            ensure!(reported, "off {off:03b}, preempted {preempted}: {cookies:?}");
            ensure_eq!(over, [false; 2]);
        }
        // Every one that was put off has come home.
        ensure!(soon(t.cx, || {
            let now = rcu::stats();
            now.deferred == now.deferred_done
        }));
        let deferred = rcu::stats().deferred - before.deferred;
        t.note(format_args!("{deferred} reports put off"));
        ensure!(deferred >= 7, "too few were put off: {deferred}");
        Ok(())
    }
}
