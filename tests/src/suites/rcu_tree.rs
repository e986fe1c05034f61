//! Grace periods on trees of every shape: idle, busy and offline CPUs, shared wishes, switches of kind, the wrap of the
//! counters, and what a grace period costs in locks.
//!
//! The shapes come from the machines that the suite runs on, see `xtask/src/test/matrix.rs`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use arch::{CpuId, clock, cpu, irq};
use rcu::{read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sched::{Prio, tick};
use sync::MaySleep;

use crate::toggle::{MS, off, on, others, spawn};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Both ways to wait.
const WAITS: [fn(&mut MaySleep); 2] = [synchronize_rcu, synchronize_rcu_expedited];

/// How many normal and expedited grace periods pass in `f`.
fn passed(f: impl FnOnce()) -> (u64, u64) {
    let before = rcu::stats();
    f();
    let after = rcu::stats();
    (after.gps - before.gps, after.exp_gps - before.exp_gps)
}

/// Sleeps until `cond`, at most 20 s; true if it came.
fn soon(cx: &mut MaySleep, cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS / 4);
    }
    cond()
}

/// Runs `f` on the boot CPU while each of `cpus` is kept busy by a thread.
fn with_busy<T: Send + 'static>(
    cx: &mut MaySleep,
    cpus: impl Iterator<Item = CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<T, Failure> {
    let (stop, running) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let mut spinners = Vec::new();
    for cpu in cpus {
        let (stop, running) = (stop.clone(), running.clone());
        spinners.push(spawn(cx, Some(cpu), move |_| {
            running.fetch_add(1, SeqCst);
            while !stop.load(SeqCst) {
                irq::relax();
            }
        })?);
    }
    let all_run = soon(cx, || running.load(SeqCst) == spinners.len());
    let asker = sched::spawn(cx, "asker", Prio::HIGH, Some(CpuId::BOOT), f);
    let result = asker.map(|asker| asker.join(cx));
    stop.store(true, SeqCst);
    spinners.into_iter().for_each(|spinner| spinner.join(cx));
    ensure!(all_run, "a CPU does not run its thread");
    result.map_err(|error| crate::__failed!("{error}"))
}

/// The children of each node, and how often its lock has been taken.
fn locks() -> Vec<(u64, u64)> {
    let nodes: Vec<_> = rcu::node_stats().collect();
    let children = |node: &rcu::NodeStats| {
        let below = |it: &&rcu::NodeStats| {
            it.level == node.level + 1 && (node.first_cpu..=node.last_cpu).contains(&it.first_cpu)
        };
        match nodes.iter().filter(below).count() {
            0 => node.last_cpu - node.first_cpu + 1,
            children => children,
        }
    };
    nodes.iter().map(|node| (children(node) as u64, node.locked)).collect()
}

