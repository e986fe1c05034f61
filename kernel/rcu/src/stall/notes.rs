//! What each CPU writes down for reports: its ticks and softirqs in the grace period that it saw last.
//!
//! Each CPU writes its own notes, in its tick and in its softirq; reports read them as hints.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::CpuId;

use crate::seq::Seq;

struct Notes {
    /// The number that the last tick saw.
    gp: AtomicU64,
    /// Ticks that saw it.
    ticks: AtomicU64,
    /// `SOFTIRQS` at the first of them.
    softirqs_before: AtomicU64,
}

arch::per_cpu! {
    static NOTES: Notes =
        Notes { gp: AtomicU64::new(0), ticks: AtomicU64::new(0), softirqs_before: AtomicU64::new(0) };
}

arch::per_cpu! {
    /// Runs of the RCU softirq.
    static SOFTIRQS: u64 = 0;
}

/// A CPU's doings in a grace period.
#[derive(Copy, Clone)]
pub(super) struct Doings {
    pub(super) ticks: u64,
    pub(super) softirqs: u64,
}

/// Context: hardirq, once a tick.
pub(super) fn tick(gp: Seq) {
    // SAFETY: this CPU's copy; all fields are atomics.
    let notes = unsafe { &*NOTES.this_ptr() };
    if notes.gp.load(Ordering::Relaxed) != gp.raw() {
        notes.gp.store(gp.raw(), Ordering::Relaxed);
        notes.ticks.store(0, Ordering::Relaxed);
        notes.softirqs_before.store(SOFTIRQS.get(), Ordering::Relaxed);
    }
    notes.ticks.store(notes.ticks.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// The RCU softirq runs. Context: softirq.
pub(crate) fn softirq_ran() {
    SOFTIRQS.inc();
}

/// What `cpu` has done in grace period `gp`; nothing, if no tick has seen it.
pub(super) fn of(cpu: CpuId, gp: Seq) -> Doings {
    // SAFETY: areas of present CPUs live for ever; all fields are atomics.
    let notes = unsafe { &*NOTES.ptr_on(cpu) };
    if notes.gp.load(Ordering::Relaxed) != gp.raw() {
        return Doings { ticks: 0, softirqs: 0 };
    }
    // SAFETY: as above; one aligned word, which its CPU changes by single instructions.
    let softirqs = unsafe { SOFTIRQS.ptr_on(cpu).read_volatile() };
    Doings {
        ticks: notes.ticks.load(Ordering::Relaxed),
        softirqs: softirqs.saturating_sub(notes.softirqs_before.load(Ordering::Relaxed)),
    }
}
