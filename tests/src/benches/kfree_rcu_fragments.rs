//! What sheaves leave of slabs under a load that rises and falls at random, half of it through `kfree_rcu` (S5-13).

use alloc::vec::Vec;
use core::ptr::NonNull;

use kfree_rcu::{RcuPtr, kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;
use slab::{CacheFlags, Layout, RawCache};
use sync::{MaySleep, Rng};

use super::slab::{SIZE, destroy};
use crate::bench;

/// Objects that live at the high water; a quarter at the low.
const MOST: usize = 6_000;
/// Times that the load rises and falls.
const TURNS: usize = 24;
/// The last times, which are looked at.
const LOOKED_AT: usize = 8;

/// Takes objects or gives random ones up, three times as often one as the other, until so many live. Returns how many it took
/// and gave up.
fn drift_to(target: usize, live: &mut Vec<NonNull<u8>>, cache: &RawCache, rng: &mut Rng) -> u64 {
    let mut operations = 0;
    while live.len() != target {
        operations += 1;
        let takes = if live.len() < target { 75 } else { 25 };
        if live.is_empty() || rng.below(100) < takes {
            live.extend(cache.alloc(AllocFlags::NOWAIT));
        } else {
            give_up(live.swap_remove(rng.index(live.len())), cache, rng.below(2) == 0);
        }
    }
    operations
}

fn give_up(object: NonNull<u8>, cache: &RawCache, at_once: bool) {
    // SAFETY: allocated from the cache, with room for a head, and given up once.
    unsafe {
        if at_once {
            cache.free(object);
        } else {
            let head = object.cast::<RcuPtr>();
            head.write(RcuPtr::new());
            kfree_rcu(head);
        }
    }
}

/// What is seen at a low water.
struct LowWater {
    slabs: u64,
    partial: u64,
    /// Places for objects in the slabs.
    places: u64,
    /// Objects taken and given up since the last.
    operations: u64,
    /// How often locks of barns and of lists were taken meanwhile.
    locks: u64,
}

/// Every low water that is looked at.
fn low_waters(cache: &RawCache, cx: &mut MaySleep) -> Vec<LowWater> {
    let (mut live, mut rng) = (Vec::with_capacity(MOST), Rng::new(1));
    let mut seen = Vec::new();
    for turn in 0..TURNS {
        let before = locks(cache);
        let operations = drift_to(MOST, &mut live, cache, &mut rng) + drift_to(MOST / 4, &mut live, cache, &mut rng);
        let locks = locks(cache) - before;
        kvfree_rcu_barrier(cx);
        if turn >= TURNS - LOOKED_AT {
            let info = cache.info();
            let (slabs, places) = (info.num_slabs, info.num_slabs * info.objperslab as u64);
            seen.push(LowWater { slabs, partial: cache.nr_partial() as u64, places, operations, locks });
        }
    }
    live.into_iter().for_each(|object| give_up(object, cache, true));
    seen
}

fn locks(cache: &RawCache) -> u64 {
    let counts = cache.lock_counts();
    counts.barn + counts.list
}

bench! {
    /// Slabs in use at the low water, with sheaves.
    fn rise_and_fall(b: &mut Bencher) {
        let mut with_sheaves = Vec::new();
        for (name, flags) in [("sheaves", CacheFlags::empty()), ("no sheaves", CacheFlags::NO_SHEAVES)] {
            let layout = Layout::new("bench_fragments", SIZE).flags(CacheFlags::NO_MERGE | flags);
            let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
            for LowWater { slabs, partial, places, operations, locks } in low_waters(cache, b.cx) {
                let values = [
                    ("live", (MOST / 4) as u64),
                    ("slabs", slabs),
                    ("partial", partial),
                    ("places", places),
                    ("operations", operations),
                    ("locks", locks),
                ];
                b.row(name, &values);
                if flags.is_empty() {
                    with_sheaves.push(slabs);
                }
            }
            destroy(cache, b.cx)?;
        }
        b.counts(with_sheaves);
        Ok(())
    }
}
