//! Counters of RCU, for the shell, benches and tests. Reading them orders nothing.

use core::sync::atomic::Ordering;

use arch::{CpuId, clock, cpu};
use sync::{ATOMIC, IrqGuard, smp};

use crate::cpu::{own, shared};
use crate::hist::Snapshot;
use crate::seq::Seq;
use crate::tree::tree;
use crate::{barrier, boost, call, exp, fqs, gp, invoke, overload, reader, stall};

/// What has been counted since boot.
#[derive(Copy, Clone, Debug)]
pub struct Stats {
    /// The normal grace period's number.
    pub gp_seq: Seq,
    /// The expedited one's.
    pub exp_seq: Seq,
    /// Normal grace periods.
    pub gps: u64,
    /// Expedited grace periods.
    pub exp_gps: u64,
    /// Interrupts sent for expedited grace periods.
    pub exp_ipis: u64,
    /// Nanoseconds that the grace-period thread has been at work.
    pub active_ns: u64,
    /// Scans for CPUs that had not reported.
    pub scans: u64,
    /// CPUs that were asked to pass through the scheduler for a grace period.
    pub helped: u64,
    /// Those of them that got their tick back for it.
    pub ticks_kept: u64,
    /// CPUs left alone at set-up because they idled.
    pub idle_at_start: u64,
    /// Times a CPU crossed the high-water mark of callbacks.
    pub floods: u64,
    /// Callbacks queued and not run.
    pub callbacks_waiting: usize,
    /// Callbacks run.
    pub callbacks_run: u64,
    /// `rcu_barrier`s that scanned.
    pub barriers: u64,
    /// Readers that ended where they could not report, so that it was put off.
    pub deferred: u64,
    /// Those of them that have been reported since.
    pub deferred_done: u64,
    /// Readers boosted.
    pub boosts: u64,
    /// Stall reports.
    pub stalls: u64,
    /// Times the root's lock was taken.
    pub root_locked: u64,
    /// The most that any one node's lock was taken.
    pub most_locked: u64,
    /// What the grace-period thread does.
    pub phase: gp::Phase,
}

/// Reads all counters, one after another: they may not belong to one instant. Context: any but NMI, after [`crate::init`].
pub fn stats() -> Stats {
    let per_cpu = || cpu::present().iter().map(shared);
    let locked = |node: &crate::tree::Node| node.locked.load(Ordering::Relaxed);
    let (gp_seq, exp_seq) = gp_seqs();
    Stats {
        gp_seq,
        exp_seq,
        gps: gp::COUNT.load(Ordering::Relaxed),
        exp_gps: exp::COUNT.load(Ordering::Relaxed),
        exp_ipis: exp::IPIS.load(Ordering::Relaxed),
        active_ns: gp::ACTIVE_NS.load(Ordering::Relaxed),
        scans: fqs::SCANS.load(Ordering::Relaxed),
        helped: fqs::HELPED.load(Ordering::Relaxed),
        ticks_kept: fqs::TICKS_KEPT.load(Ordering::Relaxed),
        idle_at_start: gp::IDLE_AT_START.load(Ordering::Relaxed),
        floods: overload::callback_stats().floods,
        callbacks_waiting: cpu::present().iter().map(call::waiting_on).sum::<usize>() + call::moves().1,
        callbacks_run: per_cpu().map(|s| s.cb_ran.load(Ordering::Relaxed)).sum(),
        barriers: barrier::COUNT.load(Ordering::Relaxed),
        deferred: reader::DEFERRED.load(Ordering::Relaxed),
        deferred_done: reader::DEFERRED_DONE.load(Ordering::Relaxed),
        boosts: boost::COUNT.load(Ordering::Relaxed),
        stalls: stall::reports().0,
        root_locked: locked(tree().root()),
        most_locked: tree().nodes().iter().map(|node| locked(node)).max().unwrap_or(0),
        phase: gp::Phase::now(),
    }
}

/// The numbers of the normal and of the expedited grace period. Context: any, NMI included.
pub fn gp_seqs() -> (Seq, Seq) {
    (gp::SEQ.current(), exp::SEQ.current())
}

