//! The local APIC: enabling it, end of interrupt, sending commands.
//!
//! Two ways to its registers: a page of memory (xAPIC), or model-specific registers where CPUID
//! names x2APIC. CPUID alone decides; the emulator ignores an attempt to switch x2APIC on, silently.
//! Encodings are in `apic_regs`; x2APIC is covered by their host tests only, since the emulator that
//! CI runs has none.
//!
//! - APIC-1: the two halves of an xAPIC command are written with interrupts off. An NMI or debug
//!   exception that hits between them leaves the high half as it was ([`keeping_command`]).
//! - APIC-2: the way to the registers is chosen by the boot CPU before any other runs, and is the
//!   same on all of them.
//!
//! Answers to `arch/x86/kernel/apic/` of Linux.

use core::hint::spin_loop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId as CpuidReader;
use volatile::VolatilePtr;
use x86_64::registers::model_specific::Msr;

use super::apic_regs::{self, Delivery, LVT_MASKED, LVT_NMI, Reg, SEND_PENDING, SOFTWARE_ENABLE, Target};
use super::{irq, paging};
use crate::{PhysAddr, vector};

const APIC_BASE: u32 = 0x1b;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Highest id that an xAPIC can be addressed by.
const MAX_XAPIC_ID: u32 = 0xfe;
/// Turns to wait for an earlier command to leave the APIC. It takes a few at most.
const PATIENCE: u32 = 1_000_000;

/// Virtual address of the register page, or one of the two below. Written once by [`init_boot`].
static ACCESS: AtomicU64 = AtomicU64::new(NOT_CHOSEN);
const NOT_CHOSEN: u64 = 0;
const BY_MSR: u64 = 1;

/// Chooses how registers are reached and enables the boot CPU's APIC.
///
/// Context: boot CPU, once, interrupts off.
pub(super) fn init_boot() {
    let access = if has_x2apic() {
        BY_MSR
    } else {
        // SAFETY: every CPU in long mode has this register.
        let base = unsafe { Msr::new(APIC_BASE).read() } & BASE_ADDRESS;
        paging::phys_to_virt(PhysAddr::new(base)).as_u64()
    };
    ACCESS.store(access, Ordering::Relaxed);
    enable();
}

/// Enables the APIC of this CPU: all local sources masked but LINT1, the machine's NMI button, which
/// is wired to every CPU (QEMU's `inject-nmi`).
///
/// Context: boot of each CPU, interrupts off.
pub(super) fn enable() {
    let mut base = Msr::new(APIC_BASE);
    let mode = if by_msr() { BASE_ENABLED | BASE_X2APIC } else { BASE_ENABLED };
    // SAFETY: switches this CPU's APIC on in the mode that CPUID says it has, where it is.
    unsafe {
        let old = base.read();
        base.write(old | mode);
    }
    for entry in [Reg::LvtTimer, Reg::LvtLint0, Reg::LvtError] {
        write(entry, LVT_MASKED);
    }
    write(Reg::TaskPriority, 0);
    write(Reg::Spurious, SOFTWARE_ENABLE | u32::from(vector::SPURIOUS));
    // Last: an APIC that software has not enabled keeps every local source masked.
    write(Reg::LvtLint1, LVT_NMI);
}

fn has_x2apic() -> bool {
    CpuidReader::new().get_feature_info().is_some_and(|features| features.has_x2apic())
}

fn by_msr() -> bool {
    ACCESS.load(Ordering::Relaxed) == BY_MSR
}

/// Id of this CPU's APIC.
pub(super) fn id() -> u32 {
    let register = read(Reg::Id);
    if by_msr() { register } else { apic_regs::xapic_id(register) }
}

/// Highest id that can be addressed.
pub(super) fn max_id() -> u32 {
    if by_msr() { u32::MAX - 1 } else { MAX_XAPIC_ID }
}

/// Reads a register of this CPU's APIC.
pub(super) fn read(register: Reg) -> u32 {
    match ACCESS.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on, so the register exists.
        BY_MSR => unsafe { Msr::new(register.msr()).read() as u32 },
        page => memory(page, register).read(),
    }
}

/// Writes a register of this CPU's APIC.
pub(super) fn write(register: Reg, value: u32) {
    match ACCESS.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on, so the register exists; it acts on interrupts, not on memory.
        BY_MSR => unsafe { Msr::new(register.msr()).write(u64::from(value)) },
        page => memory(page, register).write(value),
    }
}

fn memory(page: u64, register: Reg) -> VolatilePtr<'static, u32> {
    debug_assert!(page != NOT_CHOSEN, "APIC-2: used before init_boot");
    let address = (page + register as u64) as *mut u32;
    let address = NonNull::new(address).expect("APIC-2: the register page is not at address 0");
    // SAFETY: the physical map covers the register page, where each CPU sees its own APIC; its
    // registers are four bytes wide, and reading one has no effect.
    unsafe { VolatilePtr::new(address) }
}

/// Tells the APIC that the interrupt is being handled and the next may come.
#[inline]
pub(super) fn end_of_interrupt() {
    write(Reg::Eoi, 0);
}

/// Sends an inter-processor interrupt.
///
/// Context: any.
pub(super) fn send(delivery: Delivery, target: Target) {
    if by_msr() {
        // In this mode the register write is not ordered behind earlier stores by itself; what the
        // sender wrote before must be seen by the handler (ARCH-5). Pairs with the interrupt.
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: x2APIC mode is on; one write sends the command.
        unsafe {
            core::arch::asm!("lfence", options(nostack, preserves_flags));
            match (delivery, target) {
                (Delivery::Fixed(vector), Target::Myself) => {
                    Msr::new(Reg::SelfIpi.msr()).write(u64::from(vector));
                }
                _ => Msr::new(Reg::Command.msr()).write(apic_regs::x2apic_command(delivery, target)),
            }
        }
        return;
    }
    let flags = irq::save();
    wait_until_sent();
    if let Target::Apic(_) = target {
        write(Reg::CommandHigh, apic_regs::command_high(target));
    }
    // A store to uncached memory is ordered behind the stores before it.
    write(Reg::Command, apic_regs::command_low(delivery, target));
    irq::restore(flags);
}

fn wait_until_sent() {
    for _ in 0..PATIENCE {
        if read(Reg::Command) & SEND_PENDING == 0 {
            return;
        }
        spin_loop();
    }
}

/// Runs `handler`, after which the command register is again as the interrupted code had it.
///
/// Context: NMI and debug exception: [`send`] may have been interrupted between the two halves.
pub(super) fn keeping_command(handler: impl FnOnce()) {
    if matches!(ACCESS.load(Ordering::Relaxed), BY_MSR | NOT_CHOSEN) {
        return handler();
    }
    let high = read(Reg::CommandHigh);
    handler();
    if read(Reg::CommandHigh) != high {
        write(Reg::CommandHigh, high);
    }
}
