//! How deep a thread's stack has ever been, in checking builds: it is painted before the thread begins, and what is not
//! paint any more has been used.
//!
//! Whenever a thread leaves its CPU, some words of the lowest eighth of its stack are looked at. If one has been used, the
//! thread came within that margin of its guard page, and that is a panic of the thread that comes next, which has stack
//! enough to tell it. The guard page itself (`mm::stack`) is there in all builds.
//!
//! Invariant `STACK-2`: `Thread::stack_bottom` is the stack's lowest byte while the stack is painted and mapped, else 0.
//!
//! Contexts: [`check`] in the switch, interrupts off; [`Thread::stack_used`] anywhere.
//!
//! Linux: `CONFIG_DEBUG_STACK_USAGE`, `CONFIG_SCHED_STACK_END_CHECK`.

use core::ptr;
use core::sync::atomic::Ordering;

use mm::stack::{STACK_SIZE, Stack};

use crate::thread::Thread;

/// No address, no small number, no text.
const PAINT: u64 = 0xa55a_c33c_9669_5aa5;

/// What should always be left of a stack, in bytes.
const MARGIN: usize = STACK_SIZE / 8;

/// Bytes from one word of the margin that is looked at to the next: small enough that few calls can jump over all.
const STRIDE: usize = MARGIN / 32;

const WORD: usize = size_of::<u64>();

/// Paints the stack of a thread that has not begun.
///
/// # Safety
///
/// Nothing uses the stack, which is the thread's.
pub(crate) unsafe fn paint(thread: &Thread, stack: &Stack) {
    if !cfg!(debug_assertions) {
        return;
    }
    let words = ptr::slice_from_raw_parts_mut(stack.bottom().cast::<u64>(), STACK_SIZE / WORD);
    // SAFETY: the stack's memory is mapped and aligned to pages; nothing uses it, says the caller. It is pages that the
    // kernel mapped by itself: whatever bytes they hold are values to the compiler.
    let words = unsafe { &mut *words };
    // The paint of the last tenant still lies below what that one used.
    let used = words.iter().position(|&word| word != PAINT).unwrap_or(words.len());
    words[used..].fill(PAINT);
    thread.stack_bottom.store(stack.bottom().addr(), Ordering::Relaxed);
}

/// The thread's stack is about to be unmapped.
pub(crate) fn forget(thread: &Thread) {
    thread.stack_bottom.store(0, Ordering::Relaxed);
}

/// In checking builds, panics if `thread`, which has just left this CPU, came too near to the end of its stack.
///
/// Context: interrupts off, on another stack, before anybody else may run or bury the thread.
#[inline(always)]
pub(crate) fn check(thread: &'static Thread) {
    if cfg!(debug_assertions) {
        let bottom = thread.stack_bottom.load(Ordering::Relaxed);
        if bottom != 0 && (bottom..bottom + MARGIN).step_by(STRIDE).any(|at| !is_paint(at)) {
            too_deep(thread);
        }
    }
}

/// The word at an address on a stack that stays mapped.
fn is_paint(at: usize) -> bool {
    // SAFETY: STACK-2, and the caller's thread keeps its stack; the address is a multiple of a word's size.
    unsafe { ptr::with_exposed_provenance::<u64>(at).read_volatile() == PAINT }
}

#[cold]
#[inline(never)]
fn too_deep(thread: &'static Thread) -> ! {
    let used = thread.stack_used().unwrap_or(STACK_SIZE);
    sync::lock_order::switch_off();
    panic!(
        "stack depth: {thread:?} has used {used} of {STACK_SIZE} bytes of its stack; {MARGIN} should always be left"
    );
}

impl Thread {
    /// Bytes of its stack that it has used at its deepest; `None` where nobody knows: in builds without checks, and of
    /// threads whose stack was not made for them.
    ///
    /// Context: any. Reads up to the whole stack.
    pub fn stack_used(&self) -> Option<usize> {
        let bottom = self.stack_bottom.load(Ordering::Relaxed);
        // By way of `probe`: the stack may be unmapped meanwhile.
        let is_paint = |at: &usize| arch::probe::read(*at as u64) == Some(PAINT);
        let unused = (bottom..).step_by(WORD).take(STACK_SIZE / WORD).take_while(is_paint).count() * WORD;
        (bottom != 0).then_some(STACK_SIZE - unused)
    }
}
