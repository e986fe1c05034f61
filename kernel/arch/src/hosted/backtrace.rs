//! Return addresses by frame pointers. A host build has them only with `-Cforce-frame-pointers`; without, the walk ends
//! early or shows nonsense, but it never faults: memory is read through the kernel of the host.

use core::ops::Range;

use super::probe;

/// At most so many callers.
const MAX_DEPTH: usize = 64;
/// A frame is not further from its caller's than this; more is damage.
const MAX_FRAME_BYTES: u64 = 1 << 20;

/// Calls `f` with the return address in the frame at `rbp`, in its caller's, and so on. Context: any.
pub fn walk(rbp: u64, f: &mut dyn FnMut(u64)) {
    walk_within(0..u64::MAX, rbp, f);
}

/// [`walk`] that ends where a frame does not lie on `stack`. Context: any.
pub fn walk_within(stack: Range<u64>, rbp: u64, f: &mut dyn FnMut(u64)) {
    let mut frame = rbp;
    for _ in 0..MAX_DEPTH {
        if !stack.contains(&frame) {
            return;
        }
        let (Some(caller), Some(ip)) = (probe::read(frame), probe::read(frame.wrapping_add(8))) else { return };
        if ip == 0 {
            return;
        }
        f(ip);
        if caller <= frame || caller - frame > MAX_FRAME_BYTES || caller % 8 != 0 {
            return;
        }
        frame = caller;
    }
}

/// [`walk`] from here.
#[inline(always)]
pub fn current(f: &mut dyn FnMut(u64)) {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    walk(rbp, f);
}
