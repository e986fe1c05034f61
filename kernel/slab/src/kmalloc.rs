//! `kmalloc`: objects by size.
//!
//! Sizes up to 8192 bytes come from one of thirteen caches, larger ones from the page allocator. Whatever its size, an
//! object is found back from its address alone.
//!
//! Answers to Linux `mm/slab_common.c` and `mm/slub.c` (7.x).

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use arch::PAGE_SIZE;
use mm::{AllocFlags, PageKind};
use sync::bug;

use crate::Spin;
use crate::cache::{CacheFlags, Layout, RawCache};
use crate::debug::report_no_object;
use crate::deferred;
use crate::order::order_for;
use crate::slab_ref::SlabRef;

/// Alignment that every object has.
pub const MIN_ALIGN: usize = 8;

/// Largest size that comes from a cache.
pub const MAX_CACHED: usize = 8192;

const CLASSES: [(usize, &str); 13] = [
    (8, "kmalloc-8"),
    (16, "kmalloc-16"),
    (32, "kmalloc-32"),
    (64, "kmalloc-64"),
    (96, "kmalloc-96"),
    (128, "kmalloc-128"),
    (192, "kmalloc-192"),
    (256, "kmalloc-256"),
    (512, "kmalloc-512"),
    (1024, "kmalloc-1k"),
    (2048, "kmalloc-2k"),
    (4096, "kmalloc-4k"),
    (8192, "kmalloc-8k"),
];

/// Null until [`init`]. Not a `Once`: whoever calls [`kmalloc`] would test that, too.
static CACHES: [AtomicPtr<RawCache>; CLASSES.len()] = [const { AtomicPtr::new(ptr::null_mut()) }; CLASSES.len()];

/// Class of sizes up to 192 by `(size - 1) / 8`: they do not all follow the powers of two.
const SMALL: [u8; 24] = {
    let mut table = [0; 24];
    let mut index = 0;
    while index < table.len() {
        let mut class = 0;
        while CLASSES[class].0 < (index + 1) * 8 {
            class += 1;
        }
        table[index] = class as u8;
        index += 1;
    }
    table
};

/// Index of the class that serves `1..=MAX_CACHED` bytes.
#[inline(always)]
const fn class_of(size: usize) -> usize {
    if size <= 192 {
        SMALL[(size - 1) / 8] as usize
    } else {
        // 193..=256 is class 7, and each power of two after it one more.
        (size - 1).ilog2() as usize
    }
}

/// What `kmalloc(0)` returns: not null, and never to be touched.
pub const ZERO_SIZE: NonNull<u8> = NonNull::without_provenance(core::num::NonZero::new(16).unwrap());

/// Makes the size classes.
pub(crate) fn init() {
    for ((size, name), slot) in CLASSES.into_iter().zip(&CACHES) {
        let layout = Layout::new(name, size).align(alignment_of(size)).flags(CacheFlags::KMALLOC);
        let cache = crate::create(layout).expect("no memory for the kmalloc caches");
        // Relaxed: no other CPU runs yet.
        slot.store(ptr::from_ref(cache).cast_mut(), Relaxed);
    }
}

/// A power of two is aligned to itself, up to a page; 96 and 192 to what divides them.
const fn alignment_of(class: usize) -> usize {
    let align = 1 << class.trailing_zeros();
    if align < PAGE_SIZE { align } else { PAGE_SIZE }
}

/// Whether [`kmalloc`] may be called yet.
pub fn is_up() -> bool {
    cache_of(CLASSES.len() - 1).is_some()
}

#[inline]
pub(crate) fn cache_for(size: usize) -> &'static RawCache {
    cache_of(class_of(size)).expect("kmalloc before slab::init")
}

/// The cache of a class, if there is such a class and it has been made.
#[inline(always)]
fn cache_of(class: usize) -> Option<&'static RawCache> {
    // SAFETY: null, or what `init` stored, which stays for ever.
    unsafe { CACHES.get(class)?.load(Relaxed).as_ref() }
}

/// Allocates `size` bytes, aligned to 8, and to `size` itself if that is a power of two.
///
/// Size 0 gives [`ZERO_SIZE`]. Context: any but NMI; never sleeps.
#[inline]
pub fn kmalloc(size: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
    if size == 0 {
        return Some(ZERO_SIZE);
    }
    if size > MAX_CACHED {
        return large(size, PAGE_SIZE, flags);
    }
    cache_for(size).alloc_asked(size, flags)
}

/// [`kmalloc`] with an alignment, any power of two. The size need not be a multiple of it.
///
/// Up to a page it costs at most the next power of two, beyond that a block of `align` bytes. Context: any but NMI.
pub fn kmalloc_aligned(size: usize, align: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
    debug_assert!(align.is_power_of_two(), "alignment {align}");
    if align <= MIN_ALIGN || size == 0 {
        return kmalloc(size, flags);
    }
    // A class is aligned to the largest power of two in its size, up to a page: so is the smallest one that holds a
    // multiple of `align`.
    match size.checked_next_multiple_of(align)? {
        rounded @ ..=MAX_CACHED if align <= PAGE_SIZE => kmalloc(rounded, flags),
        _ => large(size, align, flags),
    }
}

/// [`kmalloc`] of `count` times `size` bytes; nothing if that is more than there are addresses.
///
/// Context: any but NMI.
pub fn kmalloc_array(count: usize, size: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
    kmalloc(count.checked_mul(size)?, flags)
}

/// [`kmalloc_array`] of zeroed memory.
pub fn kcalloc(count: usize, size: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
    kmalloc_array(count, size, flags | AllocFlags::ZERO)
}

/// [`kmalloc`] of zeroed memory.
pub fn kzalloc(size: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
    kmalloc(size, flags | AllocFlags::ZERO)
}