ktest! {
    /// A third of the CPUs idles, a third is busy, and two are gone; and then they come back.
    #[budget_ms(60_000)]
    fn grace_periods_pass_with_idle_busy_and_offline_cpus(t: &mut Test) {
        const EACH: u64 = 3;
        let gone: Vec<CpuId> = match others(t.cx) {
            Ok(others) => others.into_iter().rev().take(2).collect(),
            Err(_) => Vec::new(),
        };
        for away in [true, false] {
            if away {
                gone.iter().try_for_each(|&cpu| off(cpu, t.cx))?;
            }
            let busy: Vec<_> = cpu::online().iter().filter(|cpu| cpu.index() % 3 == 1).collect();
            let counts = with_busy(t.cx, busy.into_iter(), |cx| {
                passed(|| (0..EACH).for_each(|_| WAITS.iter().for_each(|wait| wait(cx))))
            });
            if away {
                gone.iter().try_for_each(|&cpu| on(cpu, t.cx))?;
            }
            let (norm, exp) = counts?;
            ensure!(norm >= EACH && exp == EACH, "{norm} normal and {exp} expedited ones");
        }
        Ok(())
    }

    /// Counters start 300 grace periods below the wrap. Cookies and callbacks of both sides work, and old ones stay over.
    #[budget_ms(60_000)]
    fn the_counters_pass_their_wrap(t: &mut Test) {
        let below = || {
            let stats = rcu::stats();
            stats.gp_seq.raw() > u64::MAX / 2 || stats.exp_seq.raw() > u64::MAX / 2
        };
        let (mut old, mut rounds) = (Vec::new(), 0);
        let mut margin = 10;
        while margin > 0 {
            for wait in WAITS {
                let (short, full) = (rcu::get_state(), rcu::get_state_full());
                ensure!(!rcu::poll(short) && !rcu::poll(full), "over before it began: {full:?}");
                wait(t.cx);
                ensure!(rcu::poll(full) && rcu::poll(short), "not over: {full:?}");
                old.push(full);
            }
            rounds += 1;
            ensure!(rounds <= 320, "the counters stand still: {:?}", rcu::stats());
            margin -= usize::from(!below());
        }
        ensure!(old.iter().all(|&cookie| rcu::poll(cookie)), "a cookie from before the wrap is not over any more");
        t.note(format_args!("{rounds} grace periods of each kind"));
        Ok(())
    }

    /// R-11, S3-30: whoever asks while a grace period runs, and be it hundreds, is served by the next one.
    #[tags(race)]
    fn all_wishes_that_come_in_a_grace_period_share_the_next(t: &mut Test) {
        const WAITERS: usize = 200;
        let Some(&far) = others(t.cx)?.last() else { skip!("needs 2 CPUs") };
        let release = Arc::<AtomicBool>::default();
        let theirs = release.clone();
        let held = Arc::<AtomicBool>::default();
        let holds = held.clone();
        let reader = spawn(t.cx, Some(far), move |cx| {
            let _guard = read_lock(cx);
            holds.store(true, SeqCst);
            while !theirs.load(SeqCst) {
                irq::relax();
            }
        })?;
        ensure!(soon(t.cx, || held.load(SeqCst)));
        // The one that the reader holds up.
        let first = rcu::start_poll_full();
        ensure!(soon(t.cx, || rcu::stats().gp_seq.is_running()));
        let (begun, asking) = (rcu::stats().gps, Arc::<AtomicUsize>::default());
        let mut waiters = Vec::new();
        for _ in 0..WAITERS {
            let asking = asking.clone();
            let home = CpuId::BOOT;
            waiters.push(spawn(t.cx, Some(home), move |cx| {
                let cookie = rcu::start_poll_full();
                asking.fetch_add(1, SeqCst);
                synchronize_rcu(cx);
                (rcu::poll(cookie), rcu::stats().gps)
            })?);
        }
        ensure!(soon(t.cx, || asking.load(SeqCst) == WAITERS));
        // Until the last of them waits.
        sched::sleep_ns(t.cx, 20 * MS);
        ensure!(!rcu::poll(first), "the reader does not hold it up");
        release.store(true, SeqCst);
        reader.join(t.cx);
        for waiter in waiters {
            let (over, gps) = waiter.join(t.cx);
            ensure!(over && gps == begun + 2, "{} grace periods instead of two", gps - begun);
        }
        Ok(())
    }

    /// neither the start nor the wait nor the end of a normal grace period interrupts a CPU that idles.
    #[budget_ms(60_000)]
    fn no_idle_cpu_is_woken_for_a_normal_grace_period(t: &mut Test) {
        const GPS: u64 = 40;
        if cpu::online_count() < 4 {
            skip!("needs four CPUs: one asks, two may run the thread");
        }
        let interrupts = || -> Vec<u64> {
            let of_cpu = |cpu| (0..=255).map(|vector| sync::irq::count(cpu, vector)).sum();
            cpu::online().iter().map(of_cpu).collect()
        };
        sched::sleep_ns(t.cx, 50 * MS);
        let asker = sched::spawn(t.cx, "asker", Prio::HIGH, Some(CpuId::BOOT), move |cx| {
            let (before, idle) = (interrupts(), rcu::stats().idle_at_start);
            for _ in 0..GPS {
                synchronize_rcu(cx);
                // Interrupts that are on their way arrive one by one.
                sched::sleep_ns(cx, MS / 2);
            }
            let after = interrupts();
            let counts: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            (counts, rcu::stats().idle_at_start - idle)
        });
        let (counts, idle) = asker.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
        // Were idle CPUs woken, each would have an interrupt for each grace period.
        let woken = counts.iter().filter(|&&count| count >= GPS / 2).count();
        let woken_at_all = counts.iter().filter(|&&count| count > 0).count();
        t.note(format_args!("{GPS} grace periods: {woken_at_all} of {} CPUs had an interrupt", counts.len()));
        ensure!(woken <= 3, "interrupts of each CPU in {GPS} grace periods: {counts:?}");
        ensure!(idle >= GPS * (counts.len() as u64 - 3), "CPUs are not found idle: {idle} in {GPS} grace periods");
        Ok(())
    }

    /// A node's lock is taken once for each of its children, whether CPUs are idle or busy, and a few times for the grace
    /// period itself; leaves once more for each look.
    #[budget_ms(60_000)]
    fn a_grace_period_takes_a_lock_once_for_each_child(t: &mut Test) {
        const GPS: u64 = 5;
        let last = cpu::online().iter().last().map_or(0, CpuId::index);
        for busy in [0, last] {
            let spinners: Vec<_> = cpu::online().iter().filter(|cpu| (1..=busy).contains(&cpu.index())).collect();
            let (before, after, gps, looks) = with_busy(t.cx, spinners.into_iter(), |cx| {
                let (before, stats) = (locks(), rcu::stats());
                (0..GPS).for_each(|_| synchronize_rcu(cx));
                let (after, now) = (locks(), rcu::stats());
                (before, after, now.gps - stats.gps, now.scans - stats.scans)
            })?;
            for (node, ((children, before), (_, after))) in before.into_iter().zip(after).enumerate() {
                // Set-up, clean-up, the wish, and what a test's own thread does when it is preempted while it reads.
                let most = gps * (children + 4) + looks;
                ensure!(
                    after - before <= most,
                    "node {node} of {children} children: {} times in {gps} grace periods with {looks} looks",
                    after - before
                );
            }
            let root = |locks: &[(u64, u64)]| locks[0].1;
            let now = locks();
            t.note(format_args!("{busy} busy: root taken {} times so far, {gps} grace periods, {looks} looks", root(&now)));
        }
        Ok(())
    }

    /// an idle CPU that an interrupt keeps busy has no tick to report by. It is asked to pass through the
    /// scheduler, and has its tick until the grace period is over.
    #[budget_ms(60_000)]
    fn a_cpu_without_tick_gets_it_back_while_a_grace_period_needs_it(t: &mut Test) {
        let Some(&far) = others(t.cx)?.last() else { skip!("needs 2 CPUs") };
        static HOLDS: AtomicBool = AtomicBool::new(false);
        HOLDS.store(false, SeqCst);
        ensure!(soon(t.cx, || !tick::runs_on(far)), "CPU {far} does not idle");
        let before = rcu::stats();
        // Holds the CPU, which stays an idle one, until it has been helped.
        let hold = |kept: usize| {
            HOLDS.store(true, SeqCst);
            let until = clock::now_ns() + 10_000 * MS;
            while rcu::stats().ticks_kept == kept as u64 && clock::now_ns() < until {
                irq::relax();
            }
        };
        sync::smp::call_on(far, hold, before.ticks_kept as usize, false);
        ensure!(soon(t.cx, || HOLDS.load(SeqCst)), "CPU {far} does not answer");
        let begun = clock::now_ns();
        synchronize_rcu(t.cx);
        let took = clock::now_ns() - begun;
        let after = rcu::stats();
        ensure!(after.helped > before.helped && after.ticks_kept > before.ticks_kept, "{after:?}");
        ensure!(took >= 1_000 * MS / 10, "helped after {} ms already", took / MS);
        ensure!(soon(t.cx, || !tick::runs_on(far)), "the tick stays on");
        Ok(())
    }

    /// what is asked for at run time, with wishes inside wishes; normal wins.
    fn wishes_for_a_kind_of_grace_period_nest_and_normal_wins(t: &mut Test) {
        ensure_eq!(passed(|| synchronize_rcu(t.cx)).1, 0);
        let outer = rcu::expedite();
        drop(rcu::expedite());
        ensure_eq!(passed(|| synchronize_rcu(t.cx)).1, 1);
        let normal = rcu::only_normal();
        drop(rcu::only_normal());
        ensure_eq!(passed(|| synchronize_rcu(t.cx)).1, 0);
        ensure_eq!(passed(|| synchronize_rcu_expedited(t.cx)).1, 0);
        drop(outer);
        ensure_eq!(passed(|| synchronize_rcu_expedited(t.cx)).1, 0);
        drop(normal);
        ensure_eq!(passed(|| synchronize_rcu_expedited(t.cx)).1, 1);
        ensure_eq!(passed(|| synchronize_rcu(t.cx)).1, 0);
        Ok(())
    }
}
