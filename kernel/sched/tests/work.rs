//! Work queues and semaphores on the hosted machine; see `hosted.rs`.

mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::hosted::in_own_process;
use arch::{CpuId, clock, cpu, irq};
use grange_sched as sched;
use machine::{machine_with, spawn};
use sched::work::{self, Kind};
use sched::{Completion, DelayedWork, Prio, Semaphore, Timer, WorkItem, WorkQueue};
use sync::MaySleep;

const MS: u64 = 1_000_000;
const CPUS: usize = 3;

fn machine(body: impl FnOnce(&mut MaySleep) + Send) {
    machine_with(CPUS, |_| (), body);
}

fn queue(cx: &mut MaySleep, kind: Kind) -> WorkQueue {
    WorkQueue::create(cx, "test", kind).expect("memory for a queue")
}

const PER_CPU: Kind = Kind::PerCpu { max_active: 64 };
const UNBOUND: Kind = Kind::Unbound { max_active: 64 };

/// Waits, for a generous time, until `cond` holds.
fn eventually(cx: &mut MaySleep, what: &str, mut cond: impl FnMut() -> bool) {
    let begin = clock::now_ns();
    while !cond() {
        assert!(clock::now_ns() - begin < 20_000 * MS, "never: {what}");
        sched::sleep_ns(cx, MS / 2);
    }
}

static RUNS: AtomicU32 = AtomicU32::new(0);
static INSIDE: AtomicU32 = AtomicU32::new(0);
static MOST: AtomicU32 = AtomicU32::new(0);
static GATE: Completion = Completion::new();

/// Counts who is in here at once, for a while.
fn crowd(_: &WorkItem, cx: &mut MaySleep) {
    let now = INSIDE.fetch_add(1, Ordering::Relaxed) + 1;
    MOST.fetch_max(now, Ordering::Relaxed);
    sched::sleep_ns(cx, MS);
    INSIDE.fetch_sub(1, Ordering::Relaxed);
    RUNS.fetch_add(1, Ordering::Relaxed);
}

fn count(_: &WorkItem, _: &mut MaySleep) {
    RUNS.fetch_add(1, Ordering::Relaxed);
}

static CROWD: [WorkItem; 24] = [const { WorkItem::new(crowd) }; 24];
static WAITS: WorkItem = WorkItem::new(|_, cx| GATE.wait(cx));
static COUNTS: WorkItem = WorkItem::new(count);
static LATER: DelayedWork = DelayedWork::new(count);

#[test]
fn an_item_that_sleeps_holds_up_nobody() {
    in_own_process(|| {
        machine(|cx| {
            let here = cpu::current();
            for _ in 0..20 {
                sched::queue_work_on(here, &WAITS);
                sched::queue_work_on(here, &COUNTS);
                // It is behind the other, which waits until this one has ended.
                COUNTS.flush(cx);
                GATE.complete();
                WAITS.flush(cx);
            }
            assert_eq!(RUNS.load(Ordering::Relaxed), 20);
        });
    });
}

#[test]
fn all_sleep_at_once_where_the_limit_lets_them() {
    in_own_process(|| {
        machine(|cx| {
            for kind in [PER_CPU, UNBOUND] {
                let queue = queue(cx, kind);
                MOST.store(0, Ordering::Relaxed);
                // All sleep before the first ends, or the test hangs.
                static ALL: Completion = Completion::new();
                static ARRIVED: AtomicUsize = AtomicUsize::new(0);
                static ITEMS: [WorkItem; 40] = [const {
                    WorkItem::new(|_, cx| {
                        if ARRIVED.fetch_add(1, Ordering::Relaxed) + 1 == 40 {
                            ALL.complete_all();
                        }
                        ALL.wait(cx);
                    })
                }; 40];
                ARRIVED.store(0, Ordering::Relaxed);
                ALL.reset();
                let here = cpu::current();
                assert!(ITEMS.iter().all(|item| queue.queue_on(here, item)));
                queue.flush(cx);
                assert_eq!(ARRIVED.load(Ordering::Relaxed), 40);
                queue.destroy(cx);
            }
            // They end again: one for the next item and one more.
            eventually(cx, "no more than the spare workers are left", || {
                work::pools().all(|pool| pool.workers <= sched::config::SPARE_WORKERS)
            });
        });
    });
}

