//! Guards, the count that they move, and per-CPU variables, on the hosted machine.
#![cfg(not(any(loom, miri)))]

mod common;

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use arch::{
    cpu,
    hosted::{self, in_own_process},
    irq,
};
use common::{cpu, machine, panics, places, wait_until};
use grange_sync::{
    self as sync, ATOMIC, DynPerCpu, IrqGuard, IrqWork, PreemptGuard, SoftirqGuard, SpinLock,
    context::{self, in_hardirq, in_interrupt, in_softirq, preempt_count, preemptible},
    hooks::HOOKS,
    smp,
};

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
        static PENDING: AtomicBool = AtomicBool::new(false);
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        HOOKS.softirq_pending.set(|| PENDING.load(Ordering::Relaxed));
        HOOKS.irq_exit_softirq.set(|| {
            if PENDING.swap(false, Ordering::Relaxed) {
                context::serving_softirq(|| assert!(in_softirq() && in_interrupt()));
                RUNS.fetch_add(1, Ordering::Relaxed);
            }
        });
        let runs = || RUNS.load(Ordering::Relaxed);
        machine(1, |cx| {
            let outer = SoftirqGuard::new(cx);
            PENDING.store(true, Ordering::Relaxed);
            drop(SoftirqGuard::new(&outer));
            assert_eq!(runs(), 0, "one guard is left");
            drop(outer);
            assert_eq!(runs(), 1);
            drop(SoftirqGuard::new(cx));

            let irqs_off = IrqGuard::new(cx);
            let held_off = SoftirqGuard::new(&irqs_off);
            PENDING.store(true, Ordering::Relaxed);
            drop(held_off);
            assert_eq!((runs(), irq::enabled()), (1, false), "PC-6: not while interrupts are off");
            drop(irqs_off);
            wait_until(|| runs() == 2);
        });
    });
}

#[test]
fn soft_interrupts_that_are_wanted_run_at_the_end_of_the_outermost_guard() {
    in_own_process(|| {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        static RESCHEDULES: AtomicUsize = AtomicUsize::new(0);
        HOOKS.irq_exit_softirq.set(|| {
            assert!(irq::enabled() && preempt_count() == context::PREEMPT_OFFSET);
            RUNS.fetch_add(1, Ordering::Relaxed);
        });
        HOOKS.preempt_schedule.set(|| {
            RESCHEDULES.fetch_add(1, Ordering::Relaxed);
            context::clear_need_resched();
        });
        let seen = || (RUNS.load(Ordering::Relaxed), RESCHEDULES.load(Ordering::Relaxed));
        machine(1, |cx| {
            let outer = PreemptGuard::new(cx);
            context::want_softirqs();
            context::want_softirqs();
            drop(PreemptGuard::new(&outer));
            assert_eq!((seen(), context::need_resched()), ((0, 0), false), "one guard is left");
            drop(outer);
            assert_eq!(seen(), (1, 0), "PC-7: no reschedule is made up");

            let irqs_off = IrqGuard::new(cx);
            context::want_softirqs();
            drop(PreemptGuard::new(&irqs_off));
            assert_eq!(seen(), (1, 0), "interrupts are off");
            drop(irqs_off);
            drop(PreemptGuard::new(cx));
            assert_eq!(seen(), (2, 0));

            for first in [context::want_softirqs, context::set_need_resched] {
                let (runs, reschedules) = seen();
                let guard = PreemptGuard::new(cx);
                first();
                context::set_need_resched();
                context::want_softirqs();
                assert!(context::need_resched());
                drop(guard);
                assert_eq!(seen(), (runs + 1, reschedules + 1), "PC-7: both are done");
            }
            let done = seen();
            drop(PreemptGuard::new(cx));
            assert_eq!(seen(), done, "nothing wanted, nothing called");
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
fn a_preempt_guard_that_ends_once_too_often_is_reported_with_the_places() {
    in_own_process(|| {
        let message = panics(|_| {
            let rightful = PreemptGuard::new(ATOMIC);
            // SAFETY: none: nobody began that level, which is what is to be found.
            let surplus = unsafe { PreemptGuard::adopt() };
            drop(rightful);
            drop(surplus);
        });
        assert!(message.contains("PC-3: unbalanced preempt count: a PreemptGuard made at"), "{message}");
        assert_eq!(places(&message), 2, "where it left zero, and where the guard was made: {message}");
    });
}

#[test]
fn a_softirq_guard_whose_level_somebody_else_ended_is_reported_with_the_places() {
    in_own_process(|| {
        let message = panics(|_| {
            let _outer = PreemptGuard::new(ATOMIC);
            let first = SoftirqGuard::new(ATOMIC);
            let second = SoftirqGuard::new(ATOMIC);
            context::count_sub(context::SOFTIRQ_DISABLE_OFFSET);
            drop(first);
            drop(second);
        });
        assert!(message.contains("PC-3: unbalanced preempt count: a SoftirqGuard made at"), "{message}");
        assert_eq!(places(&message), 2, "where it left zero, and where the guard was made: {message}");
    });
}

#[test]
fn irq_guards_that_end_in_the_wrong_order_are_reported_with_the_places() {
    in_own_process(|| {
        let message = panics(|_| {
            let outer = IrqGuard::new(ATOMIC);
            let inner = IrqGuard::new(ATOMIC);
            drop(outer);
            drop(inner);
        });
        assert!(message.contains("PC-3: interrupts are on at the end of an IrqGuard made at"), "{message}");
        assert_eq!(places(&message), 2, "where they went off, and where the guard was made: {message}");
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
        assert_eq!(places(&message), 1, "where the count left zero: {message}");
    });
}

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
