//! What needs a machine: guards, locks, interrupts, calls between CPUs, on the hosted backend.
//!
//! Statics of this crate outlive a machine, and a failed check switches the checks off: what sets
//! hooks or a console, or is meant to panic, runs in a process of its own.
#![cfg(not(any(loom, miri)))]

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

use arch::{
    cpu::{self, CpuId, CpuMask},
    hosted::{self, HostAlloc, Stopped, in_own_process},
    irq, vector,
};
use grange_sync::{
    self as sync, ATOMIC, DynPerCpu, IrqGuard, IrqWork, LocalTryLock, LockClass, MaySleep, PreemptGuard, SoftirqGuard,
    SpinLock,
    context::{self, in_hardirq, in_interrupt, in_nmi, in_softirq, preempt_count, preemptible},
    hooks::HOOKS,
    llist::{LlistHead, LlistNode},
    nmi::{self, NmiHandler, as_nmi},
    smp,
};

#[global_allocator]
static ALLOC: HostAlloc = HostAlloc;

/// Runs `f` on CPU 0 of a machine, with handlers installed and interrupts on everywhere.
fn on_machine<R: Send>(cpus: usize, f: impl FnOnce(&mut MaySleep) -> R + Send) -> Result<R, Stopped> {
    hosted::boot(
        cpus,
        1,
        16 << 20,
        |_| (),
        || {
            sync::init();
            irq::enable();
            // SAFETY: the one token of this thread.
            let mut cx = unsafe { MaySleep::new() };
            let result = f(&mut cx);
            assert_eq!(preempt_count(), 0, "a test leaves nothing counted");
            irq::disable();
            result
        },
    )
}

fn machine<R: Send>(cpus: usize, f: impl FnOnce(&mut MaySleep) -> R + Send) -> R {
    on_machine(cpus, f).unwrap()
}

/// The message of the panic that `f` ends in.
fn panics(f: impl FnOnce(&mut MaySleep) + Send) -> String {
    match on_machine(1, f) {
        Err(Stopped::Panicked { message, .. }) => message,
        other => panic!("expected a panic, got {other:?}"),
    }
}

/// Spins, as an idle CPU would, until `done`.
fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        irq::relax();
    }
}

fn bump(counter: &AtomicUsize, by: usize) {
    counter.fetch_add(by, Ordering::Relaxed);
}

fn cpu(index: usize) -> CpuId {
    CpuId::new(index)
}

// --- contexts and guards ---

#[test]
fn guards_nest_and_the_count_returns_to_zero() {
    machine(1, |cx| {
        assert!(preemptible() && !in_interrupt());
        {
            let outer = PreemptGuard::new(cx);
            let inner = PreemptGuard::new(&outer);
            assert_eq!(preempt_count(), 2);
            assert!(!preemptible() && context::in_task());
            drop(inner);
            let soft = SoftirqGuard::new(&outer);
            assert!(in_interrupt() && !in_softirq() && context::in_task());
            drop(soft);
        }
        {
            let outer = IrqGuard::new(cx);
            let inner = IrqGuard::new(&outer);
            drop(inner);
            assert!(!irq::enabled() && !preemptible(), "the inner guard restores \"off\"");
        }
        assert!(preemptible());
    });
}

#[test]
fn each_cpu_counts_for_itself() {
    machine(4, |cx| {
        let _guard = PreemptGuard::new(cx);
        let counts = DynPerCpu::new(|_| 0_u32).unwrap();
        smp::run_on_mask(&cpu::online(), |_| {
            // SAFETY: in a hard interrupt on this CPU, whose copy it is.
            unsafe { *counts.this_ptr() = preempt_count() };
        });
        counts.for_each_possible(|cpu, count| {
            // SAFETY: all have answered.
            let count = unsafe { *count };
            // CPU 0 runs it under two guards (ours, and the call's), the others in an interrupt.
            let expected = if cpu.index() == 0 { 2 } else { context::HARDIRQ_OFFSET };
            assert_eq!(count, expected, "CPU {cpu}");
        });
    });
}

#[test]
fn the_end_of_the_last_guard_reschedules_only_with_interrupts_on() {
    in_own_process(|| {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        HOOKS.preempt_schedule.set(|| {
            assert!(preemptible(), "PC-5");
            CALLS.fetch_add(1, Ordering::Relaxed);
            context::clear_need_resched();
        });
        machine(1, |cx| {
            let calls = || CALLS.load(Ordering::Relaxed);
            let outer = PreemptGuard::new(cx);
            let inner = PreemptGuard::new(&outer);
            context::set_need_resched();
            drop(inner);
            assert_eq!(calls(), 0, "one guard is left");
            drop(outer);
            assert_eq!((calls(), context::need_resched()), (1, false));

            context::set_need_resched();
            let irqs_off = IrqGuard::new(cx);
            drop(PreemptGuard::new(&irqs_off));
            assert_eq!((calls(), context::need_resched()), (1, true), "interrupts are off");
            drop(irqs_off);
            let lock = SpinLock::new(0, sync::lock_class!("test.resched"));
            drop(lock.lock_irqsave(cx));
            assert_eq!(calls(), 2, "SL-3: interrupts are on again before the look");

            drop(SoftirqGuard::new(cx));
            assert_eq!(calls(), 2, "nothing wanted, nothing called");
        });
    });
}

