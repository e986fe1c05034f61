//! Typed caches: values that change threads, objects that keep their state, and RCU readers of objects that change hands.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arch::{PAGE_SIZE, cpu};
use mm::{AllocFlags, PageKind};
use rcu::{rcu_barrier, read_lock};
use sched::Prio;
use slab::DebugFlags;
use slab::constructed::{Construct, CtorCache};
use slab::typed::{Cache, CacheBox, TypedLayout};
use slab::typesafe::{TypesafeCache, TypesafeSlot};
use sync::{ATOMIC, Rng};

use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// What every session says it is, from when its slab is made on.
const SESSION: u64 = 0x5e55_1017;

/// An object that readers see change hands. A page holds few of them, so that pages come and go.
struct Session {
    /// All [`SESSION`], from end to end.
    tags: [u64; 61],
    /// One count for the owner, one for each reader that has pinned it; 0 while it is free.
    users: AtomicU64,
    /// Which session it is; written by its owner before `users` becomes 1, and then constant until it is 0.
    id: AtomicU64,
    /// The same once more.
    id_again: AtomicU64,
}

impl Construct for Session {
    fn construct() -> Self {
        let (users, id, id_again) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Session { tags: [SESSION; 61], users, id, id_again }
    }
}

impl Session {
    fn is_one(&self) -> bool {
        self.tags.iter().all(|&tag| tag == SESSION)
    }

    fn pin(&self) -> bool {
        // Acquire: pairs with the release in `begin`: the id is seen.
        self.users.fetch_update(Acquire, Relaxed, |users| (users != 0).then_some(users + 1)).is_ok()
    }

    /// Drops a count; true if it was the last.
    fn unpin(&self) -> bool {
        // Release: what this user has read comes before the next owner's writes. Acquire: the last one sees all others out.
        self.users.fetch_sub(1, core::sync::atomic::Ordering::AcqRel) == 1
    }

    /// Makes a free object the session `id`.
    fn begin(&self, id: u64) {
        self.id.store(id, Relaxed);
        self.id_again.store(id, Relaxed);
        // Release: pairs with the acquire in `pin`.
        self.users.store(1, Release);
    }
}

type Slots<'c> = [TypesafeSlot<'c, Session>; 8];

