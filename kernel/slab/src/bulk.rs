//! Many objects in one call.
//!
//! | | what | in one piece | then |
//! |---|---|---|---|
//! | [`alloc_bulk`](RawCache::alloc_bulk) | all objects asked for, or none | main, spare and full sheaves of the barn | slabs of this node, new slabs, other nodes' |
//! | [`kfree_bulk`] | objects of any caches, and large blocks | those of one cache | as below |
//! | [`free_bulk`](RawCache::free_bulk) | objects of one cache | main, spare and empty sheaves of the barn | slabs, objects of one slab together |
//!
//! # Invariants
//! - **BULK-1** An allocation that comes short gives back what it got before it says so: nothing is lost.
//! - **BULK-2** Objects of other nodes, and of the reserve, go past the sheaves, as single ones do (M-8, S5-4).
//! - **BULK-3** The sheaf lock is taken anew for each sheaf, so preemption is off for a copy of `capacity` pointers.
//!
//! Linux: `kmem_cache_alloc_bulk`, `kmem_cache_free_bulk` (`mm/slub.c`, 7.x). Row: M-12.

#[cfg(test)]
mod tests;

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use mm::AllocFlags;

use crate::Spin;
use crate::cache::RawCache;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;

impl RawCache {
    /// Allocates an object for each place of `objects`, or none at all.
    ///
    /// ```no_run
    /// # use core::{mem::MaybeUninit, ptr::NonNull};
    /// # use mm::AllocFlags;
    /// # fn example(cache: &grange_slab::RawCache) -> Option<()> {
    /// let mut places = [MaybeUninit::uninit(); 32];
    /// let objects: &mut [NonNull<u8>] = cache.alloc_bulk(&mut places, AllocFlags::ZERO)?;
    /// // SAFETY: allocated above, and nobody uses them any more.
    /// unsafe { cache.free_bulk(objects) };
    /// # Some(())
    /// # }
    /// ```
    ///
    /// Context: any but NMI. Never sleeps.
    pub fn alloc_bulk<'o>(
        &self,
        objects: &'o mut [MaybeUninit<NonNull<u8>>],
        flags: AllocFlags,
    ) -> Option<&'o mut [NonNull<u8>]> {
        let from_sheaves = self.take_from_sheaves(objects);
        let mut places = objects[from_sheaves..].iter_mut();
        let from_slabs = self.take_from_slabs(places.len(), flags, |object| {
            places.next().expect("no more than asked for").write(object);
        });
        self.count_many(Stat::AllocFastpath, from_sheaves as u64);
        self.count_many(Stat::AllocSlowpath, from_slabs as u64);
        let got = from_sheaves + from_slabs;
        let all = got == objects.len();
        // SAFETY: so many places were filled in, from the first on.
        let objects = unsafe { objects[..got].assume_init_mut() };
        if !all {
            self.put_back(objects);
            mm::oom::warn_object(self.name(), self.size(), None, flags);
            return None;
        }
        let sound = to_front(objects, |object| self.after_alloc(Some(object), flags).is_some());
        if sound < objects.len() {
            // SAFETY: allocated above, and nobody has seen them.
            unsafe { self.free_bulk(&mut objects[..sound]) };
            return None;
        }
        Some(objects)
    }

    /// Frees `objects`, and leaves them in another order.
    ///
    /// Context: any but NMI.
    ///
    /// # Safety
    /// Each was allocated from this cache, stands there once, and nobody uses it any more.
    pub unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        // What may not be freed is reported, and left alone.
        let may =
            if cfg!(debug_assertions) { to_front(objects, |object| self.may_put_back(object)) } else { objects.len() };
        self.put_back(&mut objects[..may]);
    }

    /// Finds a place for objects that nobody uses.
    fn put_back(&self, objects: &mut [NonNull<u8>]) {
        let at_home = to_front(objects, |object| mm::is_home(mm::home_of(object)));
        let (here, elsewhere) = objects.split_at_mut(at_home);
        let left = here.len() - self.put_into_sheaves(here);
        self.count_many(Stat::FreeSlowpath, (left + elsewhere.len()) as u64);
        self.give_back_many(&mut here[..left]);
        self.give_back_many(elsewhere);
    }

    /// Takes objects out of this CPU's sheaves and the barn's full ones. Returns how many places were filled in.
    fn take_from_sheaves(&self, places: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let mut got = 0;
        while got < places.len() {
            let Some(mut held) = self.sheaves().filter(|_| self.sheaf_capacity() != 0) else { break };
            if held.main.is_empty() && !self.exchange_empty_main(&mut held, Spin::May) {
                break;
            }
            got += held.main.take(&mut places[got..]);
        }
        got
    }

    /// Takes up to `max` objects from slabs, wherever they are: of the reserve only if there are no others. Returns how many.
    fn take_from_slabs(&self, max: usize, flags: AllocFlags, mut put: impl FnMut(NonNull<u8>)) -> usize {
        let (node, ordinary) = (mm::home_node(), flags | AllocFlags::NO_RESERVE);
        let mut got = self.take_many(max, node, ordinary, &mut put);
        got += self.take_leftovers(max - got, node, ordinary, &mut put);
        if got < max && flags.may_dip() {
            got += self.take_many(max - got, node, flags, put);
        }
        got
    }

    /// Whether `object` may be freed to this cache; a report if not.
    fn may_put_back(&self, object: NonNull<u8>) -> bool {
        self.slab_of_mine(object).is_some_and(|slab| self.may_free(slab, object))
    }

    /// Puts objects, the last ones first, into this CPU's sheaves and the barn's empty ones. Returns how many.
    fn put_into_sheaves(&self, objects: &[NonNull<u8>]) -> usize {
        let mut left = objects.len();
        while left > 0 {
            let Some(mut held) = self.sheaves().filter(|_| self.sheaf_capacity() != 0) else { break };
            if held.main.is_bootstrap() {
                // The first free of this CPU, which has to come by a sheaf somehow.
                let Some(fresh) = self.replace_full_main(held, Spin::May) else { break };
                held = fresh;
            }
            if held.main.is_full() && self.exchange_full_main(&mut held, Spin::May).is_err() {
                break;
            }
            left -= held.main.put(&objects[..left]);
        }
        self.count_many(Stat::FreeFastpath, (objects.len() - left) as u64);
        objects.len() - left
    }
}