/// How long the running grace period has lasted, in nanoseconds; `None` if none runs. Context: any.
pub fn age_ns() -> Option<u64> {
    let since = gp::STARTED_NS.load(Ordering::Relaxed);
    gp::SEQ.current().is_running().then(|| clock::now_ns().saturating_sub(since))
}

/// The histograms of RCU: what was measured, in which unit, what came of it. Context: any.
pub fn histograms() -> impl Iterator<Item = (&'static str, &'static str, Snapshot)> {
    [
        ("grace periods", "ns", gp::LENGTH_NS.snapshot()),
        ("expedited grace periods", "ns", exp::LENGTH_NS.snapshot()),
        ("callbacks per batch", "", invoke::BATCHES.snapshot()),
        ("waits of callbacks", "ns", overload::callback_waits()),
    ]
    .into_iter()
}

/// How many callbacks of `cpu` are over, wait for the running grace period, for the next one, and for nobody knows what yet
/// . `None` if it is offline.
///
/// Context: task, interrupts on; interrupts that CPU.
pub fn segments(cpu: CpuId) -> Option<[usize; 4]> {
    smp::run_on(cpu, || {
        let irqs = IrqGuard::new(ATOMIC);
        own(&irqs).cbs.borrow().lengths()
    })
}

/// One node of the tree, all of it at one moment.
#[derive(Copy, Clone, Debug)]
pub struct NodeStats {
    /// Level, 0 for the root.
    pub level: usize,
    /// First CPU below it.
    pub first_cpu: usize,
    /// Last CPU below it.
    pub last_cpu: usize,
    /// The grace period it has been told about.
    pub gp_seq: Seq,
    /// Children (leaf: CPUs) that the running grace period waits for.
    pub qsmask: u64,
    /// Children (leaf: CPUs) that the running expedited grace period waits for.
    pub expmask: u64,
    /// Leaf: CPUs that are online.
    pub online: u64,
    /// Times its lock was taken.
    pub locked: u64,
    /// The running grace period waits for readers that were switched out here.
    pub has_blockers: bool,
    /// So does the running expedited one.
    pub has_exp_blockers: bool,
}

/// The nodes of the tree, parents first, each read under its own lock. Context: any but NMI, after [`crate::init`].
pub fn node_stats() -> impl Iterator<Item = NodeStats> {
    tree().nodes().iter().map(|node| {
        // Before this lock, which counts too.
        let locked = node.locked.load(Ordering::Relaxed);
        let state = node.lock(ATOMIC);
        NodeStats {
            level: node.place.level,
            first_cpu: node.place.cpu_lo,
            last_cpu: node.place.cpu_hi,
            gp_seq: node.gp_seq.current(),
            qsmask: state.qsmask,
            expmask: state.expmask,
            online: state.online,
            locked,
            has_blockers: state.blkd.blocks_gp(),
            has_exp_blockers: state.blkd.blocks_exp(),
        }
    })
}

/// One CPU.
#[derive(Copy, Clone, Debug)]
pub struct CpuStats {
    /// Which.
    pub cpu: CpuId,
    /// It takes part in grace periods that start now.
    pub online: bool,
    /// RCU watches it: it is not in an extended quiescent state.
    pub watched: bool,
    /// Callbacks queued here and not run.
    pub callbacks: usize,
    /// Callbacks run here.
    pub callbacks_run: u64,
}

/// All CPUs of the machine, read one after another. Context: any but NMI, after [`crate::init`].
pub fn cpu_stats() -> impl Iterator<Item = CpuStats> {
    cpu::present().iter().map(|cpu| {
        let state = shared(cpu);
        let leaf = tree().leaf_of(cpu);
        CpuStats {
            cpu,
            online: leaf.lock(ATOMIC).online & leaf.bit_of(cpu) != 0,
            watched: !state.watching.load(Ordering::Relaxed).is_multiple_of(2),
            callbacks: call::waiting_on(cpu),
            callbacks_run: state.cb_ran.load(Ordering::Relaxed),
        }
    })
}
