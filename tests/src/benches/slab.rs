//! Allocating and freeing.

use core::ptr::NonNull;

use mm::AllocFlags;
use slab::{CacheFlags, Layout, RawCache};
use sync::MaySleep;

use crate::{Failure, bench};

/// Bytes of an object.
pub(super) const SIZE: usize = 64;

/// A cache for one bench.
pub(super) fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

/// Ends it.
pub(super) fn destroy(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: its bench is over, and nobody else knew it.
    unsafe { slab::flush::destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
}

bench! {
    /// An object, and back at once.
    #[goal(counted = 36)]
    fn alloc_free_pair(b: &mut Bencher) {
        let cache = cache("bench_pair")?;
        b.each(1, |_| {
            if let Some(object) = cache.alloc(AllocFlags::NOWAIT) {
                // SAFETY: allocated above, given up here.
                unsafe { cache.free(object) };
            }
        });
        destroy(cache, b.cx)
    }

    /// As many allocations as four sheaves hold, then as many frees; the array that holds the objects counts.
    #[goal(counted = 45)]
    fn burst_of_128(b: &mut Bencher) {
        const BURST: usize = 128;
        let cache = cache("bench_burst")?;
        let mut held = [NonNull::dangling(); BURST];
        b.samples = 21;
        b.each(BURST as u64, |_| {
            // Backwards, because a loop that ends at 0 needs no comparison.
            for at in (0..BURST).rev() {
                held[at] = cache.alloc(AllocFlags::NOWAIT).expect("memory for four sheaves of objects");
            }
            for at in (0..BURST).rev() {
                // SAFETY: allocated above, given up once.
                unsafe { cache.free(held[at]) };
            }
        });
        destroy(cache, b.cx)
    }

    /// 64 bytes by size, and back by address alone.
    #[goal(counted = 55)]
    fn kmalloc_kfree(b: &mut Bencher) {
        b.each(1, |_| {
            if let Some(object) = slab::kmalloc(SIZE, AllocFlags::NOWAIT) {
                // SAFETY: allocated above, given up here.
                unsafe { slab::kfree(object) };
            }
        });
        Ok(())
    }
}