#[test]
fn an_interrupt_ends_in_the_stated_order() {
    in_own_process(|| {
        static STORY: Mutex<Vec<&str>> = Mutex::new(Vec::new());
        fn tell(what: &'static str) {
            hosted::host_call(|| STORY.lock().unwrap().push(what));
        }
        static LAZY: IrqWork = IrqWork::new(|_| {
            assert!(in_hardirq());
            tell("lazy work");
        });
        HOOKS.irq_enter.set(|| {
            assert!(!in_interrupt());
            tell("irq_enter");
        });
        HOOKS.irq_exit_softirq.set(|| {
            assert!(!in_interrupt());
            tell("softirq");
        });
        HOOKS.irq_exit.set(|| tell("irq_exit"));
        HOOKS.tick_runs.set(|| true);
        HOOKS.preempt_schedule_irq.set(|| {
            assert!(preempt_count() == 0 && !irq::enabled());
            context::clear_need_resched();
            tell("preempt");
        });
        sync::irq::register(0x40, |_| {
            assert!(in_hardirq() && !irq::enabled());
            LAZY.queue_lazy();
            context::set_need_resched();
            tell("handler");
        });
        machine(1, |_| {
            arch::ipi::send_self(0x40);
            wait_until(|| sync::irq::count(cpu(0), 0x40) == 1 && !LAZY.is_pending());
        });
        let expected = ["irq_enter", "handler", "softirq", "lazy work", "irq_exit", "preempt"];
        assert_eq!(*STORY.lock().unwrap(), expected);
    });
}

#[test]
fn soft_interrupts_that_were_held_off_run_at_the_end_of_the_guard() {
    in_own_process(|| {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        HOOKS.irq_exit_softirq.set(|| {
            context::serving_softirq(|| assert!(in_softirq() && in_interrupt()));
            RUNS.fetch_add(1, Ordering::Relaxed);
        });
        machine(1, |cx| {
            let outer = SoftirqGuard::new(cx);
            drop(SoftirqGuard::new(&outer));
            assert_eq!(RUNS.load(Ordering::Relaxed), 0);
            drop(outer);
            assert_eq!(RUNS.load(Ordering::Relaxed), 1);
        });
    });
}

#[test]
fn sleeping_under_a_guard_is_reported_with_both_places() {
    in_own_process(|| {
        let message = panics(|cx| {
            let _hidden = PreemptGuard::new(ATOMIC);
            cx.assert_may_sleep();
        });
        assert!(message.contains("blocking in atomic context"), "{message}");
        assert_eq!(places(&message), 2, "both places: {message}");
    });
}

#[test]
fn a_handler_that_leaves_the_count_unbalanced_is_reported_with_its_vector() {
    in_own_process(|| {
        sync::irq::register(0x41, |_| core::mem::forget(PreemptGuard::new(ATOMIC)));
        let message = panics(|_| {
            arch::ipi::send_self(0x41);
            wait_until(|| false);
        });
        assert!(message.contains("IQ-2") && message.contains("0x41"), "{message}");
    });
}

// --- spin locks ---

#[test]
fn a_lock_keeps_increments_of_all_cpus_apart() {
    static CLASS: LockClass = LockClass::new("test.counter");
    static COUNTER: SpinLock<u64> = SpinLock::new(0, &CLASS);
    const EACH: u64 = 5_000;
    machine(4, |_| {
        smp::run_on_mask(&cpu::online(), |_| {
            for _ in 0..EACH {
                let mut counter = COUNTER.lock_irqsave(ATOMIC);
                let now = *counter;
                core::hint::black_box(&now);
                *counter = now + 1;
            }
        });
        assert_eq!(*COUNTER.lock_irqsave(ATOMIC), 4 * EACH);
        assert!(!COUNTER.is_locked());
    });
}

#[test]
fn try_lock_takes_a_free_lock_and_refuses_a_held_one() {
    machine(1, |cx| {
        let lock = SpinLock::new(7, sync::lock_class!("test.try"));
        let held = lock.try_lock(cx).expect("free");
        assert!(lock.try_lock(cx).is_none() && lock.try_lock_irqsave(cx).is_none());
        assert_eq!(preempt_count(), 1, "a refusal leaves nothing behind");
        assert!(irq::enabled());
        drop(held);
        let mut held = lock.try_lock_irqsave(cx).expect("free again");
        *held += 1;
        assert!(!irq::enabled());
        drop(held);
        assert_eq!(lock.into_inner(), 8);
    });
}