fn sessions(name: &'static str) -> Result<&'static TypesafeCache<Session>, Failure> {
    let cache = TypesafeCache::create(TypedLayout::new(name)).map_err(|error| crate::__failed!("{error}"))?;
    Ok(Box::leak(Box::new(cache)))
}

/// Every object of the cache is free, and its pages are gone after a grace period.
fn ensure_all_back(cache: &'static TypesafeCache<Session>, cx: &mut sync::MaySleep) -> Result<(), Failure> {
    // Objects of a debug cache wait, too.
    rcu_barrier(cx);
    cache.raw().shrink();
    rcu_barrier(cx);
    ensure_eq!(cache.raw().info().num_objs, 0, "objects are lost");
    Ok(())
}

/// Ends the session in a slot, waits for those who have pinned it, and begins another.
fn replace(cache: &'static TypesafeCache<Session>, slot: &TypesafeSlot<'static, Session>, id: u64) {
    if let Some(old) = slot.swap(None) {
        if !old.unpin() {
            while old.users.load(Acquire) != 0 {
                arch::irq::relax();
            }
        }
        // Free, without a grace period.
        drop(old);
    }
    if let Some(new) = cache.alloc(AllocFlags::NOWAIT) {
        new.begin(id);
        drop(slot.swap(Some(new)));
    }
}

/// Looks a session up; false if what it found was no session, or not one session.
fn look(slot: &TypesafeSlot<'static, Session>, pinned: &AtomicUsize, linger: usize) -> bool {
    let reader = read_lock(ATOMIC);
    let Some(found) = slot.read(&reader) else { return true };
    // Whatever it has become meanwhile, it is a session.
    for _ in 0..linger {
        if !found.is_one() {
            return false;
        }
        arch::irq::relax();
    }
    if !found.pin() {
        return true;
    }
    // Pinned, it does not change any more.
    let id = found.id.load(Relaxed);
    let one = found.id_again.load(Relaxed) == id && id != 0;
    pinned.fetch_add(usize::from(slot.holds(found)), Relaxed);
    found.unpin();
    one
}

ktest! {
    /// Readers follow slots while sessions end, are used again, and whole slabs go back and are overwritten by others.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_reader_of_a_typesafe_cache_never_sees_another_type(t: &mut Test) {
        const ROUNDS: u64 = 40;
        static SLOTS: Slots<'static> = [const { TypesafeSlot::new() }; 8];
        let cpus: Vec<_> = cpu::online().iter().collect();
        let [updater, readers @ ..] = &cpus[..] else { skip!("no CPU") };
        if readers.is_empty() {
            skip!("needs two CPUs")
        }
        let cache = sessions("test_typesafe")?;
        let over = Arc::new(AtomicBool::new(false));
        let (pinned, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut threads = Vec::new();
        for &on in readers {
            let (over, pinned, wrong, mut rng) = (over.clone(), pinned.clone(), wrong.clone(), Rng::new(t.rng.next_u64()));
            let thread = sched::spawn(t.cx, "reader", Prio::NORMAL, Some(on), move |cx| {
                while !over.load(Relaxed) {
                    let ok = look(&SLOTS[rng.index(SLOTS.len())], &pinned, 1 + rng.index(4));
                    wrong.fetch_add(usize::from(!ok), Relaxed);
                    sched::cond_resched(cx);
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        let mut rng = Rng::new(t.rng.next_u64());
        let update = sched::spawn(t.cx, "updater", Prio::NORMAL, Some(*updater), move |cx| {
            for round in 1..=ROUNDS {
                for _ in 0..10 {
                    replace(cache, &SLOTS[rng.index(SLOTS.len())], round);
                }
                // Pages that nobody else holds go back; whoever gets them writes all over them.
                cache.raw().shrink();
                let pages: Vec<_> = (0..8).filter_map(|_| mm::alloc_pages(0, None, AllocFlags::NOWAIT).ok()).collect();
                for page in pages {
                    // SAFETY: a fresh page.
                    unsafe { page.virt().write_bytes(0xff, PAGE_SIZE) };
                    mm::free_pages(page, 0);
                }
                sched::cond_resched(cx);
            }
        });
        update.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
        over.store(true, Relaxed);
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        SLOTS.iter().for_each(|slot| drop(slot.swap(None)));
        t.note(format_args!("{} sessions pinned and validated", pinned.load(Relaxed)));
        ensure!(pinned.load(Relaxed) > 0, "no reader ever found one");
        ensure_eq!(wrong.load(Relaxed), 0, "readers saw something else than a session");
        ensure_all_back(cache, t.cx)
    }

    /// A slab without users is not anybody else's before the readers are gone that may look at it.
    fn the_pages_of_a_typesafe_slab_wait_for_their_readers(t: &mut Test) {
        static SLOT: TypesafeSlot<'static, Session> = TypesafeSlot::new();
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        static GO: AtomicBool = AtomicBool::new(false);
        let cpus: Vec<_> = cpu::online().iter().collect();
        let Some(&there) = cpus.get(1) else { skip!("needs two CPUs") };
        let cache = sessions("test_pages")?;
        let Some(session) = cache.alloc(AllocFlags::NOWAIT) else { return Err(crate::__failed!("no memory")) };
        session.begin(1);
        drop(SLOT.swap(Some(session)));
        SEEN.store(0, Relaxed);
        GO.store(false, Relaxed);
        let reader = sched::spawn(t.cx, "reader", Prio::NORMAL, Some(there), |_| {
            let reader = read_lock(ATOMIC);
            let Some(found) = SLOT.read(&reader) else { return false };
            SEEN.store((&raw const *found).expose_provenance(), Release);
            while !GO.load(Acquire) {
                arch::irq::relax();
            }
            found.is_one()
        });
        let reader = reader.map_err(|error| crate::__failed!("{error}"))?;
        while SEEN.load(Acquire) == 0 {
            sched::sleep_ns(t.cx, 100_000);
        }
        drop(SLOT.swap(None));
        let went = cache.raw().shrink();
        let page = mm::page_of(core::ptr::with_exposed_provenance(SEEN.load(Relaxed))).map(|page| page.head());
        let kind = page.map(|page| page.kind());
        let objects = cache.raw().info().num_objs;
        GO.store(true, Release);
        ensure!(reader.join(t.cx), "the reader saw something else");
        // Of a debug cache the object itself waits, so its slab is still in use.
        let waits = cache.raw().debug().intersects(DebugFlags::CHECKS);
        ensure_eq!(objects != 0, waits, "the slab was not given up ({went} pages)");
        ensure_eq!(kind, Some(PageKind::Slab), "the page went before the reader");
        ensure_all_back(cache, t.cx)
    }

    /// Values made on one CPU are dropped on all others, each once, and nothing is left.
    #[tags(race)]
    fn values_travel_between_cpus_and_are_dropped_once(t: &mut Test) {
        struct Value(u64, Arc<AtomicU64>);
        impl Drop for Value {
            fn drop(&mut self) {
                self.1.fetch_add(self.0, Relaxed);
            }
        }
        let cache: Cache<Value> = Cache::create(TypedLayout::new("test_values").flags(slab::CacheFlags::NO_MERGE))
            .map_err(|error| crate::__failed!("{error}"))?;
        let cache: &'static Cache<Value> = Box::leak(Box::new(cache));
        let sum = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        let mut expected = 0;
        for (index, on) in cpu::online().iter().enumerate() {
            let mut held: Vec<CacheBox<'static, Value>> = Vec::new();
            for n in 0..100 {
                let value = Value(100 * index as u64 + n, sum.clone());
                expected += 2 * value.0;
                held.push(cache.alloc(value, AllocFlags::NOWAIT).map_err(|error| crate::__failed!("{error}"))?);
            }
            let sum = sum.clone();
            let thread = sched::spawn(t.cx, "values", Prio::NORMAL, Some(on), move |_| {
                for value in held {
                    let again = cache.alloc(Value(value.0, sum.clone()), AllocFlags::NOWAIT);
                    drop((value, again));
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        ensure_eq!(sum.load(Relaxed), expected, "values were lost or dropped twice");
        let Some(raw) = cache.raw() else { return Err(crate::__failed!("a value has a size")) };
        raw.shrink();
        ensure_eq!(raw.info().active_objs, 0, "objects are lost");
        Ok(())
    }

    /// A table is made once an object, and used by one holder after the other.
    fn a_constructed_object_keeps_its_state_from_holder_to_holder(t: &mut Test) {
        static MADE: AtomicU64 = AtomicU64::new(0);
        struct Table([u64; 32]);
        impl Construct for Table {
            fn construct() -> Self {
                MADE.fetch_add(1, Relaxed);
                Table(core::array::from_fn(|index| index as u64))
            }
        }
        MADE.store(0, Relaxed);
        let cache: CtorCache<Table> =
            CtorCache::create(TypedLayout::new("test_table")).map_err(|error| crate::__failed!("{error}"))?;
        for _ in 0..10 {
            let held: Vec<_> = (0..200).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
            for mut table in held {
                ensure!(table.0.iter().enumerate().all(|(index, &word)| word == index as u64), "a damaged table");
                table.0.swap(3, 4);
                table.0.swap(3, 4);
                let inside = NonNull::from(&*table).cast::<u8>();
                ensure!(slab::object_of(inside).is_some());
            }
        }
        let (made, objects) = (MADE.load(Relaxed), cache.raw().info().num_objs);
        ensure!(made >= objects && made < 2000, "{made} constructed for {objects} objects");
        ensure!(cache.destroy(t.cx).is_ok());
        Ok(())
    }
}
