//! What happens when the main sheaf has run dry or over: spare, barn, slabs, in the order of M-5 and M-6.
//!
//! Allocating:
//! 1. exchange main with a spare that holds objects;
//! 2. exchange main with a full sheaf of the barn;
//! 3. fill an empty sheaf from slabs, with the lock dropped, and install it;
//! 4. take one object from a slab.
//!
//! Freeing:
//! 1. exchange main with a spare that has room;
//! 2. no spare: make main the spare and take an empty sheaf from the barn;
//! 3. exchange main with an empty sheaf of the barn;
//! 4. the barn has too many full ones: flush the spare to slabs and reuse it;
//! 5. the barn has no empty ones: allocate one, with the lock dropped, and install it;
//! 6. no memory for one: empty main in batches;
//! 7. give the object back to its slab.
//!
//! An object of another node is for [`remote`](crate::remote) instead.
//!
//! With [`Spin::Never`] nothing is waited for: a step that would have to is skipped, and freeing allocates no sheaf.

#[cfg(test)]
mod tests;

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use mm::AllocFlags;
use sync::{LocalGuard, bug, hook};

use crate::barn::{Barn, NoSwap};
use crate::cache::RawCache;
use crate::cpu::Sheaves;
use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;
use crate::{Spin, local_node};

pub(crate) type Held = LocalGuard<'static, Sheaves>;

