//! Faults on purpose that no Rust code can make by itself: for trying out how the kernel dies.
//!
//! Each works from [`super::boot::init_early`] on, on any CPU, and damages that CPU alone.
//!
//! Context: any. Answers to `drivers/misc/lkdtm/bugs.c` of Linux.

use core::arch::asm;

use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::Entry;

use super::{idt, irq};

/// Not an address: bits 47 to 63 differ.
const NON_CANONICAL: u64 = 1 << 47;

/// Executes an instruction that the processor does not know.
pub fn invalid_opcode() -> ! {
    // SAFETY: the exception is what is asked for.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Reads from what is not an address: a general protection fault.
pub fn non_canonical() {
    // SAFETY: faults before it reads anything.
    unsafe { asm!("mov {0}, [{0}]", inout(reg) NON_CANONICAL => _, options(nostack, readonly)) };
}

/// A double fault that is no stack overflow: a general protection fault whose handler is gone.
pub fn double_fault() -> ! {
    irq::disable();
    let mut table = idt::copy();
    table.general_protection_fault = Entry::missing();
    // SAFETY: the table stays: this function does not return. What it lacks is what is asked for.
    unsafe { table.load_unsafe() };
    non_canonical();
    irq::park()
}

/// A triple fault: no exception can be delivered, not even a double fault. The processor shuts down, which resets the
/// machine.
pub fn triple_fault() -> ! {
    // SAFETY: an empty table is what is asked for.
    unsafe { lidt(&DescriptorTablePointer { limit: 0, base: VirtAddr::zero() }) };
    invalid_opcode()
}
