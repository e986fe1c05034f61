//! The first instructions of every interrupt, exception and NMI.
//!
//! One stub for each vector pushes an error code of 0 where the processor pushes none, and the
//! vector; the common part saves the general registers, which makes a
//! [`TrapFrame`](super::trap::TrapFrame), and calls [`trap::dispatch`](super::trap::dispatch). There
//! is no user mode, so there is no `swapgs`, and the stack pointer is a good kernel stack at every
//! instruction. The processor aligns the stack to 16 before it pushes, and a frame is 22 words, so
//! the stack is aligned at the call. Between frame and call go two words that look like a function's
//! frame (return address: the interrupted instruction), so that a backtrace walks through.
//!
//! # Stacks, and NMIs that nest
//!
//! Exceptions and interrupts run on the stack that they interrupt. NMI, double fault and machine
//! check have stacks of their own (IST). The last two do not return. An NMI does, and while its
//! handler runs the processor holds further NMIs back only until the first `iretq`: one from a
//! breakpoint, a single step or a probed fault inside the handler opens the door. The next NMI would
//! then be given the same IST stack from the top, over the frame of the first.
//!
//! So the top of the IST stack is only a landing pad. Before anything can open the door, the stub
//! moves what the processor pushed to the rest of the stack: to the top of that if the interrupted
//! stack pointer is elsewhere, else just below the interrupted stack pointer. The pad is free again,
//! and an NMI that arrives later, at any instruction up to and including the last `iretq`, finds the
//! stack pointer inside the work part and stays below it. How often the handler then runs is decided
//! in `trap.rs` (TRAP-3).
//!
//! ```text
//! base + NMI_STACK_SIZE  +----------------------+
//!                        | landing pad (256 B)  |  what the processor pushed, rax, rdx
//!                        +----------------------+
//!                        | first NMI's frame    |  work part
//!                        | its handler …        |
//!                        | nested NMI's frame   |
//!                        | …                    |
//! base                   +----------------------+
//!                          guard page
//! ```
//!
//! - ENTRY-1: the NMI stack is aligned to its size, so its base follows from any address in it.
//! - ENTRY-2: nothing in the NMI stub before the copy is complete can fault: both parts are mapped.
//!   A machine check there would be fatal anyhow.
//! - ENTRY-3: only NMI code runs with its stack pointer in the work part; what interrupts it stays
//!   on that stack, so "inside" and "nested" are the same.
//!
//! Answers to `arch/x86/entry/entry_64.S` of Linux, which keeps one frame and runs a nested NMI
//! again after the first.

use core::arch::global_asm;

use super::stacks::{NMI_PAD_SIZE, NMI_STACK_SIZE};
use super::trap;

/// Distance between the stubs of two vectors, in bytes.
const STUB_SIZE: u64 = 16;

unsafe extern "C" {
    static grange_trap_stubs: u8;
    static grange_nmi_stub: u8;
}

/// Address of the first instruction for a vector.
pub(super) fn stub(vector: u8) -> u64 {
    match vector {
        2 => &raw const grange_nmi_stub as u64,
        _ => &raw const grange_trap_stubs as u64 + u64::from(vector) * STUB_SIZE,
    }
}

global_asm!(
    ".pushsection .text.grange_entry, \"ax\"",
    ".balign 16",
    ".globl grange_trap_stubs, grange_nmi_stub",
    "grange_trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    "  .balign {stub_size}",
    // Vectors whose error code the processor pushes: 8, 10 to 14, 17, 21, 29, 30.
    "  .if ((1 << vector) & {with_error_code}) == 0 || vector > 31",
    "    pushq $0",
    "  .endif",
    "  pushq $vector",
    "  jmp grange_trap_common",
    "  .set vector, vector + 1",
    ".endr",
    ".balign 16",
    "grange_trap_common:",
    "pushq %rax",
    "grange_trap_rax_saved:",
    "pushq %rbx",
    "pushq %rcx",
    "pushq %rdx",
    "pushq %rsi",
    "pushq %rdi",
    "pushq %rbp",
    "pushq %r8",
    "pushq %r9",
    "pushq %r10",
    "pushq %r11",
    "pushq %r12",
    "pushq %r13",
    "pushq %r14",
    "pushq %r15",
    "cld",
    "movq %rsp, %rdi",
    // The frame for backtraces: the interrupted instruction as return address, and its rbp.
    "pushq 17*8(%rsp)",
    "pushq %rbp",
    "movq %rsp, %rbp",
    "call {dispatch}",
    "addq $16, %rsp",
    "popq %r15",
    "popq %r14",
    "popq %r13",
    "popq %r12",
    "popq %r11",
    "popq %r10",
    "popq %r9",
    "popq %r8",
    "popq %rbp",
    "popq %rdi",
    "popq %rsi",
    "popq %rdx",
    "popq %rcx",
    "popq %rbx",
    "popq %rax",
    "addq $16, %rsp",
    "iretq",
    ".balign 16",
    "grange_nmi_stub:",
    // On the landing pad, with NMIs held back: rip, cs, rflags, rsp, ss lie at 0..40(%rsp).
    "pushq %rax",
    "pushq %rdx",
    "movq %rsp, %rax",
    "andq ${base_mask}, %rax",
    "movq 40(%rsp), %rdx", // the interrupted stack pointer …
    "subq %rax, %rdx",     // … as an offset into this stack
    "leaq {work_size}(%rax), %rax",
    "cmpq ${work_size}, %rdx",
    "ja 1f",
    // Nested: stay below the interrupted stack pointer.
    "movq 40(%rsp), %rax",
    "andq $-16, %rax",
    "1:",
    "movq %rsp, %rdx",
    "movq %rax, %rsp",
    "pushq 48(%rdx)", // ss
    "pushq 40(%rdx)", // rsp
    "pushq 32(%rdx)", // rflags
    "pushq 24(%rdx)", // cs
    "pushq 16(%rdx)", // rip
    "pushq $0",
    "pushq $2",
    "pushq 8(%rdx)", // rax
    "movq (%rdx), %rdx",
    "jmp grange_trap_rax_saved",
    ".popsection",
    stub_size = const STUB_SIZE,
    with_error_code = const (1u64 << 8 | 0b1_1111 << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30),
    base_mask = const -(NMI_STACK_SIZE as i64),
    work_size = const NMI_STACK_SIZE - NMI_PAD_SIZE,
    dispatch = sym trap::dispatch,
    options(att_syntax),
);
