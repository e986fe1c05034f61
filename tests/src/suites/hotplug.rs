//! CPUs that go and come at run time, with threads, timers and calls under way; stopping all CPUs; where threads may run.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::{CpuId, CpuMask, clock, cpu, ipi, irq, vector};
use sched::hotplug::{self, HotplugError, Notifier, Order};
use sched::{AffinityError, JoinHandle, MigrateGuard, Timer, WaitQueue, WorkItem};
use sched::{cpu_off, cpu_on, keep_cpus, set_affinity, stop_machine, stop_one_cpu};
use sync::nmi::NmiHandler;
use sync::{IrqWork, MaySleep, Once, PreemptGuard, smp};

use crate::toggle::{MS, off, on, others, spawn};
use crate::{Failure, Test, ensure, ensure_eq, ktest};

/// Threads that are told when to end.
struct Crowd<T> {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<T>>,
}

impl<T: Send + 'static> Crowd<T> {
    fn new() -> Crowd<T> {
        Crowd { over: Arc::new(AtomicBool::new(false)), threads: Vec::new() }
    }

    /// Adds a thread that calls `turn` again and again, and then `end`.
    fn add(
        &mut self,
        cx: &mut MaySleep,
        on: Option<CpuId>,
        mut turn: impl FnMut(&mut MaySleep) + Send + 'static,
        end: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(), Failure> {
        let over = self.over.clone();
        self.threads.push(spawn(cx, on, move |cx| {
            while !over.load(Ordering::Relaxed) {
                turn(cx);
                irq::relax();
            }
            end()
        })?);
        Ok(())
    }

    fn end(self, cx: &mut MaySleep) -> Vec<T> {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join(cx)).collect()
    }
}

/// Timers that arm themselves again and again, and what they have seen.
static EARLY: AtomicU64 = AtomicU64::new(0);
static EXPIRED: AtomicU64 = AtomicU64::new(0);

struct Ball {
    turn: AtomicU64,
    queues: [WaitQueue; 2],
}

/// One of two who hit the ball until it is out; returns how often.
fn play(ball: &Ball, over: &AtomicBool, cx: &mut MaySleep, me: u64) -> u64 {
    let mut hits = 0;
    loop {
        ball.queues[me as usize]
            .wait_until(cx, || over.load(Ordering::Relaxed) || ball.turn.load(Ordering::Relaxed) % 2 == me);
        if over.load(Ordering::Relaxed) {
            ball.queues.iter().for_each(|queue| {
                queue.wake_all();
            });
            return hits;
        }
        hits += 1;
        ball.turn.fetch_add(1, Ordering::Relaxed);
        ball.queues[1 - me as usize].wake_one();
    }
}

/// Each CPU in turn goes and comes, while threads hit a ball to and fro, sleep and spin, timers expire, work and `irq_work`
/// are queued and calls are made.
fn go_and_come_under_load(t: &mut Test<'_>, rounds: usize) -> Result<(), Failure> {
    let others = others(t.cx)?;
    let over = Arc::new(AtomicBool::new(false));
    let mut pairs = Vec::new();
    for _ in 0..3 {
        let ball = Arc::new(Ball { turn: AtomicU64::new(0), queues: [WaitQueue::new(), WaitQueue::new()] });
        for me in 0..2 {
            let (ball, over) = (ball.clone(), over.clone());
            pairs.push(spawn(t.cx, None, move |cx| play(&ball, &over, cx, me))?);
        }
    }
    static WORK_RAN: AtomicU64 = AtomicU64::new(0);
    static ITEM: WorkItem = WorkItem::new(|_, _| {
        WORK_RAN.fetch_add(1, Ordering::Relaxed);
    });
    static IRQ_WORK: IrqWork = IrqWork::new(|_| ());
    let mut crowd = Crowd::new();
    for seed in 0..4 {
        let mut rng = sync::Rng::new(t.rng.next_u64() ^ seed);
        let turn = move |cx: &mut MaySleep| {
            let ns = rng.next_u64() % MS;
            let begin = clock::now_ns();
            sched::sleep_ns(cx, ns);
            EARLY.fetch_add(u64::from(clock::now_ns() - begin < ns), Ordering::Relaxed);
            EXPIRED.fetch_add(1, Ordering::Relaxed);
            let online: Vec<CpuId> = cpu::online().iter().collect();
            let target = online[rng.next_u64() as usize % online.len()];
            sched::queue_work_on(target, &ITEM);
            IRQ_WORK.queue_on(target);
            smp::call_on(target, |_| (), 0, ns.is_multiple_of(2));
        };
        crowd.add(t.cx, None, turn, || ())?;
    }
    crowd.add(t.cx, None, |_| (), || ())?;
    for round in 0..rounds {
        let cpu = others[round % others.len()];
        off(cpu, t.cx)?;
        ensure!(!cpu::is_online(cpu));
        if round % 3 == 0 {
            sched::sleep_ns(t.cx, MS / 2);
        }
        on(cpu, t.cx)?;
        ensure!(cpu::is_online(cpu));
    }
    over.store(true, Ordering::Relaxed);
    crowd.end(t.cx);
    let hits: u64 = pairs.into_iter().map(|thread| thread.join(t.cx)).sum();
    ITEM.flush(t.cx);
    ensure_eq!(EARLY.load(Ordering::Relaxed), 0);
    ensure!(hits > 0 && EXPIRED.load(Ordering::Relaxed) > 0 && WORK_RAN.load(Ordering::Relaxed) > 0);
    Ok(())
}

