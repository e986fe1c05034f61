//! Offloaded and lazy callbacks: each runs once, where and when it may.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use arch::{CpuId, CpuMask, clock, cpu};
use rcu::nocb::{deoffload, offload, offloaded, set_lazy};
use rcu::rcu_barrier;
use sync::{ATOMIC, IrqGuard, MaySleep, Rng};

use crate::callbacks::{Tally, node_locks, on_cpu, soon};
use crate::toggle::{Load, MS, off, on, others, threads};
use crate::{Failure, ensure, ensure_eq, ktest};

/// The last CPU, not offloaded, nobody lazy; skips the test on a machine with one CPU.
fn prepare(cx: &mut MaySleep) -> Result<CpuId, Failure> {
    let cpus = others(cx)?;
    set_lazy(None);
    for cpu in offloaded().iter() {
        back(cpu, cx)?;
    }
    Ok(*cpus.last().expect("there is one"))
}

fn away(cpu: CpuId, cx: &mut MaySleep) -> Result<(), Failure> {
    offload(cpu, cx).map_err(|error| crate::__failed!("CPU {cpu}: {error}"))
}

fn back(cpu: CpuId, cx: &mut MaySleep) -> Result<(), Failure> {
    deoffload(cpu, cx).map_err(|error| crate::__failed!("CPU {cpu}: {error}"))
}

/// Has `cpu` queue `count` callbacks, in bursts with interrupts off and one by one with them on.
fn queue_on(cpu: CpuId, tally: &alloc::sync::Arc<Tally>, count: usize, cx: &mut MaySleep) -> Result<(), Failure> {
    let theirs = tally.clone();
    on_cpu(cx, cpu, move |cx| {
        for i in 0..count {
            let _irqs = (i % 3 == 0).then(|| IrqGuard::new(&*cx));
            theirs.queue();
        }
    })
}