impl RawCache {
    /// The barn of this CPU's node.
    #[inline]
    pub(crate) fn barn(&self) -> Option<&'static Barn> {
        self.node(local_node()).map(|node| &node.barn)
    }

    /// An object from spare, barn or slabs.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_slow(&self, flags: AllocFlags, spin: Spin) -> Option<NonNull<u8>> {
        if self.sheaf_capacity() != 0
            && let Some(held) = self.sheaves()
            && let Some(held) = self.replace_empty_main(held, flags, spin)
            && let Some(object) = held.main.pop()
        {
            self.count(Stat::AllocFastpath);
            return Some(object);
        }
        self.alloc_from_slab(flags, spin)
    }

    /// An object past the sheaves.
    #[cold]
    #[inline(never)]
    fn alloc_from_slab(&self, flags: AllocFlags, spin: Spin) -> Option<NonNull<u8>> {
        let object = self.take_one(mm::home_node(), flags, spin);
        sync::trace!(
            "slab.alloc",
            cache = sync::trace::text(self.name()),
            object = object.map_or(0, |object| object.as_ptr().addr()),
            bytes = self.size(),
            flags = flags.bits()
        );
        match object {
            Some(_) => self.count(Stat::AllocSlowpath),
            None if spin == Spin::May => mm::oom::warn_object(self.name(), self.size(), None, flags),
            None => {}
        }
        object
    }

    /// Exchanges an empty main for a sheaf that holds objects, as far as that goes under the lock: spare, then barn. False,
    /// and nothing is changed, if both have none.
    #[inline]
    pub(crate) fn exchange_empty_main(&self, held: &mut Sheaves, spin: Spin) -> bool {
        if let Some(spare) = held.spare.filter(|spare| !spare.is_empty()) {
            held.exchange(spare);
            return true;
        }
        let Some(full) = self.barn().and_then(|barn| barn.replace_empty(held.main, spin)) else {
            self.count(Stat::BarnGetFail);
            return false;
        };
        self.count(Stat::BarnGet);
        sync::trace!(
            "slab.barn_get",
            cache = sync::trace::text(self.name()),
            sheaf = full.as_ptr().addr(),
            objects = full.size()
        );
        held.main = full;
        true
    }

    /// Makes main hold objects (M-5). On `None` the lock is dropped.
    #[inline]
    pub(crate) fn replace_empty_main(&self, mut held: Held, flags: AllocFlags, spin: Spin) -> Option<Held> {
        if !held.main.is_empty() || self.exchange_empty_main(&mut held, spin) {
            return Some(held);
        }
        self.refill_main(held, flags, spin)
    }

    /// The steps of M-5 that drop the lock.
    #[cold]
    #[inline(never)]
    fn refill_main(&self, mut held: Held, flags: AllocFlags, spin: Spin) -> Option<Held> {
        if spin == Spin::Never {
            return None;
        }
        let barn = self.barn()?;
        let empty = held.spare.take().or_else(|| barn.get_empty(spin));
        drop(held);
        hook!("slab.unlocked.empty");

        let full = self.filled(empty, flags)?;
        let Some(mut held) = self.sheaves() else {
            self.barn_put_or_flush(full);
            return None;
        };
        // CPU-4: this may be another CPU, and an interrupt may have refilled it.
        let Some(barn) = self.barn() else {
            drop(held);
            self.flush_and_free(full);
            return None;
        };
        if !self.is_current(full) {
            drop(held);
            self.flush_and_free(full);
            return None;
        }
        if bug!("slab.install_blind", "a refilled sheaf becomes main without another look at main", "slab_hooks") {
            held.main = full;
        } else if held.main.is_empty() {
            let old = core::mem::replace(&mut held.main, full);
            held.keep_empty(old, barn);
        } else if let Some(spare) = held.spare.filter(|spare| spare.is_empty()) {
            put_empty(barn, spare);
            held.spare = Some(full);
        } else if held.spare.is_none() {
            held.spare = Some(full);
        } else {
            return put_full_held(held, barn, full);
        }
        Some(held)
    }

    /// Whether `sheaf` has the capacity that the cache's sheaves have. Under the sheaf lock, where a sheaf is made a
    /// CPU's (SHEAF-5); elsewhere only a hint.
    pub(crate) fn is_current(&self, sheaf: SheafRef) -> bool {
        sheaf.capacity() == self.sheaf_capacity() && !sheaf.is_oversize()
    }

    /// An empty sheaf of the cache's capacity, or nothing if there is no memory or the cache has no sheaves.
    pub(crate) fn new_sheaf(&self, flags: AllocFlags, spin: Spin) -> Option<SheafRef> {
        let capacity = Some(self.sheaf_capacity()).filter(|&capacity| capacity != 0)?;
        SheafRef::alloc(self, capacity, flags, spin)
    }

    /// Fills `empty`, or a new sheaf, with at least one object.
    fn filled(&self, empty: Option<SheafRef>, flags: AllocFlags) -> Option<SheafRef> {
        let sheaf = match empty {
            Some(sheaf) => sheaf,
            None => self.new_sheaf(flags | AllocFlags::NO_RESERVE | AllocFlags::NOWARN, Spin::May)?,
        };
        // No reserve page may end up in a sheaf, from which anybody could take it (S5-4).
        if self.refill(sheaf, flags | AllocFlags::NO_RESERVE | AllocFlags::NOWARN) == 0 {
            self.put_empty_or_free(sheaf);
            return None;
        }
        Some(sheaf)
    }

    /// Fills `sheaf` up from slabs. Returns how many objects came in.
    pub(crate) fn refill(&self, sheaf: SheafRef, flags: AllocFlags) -> usize {
        let got = self.take_many(sheaf.room(), mm::home_node(), flags, |object| {
            let fits = sheaf.push(object);
            debug_assert!(fits);
        });
        self.count_many(Stat::SheafRefill, got as u64);
        sync::trace!(
            "slab.refill",
            cache = sync::trace::text(self.name()),
            sheaf = sheaf.as_ptr().addr(),
            objects = got
        );
        got
    }

    /// A free that the fast path could not do: to spare, barn or slab, or to another node.
    #[cold]
    #[inline(never)]
    pub(crate) fn free_slow(&self, object: NonNull<u8>) {
        let home = mm::home_of(object);
        // Of a slab, and of this node: nothing more need be known of it (HOME-1).
        let done =
            if mm::is_home(home) { self.free_to_sheaf(object, Spin::May) } else { self.push_remote(object, home) };
        if !done {
            self.free_past_sheaves(object);
        }
    }

    #[cold]
    #[inline(never)]
    fn free_past_sheaves(&self, object: NonNull<u8>) {
        // Of another cache it must not go into a remote sheaf.
        match self.slab_of_mine(object) {
            Some(slab) if slab.is_home() => self.free_to_slab(slab, object),
            Some(slab) => self.free_remote(slab, object),
            None => {}
        }
    }

    /// Gives `object` back to `slab`.
    pub(crate) fn free_to_slab(&self, slab: SlabRef, object: NonNull<u8>) {
        if self.is_mine(slab, object) {
            self.count(Stat::FreeSlowpath);
            sync::trace!("slab.free", cache = sync::trace::text(self.name()), object = object.as_ptr().addr());
            self.give_back(slab, object, object, 1);
        }
    }

    /// Puts `object` into main, making room if need be. False if that cannot be.
    #[inline]
    pub(crate) fn free_to_sheaf(&self, object: NonNull<u8>, spin: Spin) -> bool {
        if self.sheaf_capacity() == 0 {
            return false;
        }
        let Some(held) = self.sheaves() else { return false };
        let Some(held) = self.replace_full_main(held, spin) else { return false };
        let put = held.main.push(object);
        if put {
            self.count(Stat::FreeFastpath);
        }
        put
    }

    /// Exchanges a full main for a sheaf with room, as far as that goes under the lock: spare, then barn. On `Err` nothing
    /// is changed, and the spare, if there is one, is full as well.
    #[inline]
    pub(crate) fn exchange_full_main(&self, held: &mut Sheaves, spin: Spin) -> Result<(), NoSwap> {
        if let Some(spare) = held.spare.filter(|spare| !spare.is_full()) {
            held.exchange(spare);
            return Ok(());
        }
        let barn = self.barn().ok_or(NoSwap::NoEmpty)?;
        if held.spare.is_some() {
            let full = held.main;
            held.main = barn.replace_full(full, spin)?;
            self.count(Stat::BarnPut);
            sync::trace!(
                "slab.barn_put",
                cache = sync::trace::text(self.name()),
                sheaf = full.as_ptr().addr(),
                objects = full.size()
            );
        } else {
            held.make_main(barn.get_empty(spin).ok_or(NoSwap::NoEmpty)?);
        }
        Ok(())
    }

    /// Makes main have room (M-6). On `None` the lock is dropped.
    #[inline]
    pub(crate) fn replace_full_main(&self, mut held: Held, spin: Spin) -> Option<Held> {
        if !held.main.is_full() {
            return Some(held);
        }
        match self.exchange_full_main(&mut held, spin) {
            Ok(()) => Some(held),
            Err(why) => self.clear_main(held, why, spin),
        }
    }

    /// The steps of M-6 that drop the lock, after the barn's refusal.
    #[cold]
    #[inline(never)]
    fn clear_main(&self, mut held: Held, why: NoSwap, spin: Spin) -> Option<Held> {
        // With a spare, main was offered to the barn.
        let refused = held.spare.is_some();
        if why == NoSwap::TooManyFull {
            self.count(Stat::BarnPutFail);
        }
        if spin == Spin::Never {
            // The deferred list needs no memory.
            return None;
        }
        if why == NoSwap::TooManyFull
            && let Some(spare) = held.spare.take()
        {
            drop(held);
            self.flush(spare);
            return self.install_empty(spare);
        }
        drop(held);
        hook!("slab.unlocked.full");
        let flags = AllocFlags::NO_RESERVE | AllocFlags::NOWARN;
        if let Some(empty) = self.new_sheaf(flags, spin) {
            return self.install_empty(empty);
        }
        if refused && why == NoSwap::NoEmpty {
            self.count(Stat::BarnPutFail);
        }
        self.flush_main()
    }

    /// Makes `empty` the main sheaf of whatever CPU this is by now, unless main has room again (M-7).
    fn install_empty(&self, empty: SheafRef) -> Option<Held> {
        let (Some(mut held), Some(barn)) = (self.sheaves().filter(|_| self.is_current(empty)), self.barn()) else {
            self.put_empty_or_free(empty);
            return None;
        };
        if held.spare.is_none() {
            held.make_main(empty);
        } else if !held.main.is_full() {
            if !bug!("slab.surplus_lost", "an empty sheaf that is not needed after all is forgotten", "slab_hooks") {
                put_empty(barn, empty);
            }
        } else if let Some(spare) = held.spare.filter(|spare| !spare.is_full()) {
            held.make_main(spare);
            put_empty(barn, empty);
        } else {
            // Both are full: the barn takes main, over its limit if need be.
            let full = core::mem::replace(&mut held.main, empty);
            return put_full_held(held, barn, full);
        }
        Some(held)
    }

    /// Without memory for another sheaf, empties main, a batch at a time with the lock dropped in between.
    fn flush_main(&self) -> Option<Held> {
        const BATCH: usize = 32;
        let mut batch = [MaybeUninit::uninit(); BATCH];
        loop {
            let held = self.sheaves()?;
            let count = held.main.take(&mut batch);
            let left = held.main.size();
            drop(held);
            self.count_many(Stat::SheafFlush, count as u64);
            sync::trace!("slab.flush_main", cache = sync::trace::text(self.name()), objects = count);
            // SAFETY: so many places were filled in.
            self.give_back_many(unsafe { batch[..count].assume_init_mut() });
            if left == 0 {
                // CPU-4: it may be another main, and not be empty.
                return self.sheaves();
            }
        }
    }

    /// Gives every object of `sheaf` back to its slab. The caller keeps the empty sheaf. Returns how many pages went back to
    /// the page allocator.
    pub(crate) fn flush(&self, sheaf: SheafRef) -> usize {
        self.count_many(Stat::SheafFlush, sheaf.size() as u64);
        sync::trace!(
            "slab.flush",
            cache = sync::trace::text(self.name()),
            sheaf = sheaf.as_ptr().addr(),
            objects = sheaf.size()
        );
        sheaf.with_objects(|objects| self.give_back_many(objects))
    }

    /// Gives every object of `sheaf` back to its slab, and the sheaf itself back too. Returns how many pages went back to the
    /// page allocator.
    pub(crate) fn flush_and_free(&self, sheaf: SheafRef) -> usize {
        self.flush(sheaf) + sheaf.free(Spin::May)
    }

    /// Offers a full sheaf to the barn of this node, and flushes it where it is not wanted.
    pub(crate) fn barn_put_or_flush(&self, full: SheafRef) {
        match self.barn().filter(|barn| barn.has_room_for_full()) {
            Some(barn) => put_full(barn, full),
            None => {
                self.count(Stat::BarnPutFail);
                self.flush_and_free(full);
            }
        }
    }

    /// Offers an empty sheaf to the barn of this node, and frees it where it is not wanted.
    pub(crate) fn put_empty_or_free(&self, empty: SheafRef) {
        match self.barn().filter(|barn| barn.has_room_for_empty()) {
            Some(barn) => put_empty(barn, empty),
            None => {
                empty.free(Spin::May);
            }
        }
    }
}

