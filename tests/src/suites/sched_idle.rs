//! Idle CPUs: no tick, and nothing slept over.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::{cpu, irq, vector};
use sched::{MigrateGuard, Prio, Softirq, State, Thread, tick};
use sync::{IrqWork, MaySleep, PreemptGuard, context};

use super::sched::{MS, spawn, two_cpus};
use super::sched_softirq;
use crate::stepping::{self, Visit};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

ktest! {
    /// A CPU that idles takes no tick, and takes up threads at once when there are some.
    fn an_idle_cpu_takes_no_tick(t: &mut Test) {
        let (_, there) = two_cpus()?;
        // Whatever earlier tests left behind goes to sleep first.
        let mut quiet = false;
        for _ in 0..50 {
            let before = tick::count_on(there);
            sched::sleep_ns(t.cx, 50 * MS);
            quiet = tick::count_on(there) == before && !tick::runs_on(there);
            if quiet {
                break;
            }
        }
        ensure!(quiet, "CPU {there} still ticks");
        let thread = spawn(t.cx, "worker", Some(there), |_| cpu::current())?;
        ensure_eq!(thread.join(t.cx), there);
        Ok(())
    }

    /// A CPU that idles ticks while somebody wants it to, and no longer.
    fn an_idle_cpus_tick_can_be_kept_on(t: &mut Test) {
        let (_, there) = two_cpus()?;
        let ticks = |cx: &mut MaySleep, wanted: u64| {
            let begin = tick::count_on(there);
            for _ in 0..500 {
                if tick::count_on(there) - begin >= wanted {
                    return true;
                }
                sched::sleep_ns(cx, 10 * MS);
            }
            false
        };
        tick::keep_on(there);
        let kept = ticks(t.cx, 200);
        tick::let_stop(there);
        ensure!(kept, "CPU {there} did not go on ticking");
        let mut stopped = false;
        for _ in 0..500 {
            stopped = !tick::runs_on(there);
            if stopped {
                break;
            }
            sched::sleep_ns(t.cx, 10 * MS);
        }
        ensure!(stopped, "CPU {there} ticks on");
        Ok(())
    }

    /// A CPU that is told to reschedule is, though what it runs is alone there and the most urgent.
    fn a_cpu_can_be_made_to_reschedule(t: &mut Test) {
        let (here, there) = two_cpus()?;
        let ready = Arc::new(AtomicBool::new(false));
        let theirs = ready.clone();
        let thread = sched::spawn(t.cx, "busy", Prio::CRITICAL, Some(there), move |cx| {
            let _pin = PreemptGuard::new(&*cx);
            theirs.store(true, Relaxed);
            let begin = tick::count_on(there);
            while !context::need_resched() && tick::count_on(there) - begin < 100 {
                irq::relax();
            }
            context::need_resched()
        });
        let thread = thread.map_err(|error| crate::__failed!("{error}"))?;
        while !ready.load(Relaxed) {
            sched::sleep_ns(t.cx, MS);
        }
        sched::resched_cpu(there);
        ensure!(thread.join(t.cx), "CPU {there} was not told");
        // The caller's own.
        let own = spawn(t.cx, "own", Some(here), |cx| {
            let _pin = PreemptGuard::new(&*cx);
            sched::resched_cpu(cpu::current());
            context::need_resched()
        })?;
        ensure!(own.join(t.cx));
        Ok(())
    }

    /// Two threads that may run anywhere share a CPU, others idle without a tick: one of them is fetched.
    fn an_idle_cpu_fetches_one_of_two_threads_that_share_another(t: &mut Test) {
        const TICKS: u64 = 50;
        if cpu::online().count() < 3 {
            skip!("needs three CPUs: this one, one that is shared, and one that idles");
        }
        let _here = MigrateGuard::new(&*t.cx);
        let there = cpu::online().iter().find(|cpu| *cpu != cpu::current());
        let shared = Arc::new((AtomicBool::new(false), [const { AtomicUsize::new(usize::MAX) }; 2]));
        let mut threads = Vec::new();
        for me in 0..2 {
            let shared = shared.clone();
            threads.push(spawn(t.cx, "share", there, move |_| {
                while !shared.0.load(Relaxed) {
                    shared.1[me].store(cpu::current().index(), Relaxed);
                    irq::relax();
                }
            })?);
        }
        let on = || shared.1.each_ref().map(|on| on.load(Relaxed));
        while on().contains(&usize::MAX) {
            sched::sleep_ns(t.cx, MS);
        }
        for thread in &threads {
            sched::set_affinity(thread.thread(), &cpu::online(), t.cx).map_err(|error| crate::__failed!("{error}"))?;
        }
        // Not asleep: this CPU would fetch one on its way into idling.
        let begin = tick::count();
        while on()[0] == on()[1] && tick::count() - begin < TICKS {
            irq::relax();
        }
        let on = on();
        shared.0.store(true, Relaxed);
        for thread in threads {
            thread.join(t.cx);
        }
        ensure!(on[0] != on[1], "both are on CPU {} after {TICKS} ticks", on[0]);
        Ok(())
    }

    /// Something that wakes a thread, at every instruction from before the last look until the `hlt`, by an NMI that can only
    /// raise an interrupt: the `hlt` ends, and the thread runs.
    #[budget_ms(60_000)]
    fn nothing_is_slept_over_at_any_instruction_before_the_halt(t: &mut Test) {
        for how in [How::IrqWork, How::Softirq] {
            let boundaries = in_thread(t.cx, move |cx| step_over_window(cx, how, false))?;
            t.note(format_args!("{how:?} at each of {boundaries} instruction boundaries"));
            ensure!((8..100).contains(&boundaries), "{boundaries} boundaries are not the window");
        }
        Ok(())
    }

    /// The same where idle CPUs poll (`idle=poll`): at each of the first hundred instructions.
    #[budget_ms(60_000)]
    fn nothing_is_missed_at_any_instruction_of_a_poll(t: &mut Test) {
        for how in [How::IrqWork, How::Softirq] {
            ensure_eq!(in_thread(t.cx, move |cx| step_over_window(cx, how, true))?, POLL_BOUNDARIES);
        }
        Ok(())
    }
}

