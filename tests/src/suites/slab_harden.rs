//! Hardened caches: what lies in free objects, in which order they come, and what they contain.

use alloc::vec::Vec;
use core::ptr::NonNull;

use mm::AllocFlags;
use slab::{CacheFlags, DebugFlags, Harden, Layout, RawCache};

use crate::{Failure, ensure, ensure_eq, ktest, skip};

const SIZE: usize = 64;

/// A cache without sheaves, hardened in this way alone.
fn cache(name: &'static str, harden: Harden) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE | CacheFlags::NO_SHEAVES).harden(harden);
    let cache = slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))?;
    if cache.harden() != harden || cache.debug() != DebugFlags::empty() {
        skip!("the command line asks for more");
    }
    Ok(cache)
}

/// A slab's worth of objects, in the order in which they come.
fn fill_slab(cache: &RawCache) -> Vec<NonNull<u8>> {
    (0..cache.info().objperslab).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect()
}

/// Gives them back; then every page goes.
fn empty(cache: &'static RawCache, held: Vec<NonNull<u8>>) -> Result<(), Failure> {
    // SAFETY: allocated from the cache, each given up once.
    held.into_iter().for_each(|object| unsafe { cache.free(object) });
    cache.shrink();
    ensure_eq!((cache.info().active_objs, cache.info().num_slabs), (0, 0));
    Ok(())
}

fn content<'a>(object: NonNull<u8>) -> &'a [u8] {
    // SAFETY: an object of SIZE bytes that nobody else writes to.
    unsafe { core::slice::from_raw_parts(object.as_ptr(), SIZE) }
}

fn soil(object: NonNull<u8>) {
    // SAFETY: as in `content`, ours.
    unsafe { object.as_ptr().write_bytes(0x77, SIZE) };
}

ktest! {
    /// The link to the object that was freed before can be read in a plain cache, and not in one that hides it.
    fn hidden_links_tell_no_addresses(_t: &mut Test) {
        for (name, harden) in [("hard_plain", Harden::empty()), ("hard_ptr", Harden::HIDE_LINKS)] {
            let cache = cache(name, harden)?;
            let held = fill_slab(cache);
            let (first, second) = (held[1], held[0]);
            // SAFETY: allocated above, given up here.
            held[..2].iter().for_each(|&object| unsafe { cache.free(object) });
            let told = content(first).chunks(8).any(|word| word == second.as_ptr().addr().to_le_bytes());
            ensure_eq!(told, harden.is_empty());
            let again = [cache.alloc(AllocFlags::NOWAIT), cache.alloc(AllocFlags::NOWAIT)];
            ensure_eq!(again, [Some(first), Some(second)]);
            empty(cache, held)?;
        }
        Ok(())
    }

    /// A new slab comes in the order of addresses, or in no order; each object once.
    fn shuffled_slabs_come_in_no_order_and_whole(_t: &mut Test) {
        for harden in [Harden::empty(), Harden::SHUFFLE, Harden::SHUFFLE | Harden::HIDE_LINKS] {
            let cache = cache("hard_order", harden)?;
            let (one, other) = (fill_slab(cache), fill_slab(cache));
            ensure_eq!(cache.info().num_slabs, 2, "an object is on no freelist");
            let offsets = |held: &[NonNull<u8>]| held.iter().map(|o| o.as_ptr().addr() % 4096).collect::<Vec<_>>();
            ensure_eq!(offsets(&one).is_sorted(), harden.is_empty());
            ensure_eq!(offsets(&one) == offsets(&other), harden.is_empty(), "two slabs in the same order");
            let mut all: Vec<_> = one.into_iter().chain(other).collect();
            all.sort();
            ensure!(all.windows(2).all(|pair| pair[0] != pair[1]), "an object came twice");
            empty(cache, all)?;
        }
        Ok(())
    }

    /// `init_on_alloc`: whatever was there before.
    fn objects_come_zeroed_where_that_is_asked_for(_t: &mut Test) {
        let cache = cache("hard_alloc", Harden::ZERO_ON_ALLOC)?;
        for _ in 0..2 {
            let held = fill_slab(cache);
            ensure!(held.iter().all(|&object| content(object).iter().all(|&byte| byte == 0)));
            held.iter().for_each(|&object| soil(object));
            // SAFETY: allocated above, each given up once.
            held.into_iter().for_each(|object| unsafe { cache.free(object) });
        }
        empty(cache, Vec::new())
    }

    /// `init_on_free`: at once, but for the link; and the link, too, when the object is handed out again.
    fn objects_are_wiped_when_freed_where_that_is_asked_for(_t: &mut Test) {
        let cache = cache("hard_free", Harden::ZERO_ON_FREE)?;
        let held = fill_slab(cache);
        held.iter().for_each(|&object| soil(object));
        // SAFETY: allocated above, each given up once.
        held.iter().for_each(|&object| unsafe { cache.free(object) });
        for &object in &held[1..] {
            let words = content(object).chunks(8).filter(|word| word.iter().any(|&byte| byte != 0)).count();
            ensure!(words <= 1, "{words} words are left of a freed object");
        }
        let held = fill_slab(cache);
        ensure!(held.iter().all(|&object| content(object).iter().all(|&byte| byte == 0)));
        empty(cache, held)
    }

    /// What must see each object takes the sheaves away; what looks at slabs leaves them.
    fn only_what_touches_content_takes_the_sheaves_away(t: &mut Test) {
        for (harden, sheaves) in [
            (Harden::HIDE_LINKS | Harden::SHUFFLE, true),
            (Harden::ZERO_ON_ALLOC, false),
            (Harden::ZERO_ON_FREE, false),
        ] {
            let cache = slab::create(Layout::new("hard_sheaves", SIZE).flags(CacheFlags::NO_MERGE).harden(harden));
            let cache = cache.map_err(|error| crate::__failed!("{error}"))?;
            if cache.harden() != harden || cache.debug() != DebugFlags::empty() {
                skip!("the command line asks for more");
            }
            ensure_eq!(cache.sheaf_capacity() != 0, sheaves);
            if !sheaves {
                ensure!(cache.set_capacity(60, t.cx).is_err(), "sheaves would hide objects from it");
            }
            let held = fill_slab(cache);
            empty(cache, held)?;
        }
        Ok(())
    }
}
