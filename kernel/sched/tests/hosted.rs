//! The scheduler on the hosted machine: OS threads are CPUs, signals are interrupts.
//!
//! Each test has a process and a machine of its own. What runs in a machine allocates through `HostAlloc` and prints
//! nothing.

mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::hosted::in_own_process;
use arch::{CpuId, clock, cpu, irq};
use grange_sched as sched;
use machine::{machine_with, spawn};
use sched::{Completion, DelayedWork, Mutex, Prio, Softirq, Timer, WaitQueue, WorkItem, tick};
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, SoftirqGuard};

const MS: u64 = 1_000_000;
fn machine(cpus: usize, body: impl FnOnce(&mut MaySleep) + Send) {
    machine_with(cpus, |_| (), body);
}

/// Runs of softirq `Test`, in a process whose test has called [`count_softirqs`].
static RAN: AtomicU32 = AtomicU32::new(0);

fn count_softirqs() {
    sched::softirq::register(Softirq::Test, || {
        assert!(sync::context::in_softirq() && irq::enabled());
        RAN.fetch_add(1, Ordering::Relaxed);
    });
}

struct Ball {
    turn: AtomicU64,
    queues: [WaitQueue; 2],
}

fn play(ball: &Ball, cx: &mut MaySleep, me: usize, rounds: u64) {
    for round in 0..rounds {
        let mine = 2 * round + me as u64;
        ball.queues[me].wait_until(cx, || ball.turn.load(Ordering::Relaxed) == mine);
        ball.turn.store(mine + 1, Ordering::Relaxed);
        ball.queues[1 - me].wake_one();
    }
}

fn ping_pong(cx: &mut MaySleep, a: Option<usize>, b: Option<usize>, rounds: u64) {
    let ball = Arc::new(Ball { turn: AtomicU64::new(0), queues: [WaitQueue::new(), WaitQueue::new()] });
    let (ours, theirs) = (ball.clone(), ball.clone());
    let ping = spawn(cx, a, move |cx| play(&ours, cx, 0, rounds));
    let pong = spawn(cx, b, move |cx| play(&theirs, cx, 1, rounds));
    ping.join(cx);
    pong.join(cx);
    assert_eq!(ball.turn.load(Ordering::Relaxed), 2 * rounds);
}

#[test]
fn a_thread_runs_and_is_joined_with_its_result() {
    in_own_process(|| {
        machine(1, |cx| {
            for round in 0..100_u64 {
                assert_eq!(spawn(cx, None, move |_| round + 1).join(cx), round + 1);
            }
        });
    });
}

#[test]
fn stacks_of_dead_threads_are_used_again_and_kept_in_bounds() {
    in_own_process(|| {
        machine(2, |cx| {
            for _ in 0..3 {
                let threads: Vec<_> = (0..100).map(|_| spawn(cx, None, |cx| sched::sleep_ns(cx, MS))).collect();
                threads.into_iter().for_each(|thread| thread.join(cx));
            }
            let mut structures = 0;
            sched::thread::for_each(|_| structures += 1);
            assert!(structures < 150, "{structures} live threads");
        });
    });
}

#[test]
fn ping_pong_on_one_cpu_loses_no_wake_up() {
    in_own_process(|| machine(1, |cx| ping_pong(cx, Some(0), Some(0), 50_000)));
}

#[test]
fn ping_pong_across_cpus_loses_no_wake_up() {
    in_own_process(|| machine(2, |cx| ping_pong(cx, Some(0), Some(1), 50_000)));
}

#[test]
fn ping_pong_of_unbound_threads_loses_no_wake_up() {
    in_own_process(|| machine(3, |cx| ping_pong(cx, None, None, 20_000)));
}

#[test]
fn equals_that_never_give_up_the_cpu_take_turns() {
    in_own_process(|| {
        machine(2, |cx| {
            let arrived = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let arrived = arrived.clone();
                    spawn(cx, Some(1), move |_| {
                        arrived.fetch_add(1, Ordering::Relaxed);
                        while arrived.load(Ordering::Relaxed) < 3 {
                            irq::relax();
                        }
                        sched::current().involuntary_switches()
                    })
                })
                .collect();
            let switches: u64 = threads.into_iter().map(|thread| thread.join(cx)).sum();
            assert!(switches >= 2, "{switches} preemptions");
        });
    });
}

