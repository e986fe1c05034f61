//! The mutex: one thread at a time, the most urgent waiter next, nobody overtaken.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::cpu;
use sched::{Mutex, Prio};
use sync::lock_class;

use super::sched::{MS, spawn};
use crate::{ensure, ensure_eq, ktest};

ktest! {
    /// Threads of all CPUs on one mutex: one at a time, and each gets its share.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_mutex_lets_one_thread_in_at_a_time(t: &mut Test) {
        const TURNS: u64 = 2_000;
        let mutex = Arc::new(Mutex::new(0_u64, lock_class!("test.counter")));
        let inside = Arc::new(AtomicU32::new(0));
        let mut threads = Vec::new();
        let count = 2 * cpu::online_count().min(8) as u64;
        for cpu in cpu::online().iter().cycle().take(count as usize) {
            let (mutex, inside) = (mutex.clone(), inside.clone());
            threads.push(spawn(t.cx, "contender", Some(cpu), move |cx| {
                let mut alone = true;
                for turn in 0..TURNS {
                    let mut value = mutex.lock(cx);
                    alone &= inside.fetch_add(1, Ordering::Relaxed) == 0;
                    *value += 1;
                    if turn % 500 == 0 {
                        sched::sleep_ns(cx, MS / 10);
                    }
                    inside.fetch_sub(1, Ordering::Relaxed);
                }
                alone
            })?);
        }
        for thread in threads {
            ensure!(thread.join(t.cx), "two threads in the mutex");
        }
        ensure_eq!(*mutex.lock(t.cx), count * TURNS);
        Ok(())
    }

    /// The most urgent waiter is next, whoever came first; of equals the one that came first.
    #[budget_ms(30_000)]
    fn a_mutex_goes_to_the_most_urgent_waiter_and_among_equals_in_order(t: &mut Test) {
        const COME: [Prio; 6] = [Prio::NORMAL, Prio::BACKGROUND, Prio::HIGH, Prio::NORMAL, Prio::HIGH, Prio::NORMAL];
        let order = Arc::new(Mutex::new(Vec::new(), lock_class!("test.order")));
        let gate = Arc::new(Mutex::new((), lock_class!("test.gate")));
        for _ in 0..10 {
            let held = gate.lock(t.cx);
            let mut threads = Vec::new();
            for (number, prio) in COME.into_iter().enumerate() {
                let (order, gate) = (order.clone(), gate.clone());
                let thread = sched::spawn(t.cx, "waiter", prio, None, move |cx| {
                    let _gate = gate.lock(cx);
                    order.lock(cx).push(number);
                });
                let thread = thread.map_err(|error| crate::__failed!("{error}"))?;
                while thread.thread().state() != sched::State::Sleeping {
                    sched::sleep_ns(t.cx, MS);
                }
                threads.push(thread);
            }
            drop(held);
            threads.into_iter().for_each(|thread| thread.join(t.cx));
            ensure_eq!(order.lock(t.cx)[..], [2, 4, 0, 3, 5, 1]);
            order.lock(t.cx).clear();
        }
        Ok(())
    }

    /// Whoever releases a mutex that somebody waits for does not get it back before them, however fast it asks.
    #[budget_ms(30_000)]
    fn nobody_overtakes_a_waiter_of_a_mutex(t: &mut Test) {
        let gate = Arc::new(Mutex::new(0_u32, lock_class!("test.gate")));
        for round in 1..=100 {
            let held = gate.lock(t.cx);
            let gate_too = gate.clone();
            let waiter = spawn(t.cx, "waiter", None, move |cx| *gate_too.lock(cx) += 1)?;
            while waiter.thread().state() != sched::State::Sleeping {
                sched::sleep_ns(t.cx, MS / 10);
            }
            drop(held);
            // It is the waiter's already, or the waiter has been and gone.
            let had = gate.try_lock().map(|value| *value);
            ensure!(had.is_none_or(|value| value == round), "round {round}: overtaken, {had:?}");
            ensure_eq!(*gate.lock(t.cx), round, "the releaser was before the waiter");
            waiter.join(t.cx);
        }
        Ok(())
    }
}