#[test]
fn items_that_compute_have_their_cpu_one_after_another() {
    static BUSY: [WorkItem; 6] = [const {
        WorkItem::new(|_, _| {
            MOST.fetch_max(INSIDE.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            // Longer than a time slice.
            let begin = clock::now_ns();
            while clock::now_ns() - begin < 12 * MS {
                irq::relax();
            }
            INSIDE.fetch_sub(1, Ordering::Relaxed);
        })
    }; 6];
    in_own_process(|| {
        machine(|cx| {
            // There are idle workers that could run them.
            sched::queue_work_on(CpuId::new(1), &WAITS);
            eventually(cx, "a second worker", || work::pools().any(|pool| pool.workers >= 2));
            GATE.complete();
            BUSY.iter().for_each(|item| assert!(sched::queue_work_on(CpuId::new(1), item)));
            BUSY.iter().for_each(|item| item.flush(cx));
            assert_eq!(MOST.load(Ordering::Relaxed), 1);
        });
    });
}

#[test]
fn max_active_is_kept_and_made_use_of() {
    in_own_process(|| {
        machine(|cx| {
            for (kind, most) in
                [(Kind::PerCpu { max_active: 3 }, 3), (Kind::Unbound { max_active: 5 }, 5), (Kind::Ordered, 1)]
            {
                let queue = queue(cx, kind);
                RUNS.store(0, Ordering::Relaxed);
                MOST.store(0, Ordering::Relaxed);
                let here = cpu::current();
                for _ in 0..5 {
                    CROWD.iter().for_each(|item| assert!(queue.queue_on(here, item)));
                    // Some that wait for their turn are taken back.
                    let back = CROWD.iter().skip(12).filter(|item| item.cancel()).count() as u32;
                    queue.flush(cx);
                    assert_eq!(RUNS.swap(0, Ordering::Relaxed) + back, 24);
                }
                assert_eq!(MOST.load(Ordering::Relaxed), most, "{kind:?}");
                queue.destroy(cx);
            }
        });
    });
}

#[test]
fn an_ordered_queue_keeps_the_order() {
    static ORDER: sched::Mutex<Vec<usize>> = sched::Mutex::new(Vec::new(), sync::lock_class!("test.order"));
    static ITEMS: [WorkItem; 16] = [const {
        WorkItem::new(|item, cx| {
            let at = (std::ptr::from_ref(item).addr() - ITEMS.as_ptr().addr()) / size_of::<WorkItem>();
            if at.is_multiple_of(3) {
                sched::sleep_ns(cx, MS / 10);
            }
            ORDER.lock(cx).push(at);
        })
    }; 16];
    in_own_process(|| {
        machine(|cx| {
            let queue = queue(cx, Kind::Ordered);
            for (at, item) in ITEMS.iter().enumerate() {
                queue.queue_on(CpuId::new(at % CPUS), item);
            }
            queue.flush(cx);
            assert_eq!(*ORDER.lock(cx), (0..16).collect::<Vec<_>>());
            queue.destroy(cx);
        });
    });
}

static ALONE: AtomicBool = AtomicBool::new(true);
static LONELY: WorkItem = WorkItem::new(|_, cx| {
    if INSIDE.fetch_add(1, Ordering::Relaxed) != 0 {
        ALONE.store(false, Ordering::Relaxed);
    }
    if RUNS.fetch_add(1, Ordering::Relaxed).is_multiple_of(8) {
        sched::sleep_ns(cx, MS / 20);
    }
    INSIDE.fetch_sub(1, Ordering::Relaxed);
});

#[test]
fn queued_flushed_and_cancelled_from_all_cpus_it_runs_once_for_each_time_and_never_twice_at_once() {
    in_own_process(|| {
        machine(|cx| {
            for kind in [PER_CPU, UNBOUND, Kind::Ordered] {
                RUNS.store(0, Ordering::Relaxed);
                let queue = Arc::new(queue(cx, kind));
                let threads: Vec<_> = (0..2 * CPUS)
                    .map(|me| {
                        let queue = queue.clone();
                        spawn(cx, Some(me % CPUS), move |cx| {
                            // Times that this thread had it queued, less those that it took back.
                            let mut sum = 0_i64;
                            for i in 0..1_500 {
                                // Else the workers, its equals, would seldom get the CPU.
                                sched::yield_now(cx);
                                sum += i64::from(queue.queue_on(CpuId::new((me + i) % CPUS), &LONELY));
                                match (i + 7 * me) % 50 {
                                    0 => LONELY.flush(cx),
                                    10 => sum -= i64::from(LONELY.cancel()),
                                    20 => sum -= i64::from(LONELY.cancel_sync(cx)),
                                    30 => queue.flush(cx),
                                    _ => {}
                                }
                            }
                            sum
                        })
                    })
                    .collect();
                let queued: i64 = threads.into_iter().map(|thread| thread.join(cx)).sum();
                LONELY.flush(cx);
                assert!(!LONELY.is_pending());
                assert_eq!(i64::from(RUNS.load(Ordering::Relaxed)), queued, "{kind:?}");
                assert!(ALONE.load(Ordering::Relaxed), "{kind:?}: twice at once");
                Arc::into_inner(queue).expect("the threads are gone").destroy(cx);
            }
        });
    });
}

static AGAIN: WorkItem = WorkItem::new(|_, cx| {
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    if run % 8 == 3 {
        sched::sleep_ns(cx, MS / 20);
    }
    sched::queue_work_on(CpuId::new(run as usize % CPUS), &AGAIN);
    if run % 8 == 7 {
        sched::sleep_ns(cx, MS / 20);
    }
});

#[test]
fn cancel_sync_ends_an_item_that_queues_itself() {
    in_own_process(|| {
        machine(|cx| {
            for round in 0..200 {
                assert!(sched::queue_work_on(CpuId::new(round % CPUS), &AGAIN));
                let before = RUNS.load(Ordering::Relaxed);
                while RUNS.load(Ordering::Relaxed) < before + round as u32 % 5 {
                    irq::relax();
                }
                AGAIN.cancel_sync(cx);
                let after = RUNS.load(Ordering::Relaxed);
                assert!(!AGAIN.is_pending());
                if round % 20 == 0 {
                    sched::sleep_ns(cx, MS);
                }
                assert_eq!(RUNS.load(Ordering::Relaxed), after, "it ran after it was cancelled");
            }
        });
    });
}

#[test]
fn a_flush_ends_though_the_item_queues_itself() {
    in_own_process(|| {
        machine(|cx| {
            sched::queue_work(&AGAIN);
            for _ in 0..100 {
                let before = RUNS.load(Ordering::Relaxed);
                AGAIN.flush(cx);
                assert!(RUNS.load(Ordering::Relaxed) > before);
            }
            AGAIN.cancel_sync(cx);
        });
    });
}

#[test]
fn a_flush_of_a_queue_waits_for_what_was_there_and_ends_under_load() {
    static STOP: AtomicBool = AtomicBool::new(false);
    static MARK: WorkItem = WorkItem::new(crowd);
    in_own_process(|| {
        machine(|cx| {
            for kind in [PER_CPU, Kind::Unbound { max_active: 2 }, Kind::Ordered] {
                STOP.store(false, Ordering::Relaxed);
                let queue = Arc::new(queue(cx, kind));
                let loaders: Vec<_> = (0..CPUS)
                    .map(|on| {
                        let queue = queue.clone();
                        spawn(cx, Some(on), move |cx| {
                            while !STOP.load(Ordering::Relaxed) {
                                CROWD.iter().for_each(|item| {
                                    queue.queue(item);
                                });
                                sched::sleep_ns(cx, MS / 4);
                            }
                        })
                    })
                    .collect();
                for _ in 0..10 {
                    assert!(queue.queue(&MARK));
                    queue.flush(cx);
                    assert!(!MARK.is_pending());
                    // Nor does it run: nobody else queues it.
                    assert!(!MARK.cancel_sync(cx));
                }
                STOP.store(true, Ordering::Relaxed);
                loaders.into_iter().for_each(|thread| thread.join(cx));
                Arc::into_inner(queue).expect("the threads are gone").destroy(cx);
                assert_eq!(INSIDE.load(Ordering::Relaxed), 0);
            }
        });
    });
}

#[test]
fn destroy_waits_for_all_that_is_pending_and_delayed() {
    static DELAYED: [DelayedWork; 6] = [const { DelayedWork::new(crowd) }; 6];
    in_own_process(|| {
        machine(|cx| {
            for kind in [PER_CPU, Kind::Unbound { max_active: 1 }, Kind::Ordered] {
                RUNS.store(0, Ordering::Relaxed);
                let queue = queue(cx, kind);
                let begin = clock::now_ns();
                for (i, item) in CROWD.iter().enumerate() {
                    assert!(queue.queue_on(CpuId::new(i % CPUS), item));
                }
                for (i, delayed) in DELAYED.iter().enumerate() {
                    assert!(queue.queue_delayed_on(CpuId::new(i % CPUS), delayed, (i as u64 + 1) * 3 * MS));
                }
                assert!(DELAYED[1].cancel());
                assert!(DELAYED[2].cancel_sync(cx));
                queue.destroy(cx);
                assert!(clock::now_ns() - begin >= 18 * MS);
                assert_eq!(RUNS.load(Ordering::Relaxed), 24 + 4, "{kind:?}");
            }
            let mut queues = 0;
            work::queues(cx, |_| queues += 1);
            assert_eq!(queues, 2, "the system's two are left");
        });
    });
}

#[test]
fn a_queue_that_drains_takes_nothing_new() {
    static QUEUE: sync::Once<WorkQueue> = sync::Once::new();
    static SELF: WorkItem = WorkItem::new(|_, cx| {
        RUNS.fetch_add(1, Ordering::Relaxed);
        GATE.wait(cx);
        assert!(!QUEUE.get().unwrap().queue(&SELF), "the queue drains");
        assert!(!QUEUE.get().unwrap().queue_delayed(&LATER, MS));
    });
    in_own_process(|| {
        machine(|cx| {
            let queue = QUEUE.call_once(|| queue(cx, UNBOUND));
            for round in 1..=5 {
                assert!(queue.queue(&SELF));
                eventually(cx, "it runs", || RUNS.load(Ordering::Relaxed) == round);
                let drainer = spawn(cx, None, |cx| QUEUE.get().unwrap().drain(cx));
                eventually(cx, "new items are refused", || !queue.queue(&COUNTS) && !COUNTS.is_pending());
                COUNTS.flush(cx);
                assert!(!drainer.is_finished());
                RUNS.store(round, Ordering::Relaxed);
                GATE.complete();
                drainer.join(cx);
                assert!(!SELF.is_pending() && !LATER.is_pending());
                assert_eq!(RUNS.load(Ordering::Relaxed), round);
            }
            assert!(queue.queue(&COUNTS), "afterwards it takes items again");
            queue.flush(cx);
        });
    });
}

#[test]
fn delayed_work_gets_its_new_time_and_runs_once() {
    in_own_process(|| {
        machine(|cx| {
            assert!(!LATER.modify(20_000 * MS));
            assert!(LATER.modify(MS), "it was pending");
            eventually(cx, "it runs at its new time", || RUNS.load(Ordering::Relaxed) == 1);
            // From all CPUs at once: once for each time that it was not pending before.
            RUNS.store(0, Ordering::Relaxed);
            let threads: Vec<_> = (0..CPUS)
                .map(|on| {
                    spawn(cx, Some(on), move |cx| {
                        let mut sum = 0_i64;
                        for i in 0..2_000_u64 {
                            let ns = i * 7919 % 100_000;
                            match (i + on as u64) % 5 {
                                0 => sum += i64::from(LATER.queue_on(CpuId::new(i as usize % CPUS), ns)),
                                1 => sum -= i64::from(LATER.cancel()),
                                2 if i % 10 == 2 => LATER.flush(cx),
                                _ => sum += i64::from(!LATER.modify(ns)),
                            }
                            if i % 64 == 0 {
                                sched::sleep_ns(cx, MS / 10);
                            }
                        }
                        sum
                    })
                })
                .collect();
            let queued: i64 = threads.into_iter().map(|thread| thread.join(cx)).sum();
            LATER.flush(cx);
            assert!(!LATER.is_pending());
            assert_eq!(i64::from(RUNS.load(Ordering::Relaxed)), queued);
        });
    });
}

#[test]
fn an_item_is_queued_from_a_timers_interrupt() {
    static TIMER: Timer = Timer::new(|timer| {
        assert!(sync::context::in_hardirq());
        if QUEUED.fetch_add(u32::from(sched::queue_work_unbound(&COUNTS)), Ordering::Relaxed) < 100 {
            // SAFETY: the timer is a static.
            unsafe { timer.arm_at_raw(clock::now_ns() + MS / 10) };
        }
    });
    static QUEUED: AtomicU32 = AtomicU32::new(0);
    in_own_process(|| {
        machine(|cx| {
            TIMER.arm_in(MS / 10);
            eventually(cx, "a hundred items", || QUEUED.load(Ordering::Relaxed) > 100);
            TIMER.cancel_sync();
            COUNTS.flush(cx);
            assert_eq!(RUNS.load(Ordering::Relaxed), QUEUED.load(Ordering::Relaxed));
        });
    });
}

#[test]
fn cancel_sync_waits_for_a_function_that_runs() {
    static ENTERED: Completion = Completion::new();
    static OVER: AtomicBool = AtomicBool::new(false);
    static SLOW: WorkItem = WorkItem::new(|_, cx| {
        ENTERED.complete();
        sched::sleep_ns(cx, 2 * MS);
        OVER.store(true, Ordering::Relaxed);
    });
    in_own_process(|| {
        machine(|cx| {
            for round in 0..30 {
                OVER.store(false, Ordering::Relaxed);
                assert!(sched::queue_work_on(CpuId::new(round % CPUS), &SLOW));
                ENTERED.wait(cx);
                assert!(!SLOW.cancel_sync(cx), "it was not pending");
                assert!(OVER.load(Ordering::Relaxed));
            }
        });
    });
}

#[test]
fn without_memory_for_workers_items_still_get_on() {
    static ITEMS: [WorkItem; 12] = [const { WorkItem::new(crowd) }; 12];
    in_own_process(|| {
        machine(|cx| {
            // The threads of the pools have come to rest.
            sched::sleep_ns(cx, 5 * MS);
            // Nobody has ended yet, so there is no stack to be used again.
            let no_memory = mm::inject::arm(mm::inject::Plan::From(1)).unwrap();
            let here = cpu::current();
            // The pool's one worker sleeps until the rescuer has run all the others.
            assert!(sched::queue_work_on(here, &WAITS));
            ITEMS.iter().for_each(|item| assert!(sched::queue_work_on(here, item)));
            ITEMS.iter().for_each(|item| item.flush(cx));
            assert_eq!((RUNS.load(Ordering::Relaxed), MOST.load(Ordering::Relaxed)), (12, 1));
            assert!(no_memory.failed() > 0);
            drop(no_memory);
            // Once there is memory there are workers again.
            ITEMS.iter().for_each(|item| assert!(sched::queue_work_on(here, item)));
            ITEMS.iter().for_each(|item| item.flush(cx));
            eventually(cx, "a second worker", || work::pools().any(|pool| pool.workers >= 2));
            GATE.complete();
            WAITS.flush(cx);
        });
    });
}

#[test]
fn reports_show_what_runs_and_what_waits() {
    in_own_process(|| {
        machine(|cx| {
            let queue = queue(cx, Kind::PerCpu { max_active: 1 });
            let begin = clock::now_ns();
            queue.queue_on(CpuId::BOOT, &WAITS);
            queue.queue_on(CpuId::BOOT, &COUNTS);
            queue.queue_delayed_on(CpuId::BOOT, &LATER, 20_000 * MS);
            let mut shown = None;
            eventually(cx, "the worker is seen", || {
                shown = work::worker_stat(work::Home::Cpu(CpuId::BOOT), 0);
                shown.is_some()
            });
            let worker = shown.unwrap();
            assert_eq!(worker.queue, "test");
            assert!(worker.since_ns >= begin && worker.since_ns <= clock::now_ns());
            assert!(worker.thread.name().as_str().starts_with("kworker/0:"));
            let mut stats = Vec::with_capacity(8);
            work::queues(cx, |stat| stats.push(stat));
            let stat = stats.iter().find(|stat| stat.name == "test").unwrap();
            assert_eq!((stat.in_flight, stat.active, stat.delayed), (2, 1, 1));
            assert!(LATER.cancel());
            GATE.complete();
            queue.destroy(cx);
        });
    });
}

#[test]
fn a_semaphore_never_gives_more_units_than_it_has_and_loses_none() {
    in_own_process(|| {
        machine(|cx| {
            let shared = Arc::new((Semaphore::new(2), AtomicU32::new(0), AtomicU64::new(0)));
            let threads: Vec<_> = (0..2 * CPUS)
                .map(|me| {
                    let shared = shared.clone();
                    spawn(cx, Some(me % CPUS), move |cx| {
                        let (semaphore, inside, timed_out) = &*shared;
                        for i in 0..1_000_u64 {
                            let taken = match i % 3 {
                                0 => semaphore.down_timeout(cx, i * 311 % 50_000),
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
                            assert!(inside.fetch_add(1, Ordering::Relaxed) < 2, "more than there are");
                            if i % 10 == 0 {
                                sched::sleep_ns(cx, MS / 50);
                            }
                            inside.fetch_sub(1, Ordering::Relaxed);
                            semaphore.up();
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join(cx));
            assert_eq!(shared.0.count(), 2);
            assert!(shared.2.load(Ordering::Relaxed) > 0, "nothing ever timed out");
        });
    });
}

#[test]
fn a_semaphore_serves_those_who_came_first_and_an_up_from_an_interrupt_wakes() {
    static SEMAPHORE: Semaphore = Semaphore::new(0);
    static TIMER: Timer = Timer::new(|_| SEMAPHORE.up());
    in_own_process(|| {
        machine(|cx| {
            let begin = clock::now_ns();
            assert!(!SEMAPHORE.down_timeout(cx, 2 * MS));
            assert!(clock::now_ns() - begin >= 2 * MS);
            let order = Arc::new(sched::Mutex::new(Vec::with_capacity(4), sync::lock_class!("test.order")));
            let mut threads = Vec::new();
            for me in 0..4 {
                let order = order.clone();
                let thread = spawn(cx, Some(me % CPUS), move |cx| {
                    SEMAPHORE.down(cx);
                    order.lock(cx).push(me);
                });
                while thread.thread().state() != sched::State::Sleeping {
                    sched::sleep_ns(cx, MS / 4);
                }
                threads.push(thread);
            }
            for served in 1..=4 {
                TIMER.arm_in(MS / 10);
                eventually(cx, "one is served", || order.try_lock().is_some_and(|order| order.len() == served));
            }
            threads.into_iter().for_each(|thread| thread.join(cx));
            assert_eq!(*order.lock(cx), [0, 1, 2, 3]);
        });
    });
}

#[test]
fn a_unit_that_comes_as_the_time_runs_out_is_not_lost() {
    const TRIES: u32 = 4_000;
    static SEMAPHORE: Semaphore = Semaphore::new(0);
    static TRY: AtomicU32 = AtomicU32::new(0);
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    static TOOK: AtomicU64 = AtomicU64::new(0);
    in_own_process(|| {
        machine(|cx| {
            let giver = spawn(cx, Some(1), |_| {
                for i in 1..=TRIES {
                    while TRY.load(Ordering::Relaxed) != i {
                        irq::relax();
                    }
                    let begin = clock::now_ns();
                    // Somewhere in the time that the last wait took.
                    let delay = TOOK.load(Ordering::Relaxed) * (u64::from(i) * 37 % 128) / 120;
                    while clock::now_ns() - begin < delay {
                        irq::relax();
                    }
                    SEMAPHORE.up();
                    GIVEN.store(i, Ordering::Relaxed);
                }
            });
            let taker = spawn(cx, Some(2), |cx| {
                let mut taken = 0;
                for i in 1..=TRIES {
                    let begin = clock::now_ns();
                    TRY.store(i, Ordering::Relaxed);
                    taken += u32::from(SEMAPHORE.down_timeout(cx, 0));
                    TOOK.store(clock::now_ns() - begin, Ordering::Relaxed);
                    while GIVEN.load(Ordering::Relaxed) != i {
                        irq::relax();
                    }
                    // What came too late.
                    taken += u32::from(SEMAPHORE.try_down());
                }
                taken
            });
            let taken = taker.join(cx);
            giver.join(cx);
            assert_eq!(taken + SEMAPHORE.count(), TRIES);
        });
    });
}

#[test]
fn what_is_queued_for_a_cpu_that_goes_runs_elsewhere_and_comes_back_with_it() {
    static ITEMS: [WorkItem; 8] = [const { WorkItem::new(crowd) }; 8];
    static RAN_ON: AtomicUsize = AtomicUsize::new(0);
    static WHERE: WorkItem = WorkItem::new(|_, _| RAN_ON.store(cpu::current().index(), Ordering::Relaxed));
    in_own_process(|| {
        machine(|cx| {
            let goes = CpuId::new(1);
            for round in 0..20 {
                RUNS.store(0, Ordering::Relaxed);
                let begin = clock::now_ns();
                // One that sleeps until the CPU is gone, others behind it, and one whose time runs meanwhile.
                assert!(sched::queue_work_on(goes, &WAITS));
                ITEMS.iter().for_each(|item| assert!(sched::queue_work_on(goes, item)));
                assert!(LATER.queue_on(goes, 3 * MS));
                if round % 2 == 0 {
                    sched::sleep_ns(cx, MS);
                }
                sched::hotplug::cpu_off(goes, cx).expect("the CPU goes");
                assert!(!cpu::is_online(goes));
                ITEMS.iter().for_each(|item| item.flush(cx));
                GATE.complete();
                WAITS.flush(cx);
                while LATER.is_pending() {
                    sched::sleep_ns(cx, MS);
                }
                LATER.flush(cx);
                assert!(clock::now_ns() - begin >= 3 * MS);
                assert_eq!(RUNS.load(Ordering::Relaxed), 8 + 1);
                // Queued for an offline CPU: it runs where it is queued.
                assert!(sched::queue_work_on(goes, &WHERE));
                WHERE.flush(cx);
                assert_eq!(RAN_ON.load(Ordering::Relaxed), cpu::current().index());
                sched::hotplug::cpu_on(goes, cx).expect("the CPU comes back");
                assert!(sched::queue_work_on(goes, &WHERE));
                WHERE.flush(cx);
                assert_eq!(RAN_ON.load(Ordering::Relaxed), goes.index());
            }
        });
    });
}

#[test]
fn work_is_queued_flushed_and_cancelled_while_cpus_go_and_come() {
    static STOP: AtomicBool = AtomicBool::new(false);
    in_own_process(|| {
        machine(|cx| {
            let threads: Vec<_> = (0..4)
                .map(|me| {
                    spawn(cx, None, move |cx| {
                        let mut sum = 0_i64;
                        let mut i = me;
                        while !STOP.load(Ordering::Relaxed) {
                            i += 1;
                            sum += i64::from(sched::queue_work_on(CpuId::new(i % CPUS), &LONELY));
                            match i % 16 {
                                0 => LONELY.flush(cx),
                                5 => sum -= i64::from(LONELY.cancel()),
                                10 => sum -= i64::from(LONELY.cancel_sync(cx)),
                                _ => {}
                            }
                            sched::yield_now(cx);
                        }
                        sum
                    })
                })
                .collect();
            for round in 0..40 {
                let goes = CpuId::new(1 + round % 2);
                sched::hotplug::cpu_off(goes, cx).expect("the CPU goes");
                sched::sleep_ns(cx, MS / 2);
                sched::hotplug::cpu_on(goes, cx).expect("the CPU comes back");
            }
            STOP.store(true, Ordering::Relaxed);
            let queued: i64 = threads.into_iter().map(|thread| thread.join(cx)).sum();
            LONELY.flush(cx);
            assert_eq!(i64::from(RUNS.load(Ordering::Relaxed)), queued);
            assert!(ALONE.load(Ordering::Relaxed), "twice at once");
        });
    });
}

#[test]
fn a_worker_more_urgent_than_who_queues_runs_before_the_call_returns() {
    in_own_process(|| {
        machine(|cx| {
            let queuer = sched::spawn(cx, "queuer", Prio::BACKGROUND, Some(CpuId::new(1)), |cx| {
                let mut late = 0;
                for round in 1..=200 {
                    // It may still be the item's, or be on its way to sleep, when the item has ended.
                    COUNTS.flush(cx);
                    sched::sleep_ns(cx, MS / 10);
                    assert!(sched::queue_work_on(cpu::current(), &COUNTS));
                    late += u32::from(RUNS.load(Ordering::Relaxed) != round);
                    COUNTS.flush(cx);
                }
                late
            });
            assert_eq!(queuer.expect("memory for a thread").join(cx), 0, "items that ran later");
        });
    });
}
