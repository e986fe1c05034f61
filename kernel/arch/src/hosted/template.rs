//! The per-CPU template as the linker made it, kept for all machines of the process.
//!
//! Threads that are not CPUs work on the template itself (HOST-3): tests of plain locks, for instance, which count there
//! and at any moment are in the midst of it. So a copy is made before `main`, when there are no such threads.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

#[cfg(not(miri))]
use crate::percpu;

/// The copy; null if there is none (under Miri). Written once, before `main`.
static COPY: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// The dynamic linker calls what this section lists, after relocation and before `main`.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static KEEP: extern "C" fn() = keep;

/// Makes the copy.
#[cfg(not(miri))]
extern "C" fn keep() {
    // Always true here: GS is 0. The access keeps one variable in the program: in one that uses none the linker would drop
    // the section, and then know nothing of its bounds.
    if percpu::THIS_CPU_OFF.get() != 0 {
        return;
    }
    let (start, len) = percpu::template();
    // SAFETY: memory of that size, checked for null, and the template, which no one changes yet.
    unsafe {
        let copy = libc::malloc(len);
        if !copy.is_null() {
            ptr::copy_nonoverlapping(start, copy.cast(), len);
        }
        // Relaxed: there is one thread.
        COPY.store(copy.cast(), Ordering::Relaxed);
    }
}

/// The contents of the template before anybody ran, as long as the template.
pub(crate) fn pristine_template() -> Option<*const u8> {
    let copy = COPY.load(Ordering::Relaxed);
    (!copy.is_null()).then_some(copy.cast_const())
}