#[test]
fn an_urgent_thread_preempts_a_busy_one() {
    in_own_process(|| {
        machine(2, |cx| {
            let stop = Arc::new(AtomicBool::new(false));
            let stop_too = stop.clone();
            let busy = spawn(cx, Some(1), move |_| {
                while !stop_too.load(Ordering::Relaxed) {
                    irq::relax();
                }
            });
            for _ in 0..20 {
                let urgent = sched::spawn(cx, "urgent", Prio::RCU, Some(CpuId::new(1)), |_| cpu::current());
                assert_eq!(urgent.unwrap().join(cx), CpuId::new(1));
            }
            assert!(!busy.is_finished());
            stop.store(true, Ordering::Relaxed);
            busy.join(cx);
        });
    });
}

#[test]
fn a_raised_priority_lets_a_waiting_thread_run() {
    in_own_process(|| {
        machine(2, |cx| {
            let stop = Arc::new(AtomicBool::new(false));
            let stop_too = stop.clone();
            let busy = sched::spawn(cx, "busy", Prio::HIGH, Some(CpuId::new(1)), move |_| {
                while !stop_too.load(Ordering::Relaxed) {
                    irq::relax();
                }
            });
            let waiting = spawn(cx, Some(1), |_| ());
            sched::sleep_ns(cx, 30 * MS);
            assert!(!waiting.is_finished());
            sched::set_prio(waiting.thread(), Prio::RCU);
            waiting.join(cx);
            stop.store(true, Ordering::Relaxed);
            busy.unwrap().join(cx);
        });
    });
}

#[test]
fn a_boosted_thread_runs_at_the_higher_of_two_levels_and_keeps_its_own() {
    in_own_process(|| {
        machine(1, |cx| {
            let boost = |thread: &'static sched::Thread, to: Prio| {
                thread.rcu.boost.store(to.level() as u8, Ordering::Relaxed);
                sched::follow_boost(thread);
                sched::prio_of(thread)
            };
            let none = Prio::from_level(0);
            // Queued, asleep and running: wherever a thread is.
            let queued = spawn(cx, None, |cx| sched::sleep_ns(cx, 50 * MS));
            for thread in [queued.thread(), sched::current()] {
                sched::set_prio(thread, Prio::BACKGROUND);
                assert_eq!(boost(thread, Prio::RCU), Prio::RCU);
                sched::set_prio(thread, Prio::HIGH);
                assert_eq!(sched::prio_of(thread), Prio::RCU, "set_prio takes a boost away");
                assert_eq!(boost(thread, none), Prio::HIGH, "set_prio during a boost is lost");
                assert_eq!(boost(thread, Prio::NORMAL), Prio::HIGH, "a boost lowers a thread");
                assert_eq!(boost(thread, none), Prio::HIGH);
                sched::set_prio(thread, Prio::NORMAL);
            }
            queued.join(cx);
        });
    });
}

#[test]
fn sleeping_is_never_shorter_than_asked() {
    in_own_process(|| {
        machine(2, |cx| {
            for i in 0..100 {
                let ns = i * 37_123 % (3 * MS);
                let begin = clock::now_ns();
                sched::sleep_ns(cx, ns);
                let slept = clock::now_ns() - begin;
                assert!(slept >= ns, "slept {slept} of {ns} ns");
            }
        });
    });
}

static FIRED: AtomicU32 = AtomicU32::new(0);
static DUE: AtomicU64 = AtomicU64::new(0);
static EARLY: AtomicU32 = AtomicU32::new(0);
static TIMER: Timer = Timer::new(|_| {
    FIRED.fetch_add(1, Ordering::Relaxed);
    EARLY.fetch_add(u32::from(clock::now_ns() < DUE.load(Ordering::Relaxed)), Ordering::Relaxed);
});

#[test]
fn a_timer_armed_and_cancelled_from_all_cpus_fires_once_or_never() {
    in_own_process(|| {
        machine(3, |cx| {
            let threads: Vec<_> = (0..3)
                .map(|on| {
                    spawn(cx, Some(on), move |cx| {
                        // Below zero where it cancels what others have armed.
                        let mut armed = 0_i64;
                        for i in 0..3_000_u64 {
                            let at = clock::now_ns() + i * 7919 % 200_000;
                            // An armed timer that is moved counts once.
                            armed += i64::from(!TIMER.arm_at(at));
                            if i % 3 == on as u64 {
                                // Not `cancel_sync`: while it waits others arm the timer again, and it takes that
                                // back as well.
                                armed -= i64::from(TIMER.cancel());
                            }
                            if i % 100 == 0 {
                                sched::sleep_ns(cx, MS / 5);
                            }
                        }
                        armed
                    })
                })
                .collect();
            let armed: i64 = threads.into_iter().map(|thread| thread.join(cx)).sum();
            let armed = armed - i64::from(TIMER.cancel_sync());
            assert_eq!(i64::from(FIRED.load(Ordering::Relaxed)), armed);

            FIRED.store(0, Ordering::Relaxed);
            for i in 0..50 {
                let at = clock::now_ns() + i * 50_000;
                DUE.store(at, Ordering::Relaxed);
                TIMER.arm_at(at);
                sched::sleep_until(cx, at + MS / 2);
                while TIMER.is_armed() {
                    irq::relax();
                }
                TIMER.cancel_sync();
            }
            assert_eq!(FIRED.load(Ordering::Relaxed), 50);
            assert_eq!(EARLY.load(Ordering::Relaxed), 0);
        });
    });
}

