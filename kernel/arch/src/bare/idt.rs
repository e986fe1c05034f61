//! The interrupt descriptor table: one for all CPUs, filled once, never changed. A CPU that is to die on purpose
//! ([`super::wreck`]) gets a damaged one of its own.
//!
//! Answers to `arch/x86/kernel/idt.c` of Linux.

use spin::Once;
use x86_64::VirtAddr;
use x86_64::structures::idt::{Entry, InterruptDescriptorTable};

use super::{entry, gdt};

static IDT: Once<InterruptDescriptorTable> = Once::new();

/// Loads the table on this CPU, filling it if this is the first.
///
/// Context: boot of each CPU, interrupts off, after its segments are loaded.
pub(super) fn load() {
    IDT.call_once(fill).load();
}

/// A copy of the table, to be damaged.
pub(super) fn copy() -> InterruptDescriptorTable {
    IDT.call_once(fill).clone()
}

fn fill() -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    set(&mut idt.divide_error, 0);
    set(&mut idt.debug, 1);
    set_on_stack(&mut idt.non_maskable_interrupt, 2, gdt::IST_NMI);
    set(&mut idt.breakpoint, 3);
    set(&mut idt.overflow, 4);
    set(&mut idt.bound_range_exceeded, 5);
    set(&mut idt.invalid_opcode, 6);
    set(&mut idt.device_not_available, 7);
    set_on_stack(&mut idt.double_fault, 8, gdt::IST_DOUBLE_FAULT);
    set(&mut idt.invalid_tss, 10);
    set(&mut idt.segment_not_present, 11);
    set(&mut idt.stack_segment_fault, 12);
    set(&mut idt.general_protection_fault, 13);
    set(&mut idt.page_fault, 14);
    set(&mut idt.x87_floating_point, 16);
    set(&mut idt.alignment_check, 17);
    set_on_stack(&mut idt.machine_check, 18, gdt::IST_MACHINE_CHECK);
    set(&mut idt.simd_floating_point, 19);
    set(&mut idt.virtualization, 20);
    set(&mut idt.cp_protection_exception, 21);
    for vector in 32..=255u8 {
        set(&mut idt[vector], vector);
    }
    idt
}

fn set<F>(entry: &mut Entry<F>, vector: u8) {
    // SAFETY: the stub is the code for this vector, and the selector is the code segment that
    // every CPU has (GDT-1).
    unsafe {
        entry.set_handler_addr(VirtAddr::new(entry::stub(vector))).set_code_selector(gdt::KERNEL_CODE);
    }
}

fn set_on_stack<F>(entry: &mut Entry<F>, vector: u8, stack: u16) {
    // SAFETY: as in `set`; every CPU's task-state segment names a stack with this index.
    unsafe {
        entry
            .set_handler_addr(VirtAddr::new(entry::stub(vector)))
            .set_code_selector(gdt::KERNEL_CODE)
            .set_stack_index(stack);
    }
}
