//! What can be seen of the slab allocator: counters, attributes, fill of nodes and sheaves; setting counters back.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use arch::{clock, cpu};
use kfree_rcu::{RcuPtr, kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;
use mm::inject::{self, Plan};
use sched::Prio;
use slab::debug::Traces;
use slab::info::NodeInfo;
use slab::{CacheFlags, DebugFlags, Layout, RawCache, Stat};
use sync::{ATOMIC, MaySleep, Once, PreemptGuard};

use crate::outcome::needs_sheaves;
use crate::stepping::{self, Visit};
use crate::{Failure, ensure, ensure_eq, ktest};

const SIZE: usize = 64;

fn cache(name: &'static str, flags: CacheFlags) -> Result<&'static RawCache, Failure> {
    slab::create(Layout::new(name, SIZE).flags(flags | CacheFlags::NO_MERGE))
        .map_err(|error| crate::__failed!("{name}: {error}"))
}

fn destroy(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: each test knows its cache alone, and is done with it.
    unsafe { slab::flush::destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
}

/// Runs `work` in a thread that stays on this CPU.
fn here<R: Send + 'static>(
    cx: &mut MaySleep,
    work: impl FnOnce(&mut MaySleep) -> R + Send + 'static,
) -> Result<R, Failure> {
    let thread = sched::spawn(cx, "view", Prio::NORMAL, Some(cpu::current()), work);
    Ok(thread.map_err(|error| crate::__failed!("{error}"))?.join(cx))
}

/// Allocates `count` objects and frees them again, `rounds` times. How many there were at the least.
fn bursts(cache: &RawCache, count: usize, rounds: usize) -> usize {
    let mut held: Vec<NonNull<u8>> = Vec::with_capacity(count);
    (0..rounds).fold(count, |least, _| {
        held.extend((0..count).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)));
        let got = held.len();
        // SAFETY: allocated above, each given up once.
        held.drain(..).for_each(|object| unsafe { cache.free(object) });
        least.min(got)
    })
}

/// Gives an object to `kfree_rcu` and waits until it is free.
fn free_after_grace_period(cache: &RawCache, cx: &mut MaySleep) {
    let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { return };
    // SAFETY: 64 bytes have room for a head in front; the object is given up.
    unsafe { kfree_rcu(object.cast::<RcuPtr>()) };
    kvfree_rcu_barrier(cx);
}

fn sum(cache: &RawCache, f: fn(&NodeInfo) -> u64) -> u64 {
    cache.by_node().map(|node| f(&node)).sum()
}