#[test]
fn an_nmi_finds_a_held_lock_held_and_a_free_one_free() {
    static CLASS: LockClass = LockClass::new("test.nmi");
    static LOCK: SpinLock<u64> = SpinLock::new(0, &CLASS);
    static NMIS: AtomicUsize = AtomicUsize::new(0);
    static GOT: AtomicUsize = AtomicUsize::new(0);
    static HANDLER: NmiHandler = NmiHandler::new("test", |_| {
        assert!(in_nmi() && in_hardirq());
        if LOCK.try_lock(ATOMIC).is_some() {
            GOT.fetch_add(1, Ordering::Relaxed);
        }
        NMIS.fetch_add(1, Ordering::Relaxed);
        true
    });
    in_own_process(|| {
        nmi::register(&HANDLER);
        machine(1, |cx| {
            let nmi_to_self = || {
                let before = NMIS.load(Ordering::Relaxed);
                arch::ipi::send_nmi(cpu(0));
                wait_until(|| NMIS.load(Ordering::Relaxed) > before);
            };
            let held = LOCK.lock_irqsave(cx);
            nmi_to_self();
            assert_eq!(GOT.load(Ordering::Relaxed), 0);
            drop(held);
            nmi_to_self();
            assert_eq!(GOT.load(Ordering::Relaxed), 1);
            assert_eq!(nmi::count(cpu(0)), 2);
        });
    });
}

#[test]
fn a_lock_that_was_leaked_can_be_released_by_the_next_thread() {
    machine(1, |cx| {
        let lock = SpinLock::new((), sync::lock_class!("test.leak"));
        let leaked = lock.lock(cx).leak();
        assert!(lock.is_locked());
        // SAFETY: this CPU holds it, and its guard was forgotten; so is its level of the count.
        let pin = unsafe {
            leaked.force_unlock();
            PreemptGuard::adopt()
        };
        assert!(!lock.is_locked());
        drop(pin);
    });
}

/// How many different places of this file a report names.
fn places(message: &str) -> usize {
    let is_place = |c: char| c == ':' || c.is_ascii_digit();
    let mut places: Vec<_> =
        message.split("tests/machine.rs:").skip(1).filter_map(|rest| rest.split(|c| !is_place(c)).next()).collect();
    places.sort_unstable();
    places.dedup();
    places.len()
}

#[cfg(debug_assertions)]
mod lock_checks {
    use super::*;

    /// The report says `what`, and names both places.
    fn ends_in(message: &str, what: &str) {
        assert!(message.contains(what), "{message}");
        assert!(places(message) >= 2, "both places: {message}");
    }

    #[test]
    fn two_locks_in_opposite_orders_are_reported_though_nothing_deadlocked() {
        in_own_process(|| {
            let message = panics(|cx| {
                let a = SpinLock::new((), sync::lock_class!("test.a"));
                let b = SpinLock::new((), sync::lock_class!("test.b"));
                {
                    let _a = a.lock(cx);
                    let _b = b.lock(cx);
                }
                let _b = b.lock(cx);
                let _a = a.lock(cx);
            });
            ends_in(&message, "lock order: \"test.a\"");
            assert!(message.contains("opposite order"), "{message}");
        });
    }

    #[test]
    fn a_circle_of_three_is_found() {
        in_own_process(|| {
            let message = panics(|cx| {
                let a = SpinLock::new((), sync::lock_class!("test.a"));
                let b = SpinLock::new((), sync::lock_class!("test.b"));
                let c = SpinLock::new((), sync::lock_class!("test.c"));
                for (outer, inner) in [(&a, &b), (&b, &c), (&c, &a)] {
                    let _outer = outer.lock(cx);
                    let _inner = inner.lock(cx);
                }
            });
            ends_in(&message, "lock order: \"test.a\"");
        });
    }

    #[test]
    fn taking_a_lock_twice_is_reported_instead_of_hanging() {
        in_own_process(|| {
            let message = panics(|cx| {
                let lock = SpinLock::new((), sync::lock_class!("test.self"));
                let _one = lock.lock(cx);
                let _two = lock.lock(cx);
            });
            ends_in(&message, "self-deadlock on lock \"test.self\"");
        });
    }

