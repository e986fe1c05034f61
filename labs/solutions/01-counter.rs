//! Lab 1: a counter for each CPU.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::{CpuId, cpu};

arch::per_cpu! {
    /// Events of this CPU. Written by it alone, with one instruction; read by all.
    static EVENTS: u64 = 0;
}

/// An event happened, on the CPU that runs this.
///
/// Context: any, NMI included.
pub fn count() {
    EVENTS.inc();
}

/// How many events happened on `cpu`.
///
/// Context: any.
pub fn of(cpu: CpuId) -> u64 {
    // SAFETY: an aligned word that lives as long as the machine and is only ever changed by whole-word instructions.
    unsafe { AtomicU64::from_ptr(EVENTS.ptr_on(cpu)) }.load(Relaxed)
}

/// How many events happened on all CPUs: those that are offline now have had theirs.
///
/// Context: any.
pub fn total() -> u64 {
    cpu::present().iter().map(of).sum()
}
