//! Soft interrupts: where they run, what holds them off, and that a flood of them leaves threads their share.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use arch::{clock, cpu, irq, vector};
use sched::{MigrateGuard, Softirq, tick};
use sync::{ATOMIC, Once, PreemptGuard, SoftirqGuard, SpinLock, context, lock_class};

use super::sched::{MS, spawn};
use crate::softirq_calls;
use crate::stepping::{self, Visit};
use crate::{ensure, ensure_eq, ktest};

/// What the handler has seen: its calls; those in a wrong context; those in `ksoftirqd`.
static RUNS: AtomicU32 = AtomicU32::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);
static IN_DAEMON: AtomicU32 = AtomicU32::new(0);
/// The handler raises itself again.
static FLOOD: AtomicBool = AtomicBool::new(false);
/// What the handler calls besides.
static CALLS: SpinLock<Option<fn()>> = SpinLock::new(None, lock_class!("test.softirq"));

fn handler() {
    RUNS.fetch_add(1, Relaxed);
    WRONG.fetch_add(u32::from(!context::in_softirq() || !irq::enabled()), Relaxed);
    IN_DAEMON.fetch_add(u32::from(sched::current().name().as_str().starts_with("ksoftirqd/")), Relaxed);
    if FLOOD.load(Relaxed) {
        sched::softirq::raise(Softirq::Test);
    }
    let call = *CALLS.lock_irqsave(ATOMIC);
    if let Some(call) = call {
        call();
    }
}

/// Has the handler call `f` from now on: for the tests of another suite that need a soft interrupt.
pub(super) fn call_in_handler(f: Option<fn()>) {
    begin();
    *CALLS.lock_irqsave(ATOMIC) = f;
}

/// Makes ready for a test.
fn begin() {
    static REGISTERED: Once<()> = Once::new();
    REGISTERED.call_once(|| softirq_calls::add(handler));
    [&RUNS, &WRONG, &IN_DAEMON].into_iter().for_each(|count| count.store(0, Relaxed));
}

/// Waits, without giving up the CPU, until the handler has run so often; false if it does not.
fn spin_until_runs(expected: u32) -> bool {
    let begin = clock::now_ns();
    while RUNS.load(Relaxed) < expected && clock::now_ns() - begin < 5_000 * MS {
        irq::relax();
    }
    RUNS.load(Relaxed) >= expected
}

/// Raises one as an NMI that wants no interrupt.
struct Quiet;

/// Its raise took an interrupt.
static TOOK_ONE: AtomicBool = AtomicBool::new(false);
/// It has come.
static VISITED: AtomicBool = AtomicBool::new(false);

impl Visit for Quiet {
    fn visit() {
        VISITED.store(true, Relaxed);
        TOOK_ONE.store(sched::softirq::raise_quietly(Softirq::Test), Relaxed);
    }
}