    #[test]
    fn ranks_count_before_the_opposite_order_was_ever_seen() {
        in_own_process(|| {
            static OUTER: LockClass = LockClass::new("test.outer").rank(10);
            static INNER: LockClass = LockClass::new("test.inner").rank(20);
            let message = panics(|cx| {
                let outer = SpinLock::new((), &OUTER);
                let inner = SpinLock::new((), &INNER);
                let _inner = inner.lock(cx);
                let _outer = outer.lock(cx);
            });
            ends_in(&message, "(rank 10)");
        });
    }

    #[test]
    fn locks_of_one_class_nest_by_address_if_it_says_so() {
        in_own_process(|| {
            static CLASS: LockClass = LockClass::new("test.nest").nests_by_address();
            machine(1, |cx| {
                let locks = [SpinLock::new((), &CLASS), SpinLock::new((), &CLASS)];
                let _low = locks[0].lock(cx);
                let _high = locks[1].lock(cx);
            });
            let message = panics(|cx| {
                let locks = [SpinLock::new((), &CLASS), SpinLock::new((), &CLASS)];
                let _high = locks[1].lock(cx);
                let _low = locks[0].lock(cx);
            });
            ends_in(&message, "two locks of class \"test.nest\" nest");
        });
    }

    #[test]
    fn a_lock_of_interrupts_taken_with_interrupts_on_is_reported() {
        in_own_process(|| {
            static CLASS: LockClass = LockClass::new("test.irq");
            static LOCK: SpinLock<()> = SpinLock::new((), &CLASS);
            let message = panics(|cx| {
                smp::run_on(cpu(0), || ()).unwrap();
                sync::irq::register(0x42, |_| drop(LOCK.lock(ATOMIC)));
                arch::ipi::send_self(0x42);
                wait_until(|| sync::irq::count(cpu(0), 0x42) == 1);
                drop(LOCK.lock_irqsave(cx));
                drop(LOCK.lock(cx));
            });
            ends_in(&message, "\"test.irq\" is used with interrupts on");
        });
    }

    #[test]
    fn spinning_in_an_nmi_is_reported() {
        in_own_process(|| {
            let message = panics(|_| {
                let lock = SpinLock::new((), sync::lock_class!("test.nmi"));
                as_nmi(|| drop(lock.lock(ATOMIC)));
            });
            assert!(message.contains("spinning in NMI for lock \"test.nmi\""), "{message}");
        });
    }

    #[test]
    fn locks_released_out_of_order_are_forgotten_in_any_order() {
        machine(1, |cx| {
            let a = SpinLock::new((), sync::lock_class!("test.order_a"));
            let b = SpinLock::new((), sync::lock_class!("test.order_b"));
            for _ in 0..100 {
                let held_a = a.lock(cx);
                let held_b = b.lock(cx);
                drop(held_a);
                drop(held_b);
            }
            // Nothing is left held: the opposite order within a try is no report either.
            let held_b = b.lock(cx);
            drop(a.try_lock(cx));
            drop(held_b);
        });
    }
}

// --- interrupts, irq_work, calls ---

