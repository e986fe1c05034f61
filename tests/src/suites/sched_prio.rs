//! Who gets the CPU: equals in turn, the more urgent at once.
//!
//! Waits end by counted work or by generous time: a CPU of an emulated machine may stand still for tens of milliseconds at
//! any point.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::{CpuId, clock, cpu, irq};
use sched::{Completion, JoinHandle, Prio, tick};
use sync::{IrqGuard, MaySleep, PreemptGuard};

use super::sched::{MS, spawn, two_cpus};
use crate::{Failure, ensure, ensure_eq, ktest};

/// Starts a thread of a priority on a CPU.
fn spawn_at<T: Send + 'static>(
    cx: &mut MaySleep,
    prio: Prio,
    on: CpuId,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<JoinHandle<T>, Failure> {
    sched::spawn(cx, "prio", prio, Some(on), f).map_err(|error| crate::__failed!("{error}"))
}

/// Threads that share a CPU without ever giving it up.
struct Share {
    arrived: AtomicUsize,
    over: AtomicBool,
    /// Who was seen last to run, and in which turn of all.
    last: AtomicUsize,
    /// A turn that did not go to the next in order: the one before, and who had it.
    wrong: AtomicUsize,
    turns: AtomicU32,
}

/// What one of them has got.
struct Got {
    turns: u32,
    /// Turns by the kernel's account: all that it has seen itself, those that the host cut to nothing, and one for each time
    /// that somebody more urgent came in between.
    given: u64,
    ticks: u64,
    work: u64,
}

const NOBODY: usize = usize::MAX;

impl Share {
    fn new() -> Share {
        Share {
            arrived: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            last: AtomicUsize::new(NOBODY),
            wrong: AtomicUsize::new(0),
            turns: AtomicU32::new(0),
        }
    }

    /// The life of thread `me` of `all`: it works, and notes when its turn has come, and the ticks that have passed in its
    /// turns while nobody else, not even somebody more urgent, had the CPU.
    fn live(&self, me: usize, all: usize) -> Got {
        let here = cpu::current();
        self.arrived.fetch_add(1, Ordering::Relaxed);
        while self.arrived.load(Ordering::Relaxed) < all && !self.over.load(Ordering::Relaxed) {
            irq::relax();
        }
        let mut got = Got { turns: 0, given: 0, ticks: 0, work: 0 };
        // Switches so far, and ticks at a moment between two of them.
        let now = || loop {
            let switches = sched::current().involuntary_switches();
            let ticks = tick::count_on(here);
            if sched::current().involuntary_switches() == switches {
                break (switches, ticks);
            }
        };
        let begin = now();
        let mut seen = begin;
        while !self.over.load(Ordering::Relaxed) {
            let last = self.last.swap(me, Ordering::Relaxed);
            let now = now();
            if last == me {
                got.ticks += if now.0 == seen.0 { now.1 - seen.1 } else { 0 };
            } else {
                got.turns += 1;
                let turn = self.turns.fetch_add(1, Ordering::Relaxed);
                // The order is settled once each has had a turn.
                if turn >= all as u32 && (last + 1) % all != me {
                    self.wrong.fetch_add(1, Ordering::Relaxed);
                }
            }
            seen = now;
            got.work += 1;
            irq::relax();
        }
        got.given = 1 + seen.0 - begin.0;
        got
    }
}