static RAN_ON: AtomicUsize = AtomicUsize::new(usize::MAX);
static DONE: Completion = Completion::new();
static ITEM: WorkItem = WorkItem::new(|_, cx| {
    sched::sleep_ns(cx, MS / 10);
    RAN_ON.store(cpu::current().index(), Ordering::Relaxed);
    DONE.complete();
});
static RUNS: AtomicU32 = AtomicU32::new(0);
static COUNTED: WorkItem = WorkItem::new(|_, _| {
    RUNS.fetch_add(1, Ordering::Relaxed);
});
static AT: AtomicU64 = AtomicU64::new(0);
static LATER: DelayedWork = DelayedWork::new(|_, _| AT.store(clock::now_ns(), Ordering::Relaxed));

#[test]
fn work_runs_on_its_cpu_and_once_for_each_time_it_is_queued() {
    in_own_process(|| {
        machine(3, |cx| {
            for on in 0..3 {
                assert!(sched::queue_work_on(CpuId::new(on), &ITEM));
                DONE.wait(cx);
                assert_eq!(RAN_ON.load(Ordering::Relaxed), on);
                ITEM.flush(cx);
            }
            let queuers: Vec<_> = (0..3)
                .map(|on| {
                    spawn(cx, Some(on), move |_| {
                        (0..5_000).map(|i| u32::from(sched::queue_work_on(CpuId::new(i % 3), &COUNTED))).sum::<u32>()
                    })
                })
                .collect();
            let queued: u32 = queuers.into_iter().map(|thread| thread.join(cx)).sum();
            COUNTED.flush(cx);
            assert_eq!(RUNS.load(Ordering::Relaxed), queued);
            assert!(!COUNTED.cancel_sync(cx));
        });
    });
}

#[test]
fn delayed_work_waits_for_its_time_and_can_be_taken_back() {
    in_own_process(|| {
        machine(2, |cx| {
            let begin = clock::now_ns();
            assert!(LATER.queue(5 * MS));
            assert!(!LATER.queue(5 * MS), "it is pending");
            while AT.load(Ordering::Relaxed) == 0 {
                sched::sleep_ns(cx, MS);
            }
            assert!(AT.swap(0, Ordering::Relaxed) >= begin + 5 * MS);
            assert!(LATER.queue_on(CpuId::new(1), 20 * MS));
            assert!(LATER.cancel_sync(cx));
            sched::sleep_ns(cx, 40 * MS);
            assert_eq!(AT.load(Ordering::Relaxed), 0);
            assert!(LATER.queue(20_000 * MS));
            LATER.flush(cx);
            assert_ne!(AT.load(Ordering::Relaxed), 0, "a flush does not wait for the time");
        });
    });
}

