//! Threads as the machine sees them: a stack pointer, and the switch from one to another.
//!
//! What `switch` leaves on a stack, from the saved stack pointer upwards:
//! `r15 r14 r13 r12 rbx rbp return-address`. Everything else is caller-saved in the System V ABI and has been spilled by
//! the compiler around the call. There is no floating-point state: the kernel target is soft-float, and on the host all
//! vector registers are caller-saved; MXCSR and the x87 control word are never changed. RFLAGS is not saved either: its
//! status bits are caller-saved, interrupts are off on both sides, and the trap flag belongs to the CPU and not to the
//! thread. So whoever steps (`step::single_step`) must not be switched away from: it is pinned, and [`switch`] checks
//! that in checking builds.
//!
//! Invariant `TASK-1`: a [`Context`] is either running (its contents are stale) or holds the stack pointer left by
//! `prepare` or `switch`; it is switched to at most once each time it was saved.
//!
//! Context: interrupts off on both sides (ARCH-6); not in NMI.
//!
//! Linux: `__switch_to_asm` in `arch/x86/entry/entry_64.S`, `struct inactive_task_frame`.

use core::arch::{asm, naked_asm};
use core::ops::Range;

use crate::{backtrace, probe};

/// RFLAGS: trap after each instruction.
const TRAP_FLAG: u64 = 1 << 8;

/// Bytes of stack that a thread should get. The hosted backend keeps whole signal frames on it, several deep.
pub const STACK_SIZE: usize = if cfg!(target_os = "none") { 16 * 1024 } else { 128 * 1024 };

/// A thread that does not run: its saved stack pointer (TASK-1).
#[repr(C)]
#[derive(Debug)]
pub struct Context {
    rsp: u64,
}

impl Context {
    /// The context of a thread that is running now: [`switch`] fills it in.
    pub const RUNNING: Self = Self { rsp: 0 };

    /// Calls `f` with the return addresses of the thread, innermost first, beginning with where it will go on, as far as
    /// they lie on `stack`.
    ///
    /// Context: any. Nonsense if the thread runs, but never a fault.
    pub fn walk(&self, stack: Range<u64>, f: &mut dyn FnMut(u64)) {
        let at = self.rsp.saturating_add(SAVED_RBP);
        if !stack.contains(&at) {
            return;
        }
        if let (Some(rbp), Some(ip)) = (probe::read(at), probe::read(at + 8)) {
            f(ip);
            backtrace::walk_within(stack, rbp, f);
        }
    }

    /// The saved stack pointer, for dumps; stale if the thread runs.
    pub fn stack_pointer(&self) -> u64 {
        self.rsp
    }
}

/// Where `switch` leaves rbp, in bytes above the saved stack pointer; the return address is next to it.
const SAVED_RBP: u64 = 5 * 8;

/// Words that `prepare` lays down: six registers, the return address, and two zeros that end a backtrace and keep the
/// stack aligned to 16 at the entry of the trampoline's callee.
const FRAME_WORDS: usize = 9;

/// Makes a thread that will run `entry(arg)` with interrupts off on the stack that ends at `stack_top`.
///
/// # Safety
///
/// `stack_top` is aligned to 16 and is the end of a writable stack, large enough for `entry` and every interrupt on top
/// of it, that nobody else uses until the thread is gone.
pub unsafe fn prepare(stack_top: *mut u8, entry: extern "C" fn(usize) -> !, arg: usize) -> Context {
    debug_assert!(stack_top.addr().is_multiple_of(16), "a stack ends on a 16-byte boundary");
    let frame: [u64; FRAME_WORDS] = [
        0,                                       // r15
        0,                                       // r14
        arg as u64,                              // r13
        entry as usize as u64,                   // r12
        0,                                       // rbx
        0,                                       // rbp: the end of the frame-pointer chain
        trampoline as *const () as usize as u64, // return address
        0,                                       // a return address of 0 ends an unwinder's walk
        0,
    ];
    let rsp = stack_top.wrapping_sub(size_of_val(&frame));
    // SAFETY: the stack is writable, aligned and unused, says the caller, and larger than this frame.
    unsafe { rsp.cast::<[u64; FRAME_WORDS]>().write(frame) };
    Context { rsp: rsp.expose_provenance() as u64 }
}

/// Stops the running thread in `prev` and continues `next`. Returns when somebody switches back to `prev`, perhaps on
/// another CPU. A compiler barrier.
///
/// # Panics
///
/// In checking builds, if this code is being single-stepped: the flag for that would stay with the CPU.
///
/// # Safety
///
/// Interrupts are off. `prev` is the running thread's own context; `next` holds a saved thread (TASK-1) whose stack is
/// intact, and stays in place until this call has read it. When this returns the caller is on the CPU of whoever switched
/// back, so no per-CPU pointer is kept across it.
#[inline(always)]
pub unsafe fn switch(prev: *mut Context, next: *const Context) {
    debug_assert!(!is_stepped(), "a thread that is single-stepped is switched away from: its caller must pin it");
    // SAFETY: the caller's contract is the one that is asked for.
    unsafe { switch_stacks(prev, next) }
}

/// Whether the trap flag is set.
fn is_stepped() -> bool {
    let flags: u64;
    // SAFETY: reads the flags through the stack, which the compiler knows of.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem, preserves_flags)) };
    flags & TRAP_FLAG != 0
}

/// [`switch`] itself.
#[unsafe(naked)]
unsafe extern "C" fn switch_stacks(prev: *mut Context, next: *const Context) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, [rsi]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// First code of a new thread: `entry(arg)` with both taken from where `prepare` put them.
#[unsafe(naked)]
extern "C" fn trampoline() {
    naked_asm!("mov rdi, r13", "call r12", "ud2")
}