/// A block of pages, which is aligned to its size.
#[cold]
fn large(size: usize, align: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
    large_block(size, align, |order| mm::alloc_pages(order, None, flags).ok())
}

/// The same from `alloc`, which is given its order.
pub(crate) fn large_block(
    size: usize,
    align: usize,
    alloc: impl FnOnce(usize) -> Option<&'static mm::Page>,
) -> Option<NonNull<u8>> {
    let page = Some(order_for(size.max(align))).filter(|&order| order <= mm::MAX_ORDER).and_then(alloc)?;
    page.set_large(size);
    NonNull::new(page.virt())
}

/// Frees what any of the `kmalloc` family returned, [`kmalloc_nolock`] included (S1-5).
///
/// Context: any but NMI.
///
/// # Safety
/// `object` came from the `kmalloc` family or a cache, was not freed since, and nobody uses it any more.
#[inline]
pub unsafe fn kfree(object: NonNull<u8>) {
    if !RawCache::may_free_at(None, object) {
        return;
    }
    if let Some(cache) = SlabRef::local_cache_of(object)
        && cache.free_fast(object)
    {
        return;
    }
    // SAFETY: passed on from the caller.
    unsafe { free_miss(object) }
}

/// A [`kfree`] that the fast path could not do.
#[cold]
#[inline(never)]
unsafe fn free_miss(object: NonNull<u8>) {
    match SlabRef::of(object) {
        Some(slab) => slab.cache().free_slow(object),
        // SAFETY: passed on from the caller.
        None => unsafe { free_large(object) },
    }
}

/// The first page of a large object; nothing if it is none.
pub(crate) fn large_page(object: NonNull<u8>) -> Option<&'static mm::Page> {
    mm::page_of(object.as_ptr()).filter(|page| page.kind() == PageKind::Large && page.virt() == object.as_ptr())
}

#[cold]
unsafe fn free_large(object: NonNull<u8>) {
    if object == ZERO_SIZE {
        return;
    }
    let Some(page) = large_page(object) else { return report_no_object(None, object) };
    let order = page.order();
    page.set_kind(PageKind::Allocated);
    mm::free_pages(page, order);
}

/// Bytes that the holder of `object` may use: those of its class, or of its whole block of pages.
///
/// # Safety
/// As for [`kfree`], but for the last use.
pub unsafe fn ksize(object: NonNull<u8>) -> usize {
    match SlabRef::of(object) {
        Some(slab) => slab.cache().usable(object),
        None if object == ZERO_SIZE => 0,
        None => mm::page_of(object.as_ptr()).map_or(0, |page| page.bytes()),
    }
}

/// Allocates up to [`MAX_CACHED`] bytes, aligned to 8, without waiting for anybody.
///
/// Where a lock is busy, or memory is short, it tries once more, in the next larger class; then the answer is `None`, which is
/// a value and not an error (M-11). Nothing is reclaimed and no reserve is touched; of the flags only ZERO, NOWARN and
/// NO_RESERVE are allowed, and the latter two go without saying. Size 0 gives [`ZERO_SIZE`].
///
/// Context: any, NMI included, also one that interrupted the allocator on this CPU, at any instruction.
///
/// # Panics
/// In checking builds, for other flags.
pub fn kmalloc_nolock(size: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
    if size == 0 {
        return Some(ZERO_SIZE);
    }
    if size > MAX_CACHED {
        return None;
    }
    let class = class_of(size);
    let try_class = |class: usize| {
        let cache = cache_of(class)?;
        let object = cache.alloc_nolock(flags)?;
        cache.note_asked(object, size, Spin::Never);
        Some(object)
    };
    let more =
        if bug!("nolock.third_class", "two larger classes are tried", "slab_nolock.*larger_class*") { 2 } else { 1 };
    (class..=class + more).find_map(try_class)
}

/// Frees any kmalloc or cache object, large ones included, without waiting for anybody.
///
/// Into this CPU's sheaf where that is free to use and has room, else onto the CPU's deferred list, which is drained soon
/// after in a context that may take locks. Allocates nothing, so it cannot fail.
///
/// Context: any, NMI included, also one that interrupted the allocator on this CPU, at any instruction.
///
/// # Safety
/// As for [`kfree`].
pub unsafe fn kfree_nolock(object: NonNull<u8>) {
    if object == ZERO_SIZE {
        return;
    }
    if let Some(slab) = SlabRef::of(object) {
        let cache = slab.cache();
        if !cache.may_free(slab, object) {
            return;
        }
        let waits = bug!("nolock.waits", "kfree_nolock waits for the barn's lock", "slab_hooks");
        let spin = if waits { Spin::May } else { Spin::Never };
        if slab.is_home() && (cache.free_fast(object) || cache.free_to_sheaf(object, spin)) {
            return;
        }
    } else {
        let Some(page) = large_page(object) else { return report_no_object(None, object) };
        if !RawCache::may_free_large(object) {
            return;
        }
        // Who frees it once more, before the list is drained, finds no large object.
        page.set_kind(PageKind::Allocated);
    }
    deferred::defer_free(object);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for size in 1..=MAX_CACHED {
            let class = class_of(size);
            assert!(CLASSES[class].0 >= size, "{size}");
            assert!(class == 0 || CLASSES[class - 1].0 < size, "{size}");
        }
    }

    #[test]
    fn the_class_of_a_multiple_of_an_alignment_is_aligned_to_it() {
        for align in (4..=12).map(|bit| 1 << bit) {
            for size in (align..=MAX_CACHED).step_by(align) {
                let class = CLASSES[class_of(size)].0;
                assert!(alignment_of(class) >= align, "{size} bytes, class {class}");
            }
        }
    }
}
