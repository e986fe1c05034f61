//! The checks of checking builds, each seen firing on the hosted machine.
//!
//! A failed check ends its machine and switches the checks off: each test has a process of its own.
#![cfg(debug_assertions)]

mod machine;

use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::hosted::{Stopped, in_own_process};
use arch::{cpu, irq};
use grange_sched as sched;
use machine::{machine_with, spawn, try_machine_with};
use mm::stack::STACK_SIZE;
use sched::Mutex;
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, SpinLock, lock_class, lock_order};

/// The message of the panic that `body` ends in, on two CPUs.
fn panics(body: impl FnOnce(&mut MaySleep) + Send) -> String {
    match try_machine_with(2, |_| (), body) {
        Err(Stopped::Panicked { message, .. }) => message,
        other => panic!("expected a panic, got {other:?}"),
    }
}

/// The report has all these parts, and names `places` different places of this file.
#[track_caller]
fn says(message: &str, parts: &[&str], places: usize) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
    let file = format!("{}:", Location::caller().file());
    let is_place = |c: char| c == ':' || c.is_ascii_digit();
    let mut found: Vec<_> =
        message.split(&file).skip(1).filter_map(|rest| rest.split(|c| !is_place(c)).next()).collect();
    found.sort_unstable();
    found.dedup();
    assert!(found.len() >= places, "{} places in: {message}", found.len());
}

/// Two mutexes of classes `test.a` and `test.b`.
fn two_mutexes() -> Arc<(Mutex<u32>, Mutex<u32>)> {
    Arc::new((Mutex::new(0, lock_class!("test.a")), Mutex::new(0, lock_class!("test.b"))))
}

#[test]
fn two_mutexes_in_opposite_orders_in_two_threads_are_reported_though_nothing_deadlocked() {
    in_own_process(|| {
        let message = panics(|cx| {
            let both = two_mutexes();
            let theirs = both.clone();
            // One after the other: they cannot deadlock, but two like them could.
            let first = spawn(cx, Some(1), move |cx| {
                let _a = theirs.0.lock(cx);
                sched::sleep_ns(cx, 1_000_000);
                let _b = theirs.1.lock(cx);
            });
            first.join(cx);
            spawn(cx, Some(0), move |cx| {
                let _b = both.1.lock(cx);
                sched::sleep_ns(cx, 1_000_000);
                let _a = both.0.lock(cx);
            })
            .join(cx);
        });
        says(&message, &["lock order: \"test.a\" taken at", "\"test.b\" is held", "the opposite order was seen"], 3);
    });
}

#[test]
fn what_is_taken_inside_a_mutex_that_was_only_tried_for_counts_too() {
    in_own_process(|| {
        let message = panics(|cx| {
            let both = two_mutexes();
            {
                let _a = both.0.try_lock().expect("free");
                let _b = both.1.lock(cx);
            }
            let _b = both.1.lock(cx);
            let _a = both.0.lock(cx);
        });
        says(&message, &["lock order: \"test.a\"", "the opposite order was seen: \"test.b\""], 3);
    });
}

#[test]
fn mutexes_in_one_order_and_without_overlap_are_no_report() {
    in_own_process(|| {
        machine_with(
            2,
            |_| (),
            |cx| {
                let both = two_mutexes();
                for round in 0..20 {
                    let both = both.clone();
                    spawn(cx, Some(round % 2), move |cx| {
                        let a = both.0.lock(cx);
                        let b = both.1.lock(cx);
                        drop(a);
                        sched::yield_now(cx);
                        drop(b);
                        drop(both.1.lock(cx));
                        drop(both.0.lock(cx));
                    })
                    .join(cx);
                }
            },
        );
    });
}

#[test]
fn a_mutex_that_the_thread_has_already_is_reported_instead_of_sleeping_for_ever() {
    in_own_process(|| {
        let message = panics(|cx| {
            let mutex = Mutex::new((), lock_class!("test.self"));
            let _one = mutex.lock(cx);
            let _two = mutex.lock(cx);
        });
        says(&message, &["self-deadlock on lock \"test.self\"", "held by this thread since"], 2);
    });
}

#[test]
fn a_thread_that_ends_with_a_mutex_is_reported() {
    in_own_process(|| {
        let message = panics(|cx| {
            static KEPT: Mutex<()> = Mutex::new((), lock_class!("test.kept"));
            spawn(cx, None, |cx| core::mem::forget(KEPT.lock(cx))).join(cx);
            sched::sleep_ns(cx, 1_000_000_000);
        });
        says(&message, &["test/", "ends and holds the mutex \"test.kept\""], 1);
    });
}

#[test]
fn sleeping_with_interrupts_off_names_where_they_were_switched_off() {
    in_own_process(|| {
        let message = panics(|cx| {
            let _off = IrqGuard::new(ATOMIC);
            sched::sleep_ns(cx, 1);
        });
        says(&message, &["blocking in atomic context", "interrupts were switched off at"], 1);
    });
}

#[test]
fn sleeping_with_preemption_off_names_where_it_was_switched_off() {
    in_own_process(|| {
        let message = panics(|cx| {
            let _off = PreemptGuard::new(ATOMIC);
            sched::yield_now(cx);
        });
        says(&message, &["blocking in atomic context", "preemption was switched off at"], 1);
    });
}

