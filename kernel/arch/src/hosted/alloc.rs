//! The host's allocator, safe to use inside a machine (HOST-2).

use std::alloc::{GlobalAlloc, Layout, System};

use super::host_call;

/// The system allocator inside [`host_call`]: no interrupt, NMI or end of the machine in the midst of it.
///
/// ```
/// # use grange_arch as arch;
/// #[global_allocator]
/// static ALLOCATOR: arch::hosted::HostAlloc = arch::hosted::HostAlloc;
/// ```
#[derive(Debug)]
pub struct HostAlloc;

// SAFETY: all four pass on to the system allocator.
unsafe impl GlobalAlloc for HostAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        host_call(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        host_call(|| unsafe { System.dealloc(block, layout) });
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        host_call(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        host_call(|| unsafe { System.realloc(block, layout, new_size) })
    }
}
