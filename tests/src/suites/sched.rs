//! Threads: wake-ups, preemption, timers, deferred work, mutexes, idle CPUs.
//!
//! Waits in here end by counted work or by generous time: a CPU of an emulated machine may stand still for tens of
//! milliseconds at any point.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::{CpuId, clock, cpu, irq};
use sched::{Completion, DelayedWork, Mutex, Prio, Softirq, Timer, WaitQueue, WorkItem, tick};
use sync::{MaySleep, PreemptGuard};

use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Wake-ups in each direction of the ping-pong.
const ROUNDS: u64 = 50_000;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;

/// Starts a thread of normal priority, or fails the test.
fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    name: &str,
    on: Option<CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<sched::JoinHandle<T>, Failure> {
    sched::spawn(cx, name, Prio::NORMAL, on, f).map_err(|error| crate::__failed!("{name}: {error}"))
}

/// Two CPUs, this one's first; skips the test on a machine with one.
fn two_cpus() -> Result<(CpuId, CpuId), Failure> {
    let mut cpus = cpu::online().iter();
    match (cpus.next(), cpus.next()) {
        (Some(a), Some(b)) => Ok((a, b)),
        _ => skip!("needs two CPUs"),
    }
}

/// Whose turn it is, and who waits for it.
struct Ball {
    turn: AtomicU64,
    queues: [WaitQueue; 2],
}

impl Ball {
    fn new() -> Ball {
        Ball { turn: AtomicU64::new(0), queues: [WaitQueue::new(), WaitQueue::new()] }
    }

    fn play(&self, cx: &mut MaySleep, me: usize) {
        for round in 0..ROUNDS {
            let mine = 2 * round + me as u64;
            self.queues[me].wait_until(cx, || self.turn.load(Ordering::Relaxed) == mine);
            self.turn.store(mine + 1, Ordering::Relaxed);
            self.queues[1 - me].wake_one();
        }
    }
}

fn ping_pong(cx: &mut MaySleep, a: Option<CpuId>, b: Option<CpuId>) -> Result<(), Failure> {
    let ball = Arc::new(Ball::new());
    let (ours, theirs) = (ball.clone(), ball.clone());
    let ping = spawn(cx, "ping", a, move |cx| ours.play(cx, 0))?;
    let pong = spawn(cx, "pong", b, move |cx| theirs.play(cx, 1))?;
    ping.join(cx);
    pong.join(cx);
    ensure_eq!(ball.turn.load(Ordering::Relaxed), 2 * ROUNDS);
    Ok(())
}