#[test]
fn a_mutex_taken_under_a_spin_lock_is_reported_with_the_spin_lock() {
    in_own_process(|| {
        let message = panics(|cx| {
            let spin = SpinLock::new((), lock_class!("test.spin"));
            let mutex = Mutex::new((), lock_class!("test.mutex"));
            let _held = spin.lock(ATOMIC);
            drop(mutex.lock(cx));
        });
        says(&message, &["blocking in atomic context", "lock \"test.spin\"", "is held"], 2);
    });
}

#[test]
fn a_lock_that_is_held_at_a_switch_is_named() {
    in_own_process(|| {
        let message = panics(|cx| {
            let spin = SpinLock::new((), lock_class!("test.leaked"));
            // The token does not help: the condition of a wait runs between its check and the switch.
            sched::wait::sleep_until_woken(cx, || {
                core::mem::forget(spin.lock(ATOMIC));
                // The count balances, by hand: only the lock itself is left.
                sync::context::count_sub(sync::context::PREEMPT_OFFSET);
                false
            });
        });
        says(&message, &["with a lock held", "lock \"test.leaked\""], 1);
    });
}

#[test]
fn a_switch_with_preemption_off_names_where_it_was_switched_off() {
    in_own_process(|| {
        let message = panics(|cx| {
            sched::wait::sleep_until_woken(cx, || {
                core::mem::forget(PreemptGuard::new(ATOMIC));
                false
            });
        });
        says(&message, &["scheduling while atomic", "preempt_count 0x2", "preemption was switched off at"], 1);
    });
}

#[test]
fn the_locks_of_a_cpu_that_spins_and_of_a_thread_that_sleeps_can_be_told_from_elsewhere() {
    in_own_process(|| {
        machine_with(
            2,
            |_| (),
            |cx| {
                static SPIN: SpinLock<()> = SpinLock::new((), lock_class!("test.spin"));
                static MUTEX: Mutex<()> = Mutex::new((), lock_class!("test.mutex"));
                static HELD: AtomicBool = AtomicBool::new(false);
                static LOOKED: AtomicBool = AtomicBool::new(false);
                let other = spawn(cx, Some(1), |cx| {
                    let mutex = MUTEX.lock(cx);
                    let spin = SPIN.lock(ATOMIC);
                    HELD.store(true, Ordering::Release);
                    while !LOOKED.load(Ordering::Acquire) {
                        irq::relax();
                    }
                    drop(spin);
                    sched::sleep_ns(cx, 20_000_000);
                    drop(mutex);
                });
                while !HELD.load(Ordering::Acquire) {
                    irq::relax();
                }
                let one = cpu::online().iter().nth(1).expect("two CPUs");
                let mut spins = Vec::new();
                lock_order::for_each_held(one, |lock| spins.push(lock.to_string()));
                assert_eq!(spins.len(), 1, "{spins:?}");
                assert!(spins[0].starts_with("\"test.spin\" (0x") && spins[0].contains(file!()), "{spins:?}");
                LOOKED.store(true, Ordering::Release);
                sched::sleep_ns(cx, 5_000_000);
                let mut mutexes = Vec::new();
                other.thread().for_each_lock(|lock| mutexes.push(lock.class.name()));
                assert_eq!(mutexes, ["test.mutex"]);
                lock_order::for_each_held(one, |lock| panic!("{lock}"));
                other.join(cx);
            },
        );
    });
}

/// Uses so many bytes of the stack, counted from `top`.
#[inline(never)]
fn dive(top: usize, bytes: usize) -> usize {
    let frame = std::hint::black_box([1_u8; 512]);
    let here = frame.as_ptr().addr();
    if top - here < bytes { dive(top, bytes) + usize::from(frame[0]) } else { 0 }
}

#[test]
fn a_stack_that_was_nearly_used_up_is_reported_with_its_thread_and_its_deepest_use() {
    in_own_process(|| {
        let message = panics(|cx| {
            let diver = spawn(cx, Some(1), |cx| {
                let here = 0_u8;
                dive(ptr::from_ref(&here).addr(), STACK_SIZE - STACK_SIZE / 16);
                // What was used stays so, long after it is needed no more.
                sched::yield_now(cx);
                sched::sleep_ns(cx, 1_000_000);
            });
            diver.join(cx);
        });
        says(&message, &["stack depth: test/", &format!(" of {STACK_SIZE} bytes of its stack")], 0);
        let used = message.split(" has used ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        let used: usize = used.parse().unwrap();
        assert!((STACK_SIZE - STACK_SIZE / 16..=STACK_SIZE).contains(&used), "{message}");
    });
}

#[test]
fn the_deepest_use_of_a_stack_is_known_and_begins_anew_with_its_next_tenant() {
    in_own_process(|| {
        machine_with(
            1,
            |_| (),
            |cx| {
                let used_after = |cx: &mut MaySleep, bytes: usize| {
                    let thread = spawn(cx, None, move |_| {
                        let here = 0_u8;
                        dive(ptr::from_ref(&here).addr(), bytes);
                        sched::current().stack_used()
                    });
                    thread.join(cx).expect("painted")
                };
                let deep = used_after(cx, STACK_SIZE / 2);
                assert!((STACK_SIZE / 2..STACK_SIZE * 3 / 4).contains(&deep), "{deep}");
                let shallow = used_after(cx, 0);
                assert!(shallow < STACK_SIZE / 2, "{shallow}");
                assert_eq!(sched::current().stack_used(), None, "the boot thread's stack is not ours");
            },
        );
    });
}
