//! From QEMU's 32-bit entry to 64-bit Rust, and from there into the kernel.
//!
//! The PVH protocol (Xen's `x86/HVM direct boot ABI`; QEMU finds the entry by the ELF note below)
//! promises: 32-bit protected mode, flat segments, paging and interrupts off, `ebx` = physical
//! address of `hvm_start_info`. It promises no stack, no GDT, and no page tables.

use core::arch::{asm, global_asm};
use core::ptr::addr_of;

use bootloader_api::BootInfo;
use grange_boot::memory::Span;
use grange_boot::paging::LoaderImage;

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4                         // length of the name
    .long 8                         // length of the value
    .long 18                        // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .boot, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    mov esp, offset boot_stack_top
    mov ebp, ebx                    // cpuid writes ebx

    // 64-bit mode and the NX bit, or say so and leave.
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb 8f
    mov eax, 0x80000001
    cpuid
    and edx, (1 << 29) | (1 << 20)
    cmp edx, (1 << 29) | (1 << 20)
    jne 8f

    // 4 GiB one to one with 2 MiB pages: four directories in a row.
    mov edi, offset boot_pd
    mov eax, 0x83                   // present, writable, large
    mov ecx, 4 * 512
2:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 2b
    mov edi, offset boot_pdpt
    mov eax, offset boot_pd + 3
    mov ecx, 4
3:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add eax, 4096
    add edi, 8
    dec ecx
    jnz 3b
    mov eax, offset boot_pdpt + 3
    mov [boot_pml4], eax

    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, cr4
    or eax, 1 << 5                  // PAE
    mov cr4, eax
    mov ecx, 0xc0000080             // EFER: LME, NXE
    rdmsr
    or eax, (1 << 8) | (1 << 11)
    wrmsr
    mov eax, cr0
    and eax, ~((1 << 2) | (1 << 3)) // no EM, no TS
    or eax, (1 << 31) | (1 << 16) | (1 << 5) | (1 << 1) | 1 // PG, WP, NE, MP, PE
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 0x08                       // a far return loads the 64-bit code segment
    mov eax, offset pvh_long_mode
    push eax
    retf

8:  mov esi, offset no_long_mode    // a machine without 64-bit mode: print by hand
    mov edx, 0x3f8
9:  lodsb
    test al, al
    jz 10f
    out dx, al
    jmp 9b
10: mov eax, 0x12
    out 0xf4, eax
11: hlt
    jmp 11b

    .code64
pvh_long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov edi, ebp                    // the argument: hvm_start_info
    xor ebp, ebp                    // the end of every backtrace
    call {main}
    ud2

    .section .rodata.boot, "a", @progbits
no_long_mode:
    .asciz "grange-boot: cannot start the kernel: this CPU has no 64-bit mode or no NX bit\r\n"
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        // 0x08: 64-bit code
    .quad 0x00cf92000000ffff        // 0x10: data
boot_gdt_pointer:
    .word 3 * 8 - 1
    .long boot_gdt

    .section .bss.boot, "aw", @nobits
    .balign 4096
boot_stack:
    .skip 64 * 1024
boot_stack_top:
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
    "#,
    main = sym crate::loader_main,
);

unsafe extern "C" {
    // Set by link.ld; only their addresses mean anything.
    static __loader_start: u8;
    static __loader_text_end: u8;
    static __loader_rodata_end: u8;
    static __loader_end: u8;
}

/// Where the loader itself lies, by the linker script.
pub(crate) fn loader_image() -> LoaderImage {
    let start = addr_of!(__loader_start) as u64;
    let text_end = addr_of!(__loader_text_end) as u64;
    let rodata_end = addr_of!(__loader_rodata_end) as u64;
    let end = addr_of!(__loader_end) as u64;
    LoaderImage {
        text: Span { start, end: text_end },
        rodata: Span { start: text_end, end: rodata_end },
        data: Span { start: rodata_end, end },
    }
}

/// Whether CPUID promises 1 GiB pages.
pub(crate) fn cpu_has_gib_pages() -> bool {
    // The entry code has made sure that the leaf exists.
    core::arch::x86_64::__cpuid(0x8000_0001).edx & (1 << 26) != 0
}

/// Starts to use the tables at `root`.
///
/// # Safety
///
/// They map the loader's image (code, data, stack) one to one.
pub(crate) unsafe fn switch_tables(root: u64) {
    // SAFETY: the caller vouches for the tables; the loader goes on at the same addresses.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Leaves the loader for good.
///
/// # Safety
///
/// The tables in use map `entry` executable and the stack below `stack_top` writable; `boot_info`
/// stays valid.
pub(crate) unsafe fn enter_kernel(entry: u64, stack_top: u64, boot_info: &'static mut BootInfo) -> ! {
    // SAFETY: by the caller's word. The pushed zero is the return address that ends a backtrace, and
    // leaves the stack as a function of the C ABI expects it.
    unsafe {
        asm!(
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "push 0",
            "jmp {entry}",
            stack = in(reg) stack_top,
            entry = in(reg) entry,
            in("rdi") boot_info,
            options(noreturn),
        )
    }
}
