//! Interrupts and NMIs from CPU to CPU: a pending bit, and a signal to the target's thread.
//!
//! Context: any, NMI included. Lock-free; one system call per target.

use super::{irq, signal};
use crate::cpu::{self, CpuId, CpuMask};

/// Sends interrupt `vector` to `cpu`. Merges with an equal one that was not handled yet.
pub fn send(cpu: CpuId, vector: u8) {
    // If it was marked already, the signal of whoever marked it is on its way, or was noted in REPLAY (HIRQ-1).
    if irq::mark(cpu, vector) {
        signal::send_irq(cpu);
    }
}

/// Sends interrupt `vector` to each CPU of `cpus`.
pub fn send_mask(cpus: &CpuMask, vector: u8) {
    for cpu in cpus.iter() {
        send(cpu, vector);
    }
}

/// Sends interrupt `vector` to all CPUs that are online but this one. Caller pinned.
pub fn send_all_but_self(vector: u8) {
    send_mask(&(cpu::online() - CpuMask::of(cpu::current())), vector);
}

/// Sends interrupt `vector` to this CPU. Caller pinned.
pub fn send_self(vector: u8) {
    send(cpu::current(), vector);
}

/// Sends an NMI to `cpu`, which may be this one.
pub fn send_nmi(cpu: CpuId) {
    signal::send_nmi(cpu);
}

/// Sends an NMI to all CPUs that are online but this one. Caller pinned.
pub fn send_nmi_all_but_self() {
    for cpu in cpu::online() - CpuMask::of(cpu::current()) {
        signal::send_nmi(cpu);
    }
}
