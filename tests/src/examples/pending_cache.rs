//! A cache of keys that allocates from what waits for a grace period.
//!
//! Readers find an entry through a slot, lock it and look whether it is still the one that they were looking for. So an entry that
//! was thrown out can become another key at once, while readers from before still try its lock. It goes back to the allocator
//! only if nobody wants it for a grace period.
//!
//! Entries that are read often have a lock that costs readers little and memory much: a count for each CPU, in its own cache line
//! pair. A reader from before may be about to use either, so an entry changes its kind only when no reader is left:
//! [`ReuseCache`] has a tracker for each.

use core::sync::atomic::{
    AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

use alloc::boxed::Box;
use alloc::vec::Vec;

use arch::cpu;
use kfree_rcu::pending::{Origin, ReuseCache, TwoKinds};
use kfree_rcu::{RcuPtr, has_rcu_ptr};
use mm::AllocFlags;
use slab::constructed::Construct;
use slab::typed::TypedLayout;
use slab::typesafe::{TypesafeBox, TypesafeCache, TypesafeSlot};
use sync::{ATOMIC, MaySleep, Rng};

use crate::together::{Steps, spawn, spin_until};
use crate::{ensure, ensure_eq, ktest, skip};

/// So many readers can be counted apart.
const STRIPES: usize = 4;
/// In a count: the entry belongs to a writer, or to nobody.
const WRITER: u64 = 1 << 32;

/// A cached key. Free, it is locked for writing, so that a reader who comes late gets nowhere.
struct Entry {
    /// Readers, all in the first count or each in that of its CPU, as the kind says.
    readers: [AtomicU64; STRIPES],
    kind: AtomicUsize,
    key: AtomicU64,
    value: AtomicU64,
    rcu: RcuPtr,
}

has_rcu_ptr!(Entry, rcu);

impl Construct for Entry {
    fn construct() -> Self {
        Self {
            readers: [const { AtomicU64::new(WRITER) }; STRIPES],
            kind: AtomicUsize::new(0),
            key: AtomicU64::new(0),
            value: AtomicU64::new(0),
            rcu: RcuPtr::new(),
        }
    }
}

impl TwoKinds for Entry {
    fn kind(&self) -> usize {
        self.kind.load(Relaxed)
    }

    fn set_kind(&self, kind: usize) {
        self.kind.store(kind, Relaxed);
    }
}

impl Entry {
    /// Where a reader on this CPU counts itself.
    fn count(&self) -> &AtomicU64 {
        &self.readers[if self.kind() == 1 { cpu::current().index() % STRIPES } else { 0 }]
    }

    /// The value, if this is the entry of `key` and no writer has it.
    fn read(&self, key: u64) -> Option<u64> {
        let count = self.count();
        // Acquire: pairs with the release in `open`: key and value belong together.
        let entered = count.fetch_add(1, Acquire) & WRITER == 0;
        let value = (entered && self.key.load(Relaxed) == key).then(|| self.value.load(Relaxed));
        // Release: pairs with the acquire in `close`: the next writer comes after the loads.
        count.fetch_sub(1, Release);
        value
    }

    /// Makes it the entry of `key`, for readers. The caller has it for writing.
    fn open(&self, key: u64) {
        self.key.store(key, Relaxed);
        self.value.store(value_of(key), Relaxed);
        for count in &self.readers {
            // Release: pairs with the acquire in `read`.
            count.fetch_sub(WRITER, Release);
        }
    }

    /// Takes it for writing, and waits for the readers inside.
    fn close(&self) {
        for count in &self.readers {
            count.fetch_add(WRITER, AcqRel);
            // Acquire: pairs with the release in `read`.
            while count.load(Acquire) != WRITER {
                arch::irq::relax();
            }
        }
    }
}

/// What is cached of a key.
fn value_of(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Keys that are read often.
fn is_hot(key: u64) -> bool {
    key.is_multiple_of(4)
}

/// The cache.
struct Keys {
    slots: Vec<TypesafeSlot<'static, Entry>>,
    entries: ReuseCache<Entry>,
    /// How many allocations found their entry where, as in [`Origin`].
    found: [AtomicUsize; 3],
}

impl Keys {
    fn slot(&self, key: u64) -> &TypesafeSlot<'static, Entry> {
        &self.slots[key as usize % self.slots.len()]
    }

    /// The cached value of `key`.
    fn get(&self, key: u64) -> Option<u64> {
        let reader = rcu::read_lock(ATOMIC);
        self.slot(key).read(&reader)?.read(key)
    }

    /// Caches `key`, and throws out what was in its place. False if there is no memory.
    fn put(&self, key: u64) -> bool {
        let Some((entry, origin)) = self.entries.alloc(usize::from(is_hot(key)), AllocFlags::NOWAIT) else {
            return false;
        };
        self.found[origin as usize].fetch_add(1, Relaxed);
        entry.open(key);
        let old = self.slot(key).swap(Some(entry));
        old.into_iter().for_each(|old| self.throw_out(old));
        true
    }

    fn throw_out(&self, old: TypesafeBox<'static, Entry>) {
        old.close();
        self.entries.free(old);
    }

    fn end(self, cx: &mut MaySleep) {
        for slot in &self.slots {
            slot.swap(None).into_iter().for_each(|old| self.throw_out(old));
        }
        self.entries.exit(cx);
    }
}

ktest! {
    /// Readers and writers of all CPUs: whoever gets a value gets the right one, most entries are used again at once, entries
    /// of both kinds, and in the end all are back.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_cache_allocates_from_what_waits(t: &mut Test) {
        const KEYS: u64 = 64;
        let layout = TypedLayout::new("pending_cache");
        let cache = TypesafeCache::<Entry>::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        let cache: &'static TypesafeCache<Entry> = Box::leak(Box::new(cache));
        let entries = ReuseCache::new(cache, kfree_rcu::pending::TreeRcu, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        let slots = (0..KEYS / 4).map(|_| TypesafeSlot::new()).collect();
        let keys = alloc::sync::Arc::new(Keys { slots, entries, found: Default::default() });
        let mut threads = Vec::new();
        for on in cpu::online().iter().take(4) {
            let (keys, mut rng) = (keys.clone(), Rng::new(t.rng.next_u64()));
            threads.push(spawn(t.cx, Some(on), move |cx| {
                let mut hits = 0;
                for _ in 0..3_000 {
                    let key = rng.below(KEYS);
                    match keys.get(key) {
                        Some(value) if value == value_of(key) => hits += 1,
                        Some(value) => return Err(crate::__failed!("{key} is cached with {value:#x}")),
                        None if !keys.put(key) => return Err(crate::__failed!("no memory")),
                        None => {}
                    }
                    sched::cond_resched(cx);
                }
                Ok(hits)
            })?);
        }
        let mut hits = 0;
        for thread in threads {
            hits += thread.join(t.cx)?;
        }
        let found: Vec<usize> = keys.found.iter().map(|found| found.load(Relaxed)).collect();
        t.note(format_args!("{hits} hits; entries found waiting here {}, in the allocator {}", found[0], found[1]));
        ensure!(hits > 0 && found[Origin::Here as usize] > 2 * found[Origin::Allocator as usize], "{found:?}");
        let Some(keys) = alloc::sync::Arc::into_inner(keys) else { return Err(crate::__failed!("still shared")) };
        keys.end(t.cx);
        cache.raw().shrink();
        rcu::rcu_barrier(t.cx);
        cache.raw().shrink();
        ensure_eq!(cache.raw().info().active_objs, 0);
        Ok(())
    }

    /// Without memory an entry that waits on another CPU is used; never one of the other kind.
    fn without_memory_it_takes_what_waits_elsewhere(t: &mut Test) {
        let layout = TypedLayout::new("pending_cache_none");
        let cache = TypesafeCache::<Entry>::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        let cache: &'static TypesafeCache<Entry> = Box::leak(Box::new(cache));
        let entries: ReuseCache<Entry> =
            ReuseCache::new(cache, kfree_rcu::pending::TreeRcu, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        let entries = alloc::sync::Arc::new(entries);
        let Some(other) = cpu::online().iter().find(|&on| on != cpu::current()) else {
            skip!("needs two CPUs");
        };
        let (theirs, steps) = (entries.clone(), Steps::new());
        let ours = steps.clone();
        let gave = spawn(t.cx, Some(other), move |_| {
            let may = spin_until(|| steps.is_at(1));
            let entry = theirs.alloc(1, AllocFlags::NOWAIT).map(|(entry, _)| entry);
            let has = entry.map(|entry| theirs.free(entry)).is_some();
            steps.reach(2);
            may && has
        })?;
        let thread = Some(sched::current().tid());
        let found = slab::fail::with("pending_cache_none", t.cx, |selection, _| {
            // A reader, so that what is freed now waits.
            let _section = rcu::read_lock(ATOMIC);
            ours.reach(1);
            let gave = spin_until(|| ours.is_at(2));
            let _armed = selection.arm(sync::fault::Plan::From(1), thread);
            let cold = entries.alloc(0, AllocFlags::NOWARN).map(|(_, origin)| origin);
            let hot = entries.alloc(1, AllocFlags::NOWARN).map(|(entry, origin)| {
                let kind = entry.kind();
                entries.free(entry);
                (kind, origin)
            });
            (gave, cold, hot)
        });
        let gave_it = gave.join(t.cx);
        let (gave, cold, hot) = found.map_err(|error| crate::__failed!("{error}"))?;
        ensure!(gave && gave_it, "no memory");
        ensure_eq!(cold, None, "an entry became one of the other kind under readers");
        ensure_eq!(hot, Some((1, Origin::Anywhere)));
        let Some(entries) = alloc::sync::Arc::into_inner(entries) else { return Err(crate::__failed!("still shared")) };
        entries.exit(t.cx);
        Ok(())
    }
}
