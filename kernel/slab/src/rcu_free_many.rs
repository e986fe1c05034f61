//! Many objects that wait for a grace period, in one call: those of one cache in a row go to the rcu_free sheaf under one lock.
//!
//! A run stops below a full sheaf: the object that fills it goes by [`rcu_free::free`], which submits the sheaf, and so does one
//! that finds no sheaf. So everything that `rcu_free` promises of a sheaf holds here without being done a second time.
//!
//! Linux has no such call; its `kfree_bulk` frees at once.

use core::ptr::NonNull;

use sync::bug;

use crate::Spin;
use crate::cache::RawCache;
use crate::rcu_free;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;

/// Puts `objects`, each given by its start, into this CPU's rcu_free sheaves: they are freed after a grace period. `otherwise` is
/// called for those that cannot be, as for [`rcu_free::free`].
///
/// Context: any but NMI.
///
/// # Safety
/// Each stands there once, and the caller has given it up: nobody but readers that started before looks at it. Each was asked whether it
/// [may](crate::debug::may_wait).
pub unsafe fn free_many(mut objects: &[NonNull<u8>], mut otherwise: impl FnMut(NonNull<u8>)) {
    while let Some((&first, behind)) = objects.split_first() {
        let taken = SlabRef::local_cache_of(first).map_or(0, |cache| push_run(cache, objects));
        if taken == 0 {
            // SAFETY: passed on from the caller.
            if !unsafe { rcu_free::free(first, Spin::May) } {
                otherwise(first);
            }
            objects = behind;
        } else {
            objects = &objects[taken..];
        }
    }
}

/// Takes those at the front that are of `cache` and fit without filling the sheaf. Returns how many.
fn push_run(cache: &RawCache, objects: &[NonNull<u8>]) -> usize {
    let Some(held) = cache.sheaves() else { return 0 };
    let Some(sheaf) = held.rcu_free else { return 0 };
    let mut room = sheaf.capacity() - sheaf.size() - 1;
    let mut taken = 0;
    if bug!("rcu_free_many.full", "a run fills the sheaf, which then stays with its CPU", "kfree_rcu_front.many*") {
        room += 1;
    }
    for &object in objects {
        if room == 0 || !SlabRef::local_cache_of(object).is_some_and(|other| core::ptr::eq(other, cache)) {
            break;
        }
        taken += 1;
        let fits = sheaf.push(object);
        debug_assert!(fits, "S0-1: a full rcu_free sheaf stayed with its CPU");
        room -= 1;
    }
    drop(held);
    cache.count_many(Stat::FreeRcuSheaf, taken as u64);
    taken
}
