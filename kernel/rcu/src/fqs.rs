//! Waiting for readers, step 4 of a grace period: CPUs report by themselves, and those that do not are seen to.
//!
//! | after, in ticks ([`Pace`]) | what |
//! |---|---|
//! | `first`, then every `next` | a *look* at each CPU that has not reported: it idles, or has idled since the set-up |
//! | `help`, then every `help` | the scheduler is asked to have those pass through it that are still missing, and a CPU without tick gets it back until the grace period is over |
//!
//! A busy CPU reports with its tick, so help is for what a tick does not end: a CPU that spends its time in interrupts and
//! softirqs on top of the idle thread, where no tick runs. Nobody is asked under a node lock: asking takes a run-queue
//! lock (GP-3).
//!
//! Context: the grace-period thread. Answers to Linux kernel/rcu/tree.c (`rcu_gp_fqs_loop`, `force_qs_rnp`,
//! `rcu_watching_snap_recheck`); rows.

// Figures, which decide nothing and are no part of what models check.
use core::sync::atomic::AtomicU64 as Count;

use arch::{CpuMask, clock};
use sched::tick;
use sync::MaySleep;
use sync::atomic::Ordering;

use crate::boost;
use crate::config::Pace;
use crate::cpu::shared;
use crate::eqs::{Look, before_looks, look_at};
use crate::gp;
use crate::mode::Kind;
#[cfg(loom)]
use crate::model::{arch, sched, sync};
use crate::report::report;
use crate::seq::Seq;
use crate::stall;
use crate::tree::tree;

/// Scans for CPUs that have not reported.
pub(crate) static SCANS: Count = Count::new(0);
/// CPUs that were asked to pass through the scheduler.
pub(crate) static HELPED: Count = Count::new(0);
/// CPUs that got their tick back for a grace period.
pub(crate) static TICKS_KEPT: Count = Count::new(0);

/// Waits until the grace period `gp` has nothing left to wait for.
pub(crate) fn wait(cx: &mut MaySleep, gp: Seq) {
    let tick_ns = sched::config::tick_ns();
    let pace = Pace::get();
    let mut help_at = clock::now_ns() + pace.help * tick_ns;
    let mut with_tick = CpuMask::EMPTY;
    let mut ticks = pace.first;
    while !gp::rest(|| gp::wait_until_clear(cx, gp, ticks * tick_ns)) {
        let missing = scan(cx, gp);
        if clock::now_ns() >= help_at {
            help(&missing, &mut with_tick);
            help_at = clock::now_ns() + pace.help * tick_ns;
        }
        boost::look(Kind::Normal, gp::STARTED_NS.load(Ordering::Relaxed));
        stall::check(gp, ticks * tick_ns);
        ticks = pace.next;
    }
    with_tick.iter().for_each(tick::let_stop);
}

/// Looks at the CPUs that have not reported, and reports for those that idle or have idled since set-up. Returns the others.
fn scan(cx: &mut MaySleep, gp: Seq) -> CpuMask {
    SCANS.fetch_add(1, Ordering::Relaxed);
    sync::trace!("rcu.fqs", gp = gp.raw());
    let mut missing = CpuMask::EMPTY;
    for leaf in tree().leaves() {
        let state = leaf.lock(cx);
        before_looks();
        let mut quiet = 0;
        for (cpu, bit) in leaf.cpus(state.qsmask) {
            let shared = shared(cpu);
            let seen = shared.gp_snap.load(Ordering::Relaxed);
            if look_at(shared) == Look::Watched(seen) {
                missing.insert(cpu);
            } else {
                quiet |= bit;
            }
        }
        report(leaf, state, quiet, gp);
        sched::cond_resched(cx);
    }
    missing
}

/// Has the CPUs `missing` pass through the scheduler; those without tick get it, and are noted in `with_tick`.
fn help(missing: &CpuMask, with_tick: &mut CpuMask) {
    for cpu in missing.iter() {
        HELPED.fetch_add(1, Ordering::Relaxed);
        sync::trace!("rcu.fqs_help", cpu = cpu.index());
        if tick::runs_on(cpu) {
            sched::resched_cpu(cpu);
        } else {
            TICKS_KEPT.fetch_add(1, Ordering::Relaxed);
            tick::keep_on(cpu);
            with_tick.insert(cpu);
        }
    }
}