/// Frees objects of any caches, and large blocks of `kmalloc`, those of one cache together; leaves them in another order.
///
/// Context: any but NMI.
///
/// # Safety
/// As for [`kfree`](crate::kmalloc::kfree), for each; and each stands there once.
pub unsafe fn kfree_bulk(objects: &mut [NonNull<u8>]) {
    let cache_of = |object| SlabRef::of(object).map(SlabRef::cache);
    let mut rest = objects;
    while let Some(&first) = rest.first() {
        let Some(cache) = cache_of(first) else {
            // SAFETY: passed on from the caller.
            unsafe { crate::kmalloc::kfree(first) };
            rest = &mut rest[1..];
            continue;
        };
        let of_this = to_front(rest, |object| cache_of(object).is_some_and(|other| core::ptr::eq(other, cache)));
        let (objects, others) = rest.split_at_mut(of_this);
        // SAFETY: passed on from the caller.
        unsafe { cache.free_bulk(objects) };
        rest = others;
    }
}

/// Brings what `belongs` to the front; returns how many that are.
fn to_front(objects: &mut [NonNull<u8>], belongs: impl Fn(NonNull<u8>) -> bool) -> usize {
    let (mut front, mut end) = (0, objects.len());
    while front < end {
        if belongs(objects[front]) {
            front += 1;
        } else {
            end -= 1;
            objects.swap(front, end);
        }
    }
    front
}
