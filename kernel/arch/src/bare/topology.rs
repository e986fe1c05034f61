//! Discovery: what firmware says about CPUs, nodes and memory, told to the rest of the kernel.
//!
//! Context: boot CPU, once, after the log is up and before any allocator. Answers to
//! `arch/x86/kernel/acpi/boot.c` and `arch/x86/mm/numa.c` of Linux.

use spin::Once;

use super::{apic, boot, clock, exit, paging};
use crate::acpi::{self, Machine, MemAffinity, PhysWindow, Tables};
use crate::{CpuId, NodeId, PhysAddr, VirtAddr, cpu};

static MACHINE: Once<Machine> = Once::new();

/// Reads the ACPI tables and fills in what [`crate::cpu`] tells: CPUs, nodes, distances. The boot
/// CPU is CPU 0 and online. Then starts the calibration of the clock.
///
/// Never fails: damaged or absent tables cost a line in the log, and the machine is taken to have
/// one CPU on one node if nothing better is known.
pub fn discover() {
    let tables = open_tables();
    let fadt = tables.as_ref().and_then(|tables| match tables.find(b"FACP") {
        Ok(fadt) => fadt,
        Err(damage) => {
            log::warn!("acpi: FACP left out: {damage}");
            None
        }
    });
    if let Some(port) = fadt.and_then(acpi::pm1a_control_port) {
        exit::set_power_port(port);
    }
    let (machine, _) = acpi::read_machine(tables.as_ref(), apic::id(), apic::max_id());
    let machine = MACHINE.call_once(|| machine);
    tell(machine);
    clock::begin_calibration(fadt.and_then(acpi::pm_timer_port));
}

/// Which physical memory is on which node, in no particular order; one range that covers everything
/// if firmware does not tell. Empty before [`discover`].
pub fn memory_ranges() -> &'static [MemAffinity] {
    MACHINE.get().map_or(&[], |machine| machine.memory.as_slice())
}

fn open_tables() -> Option<Tables> {
    let Some(rsdp) = boot::args().rsdp else {
        log::warn!("acpi: the loader found no root pointer");
        return None;
    };
    let base = paging::phys_to_virt(PhysAddr::zero());
    // SAFETY: the physical map starts there, and a page is looked at only where it is mapped. The
    // loader keeps firmware's memory out of what is handed to allocators, so nobody writes to it.
    let window = unsafe { PhysWindow::new(base.as_ptr(), is_mapped) };
    match Tables::open(window, rsdp.as_u64()) {
        Ok(tables) => Some(tables),
        Err(damage) => {
            log::warn!("acpi: no tables: {damage}");
            None
        }
    }
}

fn is_mapped(phys: u64) -> bool {
    let Ok(phys) = PhysAddr::try_new(phys) else { return false };
    let virt = paging::phys_to_virt(PhysAddr::zero()).as_u64().checked_add(phys.as_u64());
    virt.and_then(|virt| VirtAddr::try_new(virt).ok()).is_some_and(|virt| paging::translate(virt).is_some())
}

fn tell(machine: &Machine) {
    for (index, entry) in machine.cpus.iter().enumerate() {
        cpu::describe(CpuId::new(index), entry.apic_id, entry.node);
    }
    for from in 0..machine.nodes {
        cpu::add_node(NodeId::new(from));
        for to in 0..machine.nodes {
            cpu::set_distance(NodeId::new(from), NodeId::new(to), machine.distance[from][to]);
        }
    }
    cpu::set_online(CpuId::BOOT, true);
}
