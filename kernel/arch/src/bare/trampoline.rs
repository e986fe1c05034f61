//! The first instructions of a started CPU: from real mode straight to long mode.
//!
//! The code is copied to [`PAGE`], below 1 MiB where real mode can reach it; low memory is never
//! given to an allocator. It runs on tables of its own: a copy of the kernel's top table with one
//! identity-mapped huge page put in at 0, so the kernel's own tables never have a page that is both
//! writable and executable, and may lie above 4 GiB.
//!
//! | address | what |
//! |---|---|
//! | `0x8000` | code, its descriptor table, and two words that [`prepare`] fills in |
//! | `0x9000` | top table: the kernel's, with entry 0 replaced |
//! | `0xa000`, `0xb000` | the two tables below entry 0 |
//!
//! - TRAMP-1: the page stays as it is after boot, so a CPU that comes too late still finds code that
//!   sends it to `grange_ap_entry`, which parks it.
//!
//! Answers to `arch/x86/realmode/rm/trampoline_64.S` of Linux.

use core::arch::global_asm;

use x86_64::PhysAddr;
use x86_64::structures::paging::PageTableFlags as Entry;

use super::paging;
use crate::PAGE_SIZE;

/// Physical address of the code: what a start-up message names, in pages.
pub(super) const PAGE: u64 = 0x8000;
const TOP: u64 = 0x9000;
const SECOND: u64 = 0xa000;
const THIRD: u64 = 0xb000;

unsafe extern "C" {
    static grange_trampoline: u8;
    static grange_trampoline_target: u8;
    static grange_trampoline_end: u8;
}

/// Puts code and tables in place. Started CPUs will arrive at `target` in 64-bit mode, without a
/// stack, on tables that map the kernel.
///
/// Context: boot CPU.
///
/// # Safety
/// Physical pages 0x8000 to 0xbfff are nobody's (or hold an earlier trampoline that no CPU is in),
/// and `target` is code that needs no stack.
pub(super) unsafe fn prepare(target: u64) {
    let start = &raw const grange_trampoline;
    let length = &raw const grange_trampoline_end as usize - start as usize;
    let target_at = &raw const grange_trampoline_target as usize - start as usize;
    assert!(length <= PAGE_SIZE, "the trampoline has one page");
    let at = |phys: u64| paging::phys_to_virt(PhysAddr::new(phys)).as_mut_ptr::<u8>();
    // SAFETY: the caller says that the four pages are free; the code fits in its page, and the
    // kernel's top table is a page that lives for ever.
    unsafe {
        core::ptr::copy_nonoverlapping(start, at(PAGE), length);
        at(PAGE).add(target_at).cast::<u64>().write_unaligned(target);
        core::ptr::copy_nonoverlapping(at(paging::top_table()), at(TOP), PAGE_SIZE);
        at(SECOND).write_bytes(0, PAGE_SIZE);
        at(THIRD).write_bytes(0, PAGE_SIZE);
        let link = Entry::PRESENT | Entry::WRITABLE;
        at(TOP).cast::<u64>().write(SECOND | link.bits());
        at(SECOND).cast::<u64>().write(THIRD | link.bits());
        at(THIRD).cast::<u64>().write((link | Entry::HUGE_PAGE).bits());
    }
}

global_asm!(
    ".pushsection .rodata.grange_trampoline, \"a\"",
    ".balign 16",
    ".globl grange_trampoline, grange_trampoline_target, grange_trampoline_end",
    ".code16",
    "grange_trampoline:",
    "cli",
    "cld",
    "xorw %ax, %ax",
    "movw %ax, %ds",
    "lgdtl {page} + (2f - grange_trampoline)",
    // CR4: PAE.
    "movl $0x20, %eax",
    "movl %eax, %cr4",
    "movl ${top}, %eax",
    "movl %eax, %cr3",
    // EFER: long mode, no-execute.
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x900, %eax",
    "wrmsr",
    // CR0: paging, write protect, native errors, extension type, monitor, protection.
    "movl $0x80010033, %eax",
    "movl %eax, %cr0",
    "ljmpl $0x08, ${page} + (1f - grange_trampoline)",
    ".code64",
    "1:",
    "movw $0x10, %ax",
    "movw %ax, %ds",
    "movw %ax, %es",
    "movw %ax, %ss",
    "xorw %ax, %ax",
    "movw %ax, %fs",
    "movw %ax, %gs",
    "movq grange_trampoline_target(%rip), %rax",
    "jmpq *%rax",
    ".balign 8",
    "2:",
    ".word 3*8 - 1",
    ".long {page} + (3f - grange_trampoline)",
    ".balign 8",
    "3:",
    ".quad 0",
    ".quad 0x00af9b000000ffff", // 64-bit code
    ".quad 0x00cf93000000ffff", // data
    "grange_trampoline_target:",
    ".quad 0",
    "grange_trampoline_end:",
    ".code64",
    ".popsection",
    page = const PAGE,
    top = const TOP,
    options(att_syntax),
);
