//! What one grace period takes, for a table over machine sizes: how often locks are taken, interrupts, and the thread's time.
//!
//! On an idle machine, and with a thread that spins on every CPU but the one that waits. `cargo xtask bench rcu_scale --cpus
//! 1,2,4,8,16,32,64` makes the table.
//!
//! The goals are for the fan-outs that a kernel has if nothing is said: a leaf's lock is taken by its 16 CPUs, by set-up and
//! clean-up, by one or two looks, and by wishes.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch::{cpu, vector};
use rcu::{synchronize_rcu, synchronize_rcu_expedited};
use sched::Prio;
use sync::MaySleep;

use crate::bench::Bencher;
use crate::{Failure, bench};

/// Samples of each figure: a grace period of many emulated CPUs takes long.
const SAMPLES: usize = 11;

/// What was counted up to a moment.
struct Counts {
    /// How often each node's lock was taken, the root first. To ask takes each once.
    locked: Vec<u64>,
    /// Interrupts that one CPU sent to another or itself.
    ipis: u64,
    /// Grace periods of both kinds.
    passed: u64,
    active_ns: u64,
}

impl Counts {
    fn now() -> Counts {
        const IPIS: [u8; 4] = [vector::IRQ_WORK, vector::CALL_FUNCTION, vector::TLB, vector::RESCHEDULE];
        let of_cpu = |cpu| IPIS.iter().map(|&vector| sync::irq::count(cpu, vector)).sum::<u64>();
        let stats = rcu::stats();
        Counts {
            locked: rcu::node_stats().map(|node| node.locked).collect(),
            ipis: cpu::online().iter().map(of_cpu).sum(),
            passed: stats.gps + stats.exp_gps,
            active_ns: stats.active_ns,
        }
    }

    /// How often each node's lock was taken since, but for the asking.
    fn locked_since(&self, before: &Counts) -> impl Iterator<Item = u64> {
        self.locked.iter().zip(&before.locked).map(|(now, then)| now - then - 1)
    }
}

/// How the other CPUs are.
#[derive(Clone, Copy)]
enum Others {
    Idle,
    Busy,
}

/// Takes `figure` of so many waits, for one grace period each.
fn each(
    b: &mut Bencher<'_>,
    others: Others,
    wait: fn(&mut MaySleep),
    figure: fn(&Counts, &Counts) -> u64,
) -> Result<(), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let running = Arc::new(AtomicUsize::new(0));
    let mut spinning = Vec::new();
    let here = cpu::current();
    for cpu in cpu::online().iter().filter(|&cpu| matches!(others, Others::Busy) && cpu != here) {
        let (over, runs) = (stop.clone(), running.clone());
        let spin = move |_: &mut MaySleep| {
            runs.fetch_add(1, Ordering::Relaxed);
            while !over.load(Ordering::Relaxed) {
                arch::irq::relax();
            }
        };
        let thread = sched::spawn(b.cx, "spinner", Prio::NORMAL, Some(cpu), spin);
        spinning.push(thread.map_err(|error| crate::__failed!("{error}"))?);
    }
    // An emulator that runs one CPU at a time may get through all samples before it comes to the others.
    while running.load(Ordering::Relaxed) < spinning.len() {
        sched::sleep_ns(b.cx, 1_000_000);
    }
    // What was asked for before is over, and every CPU is at what it does.
    rcu::rcu_barrier(b.cx);
    wait(b.cx);
    let sample = |_| {
        let before = Counts::now();
        wait(b.cx);
        let after = Counts::now();
        figure(&before, &after).div_ceil((after.passed - before.passed).max(1))
    };
    let samples = (0..SAMPLES).map(sample).collect();
    stop.store(true, Ordering::Relaxed);
    spinning.into_iter().for_each(|thread| thread.join(b.cx));
    b.counts(samples);
    Ok(())
}

fn root_locked(before: &Counts, after: &Counts) -> u64 {
    after.locked_since(before).next().unwrap_or(0)
}

fn most_locked(before: &Counts, after: &Counts) -> u64 {
    after.locked_since(before).max().unwrap_or(0)
}

fn ipis(before: &Counts, after: &Counts) -> u64 {
    after.ipis - before.ipis
}

fn thread_ns(before: &Counts, after: &Counts) -> u64 {
    after.active_ns - before.active_ns
}

bench! {
    /// How often the root's lock is taken, other CPUs idle.
    fn idle_root_locked(b: &mut Bencher) {
        each(b, Others::Idle, synchronize_rcu, root_locked)
    }

    /// The most that any one lock is taken, other CPUs idle.
    #[goal(counted = 8, timed = 8)]
    fn idle_most_locked(b: &mut Bencher) {
        each(b, Others::Idle, synchronize_rcu, most_locked)
    }

    /// Interrupts between CPUs, other CPUs idle: the waiter's and the thread's wake-ups.
    fn idle_ipis(b: &mut Bencher) {
        each(b, Others::Idle, synchronize_rcu, ipis)
    }

    /// Nanoseconds that the thread is at work, other CPUs idle.
    fn idle_thread_ns(b: &mut Bencher) {
        each(b, Others::Idle, synchronize_rcu, thread_ns)
    }

    /// How often the root's lock is taken, other CPUs busy.
    fn busy_root_locked(b: &mut Bencher) {
        each(b, Others::Busy, synchronize_rcu, root_locked)
    }

    /// The most that any one lock is taken, other CPUs busy.
    #[goal(counted = 24, timed = 24)]
    fn busy_most_locked(b: &mut Bencher) {
        each(b, Others::Busy, synchronize_rcu, most_locked)
    }

    /// Interrupts between CPUs, other CPUs busy.
    fn busy_ipis(b: &mut Bencher) {
        each(b, Others::Busy, synchronize_rcu, ipis)
    }

    /// Nanoseconds that the thread is at work, other CPUs busy.
    fn busy_thread_ns(b: &mut Bencher) {
        each(b, Others::Busy, synchronize_rcu, thread_ns)
    }

    /// The most that any one lock is taken by an expedited one, other CPUs busy.
    #[goal(counted = 24, timed = 24)]
    fn expedited_most_locked(b: &mut Bencher) {
        each(b, Others::Busy, synchronize_rcu_expedited, most_locked)
    }

    /// Interrupts between CPUs of an expedited one, other CPUs busy.
    fn expedited_ipis(b: &mut Bencher) {
        each(b, Others::Busy, synchronize_rcu_expedited, ipis)
    }
}
