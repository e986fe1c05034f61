//! Return addresses of the callers, by the chain of frame pointers.
//!
//! Every load is one that may fail (`probe`), the number of frames is bounded, and a frame that does
//! not lie above the one before ends the walk unless it crosses from one stack to another, so a
//! damaged stack gives a short list and not a fault or a hang. A function that calls itself without
//! an end has many more frames than the bound, all with one return address; these are passed to see
//! who called it first. Entry code leaves frames that lead
//! from a handler to the code it interrupted.
//!
//! Context: any, NMI included. Answers to `arch/x86/kernel/unwind_frame.c` of Linux.

use core::arch::asm;
use core::ops::Range;

use super::probe;

/// Most frames that are followed, but for those that are the same as the one before.
const MAX_FRAMES: usize = 64;
/// Most frames that are followed in all: a thread's stack of the smallest ones.
const MAX_STEPS: usize = 16 * 1024;
/// A step that is longer than this is one to another stack.
const MAX_STACK: u64 = 1 << 20;

/// Calls `visit` with each return address, innermost first, starting with the frame at `rbp`.
pub fn walk(rbp: u64, visit: &mut dyn FnMut(u64)) {
    walk_within(0..u64::MAX, rbp, visit);
}

/// [`walk`] that ends where a frame does not lie on `stack`.
pub fn walk_within(stack: Range<u64>, rbp: u64, visit: &mut dyn FnMut(u64)) {
    let mut frame = rbp;
    let (mut last, mut frames) = (0, 0);
    for _ in 0..MAX_STEPS {
        if !frame.is_multiple_of(8) || !stack.contains(&frame) {
            return;
        }
        let (Some(next), Some(return_address)) = (probe::read(frame), probe::read(frame.wrapping_add(8))) else {
            return;
        };
        if return_address == 0 {
            return;
        }
        if return_address != last {
            last = return_address;
            frames += 1;
            if frames > MAX_FRAMES {
                return;
            }
        }
        visit(return_address);
        let same_stack = next.abs_diff(frame) < MAX_STACK;
        if next == frame || (same_stack && next < frame) {
            return;
        }
        frame = next;
    }
}

/// Calls `visit` with each return address of the caller, innermost first.
#[inline(never)]
pub fn current(visit: &mut dyn FnMut(u64)) {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    walk(rbp, visit);
}
