//! Interrupt vectors. Numbers as in Linux where Linux has the same one (`arch/x86/include/asm/irq_vectors.h`).

/// First vector for devices; exceptions and the remapped legacy PIC lie below.
pub const FIRST_DEVICE: u8 = 0x30;
/// The local timer.
pub const TIMER: u8 = 0xEC;
/// Work queued for interrupt context (`irq_work`).
pub const IRQ_WORK: u8 = 0xF6;
/// Function calls from other CPUs.
pub const CALL_FUNCTION: u8 = 0xFB;
/// TLB shoot-down.
pub const TLB: u8 = 0xFC;
/// Ask a CPU to pick another thread.
pub const RESCHEDULE: u8 = 0xFD;
/// An interrupt that went away before it was acknowledged.
pub const SPURIOUS: u8 = 0xFF;
