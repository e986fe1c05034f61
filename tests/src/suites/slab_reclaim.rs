//! Allocations that may sleep, when memory has run out but for what lies idle in caches.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arch::cpu;
use kfree_rcu::kfree_rcu;
use mm::{AllocFlags, Shrinker};
use sched::Mutex;
use slab::flush::destroy;
use slab::{CacheFlags, Layout, RawCache, Stat};
use sync::{MaySleep, Once, Rng};

use super::mm::Chain;
use crate::outcome::needs_sheaves;
use crate::toggle::{Load, MS, spawn};
use crate::{Failure, Test, ensure, ensure_eq, ktest};

const QUIET: AllocFlags = AllocFlags::NOWARN;
const SLEEPING: AllocFlags = AllocFlags::NOWARN.union(AllocFlags::MAY_SLEEP);

/// Bytes of the objects that lie idle, and of those that are wanted: each of these needs a page.
const IDLE: usize = 2048;
const WANTED: usize = arch::PAGE_SIZE;

fn cache(name: &'static str, size: usize, flags: CacheFlags) -> Result<&'static RawCache, Failure> {
    slab::create(Layout::new(name, size).flags(flags | CacheFlags::NO_MERGE))
        .map_err(|error| crate::__failed!("{name}: {error}"))
}

/// A cache whose free objects are all in sheaves and barns: it keeps no slabs.
fn sheaved(name: &'static str, flags: CacheFlags) -> Result<&'static RawCache, Failure> {
    let cache = cache(name, IDLE, flags)?;
    needs_sheaves(cache)?;
    cache.set_min_partial(0);
    Ok(cache)
}

/// Ends some caches: every object is free.
fn end(caches: &[&'static RawCache], cx: &mut MaySleep) -> Result<(), Failure> {
    caches.iter().try_for_each(|&cache| {
        // SAFETY: the test is over, and nobody else knows them.
        unsafe { destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{}: {leaked:?}", cache.name()))
    })
}

/// Objects of one cache, in room that was there before memory ran out. They go back with it.
struct Held(&'static RawCache, Vec<NonNull<u8>>);

impl Held {
    fn new(cache: &'static RawCache, most: usize) -> Self {
        Self(cache, Vec::with_capacity(most))
    }

    /// Keeps what was allocated; false if there was nothing, or there is no more room.
    fn keep(&mut self, object: Option<NonNull<u8>>) -> bool {
        self.1.extend(object);
        object.is_some() && self.1.len() < self.1.capacity()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: allocated from the cache, each given up once.
        self.1.drain(..).for_each(|object| unsafe { self.0.free(object) });
    }
}

/// All memory but the reserve and what the caches of the test have, as long as this lives.
struct Exhausted(Chain);

impl Exhausted {
    fn but_for(idle: &[&'static RawCache], cx: &mut MaySleep) -> Self {
        slab::registry::for_each_unlocked(cx, |cache| {
            if !idle.iter().any(|&kept| core::ptr::eq(kept, cache)) {
                cache.shrink();
            }
        });
        let mut all = Self(Chain::new());
        loop {
            // What lies on the lists of other CPUs.
            mm::drain_all(cx);
            let mut some = false;
            while let Ok(page) = mm::alloc_pages(0, None, QUIET) {
                all.0.push(page);
                some = true;
            }
            if !some {
                return all;
            }
        }
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        self.0.free_all();
    }
}

/// Has every CPU allocate `count` objects and free them.
fn come_and_go(cache: &'static RawCache, count: usize, cx: &mut MaySleep) -> Result<(), Failure> {
    for on in cpu::online().iter() {
        spawn(cx, Some(on), move |_| {
            let mut held = Held::new(cache, count);
            while held.keep(cache.alloc(AllocFlags::NOWAIT)) {}
        })?
        .join(cx);
    }
    Ok(())
}

fn pages(cache: &RawCache) -> usize {
    let info = cache.info();
    info.num_slabs as usize * info.pagesperslab
}

/// Where objects of a cache lie idle: what it is called, and how they get there.
type Place = (&'static str, fn(&'static RawCache, &mut MaySleep) -> Result<(), Failure>);

const PLACES: [Place; 3] = [
    ("sheaves of CPUs", |cache, cx| {
        come_and_go(cache, cache.sheaf_capacity(), cx)?;
        cache.flush_barns();
        Ok(())
    }),
    ("barns", |cache, cx| {
        cache.set_barn_limits(20, 20, cx);
        come_and_go(cache, 10 * cache.sheaf_capacity(), cx)?;
        cache.flush_cpus();
        Ok(())
    }),
    ("slabs that are kept", |cache, cx| {
        cache.set_min_partial(20);
        come_and_go(cache, 20 * cache.info().objperslab, cx)?;
        cache.flush_cpus();
        cache.flush_barns();
        Ok(())
    }),
];

/// A reader that no grace period ends without, until reclaim waits for one, or the test is over.
static READING: AtomicBool = AtomicBool::new(false);
static MAY_END: AtomicBool = AtomicBool::new(true);
static WAITED: AtomicBool = AtomicBool::new(false);
/// Registered after slab's, so it is asked to settle before.
static SHRINKER: Shrinker = Shrinker::new("test-reader", || 0, |_, _| 0).with_settle(|_| {
    WAITED.store(true, Relaxed);
    MAY_END.store(true, Relaxed);
});
static REGISTERED: Once<()> = Once::new();

/// Allocates while nothing has memory but `idle`, whose pages come back after a grace period only, until reclaim had to wait for
/// that. Whether it then got something.
fn only_after_a_grace_period(idle: &'static RawCache, t: &mut Test<'_>) -> Result<(), Failure> {
    REGISTERED.call_once(|| mm::shrinker::register(&SHRINKER));
    let wanted = cache("test_wanted", WANTED, CacheFlags::NO_SHEAVES)?;
    let mut held = Held::new(wanted, 1_000);
    MAY_END.store(false, Relaxed);
    READING.store(false, Relaxed);
    // One CPU is not enough: it would be the reader's, until that ends.
    let there = cpu::online().iter().find(|&other| other != cpu::current());
    let reader = there.map(|there| {
        spawn(t.cx, Some(there), |cx| {
            let reader = rcu::read_lock(cx);
            READING.store(true, Relaxed);
            while !MAY_END.load(Relaxed) {
                arch::irq::relax();
            }
            drop(reader);
        })
    });
    while there.is_some() && !READING.load(Relaxed) {
        sched::sleep_ns(t.cx, MS);
    }
    let exhausted = Exhausted::but_for(&[idle], t.cx);
    let before = wanted.alloc(QUIET);
    WAITED.store(false, Relaxed);
    let mut got = true;
    while got && !WAITED.load(Relaxed) {
        got = held.keep(wanted.alloc_sleep(SLEEPING, t.cx));
    }
    MAY_END.store(true, Relaxed);
    let (waited, strays) = (WAITED.load(Relaxed), held.1.len() - usize::from(got));
    drop(exhausted);
    reader.transpose()?.into_iter().for_each(|reader| reader.join(t.cx));
    drop(held);
    t.note(format_args!("{strays} pages came before"));
    let none_before = before.is_none();
    // SAFETY: allocated above.
    before.into_iter().for_each(|object| unsafe { wanted.free(object) });
    end(&[wanted, idle], t.cx)?;
    ensure!(none_before, "memory was not exhausted");
    ensure!(waited, "reclaim never waited");
    ensure!(got, "nothing came back with the grace period");
    Ok(())
}

ktest! {
    /// Whatever kind of idle memory is left, every page of it can be had by who may sleep, and none by others.
    #[budget_ms(60_000)]
    fn who_may_sleep_gets_every_page_that_lies_idle_in_caches(t: &mut Test) {
        for (place, fill) in PLACES {
            let idle = sheaved("test_idle", CacheFlags::empty())?;
            let wanted = cache("test_wanted", WANTED, CacheFlags::NO_SHEAVES)?;
            fill(idle, t.cx)?;
            let there = pages(idle);
            let mut held = Held::new(wanted, there + 4_000);
            let exhausted = Exhausted::but_for(&[idle], t.cx);
            let without = wanted.alloc_sleep(QUIET, t.cx);
            let (none, untouched) = (without.is_none(), pages(idle) == there);
            held.keep(without);
            while held.keep(wanted.alloc_sleep(SLEEPING, t.cx)) {}
            let left = pages(idle);
            drop(exhausted);
            let got = held.1.len();
            drop(held);
            t.note(format_args!("{there} pages idle in {place}: {got} objects of a page"));
            end(&[wanted, idle], t.cx)?;
            ensure!(there >= 4, "only {there} pages were idle in {place}");
            ensure!(none && untouched, "reclaim without MAY_SLEEP");
            ensure_eq!(left, 0, "pages left in {place}");
            // Threads of the kernel may have taken some.
            ensure!(got * 10 >= there * 9, "{got} of the {there} pages that were idle in {place}");
        }
        Ok(())
    }

    /// The same by `kmalloc`, of objects of caches and of larger ones.
    #[budget_ms(60_000)]
    fn kmalloc_of_any_size_reclaims_when_it_may_sleep(t: &mut Test) {
        const SIZES: [usize; 4] = [64, 1024, 8192, 20_000];
        let mut idle = Vec::new();
        // Each reclaim takes one cache's barns.
        for name in ["test_idle_1", "test_idle_2", "test_idle_3", "test_idle_4"] {
            let cache = sheaved(name, CacheFlags::empty())?;
            come_and_go(cache, 10 * cache.sheaf_capacity(), t.cx)?;
            idle.push(cache);
        }
        let mut held: Vec<NonNull<u8>> = Vec::with_capacity(20_000);
        let exhausted = Exhausted::but_for(&idle, t.cx);
        let got = SIZES.map(|size| {
            // What its cache has yet, and what the one before has left.
            held.extend(core::iter::from_fn(|| slab::kmalloc(size, QUIET)).take(4_000));
            let before = held.len();
            held.extend(slab::kmalloc_sleep(size, SLEEPING, t.cx));
            (before, held.len() > before)
        });
        drop(exhausted);
        // SAFETY: allocated above, each given up once.
        held.drain(..).for_each(|object| unsafe { slab::kfree(object) });
        end(&idle, t.cx)?;
        ensure!(got[0].0 < 4_000, "memory was not exhausted");
        for (size, (_, got)) in SIZES.into_iter().zip(got) {
            ensure!(got, "no {size} bytes");
        }
        Ok(())
    }

    /// Objects in an rcu_free sheaf that is not full: only a flush submits it, and only the wait brings them back.
    #[budget_ms(60_000)]
    fn what_an_rcu_free_sheaf_holds_comes_back_after_a_grace_period(t: &mut Test) {
        let idle = sheaved("test_rcu_idle", CacheFlags::empty())?;
        let count = idle.sheaf_capacity() - 1;
        spawn(t.cx, Some(cpu::current()), move |_| {
            let mut held = Held::new(idle, count);
            while held.keep(idle.alloc(AllocFlags::NOWAIT)) {}
            // SAFETY: ours, with room for a head at the start, and given up here.
            held.1.drain(..).for_each(|object| unsafe { kfree_rcu(object.cast()) });
        })?
        .join(t.cx);
        ensure_eq!(idle.stat(Stat::FreeRcuSheaf), count as u64, "objects in the sheaf");
        only_after_a_grace_period(idle, t)
    }

    /// Slabs that readers may look at yet.
    #[budget_ms(60_000)]
    fn slabs_of_a_type_safe_cache_come_back_after_a_grace_period(t: &mut Test) {
        let idle = sheaved("test_typesafe", CacheFlags::TYPESAFE_BY_RCU)?;
        come_and_go(idle, idle.sheaf_capacity(), t.cx)?;
        only_after_a_grace_period(idle, t)
    }

    /// Who reclaims holds a mutex, which another thread wants that changes, makes and destroys caches: both get on.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn reclaim_under_a_mutex_of_the_caller_ends_while_caches_come_and_go(t: &mut Test) {
        const ROUNDS: usize = 20;
        let idle = sheaved("test_idle", CacheFlags::empty())?;
        let wanted = cache("test_wanted", WANTED, CacheFlags::NO_SHEAVES)?;
        let callers = Arc::new(Mutex::new((), sync::lock_class!("test.callers")));
        let Some(slabs) = mm::shrinker::all().find(|shrinker| shrinker.name() == "slab") else {
            return Err(crate::__failed!("no shrinker of slabs"));
        };
        come_and_go(idle, 10 * idle.sheaf_capacity(), t.cx)?;
        let mut held = Held::new(wanted, 4_000);
        let (mut load, go) = (Load::new(), Arc::new(AtomicBool::new(false)));
        for _ in 0..2 {
            let (theirs, go) = (callers.clone(), go.clone());
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                if go.load(Relaxed) {
                    return turn(idle, &theirs, rng, cx);
                }
                sched::sleep_ns(cx, MS);
                Ok(())
            })?;
        }
        // Threads need memory to begin with.
        let (exhausted, before) = (Exhausted::but_for(&[idle], t.cx), slabs.freed());
        go.store(true, Relaxed);
        for _ in 0..ROUNDS {
            let guard = callers.lock(t.cx);
            // The last one reclaims in vain.
            while held.keep(wanted.alloc_sleep(SLEEPING, t.cx)) {}
            drop(guard);
            // SAFETY: allocated above, each given up once.
            held.1.drain(..).for_each(|object| unsafe { wanted.free(object) });
            // What was freed becomes idle.
            sched::sleep_ns(t.cx, MS);
        }
        drop(exhausted);
        let (turns, freed) = (load.end(t.cx)?, slabs.freed() - before);
        t.note(format_args!("{freed} pages reclaimed, {turns:?} turns"));
        ensure!(freed > 0, "nothing was reclaimed");
        end(&[wanted, idle], t.cx)
    }
}

/// Uses and changes `idle`, makes and destroys a cache, or takes the mutex of who reclaims. Memory may be gone meanwhile.
fn turn(idle: &'static RawCache, callers: &Mutex<()>, rng: &mut Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    match rng.below(6) {
        // As the shell does, inside the lock that reclaim waits for.
        0 => {
            let capacity = rng.index(100);
            let changed = slab::registry::with(idle.name(), cx, |cache, cx| cache.set_capacity(capacity, cx));
            ensure!(matches!(changed, Some(Ok(_))), "{changed:?}");
        }
        1 => idle.set_barn_limits(rng.below(20) as u32, rng.below(20) as u32, cx),
        2 => _ = idle.shrink(),
        3 => {
            let Ok(passing) = slab::create(Layout::new("test_passing", 64).flags(CacheFlags::NO_MERGE)) else {
                return Ok(());
            };
            let object = passing.alloc(QUIET);
            // SAFETY: just allocated.
            object.into_iter().for_each(|object| unsafe { passing.free(object) });
            end(&[passing], cx)?;
        }
        4 => drop(callers.lock(cx)),
        _ => {
            let objects: [_; 40] = core::array::from_fn(|_| idle.alloc(QUIET));
            // SAFETY: just allocated, each given up once.
            objects.into_iter().flatten().for_each(|object| unsafe { idle.free(object) });
        }
    }
    Ok(())
}
