//! Work queues and semaphores: what runs when, what is waited for, what is taken back.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use arch::{CpuId, clock, cpu};
use sched::work::Kind;
use sched::{Completion, DelayedWork, Prio, Semaphore, Timer, WorkItem, WorkQueue};
use sync::MaySleep;

use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;

fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    on: Option<CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<sched::JoinHandle<T>, Failure> {
    sched::spawn(cx, "queuer", Prio::NORMAL, on, f).map_err(|error| crate::__failed!("{error}"))
}

fn queue(cx: &mut MaySleep, kind: Kind) -> Result<WorkQueue, Failure> {
    WorkQueue::create(cx, "test", kind).map_err(|_| crate::__failed!("no memory for a queue"))
}

/// One of each kind.
fn kinds() -> [Kind; 3] {
    [Kind::PerCpu { max_active: 16 }, Kind::Unbound { max_active: 16 }, Kind::Ordered]
}

/// The `n`-th online CPU, counted round and round.
fn nth_cpu(n: usize) -> CpuId {
    let online = cpu::online();
    online.iter().nth(n % online.count()).unwrap_or(CpuId::BOOT)
}

/// Waits, for a generous time, until `cond` holds; whether it does.
fn eventually(cx: &mut MaySleep, mut cond: impl FnMut() -> bool) -> bool {
    let begin = clock::now_ns();
    while !cond() && clock::now_ns() - begin < 8_000 * MS {
        sched::sleep_ns(cx, MS);
    }
    cond()
}

static RUNS: AtomicU32 = AtomicU32::new(0);
static INSIDE: AtomicU32 = AtomicU32::new(0);
static MOST: AtomicU32 = AtomicU32::new(0);

