//! The machine: CPUs, per-CPU variables, interrupts, NMIs, timers, page tables, context switch.
//!
//! The lowest storey, and the only one (with `boot`) that has `asm!` or asks for the target. There are two backends
//! behind one list of names: **bare** (`target_os = "none"`: an x86_64 machine under QEMU) and **hosted** (an ordinary
//! Linux process in which an OS thread is a CPU and a signal is an interrupt). The modules below *are* the list: each
//! re-exports, item by item, what a backend must have, so that a backend with a hole does not compile; `contract.rs`
//! pins the types.
//!
//! # What a backend promises
//!
//! - `ARCH-1` `irq::*` act on the running CPU. With interrupts off no interrupt handler runs on it and nothing moves the
//!   caller to another CPU; an interrupt that comes meanwhile is held and handled when they are on again. Equal vectors
//!   merge while held. All of `disable`, `enable`, `save`, `restore` are compiler barriers.
//! - `ARCH-2` A handler of [`trap::Handlers`] runs with interrupts off on the interrupted stack (NMI, and exceptions that
//!   need it: possibly another). The end of an interrupt is acknowledged *before* the `irq` handler is called, so that
//!   the handler may switch to another thread, and return much later and on another CPU.
//! - `ARCH-3` An NMI comes whether interrupts are off or not. While the `nmi` handler runs further NMIs are held, merged
//!   into one. The `nmi` handler does not switch stacks.
//! - `ARCH-4` `irq::halt_with_irqs` is called with interrupts off, returns with them on, and cannot miss one: an interrupt
//!   that became pending before the halt ends it. It may return early.
//! - `ARCH-5` `ipi::*` deliver to CPUs that are up; to any other they do nothing. What the sender wrote before is seen by
//!   the handler.
//! - `ARCH-6` `task::switch` keeps the callee-saved registers of the System V ABI and nothing else, and is called with
//!   interrupts off; the other side of it returns with interrupts off.
//! - `ARCH-7` `clock::now_ns` is monotonic on each CPU, callable in any context, and never blocks.
//! - `ARCH-8` `phys_to_virt` is total on RAM and constant-time; `paging::{map, unmap}` change only the mapping asked for and
//!   flush nothing on other CPUs.
//!
//! Contexts: every function may be called in task and interrupt context, and in NMI where its docs say so. None sleeps.
//! Neighbours: nothing below; `sync` installs the handlers, `mm` the frame source.
//!
//! Linux: `arch/x86/`, and `arch/um/` for the idea of the hosted backend.

#![no_std]

#[cfg(target_os = "none")]
pub mod bare;
#[cfg(target_os = "none")]
use bare as imp;
#[cfg(all(test, not(target_os = "none")))]
#[path = "bare/host_tests.rs"]
mod bare;

#[cfg(not(target_os = "none"))]
extern crate std;
#[cfg(not(target_os = "none"))]
pub mod hosted;
#[cfg(not(target_os = "none"))]
use hosted as imp;

pub mod acpi;
pub mod atomic;
mod contract;
pub mod cpu;
pub mod percpu;
pub mod static_branch;
pub mod task;
pub mod trap;
pub mod vector;

pub use cpu::{AtomicCpuMask, CpuId, CpuMask, MAX_CPUS, MAX_NODES, NodeId};
pub use percpu::PerCpu;
pub use x86_64::{PhysAddr, VirtAddr};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The interrupt flag of the running CPU (ARCH-1, ARCH-4).
pub mod irq {
    pub use crate::imp::irq::{Flags, disable, enable, enabled, halt_with_irqs, park, relax, restore, save};
}

/// Interrupts and NMIs from CPU to CPU (ARCH-5). Callable in any context, NMI included.
pub mod ipi {
    pub use crate::imp::ipi::{send, send_all_but_self, send_mask, send_nmi, send_nmi_all_but_self, send_self};
}

/// The timer of the running CPU; it delivers [`vector::TIMER`]. Caller pinned.
pub mod timer {
    pub use crate::imp::timer::{oneshot_ns, start_periodic, stop};
}

/// Time (ARCH-7).
pub mod clock {
    pub use crate::imp::clock::{cycles, now_ns, udelay};
}

/// Running code one instruction at a time.
pub mod step {
    pub use crate::imp::step::single_step;
}

/// The end of the machine.
pub mod exit {
    pub use crate::imp::exit::{announce_death, debug_exit, power_off, reboot};

    /// How a run ended, as the debug-exit device tells QEMU (its status is `2 * value + 1`).
    #[derive(Copy, Clone, Eq, PartialEq, Debug)]
    #[repr(u8)]
    pub enum Verdict {
        /// Everything that was to run ran, and passed: status 33.
        Pass = 0x10,
        /// Something failed: status 35.
        Fail = 0x11,
        /// The kernel panicked: status 37.
        Panic = 0x12,
        /// The kernel noticed that it made no progress: status 39.
        Stall = 0x13,
    }
}

/// The two serial ports: raw bytes, no lock; COM1 for people, COM2 for the tester. Any context.
pub mod console {
    pub use crate::imp::console::{com1_written, read_com1, write_com1, write_com2};
}

/// Return addresses of the callers, by frame pointers; bounded, and safe on a damaged stack. Any context.
pub mod backtrace {
    pub use crate::imp::backtrace::{current, walk, walk_within};
}

/// Reading memory that may not be mapped: `None`, not a fault. Any context.
pub mod probe {
    pub use crate::imp::probe::read;
}

/// Mappings, and the way between physical and virtual addresses (ARCH-8).
pub mod paging {
    pub use crate::imp::paging::{
        VMALLOC_END, VMALLOC_START, flush_all_local, flush_local, map, phys_to_virt, unmap, virt_to_phys,
    };

    bitflags::bitflags! {
        /// What a mapping allows besides reading.
        #[derive(Copy, Clone, Eq, PartialEq, Debug)]
        pub struct Flags: u8 {
            /// Writing.
            const WRITE = 1;
            /// Fetching instructions.
            const EXECUTE = 2;
        }
    }

    /// Why a page was not mapped. Nothing was changed, except that tables may have been added.
    #[derive(Copy, Clone, Eq, PartialEq, Debug)]
    pub enum MapError {
        /// No frame for a page table, or (hosted) the process may have no more mappings.
        NoMemory,
        /// Something is mapped there already: the caller's mistake.
        AlreadyMapped,
        /// The address lies outside the window that may be mapped: the caller's mistake.
        BadAddress,
    }
}

/// What the machine has of memory, and on which node.
pub mod topology {
    pub use crate::acpi::MemAffinity;
    pub use crate::imp::topology::memory_ranges;
}

/// Starting the other CPUs.
pub mod smp {
    pub use crate::imp::smp::start_all;
}
