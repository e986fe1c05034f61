//! A field of objects that readers look at and updaters replace, by `kfree_rcu`: whoever has found an object sees its content until
//! the end of its section, whatever becomes of the object meanwhile.
//!
//! Updaters give the old objects up in every way there is. Each object has a content of its own, in every word but its head.
//! Whoever allocates one writes poison over it first, so an object that is used again under a reader, or freed, changes before
//! the reader's eyes; an area that is unmapped is a fault. Sections are short, some with preemption or interrupts off, and some
//! longer than a slice, so there is always one that a grace period has to wait for.

use alloc::sync::Arc;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use arch::{clock, irq};
use kfree_rcu::kfree_rcu_nolock;
use mm::AllocFlags;
use slab::RawCache;
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, Rng};

use crate::kfree::{Node, Way, content, head, stamp};
use crate::together::MS;

/// Where readers find objects. The first is for areas and large blocks.
const PLACES: usize = 16;
/// The first that has objects of the cache only; those between are for `kmalloc`.
const FIRST_OF_CACHE: usize = 4;
/// In the content of every object that readers can find; the rest is its number.
pub(crate) const LIVE: u64 = 0x11fe << 48;
/// What is written first into every fresh object.
const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;

/// What readers read and updaters replace.
pub(crate) struct Field {
    cache: &'static RawCache,
    places: [AtomicPtr<Node>; PLACES],
    /// Number of the next object.
    next: AtomicU64,
    /// Sections that are over.
    pub(crate) sections: AtomicU64,
    /// Objects that were replaced.
    pub(crate) replaced: AtomicU64,
    /// Allocations that found no memory.
    pub(crate) misses: AtomicU64,
    /// Sections whose object changed; of the first, what it was and what it became, 0 for words that differ.
    pub(crate) broken: AtomicU64,
    pub(crate) was: AtomicU64,
    pub(crate) became: AtomicU64,
}

impl Field {
    /// An empty one.
    pub(crate) fn new(cache: &'static RawCache) -> Arc<Field> {
        Arc::new(Field {
            cache,
            places: [const { AtomicPtr::new(ptr::null_mut()) }; PLACES],
            next: AtomicU64::new(0),
            sections: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            was: AtomicU64::new(0),
            became: AtomicU64::new(0),
        })
    }

    /// Has sections until `over` says so, which is asked outside of them.
    pub(crate) fn read(&self, mut rng: Rng, cx: &mut MaySleep, mut over: impl FnMut(&mut MaySleep) -> bool) {
        while !over(cx) {
            let dice = rng.next_u64();
            let long = dice.is_multiple_of(64);
            let no_preemption = (!long && dice & 0x300 == 0).then(|| PreemptGuard::new(ATOMIC));
            let no_interrupts = (!long && dice & 0x3000 == 0).then(|| IrqGuard::new(ATOMIC));
            self.section(&self.places[rng.index(PLACES)], if long { rng.below(12 * MS) } else { dice >> 52 });
            drop(no_interrupts);
            drop(no_preemption);
            sched::cond_resched(cx);
        }
    }

    /// One short section, in any context.
    pub(crate) fn look(&self, rng: &mut Rng) {
        self.section(&self.places[rng.index(PLACES)], rng.below(4_000));
    }

    /// Looks at the object in `place` for so long.
    fn section(&self, place: &AtomicPtr<Node>, ns: u64) {
        let _section = rcu::read_lock(ATOMIC);
        // Acquire: pairs with the exchange in `update`: the content is there.
        let Some(node) = NonNull::new(place.load(Acquire)) else { return };
        let (first, end) = (content(node), clock::now_ns() + ns);
        let mut is_whole = first.is_some_and(|first| first & LIVE == LIVE);
        let mut last = first;
        while is_whole {
            last = content(node);
            is_whole = last == first;
            if clock::now_ns() >= end {
                break;
            }
            irq::relax();
        }
        self.sections.fetch_add(1, Relaxed);
        if !is_whole && self.broken.fetch_add(1, Relaxed) == 0 {
            self.was.store(first.unwrap_or(0), Relaxed);
            self.became.store(last.unwrap_or(0), Relaxed);
        }
    }

