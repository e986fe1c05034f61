//! Spin locks and the checks behind them, on the hosted machine.
#![cfg(not(any(loom, miri)))]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use arch::{cpu, hosted::in_own_process, irq};
use common::{cpu, machine, panics, places, wait_until};
use grange_sync::{
    self as sync, ATOMIC, LockClass, PreemptGuard, SpinLock,
    context::{in_hardirq, in_nmi, preempt_count},
    nmi::{self, NmiHandler, as_nmi},
    smp,
};

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
    fn nothing_is_taken_inside_an_innermost_lock() {
        in_own_process(|| {
            static CLASS: LockClass = LockClass::new("test.innermost").innermost();
            let message = panics(|cx| {
                let innermost = SpinLock::new((), &CLASS);
                let other = SpinLock::new((), sync::lock_class!("test.other"));
                {
                    let _outer = other.lock(cx);
                    let _inner = innermost.lock(cx);
                }
                let _inner = innermost.lock(cx);
                let _wrong = other.lock(cx);
            });
            ends_in(&message, "\"test.other\" taken at");
            assert!(message.contains("inside \"test.innermost\", which is innermost"), "{message}");
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
