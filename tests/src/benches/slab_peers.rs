//! An object and back at once, on up to four CPUs at the same time, beside other allocators that kernels use.
//!
//! `cargo xtask bench --cpus 4 'slab_peers.*'`: the time of one pair, over all CPUs together. Each peer stands behind one
//! spin lock, which is how kernels have it; its heap holds nothing else, so its lists are at their shortest.

use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr::NonNull;

use arch::{CpuId, cpu};
use mm::AllocFlags;
use sched::Prio;
use slab::{CacheFlags, RawCache};
use sync::{ATOMIC, LockClass, SpinLock};

use super::slab::{SIZE, destroy};
use crate::bench::Bencher;
use crate::{Failure, bench};

/// Pairs of one CPU in a sample: many times what starting a thread takes.
const PAIRS: u64 = 20_000;
/// Pages of a peer's heap, as a power of two.
const HEAP_ORDER: usize = 6;

/// Measures `pair` on up to four CPUs at once.
fn on_four_cpus(b: &mut Bencher<'_>, pair: impl Fn() + Copy + Send + 'static) {
    let cpus: Vec<CpuId> = cpu::online().iter().take(4).collect();
    b.samples = 11;
    b.sections(
        PAIRS * cpus.len() as u64,
        |_| (),
        |cx, ()| {
            let mut start = |&on: &CpuId| {
                sched::spawn(cx, "pair", Prio::NORMAL, Some(on), move |_| {
                    for _ in 0..PAIRS {
                        pair();
                    }
                })
            };
            let threads: Vec<_> = cpus.iter().filter_map(|on| start(on).ok()).collect();
            assert!(threads.len() == cpus.len(), "no memory for a thread");
            threads.into_iter().for_each(|thread| thread.join(cx));
        },
    );
}

fn cache_pair(cache: &'static RawCache) {
    if let Some(object) = cache.alloc(AllocFlags::NOWAIT) {
        // SAFETY: allocated above, given up here.
        unsafe { cache.free(object) };
    }
}

/// Measures with a heap of a peer's kind, which `give` hands the memory.
fn with_heap(b: &mut Bencher<'_>, give: impl FnOnce(NonNull<u8>, usize), pair: fn()) -> Result<(), Failure> {
    let page = mm::alloc_pages(HEAP_ORDER, None, AllocFlags::NOWAIT)
        .map_err(|error| crate::__failed!("no memory for the peer's heap: {error:?}"))?;
    let start = NonNull::new(page.virt()).expect("a page is not at null");
    give(start, page.bytes());
    on_four_cpus(b, pair);
    mm::free_pages(page, HEAP_ORDER);
    Ok(())
}

static PEER_LOCK: LockClass = LockClass::new("bench.peer");
static LINKED_LIST: SpinLock<linked_list_allocator::Heap> =
    SpinLock::new(linked_list_allocator::Heap::empty(), &PEER_LOCK);
static BUDDY: SpinLock<buddy_system_allocator::Heap<32>> =
    SpinLock::new(buddy_system_allocator::Heap::empty(), &PEER_LOCK);

const LAYOUT: Layout = match Layout::from_size_align(SIZE, 8) {
    Ok(layout) => layout,
    Err(_) => panic!("a size and an alignment"),
};

bench! {
    /// From a cache with sheaves.
    fn sheaves(b: &mut Bencher) {
        let cache = super::slab::cache("bench_peers")?;
        on_four_cpus(b, move || cache_pair(cache));
        destroy(cache, b.cx)
    }

    /// From a cache without: every call takes the list lock of the node, or changes a slab.
    fn no_sheaves(b: &mut Bencher) {
        let layout = slab::Layout::new("bench_no_sheaves", SIZE).flags(CacheFlags::NO_SHEAVES | CacheFlags::NO_MERGE);
        let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        on_four_cpus(b, move || cache_pair(cache));
        destroy(cache, b.cx)
    }

    /// From `linked_list_allocator`.
    fn linked_list_allocator(b: &mut Bencher) {
        // SAFETY: the memory is the heap's alone until the bench is over, and the heap is not used after.
        let give = |start: NonNull<u8>, bytes| unsafe {
            let mut heap = LINKED_LIST.lock_irqsave(ATOMIC);
            *heap = linked_list_allocator::Heap::new(start.as_ptr(), bytes);
        };
        with_heap(b, give, || {
            let object = LINKED_LIST.lock_irqsave(ATOMIC).allocate_first_fit(LAYOUT);
            if let Ok(object) = object {
                // SAFETY: allocated above, given up here.
                unsafe { LINKED_LIST.lock_irqsave(ATOMIC).deallocate(object, LAYOUT) };
            }
        })
    }

    /// From `buddy_system_allocator`.
    fn buddy_system_allocator(b: &mut Bencher) {
        // SAFETY: as above.
        let give = |start: NonNull<u8>, bytes| unsafe {
            let mut heap = BUDDY.lock_irqsave(ATOMIC);
            *heap = buddy_system_allocator::Heap::empty();
            heap.init(start.as_ptr().expose_provenance(), bytes);
        };
        with_heap(b, give, || {
            let object = BUDDY.lock_irqsave(ATOMIC).alloc(LAYOUT);
            if let Ok(object) = object {
                // SAFETY: allocated above, given up here.
                unsafe { BUDDY.lock_irqsave(ATOMIC).dealloc(object, LAYOUT) };
            }
        })
    }
}