    /// Replaces objects until `over` says so, or a reader has found one that changed.
    pub(crate) fn update(&self, mut rng: Rng, cx: &mut MaySleep, mut over: impl FnMut(&mut MaySleep) -> bool) {
        while !over(cx) && self.broken.load(Relaxed) == 0 {
            let at = if rng.chance(1, 64) { 0 } else { 1 + rng.index(PLACES - 1) };
            let way = Way::any(&mut rng);
            self.replace(at, way, &mut rng, cx);
            // Where one host thread runs all CPUs, this is where another one gets its turn.
            irq::relax();
            sched::cond_resched(cx);
        }
    }

    /// Replaces an object of the cache where no lock may be waited for, or interrupts may be off.
    pub(crate) fn replace_nolock(&self, rng: &mut Rng) {
        let Some(object) = self.cache.alloc_nolock(AllocFlags::NOWARN) else {
            self.misses.fetch_add(1, Relaxed);
            return;
        };
        if let Some(old) = self.put(FIRST_OF_CACHE + rng.index(PLACES - FIRST_OF_CACHE), object) {
            // SAFETY: no reader can find it any more, and it is nobody else's since the exchange.
            unsafe { kfree_rcu_nolock(head(old)) };
        }
    }

    /// A fresh object for a place: for the first one too large for slabs.
    fn fresh(&self, at: usize, way: Way, rng: &mut Rng, cx: &mut MaySleep) -> Option<NonNull<u8>> {
        match (at, rng.chance(1, 2)) {
            (0, true) => mm::vmalloc(5_000, cx).ok(),
            (0, false) => slab::kmalloc(20_000, AllocFlags::NOWAIT | AllocFlags::NOWARN),
            (1..FIRST_OF_CACHE, _) => slab::kmalloc(size_of::<Node>(), AllocFlags::NOWAIT | AllocFlags::NOWARN),
            _ if way == Way::Nolock => self.cache.alloc_nolock(AllocFlags::NOWAIT),
            _ => self.cache.alloc_sleep(AllocFlags::MAY_SLEEP, cx),
        }
    }

    fn replace(&self, at: usize, way: Way, rng: &mut Rng, cx: &mut MaySleep) {
        let Some(object) = self.fresh(at, way, rng, cx) else {
            self.misses.fetch_add(1, Relaxed);
            sched::sleep_ns(cx, MS);
            return;
        };
        if let Some(old) = self.put(at, object) {
            // Of an area the calls without locks know nothing.
            let way = if mm::is_vmalloc(old.as_ptr().cast()) && way != Way::Headless { Way::Head } else { way };
            // SAFETY: no reader can find it any more, and it is nobody else's since the exchange.
            unsafe { way.give_up(old, cx) };
        }
    }

    /// Puts a fresh object into a place; returns what was there.
    fn put(&self, at: usize, object: NonNull<u8>) -> Option<NonNull<Node>> {
        stamp(object, POISON);
        let node = stamp(object, LIVE | self.next.fetch_add(1, Relaxed));
        // Release: pairs with the acquire in `section`. Acquire: with that of whoever put the old one there.
        let old = self.places[at].swap(node.as_ptr(), AcqRel);
        self.replaced.fetch_add(1, Relaxed);
        NonNull::new(old)
    }

    /// Gives up what the places have.
    pub(crate) fn clear(&self, cx: &mut MaySleep) {
        for place in &self.places {
            if let Some(old) = NonNull::new(place.swap(ptr::null_mut(), Acquire)) {
                // SAFETY: as in `replace`.
                unsafe { Way::Head.give_up(old, cx) };
            }
        }
    }
}