/// Boundaries that are tried where the wait has no end of its own.
const POLL_BOUNDARIES: usize = 100;
/// Tries of a boundary that the tick disturbs. A wake-up that is lost waits for the tick in each of them.
const TRIES: u32 = 50;

/// What the "NMI" does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// It queues an `irq_work` that wakes.
    IrqWork,
    /// It raises a soft interrupt that wakes.
    Softirq,
}

/// The thread that is woken; how often it ran; that it is to end.
static SLEEPER: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());
static RAN: AtomicU32 = AtomicU32::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
/// The "NMI" has come; how many timer interrupts this CPU had had by then.
static VISITED: AtomicBool = AtomicBool::new(false);
static TIMERS_THEN: AtomicU64 = AtomicU64::new(0);
static BY_SOFTIRQ: AtomicBool = AtomicBool::new(false);
static WORK: IrqWork = IrqWork::new(|_| wake_sleeper());

fn wake_sleeper() {
    // SAFETY: null, or a type-stable thread.
    if let Some(sleeper) = unsafe { SLEEPER.load(Relaxed).as_ref::<'static>() } {
        sched::wake(sleeper);
    }
}

fn timers_here() -> u64 {
    sync::irq::count(cpu::current(), vector::TIMER)
}

struct Nmi;

impl Visit for Nmi {
    fn visit() {
        VISITED.store(true, Relaxed);
        TIMERS_THEN.store(timers_here(), Relaxed);
        if BY_SOFTIRQ.load(Relaxed) {
            sched::softirq::raise(Softirq::Test);
        } else {
            WORK.queue();
        }
    }
}

