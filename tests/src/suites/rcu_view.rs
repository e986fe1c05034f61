//! What can be seen of RCU: whom a grace period waits for, callbacks by segment, histograms.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::{clock, cpu, irq};
use rcu::Kind;
use rcu::stall::awaited;
use sched::Prio;
use sync::{ATOMIC, PreemptGuard};

use crate::{ensure, ensure_eq, ktest, skip};

const MS: u64 = 1_000_000;
/// How long a test waits: an emulated machine may be many times slower than it should be.
const PATIENCE_NS: u64 = 20_000 * MS;

ktest! {
    /// A grace period that a CPU holds up has an age, says whom it waits for, and shows the CPU's bit in its leaf.
    fn a_grace_period_shows_its_age_and_whom_it_waits_for(t: &mut Test) {
        let here = cpu::current();
        let Some(there) = cpu::online().iter().find(|&cpu| cpu != here) else { skip!("needs two CPUs") };
        let step = Arc::new(AtomicUsize::new(0));
        let theirs = step.clone();
        let section = sched::spawn(t.cx, "section", Prio::NORMAL, Some(there), move |_| {
            let _off = PreemptGuard::new(ATOMIC);
            theirs.store(1, Ordering::Relaxed);
            let end = clock::now_ns() + PATIENCE_NS;
            while theirs.load(Ordering::Relaxed) == 1 && clock::now_ns() < end {
                irq::relax();
            }
        });
        let section = section.map_err(|error| crate::__failed!("{error}"))?;
        while step.load(Ordering::Relaxed) == 0 {
            sched::sleep_ns(t.cx, MS);
        }
        let cookie = rcu::start_poll();
        let end = clock::now_ns() + PATIENCE_NS;
        let only_there = || {
            let awaited = awaited(Kind::Normal);
            awaited.cpus.contains(there) && awaited.cpus.count() == 1 && awaited.threads().next().is_none()
        };
        while !only_there() && clock::now_ns() < end {
            sched::sleep_ns(t.cx, MS);
        }
        let seen = only_there();
        let younger = rcu::age_ns();
        sched::sleep_ns(t.cx, 2 * MS);
        let older = rcu::age_ns();
        let leaf = rcu::node_stats().filter(|node| (node.first_cpu..=node.last_cpu).contains(&there.index())).last();
        let expedited = awaited(Kind::Expedited).is_empty();
        step.store(2, Ordering::Relaxed);
        section.join(t.cx);
        rcu::cond_synchronize(cookie, t.cx);
        ensure!(seen, "{:?}", awaited(Kind::Normal));
        ensure!(younger.is_some() && older > younger, "{younger:?} {older:?}");
        ensure!(leaf.is_some_and(|leaf| leaf.qsmask == 1 << (there.index() - leaf.first_cpu)), "{leaf:?}");
        ensure!(expedited, "an expedited one waits, too");
        Ok(())
    }

    /// Callbacks are seen where they are: those that were queued just now in one segment or another of their CPU.
    fn callbacks_are_shown_by_segment(t: &mut Test) {
        const COUNT: usize = 50;
        static RAN: AtomicUsize = AtomicUsize::new(0);
        unsafe fn count(_: *mut rcu::CallbackHead) {
            RAN.fetch_add(1, Ordering::Relaxed);
        }
        RAN.store(0, Ordering::Relaxed);
        let heads: Vec<rcu::CallbackHead> = (0..COUNT).map(|_| rcu::CallbackHead::new()).collect();
        let heads = heads.leak();
        let shown = {
            let _pin = PreemptGuard::new(t.cx);
            let _reader = rcu::read_lock(ATOMIC);
            for head in heads.iter_mut() {
                // SAFETY: leaked until the barrier below.
                unsafe { rcu::call_rcu(head, count) };
            }
            rcu::segments(cpu::current())
        };
        rcu::rcu_barrier(t.cx);
        ensure_eq!(RAN.load(Ordering::Relaxed), COUNT);
        // SAFETY: from `leak` above; the barrier has seen all callbacks run.
        drop(unsafe { Vec::from_raw_parts(heads.as_mut_ptr(), COUNT, COUNT) });
        ensure!(shown.is_some_and(|segments| segments[1..].iter().sum::<usize>() >= COUNT), "{shown:?}");
        Ok(())
    }

    /// Each grace period is in the histogram of their lengths.
    fn the_histogram_of_grace_periods_counts_each(t: &mut Test) {
        const ROUNDS: u64 = 5;
        let seen = || rcu::histograms().find(|(what, _, _)| *what == "grace periods").map(|(_, _, seen)| seen.count);
        let before = seen();
        let periods = rcu::stats().gps;
        for _ in 0..ROUNDS {
            rcu::synchronize_rcu(t.cx);
        }
        let grown = rcu::stats().gps - periods;
        ensure!(grown >= ROUNDS);
        ensure!(seen().zip(before).is_some_and(|(now, before)| now - before >= ROUNDS), "{before:?} to {:?}", seen());
        Ok(())
    }
}
