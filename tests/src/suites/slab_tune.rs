//! Caches that are tuned, shrunk and destroyed while they are used: nothing is lost, and every page comes back.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::Acquire, Ordering::Release};

use arch::cpu;
use kfree_rcu::{kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;
use slab::flush::{Leaked, destroy};
use slab::{CacheFlags, Layout, Prefilled, RawCache, Stat};
use sync::{MaySleep, Rng};

use crate::kfree::ensure_all_back;
use crate::outcome::needs_sheaves;
use crate::toggle::{Load, others, spawn, threads, toggle};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Bytes of the objects of these tests.
const SIZE: usize = 64;

/// A cache for one test.
fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

fn allocate(cache: &RawCache, count: usize) -> Vec<NonNull<u8>> {
    (0..count).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect()
}

fn free(cache: &RawCache, objects: Vec<NonNull<u8>>) {
    // SAFETY: allocated from the cache, each given up once.
    objects.into_iter().for_each(|object| unsafe { cache.free(object) });
}

/// Fill of the barns: (node, full sheaves, empty sheaves).
fn barn_fill(cache: &RawCache) -> Vec<(arch::NodeId, u32, u32)> {
    cache.by_node().map(|info| (info.node, info.barn_full.0, info.barn_empty.0)).collect()
}

/// Objects of a thread, each full of a pattern of its own but for the first word, which is room for a head. What is left
/// at its end goes back then.
struct Burst {
    cache: &'static RawCache,
    objects: Vec<(NonNull<u64>, u64)>,
    /// Now and then objects come from here.
    prefilled: Option<Prefilled>,
}

// SAFETY: objects belong to whoever has them, on whatever CPU.
unsafe impl Send for Burst {}

impl Burst {
    /// The most objects that it has at a time: some sheaves' worth.
    const MOST: usize = 300;

    fn new(cache: &'static RawCache) -> Self {
        Self { cache, objects: Vec::with_capacity(Self::MOST), prefilled: None }
    }

    fn take(&mut self, rng: &mut Rng) {
        let promised = self.prefilled.as_mut().and_then(|sheaf| sheaf.alloc(AllocFlags::NOWAIT));
        let Some(object) = promised.or_else(|| self.cache.alloc(AllocFlags::NOWAIT)) else { return };
        let (object, pattern) = (object.cast::<u64>(), rng.next_u64());
        // SAFETY: the object has SIZE bytes and is ours.
        (1..SIZE / 8).for_each(|word| unsafe { object.add(word).write_volatile(pattern ^ word as u64) });
        self.objects.push((object, pattern));
    }

    fn give(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let (object, pattern) = self.objects.swap_remove(rng.index(self.objects.len()));
        for word in 1..SIZE / 8 {
            // SAFETY: the object has SIZE bytes and is ours.
            let found = unsafe { object.add(word).read_volatile() };
            ensure_eq!(found, pattern ^ word as u64, "word {word} of {object:p}");
        }
        match rng.below(8) {
            // SAFETY: the first word is room for a head; given up here.
            0 | 1 => unsafe { kfree_rcu(object.cast()) },
            // SAFETY: ours, and given up here.
            2 => unsafe { slab::kfree_nolock(object.cast()) },
            // SAFETY: as above.
            _ => unsafe { self.cache.free(object.cast()) },
        }
        Ok(())
    }

    /// Allocates or frees until it has as many as a random number says.
    fn turn(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let aim = rng.index(Self::MOST);
        if rng.chance(1, 4) {
            self.prefilled = self.cache.prefill(rng.index(100), AllocFlags::NOWAIT);
        }
        while self.objects.len() < aim {
            let before = self.objects.len();
            self.take(rng);
            if self.objects.len() == before {
                return Ok(());
            }
        }
        while self.objects.len() > aim {
            self.give(rng)?;
        }
        Ok(())
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        for (object, _) in self.objects.drain(..) {
            // SAFETY: ours, and given up here.
            unsafe { self.cache.free(object.cast()) };
        }
    }
}

/// Starts threads that allocate and free in bursts.
fn load(cache: &'static RawCache, rng: &mut Rng, cx: &mut MaySleep) -> Result<Load, Failure> {
    let mut load = Load::new();
    for _ in 0..threads() {
        let mut burst = Burst::new(cache);
        load.add(cx, Rng::new(rng.next_u64()), move |rng, _| burst.turn(rng))?;
    }
    Ok(load)
}

/// Changes something of the cache at random.
fn tune(cache: &'static RawCache, rng: &mut Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    match rng.below(8) {
        0..=2 => {
            let asked = *rng.pick(&[0, 1, 4, 12, 28, 60, 100, 508, 600]).unwrap_or(&60);
            let capacity = cache.set_capacity(asked, cx).map_err(|error| crate::__failed!("{error}"))?;
            ensure!(capacity >= asked && (capacity == 0) == (asked == 0), "{asked} became {capacity}");
        }
        3 => cache.set_barn_limits(rng.below(30) as u32, rng.below(30) as u32, cx),
        4 => cache.reset_barn_limits(cx),
        5 => cache.set_min_partial(rng.index(20)),
        6 => {
            let ratio = rng.below(1025) as u32;
            cache.set_remote_node_defrag_ratio(ratio).map_err(|error| crate::__failed!("{error}"))?;
        }
        _ => {
            cache.shrink();
        }
    }
    Ok(())
}