#[test]
fn irq_work_runs_in_a_hard_interrupt_once_for_each_time_it_was_queued() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static WORK: IrqWork = IrqWork::new(|_| {
        assert!(in_hardirq() && !in_nmi() && !irq::enabled());
        RUNS.fetch_add(1, Ordering::Relaxed);
    });
    machine(1, |cx| {
        {
            let _off = IrqGuard::new(cx);
            assert!(WORK.queue());
            assert!(!WORK.queue(), "pending already");
            assert!(WORK.is_pending());
            assert_eq!(RUNS.load(Ordering::Relaxed), 0, "interrupts are off");
        }
        WORK.sync(cx);
        assert_eq!(RUNS.load(Ordering::Relaxed), 1);
        assert!(WORK.queue(), "and may be queued again");
        WORK.sync(cx);
        assert_eq!(RUNS.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn lazy_irq_work_waits_for_an_interrupt_where_the_tick_runs_and_kicks_itself_elsewhere() {
    in_own_process(|| {
        static TICKS: AtomicBool = AtomicBool::new(false);
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        static WORK: IrqWork = IrqWork::new(|_| {
            RUNS.fetch_add(1, Ordering::Relaxed);
        });
        HOOKS.tick_runs.set(|| TICKS.load(Ordering::Relaxed));
        sync::irq::register(0x43, |_| ());
        machine(1, |cx| {
            WORK.queue_lazy();
            WORK.sync(cx);
            assert_eq!(RUNS.load(Ordering::Relaxed), 1, "no tick, so a self-IPI");
            let ipis = sync::irq::count(cpu(0), vector::IRQ_WORK);
            TICKS.store(true, Ordering::Relaxed);
            WORK.queue_lazy();
            for _ in 0..1_000 {
                irq::relax();
            }
            assert!(WORK.is_pending(), "nothing happens until an interrupt");
            arch::ipi::send_self(0x43);
            WORK.sync(cx);
            assert_eq!(sync::irq::count(cpu(0), vector::IRQ_WORK), ipis, "and no IPI was sent");
        });
    });
}

#[test]
fn irq_work_goes_to_another_cpu() {
    static RAN_ON: AtomicUsize = AtomicUsize::new(usize::MAX);
    static WORK: IrqWork = IrqWork::new(|_| RAN_ON.store(cpu::current().index(), Ordering::Relaxed));
    machine(3, |cx| {
        for target in [2, 0, 1] {
            assert!(WORK.queue_on(cpu(target)));
            WORK.sync(cx);
            assert_eq!(RAN_ON.load(Ordering::Relaxed), target);
        }
    });
}

#[test]
fn irq_work_queued_by_all_cpus_is_never_lost() {
    static EVENTS: AtomicU64 = AtomicU64::new(0);
    static SEEN: AtomicU64 = AtomicU64::new(0);
    static WORK: IrqWork = IrqWork::new(|_| SEEN.store(EVENTS.load(Ordering::Relaxed), Ordering::Relaxed));
    machine(4, |cx| {
        for _ in 0..200 {
            smp::run_on_mask(&cpu::online(), |_| {
                EVENTS.fetch_add(1, Ordering::Relaxed);
                WORK.queue();
            });
            WORK.sync(cx);
            assert_eq!(SEEN.load(Ordering::Relaxed), EVENTS.load(Ordering::Relaxed), "IW-2");
        }
    });
}

#[test]
fn a_call_reaches_exactly_the_cpus_that_were_asked_for() {
    static CALLED: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
    machine(4, |_| {
        fn count(arg: usize) {
            assert!(!irq::enabled());
            CALLED[cpu::current().index()].fetch_add(arg, Ordering::Relaxed);
        }
        let called = || core::array::from_fn::<_, 4, _>(|n| CALLED[n].swap(0, Ordering::Relaxed));
        smp::call_on(cpu(2), count, 5, true);
        assert_eq!(called(), [0, 0, 5, 0]);
        smp::call_on(cpu(0), count, 1, true);
        assert_eq!(called(), [1, 0, 0, 0]);
        let mask: CpuMask = [cpu(1), cpu(3), cpu(9)].into_iter().collect();
        smp::call_mask(&mask, count, 2, true);
        assert_eq!(called(), [0, 2, 0, 2], "CPU 9 is not online");
        smp::call_all(count, 1, true);
        assert_eq!(called(), [1; 4]);
        for _ in 0..100 {
            smp::call_all(count, 1, false);
        }
        smp::call_all(count, 1, true);
        assert_eq!(called(), [101; 4], "calls without waiting are not lost");
        assert_eq!(smp::run_on(cpu(3), || cpu::current().index()), Some(3));
        assert_eq!(smp::run_on(cpu(7), || ()), None);
    });
}

#[test]
fn calls_from_all_to_all_at_once_are_all_answered() {
    // The other CPUs' threads are their `ap_main`: they call as soon as handlers are there.
    static GO: AtomicBool = AtomicBool::new(false);
    static ANSWERS: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: usize = 100;
    const CPUS: usize = 4;
    fn storm() {
        for _ in 0..ROUNDS {
            smp::run_on_mask(&cpu::online(), |_| bump(&ANSWERS, 1));
        }
        DONE.fetch_add(1, Ordering::Relaxed);
    }
    fn other(_: CpuId) {
        wait_until(|| GO.load(Ordering::Acquire));
        irq::enable();
        storm();
    }
    hosted::boot(CPUS, 1, 16 << 20, other, || {
        sync::init();
        irq::enable();
        wait_until(|| cpu::online_count() == CPUS);
        GO.store(true, Ordering::Release);
        storm();
        wait_until(|| DONE.load(Ordering::Relaxed) == CPUS);
        irq::disable();
    })
    .unwrap();
    assert_eq!(ANSWERS.load(Ordering::Relaxed), ROUNDS * CPUS * CPUS);
}

#[test]
fn calling_others_with_interrupts_off_is_refused() {
    in_own_process(|| {
        let stopped = on_machine(2, |cx| {
            let _off = IrqGuard::new(cx);
            smp::call_all(|_| (), 0, true);
        });
        assert!(matches!(stopped, Err(Stopped::Panicked { message, .. }) if message.contains("CF-3")));
    });
}

#[test]
fn ipis_are_counted_by_cpu_and_vector() {
    machine(2, |_| {
        let before = sync::irq::count(cpu(1), vector::RESCHEDULE);
        arch::ipi::send(cpu(1), vector::RESCHEDULE);
        wait_until(|| sync::irq::count(cpu(1), vector::RESCHEDULE) > before);
        assert_eq!(sync::irq::count(cpu(0), vector::RESCHEDULE), 0);
    });
}

#[test]
fn an_exception_goes_to_the_first_handler_that_knows_it() {
    in_own_process(|| {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        sync::irq::register_exception(|_, _| false);
        sync::irq::register_exception(|exception, frame| {
            SEEN.fetch_add(1, Ordering::Relaxed);
            // `ud2` is two bytes long.
            let known = exception.kind == arch::trap::ExceptionKind::InvalidOpcode;
            frame.set_ip(frame.ip() + 2);
            known
        });
        machine(1, |_| {
            // SAFETY: the handler above steps over it.
            unsafe { core::arch::asm!("ud2") };
        });
        assert_eq!(SEEN.load(Ordering::Relaxed), 1);
    });
}

// --- at any instruction: single-step plays the NMI ---

arch::per_cpu! {
    static LOCAL: LocalTryLock<u64> = LocalTryLock::new(0);
}

#[test]
fn a_local_lock_holds_against_an_nmi_at_any_instruction() {
    static INSIDE: AtomicBool = AtomicBool::new(false);
    static GOT: AtomicUsize = AtomicUsize::new(0);
    machine(1, |cx| {
        let boundaries = arch::step::single_step(
            || {
                let mut local = LocalTryLock::this(&LOCAL, cx).expect("nobody else is inside");
                INSIDE.store(true, Ordering::Relaxed);
                let now = *local;
                core::hint::black_box(&now);
                *local = now + 1;
                INSIDE.store(false, Ordering::Relaxed);
            },
            || {
                as_nmi(|| {
                    if let Some(mut local) = LocalTryLock::this(&LOCAL, ATOMIC) {
                        assert!(!INSIDE.load(Ordering::Relaxed), "LT-2");
                        *local += 1;
                        GOT.fetch_add(1, Ordering::Relaxed);
                    }
                });
            },
        );
        let got = GOT.load(Ordering::Relaxed);
        let local = LocalTryLock::this(&LOCAL, cx).expect("free at the end");
        assert_eq!(*local, got as u64 + 1, "no increment is lost");
        assert!(got > 0 && (got as u64) < boundaries, "{got} of {boundaries}");
    });
}

#[test]
fn the_list_takes_an_nmi_at_any_instruction() {
    static LIST: LlistHead = LlistHead::new();
    static FREE: AtomicPtr<LlistNode> = AtomicPtr::new(core::ptr::null_mut());
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    const NODES: usize = 4_000;
    machine(1, |_| {
        let nodes: Vec<LlistNode> = (0..NODES).map(|_| LlistNode::new()).collect();
        let first = nodes.leak().as_mut_ptr();
        // The last node is the stepped code's, the others are for the NMIs.
        FREE.store(first, Ordering::Relaxed);
        LEFT.store(NODES - 1, Ordering::Relaxed);
        let boundaries = arch::step::single_step(
            || {
                // SAFETY: a node of our own, never freed.
                unsafe { LIST.add(first.add(NODES - 1)) };
            },
            || {
                as_nmi(|| {
                    let left = LEFT.load(Ordering::Relaxed);
                    if left > 0 {
                        LEFT.store(left - 1, Ordering::Relaxed);
                        // SAFETY: each node is pushed once, and never freed.
                        unsafe { LIST.add(FREE.load(Ordering::Relaxed).add(left - 1)) };
                    }
                });
            },
        );
        let pushed_by_nmis = NODES - 1 - LEFT.load(Ordering::Relaxed);
        assert_eq!(pushed_by_nmis as u64, boundaries.min(NODES as u64 - 1));
        assert_eq!(LIST.take_all().count(), pushed_by_nmis + 1);
    });
}

#[test]
fn lock_tracking_takes_an_nmi_at_any_instruction() {
    static CLASS: LockClass = LockClass::new("test.stepped");
    static NMI_CLASS: LockClass = LockClass::new("test.stepping");
    static LOCK: SpinLock<u64> = SpinLock::new(0, &CLASS);
    static NMI_LOCK: SpinLock<u64> = SpinLock::new(0, &NMI_CLASS);
    static STEP: AtomicUsize = AtomicUsize::new(0);
    static STRIDE: AtomicUsize = AtomicUsize::new(1);
    static VISITS: AtomicUsize = AtomicUsize::new(0);
    /// An NMI at each boundary would tidy up before the next one is reached; so each is also the first of its run.
    const STRIDES: [usize; 3] = [1, 7, 61];
    machine(1, |cx| {
        let mut rounds = 0;
        for stride in STRIDES {
            for first in 0..stride {
                STRIDE.store(stride, Ordering::Relaxed);
                STEP.store(stride - first, Ordering::Relaxed);
                let _ = arch::step::single_step(
                    || *LOCK.lock_irqsave(cx) += 1,
                    || {
                        if !STEP.fetch_add(1, Ordering::Relaxed).is_multiple_of(STRIDE.load(Ordering::Relaxed)) {
                            return;
                        }
                        as_nmi(|| {
                            // Free or held, and one that is always free: push and pop in the middle of both.
                            drop(LOCK.try_lock(ATOMIC));
                            *NMI_LOCK.try_lock(ATOMIC).expect("no NMI nests") += 1;
                            VISITS.fetch_add(1, Ordering::Relaxed);
                        });
                    },
                );
                rounds += 1;
            }
        }
        assert_eq!(*NMI_LOCK.lock_irqsave(cx), VISITS.load(Ordering::Relaxed) as u64);
        assert_eq!(*LOCK.lock_irqsave(cx), rounds);
    });
}

#[test]
fn irq_work_queued_by_an_nmi_at_any_instruction_of_queueing_runs() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static STEPS: AtomicUsize = AtomicUsize::new(0);
    static OUTER: IrqWork = IrqWork::new(|_| bump(&RUNS, 1));
    static OF_NMI: IrqWork = IrqWork::new(|_| bump(&RUNS, 1000));
    machine(1, |cx| {
        let _ = arch::step::single_step(
            || {
                let _off = IrqGuard::new(cx);
                OUTER.queue();
            },
            || {
                // Not for ever: an interrupt may itself be stepped through.
                if STEPS.fetch_add(1, Ordering::Relaxed) < 2_000 {
                    as_nmi(|| OF_NMI.queue());
                }
            },
        );
        OUTER.sync(cx);
        OF_NMI.sync(cx);
        let runs = RUNS.load(Ordering::Relaxed);
        assert_eq!(runs % 1000, 1);
        assert!(runs > 1000);
    });
}

// --- the log ---

/// What the console got, a line each.
static CONSOLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn console(line: &[u8]) {
    hosted::host_call(|| CONSOLE.lock().unwrap().push(String::from_utf8(line.to_vec()).unwrap()));
}

/// The lines without their times.
fn printed() -> Vec<String> {
    let lines = CONSOLE.lock().unwrap();
    let text = |line: &String| line.split_once("] ").map_or(line.as_str(), |(_, text)| text).trim_end().to_string();
    lines.iter().map(text).collect()
}

#[test]
fn lines_come_out_whole_in_order_and_with_their_time() {
    in_own_process(|| {
        sync::log::init(log::LevelFilter::Info);
        machine(1, |_| {
            log::info!(target: "grange_mm::buddy", "before the console");
            sync::log::set_console(console);
            log::warn!(target: "grange", "two\nlines");
            log::debug!("below the level");
            log::info!(target: "kernel", "{}", "x".repeat(300));
        });
        let (head, tail) = ("x".repeat(224), "x".repeat(76));
        let expected = ["mm: before the console", "warning: two", "lines", &head, &format!("…{tail}")];
        assert_eq!(printed(), expected);
        let mut again = Vec::new();
        sync::log::for_each_line(|line| again.push(String::from_utf8(line.to_vec()).unwrap()));
        assert_eq!(again, *CONSOLE.lock().unwrap(), "dmesg shows the same");
        assert!(again[0].starts_with("[") && again[0].as_bytes()[6] == b'.', "{}", again[0]);
    });
}

#[test]
fn all_cpus_and_their_nmis_log_at_once_and_no_line_is_torn_or_lost() {
    in_own_process(|| {
        static OF_NMI: AtomicUsize = AtomicUsize::new(0);
        static HANDLER: NmiHandler = NmiHandler::new("test", |_| {
            let n = OF_NMI.fetch_add(1, Ordering::Relaxed);
            log::info!(target: "kernel", "nmi {n} {n} {n}");
            true
        });
        const CPUS: usize = 4;
        const EACH: usize = 100;
        sync::log::init(log::LevelFilter::Info);
        sync::log::set_console(console);
        nmi::register(&HANDLER);
        machine(CPUS, |_| {
            smp::call_all(
                |_| {
                    for n in 0..EACH {
                        log::info!(target: "kernel", "cpu {n} {n} {n}");
                        if n.is_multiple_of(10) {
                            arch::ipi::send_nmi(cpu::current());
                        }
                    }
                },
                0,
                true,
            );
            // Whatever is still on its way is printed at the latest by what comes next.
            log::info!(target: "kernel", "end 0 0 0");
            wait_until(|| printed().len() == CPUS * EACH + OF_NMI.load(Ordering::Relaxed) + 1);
        });
        for line in printed() {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(words.len(), 4, "torn: {line}");
            assert!(words[1] == words[2] && words[2] == words[3], "torn: {line}");
        }
        let lines = printed();
        assert_eq!(lines.iter().filter(|line| line.starts_with("cpu ")).count(), CPUS * EACH);
        assert!(OF_NMI.load(Ordering::Relaxed) > 0);
    });
}

#[test]
fn an_nmi_may_log_at_any_instruction_of_logging() {
    in_own_process(|| {
        static STEPS: AtomicUsize = AtomicUsize::new(0);
        static LINES: AtomicUsize = AtomicUsize::new(0);
        sync::log::init(log::LevelFilter::Info);
        sync::log::set_console(console);
        machine(1, |_| {
            let boundaries = arch::step::single_step(
                || log::info!(target: "kernel", "outer 1 1"),
                || {
                    as_nmi(|| {
                        // Every 16th boundary, so that the ring holds out; and not for ever: an
                        // interrupt that prints may itself be stepped through.
                        let step = STEPS.fetch_add(1, Ordering::Relaxed);
                        if step.is_multiple_of(16) && step < 16 * 900 {
                            let n = LINES.fetch_add(1, Ordering::Relaxed);
                            log::info!(target: "kernel", "inner {n} {n}");
                        }
                    });
                },
            );
            assert!(boundaries > 100);
            sync::log::flush();
        });
        let (outer, inner): (Vec<_>, Vec<_>) = printed().into_iter().partition(|line| line == "outer 1 1");
        assert_eq!(outer.len(), 1);
        assert_eq!(inner.len(), LINES.load(Ordering::Relaxed), "none lost, none doubled");
        for line in inner {
            let words: Vec<_> = line.split(' ').collect();
            assert!(words[0] == "inner" && words[1] == words[2], "torn: {line}");
        }
    });
}

#[test]
fn what_the_ring_loses_is_told_in_its_place() {
    in_own_process(|| {
        sync::log::init(log::LevelFilter::Info);
        machine(1, |_| {
            let lines = sync::log::RECORDS + 12;
            for n in 0..lines {
                log::info!(target: "kernel", "line {n}");
            }
            sync::log::set_console(console);
            log::info!(target: "kernel", "after");
            let printed = printed();
            assert_eq!(printed[0], "** 12 log lines lost **");
            assert_eq!(printed[1], "line 12");
            assert_eq!(printed.last().unwrap(), "after");
            assert_eq!(printed.len(), sync::log::RECORDS + 2);
        });
    });
}

#[test]
fn an_emergency_prints_although_the_last_printer_never_came_back() {
    in_own_process(|| {
        static STUCK: AtomicBool = AtomicBool::new(true);
        fn stuck_console(line: &[u8]) {
            console(line);
            if cpu::current().index() == 1 && STUCK.load(Ordering::Relaxed) {
                STUCK.store(false, Ordering::Relaxed);
                // Stopped for good in the middle of printing.
                wait_until(|| false);
            }
        }
        sync::log::init(log::LevelFilter::Info);
        sync::log::set_console(stuck_console);
        machine(2, |_| {
            smp::call_on(cpu(1), |_| log::info!(target: "kernel", "stuck"), 0, false);
            wait_until(|| !STUCK.load(Ordering::Relaxed));
            log::error!(target: "kernel", "not printed yet");
            assert_eq!(printed(), ["stuck"]);
            sync::log::emergency();
            as_nmi(|| log::error!(target: "kernel", "in an NMI"));
        });
        let expected = ["stuck", "", "stuck", "error: not printed yet", "error: in an NMI"];
        assert_eq!(printed(), expected);
    });
}

// --- dynamic per-CPU variables ---

#[test]
fn a_dynamic_variable_has_a_copy_on_each_cpu_and_is_given_back() {
    machine(3, |_| {
        let first = DynPerCpu::new(|cpu| cpu.index() * 10).unwrap();
        let copies = || {
            let mut copies = Vec::new();
            // SAFETY: nobody writes.
            first.for_each_possible(|_, copy| copies.push(unsafe { *copy }));
            copies
        };
        assert_eq!(copies(), [0, 10, 20]);
        let place = first.ptr_on(cpu(1));
        // SAFETY: interrupts off on CPU 1, whose copy it is.
        smp::run_on(cpu(1), || unsafe { *first.this_ptr() += 1 }).unwrap();
        assert_eq!(copies(), [0, 11, 20]);
        drop(first);
        let second = DynPerCpu::new(|_| 0_usize).unwrap();
        assert_eq!(second.ptr_on(cpu(1)), place, "the room was given back");
        let all: Vec<_> = core::iter::from_fn(|| DynPerCpu::new(|_| [0_u64; 256]).ok()).collect();
        let room = arch::percpu::DYNAMIC_SIZE / size_of::<[u64; 256]>();
        assert!(all.len() < room, "one was there before");
        drop(all);
        assert!(DynPerCpu::new(|_| [0_u64; 256]).is_ok(), "full was not for ever");
    });
}