/// Puts a full sheaf into the barn, over its limit if need be; flushes it if its capacity has gone out of use. May spin.
pub(crate) fn put_full(barn: &Barn, full: SheafRef) {
    _ = put_full_held((), barn, full);
}

/// [`put_full`] for who holds the sheaf lock. On `None` that is dropped: all the objects of a sheaf are too many to flush
/// under it.
pub(crate) fn put_full_held<H>(held: H, barn: &Barn, full: SheafRef) -> Option<H> {
    let cache = full.cache();
    if let Err(stale) = barn.put_full(full) {
        drop(held);
        cache.count(Stat::BarnPutFail);
        cache.flush_and_free(stale);
        return None;
    }
    cache.count(Stat::BarnPut);
    Some(held)
}

/// Puts an empty sheaf into the barn, over its limit if need be; frees it if its capacity has gone out of use. May spin.
/// Context: also under the sheaf lock.
pub(crate) fn put_empty(barn: &Barn, empty: SheafRef) {
    if let Err(stale) = barn.put_empty(empty) {
        stale.free(Spin::May);
    }
}

impl Sheaves {
    /// Exchanges main and `spare`, which is the spare: so main is a sheaf of the cache's (CPU-6).
    #[inline]
    fn exchange(&mut self, spare: SheafRef) {
        debug_assert!(!self.main.is_bootstrap(), "CPU-6");
        self.spare = Some(core::mem::replace(&mut self.main, spare));
    }

    /// Makes `sheaf` main, and main the spare: exchanges the two, or fills the spare's place while that is vacant.
    fn make_main(&mut self, sheaf: SheafRef) {
        let old = core::mem::replace(&mut self.main, sheaf);
        self.spare = (!old.is_bootstrap()).then_some(old);
    }

    /// Finds a place for an empty sheaf that was main.
    fn keep_empty(&mut self, empty: SheafRef, barn: &Barn) {
        if empty.is_bootstrap() {
        } else if self.spare.is_none() {
            self.spare = Some(empty);
        } else {
            put_empty(barn, empty);
        }
    }
}
