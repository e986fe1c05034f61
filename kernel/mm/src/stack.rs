//! Stacks of kernel threads: vmalloc areas, so that the page below a stack is unmapped and an overflow faults at once.
//!
//! Linux: `CONFIG_VMAP_STACK` (`kernel/fork.c`).

use core::ptr::NonNull;

use sync::MaySleep;

use crate::flags::AllocError;
use crate::vmalloc;

/// Bytes of a stack: what the machine wants, and at least 32 KiB in checking builds, whose frames are larger.
pub const STACK_SIZE: usize = {
    let least = if cfg!(debug_assertions) { 32 * 1024 } else { 0 };
    if arch::task::STACK_SIZE > least { arch::task::STACK_SIZE } else { least }
};

/// A stack of [`STACK_SIZE`] bytes. It must be given back by [`free`](Self::free) or [`free_deferred`](Self::free_deferred);
/// one that is dropped is lost.
#[derive(Debug)]
#[must_use = "a stack that is dropped is lost"]
pub struct Stack {
    bottom: NonNull<u8>,
}

// SAFETY: a stack is memory that belongs to no CPU or thread before it is run on.
unsafe impl Send for Stack {}
// SAFETY: shared, it only tells its bounds.
unsafe impl Sync for Stack {}

/// A stack for a new thread.
///
/// Context: thread that may sleep. Reclaims before it fails.
///
/// # Errors
/// No memory.
pub fn alloc(cx: &mut MaySleep) -> Result<Stack, AllocError> {
    vmalloc::vmalloc(STACK_SIZE, cx).map(|bottom| Stack { bottom })
}

/// A stack before there are threads, such as those of the idle threads.
///
/// Context: task. Does not wait.
///
/// # Errors
/// No memory.
pub fn alloc_boot() -> Result<Stack, AllocError> {
    vmalloc::vmalloc_boot(STACK_SIZE).map(|bottom| Stack { bottom })
}

impl Stack {
    /// Behind its highest byte, 16-byte aligned: where the stack pointer begins.
    pub fn top(&self) -> *mut u8 {
        self.bottom.as_ptr().wrapping_add(STACK_SIZE)
    }

    /// Its lowest byte; the guard page lies below.
    pub fn bottom(&self) -> *mut u8 {
        self.bottom.as_ptr()
    }

    /// Whether an address lies on it.
    pub fn contains(&self, addr: usize) -> bool {
        (self.bottom.as_ptr().addr()..self.top().addr()).contains(&addr)
    }

    /// Gives it back. Nothing runs on it any more.
    ///
    /// Context: thread that may sleep, on another stack.
    pub fn free(self, cx: &mut MaySleep) {
        vmalloc::vfree(self.bottom, cx);
    }

    /// Gives it back from anywhere. Nothing runs on it any more.
    ///
    /// Context: any, on another stack.
    pub fn free_deferred(self) {
        vmalloc::vfree_deferred(self.bottom);
    }
}
