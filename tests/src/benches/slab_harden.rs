//! What hardening costs where it costs: at the slab, which sheaves come to once for many objects.

use mm::AllocFlags;
use slab::{CacheFlags, Harden, Layout, RawCache};

use super::slab::destroy;
use crate::bench::Bencher;
use crate::{Failure, bench};

/// A pair that goes to the slab and back, on a cache without sheaves.
fn slab_pair(b: &mut Bencher<'_>, harden: Harden) -> Result<(), Failure> {
    let cache = cache(harden)?;
    // One stays, so that its slab does.
    let keep = cache.alloc(AllocFlags::NOWAIT);
    b.each(1, |_| pair(cache));
    if let Some(object) = keep {
        // SAFETY: allocated above, given up here.
        unsafe { cache.free(object) };
    }
    destroy(cache, b.cx)
}

/// A slab that is made for one object, and goes with it.
fn new_slab(b: &mut Bencher<'_>, harden: Harden) -> Result<(), Failure> {
    let cache = cache(harden)?;
    cache.set_min_partial(0);
    b.samples = 21;
    b.each(1, |_| pair(cache));
    destroy(cache, b.cx)
}

fn cache(harden: Harden) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new("bench_harden", 64).flags(CacheFlags::NO_MERGE | CacheFlags::NO_SHEAVES).harden(harden);
    slab::create(layout).map_err(|error| crate::__failed!("{error}"))
}

fn pair(cache: &RawCache) {
    if let Some(object) = cache.alloc(AllocFlags::NOWAIT) {
        // SAFETY: just allocated.
        unsafe { cache.free(object) };
    }
}

bench! {
    /// Plain links.
    fn slab_pair_plain(b: &mut Bencher) {
        slab_pair(b, Harden::empty())
    }

    /// Hidden links.
    fn slab_pair_hidden(b: &mut Bencher) {
        slab_pair(b, Harden::HIDE_LINKS)
    }

    /// 64 bytes zeroed, on the way out.
    fn slab_pair_zero_on_alloc(b: &mut Bencher) {
        slab_pair(b, Harden::ZERO_ON_ALLOC)
    }

    /// A page of 64 objects, in order.
    fn new_slab_plain(b: &mut Bencher) {
        new_slab(b, Harden::empty())
    }

    /// In random order.
    fn new_slab_shuffled(b: &mut Bencher) {
        new_slab(b, Harden::SHUFFLE)
    }
}
