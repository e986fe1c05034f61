//! An exception's reason, in words. Pure, tested on the host.
//!
//! Context: any. Answers to `show_fault_oops` in `arch/x86/mm/fault.c` of Linux.

use core::fmt;

use super::stacks::place_of;
use crate::PAGE_SIZE;
use crate::trap::{Exception, ExceptionKind};

/// Bits of a page fault's error code.
const PROTECTION: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const RESERVED: u64 = 1 << 3;
pub(super) const FETCH: u64 = 1 << 4;

/// Why an exception happened; prints as a sentence.
pub struct Reason<'a> {
    /// What the processor says.
    pub exception: &'a Exception,
    /// Stack pointer of the code that it happened to.
    pub sp: u64,
    /// Who runs on that stack, if it is none of a CPU's own.
    pub whose: &'a dyn fmt::Display,
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Exception { kind, error_code, address } = self.exception;
        match kind {
            ExceptionKind::PageFault => self.page_fault(f),
            ExceptionKind::DoubleFault if self.stack_overflow(f)? => Ok(()),
            ExceptionKind::DoubleFault => {
                write!(f, "double fault: an exception could not be delivered; last page fault at {address:#x}")
            }
            ExceptionKind::GeneralProtection if error_code == 0 => {
                f.write_str("general protection fault: a non-canonical address or a privileged operation")
            }
            ExceptionKind::GeneralProtection
            | ExceptionKind::InvalidTss
            | ExceptionKind::SegmentNotPresent
            | ExceptionKind::StackSegment => {
                write!(f, "{}: segment selector {error_code:#x}", name(kind))
            }
            _ => f.write_str(name(kind)),
        }
    }
}

impl Reason<'_> {
    fn page_fault(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stack_overflow(f)? {
            return Ok(());
        }
        let &Exception { error_code, address, .. } = self.exception;
        let (done, place) = match (error_code & FETCH != 0, error_code & WRITE != 0) {
            (true, _) => ("instruction fetch from", "not executable"),
            (_, true) => ("write to", "read-only"),
            _ => ("read from", "protected"),
        };
        let place = match (error_code & RESERVED != 0, error_code & PROTECTION != 0) {
            (true, _) => "where a page table is corrupt",
            (_, true) => place,
            _ if address < PAGE_SIZE as u64 => "which is not mapped (a null pointer)",
            _ => "which is not mapped",
        };
        let joint =
            if place == "read-only" || place == "not executable" || place == "protected" { "which is " } else { "" };
        write!(f, "page fault: {done} {address:#x}, {joint}{place}")
    }

    /// Says so and returns true if the fault is a stack that has grown into its guard page.
    fn stack_overflow(&self, f: &mut fmt::Formatter<'_>) -> Result<bool, fmt::Error> {
        let &Exception { kind, error_code, address } = self.exception;
        if kind == ExceptionKind::PageFault && error_code & (PROTECTION | RESERVED | FETCH) != 0 {
            return Ok(false);
        }
        if let Some(place) = place_of(address).filter(|place| place.in_guard) {
            write!(
                f,
                "stack overflow of the {} stack of CPU {}, into its guard page at {address:#x}",
                place.kind.name(),
                place.cpu
            )?;
            return Ok(true);
        }
        // Other stacks have guard pages too, but no fixed place. A push that fails is just below
        // the stack pointer; a function with a large frame may have moved that further down.
        let near = address.abs_diff(self.sp) <= PAGE_SIZE as u64;
        if near && kind == ExceptionKind::DoubleFault {
            write!(
                f,
                "stack overflow of {}: nothing is mapped at {address:#x}, where its stack has grown to",
                self.whose
            )?;
        }
        Ok(near && kind == ExceptionKind::DoubleFault)
    }
}