ktest! {
    /// Three equals on one CPU, none of which ever gives it up: in turn, none for longer than a slice, so each gets a third.
    #[budget_ms(60_000)]
    fn equals_get_equal_shares_of_a_cpu_in_turn(t: &mut Test) {
        const THREADS: usize = 3;
        const TURNS: u32 = 60;
        let on = cpu::online().iter().last();
        let share = Arc::new(Share::new());
        let mut threads = Vec::new();
        for me in 0..THREADS {
            let share = share.clone();
            threads.push(spawn(t.cx, "share", on, move |_| share.live(me, THREADS))?);
        }
        let begin = clock::now_ns();
        while share.turns.load(Ordering::Relaxed) < TURNS && clock::now_ns() - begin < 30_000 * MS {
            sched::sleep_ns(t.cx, 10 * MS);
        }
        share.over.store(true, Ordering::Relaxed);
        let got: Vec<Got> = threads.into_iter().map(|thread| thread.join(t.cx)).collect();
        for got in &got {
            t.note(format_args!("{} turns of {}, {} ticks, {} rounds of work", got.turns, got.given, got.ticks, got.work));
        }
        let turns: u32 = got.iter().map(|got| got.turns).sum();
        ensure!(turns >= TURNS, "only {turns} turns");
        // What the threads have not seen of their turns can make others look out of order, and their numbers differ.
        let unseen: u64 = got.iter().map(|got| got.given - u64::from(got.turns)).sum();
        let wrong = share.wrong.load(Ordering::Relaxed) as u64;
        ensure!(wrong <= unseen, "{wrong} of {turns} turns out of order, {unseen} not seen");
        let all = || got.iter().map(|got| got.turns);
        let (least, most) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
        ensure!(u64::from(most - least) <= 2 + unseen, "{least} to {most} turns, {unseen} not seen");
        for Got { given, ticks, .. } in got {
            // A turn is two ticks, the second of which ends it.
            ensure!(ticks <= given + 1, "{ticks} ticks inside of {given} turns");
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

    /// A thread of a higher level gets the CPU at once, not at a tick, although another never gives it up.
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
        let mut at_once = 0;
        for _ in 0..50 {
            let before = tick::count_on(there);
            let urgent = sched::spawn(t.cx, "urgent", Prio::RCU, Some(there), move |_| (cpu::current(), tick::count_on(there)));
            let urgent = urgent.map_err(|error| crate::__failed!("{error}"))?;
            let (ran_on, ticks) = urgent.join(t.cx);
            ensure_eq!(ran_on, there);
            at_once += u32::from(ticks == before);
        }
        ensure!(!busy.is_finished());
        stop.store(true, Ordering::Relaxed);
        busy.join(t.cx);
        // On a host that lets CPUs stand still a tick may come first now and then; who waits for it does so every time.
        ensure!(at_once >= 10, "{at_once} of 50 before the next tick");
        Ok(())
    }

    /// With preemption off even the end of the slice waits.
    fn nothing_preempts_a_preempt_off_section(t: &mut Test) {
        let here = cpu::current();
        for _ in 0..50 {
            let ran = Arc::new(AtomicBool::new(false));
            let ran_too = ran.clone();
            let other = spawn_at(t.cx, Prio::RCU, here, move |cx| {
                sched::sleep_ns(cx, 5 * MS);
                ran_too.store(true, Ordering::Relaxed);
            })?;
            let (before, after) = {
                let _pin = PreemptGuard::new(&*t.cx);
                let before = ran.load(Ordering::Relaxed);
                let begin = clock::now_ns();
                while clock::now_ns() - begin < 20 * MS {
                    irq::relax();
                }
                (before, ran.load(Ordering::Relaxed))
            };
            other.join(t.cx);
            ensure!(ran.load(Ordering::Relaxed));
            // Else the host was so slow that it had run before the section: once more.
            if !before {
                ensure!(!after, "it ran in the section");
                return Ok(());
            }
        }
        Err(crate::__failed!("the other thread was always first"))
    }

    /// Whoever wakes a more urgent thread of its own CPU is behind it: the other has run when the call returns. A thread that is
    /// no more urgent waits.
    fn a_wake_up_runs_the_more_urgent_at_once_and_nobody_else(t: &mut Test) {
        const LEVELS: [Prio; 5] = [Prio::BACKGROUND, Prio::NORMAL, Prio::HIGH, Prio::RCU, Prio::CRITICAL];
        let here = cpu::current();
        for waker in LEVELS {
            for sleeper in LEVELS {
                let thread = spawn_at(t.cx, waker, here, move |cx| wake_again_and_again(cx, sleeper))?;
                let early = thread.join(t.cx)?;
                let expected = match sleeper.cmp(&waker) {
                    cmp::Ordering::Less => 0..=0,
                    // The waker's slice may end just then.
                    cmp::Ordering::Equal => 0..=WAKE_UPS / 10,
                    cmp::Ordering::Greater => WAKE_UPS..=WAKE_UPS,
                };
                ensure!(
                    expected.contains(&early),
                    "{early} of {WAKE_UPS} wake-ups of {sleeper:?} by {waker:?} took effect at once"
                );
            }
        }
        Ok(())
    }

    /// With interrupts or preemption off a more urgent thread waits for their end, and no longer.
    fn what_a_guard_holds_up_runs_at_its_end(t: &mut Test) {
        let here = cpu::current();
        let ran = Arc::new(AtomicU32::new(0));
        let go = Arc::new(Completion::new());
        let (ran_too, go_too) = (ran.clone(), go.clone());
        let urgent = spawn_at(t.cx, Prio::RCU, here, move |cx| {
            for _ in 0..200 {
                go_too.wait(cx);
                ran_too.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        let seen = spawn_at(t.cx, Prio::NORMAL, here, move |cx| {
            for round in 0..100 {
                let pin = PreemptGuard::new(&*cx);
                go.complete();
                let inside = ran.load(Ordering::Relaxed);
                drop(pin);
                let behind = ran.load(Ordering::Relaxed);
                if (inside, behind) != (2 * round, 2 * round + 1) {
                    return Err((round, "preemption", inside, behind));
                }
                let pin = PreemptGuard::new(&*cx);
                let off = IrqGuard::new(&*cx);
                go.complete();
                let inside = ran.load(Ordering::Relaxed);
                drop(off);
                drop(pin);
                let behind = ran.load(Ordering::Relaxed);
                if (inside, behind) != (2 * round + 1, 2 * round + 2) {
                    return Err((round, "interrupts", inside, behind));
                }
            }
            Ok(())
        })?;
        ensure_eq!(seen.join(t.cx), Ok(()), "round, what was off, times it ran before and after the end of that");
        urgent.join(t.cx);
        Ok(())
    }

    /// Grace-period threads must run under any load of ordinary threads: one that sleeps now and then on a CPU that others
    /// fill is back after as many ticks of that CPU as it would be without them.
    #[budget_ms(60_000)]
    fn a_grace_period_threads_priority_runs_under_load(t: &mut Test) {
        const SLEEPS: u64 = 50;
        let on = cpu::online().iter().last().unwrap_or(cpu::current());
        let over = Arc::new(AtomicBool::new(false));
        let work = Arc::new(AtomicU64::new(0));
        let mut load = Vec::new();
        for _ in 0..4 {
            let (over, work) = (over.clone(), work.clone());
            load.push(spawn_at(t.cx, Prio::NORMAL, on, move |_| {
                while !over.load(Ordering::Relaxed) {
                    work.fetch_add(1, Ordering::Relaxed);
                    irq::relax();
                }
            })?);
        }
        let urgent = spawn_at(t.cx, Prio::RCU, on, move |cx| {
            let mut most = 0;
            for _ in 0..SLEEPS {
                let before = tick::count_on(on);
                sched::sleep_ns(cx, MS);
                most = most.max(tick::count_on(on) - before);
            }
            most
        })?;
        let most = urgent.join(t.cx);
        over.store(true, Ordering::Relaxed);
        load.into_iter().for_each(|thread| thread.join(t.cx));
        t.note(format_args!("{most} ticks at most, {} rounds of load", work.load(Ordering::Relaxed)));
        ensure!(work.load(Ordering::Relaxed) > 0, "there was no load");
        // One may fall into the millisecond, one into the moment before the timer's interrupt.
        ensure!(most <= 2, "a sleep of 1 ms took {most} ticks");
        Ok(())
    }
}

/// Wake-ups of each pair of levels.
const WAKE_UPS: u32 = 50;

/// Wakes a thread of priority `sleeper` of this CPU again and again; returns how often it had run when the wake-up returned.
fn wake_again_and_again(cx: &mut MaySleep, sleeper: Prio) -> Result<u32, Failure> {
    let ran = Arc::new(AtomicU32::new(0));
    let go = Arc::new(Completion::new());
    let (ran_too, go_too) = (ran.clone(), go.clone());
    let thread = spawn_at(cx, sleeper, cpu::current(), move |cx| {
        for _ in 0..WAKE_UPS {
            go_too.wait(cx);
            ran_too.fetch_add(1, Ordering::Relaxed);
        }
    })?;
    let mut at_once = 0;
    for round in 1..=WAKE_UPS {
        while thread.thread().state() != sched::State::Sleeping {
            // It has not come to its wait yet.
            sched::sleep_ns(cx, MS / 10);
        }
        go.complete();
        at_once += u32::from(ran.load(Ordering::Relaxed) == round);
    }
    thread.join(cx);
    Ok(at_once)
}
