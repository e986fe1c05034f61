//! The interrupt flag, and waiting for an interrupt without losing one.
//!
//! Answers to `arch/x86/include/asm/irqflags.h` and `arch/x86/kernel/process.c` of Linux.

use core::arch::{asm, global_asm};

pub(super) const INTERRUPT_FLAG: u64 = 1 << 9;

/// Whether interrupts were on. Given back to [`restore`] on the same CPU.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[must_use = "interrupts stay off until this is given to irq::restore"]
pub struct Flags(bool);

impl Flags {
    /// Whether interrupts were on when the flags were saved.
    pub fn were_enabled(self) -> bool {
        self.0
    }
}

/// Whether this CPU takes interrupts now.
///
/// Context: any.
#[inline]
pub fn enabled() -> bool {
    let flags: u64;
    // SAFETY: reads the flags through the stack; the kernel is built without a red zone.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem, preserves_flags)) };
    flags & INTERRUPT_FLAG != 0
}

/// Turns interrupts off on this CPU.
///
/// Context: any. Memory accesses are not moved across it by the compiler.
#[inline]
pub fn disable() {
    // SAFETY: masking interrupts breaks no memory; without `nomem` it is a compiler barrier.
    unsafe { asm!("cli", options(nostack, preserves_flags)) };
}

/// Turns interrupts on. One that is pending arrives after the next instruction.
///
/// Context: task, or a handler that knows that it may be interrupted.
#[inline]
pub fn enable() {
    // SAFETY: handlers are installed by `boot::init_early` before anybody calls this; without
    // `nomem` it is a compiler barrier.
    unsafe { asm!("sti", options(nostack, preserves_flags)) };
}

/// Turns interrupts off and says whether they were on.
///
/// Context: any.
#[inline]
pub fn save() -> Flags {
    let were = enabled();
    disable();
    Flags(were)
}

/// Turns interrupts on if they were on at the matching [`save`].
///
/// Context: any, on the CPU of the [`save`].
#[inline]
pub fn restore(flags: Flags) {
    if flags.0 {
        enable();
    }
}

/// Turns interrupts on and waits for one. Returns with interrupts on.
///
/// To be called with interrupts off, after the caller has found that it has nothing to do. An
/// interrupt that became pending after that check makes this return at once. Before `sti` it stays
/// pending and ends the `hlt`; one that is taken between `sti` and `hlt` (which only an NMI in that
/// gap can bring about, since `sti` holds interrupts back for one instruction) has its return
/// address moved past the `hlt` ([`skip_halt`]). So an NMI that leaves work raises an interrupt on
/// its own CPU, and cannot be slept over.
///
/// Context: task (idle loop), interrupts off.
pub fn halt_with_irqs() {
    // SAFETY: the routine only touches the interrupt flag and waits; `sti` holds interrupts back
    // until after the next instruction, so none is taken before the CPU is in `hlt`.
    unsafe { asm!("call {}", sym grange_halt, clobber_abi("C")) };
}

unsafe extern "C" {
    fn grange_halt();
    static grange_halt_hlt: u8;
    static grange_halt_done: u8;
}

global_asm!(
    ".pushsection .text.grange_halt, \"ax\"",
    ".globl grange_halt, grange_halt_hlt, grange_halt_done",
    "grange_halt:",
    // A frame, without which a backtrace from the `hlt` would leave out who called.
    "push rbp",
    "mov rbp, rsp",
    "sti",
    "grange_halt_hlt:",
    "hlt",
    "grange_halt_done:",
    "pop rbp",
    "ret",
    ".popsection",
);

/// The address to return to from an interrupt or NMI that hit `ip`: past the `hlt` of the idle loop
/// if that has not begun, so that the loop looks again for what the handler may have left it.
#[inline]
pub(super) fn skip_halt(ip: u64) -> u64 {
    if ip == &raw const grange_halt_hlt as u64 { &raw const grange_halt_done as u64 } else { ip }
}

/// Tells the processor (and, in an emulator, the scheduler of virtual CPUs) that this is a spin loop.
///
/// Context: any.
#[inline]
pub fn relax() {
    core::hint::spin_loop();
}

/// Stops this CPU for good: interrupts off, `hlt`. An NMI is handled and the CPU stops again.
///
/// Context: any.
pub fn park() -> ! {
    disable();
    loop {
        // SAFETY: with interrupts off nothing but an NMI ends the wait, and then it begins again.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}
