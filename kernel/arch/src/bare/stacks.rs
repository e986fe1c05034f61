//! The stacks of each CPU, each with an unmapped guard page below it.
//!
//! Every CPU has a slot of 256 KiB in one window of the address space, so the place of a stack
//! follows from the CPU's number, and what an address belongs to is plain arithmetic:
//!
//! ```text
//! slot + 0x07000  guard   slot + 0x08000 .. 0x10000  NMI (aligned to its size, ENTRY-1)
//! slot + 0x11000  guard   slot + 0x12000 .. 0x14000  double fault
//! slot + 0x15000  guard   slot + 0x16000 .. 0x18000  machine check
//! slot + 0x1f000  guard   slot + 0x20000 .. 0x28000  main: the first stack of a started CPU
//! ```
//!
//! The boot CPU begins on the loader's stack and on [`early`] stacks in the kernel image, and moves
//! to its slot with [`super::boot::adopt`].
//!
//! - STACK-1: nothing is ever mapped in a guard page, so an overflow faults at its first byte.
//!
//! Answers to `arch/x86/mm/cpu_entry_area.c` of Linux.

use crate::{CpuId, MAX_CPUS, PAGE_SIZE};

/// Size and alignment of an NMI stack, in bytes. NMIs nest on it.
pub const NMI_STACK_SIZE: usize = 32 * 1024;
/// The part of it at the top that the processor pushes to.
pub(super) const NMI_PAD_SIZE: usize = 256;

/// First slot. A part of the address space (entry 506 of the top table) that nothing else uses.
pub const WINDOW: u64 = 0xffff_fd00_0000_0000;
/// Distance from slot to slot.
const SLOT_SIZE: u64 = 0x4_0000;

/// What a stack is for.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Non-maskable interrupts.
    Nmi,
    /// The double fault: mostly a stack overflow.
    DoubleFault,
    /// The machine check.
    MachineCheck,
    /// What a CPU starts on, and idles on later.
    Main,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Nmi, Self::DoubleFault, Self::MachineCheck, Self::Main];

    /// Offset in the slot, and size, in bytes.
    const fn place(self) -> (u64, u64) {
        match self {
            Self::Nmi => (0x08000, NMI_STACK_SIZE as u64),
            Self::DoubleFault => (0x12000, 0x2000),
            Self::MachineCheck => (0x16000, 0x2000),
            Self::Main => (0x20000, 0x8000),
        }
    }

    /// What it is called in a report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nmi => "NMI",
            Self::DoubleFault => "double-fault",
            Self::MachineCheck => "machine-check",
            Self::Main => "main",
        }
    }
}

const _: () = assert!(NMI_STACK_SIZE.is_power_of_two() && WINDOW.is_multiple_of(NMI_STACK_SIZE as u64));

/// Address just above the stack of this kind of `cpu`.
pub const fn top(cpu: CpuId, kind: Kind) -> u64 {
    let (offset, size) = kind.place();
    WINDOW + cpu.index() as u64 * SLOT_SIZE + offset + size
}

/// Pages of one stack, lowest first, as virtual addresses.
fn pages(cpu: CpuId, kind: Kind) -> impl Iterator<Item = u64> {
    let (top, (_, size)) = (top(cpu, kind), kind.place());
    (top - size..top).step_by(PAGE_SIZE)
}

/// A stack that an address belongs to.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Whose it is.
    pub cpu: CpuId,
    /// What it is for.
    pub kind: Kind,
    /// Whether the address is in the guard page below it.
    pub in_guard: bool,
}

/// The stack in the window that `address` belongs to, guard page included.
pub fn place_of(address: u64) -> Option<Place> {
    let offset = address.checked_sub(WINDOW)?;
    let index = usize::try_from(offset / SLOT_SIZE).ok().filter(|&index| index < MAX_CPUS)?;
    let within = offset % SLOT_SIZE;
    Kind::ALL.into_iter().find_map(|kind| {
        let (start, size) = kind.place();
        let guard = start - PAGE_SIZE as u64;
        (guard..start + size).contains(&within).then(|| Place {
            cpu: CpuId::new(index),
            kind,
            in_guard: within < start,
        })
    })
}

#[cfg(target_os = "none")]
pub use mapping::{early, is_mapped, map};

#[cfg(target_os = "none")]
mod mapping {
    use core::mem::offset_of;

