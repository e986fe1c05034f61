//! Counters of RCU, for the shell, benches and tests. Reading them orders nothing.

use core::sync::atomic::Ordering;

use arch::cpu;

use crate::cpu::shared;
use crate::seq::Seq;
use crate::tree::tree;
use crate::{barrier, call, exp, gp, stall};

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
    /// Scans for CPUs that had not reported.
    pub scans: u64,
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
    /// Stall reports.
    pub stalls: u64,
    /// Times the root's lock was taken.
    pub root_locked: u64,
    /// The most that any one node's lock was taken.
    pub most_locked: u64,
    /// What the grace-period thread does.
    pub phase: gp::Phase,
}

/// Reads all counters, one after another: they may not belong to one instant. Context: any, after [`crate::init`].
pub fn stats() -> Stats {
    let per_cpu = || cpu::online().iter().map(shared);
    let locked = |node: &crate::tree::Node| node.locked.load(Ordering::Relaxed);
    Stats {
        gp_seq: gp::SEQ.current(),
        exp_seq: exp::SEQ.current(),
        gps: gp::COUNT.load(Ordering::Relaxed),
        exp_gps: exp::COUNT.load(Ordering::Relaxed),
        exp_ipis: exp::IPIS.load(Ordering::Relaxed),
        scans: gp::SCANS.load(Ordering::Relaxed),
        idle_at_start: gp::IDLE_AT_START.load(Ordering::Relaxed),
        floods: call::FLOODS.load(Ordering::Relaxed),
        callbacks_waiting: per_cpu().map(|s| s.cb_len.load(Ordering::Relaxed)).sum(),
        callbacks_run: per_cpu().map(|s| s.cb_ran.load(Ordering::Relaxed)).sum(),
        barriers: barrier::COUNT.load(Ordering::Relaxed),
        stalls: stall::COUNT.load(Ordering::Relaxed),
        root_locked: locked(tree().root()),
        most_locked: tree().nodes().iter().map(locked).max().unwrap_or(0),
        phase: gp::Phase::now(),
    }
}
