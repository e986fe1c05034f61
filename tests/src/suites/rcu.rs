//! RCU: readers delay grace periods, nothing else does, and every callback runs.
//!
//! Torture is in `rcu_torture`. Waits end by counted work or by generous time.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::{clock, cpu};
use rcu::{CallbackHead, call_rcu, rcu_barrier, read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sync::{ATOMIC, IrqGuard, PreemptGuard};

use crate::together::{MS, Steps, WAITS, reader_between, soon, spawn, two_cpus};
use crate::{ensure, ensure_eq, ktest, skip};

/// A callback that counts itself and frees its box.
#[repr(C)]
struct Counted {
    head: CallbackHead,
    count: Arc<AtomicUsize>,
    /// Times that it queues itself again.
    again: usize,
}

/// # Safety
/// `head` is that of a leaked `Counted`.
unsafe fn count_it(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head is the first field.
    let mut counted = unsafe { Box::from_raw(head.cast::<Counted>()) };
    counted.count.fetch_add(1, Ordering::Relaxed);
    if counted.again > 0 {
        counted.again -= 1;
        // SAFETY: leaked again.
        unsafe { call_rcu(Box::into_raw(counted).cast(), count_it) };
    }
}

/// A callback that will count `1 + again` times.
fn counted(count: &Arc<AtomicUsize>, again: usize) -> *mut CallbackHead {
    Box::into_raw(Box::new(Counted { head: CallbackHead::new(), count: count.clone(), again })).cast()
}

/// Queues a callback that counts once.
fn queue(count: &Arc<AtomicUsize>) {
    // SAFETY: leaked to the callback.
    unsafe { call_rcu(counted(count, 0), count_it) };
}

ktest! {
    /// The promise itself, for a callback, a cookie and both ways to wait.
    #[tags(race)]
    fn a_reader_from_before_the_grace_period_delays_it(t: &mut Test) {
        let (_, there) = two_cpus()?;
        let steps = Steps::new();
        let reader = reader_between(t.cx, there, &steps)?;
        ensure!(soon(t.cx, || steps.is_at(1)));
        let count = Arc::new(AtomicUsize::new(0));
        queue(&count);
        let (cookie, full) = (rcu::start_poll(), rcu::start_poll_full());
        let mut waiters = Vec::new();
        for wait in WAITS {
            let count = count.clone();
            waiters.push(spawn(t.cx, None, move |cx| {
                wait(cx);
                count.fetch_add(1, Ordering::Relaxed);
            })?);
        }
        sched::sleep_ns(t.cx, 200 * MS);
        ensure_eq!(count.load(Ordering::Relaxed), 0);
        ensure!(!rcu::poll(cookie) && !rcu::poll(full));
        steps.reach(2);
        ensure!(soon(t.cx, || count.load(Ordering::Relaxed) == 3 && rcu::poll(cookie) && rcu::poll(full)));
        waiters.into_iter().for_each(|waiter| waiter.join(t.cx));
        ensure!(reader.join(t.cx));
        Ok(())
    }

    /// Callbacks of all CPUs run, half of them queued with interrupts off, and the barrier waits for each.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn callbacks_of_all_cpus_run_and_the_barrier_waits_for_them(t: &mut Test) {
        for _ in 0..3 {
            let count = Arc::new(AtomicUsize::new(0));
            let mut threads = Vec::new();
            for on in cpu::online().iter() {
                let count = count.clone();
                threads.push(spawn(t.cx, Some(on), move |cx| {
                    for i in 0..200 {
                        let _off = (i % 2 == 0).then(|| IrqGuard::new(&*cx));
                        queue(&count);
                    }
                })?);
            }
            let queued = 200 * threads.len();
            threads.into_iter().for_each(|thread| thread.join(t.cx));
            rcu_barrier(t.cx);
            ensure_eq!(count.load(Ordering::Relaxed), queued);
        }
        Ok(())
    }

    /// From a hard interrupt that finds its CPU idle: the tick comes back for the callback.
    fn a_callback_queued_by_an_interrupt_in_idle_runs(t: &mut Test) {
        let (_, there) = two_cpus()?;
        let count = Arc::new(AtomicUsize::new(0));
        sched::sleep_ns(t.cx, 50 * MS);
        let head = counted(&count, 0).expose_provenance();
        let queue_there = |head: usize| {
            let head = core::ptr::with_exposed_provenance_mut(head);
            // SAFETY: leaked to the callback by the test, for one call.
            unsafe { call_rcu(head, count_it) };
        };
        sync::smp::call_on(there, queue_there, head, true);
        ensure!(soon(t.cx, || count.load(Ordering::Relaxed) == 1));
        Ok(())
    }

    /// A callback may queue itself.
    fn a_callback_may_queue_itself_again(t: &mut Test) {
        let count = Arc::new(AtomicUsize::new(0));
        // SAFETY: leaked to the callback.
        unsafe { call_rcu(counted(&count, 4), count_it) };
        ensure!(soon(t.cx, || count.load(Ordering::Relaxed) == 5));
        Ok(())
    }

    /// 50,000 at once from one CPU: above the high-water mark it hurries, and all run.
    #[budget_ms(60_000)]
    fn a_flood_of_callbacks_makes_the_cpu_hurry(t: &mut Test) {
        const FLOOD: usize = 50_000;
        let before = rcu::stats();
        let count = Arc::new(AtomicUsize::new(0));
        let pin = PreemptGuard::new(&*t.cx);
        (0..FLOOD).for_each(|_| queue(&count));
        drop(pin);
        rcu_barrier(t.cx);
        ensure_eq!(count.load(Ordering::Relaxed), FLOOD);
        ensure!(rcu::stats().floods > before.floods, "the flood went by unnoticed");
        Ok(())
    }

    /// Neither kind of grace period interrupts CPUs because they idle.
    #[budget_ms(60_000)]
    fn idle_cpus_are_left_alone(t: &mut Test) {
        let online = cpu::online_count() as u64;
        if online < 8 {
            skip!("needs eight CPUs: one asks, one runs the thread, the others idle");
        }
        let asker = spawn(t.cx, cpu::online().first(), |cx| {
            rcu_barrier(cx);
            sched::sleep_ns(cx, 200 * MS);
            let of_cpu = |cpu| (0..=255).map(|vector| sync::irq::count(cpu, vector)).sum::<u64>();
            let all = || cpu::online().iter().map(of_cpu).sum::<u64>();
            let (before, idle) = (all(), rcu::stats().idle_at_start);
            for _ in 0..50 {
                synchronize_rcu(cx);
                synchronize_rcu_expedited(cx);
            }
            ((all() - before) / 50, (rcu::stats().idle_at_start - idle) / 50)
        })?;
        let (interrupts, idle) = asker.join(t.cx);
        t.note(format_args!("two grace periods: {interrupts} interrupts, {idle} of {online} CPUs idle at the start"));
        // The wake-ups of the grace-period thread and of the waiter, the thread's alarm, and a self-interrupt where the
        // last report may not wake.
        ensure!(interrupts <= 6, "{interrupts} interrupts for two grace periods");
        ensure!(idle + 3 >= online, "{idle} CPUs were found idle");
        Ok(())
    }

    /// The figures of an otherwise idle machine; they are judged by the bench.
    #[budget_ms(60_000)]
    fn grace_periods_of_an_idle_machine_are_timed(t: &mut Test) {
        for (name, wait) in ["synchronize_rcu", "synchronize_rcu_expedited"].into_iter().zip(WAITS) {
            sched::sleep_ns(t.cx, 20 * MS);
            let mut took: Vec<u64> = Vec::new();
            for _ in 0..101 {
                let begin = clock::now_ns();
                wait(t.cx);
                took.push(clock::now_ns() - begin);
            }
            took.sort_unstable();
            t.figure(format_args!(r#"{{"bench":"rcu.{name}","p50_ns":{},"p99_ns":{}}}"#, took[50], took[99]));
        }
        Ok(())
    }

    /// What a pair of `read_lock` and unlock costs, and queueing a callback, loops subtracted. Under `-icount shift=0` a
    /// nanosecond is an instruction; judged by the bench, in a release build.
    fn readers_and_queueing_are_timed(t: &mut Test) {
        const TIMES: u64 = 4_000;
        fn time(mut f: impl FnMut(u64)) -> u64 {
            let _pin = PreemptGuard::new(ATOMIC);
            let begin = clock::now_ns();
            (0..TIMES).for_each(|i| f(core::hint::black_box(i)));
            clock::now_ns() - begin
        }
        let count = Arc::new(AtomicUsize::new(0));
        let heads: Vec<_> = (0..TIMES).map(|_| counted(&count, 0)).collect();
        let empty = time(|_| ());
        let reads = time(|_| drop(read_lock(ATOMIC)));
        // SAFETY: each is leaked to the callback, once.
        let calls = time(|i| unsafe { call_rcu(heads[i as usize], count_it) });
        rcu_barrier(t.cx);
        ensure_eq!(count.load(Ordering::Relaxed) as u64, TIMES);
        for (name, took) in [("read_lock+unlock", reads), ("call_rcu", calls)] {
            let per_100 = took.saturating_sub(empty) * 100 / TIMES;
            t.figure(format_args!(r#"{{"bench":"rcu.{name}","ns_per_100":{per_100}}}"#));
        }
        Ok(())
    }
}
