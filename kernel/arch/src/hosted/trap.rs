//! The trap frame of the hosted backend: what a signal frame says about the interrupted code.

use super::irq;

/// The general registers of the interrupted code.
#[derive(Copy, Clone, Default, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
}

/// The interrupted code. A handler may change the registers and the instruction pointer.
#[derive(Debug)]
pub struct TrapFrame {
    /// General registers.
    pub regs: Regs,
    ip: u64,
    sp: u64,
    flags: u64,
    irqs_on: bool,
}

/// The interrupt flag in RFLAGS. A process always has it set; the frame shows the hosted flag in its place.
const RFLAGS_IF: u64 = 1 << 9;

/// Picks one register.
type Field = fn(&mut Regs) -> &mut u64;

/// Where each register lies in `mcontext_t.gregs`.
const GREGS: [(libc::c_int, Field); 15] = [
    (libc::REG_R15, |r| &mut r.r15),
    (libc::REG_R14, |r| &mut r.r14),
    (libc::REG_R13, |r| &mut r.r13),
    (libc::REG_R12, |r| &mut r.r12),
    (libc::REG_RBP, |r| &mut r.rbp),
    (libc::REG_RBX, |r| &mut r.rbx),
    (libc::REG_R11, |r| &mut r.r11),
    (libc::REG_R10, |r| &mut r.r10),
    (libc::REG_R9, |r| &mut r.r9),
    (libc::REG_R8, |r| &mut r.r8),
    (libc::REG_RAX, |r| &mut r.rax),
    (libc::REG_RCX, |r| &mut r.rcx),
    (libc::REG_RDX, |r| &mut r.rdx),
    (libc::REG_RSI, |r| &mut r.rsi),
    (libc::REG_RDI, |r| &mut r.rdi),
];

impl TrapFrame {
    /// The frame of a signal.
    pub(super) fn of_signal(context: &libc::ucontext_t) -> Self {
        let gregs = &context.uc_mcontext.gregs;
        let greg = |index: libc::c_int| gregs[index as usize] as u64;
        let mut regs = Regs::default();
        for (index, field) in GREGS {
            *field(&mut regs) = greg(index);
        }
        let irqs_on = irq::enabled();
        let flags = greg(libc::REG_EFL) & !RFLAGS_IF | if irqs_on { RFLAGS_IF } else { 0 };
        Self { regs, ip: greg(libc::REG_RIP), sp: greg(libc::REG_RSP), flags, irqs_on }
    }

    /// Makes the interrupted code go on as the frame says.
    pub(super) fn write_back(mut self, context: &mut libc::ucontext_t) {
        let gregs = &mut context.uc_mcontext.gregs;
        for (index, field) in GREGS {
            gregs[index as usize] = *field(&mut self.regs) as i64;
        }
        gregs[libc::REG_RIP as usize] = self.ip as i64;
    }

    /// The frame of an interrupt that is replayed by the code that calls this (HOST-5).
    #[inline(never)]
    pub(super) fn here() -> Self {
        let (ip, sp, rbp): (u64, u64, u64);
        // SAFETY: reads registers only.
        unsafe {
            core::arch::asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) ip, out(reg) sp, out(reg) rbp,
                options(nomem, nostack, preserves_flags));
        }
        Self { regs: Regs { rbp, ..Regs::default() }, ip, sp, flags: RFLAGS_IF, irqs_on: true }
    }

    /// The instruction that runs next.
    pub fn ip(&self) -> u64 {
        self.ip
    }

    /// The stack pointer of the interrupted code.
    pub fn sp(&self) -> u64 {
        self.sp
    }

    /// RFLAGS of the interrupted code.
    pub fn flags(&self) -> u64 {
        self.flags
    }

    /// Whether the interrupted code had interrupts on.
    pub fn irqs_were_on(&self) -> bool {
        self.irqs_on
    }

    /// Lets the interrupted code go on at `ip` instead.
    pub fn set_ip(&mut self, ip: u64) {
        self.ip = ip;
    }
}
