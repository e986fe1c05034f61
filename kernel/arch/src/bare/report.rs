//! The report of an exception: reason, place, registers, and how the CPU got there.
//!
//! Context: any; takes no lock and allocates nothing.

use core::fmt::{self, Display, Write};

use super::console::Com1;
use super::trap::TrapFrame;
use super::{backtrace, probe, stacks};
use crate::cpu;

pub use super::frames::Frames;
pub use super::reason::Reason;

/// Writes registers and interrupt state of the interrupted context, eight lines.
///
/// # Errors
/// Those of `out`.
pub fn registers(out: &mut dyn Write, frame: &TrapFrame) -> fmt::Result {
    let r = &frame.regs;
    let irqs = if frame.irqs_were_on() { "on" } else { "off" };
    writeln!(out, "CPU {}, interrupts {irqs}, {}", cpu::current(), Stack(frame.sp()))?;
    writeln!(out, "rip {:016x}  rsp {:016x}  rflags {:08x}", frame.ip(), frame.sp(), frame.flags())?;
    writeln!(out, "rax {:016x}  rbx {:016x}  rcx {:016x}", r.rax, r.rbx, r.rcx)?;
    writeln!(out, "rdx {:016x}  rsi {:016x}  rdi {:016x}", r.rdx, r.rsi, r.rdi)?;
    writeln!(out, "rbp {:016x}  r8  {:016x}  r9  {:016x}", r.rbp, r.r8, r.r9)?;
    writeln!(out, "r10 {:016x}  r11 {:016x}  r12 {:016x}", r.r10, r.r11, r.r12)?;
    writeln!(out, "r13 {:016x}  r14 {:016x}  r15 {:016x}", r.r13, r.r14, r.r15)?;
    writeln!(out, "vector {}  error code {:#x}", frame.vector(), frame.error_code())
}

/// Writes the return addresses from the interrupted instruction outwards, one a line, repeated ones once.
///
/// # Errors
/// Those of `out`.
pub fn callers(out: &mut dyn Write, frame: &TrapFrame) -> fmt::Result {
    // Where no instruction can be fetched nothing has been pushed since the call: who called is on top of the stack.
    let caller = frame.failed_to_fetch().then(|| probe::read(frame.sp())).flatten();
    callers_through(out, frame.ip(), caller, frame.regs.rbp)
}

/// The same for a context of which instruction and frame pointer are known; its CPU stands still.
///
/// # Errors
/// Those of `out`.
pub fn callers_from(out: &mut dyn Write, ip: u64, rbp: u64) -> fmt::Result {
    callers_through(out, ip, None, rbp)
}

fn callers_through(out: &mut dyn Write, ip: u64, caller: Option<u64>, rbp: u64) -> fmt::Result {
    let mut frames = Frames::new(out);
    frames.push(ip);
    caller.into_iter().for_each(|ip| frames.push(ip));
    backtrace::walk(rbp, &mut |ip| frames.push(ip));
    frames.finish()
}

/// The stack that a stack pointer is on.
struct Stack(u64);

impl Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match stacks::place_of(self.0) {
            Some(place) => write!(f, "on the {} stack of CPU {}", place.kind.name(), place.cpu),
            None => f.write_str("on a thread's stack"),
        }
    }
}

/// Where an NMI found this CPU, on COM1: for NMIs before anybody has set handlers.
pub(super) fn early_nmi(frame: &TrapFrame) {
    // `Com1` does not fail, so neither do these.
    let _ = writeln!(Com1, "NMI on cpu {} during early boot", cpu::current());
    let _ = registers(&mut Com1, frame);
    let _ = callers(&mut Com1, frame);
}

/// The whole report, on COM1: for exceptions before anybody has set handlers.
pub(super) fn fatal(frame: &TrapFrame, reason: &dyn Display) {
    // `Com1` does not fail, so neither do these.
    let _ = writeln!(Com1, "PANIC cpu {}: {reason}", cpu::current());
    let _ = registers(&mut Com1, frame);
    let _ = callers(&mut Com1, frame);
}