/// How a try went.
#[derive(PartialEq, Eq, Debug)]
enum Try {
    /// The wait ended by the wake-up, and the thread ran.
    Ran,
    /// The tick came between the "NMI" and the end of the wait.
    TickAfter,
    /// The wait had been ended by the tick, or by something that was there before, when the "NMI" came, or it did not come.
    TooLate,
    /// The wait ended, without a tick, and the thread did not run.
    DidNotRun,
}

/// Waits as an idle CPU does, with an "NMI" at boundary `at`.
fn wait_with_nmi_at(at: usize, poll: bool) -> Try {
    VISITED.store(false, Relaxed);
    let (ran, timers) = (RAN.load(Relaxed), timers_here());
    stepping::step::<Nmi>((usize::MAX / 2, at), || {
        irq::disable();
        sched::idle::wait_for_interrupt(poll);
        irq::enable();
    });
    // The guard that `step` has dropped let the thread, which is more urgent, run.
    let (ran, timers_now) = (RAN.load(Relaxed) != ran, timers_here());
    if !VISITED.load(Relaxed) || TIMERS_THEN.load(Relaxed) != timers {
        Try::TooLate
    } else if timers_now != timers {
        Try::TickAfter
    } else if ran {
        Try::Ran
    } else {
        Try::DidNotRun
    }
}

/// Puts the "NMI" at one boundary after the other, until it comes after the end of the wait; returns how many there were.
fn step_over_window(cx: &mut MaySleep, how: How, poll: bool) -> Result<usize, Failure> {
    BY_SOFTIRQ.store(how == How::Softirq, Relaxed);
    let mut at = 0;
    while !(poll && at == POLL_BOUNDARIES) {
        let mut tries = (0..TRIES).map(|_| wait_with_nmi_at(at, poll));
        // A poll has no end of its own, so there "too late" is the tick's doing, too.
        let disturbed = |outcome: &Try| *outcome == Try::TickAfter || poll && *outcome == Try::TooLate;
        match tries.find(|outcome| !disturbed(outcome)) {
            Some(Try::Ran) => at += 1,
            // Again and again: a tick of its own may have come before the "NMI".
            Some(Try::TooLate) if (0..5).all(|_| wait_with_nmi_at(at, poll) == Try::TooLate) => break,
            Some(Try::TooLate) => {}
            outcome => {
                let tick = if outcome.is_none() { ": only the tick ended it" } else { "" };
                return Err(crate::__failed!("{how:?} at boundary {at}: the thread did not run at once{tick}"));
            }
        }
        sched::cond_resched(cx);
    }
    Ok(at)
}

/// Runs `f` in a thread on this CPU, beside a more urgent one that sleeps and counts its wake-ups.
fn in_thread(
    cx: &mut MaySleep,
    f: impl FnOnce(&mut MaySleep) -> Result<usize, Failure> + Send + 'static,
) -> Result<usize, Failure> {
    let here = cpu::current();
    OVER.store(false, Relaxed);
    let sleeper = sched::spawn(cx, "sleeper", Prio::HIGH, Some(here), |cx| {
        while !OVER.load(Relaxed) {
            sched::wait::sleep_until_woken(cx, || OVER.load(Relaxed));
            RAN.fetch_add(1, Relaxed);
        }
    });
    let sleeper = sleeper.map_err(|error| crate::__failed!("{error}"))?;
    while sleeper.thread().state() != State::Sleeping {
        sched::sleep_ns(cx, MS);
    }
    SLEEPER.store(ptr::from_ref(sleeper.thread()).cast_mut(), Relaxed);
    sched_softirq::call_in_handler(Some(wake_sleeper));
    let result = spawn(cx, "stepper", Some(here), f)?.join(cx);
    sched_softirq::call_in_handler(None);
    SLEEPER.store(ptr::null_mut(), Relaxed);
    OVER.store(true, Relaxed);
    sched::wake(sleeper.thread());
    sleeper.join(cx);
    result
}