#[test]
fn a_mutex_lets_one_thread_in_at_a_time() {
    in_own_process(|| {
        machine(3, |cx| {
            let mutex = Arc::new((Mutex::new(0_u64, sync::lock_class!("test.counter")), AtomicU32::new(0)));
            let threads: Vec<_> = (0..6)
                .map(|i| {
                    let mutex = mutex.clone();
                    spawn(cx, Some(i % 3), move |cx| {
                        for turn in 0..2_000 {
                            let mut value = mutex.0.lock(cx);
                            assert_eq!(mutex.1.fetch_add(1, Ordering::Relaxed), 0);
                            *value += 1;
                            if turn % 500 == 0 {
                                sched::sleep_ns(cx, MS / 10);
                            }
                            mutex.1.fetch_sub(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join(cx));
            assert_eq!(*mutex.0.lock(cx), 12_000);
        });
    });
}

#[test]
fn a_mutex_goes_to_the_most_urgent_waiter() {
    in_own_process(|| {
        machine(2, |cx| {
            let order = Arc::new(Mutex::new(Vec::new(), sync::lock_class!("test.order")));
            let gate = Arc::new(Mutex::new((), sync::lock_class!("test.gate")));
            let held = gate.lock(cx);
            let mut threads = Vec::new();
            for prio in [Prio::BACKGROUND, Prio::NORMAL, Prio::HIGH] {
                let (order, gate) = (order.clone(), gate.clone());
                let thread = sched::spawn(cx, "waiter", prio, None, move |cx| {
                    let _gate = gate.lock(cx);
                    order.lock(cx).push(prio);
                });
                let thread = thread.unwrap();
                while thread.thread().state() != sched::State::Sleeping {
                    sched::sleep_ns(cx, MS);
                }
                threads.push(thread);
            }
            drop(held);
            threads.into_iter().for_each(|thread| thread.join(cx));
            assert_eq!(order.lock(cx)[..], [Prio::HIGH, Prio::NORMAL, Prio::BACKGROUND]);
        });
    });
}

#[test]
fn a_wait_ends_by_its_condition_or_by_its_time() {
    in_own_process(|| {
        machine(2, |cx| {
            let done = Arc::new(Completion::new());
            let begin = clock::now_ns();
            assert!(!done.wait_timeout(cx, 3 * MS));
            assert!(clock::now_ns() - begin >= 3 * MS);
            let done_too = done.clone();
            let thread = spawn(cx, None, move |cx| {
                sched::sleep_ns(cx, MS);
                done_too.complete();
            });
            assert!(done.wait_timeout(cx, 8_000 * MS));
            thread.join(cx);
            let queue = WaitQueue::new();
            assert!(!queue.wait_timeout(cx, MS, || false));
            assert!(!queue.has_waiters());
        });
    });
}

#[test]
fn a_softirq_runs_where_it_was_raised() {
    in_own_process(|| {
        machine(1, |cx| {
            count_softirqs();
            for expected in 1..=100 {
                let _pin = PreemptGuard::new(cx);
                sched::softirq::raise(Softirq::Test);
                while RAN.load(Ordering::Relaxed) < expected {
                    irq::relax();
                }
            }
        });
    });
}

#[test]
fn a_softirq_held_off_with_interrupts_off_runs_as_soon_as_they_are_on() {
    in_own_process(|| {
        machine(1, |cx| {
            count_softirqs();
            for round in 0..100 {
                let _pin = PreemptGuard::new(cx);
                let irqs_off = IrqGuard::new(ATOMIC);
                let held_off = SoftirqGuard::new(ATOMIC);
                sched::softirq::raise(Softirq::Test);
                drop(held_off);
                assert_eq!((irq::enabled(), RAN.load(Ordering::Relaxed)), (false, round));
                drop(irqs_off);
                let begin = clock::now_ns();
                while RAN.load(Ordering::Relaxed) == round {
                    assert!(clock::now_ns() - begin < 5_000 * MS, "round {round}: never");
                    irq::relax();
                }
            }
        });
    });
}

#[test]
fn a_softirq_that_an_nmi_raises_quietly_runs_at_the_end_of_the_guard_without_an_interrupt() {
    in_own_process(|| {
        machine(1, |cx| {
            count_softirqs();
            let here = cpu::current();
            let interrupts = || sync::irq::count(here, arch::vector::IRQ_WORK);
            for round in 0..100 {
                let guard = PreemptGuard::new(cx);
                let before = interrupts();
                let took_one = {
                    let _off = IrqGuard::new(ATOMIC);
                    sync::nmi::as_nmi(|| sched::softirq::raise_quietly(Softirq::Test))
                };
                let inside = RAN.load(Ordering::Relaxed);
                drop(guard);
                // A tick may have come under the guard.
                assert!(inside <= round + 1 && RAN.load(Ordering::Relaxed) == round + 1, "round {round}: {inside}");
                assert_eq!((took_one, interrupts()), (false, before), "no interrupt to itself");
            }
        });
    });
}

#[test]
fn a_flood_of_softirqs_goes_to_the_daemon_and_threads_still_run() {
    static RAN: AtomicU32 = AtomicU32::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    in_own_process(|| {
        machine(1, |cx| {
            sched::softirq::register(Softirq::Test, || {
                RAN.fetch_add(1, Ordering::Relaxed);
                if !STOP.load(Ordering::Relaxed) {
                    sched::softirq::raise(Softirq::Test);
                }
            });
            sched::softirq::raise(Softirq::Test);
            let begin = clock::now_ns();
            // This thread gets its turns beside a softirq that raises itself for ever.
            while clock::now_ns() - begin < 100 * MS {
                irq::relax();
            }
            let thread = spawn(cx, Some(0), |_| ());
            thread.join(cx);
            STOP.store(true, Ordering::Relaxed);
            assert!(RAN.load(Ordering::Relaxed) > 100);
        });
    });
}

#[test]
fn an_idle_cpu_takes_no_tick_and_wakes_up_for_a_thread() {
    in_own_process(|| {
        machine(2, |cx| {
            let there = CpuId::new(1);
            // What its start has left to do ends first.
            let quiet = (0..50).any(|_| {
                let before = tick::count_on(there);
                sched::sleep_ns(cx, 50 * MS);
                tick::count_on(there) == before && !tick::runs_on(there)
            });
            assert!(quiet, "CPU {there} still ticks");
            assert_eq!(spawn(cx, Some(1), |_| cpu::current()).join(cx), there);
        });
    });
}

#[test]
fn an_idle_cpu_takes_a_thread_that_waits_elsewhere() {
    in_own_process(|| {
        machine(2, |cx| {
            // More unbound busy threads than CPUs, all made on CPU 0: both CPUs get some.
            let seen = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let seen = seen.clone();
                    spawn(cx, None, move |_| {
                        while seen.iter().any(|seen| !seen.load(Ordering::Relaxed)) {
                            seen[cpu::current().index()].store(true, Ordering::Relaxed);
                            irq::relax();
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join(cx));
        });
    });
}

#[test]
fn a_wake_up_that_was_meant_for_another_condition_loses_nobody() {
    in_own_process(|| {
        static QUEUE: WaitQueue = WaitQueue::new();
        static TURN: AtomicUsize = AtomicUsize::new(0);
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        const TURNS: usize = 1_000;
        machine(3, |cx| {
            let over = Arc::new(AtomicBool::new(false));
            let theirs = over.clone();
            let others = spawn(cx, Some(2), move |_| {
                while !theirs.load(Ordering::Relaxed) {
                    QUEUE.wake_all();
                }
            });
            let waiter = spawn(cx, Some(1), |cx| {
                for turn in 1..=TURNS {
                    QUEUE.wait_until(cx, || TURN.load(Ordering::Relaxed) >= turn);
                    SEEN.store(turn, Ordering::Relaxed);
                }
            });
            for turn in 1..=TURNS {
                clock::udelay((turn % 16) as u64);
                TURN.store(turn, Ordering::Relaxed);
                QUEUE.wake_all();
                let until = clock::now_ns() + 20_000 * MS;
                while SEEN.load(Ordering::Relaxed) < turn {
                    assert!(clock::now_ns() < until, "the waiter sleeps on at turn {turn}");
                    sched::yield_now(cx);
                }
            }
            over.store(true, Ordering::Relaxed);
            waiter.join(cx);
            others.join(cx);
        });
    });
}

#[test]
fn a_thread_preempted_on_its_way_to_sleep_is_queued_once_however_it_is_pulled_and_woken() {
    const ROUNDS: u64 = 2000;
    in_own_process(|| {
        machine(4, |cx| {
            let rounds = Arc::new(AtomicU64::new(0));
            let over = || {
                let rounds = rounds.clone();
                move || rounds.load(Ordering::Relaxed) >= ROUNDS
            };
            // They announce a sleep and compute for long before they look: they are preempted, and queued, as sleepers.
            let sleepers: Vec<_> = (0..6)
                .map(|_| {
                    let (rounds, over) = (rounds.clone(), over());
                    spawn(cx, None, move |cx| {
                        while !over() {
                            sched::wait::sleep_until_woken(cx, || {
                                let begin = clock::now_ns();
                                while clock::now_ns() - begin < 2 * MS {
                                    irq::relax();
                                }
                                over()
                            });
                            rounds.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            // CPUs that get idle, and look for threads, again and again.
            let idlers: Vec<_> = (1..4)
                .map(|cpu| {
                    let over = over();
                    spawn(cx, Some(cpu), move |cx| {
                        while !over() {
                            sched::sleep_ns(cx, MS / 20);
                        }
                    })
                })
                .collect();
            while sleepers.iter().any(|sleeper| !sleeper.is_finished()) {
                for sleeper in &sleepers {
                    sched::wake(sleeper.thread());
                }
            }
            for thread in sleepers.into_iter().chain(idlers) {
                thread.join(cx);
            }
        });
    });
}
