//! Caches that are tuned, shrunk and destroyed while they are used: nothing is lost, and every page comes back.

use alloc::vec::Vec;
use core::ptr::NonNull;

use arch::cpu;
use mm::AllocFlags;
use slab::flush::{Leaked, destroy};
use slab::{CacheFlags, Layout, RawCache, Stat};

use crate::{Failure, ensure, ensure_eq, ktest};

/// Bytes of the objects of these tests.
const SIZE: usize = 64;

/// A cache for one test.
fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

fn allocate(cache: &RawCache, count: usize) -> Vec<NonNull<u8>> {
    (0..count).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect()
}

fn free(cache: &RawCache, objects: Vec<NonNull<u8>>) {
    // SAFETY: allocated from the cache, each given up once.
    objects.into_iter().for_each(|object| unsafe { cache.free(object) });
}

/// Fill of the barns: (node, full sheaves, empty sheaves).
fn barn_fill(cache: &RawCache) -> Vec<(arch::NodeId, u32, u32)> {
    cache.by_node().map(|info| (info.node, info.barn_full.0, info.barn_empty.0)).collect()
}

ktest! {
    /// Each leaked object is counted, the first are listed, and the cache stays and is of use (M-14).
    fn leaked_objects_are_counted_and_the_cache_stays_usable(t: &mut Test) {
        const LEAKED: usize = 100;
        let cache = cache("test_leaks")?;
        let mut held = allocate(cache, 3 * LEAKED);
        ensure_eq!(held.len(), 3 * LEAKED);
        let leaked = held.split_off(2 * LEAKED);
        free(cache, held);
        for _ in 0..2 {
            // SAFETY: nobody allocates from it or frees to it meanwhile.
            ensure_eq!(unsafe { destroy(cache, t.cx) }, Err(Leaked(LEAKED as u64)));
            ensure_eq!(slab::registry::find("test_leaks").map(core::ptr::from_ref), Some(core::ptr::from_ref(cache)));
            free(cache, allocate(cache, 2 * cache.sheaf_capacity()));
        }
        free(cache, leaked);
        // SAFETY: nobody uses it any more.
        ensure_eq!(unsafe { destroy(cache, t.cx) }, Ok(()));
        ensure!(slab::registry::find("test_leaks").is_none(), "destroyed, but still on the list");
        Ok(())
    }

    /// Destroying one cache leaves the others' sheaves, barns and counters alone (S5-6).
    fn destroying_a_cache_flushes_no_other(t: &mut Test) {
        let (kept, gone) = (cache("test_kept")?, cache("test_gone")?);
        let stats = |cache: &RawCache| {
            [Stat::SheafFlush, Stat::SheafFree, Stat::SheafAlloc, Stat::BarnGet, Stat::BarnPut].map(|stat| cache.stat(stat))
        };
        for cache in [kept, gone] {
            free(cache, allocate(cache, 10 * cache.sheaf_capacity()));
        }
        let (before, barns) = (stats(kept), barn_fill(kept));
        let flushed = gone.stat(Stat::SheafFlush);
        // SAFETY: nobody uses it any more.
        ensure_eq!(unsafe { destroy(gone, t.cx) }, Ok(()));
        ensure!(flushed == 0, "the test has flushed by itself");
        ensure_eq!((stats(kept), barn_fill(kept)), (before, barns));
        // What was in its sheaves still is: taking it makes no slab.
        let slabs = kept.stat(Stat::AllocSlab);
        let held = allocate(kept, 10 * kept.sheaf_capacity());
        if cpu::online_count() == 1 {
            ensure_eq!(kept.stat(Stat::AllocSlab), slabs);
        }
        free(kept, held);
        // SAFETY: as above.
        ensure_eq!(unsafe { destroy(kept, t.cx) }, Ok(()));
        Ok(())
    }
}