ktest! {
    /// 200 times.
    #[budget_ms(120_000)]
    fn cpus_go_and_come_200_times_under_load(t: &mut Test) {
        go_and_come_under_load(t, 200)
    }

    /// Where CPUs really run at the same time.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn cpus_go_and_come_while_the_others_run(t: &mut Test) {
        go_and_come_under_load(t, 30)
    }

    /// All CPUs but the boot CPU go, so also the last of a node; threads go on, and then all come back.
    #[budget_ms(30_000)]
    fn all_cpus_but_one_can_be_offline(t: &mut Test) {
        let others = others(t.cx)?;
        for &cpu in &others {
            off(cpu, t.cx)?;
        }
        ensure_eq!(cpu::online(), CpuMask::of(CpuId::BOOT));
        ensure_eq!(spawn(t.cx, None, |_| cpu::current())?.join(t.cx), CpuId::BOOT);
        for &cpu in &others {
            on(cpu, t.cx)?;
        }
        for &cpu in &others {
            ensure_eq!(spawn(t.cx, Some(cpu), |_| cpu::current())?.join(t.cx), cpu);
        }
        Ok(())
    }

    /// What cannot be done is refused, and changes nothing.
    fn what_cannot_be_done_is_refused(t: &mut Test) {
        ensure_eq!(cpu_off(CpuId::BOOT, t.cx), Err(HotplugError::BootCpu));
        let none = CpuId::new(arch::MAX_CPUS - 1);
        ensure_eq!(cpu_off(none, t.cx), Err(HotplugError::NotPresent));
        ensure_eq!(cpu_on(none, t.cx), Err(HotplugError::NotPresent));
        ensure_eq!(cpu_on(CpuId::BOOT, t.cx), Err(HotplugError::IsOnline));
        let me = sched::current();
        let before = me.affinity();
        ensure_eq!(set_affinity(me, &CpuMask::EMPTY, t.cx), Err(AffinityError::Empty));
        ensure_eq!(set_affinity(me, &CpuMask::of(none), t.cx), Err(AffinityError::NoneOnline));
        ensure_eq!(me.affinity(), before);
        let last = others(t.cx)?.pop().unwrap_or(CpuId::BOOT);
        off(last, t.cx)?;
        let again = cpu_off(last, t.cx);
        let there = set_affinity(me, &CpuMask::of(last), t.cx);
        on(last, t.cx)?;
        ensure_eq!(again, Err(HotplugError::IsOffline));
        ensure_eq!(there, Err(AffinityError::NoneOnline));
        Ok(())
    }

    /// Threads that are bound to a CPU that goes run, sleep and wait in its queue; each goes on elsewhere.
    fn bound_threads_of_a_cpu_that_goes_run_elsewhere(t: &mut Test) {
        let cpu = others(t.cx)?[0];
        let mut crowd = Crowd::new();
        for sleeps in [false, false, true, true] {
            let turn = move |cx: &mut MaySleep| {
                if sleeps {
                    sched::sleep_ns(cx, MS / 5);
                }
            };
            crowd.add(t.cx, Some(cpu), turn, || (cpu::current(), sched::current().affinity()))?;
        }
        sched::sleep_ns(t.cx, 2 * MS);
        off(cpu, t.cx)?;
        // Their sleeps end, and each wakes elsewhere.
        sched::sleep_ns(t.cx, 5 * MS);
        let ended = crowd.end(t.cx);
        let born = spawn(t.cx, Some(cpu), |_| cpu::current())?.join(t.cx);
        on(cpu, t.cx)?;
        for (ran_on, affinity) in ended {
            ensure!(ran_on != cpu);
            ensure_eq!(affinity, cpu::present());
        }
        ensure!(born != cpu, "a thread was started on an offline CPU");
        Ok(())
    }

    /// Timers that are armed on a CPU when it goes expire on another, in time: not early, and none is forgotten.
    #[budget_ms(60_000)]
    fn timers_of_a_dying_cpu_expire_elsewhere(t: &mut Test) {
        static DUE: AtomicU64 = AtomicU64::new(0);
        static FIRED: AtomicU32 = AtomicU32::new(0);
        static WRONG: AtomicU32 = AtomicU32::new(0);
        static DYING: AtomicUsize = AtomicUsize::new(0);
        const COUNT: u32 = 100;
        static TIMERS: [Timer; COUNT as usize] = [const { Timer::new(|_| {
            let early = clock::now_ns() < DUE.load(Ordering::Relaxed);
            let there = cpu::current().index() == DYING.load(Ordering::Relaxed);
            WRONG.fetch_add(u32::from(early || there), Ordering::Relaxed);
            FIRED.fetch_add(1, Ordering::Relaxed);
        }) }; COUNT as usize];
        for cpu in others(t.cx)? {
            DYING.store(cpu.index(), Ordering::Relaxed);
            // A round counts if the CPU is gone before the time, which a slow host may prevent: longer and longer.
            let mut counted = false;
            for round in 1..=20 {
                FIRED.store(0, Ordering::Relaxed);
                WRONG.store(0, Ordering::Relaxed);
                spawn(t.cx, Some(cpu), move |_| {
                    let at = clock::now_ns() + round * 100 * MS;
                    DUE.store(at, Ordering::Relaxed);
                    for timer in &TIMERS {
                        timer.arm_at(at);
                    }
                })?
                .join(t.cx);
                off(cpu, t.cx)?;
                counted = clock::now_ns() < DUE.load(Ordering::Relaxed);
                let until = DUE.load(Ordering::Relaxed) + 5_000 * MS;
                while FIRED.load(Ordering::Relaxed) < COUNT && clock::now_ns() < until {
                    sched::sleep_ns(t.cx, 10 * MS);
                }
                let fired = FIRED.load(Ordering::Relaxed);
                for timer in &TIMERS {
                    timer.cancel_sync();
                }
                on(cpu, t.cx)?;
                ensure_eq!(fired, COUNT);
                if counted {
                    ensure_eq!(WRONG.load(Ordering::Relaxed), 0, "early or on CPU {cpu}");
                    break;
                }
            }
            ensure!(counted, "CPU {cpu} was never gone in time");
        }
        Ok(())
    }

    /// A thread that stays is waited for, is where it was after every sleep, and its CPU is online as long.
    fn a_cpu_waits_for_threads_that_stay(t: &mut Test) {
        let cpu = others(t.cx)?[0];
        for _ in 0..10 {
            let in_it = Arc::new(AtomicBool::new(false));
            let theirs = in_it.clone();
            let thread = spawn(t.cx, Some(cpu), move |cx| {
                let _here = MigrateGuard::new(&*cx);
                theirs.store(true, Ordering::Relaxed);
                (0..5).all(|_| {
                    sched::sleep_ns(cx, MS);
                    cpu::current() == cpu && cpu::is_online(cpu)
                })
            })?;
            while !in_it.load(Ordering::Relaxed) {
                sched::sleep_ns(t.cx, MS / 10);
            }
            off(cpu, t.cx)?;
            on(cpu, t.cx)?;
            ensure!(thread.join(t.cx));
        }
        Ok(())
    }

    /// While its set of CPUs changes all the time and other CPUs idle and look for work, a thread that stays stays, and one
    /// that does not runs only where it may.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_set_of_cpus_holds_and_a_guard_holds_against_it(t: &mut Test) {
        others(t.cx)?;
        let online: Vec<CpuId> = cpu::online().iter().collect();
        let count = online.len();
        let wrong = Arc::new(AtomicU64::new(0));
        let mut crowd = Crowd::new();
        for _ in 0..2 * count {
            let wrong = wrong.clone();
            let turn = move |cx: &mut MaySleep| {
                let guard = MigrateGuard::new(&*cx);
                let here = cpu::current();
                for _ in 0..5 {
                    sched::yield_now(cx);
                    sched::sleep_ns(cx, 20_000);
                    wrong.fetch_add(u64::from(cpu::current() != here), Ordering::Relaxed);
                }
                drop(guard);
                sched::yield_now(cx);
            };
            crowd.add(t.cx, None, turn, || ())?;
        }
        // The one whose place is checked: what it may use, or nothing to be checked while that changes.
        let may = Arc::new((AtomicUsize::new(usize::MAX), AtomicU64::new(0)));
        let theirs = may.clone();
        let turn = move |cx: &mut MaySleep| {
            {
                let _pin = PreemptGuard::new(&*cx);
                let only = theirs.0.load(Ordering::Acquire);
                let misplaced = only != usize::MAX && only != cpu::current().index();
                theirs.1.fetch_add(u64::from(misplaced), Ordering::Relaxed);
            }
            if clock::cycles().is_multiple_of(8) {
                sched::sleep_ns(cx, 10_000);
            }
        };
        crowd.add(t.cx, None, turn, || ())?;
        let checked = crowd.threads[2 * count].thread();
        for round in 0..200 {
            may.0.store(usize::MAX, Ordering::Relaxed);
            // What it looked at before counts no more: it has been through its stopper, or sleeps.
            let only = online[round % count];
            set_affinity(checked, &CpuMask::of(only), t.cx).map_err(|error| crate::__failed!("{error}"))?;
            may.0.store(only.index(), Ordering::Release);
            for thread in &crowd.threads[..2 * count] {
                let mask = CpuMask::of(online[(t.rng.next_u64() % count as u64) as usize]) | CpuMask::of(only);
                set_affinity(thread.thread(), &mask, t.cx).map_err(|error| crate::__failed!("{error}"))?;
            }
        }
        crowd.end(t.cx);
        ensure_eq!(wrong.load(Ordering::Relaxed), 0, "a thread that stays moved");
        ensure_eq!(may.1.load(Ordering::Relaxed), 0, "a thread ran where it may not");
        Ok(())
    }

    /// The caller may move itself, and one that sleeps wakes where it may.
    fn a_thread_moves_itself_and_a_sleeper_wakes_where_it_may(t: &mut Test) {
        others(t.cx)?;
        let online: Vec<CpuId> = cpu::online().iter().collect();
        let (first, last) = (online[0], online[online.len() - 1]);
        let itself = spawn(t.cx, None, move |cx| {
            (0..50).all(|round| {
                let to = if round % 2 == 0 { last } else { first };
                let done = set_affinity(sched::current(), &CpuMask::of(to), cx);
                done.is_ok() && cpu::current() == to
            })
        })?;
        ensure!(itself.join(t.cx));
        let woken = Arc::new(AtomicBool::new(false));
        let theirs = woken.clone();
        let sleeper = spawn(t.cx, Some(first), move |cx| {
            while !theirs.load(Ordering::Relaxed) {
                sched::wait::sleep_until_woken(cx, || theirs.load(Ordering::Relaxed));
            }
            cpu::current()
        })?;
        while sleeper.thread().state() != sched::State::Sleeping {
            sched::sleep_ns(t.cx, MS / 10);
        }
        let moved = set_affinity(sleeper.thread(), &CpuMask::of(last), t.cx);
        woken.store(true, Ordering::Relaxed);
        sched::wake(sleeper.thread());
        ensure_eq!(moved, Ok(()));
        ensure_eq!(sleeper.join(t.cx), last);
        Ok(())
    }

    /// While the function runs nobody else does, although all CPUs call each other and one of them is slow.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn the_machine_stands_still_under_a_storm_of_calls(t: &mut Test) {
        others(t.cx)?;
        static BUSY: AtomicU64 = AtomicU64::new(0);
        let online = cpu::online();
        let mut crowd = Crowd::new();
        for cpu in online.iter() {
            let turn = move |_: &mut MaySleep| {
                smp::call_mask(&(online - CpuMask::of(cpu)), |_| _ = BUSY.fetch_add(1, Ordering::Relaxed), 0, true);
                for other in online.iter() {
                    ipi::send(other, vector::RESCHEDULE);
                }
                BUSY.fetch_add(1, Ordering::Relaxed);
            };
            crowd.add(t.cx, Some(cpu), turn, || ())?;
        }
        let slow = online.iter().last();
        let turn = |cx: &mut MaySleep| {
            let _pin = PreemptGuard::new(&*cx);
            clock::udelay(300);
        };
        crowd.add(t.cx, slow, turn, || ())?;
        let mut moved = 0;
        for round in 0..40 {
            let mask: CpuMask = online.iter().take(1 + round % online.count()).collect();
            let (ran, busy) = (AtomicUsize::new(0), AtomicU64::new(0));
            stop_machine(t.cx, &mask, |_| {
                let before = BUSY.load(Ordering::Relaxed);
                clock::udelay(50);
                busy.fetch_add(BUSY.load(Ordering::Relaxed) - before, Ordering::Relaxed);
                ran.fetch_add(usize::from(!irq::enabled()), Ordering::Relaxed);
            });
            ensure_eq!(ran.load(Ordering::Relaxed), mask.count());
            moved += busy.load(Ordering::Relaxed);
        }
        crowd.end(t.cx);
        ensure_eq!(moved, 0, "somebody ran meanwhile");
        Ok(())
    }

    /// Several threads stop the machine at the same time: one after the other, and each stop happens.
    #[tags(race)]
    fn stops_take_turns(t: &mut Test) {
        static INSIDE: AtomicU32 = AtomicU32::new(0);
        static OVERLAPS: AtomicU32 = AtomicU32::new(0);
        static STOPS: AtomicU32 = AtomicU32::new(0);
        let mut threads = Vec::new();
        for cpu in cpu::online().iter().cycle().take(4) {
            threads.push(spawn(t.cx, Some(cpu), move |cx| {
                for _ in 0..8 {
                    stop_machine(cx, &CpuMask::of(cpu), |_| {
                        OVERLAPS.fetch_add(INSIDE.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
                        STOPS.fetch_add(1, Ordering::Relaxed);
                        INSIDE.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            })?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        ensure_eq!(OVERLAPS.load(Ordering::Relaxed), 0);
        ensure_eq!(STOPS.load(Ordering::Relaxed), 4 * 8);
        Ok(())
    }

    /// Calls, `irq_work` and stopper work for a CPU that is offline do not hang and say what became of them.
    fn asking_an_offline_cpu_does_not_hang(t: &mut Test) {
        static RAN_ON: AtomicUsize = AtomicUsize::new(usize::MAX);
        static WORK: IrqWork = IrqWork::new(|_| RAN_ON.store(cpu::current().index(), Ordering::Relaxed));
        let cpu = others(t.cx)?[0];
        off(cpu, t.cx)?;
        let called = smp::run_on(cpu, || ());
        smp::call_on(cpu, |_| (), 0, true);
        let stopped = stop_one_cpu(t.cx, cpu, || ());
        let queued = WORK.queue_on(cpu);
        WORK.sync(t.cx);
        let calls = || sync::irq::count(cpu, vector::CALL_FUNCTION);
        let before = calls();
        ipi::send(cpu, vector::CALL_FUNCTION);
        sched::sleep_ns(t.cx, 5 * MS);
        let handled = calls() - before;
        on(cpu, t.cx)?;
        ensure_eq!(called, None);
        ensure_eq!(handled, 0, "a parked CPU handles interrupts");
        ensure!(!stopped && queued);
        ensure!(RAN_ON.load(Ordering::Relaxed) != cpu.index());
        ensure_eq!(smp::run_on(cpu, cpu::current), Some(cpu));
        Ok(())
    }

    /// A parked CPU takes NMIs and parks on; what the handler queues there is done elsewhere.
    #[budget_ms(90_000)]
    fn a_parked_cpu_takes_nmis_and_parks_on(t: &mut Test) {
        static CAME: AtomicU32 = AtomicU32::new(0);
        static EXPECTED: AtomicUsize = AtomicUsize::new(usize::MAX);
        static WORK: IrqWork = IrqWork::new(|_| {
            let there = cpu::current().index() == EXPECTED.load(Ordering::Relaxed);
            DONE.fetch_add(if there { 1000 } else { 1 }, Ordering::Relaxed);
        });
        static DONE: AtomicU32 = AtomicU32::new(0);
        static HANDLER: NmiHandler = NmiHandler::new("hotplug tests", |_| {
            let ours = cpu::current().index() == EXPECTED.load(Ordering::Relaxed);
            if ours {
                WORK.queue();
                CAME.fetch_add(1, Ordering::Relaxed);
            }
            ours
        });
        static REGISTERED: Once<()> = Once::new();
        REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
        let cpu = others(t.cx)?[0];
        off(cpu, t.cx)?;
        CAME.store(0, Ordering::Relaxed);
        DONE.store(0, Ordering::Relaxed);
        EXPECTED.store(cpu.index(), Ordering::Relaxed);
        let until = clock::now_ns() + 60_000 * MS;
        for round in 0..20 {
            ipi::send_nmi(cpu);
            while CAME.load(Ordering::Relaxed) <= round && clock::now_ns() < until {
                irq::relax();
            }
        }
        WORK.sync(t.cx);
        EXPECTED.store(usize::MAX, Ordering::Relaxed);
        let (came, done) = (CAME.load(Ordering::Relaxed), DONE.load(Ordering::Relaxed));
        let offline = !cpu::is_online(cpu);
        on(cpu, t.cx)?;
        ensure_eq!(smp::run_on(cpu, cpu::current), Some(cpu));
        ensure!(came >= 20, "{came} of 20 NMIs within a minute");
        ensure!(offline);
        ensure!((1..=20).contains(&done), "{done}: a parked CPU ran something");
        Ok(())
    }

    /// Notifiers find the CPU as they are promised, in their order, and a `prepare` that fails leaves it offline.
    fn notifiers_run_in_order_and_can_refuse(t: &mut Test) {
        static LOG: AtomicU64 = AtomicU64::new(0);
        static FAIL: AtomicBool = AtomicBool::new(false);
        fn note(digit: u64) {
            let log = LOG.load(Ordering::Relaxed);
            LOG.store(log << 4 | digit, Ordering::Relaxed);
        }
        static FIRST: Notifier = Notifier::new("tests, first", Order::SYNC)
            .prepare(|_, _| {
                note(1);
                Ok(())
            })
            .online(|_, _| note(2))
            .dying(|_| note(3))
            .dead(|_, _| note(4));
        static LAST: Notifier = Notifier::new("tests, last", Order::USER)
            .prepare(|cpu, _| {
                note(if cpu::is_online(cpu) { 0xf } else { 5 });
                if FAIL.load(Ordering::Relaxed) { Err(HotplugError::NoMemory) } else { Ok(()) }
            })
            .online(|cpu, _| note(if cpu::is_online(cpu) { 6 } else { 0xf }))
            .dying(|cpu| {
                let as_promised = cpu == cpu::current() && !cpu::is_online(cpu) && !irq::enabled();
                note(if as_promised { 7 } else { 0xf });
            })
            .dead(|cpu, cx| {
                let _cpus = keep_cpus(cx);
                note(if cpu::is_online(cpu) { 0xf } else { 8 });
            });
        static REGISTERED: Once<()> = Once::new();
        REGISTERED.call_once(|| {
            hotplug::register(&LAST);
            hotplug::register(&FIRST);
        });
        let cpu = others(t.cx)?[0];
        LOG.store(0, Ordering::Relaxed);
        off(cpu, t.cx)?;
        ensure_eq!(LOG.swap(0, Ordering::Relaxed), 0x7384);
        FAIL.store(true, Ordering::Relaxed);
        let refused = cpu_on(cpu, t.cx);
        FAIL.store(false, Ordering::Relaxed);
        let log = LOG.swap(0, Ordering::Relaxed);
        let online = cpu::is_online(cpu);
        on(cpu, t.cx)?;
        ensure_eq!(refused, Err(HotplugError::NoMemory));
        ensure!(!online);
        ensure_eq!(log, 0x154);
        ensure_eq!(LOG.load(Ordering::Relaxed), 0x1526);
        Ok(())
    }

    /// Who keeps the CPUs holds up whoever wants one to go, and may keep them once more meanwhile.
    fn who_keeps_the_cpus_holds_up_a_controller(t: &mut Test) {
        let cpu = others(t.cx)?[0];
        let kept = Arc::new(AtomicU32::new(0));
        let theirs = kept.clone();
        let keeper = spawn(t.cx, None, move |cx| {
            let outer = keep_cpus(cx);
            theirs.store(1, Ordering::Relaxed);
            sched::sleep_ns(cx, 20 * MS);
            let inner = keep_cpus(cx);
            let online = cpu::is_online(cpu);
            theirs.store(2, Ordering::Relaxed);
            drop((inner, outer));
            online
        })?;
        while kept.load(Ordering::Relaxed) == 0 {
            sched::sleep_ns(t.cx, MS / 10);
        }
        off(cpu, t.cx)?;
        let was = kept.load(Ordering::Relaxed);
        on(cpu, t.cx)?;
        ensure_eq!(was, 2);
        ensure!(keeper.join(t.cx));
        Ok(())
    }
}
