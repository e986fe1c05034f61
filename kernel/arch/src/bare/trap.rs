//! From a vector to a handler: the frame that every interrupt and exception leaves, and who gets it.
//!
//! | vector | goes to |
//! |---|---|
//! | 1, single step running | [`super::step`] |
//! | 2 (NMI) | `Handlers::nmi` |
//! | other exceptions | `Handlers::exception`; a fault of [`super::probe`] is answered here |
//! | [`vector::SPURIOUS`] | nobody, and it is not acknowledged |
//! | 32 and up | acknowledged, then `Handlers::irq` |
//!
//! Without handlers (early boot) an exception is reported on COM1 and ends the machine, an NMI is reported, and
//! interrupts are dropped.
//!
//! - TRAP-2: a handler for NMI or single step finds and leaves the interrupt command register of the
//!   APIC as the interrupted code had it: that code may be between its two halves.
//! - TRAP-3: the NMI handler does not nest. The entry code survives any nesting; an NMI that comes
//!   while the handler runs is remembered, and the handler runs once more (ARCH-3).
//! - TRAP-4: double fault and machine check end the machine, even if their handler returns.
//!
//! Answers to `arch/x86/kernel/traps.c` and `irq.c` of Linux.

use x86_64::registers::control::Cr2;

use super::reason::FETCH;
use super::{apic, exit, irq, probe, report, step, timer};
use crate::exit::Verdict;
use crate::trap::{Exception, ExceptionKind, handlers};
use crate::vector;

/// General registers, in the order in which the entry code leaves them.
#[repr(C)]
#[derive(Copy, Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
}

/// The interrupted context, as it will be when the handler returns. Layout known to `entry.rs`.
#[repr(C)]
#[derive(Debug)]
pub struct TrapFrame {
    /// General registers.
    pub regs: Regs,
    vector: u64,
    error_code: u64,
    ip: u64,
    _cs: u64,
    flags: u64,
    sp: u64,
    _ss: u64,
}

const _: () = assert!(size_of::<TrapFrame>() == 22 * 8, "entry.rs pushes 22 words");

impl TrapFrame {
    /// Address of the instruction that runs next.
    pub fn ip(&self) -> u64 {
        self.ip
    }

    /// Stack pointer of the interrupted code.
    pub fn sp(&self) -> u64 {
        self.sp
    }

    /// RFLAGS of the interrupted code.
    pub fn flags(&self) -> u64 {
        self.flags
    }

    /// Whether the interrupted code had interrupts on.
    pub fn irqs_were_on(&self) -> bool {
        self.flags & super::irq::INTERRUPT_FLAG != 0
    }

    /// Makes the interrupted code go on somewhere else.
    pub fn set_ip(&mut self, ip: u64) {
        self.ip = ip;
    }

    /// Does an `sti` that comes next in the processor's place.
    pub(super) fn do_sti(&mut self) {
        self.ip += 1;
        self.flags |= super::irq::INTERRUPT_FLAG;
    }

    /// The error code that the processor pushed; 0 where it pushes none.
    pub fn error_code(&self) -> u64 {
        self.error_code
    }

    /// Whether a page fault says that there is no instruction at [`ip`](Self::ip).
    pub(super) fn failed_to_fetch(&self) -> bool {
        self.vector() == PAGE_FAULT && self.error_code & FETCH != 0
    }

    /// Which vector brought us here.
    pub fn vector(&self) -> u8 {
        self.vector as u8
    }
}

crate::per_cpu! {
    /// An NMI of this CPU is in its handler. Written by [`nmi`] on this CPU.
    static IN_NMI_HANDLER: bool = false;
    /// Another came since. Set by the nested [`nmi`], taken by the outer one, on this CPU.
    static NMI_CAME_MEANWHILE: bool = false;
}

/// First vector that is not an exception.
const FIRST_INTERRUPT: u8 = 32;
const NMI: u8 = 2;
const PAGE_FAULT: u8 = 14;

/// Called by the entry code for every vector, with interrupts off.
pub(super) extern "C" fn dispatch(frame: &mut TrapFrame) {
    match frame.vector() {
        NMI => nmi(frame),
        vector @ FIRST_INTERRUPT.. => interrupt(vector, frame),
        vector => exception(vector, frame),
    }
}

fn interrupt(vector: u8, frame: &mut TrapFrame) {
    if vector == vector::SPURIOUS {
        return;
    }
    apic::end_of_interrupt();
    if vector == vector::TIMER {
        timer::on_interrupt();
    }
    frame.ip = irq::skip_halt(frame.ip);
    if let Some(handlers) = handlers() {
        (handlers.irq)(vector, frame);
    }
}

/// Runs the handler, and runs it again if an NMI came meanwhile (TRAP-3).
///
/// The order matters: this NMI stops being "in the handler" before it looks whether another came.
/// One that comes later than that finds nobody in the handler and runs it itself.
fn nmi(frame: &mut TrapFrame) {
    frame.ip = irq::skip_halt(frame.ip);
    let Some(handlers) = handlers() else { return report::early_nmi(frame) };
    if IN_NMI_HANDLER.get() {
        NMI_CAME_MEANWHILE.set(true);
        return;
    }
    loop {
        IN_NMI_HANDLER.set(true);
        apic::keeping_command(|| (handlers.nmi)(frame));
        IN_NMI_HANDLER.set(false);
        if !NMI_CAME_MEANWHILE.xchg(false) {
            return;
        }
    }
}

fn exception(vector: u8, frame: &mut TrapFrame) {
    // Read before anything else can fault and overwrite it.
    let fault_address = Cr2::read_raw();
    let Some(kind) = kind_of(vector) else {
        report::fatal(frame, &format_args!("reserved exception {vector}"));
        exit::debug_exit(Verdict::Panic)
    };
    match kind {
        ExceptionKind::Debug if step::on_debug(frame) => return,
        ExceptionKind::PageFault | ExceptionKind::GeneralProtection => {
            if let Some(ip) = probe::fixup(frame.ip) {
                frame.ip = ip;
                return;
            }
        }
        _ => {}
    }
    let has_address = matches!(kind, ExceptionKind::PageFault | ExceptionKind::DoubleFault);
    let exception =
        Exception { kind, error_code: frame.error_code, address: if has_address { fault_address } else { 0 } };
    if let Some(handlers) = handlers() {
        (handlers.exception)(exception, frame);
        if !matches!(kind, ExceptionKind::DoubleFault | ExceptionKind::MachineCheck) {
            return;
        }
        // TRAP-4: what these two interrupted cannot go on, and their stacks do not nest.
    }
    report::fatal(frame, &report::Reason { exception: &exception, sp: frame.sp, whose: &"a thread" });
    exit::debug_exit(Verdict::Panic)
}

fn kind_of(vector: u8) -> Option<ExceptionKind> {
    use ExceptionKind::*;
    Some(match vector {
        0 => DivideError,
        1 => Debug,
        3 => Breakpoint,
        4 => Overflow,
        5 => BoundRange,
        6 => InvalidOpcode,
        7 => DeviceNotAvailable,
        8 => DoubleFault,
        10 => InvalidTss,
        11 => SegmentNotPresent,
        12 => StackSegment,
        13 => GeneralProtection,
        14 => PageFault,
        16 => X87,
        17 => AlignmentCheck,
        18 => MachineCheck,
        19 => Simd,
        20 => Virtualization,
        21 => ControlProtection,
        _ => return None,
    })
}