ktest! {
    /// Raised in a thread, it runs on this CPU before the thread notices.
    fn a_softirq_runs_where_it_was_raised(t: &mut Test) {
        begin();
        for expected in 1..=100 {
            let _pin = PreemptGuard::new(&*t.cx);
            sched::softirq::raise(Softirq::Test);
            ensure!(spin_until_runs(expected));
            ensure_eq!(RUNS.load(Relaxed), expected);
        }
        ensure_eq!(WRONG.load(Relaxed), 0);
        Ok(())
    }

    /// A guard holds soft interrupts off whatever interrupts come, and runs them at its end, the outermost's.
    fn a_guard_holds_softirqs_off_until_its_end(t: &mut Test) {
        begin();
        for expected in 1..=100 {
            let outer = SoftirqGuard::new(&*t.cx);
            {
                let _inner = SoftirqGuard::new(&*t.cx);
                sched::softirq::raise(Softirq::Test);
                // An interrupt's exit must leave it alone, too.
                arch::ipi::send_self(arch::vector::RESCHEDULE);
            }
            let inside = RUNS.load(Relaxed);
            drop(outer);
            ensure_eq!((inside, RUNS.load(Relaxed)), (expected - 1, expected), "inside and behind");
        }
        ensure_eq!(WRONG.load(Relaxed), 0);
        Ok(())
    }

    /// One that raises itself for ever is left to `ksoftirqd` once its budget is used up, and other threads of that CPU, no more
    /// urgent than that, go on.
    #[budget_ms(60_000)]
    fn a_flood_of_softirqs_leaves_threads_their_share(t: &mut Test) {
        const STEPS: u32 = 20;
        begin();
        let on = cpu::online().iter().last();
        FLOOD.store(true, Relaxed);
        let flood = spawn(t.cx, "flood", on, |_| sched::softirq::raise(Softirq::Test))?;
        flood.join(t.cx);
        let thread = spawn(t.cx, "thread", on, |cx| {
            let mut most = 0;
            for _ in 0..STEPS {
                let before = RUNS.load(Relaxed);
                // Each step is a turn of its own: the flood gets all the time between.
                sched::sleep_ns(cx, MS);
                most = most.max(RUNS.load(Relaxed) - before);
            }
            most
        })?;
        // Generous: an emulated CPU may stand still.
        let begun = clock::now_ns();
        while !thread.is_finished() && clock::now_ns() - begun < 40_000 * MS {
            sched::sleep_ns(t.cx, 10 * MS);
        }
        let (finished, in_daemon) = (thread.is_finished(), IN_DAEMON.load(Relaxed));
        FLOOD.store(false, Relaxed);
        let most = thread.join(t.cx);
        // The last of the flood is over when nothing is pending there and a thread has had the CPU after that.
        let on = on.unwrap_or(cpu::current());
        while sched::softirq::pending_on(on) != 0 {
            sched::sleep_ns(t.cx, MS);
        }
        spawn(t.cx, "after", Some(on), |_| ())?.join(t.cx);
        t.note(format_args!("{} runs, {in_daemon} in ksoftirqd; at most {most} in a step", RUNS.load(Relaxed)));
        ensure!(finished, "the thread did not get through {STEPS} steps");
        ensure!(most > 0, "there was no flood");
        ensure!(in_daemon > 0, "nothing was left to ksoftirqd");
        ensure_eq!(WRONG.load(Relaxed), 0);
        Ok(())
    }

    /// While a guard lives and the tick runs, an NMI raises one without an interrupt to its own CPU, at any instruction of a
    /// guard's life: the guard's end, or the next one's, runs it.
    fn what_an_nmi_raises_quietly_runs_at_the_end_of_a_guard(t: &mut Test) {
        begin();
        let _here = MigrateGuard::new(&*t.cx);
        let interrupts = || sync::irq::count(cpu::current(), vector::IRQ_WORK);
        let (mut at, mut quiet) = (0, 0);
        loop {
            VISITED.store(false, Relaxed);
            let (runs, before) = (RUNS.load(Relaxed), interrupts());
            stepping::step::<Quiet>(stepping::only(at), || {
                context::set_need_resched();
                drop(PreemptGuard::new(ATOMIC));
            });
            // The guard that `step` has dropped was the outermost; the NMI may have come while that ended.
            drop(PreemptGuard::new(ATOMIC));
            if !VISITED.load(Relaxed) {
                break;
            }
            ensure!(RUNS.load(Relaxed) > runs, "raised at boundary {at}, it did not run");
            quiet += u32::from(interrupts() == before);
            at += 1;
        }
        t.note(format_args!("{at} boundaries, {quiet} without an interrupt to oneself"));
        ensure!(at > 5, "only {at} boundaries");
        ensure!(quiet as usize >= at / 2, "interrupts to oneself at {} of {at} boundaries", at - quiet as usize);
        ensure_eq!(WRONG.load(Relaxed), 0);
        Ok(())
    }

    /// A CPU that idles stops its tick and then looks for what relied on it: what an NMI raises quietly at any instruction of
    /// that runs at once, with nothing but an interrupt to bring it about.
    fn nothing_that_was_raised_quietly_waits_for_a_tick_that_stops(t: &mut Test) {
        begin();
        let _here = MigrateGuard::new(&*t.cx);
        let mut at = 0;
        loop {
            VISITED.store(false, Relaxed);
            // Its end would run it, too.
            let pin = PreemptGuard::new(&*t.cx);
            let runs = RUNS.load(Relaxed);
            stepping::step::<Quiet>(stepping::only(at), || {
                irq::disable();
                tick::stop_to_idle();
                irq::enable();
            });
            let visited = VISITED.load(Relaxed);
            // What sent no interrupt is done already: whatever else comes along would hide that it was forgotten.
            let ran = !visited || RUNS.load(Relaxed) > runs || TOOK_ONE.load(Relaxed) && spin_until_runs(runs + 1);
            irq::disable();
            tick::start();
            irq::enable();
            drop(pin);
            ensure!(ran, "raised at boundary {at}, it waits for a tick");
            if !visited {
                break;
            }
            at += 1;
        }
        t.note(format_args!("{at} boundaries"));
        ensure!(at > 20, "only {at} boundaries are not the way into idling");
        ensure_eq!(WRONG.load(Relaxed), 0);
        Ok(())
    }
}
