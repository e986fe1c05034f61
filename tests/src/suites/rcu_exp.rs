//! Expedited grace periods: whom they interrupt, and how requests share them.

use alloc::vec::Vec;

use arch::cpu;
use rcu::synchronize_rcu_expedited;
use sched::MigrateGuard;

use crate::together::{MS, Steps, Urgent, reader_between, soon, spawn, spin_until, two_cpus};
use crate::{ensure, ensure_eq, ktest, skip};

ktest! {
    /// The funnel: all that ask while one runs are served by the next.
    #[tags(race)]
    fn requests_that_come_during_one_share_the_next(t: &mut Test) {
        let (_, there) = two_cpus()?;
        let _urgent = Urgent::new();
        let steps = Steps::new();
        let reader = reader_between(t.cx, there, &steps)?;
        ensure!(soon(t.cx, || steps.is_at(1)));
        let before = rcu::stats().exp_gps;
        let cpus = cpu::online().iter();
        let asking: Result<Vec<_>, _> = cpus
            .cycle()
            .take(5 * cpu::online_count())
            .map(|on| spawn(t.cx, (on != there).then_some(on), synchronize_rcu_expedited))
            .collect();
        let asking = asking?;
        // All of them have asked when all sleep.
        let asleep = soon(t.cx, || asking.iter().all(|thread| thread.thread().state() == sched::State::Sleeping));
        let meanwhile = rcu::stats().exp_gps - before;
        steps.reach(2);
        ensure!(reader.join(t.cx));
        let requests = asking.len();
        asking.into_iter().for_each(|thread| thread.join(t.cx));
        let took = rcu::stats().exp_gps - before;
        ensure!(asleep && meanwhile == 0, "{meanwhile} passed while a reader read");
        // The one that ran, the next, and one of somebody else.
        ensure!(took <= 3, "{requests} requests took {took} grace periods");
        Ok(())
    }

    /// an interrupt for each CPU that computes, none for one that idles.
    #[tags(race)]
    fn only_cpus_that_do_not_idle_are_interrupted(t: &mut Test) {
        const TIMES: u64 = 20;
        let _stay = MigrateGuard::new(&*t.cx);
        let here = cpu::current();
        let others: Vec<_> = cpu::online().iter().filter(|&cpu| cpu != here).collect();
        if others.is_empty() {
            skip!("needs two CPUs");
        }
        for busy in [0, others.len().div_ceil(2), others.len()] {
            let steps = Steps::new();
            let mut threads = Vec::new();
            for &on in &others[..busy] {
                let theirs = steps.clone();
                threads.push(spawn(t.cx, Some(on), move |_| spin_until(|| theirs.is_at(1)))?);
            }
            sched::sleep_ns(t.cx, 20 * MS);
            let before = rcu::stats();
            (0..TIMES).for_each(|_| synchronize_rcu_expedited(t.cx));
            let after = rcu::stats();
            steps.reach(1);
            ensure!(threads.into_iter().fold(true, |all, thread| all & thread.join(t.cx)));
            let (ipis, gps) = (after.exp_ipis - before.exp_ipis, after.exp_gps - before.exp_gps);
            t.note(format_args!("{busy} of {} other CPUs busy: {ipis} interrupts in {gps}", others.len()));
            ensure_eq!(gps, TIMES);
            ensure!(ipis >= gps * busy as u64, "a busy CPU was not asked");
            // A CPU that the system's own threads use is busy for a moment.
            ensure!(ipis <= gps * busy as u64 + gps / 2, "an idle CPU was interrupted");
        }
        Ok(())
    }
}