/// Ends a load under which a cache was tuned: every object is whole and free again, every page is back, the cache can go.
fn end(load: Load, cache: &'static RawCache, cx: &mut MaySleep) -> Result<u64, Failure> {
    let turns = load.end(cx)?;
    ensure_all_back(cache, cx)?;
    // SAFETY: the load has ended, and nobody else knows the cache.
    ensure_eq!(unsafe { destroy(cache, cx) }, Ok(()));
    Ok(turns.iter().sum())
}

/// Has every CPU allocate and free in bursts of up to 600, all at once, and notes what that did.
fn costs(capacity: usize, limit: u32, t: &mut crate::Test<'_>) -> Result<(), Failure> {
    const BURSTS: usize = 300;
    const MOST: usize = 600;
    let cache = cache("test_costs")?;
    let capacity = cache.set_capacity(capacity, t.cx).map_err(|error| crate::__failed!("{error}"))?;
    cache.set_barn_limits(limit, limit, t.cx);
    let mut threads = Vec::new();
    for on in cpu::online().iter() {
        let mut rng = Rng::new(t.rng.next_u64());
        threads.push(spawn(t.cx, Some(on), move |cx| {
            for _ in 0..BURSTS {
                free(cache, allocate(cache, rng.index(MOST)));
                // The others' turn, which may be in the midst of a burst.
                arch::irq::relax();
                sched::cond_resched(cx);
            }
        })?);
    }
    threads.into_iter().for_each(|thread| thread.join(t.cx));
    let allocations = cache.stat(Stat::AllocFastpath) + cache.stat(Stat::AllocSlowpath);
    let of_a_million = |stat| cache.stat(stat) * 1_000_000 / allocations.max(1);
    let info = cache.info();
    t.note(format_args!(
        "capacity {capacity}, limit {limit}: of 1000000 pairs {} barn gets ({} failed), {} puts ({} failed), {} objects from \
         slabs; then {} objects idle in sheaves, {} slabs",
        of_a_million(Stat::BarnGet),
        of_a_million(Stat::BarnGetFail),
        of_a_million(Stat::BarnPut),
        of_a_million(Stat::BarnPutFail),
        of_a_million(Stat::SheafRefill),
        info.active_objs,
        info.num_slabs,
    ));
    // SAFETY: the threads have ended, and nobody else knows the cache.
    ensure_eq!(unsafe { destroy(cache, t.cx) }, Ok(()));
    Ok(())
}

