//! Memory accesses that may fail: an address that nothing is mapped at gives `None`, not a fault.
//!
//! Two routines of a few instructions; a page fault or general protection fault at the one
//! instruction that touches memory is answered by going on at the routine's failing exit.
//!
//! Context: any, NMI included (a nested NMI is safe, see `entry.rs`). Answers to
//! `copy_from_kernel_nofault` in `mm/maccess.c` of Linux.

use core::arch::{asm, global_asm};

unsafe extern "C" {
    static grange_probe_read_at: u8;
    static grange_probe_write_at: u8;
    static grange_probe_failed: u8;
    fn grange_probe_read();
    fn grange_probe_write();
}

global_asm!(
    ".pushsection .text.grange_probe, \"ax\"",
    ".globl grange_probe_read, grange_probe_read_at, grange_probe_write, grange_probe_write_at",
    ".globl grange_probe_failed",
    // In: rdi address. Out: rax value, rdx 1 if it could be read.
    "grange_probe_read:",
    "mov edx, 1",
    "grange_probe_read_at:",
    "mov rax, [rdi]",
    "ret",
    // In: rdi address, al value. Out: rdx 1 if it could be written.
    "grange_probe_write:",
    "mov edx, 1",
    "grange_probe_write_at:",
    "mov [rdi], al",
    "ret",
    "grange_probe_failed:",
    "xor edx, edx",
    "ret",
    ".popsection",
);

/// The eight bytes at `address`, if all of them can be read. The address need not be aligned.
pub fn read(address: u64) -> Option<u64> {
    let (value, done): (u64, u64);
    // SAFETY: reading memory that is mapped has no effect (the kernel maps no registers that react
    // to being read but the APIC's, whose reads are harmless), and a fault is answered.
    unsafe {
        asm!("call {f}", f = sym grange_probe_read, in("rdi") address, lateout("rax") value, lateout("rdx") done);
    }
    (done == 1).then_some(value)
}

/// Writes one byte; whether it could be written.
///
/// # Safety
/// If `address` can be written, the caller may write to it.
pub unsafe fn write(address: u64, value: u8) -> bool {
    let done: u64;
    // SAFETY: the caller may write there, and a fault is answered.
    unsafe {
        asm!("call {f}", f = sym grange_probe_write, in("rdi") address, in("al") value, lateout("rdx") done);
    }
    done == 1
}

/// Where to go on after a fault at `ip`, if it is one of the two that may.
pub(super) fn fixup(ip: u64) -> Option<u64> {
    let may_fail = [&raw const grange_probe_read_at as u64, &raw const grange_probe_write_at as u64];
    may_fail.contains(&ip).then_some(&raw const grange_probe_failed as u64)
}
