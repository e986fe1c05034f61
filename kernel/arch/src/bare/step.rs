//! Running code one instruction at a time: the trap flag makes a debug exception after each.
//!
//! With this, what must hold "at any instruction" is proved and not sampled: the debug exception
//! plays an NMI at every boundary of a path.
//!
//! - STEP-1: the state belongs to one CPU and the trap flag to one thread; the caller of
//!   [`single_step`] is pinned, so they stay together. A handler runs with the flag clear, so
//!   neither it nor what `at_each` calls is stepped.
//! - STEP-2: the boundary behind an `sti` is visited, too, although no debug exception comes there: `sti` holds them back
//!   for an instruction, but not NMIs. So a stepped `sti` is done by the handler, and what follows it is, as after an
//!   NMI at that place, no longer protected from interrupts that were pending.
//!
//! Answers to `arch/x86/kernel/kprobes` and `step.c` of Linux in mechanism, not in purpose.

use core::arch::asm;
use core::ptr;

use super::apic;
use super::trap::TrapFrame;

/// DR6: this debug exception comes from single-stepping.
const SINGLE_STEP: u64 = 1 << 14;
/// RFLAGS: trap after each instruction.
const TRAP_FLAG: u64 = 1 << 8;
/// The instruction that turns interrupts on.
const STI: u8 = 0xfb;

struct State {
    at_each: Option<fn()>,
    boundaries: u64,
}

crate::per_cpu! {
    /// The run on this CPU, if any. Written by [`single_step`] and, inside of it, by [`on_debug`].
    static STATE: State = State { at_each: None, boundaries: 0 };
}

/// Runs `f` and calls `at_each` after every single instruction of it, as if by an NMI that hits
/// there. Returns how many boundaries there were; a dozen of them are this function's own.
///
/// `at_each` runs in the debug exception, on the stack of `f`, with interrupts off; interrupts that
/// are on in `f` are taken between instructions as usual and are not stepped.
///
/// Context: any but inside another call on the same CPU; pinned to this CPU until it returns.
///
/// # Panics
/// If a single-step run is in progress on this CPU.
pub fn single_step(f: impl FnOnce(), at_each: fn()) -> u64 {
    let state = STATE.this_ptr();
    // SAFETY: this CPU's copy, pinned; the trap flag is clear, so the handler does not use it now.
    unsafe {
        assert!((*state).at_each.is_none(), "STEP-1: single_step inside single_step");
        state.write(State { at_each: Some(at_each), boundaries: 0 });
        // Not `preserves_flags`, not `nomem`: what `f` does stays between the two.
        asm!("pushfq", "or qword ptr [rsp], {flag}", "popfq", flag = const TRAP_FLAG);
    }
    f();
    // SAFETY: clears the flag; the boundary after `popfq` is the last one.
    unsafe { asm!("pushfq", "and qword ptr [rsp], {mask}", "popfq", mask = const !(TRAP_FLAG as i64)) };
    // SAFETY: as above; no more debug exceptions of this run come.
    unsafe {
        (*state).at_each = None;
        (*state).boundaries
    }
}

/// Handles a debug exception of a single-step run; false if it is not one.
pub(super) fn on_debug(frame: &mut TrapFrame) -> bool {
    let state = STATE.this_ptr();
    // SAFETY: runs on the CPU and thread of `single_step`, between its two blocks, with the flag
    // clear: nobody else uses the state (STEP-1).
    let Some(at_each) = (unsafe { (*state).at_each }) else { return false };
    let status: u64;
    // SAFETY: DR6 only tells why; it is sticky, so it is cleared for the next time.
    unsafe {
        asm!("mov {0}, dr6", out(reg) status, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {0}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
    }
    if status & SINGLE_STEP == 0 {
        return false;
    }
    loop {
        // SAFETY: as above.
        unsafe { (*state).boundaries += 1 };
        apic::keeping_command(at_each);
        // SAFETY: where the CPU goes on there is an instruction.
        if unsafe { *ptr::with_exposed_provenance::<u8>(frame.ip() as usize) } != STI {
            return true;
        }
        frame.do_sti(); // STEP-2
    }
}
