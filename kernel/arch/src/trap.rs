//! What the machine calls when something happens: one table of handlers, set by `sync` at boot.
//!
//! Invariant `TRAP-1`: the table lives for ever; before it is set, interrupts are dropped and exceptions are fatal.
//!
//! Context of the handlers: see ARCH-2 and ARCH-3 in the crate documentation.
//!
//! Linux: `arch/x86/kernel/traps.c`, `arch/x86/kernel/irq.c`.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

pub use crate::imp::trap::{Regs, TrapFrame};

/// The handlers. All run with interrupts off.
pub struct Handlers {
    /// An interrupt with this vector; already acknowledged. May switch threads before it returns.
    pub irq: fn(u8, &mut TrapFrame),
    /// An NMI.
    pub nmi: fn(&mut TrapFrame),
    /// Any other exception. When it returns, the interrupted code goes on at [`TrapFrame::ip`].
    pub exception: fn(Exception, &mut TrapFrame),
}

/// What a CPU complained about.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Exception {
    /// Which exception.
    pub kind: ExceptionKind,
    /// The error code that the CPU gave, 0 if this kind has none.
    pub error_code: u64,
    /// The address of a page fault (CR2), 0 for other kinds.
    pub address: u64,
}

/// The exceptions of the architecture; the number is the vector.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum ExceptionKind {
    DivideError = 0,
    Debug = 1,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackSegment = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87 = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    Simd = 19,
    Virtualization = 20,
    ControlProtection = 21,
}

/// The table in force. Written by [`set_handlers`], read at every trap.
static HANDLERS: AtomicPtr<Handlers> = AtomicPtr::new(ptr::null_mut());

/// Puts `handlers` in force for all CPUs.
///
/// Context: boot CPU, before interrupts are first enabled; later only to replace the table as a whole.
///
/// # Safety
///
/// The handlers keep to the rules of their contexts: they do not block, and `nmi` and `exception` take no lock that the
/// code they interrupt may hold.
pub unsafe fn set_handlers(handlers: &'static Handlers) {
    // Release: pairs with the load in `handlers`; a trap on another CPU sees the table's contents.
    HANDLERS.store(ptr::from_ref(handlers).cast_mut(), Ordering::Release);
}

/// The table in force, if one was set (TRAP-1).
#[inline]
pub(crate) fn handlers() -> Option<&'static Handlers> {
    // Acquire: pairs with the store in `set_handlers`.
    let handlers = HANDLERS.load(Ordering::Acquire);
    // SAFETY: null, or made from a `&'static Handlers` by `set_handlers`.
    unsafe { handlers.as_ref() }
}

/// Back to no handlers. Only a hosted machine that ends does this.
#[cfg(not(target_os = "none"))]
pub(crate) fn forget_handlers() {
    HANDLERS.store(ptr::null_mut(), Ordering::Relaxed);
}
