//! The `#[global_allocator]`: an early heap until `slab` is up, `kmalloc` from then on.
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

/// Alignment that every `kmalloc` has.
const KMALLOC_ALIGN: usize = 8;

struct KernelHeap {
    /// The early heap; chunks without memory are empty heaps. Interrupts off while held; nests in
    /// whatever lock the caller of the allocator holds, and nothing nests in it: pages are asked for
    /// outside of it.
    chunks: SpinLock<[Heap; MAX_CHUNKS]>,
}

#[global_allocator]
static HEAP: KernelHeap =
    KernelHeap { chunks: SpinLock::new([const { Heap::empty() }; MAX_CHUNKS], lock_class!("kernel.early_heap")) };

// SAFETY: blocks come from a chunk's free list or from `kmalloc`, each of which hands out memory once
// until it is given back; both respect size and alignment (`kmalloc_size`).
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        debug_assert!(!context::in_nmi(), "HEAP-2: allocation of {layout:?} in an NMI");
        let block = if slab::kmalloc::is_up() {
            kmalloc_size(layout).and_then(|size| slab::kmalloc::kmalloc(size, AllocFlags::NOWAIT))
        } else {
            self.alloc_early(layout)
        };
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        debug_assert!(!context::in_nmi(), "HEAP-2: {layout:?} given back in an NMI");
        let Some(block) = NonNull::new(block) else {
            return;
        };
        // HEAP-1, without a lock: the page says whose it is.
        let page = mm::page_of(block.as_ptr()).expect("HEAP-1: a block of neither allocator").head();
        match page.kind() {
            // SAFETY: `kmalloc`'s pages, so it returned the block; the caller is done with it.
            PageKind::Slab | PageKind::Large => unsafe { slab::kmalloc::kfree(block) },
            _ => self.free_early(block, layout),
        }
    }
}

impl KernelHeap {
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

/// The size to ask `kmalloc` for, so that the block is aligned: powers of two are aligned to
/// themselves, up to a page. None for alignments beyond that.
fn kmalloc_size(layout: Layout) -> Option<usize> {
    let (size, align) = (layout.size(), layout.align());
    if align <= KMALLOC_ALIGN {
        Some(size)
    } else if align <= PAGE_SIZE {
        Some(size.max(align).next_power_of_two())
    } else {
        None
    }
}
