//! The `#[global_allocator]`: an early heap until `slab` is up, `kmalloc` from then on.
//!
//! Any alignment will do. A block of `kmalloc` grows in place within its class; a block of the early heap that changes its
//! size after `slab` is up moves to `kmalloc`.
//!
//! The early heap is made of chunks of pages, each with a free list of its own
//! (`linked_list_allocator`). It grows by a chunk when none has room, and never shrinks: what is
//! allocated before `slab` is little and lives long.
//!
//! - HEAP-1: a block goes back to the allocator whose memory it lies in: its page's descriptor tells. Chunks are only
//!   ever added, so an address that was once in a chunk stays in it.
//! - HEAP-2: never entered from NMI; checked where assertions are on.
//!
//! Context: any but NMI; does not sleep.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use arch::PAGE_SIZE;
use linked_list_allocator::Heap;
use mm::{AllocFlags, PageKind};
use sync::{ATOMIC, SpinLock, context, lock_class};

/// Chunks that the early heap may have.
const MAX_CHUNKS: usize = 8;

/// Binary logarithm of the pages of a chunk: 1 MiB.
const CHUNK_ORDER: usize = 8;

/// The allocator; the kernel has one.
pub struct KernelHeap {
    /// The early heap; chunks without memory are empty heaps. Interrupts off while held; nests in
    /// whatever lock the caller of the allocator holds, and nothing nests in it: pages are asked for
    /// outside of it.
    chunks: SpinLock<[Heap; MAX_CHUNKS]>,
}

// SAFETY: blocks come from a chunk's free list or from `kmalloc`, each of which hands out memory once
// until it is given back; both respect size and alignment.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.allocate(layout, AllocFlags::NOWAIT).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.allocate(layout, AllocFlags::ZERO).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        debug_assert!(!context::in_nmi(), "HEAP-2: {layout:?} given back in an NMI");
        let Some(block) = NonNull::new(block) else {
            return;
        };
        if is_kmalloc(block) {
            // SAFETY: `kmalloc`'s pages, so it returned the block; the caller is done with it.
            unsafe { slab::kfree(block) };
        } else {
            self.free_early(block, layout);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        debug_assert!(!context::in_nmi(), "HEAP-2: {layout:?} resized in an NMI");
        let align = layout.align();
        if let Some(block) = NonNull::new(block).filter(|&block| is_kmalloc(block)) {
            // SAFETY: as in `dealloc`; on failure the block stays the caller's.
            let block = unsafe { slab::krealloc_aligned(Some(block), new_size, align, AllocFlags::NOWAIT) };
            return block.map_or(ptr::null_mut(), NonNull::as_ptr);
        }
        // SAFETY: the caller keeps `new_size` to what a layout may be with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(new_size, align) };
        let Some(new) = self.allocate(wanted, AllocFlags::NOWAIT) else {
            return ptr::null_mut();
        };
        // SAFETY: both blocks hold as many bytes, and a fresh one is no part of another. The old one goes back by
        // its own layout.
        unsafe {
            new.as_ptr().copy_from_nonoverlapping(block, new_size.min(layout.size()));
            self.dealloc(block, layout);
        }
        new.as_ptr()
    }
}

impl KernelHeap {
    /// A heap without memory.
    #[expect(clippy::new_without_default, reason = "it is made once, in a static")]
    pub const fn new() -> Self {
        Self { chunks: SpinLock::new([const { Heap::empty() }; MAX_CHUNKS], lock_class!("kernel.early_heap")) }
    }

    fn allocate(&self, layout: Layout, flags: AllocFlags) -> Option<NonNull<u8>> {
        debug_assert!(!context::in_nmi(), "HEAP-2: allocation of {layout:?} in an NMI");
        if slab::kmalloc::is_up() {
            return slab::kmalloc_aligned(layout.size(), layout.align(), flags);
        }
        let block = self.alloc_early(layout)?;
        if flags.contains(AllocFlags::ZERO) {
            // SAFETY: a fresh block of that size.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        Some(block)
    }

    fn alloc_early(&self, layout: Layout) -> Option<NonNull<u8>> {
        let from_chunks = || {
            let mut chunks = self.chunks.lock_irqsave(ATOMIC);
            chunks.iter_mut().find_map(|chunk| chunk.allocate_first_fit(layout).ok())
        };
        from_chunks().or_else(|| {
            self.grow()?;
            from_chunks()
        })
    }

    /// Gives the block back to its chunk.
    fn free_early(&self, block: NonNull<u8>, layout: Layout) {
        let mut chunks = self.chunks.lock_irqsave(ATOMIC);
        let home =
            chunks.iter_mut().find(|chunk| (chunk.bottom()..chunk.top()).contains(&block.as_ptr()) && chunk.size() > 0);
        let chunk = home.expect("HEAP-1: a block of neither allocator");
        // SAFETY: the block lies in this chunk, so it was allocated from it (HEAP-1), with this
        // layout, by the contract of `GlobalAlloc`.
        unsafe { chunk.deallocate(block, layout) };
    }

    /// Adds a chunk; none if there is no memory or no room for one.
    fn grow(&self) -> Option<()> {
        let page = mm::alloc_pages(CHUNK_ORDER, None, AllocFlags::NOWAIT).ok()?;
        let mut chunks = self.chunks.lock_irqsave(ATOMIC);
        match chunks.iter_mut().find(|chunk| chunk.size() == 0) {
            Some(chunk) => {
                // SAFETY: fresh pages that nobody else has, mapped for good, aligned to a page.
                unsafe { chunk.init(page.virt(), PAGE_SIZE << CHUNK_ORDER) };
                Some(())
            }
            None => {
                drop(chunks);
                mm::free_pages(page, CHUNK_ORDER);
                None
            }
        }
    }
}

/// HEAP-1, without a lock: the page says whose block it is.
fn is_kmalloc(block: NonNull<u8>) -> bool {
    let page = mm::page_of(block.as_ptr()).expect("HEAP-1: a block of neither allocator").head();
    matches!(page.kind(), PageKind::Slab | PageKind::Large)
}

#[cfg(test)]
#[path = "heap_tests.rs"]
mod tests;
