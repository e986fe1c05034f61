//! Interrupts and NMIs from CPU to CPU.
//!
//! - IPI-1: nothing is sent to a CPU that has not started. One that has and is parked takes what is sent to it by name: an
//!   interrupt to be woken, an NMI to be looked at. The broadcast to all others is for those that are online, and is
//!   used only while every CPU of the machine is, since it reaches parked and unknown CPUs as well.
//!
//! Context of everything here: any, NMI included. Answers to `arch/x86/kernel/apic/ipi.c` of Linux.

use super::apic;
use super::apic_regs::{Delivery, Target};
use super::smp;
use crate::{CpuId, CpuMask, cpu};

/// Raises `vector` on `cpu`. Merges with one that has not been taken yet.
pub fn send(cpu: CpuId, vector: u8) {
    to(cpu, Delivery::Fixed(vector));
}

/// Raises `vector` on each CPU of the mask.
pub fn send_mask(mask: &CpuMask, vector: u8) {
    for cpu in mask.iter() {
        to(cpu, Delivery::Fixed(vector));
    }
}

/// Raises `vector` on every other CPU that is online.
pub fn send_all_but_self(vector: u8) {
    to_all_but_self(Delivery::Fixed(vector));
}

/// Raises `vector` on this CPU, which takes it when its interrupts are on.
pub fn send_self(vector: u8) {
    apic::send(Delivery::Fixed(vector), Target::Myself);
}

/// Sends an NMI to `cpu`, which takes it even with interrupts off.
pub fn send_nmi(cpu: CpuId) {
    to(cpu, Delivery::Nmi);
}

/// Sends an NMI to every other CPU that is online.
pub fn send_nmi_all_but_self() {
    to_all_but_self(Delivery::Nmi);
}

fn to(cpu: CpuId, delivery: Delivery) {
    if cpu::has_started(cpu) {
        apic::send(delivery, Target::Apic(cpu::apic_id(cpu)));
    }
}

fn to_all_but_self(delivery: Delivery) {
    let online = cpu::online();
    if online == cpu::present() && !smp::strays_exist() {
        apic::send(delivery, Target::AllButSelf);
        return;
    }
    let me = cpu::current();
    for cpu in online.iter().filter(|&cpu| cpu != me) {
        to(cpu, delivery);
    }
}
