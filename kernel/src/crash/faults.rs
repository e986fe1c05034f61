//! The processor ends the kernel: exceptions that nobody handles.

use core::hint::black_box;

use arch::bare::wreck;

#[inline(never)]
pub(super) fn access_null() {
    let null = black_box(core::ptr::null::<u64>());
    // SAFETY: none: the fault is what is asked for.
    let value = unsafe { null.wrapping_add(1).read_volatile() };
    black_box(value);
}

#[inline(never)]
pub(super) fn access_wild() {
    wreck::non_canonical();
}

#[inline(never)]
pub(super) fn write_ro() {
    static CONSTANT: [u8; 16] = [0xc3; 16];
    // SAFETY: none: the fault is what is asked for; constants are not writable.
    unsafe { black_box(CONSTANT.as_ptr()).cast_mut().write_volatile(0) };
}

#[inline(never)]
pub(super) fn write_kern() {
    let text = black_box(access_null as fn() as usize as *mut u8);
    // SAFETY: none: the fault is what is asked for; text is not writable.
    unsafe { text.write_volatile(0) };
}

#[inline(never)]
pub(super) fn exec_data() {
    static DATA: [u8; 16] = [0xc3; 16];
    call(DATA.as_ptr());
}

#[inline(never)]
pub(super) fn exec_null() {
    // A function pointer is never null; what comes close is in the same page.
    call(core::ptr::without_provenance(1));
}

/// Calls what is no function.
#[inline(never)]
fn call(target: *const u8) {
    // SAFETY: none: the fault is what is asked for; the target is not executable.
    let function = unsafe { core::mem::transmute::<*const u8, fn()>(black_box(target)) };
    function();
    // Not the last thing, so that this function is among the callers.
    black_box(target);
}

#[inline(never)]
pub(super) fn exhaust_stack() {
    fn deeper(depth: u64) -> u64 {
        let frame = black_box([depth; 32]);
        if depth == u64::MAX { 0 } else { deeper(depth + 1) + frame[7] }
    }
    black_box(deeper(0));
}

#[inline(never)]
pub(super) fn invalid_opcode() {
    wreck::invalid_opcode()
}

#[inline(never)]
pub(super) fn double_fault() {
    wreck::double_fault()
}

#[inline(never)]
pub(super) fn triple_fault() {
    wreck::triple_fault()
}
