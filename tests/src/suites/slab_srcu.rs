//! Type-safe caches whose readers are those of a domain of SRCU, and sleep while they look at objects that change hands (G-7).

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arch::PAGE_SIZE;
use mm::{AllocFlags, PageKind};
use rcu::srcu::{Normal, srcu_barrier, srcu_read_lock, synchronize_srcu};
use slab::constructed::Construct;
use slab::typed::TypedLayout;
use slab::typesafe::{BySrcu, TypesafeCache, TypesafeSlot};
use slab::{CacheFlags, DebugFlags, Layout, RawCache};
use sync::{MaySleep, Rng};

use crate::together::{MS, spawn};
use crate::{Failure, ensure, ensure_eq, ktest};

rcu::srcu_domain! {
    /// Readers of the caches here.
    static READERS: Normal;
    /// Those of nothing.
    static OTHERS: Normal;
}

/// What every object is, whoever has it.
const TAG: u64 = 0x7a67_5e55;

/// A page holds few of them, so that pages come and go.
struct Session {
    tags: [u64; 60],
    id: AtomicU64,
}

impl Construct for Session {
    fn construct() -> Self {
        Session { tags: [TAG; 60], id: AtomicU64::new(0) }
    }
}

impl Session {
    fn is_one(&self) -> bool {
        self.tags.iter().all(|&tag| tag == TAG)
    }
}

type Cache = TypesafeCache<Session, BySrcu<Normal>>;
type Slot = TypesafeSlot<'static, Session, BySrcu<Normal>>;

/// For threads the cache lives as long as the kernel; [`end`] ends it.
fn sessions(name: &'static str) -> Result<(&'static Cache, *mut Cache), Failure> {
    let cache = Cache::create_in(TypedLayout::new(name), &READERS).map_err(|error| crate::__failed!("{error}"))?;
    let owner = Box::into_raw(Box::new(cache));
    // SAFETY: valid until `end` takes it back.
    Ok((unsafe { &*owner }, owner))
}

/// Ends a cache that nobody borrows any more: pages that wait for readers are waited for.
fn end(owner: *mut Cache, cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: from `sessions`, once, and no reference is left, says the caller.
    let cache = *unsafe { Box::from_raw(owner) };
    cache.destroy(cx).map_err(|(_, leaked)| crate::__failed!("{leaked:?}"))
}

/// The kind of the page that is at `address`.
fn kind_at(address: usize) -> Option<PageKind> {
    mm::page_of(core::ptr::with_exposed_provenance(address)).map(|page| page.head().kind())
}

/// Pages that others have meanwhile, who write all over them.
fn overwrite_free_pages() {
    let pages: Vec<_> = (0..8).filter_map(|_| mm::alloc_pages(0, None, AllocFlags::NOWARN).ok()).collect();
    for page in pages {
        // SAFETY: a fresh page.
        unsafe { page.virt().write_bytes(0xff, PAGE_SIZE) };
        mm::free_pages(page, 0);
    }
}

