//! What the page allocator gets back when memory is short: whole caches' worth of free objects.
//!
//! In this order, each step for all caches, until enough pages have gone back:
//! 1. barns: nobody is working with what is there;
//! 2. the sheaves of CPUs, which costs each CPU an interrupt a cache;
//! 3. slabs that are empty and kept (`min_partial`).
//!
//! When all else has failed, what waits for a grace period (rcu_free sheaves, slabs of type-safe caches) is waited for, and
//! the three are done again.
//!
//! # Invariants
//! - **SHRINK-1** What a scan says is the number of pages that it gave to the page allocator: counted where they go.
//! - **SHRINK-2** [`count`] is never less than what a scan would free: an empty slab has free objects, so it is on a partial
//!   list, or all its objects are in sheaves.
//!
//! # Locks
//! A scan takes `slab.walk`, so no cache goes away under it; caches that come are not seen; one that is tuned meanwhile is
//! emptied all the same. Who holds `slab.walk` waits for nothing that a memory-hungry thread could hold: inside it are
//! `slab.tune`, spin locks and answers of CPUs. So an allocation may wait for it under any lock, but for CPU hotplug's own,
//! which is outside, and which a thread may hold already (M-10). Nobody allocates with MAY_SLEEP under
//! `slab.walk` or `slab.tune`.
//!
//! Linux has no such shrinker: there empty slabs are kept (`min_partial`), and sheaves are flushed by `kmem_cache_shrink` only.

use arch::PAGE_SIZE;
use mm::Shrinker;
use sync::MaySleep;

use crate::cache::{CacheFlags, RawCache};
use crate::{order, registry, sheaf};

/// Registered at boot.
pub(crate) static SHRINKER: Shrinker = Shrinker::new("slab", count, scan).with_settle(settle);

/// A CPU's sheaves that a flush empties: main, spare, remote.
const SHEAVES_OF_CPU: usize = 3;

/// At most so many pages could go back (SHRINK-2). A few loads and a list lock a cache and node.
fn count() -> usize {
    let mut pages = 0;
    registry::for_each(|cache| pages += cache.idle_pages());
    pages
}

/// Gives back `target` pages, if there are as many; returns how many.
fn scan(target: usize, cx: &mut MaySleep) -> usize {
    let steps: [fn(&'static RawCache) -> usize; 3] =
        [|cache| cache.flush_barns(), |cache| cache.flush_cpus(), |cache| cache.shrink_slabs()];
    let mut freed = 0;
    for step in steps {
        registry::for_each_unlocked(cx, |cache| {
            if freed < target && cache.idle_pages() != 0 {
                freed += step(cache);
            }
        });
    }
    freed
}

/// Waits for what a scan could only submit, and gives back what came of it.
fn settle(cx: &mut MaySleep) {
    crate::rcu_return::wait(cx);
    scan(usize::MAX, cx);
}

impl RawCache {
    /// Pages that may have no object in use.
    fn idle_pages(&self) -> usize {
        let slab_order = self.orders().preferred;
        let slabs: usize = self.nodes().map(|node| node.nr_slabs() as usize).sum();
        if self.flags().contains(CacheFlags::NO_SHEAVES) {
            // What sheaves are made of goes when they do.
            return slabs << slab_order;
        }
        let capacity = self.sheaf_capacity();
        let on_cpus = arch::cpu::online_count() * SHEAVES_OF_CPU;
        let in_barns: usize = self.nodes().map(|node| node.barn.nr_full() as usize).sum();
        let sheaved = ((on_cpus + in_barns) * capacity).div_ceil(order::objects(slab_order, self.size()));
        // A sheaf of more than a page lies in pages of its own.
        let empty: usize = self.nodes().map(|node| node.barn.nr_empty() as usize).sum();
        let sheaves = (on_cpus + in_barns + empty) * (sheaf::bytes(capacity) / PAGE_SIZE);
        (slabs.min(sheaved + self.nr_partial()) << slab_order) + sheaves
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use arch::hosted::in_own_process;
    use mm::AllocFlags;
    use sync::MaySleep;

    use super::*;
    use crate::test_machine::{machine, spawn};
    use crate::tune::tests::under_load;
    use crate::{Layout, Stat, create};

    /// A cache whose free objects lie in sheaves of all CPUs, in barns, and in slabs.
    fn used(cpus: usize, cx: &mut MaySleep) -> &'static RawCache {
        let cache = create(Layout::new("used", 200).flags(CacheFlags::NO_MERGE)).expect("a cache");
        for cpu in 0..cpus {
            let user = spawn(cx, Some(cpu), |_| {
                let held: Vec<_> = (0..3000).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
                assert_eq!(held.len(), 3000);
                // SAFETY: allocated above, each given up once.
                held.into_iter().for_each(|object| unsafe { cache.free(object) });
            });
            user.join(cx);
        }
        cache
    }

    fn in_use() -> usize {
        mm::stats::nodes().map(|node| node.in_use()).sum()
    }

    #[test]
    fn a_scan_gives_back_every_idle_page_and_says_how_many() {
        in_own_process(|| {
            machine(2, 2, |cx| {
                let cache = used(2, cx);
                let (promised, before) = (count(), in_use());
                let freed = scan(usize::MAX, cx);
                assert_eq!(before - in_use(), freed, "SHRINK-1");
                assert!(freed <= promised, "SHRINK-2: {freed} pages, but {promised} were promised");
                assert_eq!(cache.info().num_slabs, 0);
                assert_eq!(scan(usize::MAX, cx), 0);
            });
        });
    }

    #[test]
    fn barns_come_before_sheaves_and_those_before_slabs_that_are_kept() {
        in_own_process(|| {
            machine(2, 1, |cx| {
                let cache = used(2, cx);
                let (capacity, flushed) = (cache.sheaf_capacity() as u64, cache.stat(Stat::SheafFlush));
                let in_barn: u64 = cache.by_node().map(|node| u64::from(node.barn_full.0) * capacity).sum();
                assert!(in_barn > 0 && cache.nr_partial() > 0);
                assert!(scan(1, cx) > 0);
                assert_eq!(cache.stat(Stat::SheafFlush) - flushed, in_barn, "no more than the barn's sheaves");
                assert!(scan(1, cx) > 0);
                assert!(cache.stat(Stat::SheafFlush) - flushed > in_barn, "the sheaves of the CPUs");
                assert!(cache.nr_partial() >= cache.min_partial(), "slabs are kept yet");
                assert!(scan(1, cx) > 0);
                assert!(cache.nr_partial() < cache.min_partial(), "slabs that were kept");
            });
        });
    }

    #[test]
    fn scans_tuning_and_caches_that_come_and_go_lose_nothing() {
        in_own_process(|| {
            under_load(16, 3, 2, |cache, rng, cx| match rng.below(8) {
                0 | 1 => {
                    cache.set_capacity(rng.index(200), cx).expect("in range");
                }
                2 => {
                    let passing = create(Layout::new("passing", 64).flags(CacheFlags::NO_MERGE)).expect("a cache");
                    let object = passing.alloc(AllocFlags::NOWAIT).expect("memory");
                    // SAFETY: allocated above; nobody else knows object or cache.
                    unsafe { passing.free(object) };
                    // SAFETY: as above.
                    assert_eq!(unsafe { crate::flush::destroy(passing, cx) }, Ok(()));
                }
                _ => {
                    scan(rng.index(40), cx);
                }
            });
        });
    }
}