ktest! {
    /// Each leaked object is counted, the first are listed, and the cache stays and is of use (M-14).
    fn leaked_objects_are_counted_and_the_cache_stays_usable(t: &mut Test) {
        const LEAKED: usize = 100;
        let cache = cache("test_leaks")?;
        let mut held = allocate(cache, 3 * LEAKED);
        ensure_eq!(held.len(), 3 * LEAKED);
        let leaked = held.split_off(2 * LEAKED);
        free(cache, held);
        for _ in 0..2 {
            // SAFETY: nobody allocates from it or frees to it meanwhile.
            ensure_eq!(unsafe { destroy(cache, t.cx) }, Err(Leaked(LEAKED as u64)));
            ensure_eq!(slab::registry::find("test_leaks").map(core::ptr::from_ref), Some(core::ptr::from_ref(cache)));
            free(cache, allocate(cache, 2 * cache.sheaf_capacity()));
        }
        free(cache, leaked);
        // SAFETY: nobody uses it any more.
        ensure_eq!(unsafe { destroy(cache, t.cx) }, Ok(()));
        ensure!(slab::registry::find("test_leaks").is_none(), "destroyed, but still on the list");
        Ok(())
    }

    /// Destroying one cache leaves the others' sheaves, barns and counters alone (S5-6).
    fn destroying_a_cache_flushes_no_other(t: &mut Test) {
        let (kept, gone) = (cache("test_kept")?, cache("test_gone")?);
        needs_sheaves(kept)?;
        let stats = |cache: &RawCache| {
            [Stat::SheafFlush, Stat::SheafFree, Stat::SheafAlloc, Stat::BarnGet, Stat::BarnPut].map(|stat| cache.stat(stat))
        };
        for cache in [kept, gone] {
            free(cache, allocate(cache, 10 * cache.sheaf_capacity()));
        }
        let (before, barns) = (stats(kept), barn_fill(kept));
        let flushed = gone.stat(Stat::SheafFlush);
        // SAFETY: nobody uses it any more.
        ensure_eq!(unsafe { destroy(gone, t.cx) }, Ok(()));
        ensure!(flushed == 0, "the test has flushed by itself");
        ensure_eq!((stats(kept), barn_fill(kept)), (before, barns));
        // What was in its sheaves still is: taking it makes no slab.
        let slabs = kept.stat(Stat::AllocSlab);
        let held = allocate(kept, 10 * kept.sheaf_capacity());
        if cpu::online_count() == 1 {
            ensure_eq!(kept.stat(Stat::AllocSlab), slabs);
        }
        free(kept, held);
        // SAFETY: as above.
        ensure_eq!(unsafe { destroy(kept, t.cx) }, Ok(()));
        Ok(())
    }

    /// Capacity, limits and the rest are changed again and again while all CPUs allocate and free (M-1, M-4).
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_cache_is_tuned_under_load_and_nothing_is_lost(t: &mut Test) {
        let cache = cache("test_tuned")?;
        needs_sheaves(cache)?;
        let load = load(cache, &mut t.rng, t.cx)?;
        // Does not wait for its turn among the load.
        let me = sched::current();
        let prio = sched::prio_of(me);
        sched::set_prio(me, sched::Prio::HIGH);
        let result = (0..60).try_for_each(|_| {
            sched::sleep_ns(t.cx, t.rng.below(1_000_000));
            tune(cache, &mut t.rng, t.cx)
        });
        sched::set_prio(me, prio);
        let turns = end(load, cache, t.cx)?;
        t.note(format_args!("{turns} bursts"));
        result
    }

    /// The same while CPUs go and come; the barns' limits follow these (S5-15).
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn a_cache_is_tuned_while_cpus_go_and_come(t: &mut Test) {
        let cpus = others(t.cx)?;
        let cache = cache("test_tuned_hp")?;
        needs_sheaves(cache)?;
        let mut load = load(cache, &mut t.rng, t.cx)?;
        load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| tune(cache, rng, cx))?;
        let result = toggle(&cpus, 10, &mut t.rng, t.cx);
        let turns = end(load, cache, t.cx)?;
        t.note(format_args!("{turns} bursts and changes"));
        result
    }

    /// Who frees the last object, on whatever CPU and in whatever way, may say so at once (M-14).
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_cache_is_destroyed_as_soon_as_its_last_object_was_freed_elsewhere(t: &mut Test) {
        for _ in 0..8 {
            let cache = cache("test_last")?;
            let left = Arc::new(AtomicUsize::new(0));
            let mut threads = Vec::new();
            for on in cpu::online().iter() {
                let (mut burst, mut rng, left) = (Burst::new(cache), Rng::new(t.rng.next_u64()), left.clone());
                for _ in 0..200 {
                    burst.take(&mut rng);
                }
                left.fetch_add(1, Release);
                threads.push(spawn(t.cx, Some(on), move |_| {
                    let mut result = Ok(());
                    while result.is_ok() && !burst.objects.is_empty() {
                        result = burst.give(&mut rng);
                    }
                    drop(burst);
                    // Release, with the acquire below: the frees are over.
                    left.fetch_sub(1, Release);
                    result
                })?);
            }
            // Acquire: with the release above.
            while left.load(Acquire) != 0 {
                arch::irq::relax();
                sched::yield_now(t.cx);
            }
            // SAFETY: all objects were freed, and nobody else knows the cache.
            ensure_eq!(unsafe { destroy(cache, t.cx) }, Ok(()));
            threads.into_iter().try_for_each(|thread| thread.join(t.cx))?;
        }
        Ok(())
    }

    /// For the record: barn traffic, slab traffic and idle memory of bursts on all CPUs, by capacity and by limits (S5-14,
    /// S5-15).
    #[tags(slow)]
    #[budget_ms(300_000)]
    fn what_capacity_and_limits_bring_and_cost(t: &mut Test) {
        let default = cache("test_default")?;
        needs_sheaves(default)?;
        let capacity = default.sheaf_capacity();
        let limit = default.by_node().map(|node| node.barn_full.1).max().unwrap_or(10);
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { destroy(default, t.cx) }, Ok(()));
        // A sheaf fills a power of two of which the header takes the room of 4 objects.
        for capacity in [capacity.div_ceil(2) - 2, capacity, 2 * capacity + 4] {
            costs(capacity, limit, t)?;
        }
        for limit in [limit / 2, 2 * limit] {
            costs(capacity, limit, t)?;
        }
        Ok(())
    }

    /// Every page that there is becomes a slab; after the objects were freed and the caches shrunk each is free again.
    #[tags(slow)]
    #[budget_ms(300_000)]
    fn memory_is_used_to_the_last_page_and_every_page_comes_back(t: &mut Test) {
        let cache = slab::create(Layout::new("test_all", 1024).flags(CacheFlags::NO_MERGE))
            .map_err(|error| crate::__failed!("{error}"))?;
        let before = pages_in_use(t.cx);
        let other = self::cache("test_pressed")?;
        free(other, allocate(other, 500));
        let (mut list, mut count) = (List::default(), 0);
        let flags = AllocFlags::RESERVE | AllocFlags::NOWARN;
        while let Some(object) = cache.alloc(flags).or_else(|| {
            // What lies on the lists of other CPUs.
            mm::drain_all(t.cx);
            cache.alloc(flags)
        }) {
            list.push(object);
            count += 1;
        }
        let free = mm::stats::nodes().map(|node| node.free + node.per_cpu).sum::<usize>();
        let slabs = cache.by_node().map(|node| node.slabs).sum::<u64>();
        // Destroying needs no memory (M-14).
        // SAFETY: nobody else knows the cache.
        let destroyed = unsafe { destroy(other, t.cx) };
        let whole = list.free_all(cache);
        let after = pages_in_use(t.cx);
        t.note(format_args!("{count} objects of 1024 bytes in {slabs} slabs; {free} pages were left; {after} pages in use"));
        ensure_eq!(whole, count, "objects that still had what was written to them");
        ensure_eq!(free, 0, "pages that were not to be had");
        ensure_eq!(destroyed, Ok(()));
        ensure_eq!(after, before, "pages in use");
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }

    /// What a million live objects of 64 bytes take: at most 3 % more than their own size.
    #[tags(slow)]
    #[budget_ms(300_000)]
    fn a_million_small_objects_take_little_more_than_their_size(t: &mut Test) {
        const OBJECTS: usize = 1_000_000;
        if mm::stats::free_pages() < 2 * OBJECTS * SIZE / arch::PAGE_SIZE {
            skip!("needs twice the objects' size of memory");
        }
        let cache = cache("test_million")?;
        let before = pages_in_use(t.cx);
        let mut list = List::default();
        for _ in 0..OBJECTS {
            let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { return Err(crate::__failed!("no memory")) };
            list.push(object);
        }
        let held = mm::stats::nodes().map(|node| node.in_use()).sum::<usize>() - before;
        let whole = list.free_all(cache);
        let after = pages_in_use(t.cx);
        let (bytes, own) = (held * arch::PAGE_SIZE, OBJECTS * SIZE);
        t.note(format_args!("{bytes} bytes of pages for {own} bytes of objects: {} thousandths", bytes * 1000 / own));
        ensure_eq!(whole, OBJECTS, "objects that still had what was written to them");
        ensure!(bytes * 100 <= own * 103, "{held} pages for {OBJECTS} objects of {SIZE} bytes");
        ensure_eq!(after, before, "pages in use");
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }
}