/// Name of an exception.
fn name(kind: ExceptionKind) -> &'static str {
    match kind {
        ExceptionKind::DivideError => "division by zero or overflow",
        ExceptionKind::Debug => "debug exception",
        ExceptionKind::Breakpoint => "breakpoint",
        ExceptionKind::Overflow => "overflow",
        ExceptionKind::BoundRange => "bound range exceeded",
        ExceptionKind::InvalidOpcode => "invalid instruction",
        ExceptionKind::DeviceNotAvailable => "floating point or vector instruction, which this kernel has none of",
        ExceptionKind::DoubleFault => "double fault",
        ExceptionKind::InvalidTss => "invalid task-state segment",
        ExceptionKind::SegmentNotPresent => "segment not present",
        ExceptionKind::StackSegment => "stack segment fault",
        ExceptionKind::GeneralProtection => "general protection fault",
        ExceptionKind::PageFault => "page fault",
        ExceptionKind::X87 => "x87 floating-point error",
        ExceptionKind::AlignmentCheck => "alignment check",
        ExceptionKind::MachineCheck => "machine check",
        ExceptionKind::Simd => "SIMD floating-point error",
        ExceptionKind::Virtualization => "virtualization exception",
        ExceptionKind::ControlProtection => "control protection exception",
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::stacks::{Kind, top};
    use super::*;

    fn reason(exception: &Exception, sp: u64) -> String {
        format!("{}", Reason { exception, sp, whose: &"a thread" })
    }
    use crate::CpuId;
    use std::format;
    use std::string::String;

    fn page_fault(error_code: u64, address: u64) -> String {
        let exception = Exception { kind: ExceptionKind::PageFault, error_code, address };
        reason(&exception, 0xffff_9000_0000_8000)
    }

    #[test]
    fn a_page_fault_says_what_was_done_where() {
        assert_eq!(page_fault(2, 0x5000), "page fault: write to 0x5000, which is not mapped");
        assert_eq!(page_fault(0, 8), "page fault: read from 0x8, which is not mapped (a null pointer)");
        assert_eq!(page_fault(3, 0x5000), "page fault: write to 0x5000, which is read-only");
        assert_eq!(page_fault(0x11, 0x5000), "page fault: instruction fetch from 0x5000, which is not executable");
        assert_eq!(page_fault(9, 0x5000), "page fault: read from 0x5000, where a page table is corrupt");
    }

    #[test]
    fn a_fault_in_a_guard_page_is_reported_as_a_stack_overflow() {
        let cpu = CpuId::new(3);
        let address = top(cpu, Kind::Main) - 0x8000 - 8;
        let expected = format!("stack overflow of the main stack of CPU 3, into its guard page at {address:#x}");
        for kind in [ExceptionKind::PageFault, ExceptionKind::DoubleFault] {
            let exception = Exception { kind, error_code: 2, address };
            assert_eq!(reason(&exception, address + 8), expected);
        }
        let exception = Exception { kind: ExceptionKind::DoubleFault, error_code: 0, address };
        assert_eq!(reason(&exception, 0), expected);
    }

    #[test]
    fn a_double_fault_just_below_the_stack_pointer_is_a_stack_overflow() {
        let exception = Exception { kind: ExceptionKind::DoubleFault, error_code: 0, address: 0xffff_c900_0000_0ff8 };
        let near = reason(&exception, 0xffff_c900_0000_1000);
        assert!(near.starts_with("stack overflow of a thread: nothing is mapped at 0xffffc90000000ff8"), "{near}");
        let far = reason(&exception, 0xffff_c900_0010_0000);
        assert!(far.starts_with("double fault: an exception could not be delivered"), "{far}");
    }

    #[test]
    fn other_exceptions_are_named() {
        let exception = |kind, error_code| Exception { kind, error_code, address: 0 };
        let say = |e: Exception| reason(&e, 0);
        assert_eq!(say(exception(ExceptionKind::InvalidOpcode, 0)), "invalid instruction");
        assert_eq!(
            say(exception(ExceptionKind::GeneralProtection, 0x18)),
            "general protection fault: segment selector 0x18"
        );
    }
}
