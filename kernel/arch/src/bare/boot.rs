//! The boot CPU's way from the loader to a working storey.
//!
//! The kernel calls, in this order:
//!
//! 1. [`init_early`]: serial ports, descriptor tables, APIC. From here on an exception is reported.
//! 2. [`topology::discover`](super::topology::discover): CPUs, nodes, memory ranges, clock.
//! 3. with an allocator: [`percpu::init_area`](crate::percpu::init_area) and
//!    [`stacks::map`](super::stacks::map) for each CPU, then [`adopt`] for the boot CPU itself.
//! 4. [`smp::start_all`](crate::smp::start_all).
//!
//! Answers to `start_kernel` in `init/main.c` and `setup_arch` of Linux, as far as arch goes.

use spin::Once;

use super::stacks::{self, Kind};
use super::{apic, clock, console, gdt, idt, irq, paging, pic};
use crate::{CpuId, PhysAddr, VirtAddr, percpu};

/// What the loader found out.
#[derive(Copy, Clone, Debug)]
pub struct BootArgs {
    /// Where physical address 0 is mapped. The map covers all memory and at least 4 GiB.
    pub phys_offset: VirtAddr,
    /// The ACPI root pointer.
    pub rsdp: Option<PhysAddr>,
}

static ARGS: Once<BootArgs> = Once::new();

/// What was given to [`init_early`].
pub(super) fn args() -> &'static BootArgs {
    ARGS.get().expect("init_early comes first")
}

/// Brings the boot CPU up far enough that output, exceptions, NMIs and interrupts work. Interrupts
/// stay off.
///
/// # Panics
/// If it is called twice.
///
/// # Safety
/// Called on the boot CPU, first of all, with interrupts off, on a stack that is not the loader's
/// own; `phys_offset` is where the loader has mapped physical memory. Nothing of the loader is used
/// afterwards but what lies in the map of physical memory.
pub unsafe fn init_early(args: BootArgs) {
    assert!(ARGS.get().is_none(), "init_early is called once");
    irq::disable();
    ARGS.call_once(|| args);
    clock::init();
    paging::init(args.phys_offset);
    console::init();
    // SAFETY: the first and only call, on the boot CPU.
    unsafe { gdt::load_early(stacks::early) };
    idt::load();
    // SAFETY: this CPU's descriptor tables are the kernel's own now, and the caller says that the
    // rest of the loader is not used any more.
    unsafe { paging::drop_identity_map() };
    pic::disable();
    apic::init_boot();
}

/// Moves the boot CPU to its per-CPU area and to its stacks for NMI, double fault and machine check.
/// It stays on the stack that it is on.
///
/// # Panics
/// If [`stacks::map`] has not been called for the boot CPU.
///
/// # Safety
/// Called once, on the boot CPU, with interrupts off, after [`percpu::init_area`] for it; no pointer
/// to a per-CPU variable is kept across the call.
pub unsafe fn adopt() {
    assert!(stacks::is_mapped(CpuId::BOOT), "the boot CPU needs its stacks");
    // SAFETY: what the caller promises is what is asked for.
    unsafe { percpu::load(CpuId::BOOT) };
    // SAFETY: the area is in use now, the stacks are mapped, and only this CPU has this slot.
    unsafe { gdt::load(|kind: Kind| stacks::top(CpuId::BOOT, kind)) };
}