ktest! {
    /// Each counter moves when that happens which its name says.
    fn every_counter_counts_its_event(t: &mut Test) {
        let (sheaves, slabs) =
            (cache("view_sheaves", CacheFlags::empty())?, cache("view_slabs", CacheFlags::NO_SHEAVES)?);
        needs_sheaves(sheaves)?;
        let none: Vec<Stat> = Stat::ALL.iter().copied().filter(|&stat| sheaves.stat(stat) != 0).collect();
        ensure!(none.is_empty(), "{none:?} of a new cache");

        ensure_eq!(here(t.cx, move |_| bursts(sheaves, 2_000, 2))?, 2_000);
        here(t.cx, move |cx| free_after_grace_period(sheaves, cx))?;
        sheaves.shrink();
        ensure_eq!(here(t.cx, move |_| bursts(slabs, 2_000, 2))?, 2_000);
        here(t.cx, move |cx| free_after_grace_period(slabs, cx))?;
        // Sheaves are made, come back as main and as the spare, and that goes out again; one of more than the capacity is
        // freed when it comes back.
        let prefilled = here(t.cx, move |_| {
            let sizes = [10, 10, 10, sheaves.sheaf_capacity() + 1];
            sizes.into_iter().filter_map(|n| sheaves.prefill(n, AllocFlags::NOWAIT)).map(drop).count()
        })?;
        ensure_eq!(prefilled, 4);
        // Two nodes: what is wanted from the other one, and freed to it.
        let there = cpu::online().iter().map(cpu::node_of).find(|&node| node != cpu::node_of(cpu::current()));
        here(t.cx, move |_| {
            if let Some(object) = sheaves.alloc_node(there, AllocFlags::NOWAIT) {
                // SAFETY: just allocated.
                unsafe { sheaves.free(object) };
            }
        })?;
        let of_two_nodes: &[Stat] = if there.is_some() { &[Stat::AllocNodeMismatch] } else { &[] };
        let fell_back = cache_that_falls_back(t.cx)?;
        let contended = contended()?;

        for (cache, stats) in [
            (sheaves, &[
                Stat::AllocFastpath,
                Stat::FreeFastpath,
                Stat::FreeRcuSheaf,
                Stat::FreeAddPartial,
                Stat::AllocSlab,
                Stat::FreeSlab,
                Stat::SheafFlush,
                Stat::SheafRefill,
                Stat::SheafAlloc,
                Stat::SheafFree,
                Stat::BarnGet,
                Stat::BarnGetFail,
                Stat::BarnPut,
                Stat::BarnPutFail,
                Stat::SheafPrefillFast,
                Stat::SheafPrefillSlow,
                Stat::SheafPrefillOversize,
                Stat::SheafReturnFast,
                Stat::SheafReturnSlow,
            ][..]),
            (slabs, &[
                Stat::AllocSlowpath,
                Stat::FreeSlowpath,
                Stat::FreeRemovePartial,
                Stat::FreeRcuSheafFail,
            ]),
            (sheaves, of_two_nodes),
            (fell_back, &[Stat::OrderFallback]),
            (contended, &[Stat::CmpxchgDouble, Stat::CmpxchgDoubleFail]),
        ] {
            let still: Vec<&str> = stats.iter().filter(|&&stat| cache.stat(stat) == 0).map(|stat| stat.name()).collect();
            ensure!(still.is_empty(), "{}: {still:?} did not move", cache.name());
        }
        ensure_eq!(slabs.stat(Stat::AllocFastpath) + slabs.stat(Stat::FreeFastpath), 0, "a cache without sheaves");
        destroy(sheaves, t.cx)?;
        destroy(slabs, t.cx)?;
        destroy(fell_back, t.cx)
    }

    /// A sum is what the CPUs counted; after setting back all are zero, and counting goes on.
    fn counters_are_per_cpu_and_can_be_set_back(t: &mut Test) {
        let cache = cache("view_clear", CacheFlags::empty())?;
        needs_sheaves(cache)?;
        let on = cpu::current();
        here(t.cx, move |_| bursts(cache, 10, 1))?;
        ensure_eq!((cache.stat_on(on, Stat::FreeFastpath), cache.stat(Stat::FreeFastpath)), (10, 10));
        cache.clear_stats(&sched::keep_cpus(t.cx));
        let left: Vec<_> = Stat::ALL.iter().map(|&stat| (stat, cache.stat(stat))).filter(|&(_, count)| count != 0).collect();
        ensure!(left.is_empty(), "{left:?}");
        here(t.cx, move |_| bursts(cache, 10, 1))?;
        ensure_eq!(cache.stat(Stat::FreeFastpath), 10);
        destroy(cache, t.cx)
    }

    /// Counters are set back while other CPUs count: no clearing is lost to an add that was under way.
    #[tags(race)]
    fn setting_back_is_not_lost_to_a_cpu_that_counts(t: &mut Test) {
        let cache = cache("view_race", CacheFlags::empty())?;
        needs_sheaves(cache)?;
        let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for on in cpu::online().iter().filter(|&other| other != cpu::current()) {
            let (done, stop) = (done.clone(), stop.clone());
            let thread = sched::spawn(t.cx, "count", Prio::NORMAL, Some(on), move |cx| {
                while !stop.load(Relaxed) {
                    // Before the event: `done` is never behind the counter.
                    done.fetch_add(1, SeqCst);
                    if let Some(object) = cache.alloc(AllocFlags::NOWAIT) {
                        // SAFETY: just allocated.
                        unsafe { cache.free(object) };
                    }
                    sched::cond_resched(cx);
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        let (mut lost, mut rounds) = (0, 0);
        // An add can be split only where CPUs run at once; there a call to one is quick, and there are many rounds.
        let end = clock::now_ns() + 300_000_000;
        while rounds < 20_000 && clock::now_ns() < end {
            rounds += 1;
            // What a lost clearing leaves must stand out.
            while !threads.is_empty() && cache.stat(Stat::FreeFastpath) < 50 && clock::now_ns() < end {
                arch::irq::relax();
            }
            let before = done.load(SeqCst);
            cache.clear_stats(&sched::keep_cpus(t.cx));
            let counted = cache.stat(Stat::FreeFastpath);
            // Each thread may have announced one event before `before` that it counted only afterwards.
            lost += u64::from(counted > done.load(SeqCst) - before + threads.len() as u64);
        }
        stop.store(true, Relaxed);
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        t.note(format_args!("{rounds} rounds"));
        ensure_eq!(lost, 0, "times that a counter was not set back");
        destroy(cache, t.cx)
    }

    /// Each attribute is what the layout asked for, what was set since, or what is there.
    fn attributes_say_what_the_cache_is(t: &mut Test) {
        const DEBUG: DebugFlags = DebugFlags::CONSISTENCY.union(DebugFlags::POISON);
        let plain = Layout::new("view_attributes", 100).align(32).ctor(|_| ()).flags(CacheFlags::HWCACHE_ALIGN);
        let plain = slab::create(plain).map_err(|error| crate::__failed!("{error}"))?;
        needs_sheaves(plain)?;
        let checked = slab::create(Layout::new("view_checked", 100).debug(DEBUG));
        let checked = checked.map_err(|error| crate::__failed!("{error}"))?;
        let attribute = |cache: &RawCache, name| {
            let mut named = cache.attributes().filter(|&(known, _)| known == name).map(|(_, value)| value);
            named.next().filter(|_| named.next().is_none())
        };
        plain.set_capacity(252, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        plain.set_min_partial(3);
        plain.set_remote_node_defrag_ratio(17).map_err(|error| crate::__failed!("{error}"))?;
        for (name, value) in [
            ("object_size", 100),
            ("slab_size", 128),
            ("align", 64),
            ("sheaf_capacity", 252),
            ("min_partial", 3),
            ("remote_node_defrag_ratio", 17),
            ("aliases", 0),
            ("hwcache_align", 1),
            ("destroy_by_rcu", 0),
            ("destroy_by_srcu", 0),
            ("slabs", 0),
            ("objects", 0),
            ("poison", 0),
            ("failslab", 0),
            ("cpu_partial", 0),
            ("cpu_slabs", 0),
            ("slabs_cpu_partial", 0),
        ] {
            ensure_eq!(attribute(plain, name), Some(value), "{name}");
        }
        ensure!(attribute(plain, "ctor").is_some_and(|ctor| ctor != 0));
        let (order, objects) = (attribute(plain, "order"), attribute(plain, "objs_per_slab"));
        ensure_eq!(order.map(|order| (4096 << order) / 128), objects);
        for (name, value) in [("sanity_checks", 1), ("poison", 1), ("red_zone", 0), ("store_user", 0), ("trace", 0), ("sheaf_capacity", 0)] {
            ensure_eq!(attribute(checked, name), Some(value), "{name}");
        }
        let held = checked.alloc(AllocFlags::NOWAIT);
        ensure_eq!((attribute(checked, "slabs"), attribute(checked, "partial")), (Some(1), Some(1)));
        ensure_eq!((attribute(checked, "objects"), attribute(checked, "objects_partial")), (Some(1), Some(1)));
        // SAFETY: just allocated.
        held.into_iter().for_each(|object| unsafe { checked.free(object) });
        destroy(plain, t.cx)?;
        destroy(checked, t.cx)
    }

    /// A cache that remembers its users names the calls behind objects in use and behind free ones; others name none.
    fn traces_name_who_has_the_objects(t: &mut Test) {
        let layout = Layout::new("view_traces", SIZE).debug(DebugFlags::STORE_USER);
        let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        let mut held: Vec<NonNull<u8>> = Vec::with_capacity(10);
        held.extend((0..10).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)));
        // SAFETY: allocated above, each given up once.
        held.drain(..4).for_each(|object| unsafe { cache.free(object) });
        let me = sched::current().tid();
        let count = |cache: &RawCache, which| {
            let (mut mine, mut all) = (0, 0);
            cache.for_each_trace(which, |call| {
                mine += usize::from(call.tid() == me && call.frames().count() >= 2);
                all += 1;
            });
            (mine, all)
        };
        ensure_eq!(count(cache, Traces::Alloc), (6, 6));
        ensure_eq!(count(cache, Traces::Free), (4, 4));
        // SAFETY: as above.
        held.drain(..).for_each(|object| unsafe { cache.free(object) });
        ensure_eq!(count(cache, Traces::Alloc), (0, 0));
        destroy(cache, t.cx)?;
        let plain = self::cache("view_plain", CacheFlags::empty())?;
        bursts(plain, 10, 1);
        if !plain.debug().contains(DebugFlags::STORE_USER) {
            ensure_eq!((count(plain, Traces::Alloc), count(plain, Traces::Free)), ((0, 0), (0, 0)));
        }
        destroy(plain, t.cx)
    }

    /// Slabs, sheaves and holders account for every object; what a CPU shows is its own.
    fn nodes_and_sheaves_show_where_every_object_is(t: &mut Test) {
        const HELD: usize = 100;
        let cache = cache("view_fill", CacheFlags::empty())?;
        ensure!(cpu::online().iter().filter_map(|on| cache.sheaves_on(on)).all(|sheaves| sheaves.main.capacity == 0));
        let on = cpu::current();
        let held = here(t.cx, move |_| {
            let held: Vec<usize> = (0..HELD).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).map(|o| o.as_ptr().addr()).collect();
            held
        })?;
        ensure_eq!(held.len(), HELD);
        let in_sheaves: usize = cpu::online()
            .iter()
            .filter_map(|on| cache.sheaves_on(on))
            .map(|sheaves| sheaves.main.size + sheaves.spare.map_or(0, |spare| spare.size))
            .sum();
        let Some(mine) = cache.sheaves_on(on) else { return Err(crate::__failed!("CPU {on} shows nothing")) };
        ensure_eq!(mine.main.capacity, cache.sheaf_capacity());
        ensure_eq!(mine.main.size + mine.spare.map_or(0, |spare| spare.size), in_sheaves, "no other CPU was here");
        let (total, free) = (sum(cache, |node| node.total_objects), sum(cache, |node| node.free_objects));
        ensure_eq!(total, free + (in_sheaves + HELD) as u64, "slabs have {total}, {free} of them free");
        ensure_eq!(sum(cache, |node| node.fill.iter().sum()), sum(cache, |node| node.partial));
        ensure_eq!(sum(cache, |node| node.slabs), cache.info().num_slabs);
        let attribute = |name| cache.attributes().find(|&(known, _)| known == name).map(|(_, value)| value);
        ensure_eq!(attribute("objects"), Some(cache.info().active_objs));
        ensure_eq!(attribute("object_size"), Some(SIZE as u64));
        for address in held {
            let object = NonNull::new(core::ptr::with_exposed_provenance_mut(address)).expect("not null");
            // SAFETY: the thread gave it away.
            unsafe { cache.free(object) };
        }
        cache.shrink();
        ensure_eq!((sum(cache, |node| node.slabs), sum(cache, |node| node.total_objects)), (0, 0));
        destroy(cache, t.cx)
    }
}

/// A cache whose slabs of more than a page were not to be had once.
fn cache_that_falls_back(cx: &mut MaySleep) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new("view_order", 1024).flags(CacheFlags::NO_MERGE);
    let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
    for _ in 0..100 {
        let Some(armed) = inject::arm(Plan::Nth(1)) else { return Err(crate::__failed!("page faults are in use")) };
        // Another CPU's allocation may be the one that fails.
        bursts(cache, 1, 1);
        drop(armed);
        if cache.stat(Stat::OrderFallback) != 0 {
            break;
        }
        cache.shrink();
        sched::yield_now(cx);
    }
    Ok(cache)
}

static CONTENDED: Once<&'static RawCache> = Once::new();
/// What the visit took.
static TAKEN: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Takes an object of the slab that the interrupted code is changing. It is kept: given back at once, by whoever drains
/// what is deferred, it would leave the slab as it was, and nobody would notice.
struct Take;

impl Visit for Take {
    fn visit() {
        let object = CONTENDED.get().and_then(|cache| cache.alloc_nolock(AllocFlags::NOWAIT));
        TAKEN.store(object.map_or(ptr::null_mut(), NonNull::as_ptr), Relaxed);
    }
}

/// A cache with a slab that changed between a look at it and the compare-exchange: a free is stepped again and again, with
/// one visit, each time one boundary later, until the visit has struck in between.
fn contended() -> Result<&'static RawCache, Failure> {
    if CONTENDED.get().is_none() {
        let new = cache("view_contended", CacheFlags::NO_SHEAVES)?;
        CONTENDED.call_once(|| new);
    }
    let cache = *CONTENDED.get().expect("made above");
    // On one node all objects are of its first partial slab.
    let _pin = PreemptGuard::new(ATOMIC);
    let before = cache.stat(Stat::CmpxchgDoubleFail);
    for boundary in 0.. {
        // Three of one slab: it is neither full before the free that is stepped nor empty after it.
        let held: [_; 3] = core::array::from_fn(|_| cache.alloc(AllocFlags::NOWAIT));
        let [Some(first), Some(second), Some(third)] = held else { return Err(crate::__failed!("no memory")) };
        // SAFETY: allocated above, each given up once.
        let boundaries = stepping::step::<Take>(stepping::only(boundary), || unsafe { cache.free(first) });
        let taken = NonNull::new(TAKEN.swap(ptr::null_mut(), Relaxed));
        // SAFETY: as above, and by the visit.
        [Some(second), Some(third), taken].into_iter().flatten().for_each(|object| unsafe { cache.free(object) });
        if cache.stat(Stat::CmpxchgDoubleFail) != before || boundary as u64 >= boundaries {
            break;
        }
    }
    Ok(cache)
}
