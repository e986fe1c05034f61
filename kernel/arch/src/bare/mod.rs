//! The bare-metal backend: an x86_64 machine under QEMU.
//!
//! | file | does |
//! |---|---|
//! | `boot` | the boot CPU's way from the loader to here |
//! | `topology` | CPUs, nodes and memory from the ACPI tables |
//! | `smp`, `start_state`, `trampoline` | starting the other CPUs at once |
//! | `gdt`, `idt`, `stacks` | descriptor tables, and the stacks with guard pages |
//! | `entry`, `trap` | from the first instruction of a trap to its handler; nested NMIs |
//! | `reason`, `report`, `backtrace`, `frames`, `probe` | telling what went wrong, safely |
//! | `apic`, `apic_regs`, `ipi`, `pic` | local APIC, inter-processor interrupts |
//! | `clock`, `timescale`, `reference`, `timer` | time and its calibration, timer interrupts |
//! | `paging`, `static_branch` | page tables; a byte of text that changes |
//! | `irq`, `step`, `console`, `exit` | interrupt flag, single-stepping, serial ports, the end |
//! | `wreck` | faults on purpose |
//!
//! The rest of the kernel uses this through the facade in `lib.rs`; only the bootable kernel, which
//! is bare metal by nature, also calls `boot`, `stacks`, `topology`, `report`, `smp` and `wreck` directly.

use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

mod apic;
mod apic_regs;
pub(crate) mod backtrace;
pub mod boot;
pub mod clock;
pub(crate) mod console;
mod entry;
pub(crate) mod exit;
mod frames;
mod gdt;
mod idt;
pub(crate) mod ipi;
pub(crate) mod irq;
pub(crate) mod paging;
mod pic;
pub mod probe;
mod reason;
mod reference;
pub mod report;
pub mod smp;
pub mod stacks;
mod start_state;
pub(crate) mod static_branch;
pub(crate) mod step;
pub mod timer;
mod timescale;
pub mod topology;
mod trampoline;
pub(crate) mod trap;
pub mod wreck;

/// Makes this CPU reach its per-CPU variables at `base` from the template.
///
/// # Safety
/// As for [`crate::percpu::load`], which is the only caller.
pub(crate) unsafe fn set_gs_base(base: usize) {
    // Not canonical in the arithmetic sense only: the difference of two kernel addresses has either
    // all or none of its upper bits set.
    GsBase::write(VirtAddr::new_truncate(base as u64));
}