/// Pages that somebody has, once every cache has given back what it does not need.
fn pages_in_use(cx: &mut MaySleep) -> usize {
    kvfree_rcu_barrier(cx);
    slab::registry::for_each_unlocked(cx, |cache| {
        cache.shrink();
    });
    mm::drain_all(cx);
    mm::stats::nodes().map(|node| node.in_use()).sum()
}

/// Objects linked through themselves, each with its own address in it.
#[derive(Default)]
struct List {
    first: Option<NonNull<u8>>,
}

impl List {
    fn push(&mut self, object: NonNull<u8>) {
        let words = object.cast::<Option<NonNull<u8>>>();
        // SAFETY: the object is ours and has two words at least.
        unsafe { words.write(self.first) };
        // SAFETY: as above.
        unsafe { words.add(1).write(Some(object)) };
        self.first = Some(object);
    }

    /// Frees all; returns how many still had their address in them.
    fn free_all(self, cache: &RawCache) -> usize {
        let (mut next, mut whole) = (self.first, 0);
        while let Some(object) = next {
            let words = object.cast::<Option<NonNull<u8>>>();
            // SAFETY: ours, and written by `push`.
            whole += usize::from(unsafe { words.add(1).read() } == Some(object));
            // SAFETY: as above.
            next = unsafe { words.read() };
            // SAFETY: ours, and given up here.
            unsafe { cache.free(object) };
        }
        whole
    }
}