ktest! {
    /// 100,000 wake-ups, each needed for the next: a lost one is a hang. Each wakes a halted CPU, which takes an emulator on a
    /// busy host most of a millisecond; so it is run on as many CPUs as the host has, and not again on more.
    #[budget_ms(120_000)]
    fn ping_pong_across_cpus_loses_no_wake_up(t: &mut Test) {
        let (a, b) = two_cpus()?;
        let begin = clock::now_ns();
        ping_pong(t.cx, Some(a), Some(b))?;
        let each = (clock::now_ns() - begin) / (2 * ROUNDS);
        t.figure(format_args!(r#"{{"bench":"sched.ping_pong_across_cpus","ns_each":{each}}}"#));
        Ok(())
    }

    /// The same on one CPU: each wake-up is a context switch.
    #[budget_ms(60_000)]
    fn ping_pong_on_one_cpu_loses_no_wake_up(t: &mut Test) {
        let here = cpu::current();
        let begin = clock::now_ns();
        ping_pong(t.cx, Some(here), Some(here))?;
        let each = (clock::now_ns() - begin) / (2 * ROUNDS);
        t.figure(format_args!(r#"{{"bench":"sched.ping_pong_on_one_cpu","ns_each":{each}}}"#));
        Ok(())
    }

    /// Threads that may run anywhere move and lose nothing.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn ping_pong_of_unbound_threads_loses_no_wake_up(t: &mut Test) {
        ping_pong(t.cx, None, None)
    }

    /// A thread's result reaches whoever joins it, and its memory its next tenant.
    fn join_yields_what_the_thread_returned(t: &mut Test) {
        for round in 0..200_u64 {
            let thread = spawn(t.cx, "adder", None, move |_| round + 1)?;
            ensure_eq!(thread.join(t.cx), round + 1);
        }
        Ok(())
    }

    /// Many at once, on every CPU.
    fn threads_run_where_they_are_bound(t: &mut Test) {
        let mut threads = Vec::new();
        for cpu in cpu::online().iter().cycle().take(64) {
            let body = move |cx: &mut MaySleep| {
                for _ in 0..10 {
                    if cpu::current() != cpu {
                        return false;
                    }
                    sched::yield_now(cx);
                }
                true
            };
            threads.push(spawn(t.cx, "bound", Some(cpu), body)?);
        }
        for thread in threads {
            ensure!(thread.join(t.cx));
        }
        Ok(())
    }

    /// Two threads that never give up one CPU both get it: the slice ends by the tick.
    #[budget_ms(30_000)]
    fn a_busy_loop_is_preempted_by_an_equal(t: &mut Test) {
        let shared = Arc::new((AtomicBool::new(false), AtomicUsize::new(0)));
        let on = cpu::online().iter().last();
        let mut threads = Vec::new();
        for _ in 0..2 {
            let shared = shared.clone();
            threads.push(spawn(t.cx, "busy", on, move |_| {
                // Each waits for the other without giving up the CPU: only preemption lets both get here.
                shared.1.fetch_add(1, Ordering::Relaxed);
                while shared.1.load(Ordering::Relaxed) < 2 && !shared.0.load(Ordering::Relaxed) {
                    irq::relax();
                }
                sched::current().involuntary_switches()
            })?);
        }
        let begin = clock::now_ns();
        while shared.1.load(Ordering::Relaxed) < 2 && clock::now_ns() - begin < 20_000 * MS {
            sched::sleep_ns(t.cx, MS);
        }
        shared.0.store(true, Ordering::Relaxed);
        let switches: u64 = threads.into_iter().map(|thread| thread.join(t.cx)).sum();
        ensure_eq!(shared.1.load(Ordering::Relaxed), 2);
        ensure!(switches >= 1, "{switches} preemptions");
        Ok(())
    }

    /// A thread of a higher level gets the CPU at once although another never gives it up.
    #[budget_ms(30_000)]
    fn an_urgent_thread_preempts_a_busy_one(t: &mut Test) {
        let (_, there) = two_cpus()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stop_too = stop.clone();
        let busy = spawn(t.cx, "busy", Some(there), move |_| {
            while !stop_too.load(Ordering::Relaxed) {
                irq::relax();
            }
        })?;
        for _ in 0..50 {
            let urgent = sched::spawn(t.cx, "urgent", Prio::RCU, Some(there), |_| cpu::current());
            let urgent = urgent.map_err(|error| crate::__failed!("{error}"))?;
            ensure_eq!(urgent.join(t.cx), there);
        }
        ensure!(!busy.is_finished());
        stop.store(true, Ordering::Relaxed);
        busy.join(t.cx);
        Ok(())
    }

    /// With preemption off even the end of the slice waits.
    fn nothing_preempts_a_preempt_off_section(t: &mut Test) {
        let here = cpu::current();
        let ran = Arc::new(AtomicBool::new(false));
        let ran_too = ran.clone();
        let other = sched::spawn(t.cx, "urgent", Prio::RCU, Some(here), move |cx| {
            sched::sleep_ns(cx, 5 * MS);
            ran_too.store(true, Ordering::Relaxed);
        });
        let other = other.map_err(|error| crate::__failed!("{error}"))?;
        let seen = {
            let _pin = PreemptGuard::new(&*t.cx);
            let before = ran.load(Ordering::Relaxed);
            let begin = clock::now_ns();
            while clock::now_ns() - begin < 20 * MS {
                irq::relax();
            }
            (before, ran.load(Ordering::Relaxed))
        };
        ensure_eq!(seen.0, seen.1, "it ran in the section");
        other.join(t.cx);
        ensure!(ran.load(Ordering::Relaxed));
        Ok(())
    }

    /// Never early, whatever the length; how late is reported.
    fn sleeping_is_never_shorter_than_asked(t: &mut Test) {
        let mut worst = 0;
        for _ in 0..100 {
            let ns = t.rng.next_u64() % (3 * MS);
            let begin = clock::now_ns();
            sched::sleep_ns(t.cx, ns);
            let slept = clock::now_ns() - begin;
            ensure!(slept >= ns, "slept {slept} of {ns} ns");
            worst = worst.max(slept - ns);
        }
        t.figure(format_args!(r#"{{"bench":"sched.sleep","worst_late_ns":{worst}}}"#));
        Ok(())
    }

    /// Timers on all CPUs under load: none early, none forgotten, none after its cancel.
    #[tags(race)]
    #[budget_ms(30_000)]
    fn timers_fire_once_and_never_early(t: &mut Test) {
        let mut threads = Vec::new();
        for cpu in cpu::online().iter() {
            let seed = t.rng.next_u64();
            threads.push(spawn(t.cx, "timers", Some(cpu), move |cx| timers_on_this_cpu(cx, seed))?);
        }
        for thread in threads {
            let (early, fired, armed) = thread.join(t.cx);
            ensure_eq!(early, 0);
            ensure_eq!(fired, armed);
        }
        Ok(())
    }

    /// An item queued for a CPU runs there, in a thread, also if it is queued from elsewhere.
    fn work_runs_on_the_cpu_it_is_queued_for(t: &mut Test) {
        static RAN_ON: AtomicUsize = AtomicUsize::new(usize::MAX);
        static DONE: Completion = Completion::new();
        static ITEM: WorkItem = WorkItem::new(|_, cx| {
            sched::sleep_ns(cx, MS / 10);
            RAN_ON.store(cpu::current().index(), Ordering::Relaxed);
            DONE.complete();
        });
        for cpu in cpu::online().iter() {
            ensure!(sched::queue_work_on(cpu, &ITEM));
            DONE.wait(t.cx);
            ensure_eq!(RAN_ON.load(Ordering::Relaxed), cpu.index());
            ITEM.flush(t.cx);
        }
        Ok(())
    }

    /// While an item is pending queueing it again does nothing; while it runs, it makes it run again.
    fn work_is_pending_once(t: &mut Test) {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        static ITEM: WorkItem = WorkItem::new(|_, _| {
            RUNS.fetch_add(1, Ordering::Relaxed);
        });
        RUNS.store(0, Ordering::Relaxed);
        let mut queued = 0;
        for _ in 0..10_000 {
            queued += u32::from(sched::queue_work(&ITEM));
        }
        ITEM.flush(t.cx);
        ensure_eq!(RUNS.load(Ordering::Relaxed), queued);
        ensure!(!ITEM.cancel_sync(t.cx));
        Ok(())
    }

    /// Delayed work comes after its time, not before, and not at all when it was taken back.
    fn delayed_work_waits_for_its_time(t: &mut Test) {
        static AT: AtomicU64 = AtomicU64::new(0);
        static WORK: DelayedWork = DelayedWork::new(|_, _| AT.store(clock::now_ns(), Ordering::Relaxed));
        AT.store(0, Ordering::Relaxed);
        let begin = clock::now_ns();
        ensure!(WORK.queue(5 * MS));
        ensure!(!WORK.queue(5 * MS), "it is pending");
        while AT.load(Ordering::Relaxed) == 0 && clock::now_ns() - begin < 5_000 * MS {
            sched::sleep_ns(t.cx, MS);
        }
        let at = AT.swap(0, Ordering::Relaxed);
        ensure!(at >= begin + 5 * MS, "{} ns early", (begin + 5 * MS).saturating_sub(at));
        ensure!(WORK.queue(20 * MS));
        ensure!(WORK.cancel_sync(t.cx));
        sched::sleep_ns(t.cx, 40 * MS);
        ensure_eq!(AT.load(Ordering::Relaxed), 0);
        Ok(())
    }

    /// Threads of all CPUs on one mutex: one at a time, and each gets its share.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_mutex_lets_one_thread_in_at_a_time(t: &mut Test) {
        const TURNS: u64 = 2_000;
        let mutex = Arc::new(Mutex::new(0_u64, sync::lock_class!("test.counter")));
        let inside = Arc::new(AtomicU32::new(0));
        let mut threads = Vec::new();
        let count = 2 * cpu::online_count().min(8) as u64;
        for cpu in cpu::online().iter().cycle().take(count as usize) {
            let (mutex, inside) = (mutex.clone(), inside.clone());
            threads.push(spawn(t.cx, "contender", Some(cpu), move |cx| {
                let mut alone = true;
                for turn in 0..TURNS {
                    let mut value = mutex.lock(cx);
                    alone &= inside.fetch_add(1, Ordering::Relaxed) == 0;
                    *value += 1;
                    if turn % 500 == 0 {
                        sched::sleep_ns(cx, MS / 10);
                    }
                    inside.fetch_sub(1, Ordering::Relaxed);
                }
                alone
            })?);
        }
        for thread in threads {
            ensure!(thread.join(t.cx), "two threads in the mutex");
        }
        ensure_eq!(*mutex.lock(t.cx), count * TURNS);
        Ok(())
    }

    /// The most urgent waiter is next, whoever came first.
    fn a_mutex_goes_to_the_most_urgent_waiter(t: &mut Test) {
        let order = Arc::new(Mutex::new(Vec::new(), sync::lock_class!("test.order")));
        let gate = Arc::new(Mutex::new((), sync::lock_class!("test.gate")));
        let held = gate.lock(t.cx);
        let mut threads = Vec::new();
        for prio in [Prio::BACKGROUND, Prio::NORMAL, Prio::HIGH] {
            let (order, gate) = (order.clone(), gate.clone());
            let thread = sched::spawn(t.cx, "waiter", prio, None, move |cx| {
                let _gate = gate.lock(cx);
                order.lock(cx).push(prio);
            });
            let thread = thread.map_err(|error| crate::__failed!("{error}"))?;
            while thread.thread().state() != sched::State::Sleeping {
                sched::sleep_ns(t.cx, MS);
            }
            threads.push(thread);
        }
        drop(held);
        for thread in threads {
            thread.join(t.cx);
        }
        let order = order.lock(t.cx);
        ensure_eq!(order[..], [Prio::HIGH, Prio::NORMAL, Prio::BACKGROUND]);
        Ok(())
    }

    /// A wait with a time-out ends either way.
    fn a_wait_ends_by_its_condition_or_by_its_time(t: &mut Test) {
        let done = Arc::new(Completion::new());
        let begin = clock::now_ns();
        ensure!(!done.wait_timeout(t.cx, 3 * MS));
        ensure!(clock::now_ns() - begin >= 3 * MS);
        let done_too = done.clone();
        let thread = spawn(t.cx, "completer", None, move |cx| {
            sched::sleep_ns(cx, MS);
            done_too.complete();
        })?;
        ensure!(done.wait_timeout(t.cx, 8_000 * MS));
        thread.join(t.cx);
        let queue = WaitQueue::new();
        ensure!(!queue.wait_timeout(t.cx, MS, || false));
        ensure!(!queue.has_waiters());
        Ok(())
    }

    /// Raised in a thread, it runs on this CPU before the thread notices; raised with interrupts off, afterwards.
    fn a_softirq_runs_where_it_was_raised(t: &mut Test) {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        static WRONG: AtomicU32 = AtomicU32::new(0);
        static HANDLER: sync::Once<()> = sync::Once::new();
        HANDLER.call_once(|| sched::softirq::register(Softirq::Test, || {
            RUNS.fetch_add(1, Ordering::Relaxed);
            WRONG.fetch_add(u32::from(!sync::context::in_softirq() || !irq::enabled()), Ordering::Relaxed);
        }));
        for expected in 1..=100 {
            let _pin = PreemptGuard::new(&*t.cx);
            sched::softirq::raise(Softirq::Test);
            let begin = clock::now_ns();
            while RUNS.load(Ordering::Relaxed) < expected && clock::now_ns() - begin < 5_000 * MS {
                irq::relax();
            }
            ensure_eq!(RUNS.load(Ordering::Relaxed), expected);
        }
        ensure_eq!(WRONG.load(Ordering::Relaxed), 0);
        RUNS.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// What a switch, a wake-up and a preempt-off section cost; under `-icount shift=0` a nanosecond is an instruction.
    fn switches_and_wake_ups_are_counted(t: &mut Test) {
        const TURNS: u64 = 2_000;
        let here = Some(cpu::current());
        let begin = clock::now_ns();
        for _ in 0..TURNS {
            drop(core::hint::black_box(PreemptGuard::new(&*t.cx)));
        }
        let pair = (clock::now_ns() - begin) / TURNS;

        let turns = |cx: &mut MaySleep| (0..TURNS).for_each(|_| sched::yield_now(cx));
        let one = spawn(t.cx, "turns", here, turns)?;
        let two = spawn(t.cx, "turns", here, turns)?;
        let begin = clock::now_ns();
        one.join(t.cx);
        two.join(t.cx);
        let switch = (clock::now_ns() - begin) / (2 * TURNS);

        let stop = Arc::new(AtomicBool::new(false));
        let stop_too = stop.clone();
        let sleeper = spawn(t.cx, "sleeper", here, move |cx| {
            while !stop_too.load(Ordering::Relaxed) {
                sched::wait::sleep_until_woken(cx, || stop_too.load(Ordering::Relaxed));
            }
        })?;
        let mut wake = 0;
        for _ in 0..TURNS {
            sched::yield_now(t.cx);
            let begin = clock::now_ns();
            let woken = sched::wake(sleeper.thread());
            wake += clock::now_ns() - begin;
            ensure!(woken, "the sleeper had its turn and sleeps");
        }
        stop.store(true, Ordering::Relaxed);
        sched::wake(sleeper.thread());
        sleeper.join(t.cx);
        let wake = wake / TURNS;
        t.figure(format_args!(
            r#"{{"bench":"sched.costs","preempt_pair":{pair},"yield_switch":{switch},"wake_local":{wake}}}"#
        ));
        Ok(())
    }

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
}

/// Timers of one thread of `timers_fire_once_and_never_early`.
struct Probe {
    timer: Timer,
    due: AtomicU64,
    fired: AtomicU32,
    early: AtomicU32,
}

impl Probe {
    fn new() -> Probe {
        Probe {
            timer: Timer::new(Probe::fire),
            due: AtomicU64::new(0),
            fired: AtomicU32::new(0),
            early: AtomicU32::new(0),
        }
    }

    fn fire(timer: &Timer) {
        let probe = core::ptr::from_ref(timer).wrapping_byte_sub(core::mem::offset_of!(Probe, timer));
        // SAFETY: only `Probe::timer` has this function, and the probe outlives it (`cancel_sync` below).
        let probe: &Probe = unsafe { &*probe.cast() };
        probe.fired.fetch_add(1, Ordering::Relaxed);
        if clock::now_ns() < probe.due.load(Ordering::Relaxed) {
            probe.early.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Arms, moves and cancels timers; returns how many fired early, how many fired, how many should have.
fn timers_on_this_cpu(cx: &mut MaySleep, seed: u64) -> (u32, u32, u32) {
    let mut rng = sync::Rng::new(seed);
    let probes: Vec<Probe> = (0..32).map(|_| Probe::new()).collect();
    let mut armed = 0;
    for _ in 0..20 {
        for (i, probe) in probes.iter().enumerate() {
            let at = clock::now_ns() + rng.next_u64() % (4 * MS);
            probe.due.store(at, Ordering::Relaxed);
            // SAFETY: the probe stays in the vector's memory until `cancel_sync` below.
            unsafe { probe.timer.arm_at_raw(at) };
            if i % 4 == 3 {
                // Fired already or taken back, not both.
                armed += u32::from(!probe.timer.cancel_sync());
            } else {
                armed += 1;
            }
        }
        sched::sleep_ns(cx, 8 * MS);
        let until = clock::now_ns() + 5_000 * MS;
        while probes.iter().any(|probe| probe.timer.is_armed()) && clock::now_ns() < until {
            sched::sleep_ns(cx, MS);
        }
        for probe in &probes {
            armed -= u32::from(probe.timer.cancel_sync());
        }
    }
    let sum = |f: fn(&Probe) -> &AtomicU32| probes.iter().map(|p| f(p).load(Ordering::Relaxed)).sum();
    (sum(|p| &p.early), sum(|p| &p.fired), armed)
}