ktest! {
    /// from `offload` to `deoffload` they run on other CPUs, before and after where they were queued.
    #[tags(race)]
    fn callbacks_of_an_offloaded_cpu_run_on_others(t: &mut Test) {
        let cpu = prepare(t.cx)?;
        for round in 0..3 {
            let before = Tally::new();
            queue_on(cpu, &before, 50, t.cx)?;
            away(cpu, t.cx)?;
            let during = Tally::new();
            queue_on(cpu, &during, 300, t.cx)?;
            ensure!(soon(t.cx, || during.waiting() == 0 && before.waiting() == 0), "callbacks do not run by themselves");
            ensure!(!during.ran_on().contains(cpu), "round {round}: callbacks ran on their CPU {cpu}");
            back(cpu, t.cx)?;
            let after = Tally::new();
            queue_on(cpu, &after, 50, t.cx)?;
            ensure!(soon(t.cx, || after.waiting() == 0), "callbacks do not run after deoffload");
            ensure!(after.ran_on() == CpuMask::of(cpu), "callbacks still run on {}", after.ran_on());
        }
        Ok(())
    }

    /// Those that wait when the CPU is switched go with it: in every segment, in the bypass, from a CPU that is offline.
    #[tags(race)]
    fn callbacks_that_wait_go_with_the_switch(t: &mut Test) {
        let cpu = prepare(t.cx)?;
        for round in 0..12 {
            let tally = Tally::new();
            queue_on(cpu, &tally, 100, t.cx)?;
            if round % 3 == 1 {
                sched::sleep_ns(t.cx, 4 * MS);
            }
            away(cpu, t.cx)?;
            queue_on(cpu, &tally, 100, t.cx)?;
            let away_while_offline = round % 4 == 3;
            if away_while_offline {
                off(cpu, t.cx)?;
            }
            back(cpu, t.cx)?;
            if away_while_offline {
                on(cpu, t.cx)?;
            }
            queue_on(cpu, &tally, 10, t.cx)?;
            if round % 2 == 0 {
                rcu_barrier(t.cx);
                ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
            }
            ensure!(soon(t.cx, || tally.waiting() == 0), "round {round}: {} callbacks are lost", tally.waiting());
            ensure!(soon(t.cx, || rcu::stats().callbacks_waiting == 0), "callbacks are counted that nobody has queued");
        }
        Ok(())
    }

    /// a barrier waits for what an offloaded CPU has queued, in the bypass or not.
    fn a_barrier_waits_for_offloaded_callbacks(t: &mut Test) {
        let cpu = prepare(t.cx)?;
        away(cpu, t.cx)?;
        for round in 0..20 {
            let tally = Tally::new();
            queue_on(cpu, &tally, if round % 2 == 0 { 3 } else { 200 }, t.cx)?;
            rcu_barrier(t.cx);
            ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
        }
        back(cpu, t.cx)
    }

    /// With interrupts off, offloaded or not, and however many: no node lock, and it all gets going by itself.
    fn queueing_with_interrupts_off_takes_no_node_lock(t: &mut Test) {
        let cpu = prepare(t.cx)?;
        for offloaded in [false, true] {
            if offloaded {
                away(cpu, t.cx)?;
            }
            let tally = Tally::new();
            // Nothing else happens on the machine meanwhile, so all locks that are counted are the callbacks'.
            sched::stop_machine(t.cx, &CpuMask::of(cpu), |_| {
                let before = node_locks();
                (0..12_000).for_each(|_| tally.queue());
                tally.least_ns.store(node_locks() - before, Relaxed);
            });
            // The counts themselves take none.
            let taken = tally.least_ns.swap(u64::MAX, Relaxed);
            ensure_eq!(taken, 0, "offloaded: {offloaded}");
            ensure!(soon(t.cx, || tally.waiting() == 0), "offloaded {offloaded}: {} wait on", tally.waiting());
        }
        back(cpu, t.cx)
    }

    /// Each runs once and none is lost while its CPU is switched to and fro under load.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn switching_under_load_loses_nothing(t: &mut Test) {
        let cpu = prepare(t.cx)?;
        let tally = Tally::new();
        let mut load = Load::new();
        for _ in 0..2 {
            let theirs = tally.clone();
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                if theirs.waiting() > 2_000 {
                    sched::sleep_ns(cx, MS);
                }
                let _irqs = rng.chance(1, 4).then(|| IrqGuard::new(ATOMIC));
                (0..rng.below(32)).for_each(|_| theirs.queue());
                Ok(())
            })?;
        }
        load.add(t.cx, Rng::new(t.rng.next_u64()), |_, cx| {
            let tally = Tally::new();
            (0..8).for_each(|_| tally.queue());
            rcu_barrier(cx);
            ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
            Ok(())
        })?;
        for _ in 0..15 {
            away(cpu, t.cx)?;
            sched::sleep_ns(t.cx, t.rng.below(4 * MS));
            back(cpu, t.cx)?;
            sched::sleep_ns(t.cx, t.rng.below(4 * MS));
        }
        load.end(t.cx)?;
        rcu_barrier(t.cx);
        t.note(format_args!("{} callbacks", tally.queued.load(Relaxed)));
        ensure_eq!(tally.waiting(), 0, "callbacks are lost");
        Ok(())
    }

    /// The same, with CPUs that go and come, and all of them switched, so that at times there is none left to run them.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn switching_and_hotplug_under_load_lose_nothing(t: &mut Test) {
        prepare(t.cx)?;
        let cpus: Vec<CpuId> = cpu::online().iter().collect();
        let tally = Tally::new();
        let mut load = Load::new();
        for _ in 0..threads() {
            let theirs = tally.clone();
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                if theirs.waiting() > 5_000 {
                    sched::sleep_ns(cx, MS);
                }
                let _irqs = rng.chance(1, 4).then(|| IrqGuard::new(ATOMIC));
                (0..rng.below(64)).for_each(|_| theirs.queue());
                Ok(())
            })?;
        }
        load.add(t.cx, Rng::new(t.rng.next_u64()), |rng, cx| {
            set_lazy(rng.chance(1, 2).then_some(50));
            let tally = Tally::new();
            (0..8).for_each(|_| tally.queue());
            rcu_barrier(cx);
            ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
            sched::sleep_ns(cx, rng.below(4 * MS));
            Ok(())
        })?;
        for _ in 0..200 {
            let cpu = cpus[t.rng.below(cpus.len() as u64) as usize];
            match t.rng.below(4) {
                0 => away(cpu, t.cx)?,
                1 => back(cpu, t.cx)?,
                2 if cpu != CpuId::BOOT && cpu::is_online(cpu) => off(cpu, t.cx)?,
                _ if !cpu::is_online(cpu) => on(cpu, t.cx)?,
                _ => sched::sleep_ns(t.cx, t.rng.below(4 * MS)),
            }
        }
        load.end(t.cx)?;
        prepare(t.cx)?;
        rcu_barrier(t.cx);
        t.note(format_args!("{} callbacks", tally.queued.load(Relaxed)));
        ensure_eq!(tally.waiting(), 0, "callbacks are lost");
        Ok(())
    }

    /// a lazy callback waits its time and no longer; one that hurries takes those before it along.
    #[budget_ms(60_000)]
    fn lazy_callbacks_wait_till_they_are_due_or_somebody_hurries(t: &mut Test) {
        const LAZY_MS: u32 = 300;
        let cpu = prepare(t.cx)?;
        set_lazy(Some(LAZY_MS));
        // On a CPU that is not offloaded nobody is lazy.
        let prompt = Tally::new();
        queue_on(cpu, &prompt, 10, t.cx)?;
        ensure!(soon(t.cx, || prompt.waiting() == 0));
        away(cpu, t.cx)?;
        let lazy = Tally::new();
        queue_on(cpu, &lazy, 10, t.cx)?;
        ensure!(soon(t.cx, || lazy.waiting() == 0), "lazy callbacks never run");
        let least = lazy.least_ns.load(Relaxed);
        ensure!(least >= u64::from(LAZY_MS) * MS, "one ran after {least} ns");
        // Long enough that nothing here can be due by itself before a test's time is over.
        set_lazy(Some(100_000));
        let lazy = Tally::new();
        queue_on(cpu, &lazy, 10, t.cx)?;
        ensure!(rcu::callback_stats().lazy >= 10);
        let hurry = Tally::new();
        let theirs = hurry.clone();
        on_cpu(t.cx, cpu, move |_| theirs.queue_hurry())?;
        ensure!(soon(t.cx, || hurry.waiting() == 0 && lazy.waiting() == 0), "{} lazy callbacks wait", lazy.waiting());
        prepare(t.cx).map(|_| ())
    }

    /// Whatever else ends laziness: a barrier, the high mark, short memory, the CPU's leaving, its deoffloading, and the
    /// switch itself.
    #[budget_ms(60_000)]
    fn nobody_is_lazy_when_it_matters(t: &mut Test) {
        let cpu = prepare(t.cx)?;
        for case in 0..6 {
            set_lazy(Some(100_000));
            away(cpu, t.cx)?;
            let lazy = Tally::new();
            // What comes after the high mark was reached is lazy again.
            let (count, rest) = if case == 1 { (10_001, 200) } else { (20, 0) };
            queue_on(cpu, &lazy, count, t.cx)?;
            match case {
                0 => rcu_barrier(t.cx),
                1 => (),
                2 => {
                    // Called after each effort: for what lies about, asking the shrinkers, waiting for what they free later.
                    let mut efforts = 0;
                    let nobody_is_lazy = || {
                        efforts += 1;
                        (rcu::callback_stats().lazy == 0).then_some(())
                    };
                    ensure!(mm::shrinker::reclaim_until(1, t.cx, nobody_is_lazy).is_some());
                    ensure!(efforts <= 2, "only the last effort got lazy callbacks going");
                }
                3 => {
                    off(cpu, t.cx)?;
                    on(cpu, t.cx)?;
                }
                4 => back(cpu, t.cx)?,
                _ => set_lazy(None),
            }
            ensure!(soon(t.cx, || lazy.waiting() <= rest), "case {case}: {} lazy callbacks wait", lazy.waiting());
            prepare(t.cx)?;
        }
        Ok(())
    }

    /// All CPUs offloaded: there is nobody else to run their callbacks, so they run them.
    fn all_cpus_may_be_offloaded(t: &mut Test) {
        prepare(t.cx)?;
        for cpu in cpu::online().iter() {
            away(cpu, t.cx)?;
        }
        let tally = Tally::new();
        let begin = clock::now_ns();
        for cpu in cpu::online().iter() {
            queue_on(cpu, &tally, 40, t.cx)?;
        }
        rcu_barrier(t.cx);
        ensure_eq!(tally.waiting(), 0);
        t.note(format_args!("{} ms", (clock::now_ns() - begin) / MS));
        prepare(t.cx).map(|_| ())
    }
}