/// Counts how many are in here at once, for a while.
fn crowd(_: &WorkItem, cx: &mut MaySleep) {
    MOST.fetch_max(INSIDE.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    sched::sleep_ns(cx, MS);
    INSIDE.fetch_sub(1, Ordering::Relaxed);
    RUNS.fetch_add(1, Ordering::Relaxed);
}

static CROWD: [WorkItem; 16] = [const { WorkItem::new(crowd) }; 16];

fn reset() {
    RUNS.store(0, Ordering::Relaxed);
    MOST.store(0, Ordering::Relaxed);
}

/// Many threads queue, flush and cancel one item of one queue.
struct Race {
    queue: WorkQueue,
    /// Times that the item was queued, less those that it was taken back.
    due: AtomicI64,
    stop: AtomicBool,
}

static RACED: AtomicI64 = AtomicI64::new(0);
static NOT_ALONE: AtomicU32 = AtomicU32::new(0);
static LONELY: WorkItem = WorkItem::new(|_, cx| {
    NOT_ALONE.fetch_add(INSIDE.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    if RACED.fetch_add(1, Ordering::Relaxed) % 8 == 0 {
        sched::sleep_ns(cx, MS / 20);
    }
    INSIDE.fetch_sub(1, Ordering::Relaxed);
});

impl Race {
    fn run(&self, cx: &mut MaySleep, me: usize, turns: usize) {
        let mut due = 0;
        for i in 0..turns {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            due += i64::from(self.queue.queue_on(nth_cpu(me + i), &LONELY));
            match (i + 7 * me) % 40 {
                0 => LONELY.flush(cx),
                10 => due -= i64::from(LONELY.cancel()),
                20 => due -= i64::from(LONELY.cancel_sync(cx)),
                30 => self.queue.flush(cx),
                _ => {}
            }
            // Else the workers, which are its equals, would seldom get the CPU.
            sched::yield_now(cx);
        }
        self.due.fetch_add(due, Ordering::Relaxed);
    }

    /// `threads` race for `turns` each, while `meanwhile` runs.
    fn hold(
        cx: &mut MaySleep,
        kind: Kind,
        (threads, turns): (usize, usize),
        bound: bool,
        meanwhile: impl FnOnce(&mut MaySleep) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        RACED.store(0, Ordering::Relaxed);
        NOT_ALONE.store(0, Ordering::Relaxed);
        let queue = queue(cx, kind)?;
        let race = Arc::new(Race { queue, due: AtomicI64::new(0), stop: AtomicBool::new(false) });
        let mut racers = Vec::new();
        for me in 0..threads {
            let race = race.clone();
            racers.push(spawn(cx, bound.then(|| nth_cpu(me)), move |cx| race.run(cx, me, turns))?);
        }
        let outcome = meanwhile(cx);
        if outcome.is_err() || turns == usize::MAX {
            race.stop.store(true, Ordering::Relaxed);
        }
        racers.into_iter().for_each(|racer| racer.join(cx));
        outcome?;
        LONELY.flush(cx);
        ensure!(!LONELY.is_pending());
        ensure_eq!(RACED.load(Ordering::Relaxed), race.due.load(Ordering::Relaxed), "{kind:?}");
        ensure_eq!(NOT_ALONE.load(Ordering::Relaxed), 0, "{kind:?}: twice at once");
        match Arc::into_inner(race) {
            Some(race) => race.queue.destroy(cx),
            None => return Err(crate::__failed!("a thread that was joined holds the race")),
        }
        Ok(())
    }
}

ktest! {
    /// Queued, flushed and cancelled from all CPUs at once, an item runs once for each time that it was queued and not taken
    /// back, and never twice at the same time.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn an_item_runs_once_for_each_time_it_is_queued_and_never_twice_at_once(t: &mut Test) {
        let threads = 2 * cpu::online_count().min(4);
        for kind in kinds() {
            Race::hold(t.cx, kind, (threads, 600), true, |_| Ok(()))?;
        }
        Ok(())
    }

    /// The same while CPUs go offline and come back.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn nothing_is_lost_when_cpus_go_and_come(t: &mut Test) {
        let Some(goes) = cpu::online().iter().find(|cpu| *cpu != CpuId::BOOT) else { skip!("needs two CPUs") };
        for kind in kinds() {
            Race::hold(t.cx, kind, (4, usize::MAX), false, |cx| {
                for _ in 0..8 {
                    sched::hotplug::cpu_off(goes, cx).map_err(|error| crate::__failed!("{goes} off: {error}"))?;
                    sched::sleep_ns(cx, MS);
                    sched::hotplug::cpu_on(goes, cx).map_err(|error| crate::__failed!("{goes} on: {error}"))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The item behind one that sleeps does not wait for it, in no kind of queue that may run two.
    fn an_item_that_sleeps_holds_up_nobody(t: &mut Test) {
        static GATE: Completion = Completion::new();
        static WAITS: WorkItem = WorkItem::new(|_, cx| GATE.wait(cx));
        static COUNTS: WorkItem = WorkItem::new(|_, _| { RUNS.fetch_add(1, Ordering::Relaxed); });
        reset();
        for cpu in cpu::online().iter() {
            ensure!(sched::queue_work_on(cpu, &WAITS));
            ensure!(sched::queue_work_on(cpu, &COUNTS));
            COUNTS.flush(t.cx);
            ensure!(sched::queue_work_unbound(&COUNTS));
            COUNTS.flush(t.cx);
            GATE.complete();
            WAITS.flush(t.cx);
        }
        ensure_eq!(RUNS.load(Ordering::Relaxed) as usize, 2 * cpu::online_count());
        Ok(())
    }

    /// As many as a queue's limit says have begun and not ended, and not one more.
    #[budget_ms(30_000)]
    fn max_active_is_kept_and_made_use_of(t: &mut Test) {
        let limits = [(Kind::PerCpu { max_active: 3 }, 3), (Kind::Unbound { max_active: 5 }, 5), (Kind::Ordered, 1)];
        for (kind, most) in limits {
            reset();
            let queue = queue(t.cx, kind)?;
            let here = cpu::current();
            for _ in 0..3 {
                for item in &CROWD {
                    ensure!(queue.queue_on(here, item));
                }
                queue.flush(t.cx);
            }
            ensure_eq!(RUNS.load(Ordering::Relaxed), 3 * CROWD.len() as u32);
            ensure_eq!(MOST.load(Ordering::Relaxed), most, "{kind:?}");
            queue.destroy(t.cx);
        }
        Ok(())
    }

    /// An item that queues itself, on one CPU after another, is over when it has been cancelled.
    #[tags(race)]
    #[budget_ms(30_000)]
    fn cancel_sync_ends_an_item_that_queues_itself(t: &mut Test) {
        static AGAIN: WorkItem = WorkItem::new(|_, cx| {
            let run = RUNS.fetch_add(1, Ordering::Relaxed);
            if run % 8 == 3 {
                sched::sleep_ns(cx, MS / 20);
            }
            sched::queue_work_on(nth_cpu(run as usize), &AGAIN);
        });
        reset();
        for round in 0..200_u32 {
            ensure!(sched::queue_work_on(nth_cpu(round as usize), &AGAIN));
            let enough = RUNS.load(Ordering::Relaxed) + round % 5;
            while RUNS.load(Ordering::Relaxed) < enough {
                sched::yield_now(t.cx);
            }
            AGAIN.cancel_sync(t.cx);
            let after = RUNS.load(Ordering::Relaxed);
            ensure!(!AGAIN.is_pending());
            if round % 20 == 0 {
                sched::sleep_ns(t.cx, MS);
            }
            ensure_eq!(RUNS.load(Ordering::Relaxed), after, "it ran after it was cancelled");
        }
        Ok(())
    }

    /// When cancelling returns, the function that ran has returned.
    fn cancel_sync_waits_for_a_function_that_runs(t: &mut Test) {
        static ENTERED: Completion = Completion::new();
        static OVER: AtomicBool = AtomicBool::new(false);
        static SLOW: WorkItem = WorkItem::new(|_, cx| {
            ENTERED.complete();
            sched::sleep_ns(cx, 2 * MS);
            OVER.store(true, Ordering::Relaxed);
        });
        for cpu in cpu::online().iter().cycle().take(12) {
            OVER.store(false, Ordering::Relaxed);
            ensure!(sched::queue_work_on(cpu, &SLOW));
            ENTERED.wait(t.cx);
            ensure!(!SLOW.cancel_sync(t.cx), "it was not pending");
            ensure!(OVER.load(Ordering::Relaxed));
        }
        Ok(())
    }

    /// A flush waits for what was queued before it, and ends although more is queued all the time.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_flush_of_a_queue_under_steady_load_ends(t: &mut Test) {
        static MARK: WorkItem = WorkItem::new(crowd);
        for kind in kinds() {
            let queue = Arc::new(queue(t.cx, kind)?);
            let stop = Arc::new(AtomicBool::new(false));
            let mut loaders = Vec::new();
            for cpu in cpu::online().iter().take(4) {
                let (queue, stop) = (queue.clone(), stop.clone());
                loaders.push(spawn(t.cx, Some(cpu), move |cx| {
                    while !stop.load(Ordering::Relaxed) {
                        CROWD.iter().for_each(|item| { queue.queue(item); });
                        sched::sleep_ns(cx, MS / 4);
                    }
                })?);
            }
            let mut late = 0;
            for _ in 0..10 {
                late += u32::from(!queue.queue(&MARK));
                queue.flush(t.cx);
                // Nobody else queues it: it is neither pending nor does it run.
                late += u32::from(MARK.cancel_sync(t.cx));
            }
            stop.store(true, Ordering::Relaxed);
            loaders.into_iter().for_each(|loader| loader.join(t.cx));
            ensure_eq!(late, 0, "{kind:?}");
            match Arc::into_inner(queue) {
                Some(queue) => queue.destroy(t.cx),
                None => return Err(crate::__failed!("a thread that was joined holds the queue")),
            }
            ensure_eq!(INSIDE.load(Ordering::Relaxed), 0, "{kind:?}: something runs after the queue is gone");
        }
        Ok(())
    }

    /// A queue is gone when the last of its items has ended, those included whose time ran.
    fn destroy_waits_for_what_is_pending_and_what_is_delayed(t: &mut Test) {
        static DELAYED: [DelayedWork; 4] = [const { DelayedWork::new(crowd) }; 4];
        for kind in kinds() {
            reset();
            let queue = queue(t.cx, kind)?;
            let begin = clock::now_ns();
            for (n, item) in CROWD.iter().enumerate() {
                ensure!(queue.queue_on(nth_cpu(n), item));
            }
            for (n, delayed) in DELAYED.iter().enumerate() {
                ensure!(queue.queue_delayed_on(nth_cpu(n), delayed, (n as u64 + 1) * 5 * MS));
            }
            ensure!(!queue.queue_delayed(&DELAYED[3], 0), "it is pending");
            ensure!(queue.modify_delayed(&DELAYED[2], 30 * MS), "it is pending");
            let back = u32::from(DELAYED[0].cancel()) + u32::from(DELAYED[1].cancel_sync(t.cx));
            queue.destroy(t.cx);
            ensure!(clock::now_ns() - begin >= 30 * MS, "it did not wait for what was delayed");
            ensure_eq!(RUNS.load(Ordering::Relaxed) + back, 16 + 4, "{kind:?}");
        }
        Ok(())
    }

    /// Interrupt handlers queue; nothing that they queue is lost.
    #[budget_ms(30_000)]
    fn items_are_queued_from_a_hard_interrupt(t: &mut Test) {
        const TIMES: u32 = 200;
        static QUEUED: AtomicU32 = AtomicU32::new(0);
        static ITEM: WorkItem = WorkItem::new(|_, _| { RUNS.fetch_add(1, Ordering::Relaxed); });
        static FIRED: AtomicU32 = AtomicU32::new(0);
        static TIMER: Timer = Timer::new(|timer| {
            let fired = FIRED.fetch_add(1, Ordering::Relaxed);
            let wrong = u32::from(!sync::context::in_hardirq());
            QUEUED.fetch_add(wrong + u32::from(sched::queue_work_on(nth_cpu(fired as usize), &ITEM)), Ordering::Relaxed);
            if fired < TIMES {
                // SAFETY: it is a static.
                unsafe { timer.arm_at_raw(clock::now_ns() + MS / 10) };
            }
        });
        reset();
        QUEUED.store(0, Ordering::Relaxed);
        FIRED.store(0, Ordering::Relaxed);
        TIMER.arm_in(MS / 10);
        ensure!(eventually(t.cx, || FIRED.load(Ordering::Relaxed) > TIMES));
        TIMER.cancel_sync();
        ITEM.flush(t.cx);
        ensure_eq!(RUNS.load(Ordering::Relaxed), QUEUED.load(Ordering::Relaxed));
        Ok(())
    }

    /// Threads of all CPUs take units in each way there is; never more than there are, and none is lost.
    #[tags(race)]
    #[budget_ms(30_000)]
    fn a_semaphore_gives_what_it_has_and_loses_nothing(t: &mut Test) {
        const UNITS: u32 = 2;
        let shared = Arc::new((Semaphore::new(UNITS), AtomicU32::new(0), AtomicU64::new(0)));
        let mut threads = Vec::new();
        for me in 0..2 * cpu::online_count().min(4) {
            let shared = shared.clone();
            let seed = t.rng.next_u64();
            threads.push(spawn(t.cx, Some(nth_cpu(me)), move |cx| {
                let (semaphore, inside, timed_out) = &*shared;
                let mut too_many = 0;
                for i in 0..400_u64 {
                    let taken = match i % 3 {
                        0 => semaphore.down_timeout(cx, (seed >> (i % 32)) % (MS / 4)),
                        1 => semaphore.try_down(),
                        _ => {
                            semaphore.down(cx);
                            true
                        }
                    };
                    if !taken {
                        timed_out.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    too_many += u32::from(inside.fetch_add(1, Ordering::Relaxed) >= UNITS);
                    if i % 10 == 0 {
                        sched::sleep_ns(cx, MS / 20);
                    }
                    inside.fetch_sub(1, Ordering::Relaxed);
                    semaphore.up();
                }
                too_many
            })?);
        }
        for thread in threads {
            ensure_eq!(thread.join(t.cx), 0, "more units than there are");
        }
        ensure_eq!(shared.0.count(), UNITS);
        t.note(format_args!("{} timed out", shared.2.load(Ordering::Relaxed)));
        Ok(())
    }
}