    use super::{Kind, NMI_STACK_SIZE, pages};
    use crate::paging::{self, Flags, MapError};
    use crate::{AtomicCpuMask, CpuId, PhysAddr, VirtAddr};

    /// CPUs whose slot is complete. Written by [`map`], read when a CPU is started.
    static MAPPED: AtomicCpuMask = AtomicCpuMask::new();

    /// Maps the four stacks of `cpu` with frames from `frame` (best: of the CPU's own node).
    ///
    /// Context: boot CPU.
    ///
    /// # Errors
    /// [`MapError`]; the slot is then incomplete and `cpu` cannot be started.
    ///
    /// # Safety
    /// Every frame that `frame` yields is free memory, handed over for good.
    pub unsafe fn map(cpu: CpuId, frame: &mut dyn FnMut() -> Option<PhysAddr>) -> Result<(), MapError> {
        for page in Kind::ALL.into_iter().flat_map(|kind| pages(cpu, kind)) {
            let stack = frame().ok_or(MapError::NoMemory)?;
            // SAFETY: the caller gives free frames, and the page lies in a window that only this
            // function maps into; it is not a guard page (STACK-1).
            unsafe { paging::map(VirtAddr::new(page), stack, Flags::WRITE, frame)? };
        }
        MAPPED.set(cpu);
        Ok(())
    }

    /// Whether the slot of `cpu` is complete.
    pub fn is_mapped(cpu: CpuId) -> bool {
        MAPPED.test(cpu)
    }

    #[repr(C, align(32768))]
    struct Early {
        nmi: [u8; NMI_STACK_SIZE],
        double_fault: [u8; 0x2000],
        machine_check: [u8; 0x2000],
    }

    static mut EARLY: Early = Early { nmi: [0; NMI_STACK_SIZE], double_fault: [0; 0x2000], machine_check: [0; 0x2000] };

    /// Top of a stack that the boot CPU uses until it has its slot; it has no main stack here.
    pub fn early(kind: Kind) -> u64 {
        let end = match kind {
            Kind::Nmi => offset_of!(Early, double_fault),
            Kind::DoubleFault => offset_of!(Early, machine_check),
            Kind::MachineCheck | Kind::Main => offset_of!(Early, machine_check) + 0x2000,
        };
        &raw const EARLY as u64 + end as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stack_has_a_guard_page_that_no_stack_covers() {
        for kind in Kind::ALL {
            let (start, size) = kind.place();
            assert!(start.is_multiple_of(PAGE_SIZE as u64) && start + size <= SLOT_SIZE);
            for other in Kind::ALL.into_iter().filter(|&other| other != kind) {
                let (from, len) = other.place();
                let apart = from + len <= start - PAGE_SIZE as u64 || start + size <= from - PAGE_SIZE as u64;
                assert!(apart, "{kind:?} and its guard page overlap {other:?}");
            }
        }
    }

    #[test]
    fn the_base_of_an_nmi_stack_follows_from_any_address_in_it() {
        let top = top(CpuId::new(77), Kind::Nmi);
        assert_eq!((top - 1) & !(NMI_STACK_SIZE as u64 - 1), top - NMI_STACK_SIZE as u64);
    }

    #[test]
    fn an_address_is_traced_to_its_stack() {
        let cpu = CpuId::new(255);
        for kind in Kind::ALL {
            let (top, (_, size)) = (top(cpu, kind), kind.place());
            assert_eq!(place_of(top - 1), Some(Place { cpu, kind, in_guard: false }));
            assert_eq!(place_of(top - size), Some(Place { cpu, kind, in_guard: false }));
            assert_eq!(place_of(top - size - 1), Some(Place { cpu, kind, in_guard: true }));
        }
        assert_eq!(place_of(WINDOW), None);
        assert_eq!(place_of(WINDOW + MAX_CPUS as u64 * SLOT_SIZE + 0x8000), None);
        assert_eq!(place_of(0), None);
    }

    #[test]
    fn a_stack_is_made_of_whole_pages_up_to_its_top() {
        let cpu = CpuId::new(3);
        assert_eq!(pages(cpu, Kind::Nmi).count(), NMI_STACK_SIZE / PAGE_SIZE);
        assert_eq!(pages(cpu, Kind::Main).last(), Some(top(cpu, Kind::Main) - PAGE_SIZE as u64));
    }
}
