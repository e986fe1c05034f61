//! Threads: wake-ups, timers, deferred work. Who gets the CPU is `sched_prio`'s, idle CPUs are `sched_idle`'s.
//!
//! Waits in here end by counted work or by generous time: a CPU of an emulated machine may stand still for tens of
//! milliseconds at any point.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::{CpuId, clock, cpu};
use sched::{Completion, DelayedWork, Prio, Timer, WaitQueue, WorkItem};
use sync::MaySleep;

use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// A millisecond in nanoseconds.
pub(super) const MS: u64 = 1_000_000;

/// Starts a thread of normal priority, or fails the test.
pub(super) fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    name: &str,
    on: Option<CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<sched::JoinHandle<T>, Failure> {
    sched::spawn(cx, name, Prio::NORMAL, on, f).map_err(|error| crate::__failed!("{name}: {error}"))
}

/// Two CPUs, this one's first; skips the test on a machine with one.
pub(super) fn two_cpus() -> Result<(CpuId, CpuId), Failure> {
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

    fn play(&self, cx: &mut MaySleep, me: usize, rounds: u64) {
        for round in 0..rounds {
            let mine = 2 * round + me as u64;
            self.queues[me].wait_until(cx, || self.turn.load(Ordering::Relaxed) == mine);
            self.turn.store(mine + 1, Ordering::Relaxed);
            self.queues[1 - me].wake_one();
        }
    }
}

/// So many wake-ups between two threads, each needed for the next, with several such pairs at once; returns the nanoseconds
/// of each wake-up.
fn ping_pong(cx: &mut MaySleep, pairs: u64, wake_ups: u64, a: Option<CpuId>, b: Option<CpuId>) -> Result<u64, Failure> {
    let rounds = wake_ups / 2;
    let begin = clock::now_ns();
    let mut players = Vec::new();
    let mut balls = Vec::new();
    for _ in 0..pairs {
        let ball = Arc::new(Ball::new());
        for (me, (name, on)) in [("ping", a), ("pong", b)].into_iter().enumerate() {
            let ball = ball.clone();
            players.push(spawn(cx, name, on, move |cx| ball.play(cx, me, rounds))?);
        }
        balls.push(ball);
    }
    players.into_iter().for_each(|player| player.join(cx));
    for ball in balls {
        ensure_eq!(ball.turn.load(Ordering::Relaxed), 2 * rounds);
    }
    Ok((clock::now_ns() - begin) / (pairs * wake_ups))
}

ktest! {
    /// 100,000 wake-ups, each needed for the next: a lost one is a hang. One pair alone finds the other CPU halted each time,
    /// which takes an emulator on a busy host most of a millisecond; eight pairs find it busy, idling or on its way there.
    #[budget_ms(120_000)]
    fn ping_pong_across_cpus_loses_no_wake_up(t: &mut Test) {
        let (a, b) = two_cpus()?;
        let each = ping_pong(t.cx, 1, 20_000, Some(a), Some(b))?;
        ping_pong(t.cx, 8, 10_000, Some(a), Some(b))?;
        t.figure(format_args!(r#"{{"bench":"sched.ping_pong_across_cpus","ns_each":{each}}}"#));
        Ok(())
    }

    /// A million of them, as long as that may take.
    #[tags(race, slow)]
    #[budget_ms(1_200_000)]
    fn a_million_wake_ups_across_cpus_are_none_too_few(t: &mut Test) {
        let (a, b) = two_cpus()?;
        ping_pong(t.cx, 1, 1_000_000, Some(a), Some(b))?;
        Ok(())
    }

    /// The same on one CPU: each wake-up is a context switch.
    #[budget_ms(60_000)]
    fn ping_pong_on_one_cpu_loses_no_wake_up(t: &mut Test) {
        let here = cpu::current();
        let each = ping_pong(t.cx, 1, 100_000, Some(here), Some(here))?;
        t.figure(format_args!(r#"{{"bench":"sched.ping_pong_on_one_cpu","ns_each":{each}}}"#));
        Ok(())
    }

    /// Threads that may run anywhere move and lose nothing.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn ping_pong_of_unbound_threads_loses_no_wake_up(t: &mut Test) {
        ping_pong(t.cx, 1, 100_000, None, None)?;
        Ok(())
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