/// A cache of raw objects that checks everything.
fn checked(name: &'static str) -> Result<&'static RawCache, Failure> {
    fn ctor(object: NonNull<u8>) {
        // SAFETY: an object of this cache, before anybody has it.
        unsafe { object.write_bytes(0x3c, 64) };
    }
    let checks = DebugFlags::CONSISTENCY | DebugFlags::RED_ZONE | DebugFlags::POISON;
    let layout = Layout::new(name, 64).debug(checks).flags(CacheFlags::NO_MERGE).ctor(ctor);
    slab::create(layout.typesafe_by_srcu(&READERS)).map_err(|error| crate::__failed!("{name}: {error}"))
}

fn first_byte(object: NonNull<u8>) -> u8 {
    // SAFETY: inside an object's slab, which its cache keeps; free or not is what the test is about.
    unsafe { object.read_volatile() }
}

ktest! {
    /// A reader of the domain sleeps with an object in hand: its page stays, through grace periods of RCU and other domains.
    fn the_pages_of_a_slab_wait_for_readers_of_its_domain_and_no_others(t: &mut Test) {
        static SLOT: Slot = TypesafeSlot::new_in(&READERS);
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        static GO: AtomicBool = AtomicBool::new(false);
        let (cache, owner) = sessions("test_srcu_pages")?;
        let session = cache.alloc(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory"))?;
        drop(SLOT.swap(Some(session)));
        SEEN.store(0, Relaxed);
        GO.store(false, Relaxed);
        let reader = spawn(t.cx, None, |cx| {
            let section = srcu_read_lock(&READERS);
            let Some(found) = SLOT.read(&section) else { return false };
            SEEN.store((&raw const *found).expose_provenance(), Release);
            while !GO.load(Acquire) {
                sched::sleep_ns(cx, MS);
            }
            found.is_one()
        })?;
        while SEEN.load(Acquire) == 0 {
            sched::sleep_ns(t.cx, MS / 10);
        }
        drop(SLOT.swap(None));
        cache.raw().shrink();
        rcu::rcu_barrier(t.cx);
        rcu::synchronize_rcu(t.cx);
        synchronize_srcu(&OTHERS, t.cx);
        overwrite_free_pages();
        let kind = kind_at(SEEN.load(Relaxed));
        GO.store(true, Release);
        ensure!(reader.join(t.cx), "the reader saw something else");
        ensure_eq!(kind, Some(PageKind::Slab), "the page went before the reader");
        // A debug cache's objects come back first, and then the page.
        srcu_barrier(&READERS, t.cx);
        cache.raw().shrink();
        srcu_barrier(&READERS, t.cx);
        ensure_eq!(cache.raw().info().num_objs, 0, "the slab is still there");
        end(owner, t.cx)
    }

    /// Readers that sleep follow slots while objects are freed, used again, and whole slabs go back and are overwritten.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_reader_that_sleeps_never_sees_another_type(t: &mut Test) {
        const ROUNDS: usize = 60;
        static SLOTS: [Slot; 4] = [const { TypesafeSlot::new_in(&READERS) }; 4];
        let (cache, owner) = sessions("test_srcu_readers")?;
        let over = Arc::new(AtomicBool::new(false));
        let mut readers = Vec::new();
        for on in arch::cpu::online().iter() {
            let (over, mut rng) = (over.clone(), Rng::new(t.rng.next_u64()));
            readers.push(spawn(t.cx, Some(on), move |cx| {
                let (mut found, mut right) = (0, true);
                while !over.load(Relaxed) {
                    let section = srcu_read_lock(&READERS);
                    if let Some(session) = SLOTS[rng.index(SLOTS.len())].read(&section) {
                        right &= session.is_one();
                        sched::sleep_ns(cx, rng.below(MS));
                        right &= session.is_one();
                        found += 1;
                    }
                    drop(section);
                    sched::yield_now(cx);
                }
                (found, right)
            })?);
        }
        for round in 0..ROUNDS {
            for slot in &SLOTS {
                drop(slot.swap(None));
                let new = cache.alloc(AllocFlags::NOWAIT);
                new.iter().for_each(|new| new.id.store(round as u64, Relaxed));
                drop(slot.swap(new));
            }
            if round % 2 == 0 {
                SLOTS.iter().for_each(|slot| drop(slot.swap(None)));
                cache.raw().shrink();
                overwrite_free_pages();
            }
            sched::sleep_ns(t.cx, MS);
        }
        over.store(true, Relaxed);
        let mut total = 0_u64;
        for reader in readers {
            let (found, right) = reader.join(t.cx);
            ensure!(right, "a reader saw something else than a session");
            total += found;
        }
        SLOTS.iter().for_each(|slot| drop(slot.swap(None)));
        t.note(format_args!("{total} sessions looked at"));
        ensure!(total > 0, "no reader ever found one");
        end(owner, t.cx)
    }

    /// Of a debug cache each freed object waits for the domain by itself: who looks later is found, nobody gets it before.
    fn a_freed_object_of_a_debug_cache_is_left_alone_until_its_readers_have_ended(t: &mut Test) {
        let cache = checked("dbg_srcu")?;
        let object = cache.alloc(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory"))?;
        let section = srcu_read_lock(&READERS);
        // SAFETY: allocated above, and given up.
        unsafe { cache.free(object) };
        rcu::rcu_barrier(t.cx);
        rcu::synchronize_rcu(t.cx);
        let again: Vec<_> = (0..50).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
        ensure!(!again.contains(&object), "handed out while a reader may look at it");
        ensure_eq!(first_byte(object), 0x3c, "changed while a reader may look at it");
        drop(section);
        srcu_barrier(&READERS, t.cx);
        ensure_eq!(first_byte(object), 0x6b, "not poisoned when all readers have gone");
        for object in again {
            // SAFETY: allocated above.
            unsafe { cache.free(object) };
        }
        // They wait; the end of the cache waits for them.
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }
}
