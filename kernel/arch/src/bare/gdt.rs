//! Segments and the task-state segment of each CPU. In long mode the latter only names stacks.
//!
//! - GDT-1: selectors are the same on every CPU, so one interrupt table serves all.
//!
//! Answers to `arch/x86/kernel/cpu/common.c` (`cpu_init`) of Linux.

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use super::stacks::Kind;

/// Index of the NMI stack in the task-state segment.
pub(super) const IST_NMI: u16 = 0;
/// Index of the double-fault stack.
pub(super) const IST_DOUBLE_FAULT: u16 = 1;
/// Index of the machine-check stack.
pub(super) const IST_MACHINE_CHECK: u16 = 2;

/// The kernel's code segment (GDT-1): the first descriptor after the null one.
pub(super) const KERNEL_CODE: SegmentSelector = SegmentSelector::new(1, x86_64::PrivilegeLevel::Ring0);

/// The tables of one CPU. The processor reads them whenever it takes a trap.
pub(super) struct CpuTables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

impl CpuTables {
    pub(super) const fn new() -> Self {
        Self { gdt: GlobalDescriptorTable::new(), tss: TaskStateSegment::new() }
    }
}

/// The boot CPU's tables until it has a per-CPU area.
static mut EARLY: CpuTables = CpuTables::new();

crate::per_cpu! {
    /// The tables of this CPU. Written by [`load`] before the CPU takes interrupts.
    static TABLES: CpuTables = CpuTables::new();
}

/// Loads tables for the boot CPU that need no per-CPU area.
///
/// # Safety
/// Called once, by the boot CPU, before anything else of this storey.
pub(super) unsafe fn load_early(stack_top: impl Fn(Kind) -> u64) {
    // SAFETY: one call on one CPU, so nobody else refers to the static.
    unsafe { load_tables(&raw mut EARLY, stack_top) }
}

/// Loads this CPU's own tables.
///
/// # Safety
/// Called once on each CPU, with interrupts off, when its per-CPU area is in use; the stacks are
/// mapped, unused, and stay.
pub(super) unsafe fn load(stack_top: impl Fn(Kind) -> u64) {
    // SAFETY: this CPU's own copy, before anybody else on this CPU looks at it.
    unsafe { load_tables(TABLES.this_ptr(), stack_top) }
}

/// # Safety
/// `tables` is valid for ever and nobody else refers to it; the stacks are good.
unsafe fn load_tables(tables: *mut CpuTables, stack_top: impl Fn(Kind) -> u64) {
    // SAFETY: the caller vouches for the pointer and for being alone.
    let tables = unsafe { &mut *tables };
    let ist = [(IST_NMI, Kind::Nmi), (IST_DOUBLE_FAULT, Kind::DoubleFault), (IST_MACHINE_CHECK, Kind::MachineCheck)];
    tables.tss = TaskStateSegment::new();
    for (index, kind) in ist {
        tables.tss.interrupt_stack_table[usize::from(index)] = VirtAddr::new(stack_top(kind));
    }
    tables.gdt = GlobalDescriptorTable::new();
    let code = tables.gdt.append(Descriptor::kernel_code_segment());
    let data = tables.gdt.append(Descriptor::kernel_data_segment());
    // SAFETY: the task-state segment lives as long as the table that will point to it.
    let tss = tables.gdt.append(unsafe { Descriptor::tss_segment_unchecked(&raw const tables.tss) });
    debug_assert_eq!(code, KERNEL_CODE, "GDT-1");
    // SAFETY: the table lives for ever, and the selectors loaded next are in it. GS and FS keep
    // their bases, for they are not loaded. The segment is fresh, so it is not marked busy.
    unsafe {
        tables.gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(tss);
    }
}
