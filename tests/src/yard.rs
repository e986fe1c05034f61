//! A yard of objects: slots between CPUs, where each object is filled with a pattern of its own, which whoever frees it finds
//! undamaged; and every kind of call that puts objects there and frees them. At the end every object, slab and sheaf is
//! accounted for.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mm::AllocFlags;
use slab::{CacheFlags, Layout, Prefilled, RawCache, Stat};
use sync::{ATOMIC, MaySleep, Rng, SpinLock, lock_class};

use crate::{Failure, ensure, ensure_eq};

const NOWAIT: AllocFlags = AllocFlags::NOWAIT;
/// Where objects lie between the CPU that allocates and the one that frees.
pub(crate) const SLOTS: usize = 96;
/// The most objects in a bulk call.
const BULK: usize = 40;

/// A cache of each size that `kmalloc` has.
const LAYOUTS: [Layout; 13] = {
    const fn layout(name: &'static str, size: usize) -> Layout {
        Layout::new(name, size).flags(CacheFlags::NO_MERGE)
    }
    [
        layout("random-8", 8),
        layout("random-16", 16),
        layout("random-32", 32),
        layout("random-64", 64),
        layout("random-96", 96),
        layout("random-128", 128),
        layout("random-192", 192),
        layout("random-256", 256),
        layout("random-512", 512),
        layout("random-1k", 1024),
        layout("random-2k", 2048),
        layout("random-4k", 4096),
        layout("random-8k", 8192),
    ]
};

/// An object in use, and what is in it.
pub(crate) struct Held {
    object: NonNull<u8>,
    size: usize,
    stamp: u64,
    /// None: of `kmalloc`.
    cache: Option<&'static RawCache>,
}

// SAFETY: an object belongs to no CPU; whoever has the value has the object.
unsafe impl Send for Held {}

impl Held {
    fn new(object: NonNull<u8>, size: usize, cache: Option<&'static RawCache>, rng: &mut Rng) -> Self {
        let held = Self { object, size, stamp: rng.next_u64(), cache };
        // SAFETY: as in `is_whole`.
        held.words().for_each(|(at, word)| unsafe { at.write_volatile(word) });
        held
    }

    /// Each word of the object, with what belongs there.
    fn words(&self) -> impl Iterator<Item = (*mut u64, u64)> {
        let (first, stamp) = (self.object.as_ptr().cast::<u64>(), self.stamp);
        (0..self.size / 8).map(move |index| (first.wrapping_add(index), stamp.rotate_left(index as u32) ^ index as u64))
    }

    /// Whether nobody else has written to it.
    fn is_whole(&self) -> bool {
        // SAFETY: inside the object's `size` bytes, which are ours.
        self.words().all(|(at, word)| unsafe { at.read_volatile() } == word)
    }
}

/// What the threads of a test share.
pub(crate) struct Yard {
    caches: [&'static RawCache; LAYOUTS.len()],
    slots: [SpinLock<Option<Held>>; SLOTS],
    /// Objects with two holders, and sheaves that hold less than they promise.
    damaged: AtomicU64,
    /// Calls that found no memory.
    refused: AtomicU64,
}

impl Yard {
    /// An empty one, with caches of its own.
    pub(crate) fn new() -> Result<Arc<Self>, Failure> {
        let mut caches = Vec::with_capacity(LAYOUTS.len());
        for layout in LAYOUTS {
            caches.push(slab::create(layout).map_err(|error| crate::__failed!("{error}"))?);
        }
        let Ok(caches) = caches.try_into() else { unreachable!("one of each") };
        let slots = core::array::from_fn(|_| SpinLock::new(None, lock_class!("test.slot")));
        Ok(Arc::new(Self { caches, slots, damaged: AtomicU64::new(0), refused: AtomicU64::new(0) }))
    }

    /// Puts `new` into a slot, and returns what was there.
    pub(crate) fn exchange(&self, slot: usize, new: Option<Held>) -> Option<Held> {
        core::mem::replace(&mut *self.slots[slot].lock_irqsave(ATOMIC), new)
    }

    /// Whether nothing is in a slot.
    pub(crate) fn is_vacant(&self, slot: usize) -> bool {
        self.slots[slot].lock_irqsave(ATOMIC).is_none()
    }

    /// Calls that found no memory.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Objects with two holders, and promises that were not kept.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.load(Relaxed)
    }

    /// Its caches.
    pub(crate) fn caches(&self) -> &[&'static RawCache] {
        &self.caches
    }

    fn check(&self, held: &Held) {
        if !held.is_whole() {
            self.damaged.fetch_add(1, Relaxed);
        }
    }

    /// Allocates in one of the ways there are for one object.
    pub(crate) fn allocate(&self, sheaf: &mut Option<Prefilled>, rng: &mut Rng) -> Option<Held> {
        let which = rng.index(self.caches.len());
        let (cache, size) = (self.caches[which], self.caches[which].object_size());
        let of_size = size - 8 * rng.index(size / 8 / 2 + 1);
        let held = match rng.index(6) {
            0 => slab::kmalloc(of_size, NOWAIT).map(|object| Held::new(object, of_size, None, rng)),
            1 => slab::kmalloc_nolock(of_size, NOWAIT).map(|object| Held::new(object, of_size, None, rng)),
            2 => cache.alloc_nolock(NOWAIT).map(|object| Held::new(object, size, Some(cache), rng)),
            3 => self.take_prefilled(sheaf, which, rng),
            _ => cache.alloc(NOWAIT).map(|object| Held::new(object, size, Some(cache), rng)),
        };
        if held.is_none() {
            self.refused.fetch_add(1, Relaxed);
        }
        held
    }

