//! What a cache's sheaf capacity brings: the same bursts with half, with all and with twice the default (S5-14). A sheaf
//! fills a power of two of which the header takes the room of 4 objects, so these are 28, 60 and 124.
//!
//! What it costs is memory: see the test `slab_tune.what_capacity_and_limits_bring_and_cost`.

use mm::AllocFlags;

use super::slab::{cache, destroy};
use crate::bench;
use crate::bench::Bencher;
use crate::outcome::Failure;

/// So many allocations, then as many frees; most bursts fit into two sheaves, some do not.
const BURSTS: [usize; 6] = [8, 300, 40, 150, 20, 80];
const PAIRS: usize = 8 + 300 + 40 + 150 + 20 + 80;

fn bursts(b: &mut Bencher<'_>, name: &'static str, share: fn(usize) -> usize) -> Result<(), Failure> {
    let cache = cache(name)?;
    let capacity = share(cache.sheaf_capacity());
    cache.set_capacity(capacity, b.cx).map_err(|error| crate::__failed!("{error}"))?;
    let mut held = [None; 300];
    b.samples = 11;
    b.each(PAIRS as u64, |_| {
        for burst in BURSTS {
            for place in &mut held[..burst] {
                *place = cache.alloc(AllocFlags::NOWAIT);
            }
            for object in held[..burst].iter_mut().filter_map(Option::take) {
                // SAFETY: allocated above, given up once.
                unsafe { cache.free(object) };
            }
        }
    });
    destroy(cache, b.cx)
}

bench! {
    /// A pair in bursts of 8 to 300, sheaves of half the default capacity.
    fn bursts_with_half_the_capacity(b: &mut Bencher) {
        bursts(b, "bench_half", |capacity| capacity.div_ceil(2) - 2)
    }

    /// The same, sheaves of the default capacity.
    fn bursts_with_the_default_capacity(b: &mut Bencher) {
        bursts(b, "bench_default", |capacity| capacity)
    }

    /// The same, sheaves of twice the default capacity.
    fn bursts_with_twice_the_capacity(b: &mut Bencher) {
        bursts(b, "bench_twice", |capacity| 2 * capacity + 4)
    }
}
