//! What users still hold of a cache that is to be destroyed, object by object, for the log (M-14).
//!
//! A full slab is on no list, so the slabs are looked for among all pages of the machine: slow, and done for a bug only.
//!
//! Context: any but NMI. Each slab is looked at under its node's list lock: nothing is taken off it meanwhile (SLAB-3), and
//! what is freed meanwhile may be listed or not.

use core::fmt;
use core::ptr::NonNull;

use crate::Spin;
use crate::cache::RawCache;
use crate::order::MAX_OBJECTS;
use crate::prefill::Lent;
use crate::slab_ref::SlabRef;

/// Objects that are listed one by one; of more, the number is known.
const LISTED: usize = 8;

/// Logs that `leaked` objects of `cache` are in use, some of them perhaps in sheaves that callers have, and the first of
/// them.
pub(crate) fn report(cache: &'static RawCache, leaked: u64, lent: Lent) {
    log::error!("{}: {leaked} objects are still in use{lent}; the cache stays", cache.name());
    let mut listed = 0;
    for slab in mm::page::all().filter_map(|page| SlabRef::of_cache(page, cache)) {
        for_each_used(cache, slab, |index, object| {
            if listed < LISTED {
                let (node, bytes) = (slab.node(), FirstBytes(object, cache.object_size()));
                log::error!("  {object:p}, object {index} of slab {:p} on node {node}:{bytes}", slab.base());
                cache.log_allocation(slab, object);
            }
            listed += 1;
        });
    }
    if listed > LISTED {
        log::error!("  and {} more", listed - LISTED);
    }
}

/// Calls `f` with index and address of each object of `slab` that is not on its freelist.
fn for_each_used(cache: &RawCache, slab: SlabRef, mut f: impl FnMut(usize, NonNull<u8>)) {
    let Some(node) = cache.node(slab.node()) else { return };
    let mut is_free = [0_u64; MAX_OBJECTS / 64];
    let objects = {
        let _list = node.lock(Spin::May);
        let state = slab.state();
        let mut next = NonNull::new(state.freelist);
        for _ in 0..state.objects {
            // The links of a damaged slab may lead anywhere.
            let Some(object) = next.filter(|&object| slab.is_object(object)) else { break };
            let index = (object.addr().get() - slab.base().addr()) / cache.size();
            is_free[index / 64] |= 1 << (index % 64);
            next = NonNull::new(cache.link(object));
        }
        state.objects as usize
    };
    (0..objects)
        .filter(|index| is_free[index / 64] & 1 << (index % 64) == 0)
        .for_each(|index| f(index, slab.object(index)));
}

/// An object's first bytes, 16 at most.
struct FirstBytes(NonNull<u8>, usize);

impl fmt::Display for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..self.1.min(16)).try_for_each(|offset| {
            // SAFETY: inside an object of a slab, which stays while its cache does; whoever has it may be writing to it,
            // and any byte that was there will do.
            write!(f, " {:02x}", unsafe { self.0.add(offset).read_volatile() })
        })
    }
}

#[cfg(test)]
mod tests {
    use arch::hosted::in_own_process;
    use mm::AllocFlags;

    use crate::flush::{Leaked, destroy};
    use crate::test_machine::machine;
    use crate::{CacheFlags, Layout, create};

    #[test]
    fn a_leak_in_a_slab_whose_links_are_damaged_is_reported_too() {
        in_own_process(|| {
            machine(1, 1, |cx| {
                let cache = create(Layout::new("damaged", 64).flags(CacheFlags::NO_MERGE)).expect("a cache");
                let [kept, freed] = [(); 2].map(|()| cache.alloc(AllocFlags::NOWAIT).expect("memory"));
                // SAFETY: allocated above, given up once.
                unsafe { cache.free(freed) };
                cache.shrink();
                let place = cache.link_place(freed);
                // SAFETY: the link of a free object, which is put right again before anybody needs it.
                let link = unsafe { place.replace(core::ptr::without_provenance_mut(8)) };
                // SAFETY: nobody else knows the cache, and one object is leaked on purpose.
                assert_eq!(unsafe { destroy(cache, cx) }, Err(Leaked(1)));
                // SAFETY: as above; the object is given up now.
                unsafe {
                    place.write(link);
                    cache.free(kept);
                    assert_eq!(destroy(cache, cx), Ok(()));
                }
            });
        });
    }
}