    /// An object of the thread's prefilled sheaf, which is refilled, exchanged for another or given back at times.
    fn take_prefilled(&self, sheaf: &mut Option<Prefilled>, which: usize, rng: &mut Rng) -> Option<Held> {
        let n = if rng.chance(1, 6) { rng.index(100) } else { rng.index(12) } + 1;
        let promised = match sheaf.take() {
            Some(sheaf) if rng.chance(3, 4) => sheaf.refill(n, NOWAIT).map_err(Some),
            _ => self.caches[which].prefill(n, NOWAIT).ok_or(None),
        };
        if promised.as_ref().is_ok_and(|sheaf| sheaf.size() < n) {
            self.damaged.fetch_add(1, Relaxed);
        }
        *sheaf = promised.map_or_else(|old| old, Some);
        let sheaf = sheaf.as_mut()?;
        let cache = sheaf.cache();
        sheaf.alloc(NOWAIT).map(|object| Held::new(object, cache.object_size(), Some(cache), rng))
    }

    /// Allocates many of one cache, and leaves them in slots.
    fn allocate_bulk(&self, rng: &mut Rng) {
        let cache = self.caches[rng.index(self.caches.len())];
        let mut places = [MaybeUninit::uninit(); BULK];
        let places = &mut places[..rng.index(BULK) + 1];
        let Some(objects) = cache.alloc_bulk(places, NOWAIT) else {
            self.refused.fetch_add(1, Relaxed);
            return;
        };
        for &mut object in objects {
            let held = Held::new(object, cache.object_size(), Some(cache), rng);
            if let Some(old) = self.exchange(rng.index(SLOTS), Some(held)) {
                self.free(old, rng);
            }
        }
    }

    /// Frees in one of the ways there are for one object.
    pub(crate) fn free(&self, held: Held, rng: &mut Rng) {
        self.check(&held);
        match held.cache {
            // SAFETY: allocated from it by whoever put it into the slot, and ours since we took it from there; as below.
            Some(cache) if rng.chance(1, 2) => unsafe { cache.free(held.object) },
            // SAFETY: as above.
            _ if rng.chance(1, 2) => unsafe { slab::kfree(held.object) },
            // SAFETY: as above.
            _ => unsafe { slab::kfree_nolock(held.object) },
        }
    }

    /// Frees what slots have of one cache, in one call.
    fn free_bulk(&self, rng: &mut Rng) {
        let cache = self.caches[rng.index(self.caches.len())];
        let is_of_it = |held: &mut Held| held.cache.is_some_and(|other| core::ptr::eq(other, cache));
        let first = rng.index(SLOTS);
        let slots = (first..SLOTS).filter_map(|slot| self.slots[slot].lock_irqsave(ATOMIC).take_if(is_of_it));
        let mut objects: Vec<_> = slots.inspect(|held| self.check(held)).map(|held| held.object).collect();
        // SAFETY: allocated from this cache by whoever put them into the slots, and ours since we took them from there.
        unsafe { cache.free_bulk(&mut objects) };
    }

    /// One of all these.
    pub(crate) fn play(&self, sheaf: &mut Option<Prefilled>, rng: &mut Rng) {
        match rng.index(16) {
            0 => self.allocate_bulk(rng),
            1 => self.free_bulk(rng),
            _ => {
                let new = if rng.chance(3, 4) { self.allocate(sheaf, rng) } else { None };
                if let Some(old) = self.exchange(rng.index(SLOTS), new) {
                    self.free(old, rng);
                }
            }
        }
    }

    /// Frees what is left, and accounts for everything.
    pub(crate) fn close(&self, cx: &mut MaySleep, rng: &mut Rng) -> Result<(), Failure> {
        (0..SLOTS).filter_map(|slot| self.exchange(slot, None)).for_each(|held| self.free(held, rng));
        slab::deferred::flush(&sched::keep_cpus(cx), cx);
        ensure_eq!(self.damaged.load(Relaxed), 0, "objects with two holders, and promises not kept");
        for cache in self.caches {
            account(cache)?;
            // SAFETY: nobody but this test knows the cache, and its threads have ended.
            ensure_eq!(unsafe { slab::flush::destroy(cache, cx) }, Ok(()), "{}", cache.name());
        }
        Ok(())
    }
}

/// Every allocation has its free, every sheaf and slab is back.
pub(crate) fn account(cache: &'static RawCache) -> Result<(), Failure> {
    let sum = |stats: &[Stat]| stats.iter().map(|&stat| cache.stat(stat)).sum::<u64>();
    let allocated = sum(&[Stat::AllocFastpath, Stat::AllocSlowpath]);
    let freed = sum(&[Stat::FreeFastpath, Stat::FreeSlowpath, Stat::FreeRemote]);
    ensure!(allocated > 0, "{} was not used", cache.name());
    ensure_eq!(allocated, freed, "allocations and frees of {}", cache.name());
    ensure_eq!((cache.lent().sheaves, cache.lent().objects), (0, 0), "prefilled sheaves of {}", cache.name());
    cache.shrink();
    let info = cache.info();
    ensure_eq!((info.active_objs, info.num_slabs), (0, 0), "objects and slabs of {}", cache.name());
    ensure_eq!(cache.stat(Stat::SheafAlloc), cache.stat(Stat::SheafFree), "sheaves of {}", cache.name());
    ensure_eq!(cache.stat(Stat::AllocSlab), cache.stat(Stat::FreeSlab), "slabs of {}", cache.name());
    Ok(())
}
