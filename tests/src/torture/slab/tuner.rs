//! What can be changed while caches are used, and caches that come and go.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use mm::AllocFlags;
use slab::remote::{self, Policy};
use slab::{CacheFlags, Layout, RawCache};
use sync::{MaySleep, Rng};

use super::Slab;
use crate::torture::control;
use crate::{Failure, ensure_eq};

/// The most objects that a sheaf is set to hold.
const LARGEST: usize = 130;

/// Changes something of one of the caches, again and again.
pub(super) fn change(slab: &Slab, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    let before = remote::policy();
    while !control::stutter(cx) {
        change_one(slab.yard.caches()[rng.index(slab.yard.caches().len())], &mut rng, cx);
        slab.changes.fetch_add(1, Relaxed);
        sched::sleep_ns(cx, rng.below(2_000_000));
    }
    remote::set_policy(before);
    Ok(())
}

fn change_one(cache: &'static RawCache, rng: &mut Rng, cx: &mut MaySleep) {
    match rng.index(9) {
        // No memory for it, or a cache that is watched and has no sheaves, is no error here.
        0 => _ = cache.set_capacity(rng.index(LARGEST), cx),
        1 => _ = cache.set_capacity(0, cx),
        2 => cache.set_barn_limits(rng.below(20) as u32, rng.below(20) as u32, cx),
        3 => cache.reset_barn_limits(cx),
        4 => cache.set_min_partial(rng.index(12)),
        5 => _ = cache.set_remote_node_defrag_ratio(rng.below(1_001) as u32),
        6 => remote::set_policy(if rng.chance(1, 2) { Policy::Batch } else { Policy::Bypass }),
        7 => _ = cache.flush_cpus() + cache.flush_barns(),
        _ => _ = cache.shrink(),
    }
}

/// Makes caches, some of which are merged with others, uses and destroys them.
pub(super) fn make_and_destroy(slab: &Slab, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    while !control::stutter(cx) {
        let flags = if rng.chance(1, 2) { CacheFlags::NO_MERGE } else { CacheFlags::empty() };
        if let Ok(cache) = slab::create(Layout::new("torture-short", 8 * (1 + rng.index(150))).flags(flags)) {
            let mut objects: Vec<_> = (0..rng.index(200)).map_while(|_| cache.alloc(AllocFlags::NOWARN)).collect();
            sched::cond_resched(cx);
            let one_by_one = objects.len() / 2;
            // SAFETY: allocated above, each given up once; as below.
            objects.drain(..one_by_one).for_each(|object| unsafe { slab::kfree_nolock(object) });
            // SAFETY: as above.
            unsafe { cache.free_bulk(&mut objects) };
            // SAFETY: this user of the cache is done with it.
            ensure_eq!(unsafe { slab::flush::destroy(cache, cx) }, Ok(()), "a cache that was used for a moment");
            slab.caches.fetch_add(1, Relaxed);
        }
        sched::sleep_ns(cx, rng.below(2_000_000));
    }
    Ok(())
}
