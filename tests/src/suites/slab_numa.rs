//! Slabs and nodes: objects that go to another node and come home, allocations from a node, and the memory reserve.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering, Ordering::Relaxed};

use arch::{CpuId, NodeId, cpu};
use mm::{AllocFlags, Shrinker, stats};
use slab::remote::{self, Policy};
use slab::{CacheFlags, Layout, RawCache, Stat};
use sync::{ATOMIC, LockClass, MaySleep, Once, SpinLock};

use super::mm::Chain;
use crate::outcome::needs_sheaves;
use crate::toggle::{off, on, others, spawn};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

const WORDS: usize = 8;
const SIZE: usize = WORDS * 8;
const QUIET: AllocFlags = AllocFlags::NOWARN;

/// A cache for one test.
fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    slab::create(Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE))
        .map_err(|error| crate::__failed!("{name}: {error}"))
}

/// Ends it: every object is free again, and every page has gone back.
fn destroy(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: its test is over, and nobody else knew it.
    unsafe { slab::flush::destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{}: {leaked:?}", cache.name()))
}

/// Another policy for one test.
struct With(Policy);

impl With {
    fn policy(policy: Policy) -> Self {
        let before = remote::policy();
        remote::set_policy(policy);
        Self(before)
    }
}

impl Drop for With {
    fn drop(&mut self) {
        remote::set_policy(self.0);
    }
}

/// The nearest node with memory, of a node.
fn nearest(node: NodeId) -> Option<NodeId> {
    stats::nearest(node).next()
}

/// The same of a CPU: where its objects come from.
fn home(cpu: CpuId) -> Option<NodeId> {
    nearest(cpu::node_of(cpu))
}

/// Nodes with memory.
fn nodes() -> Vec<NodeId> {
    stats::nodes().map(|node| node.node).collect()
}

/// A CPU whose objects come from another node than this CPU's.
fn far_cpu() -> Result<CpuId, Failure> {
    match cpu::online().iter().find(|&other| home(other) != home(cpu::current())) {
        Some(other) => Ok(other),
        None => skip!("needs CPUs near two nodes with memory"),
    }
}

fn node_of(object: NonNull<u8>) -> Option<NodeId> {
    mm::page_of(object.as_ptr()).map(mm::Page::node)
}

fn fill(object: NonNull<u8>, stamp: u64) {
    for word in 0..WORDS {
        // SAFETY: the object has SIZE bytes and is ours.
        unsafe { object.cast::<u64>().add(word).write_volatile(stamp ^ word as u64) };
    }
}

fn is_filled(object: NonNull<u8>, stamp: u64) -> bool {
    // SAFETY: as in `fill`.
    (0..WORDS).all(|word| unsafe { object.cast::<u64>().add(word).read_volatile() } == stamp ^ word as u64)
}

/// Objects that threads may hand to each other.
#[derive(Default)]
struct Held(Vec<NonNull<u8>>);

// SAFETY: objects belong to whoever has them, on whatever CPU.
unsafe impl Send for Held {}

impl Held {
    fn take(cache: &RawCache, node: Option<NodeId>, count: usize) -> Self {
        Self((0..count).filter_map(|_| cache.alloc_node(node, AllocFlags::NOWAIT)).collect())
    }

    fn give(self, cache: &RawCache) {
        // SAFETY: allocated from the cache, and ours.
        self.0.into_iter().for_each(|object| unsafe { cache.free(object) });
    }
}

/// Passes objects, filled by this CPU, through a ring to another CPU that checks and frees them. Returns how many were damaged.
fn pass(cache: &'static RawCache, to: CpuId, count: usize, cx: &mut MaySleep) -> Result<u64, Failure> {
    const SLOTS: usize = 128;
    let ring: Arc<Vec<AtomicPtr<u8>>> = Arc::new((0..SLOTS).map(|_| AtomicPtr::new(ptr::null_mut())).collect());
    let theirs = ring.clone();
    let consumer = spawn(cx, Some(to), move |cx| {
        let mut damaged = 0;
        for at in 0..count {
            let object = loop {
                // Acquire: pairs with the release below: what is in the object is seen.
                match NonNull::new(theirs[at % SLOTS].swap(ptr::null_mut(), Ordering::Acquire)) {
                    Some(object) => break object,
                    None => sched::yield_now(cx),
                }
            };
            damaged += u64::from(!is_filled(object, at as u64));
            // SAFETY: handed over by the other thread.
            unsafe { cache.free(object) };
        }
        damaged
    })?;
    for at in 0..count {
        let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { return Err(crate::__failed!("no memory")) };
        fill(object, at as u64);
        while !ring[at % SLOTS].load(Relaxed).is_null() {
            sched::yield_now(cx);
        }
        // Release: pairs with the acquire above.
        ring[at % SLOTS].store(object.as_ptr(), Ordering::Release);
    }
    Ok(consumer.join(cx))
}

/// More partial slabs than `node` wants to keep: every other object of them.
fn half_free(cache: &RawCache, node: NodeId) -> Held {
    let per_slab = cache.info().objperslab;
    let all = Held::take(cache, Some(node), per_slab * 2 * (cache.min_partial() + 2));
    let (keep, give): (Vec<_>, Vec<_>) = all.0.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    let objects = |half: Vec<(usize, NonNull<u8>)>| Held(half.into_iter().map(|(_, object)| object).collect());
    objects(give).give(cache);
    objects(keep)
}

/// All memory but the reserve, in a chain.
fn exhaust() -> Chain {
    let mut chain = Chain::new();
    while let Ok(page) = mm::alloc_pages(0, None, QUIET) {
        chain.push(page);
    }
    chain
}

/// What a shrinker may give back, for one test at a time.
struct Larder(Chain);
// SAFETY: the pages of the chain belong to whoever holds it.
unsafe impl Send for Larder {}
static LARDER_CLASS: LockClass = LockClass::new("test.larder");
static LARDER: SpinLock<Larder> = SpinLock::new(Larder(Chain::new()), &LARDER_CLASS);
static IN_LARDER: AtomicU64 = AtomicU64::new(0);
static SHRINKER: Shrinker =
    Shrinker::new("test-larder", || IN_LARDER.load(Relaxed) as usize, |pages, _| from_larder(pages));
static REGISTERED: Once<()> = Once::new();

fn from_larder(pages: usize) -> usize {
    let mut larder = LARDER.lock_irqsave(ATOMIC);
    let mut freed = 0;
    while freed < pages
        && let Some(page) = larder.0.pop()
    {
        mm::free_pages(page, page.order());
        freed += 1;
    }
    IN_LARDER.fetch_sub(freed as u64, Relaxed);
    freed
}

/// How often the log says `words`.
fn said(words: &str) -> usize {
    let mut times = 0;
    sync::log::for_each_line(|line| times += usize::from(line.windows(words.len()).any(|at| at == words.as_bytes())));
    times
}

ktest! {
    /// Content is whole, every page comes back, and what it cost is what each policy promises.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn what_one_node_allocates_and_another_frees_is_whole_and_comes_home(t: &mut Test) {
        const COUNT: usize = 6_000;
        let there = far_cpu()?;
        for policy in [Policy::Bypass, Policy::Batch] {
            let _with = With::policy(policy);
            let cache = cache("test_numa_pass")?;
            needs_sheaves(cache)?;
            let producer = cpu::current();
            let damaged = spawn(t.cx, Some(producer), move |cx| pass(cache, there, COUNT, cx))?.join(t.cx)?;
            ensure_eq!(damaged, 0, "objects with two holders");
            let count = |stat| cache.stat(stat);
            let locks = cache.lock_counts();
            let (capacity, all) = (cache.sheaf_capacity() as u64, COUNT as u64);
            t.note(format_args!(
                "{policy:?}, each of {COUNT} objects, in thousandths: {} barn locks, {} list locks, {} compare-exchanges; {} slabs",
                locks.barn * 1_000 / all, locks.list * 1_000 / all, count(Stat::CmpxchgDouble) * 1_000 / all, count(Stat::AllocSlab)
            ));
            match policy {
                Policy::Bypass => {
                    ensure_eq!((count(Stat::FreeSlowpath), count(Stat::FreeRemote)), (all, 0));
                    ensure!(count(Stat::CmpxchgDouble) >= all, "each object is given back by a compare-exchange");
                }
                Policy::Batch => {
                    ensure_eq!((count(Stat::FreeSlowpath), count(Stat::FreeRemote)), (0, all));
                    // One to put a full sheaf into the barn, and one to get it out; before there are empty ones to swap with, one
                    // more.
                    ensure!(locks.barn <= 3 * all / capacity + 20, "{} barn locks for {all} objects", locks.barn);
                    // What is under way fits into the barn, so slabs are only seen until that much has been made.
                    ensure!(count(Stat::CmpxchgDouble) <= 100, "{} compare-exchanges", count(Stat::CmpxchgDouble));
                    ensure_eq!(count(Stat::BarnPutFail), 0);
                }
            }
            destroy(cache, t.cx)?;
        }
        Ok(())
    }

    /// Objects in a batch that is not full are found by shrink, destroy, a CPU that goes, and an object of a third node.
    fn a_batch_goes_home_whatever_takes_it_along(t: &mut Test) {
        let _with = With::policy(Policy::Batch);
        let there = others(t.cx)?[0];
        let far: Vec<NodeId> = nodes().into_iter().filter(|&node| Some(node) != home(there)).collect();
        if far.is_empty() {
            skip!("needs two nodes with memory");
        }
        for way in 0..4 {
            let cache = cache("test_numa_batch")?;
            needs_sheaves(cache)?;
            let part = cache.sheaf_capacity() / 2 - 1;
            let held: Vec<Held> = far.iter().map(|&node| Held::take(cache, Some(node), part)).collect();
            let freed: usize = held.iter().map(|held| held.0.len()).sum();
            ensure_eq!(freed, part * far.len());
            spawn(t.cx, Some(there), move |_| held.into_iter().for_each(|held| held.give(cache)))?.join(t.cx);
            // The sheaf changes its node after a few objects of the next, and what it had goes home: to slabs because it is so
            // little.
            let (batched, past) = (cache.stat(Stat::FreeRemote), cache.stat(Stat::FreeSlowpath));
            ensure_eq!(batched + past, freed as u64);
            ensure!(past <= 10 * (far.len() as u64 - 1), "{past} objects past the sheaf");
            let home_already = cache.stat(Stat::SheafFlush);
            ensure!(home_already >= batched - part as u64, "{home_already} of {batched} flushed");
            let before = cache.info();
            ensure!(before.active_objs > 0, "nothing is left in the sheaf: {before:?}");
            match way {
                0 => _ = cache.shrink(),
                1 => _ = cache.flush_cpus(),
                2 => {
                    off(there, t.cx)?;
                    cache.shrink();
                    on(there, t.cx)?;
                }
                // Nothing before destroy.
                _ => {}
            }
            if way < 3 {
                ensure_eq!(cache.stat(Stat::SheafFlush) >= batched, true, "way {way}");
                cache.shrink();
                ensure_eq!((cache.info().active_objs, cache.info().num_slabs), (0, 0), "way {way}");
            }
            destroy(cache, t.cx)?;
        }
        Ok(())
    }

    /// Producers and consumers on all nodes, while CPUs go and come, the cache is shrunk and the policy changes.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_object_of_another_node_is_lost_while_cpus_go_and_policies_change(t: &mut Test) {
        let cpus = others(t.cx)?;
        if nodes().len() < 2 {
            skip!("needs two nodes with memory");
        }
        let with = With::policy(Policy::Batch);
        let cache = cache("test_numa_load")?;
        needs_sheaves(cache)?;
        let mut load = crate::toggle::Load::new();
        for _ in 0..crate::toggle::threads() {
            let nodes = nodes();
            load.add(t.cx, sync::Rng::new(t.rng.next_u64()), move |rng, _| {
                let held = Held::take(cache, Some(nodes[rng.index(nodes.len())]), rng.index(150));
                for &object in &held.0 {
                    fill(object, object.as_ptr().addr() as u64);
                }
                // The next turn may be on another CPU; so may the rest of this one.
                for &object in &held.0 {
                    ensure!(is_filled(object, object.as_ptr().addr() as u64), "{object:p} has two holders");
                }
                match rng.below(16) {
                    0 => _ = cache.shrink(),
                    1 => remote::set_policy(Policy::Bypass),
                    2..=4 => remote::set_policy(Policy::Batch),
                    _ => {}
                }
                held.give(cache);
                Ok(())
            })?;
        }
        let result = crate::toggle::toggle(&cpus, 6, &mut t.rng, t.cx);
        let turns: u64 = load.end(t.cx)?.iter().sum();
        result?;
        drop(with);
        t.note(format_args!("{turns} turns, {} objects in batches", cache.stat(Stat::FreeRemote)));
        ensure!(cache.stat(Stat::FreeRemote) > 0, "no object was ever in a batch");
        destroy(cache, t.cx)
    }

    /// From every CPU and for every node, also those without memory: the node's own object, or the nearest there is.
    fn an_object_of_a_node_is_of_that_node_or_the_nearest_with_memory(t: &mut Test) {
        let cache = cache("test_numa_node")?;
        let online = cpu::nodes_online();
        for on in cpu::online().iter() {
            let wrong = spawn(t.cx, Some(on), move |_| {
                let mut wrong = Vec::new();
                for node in (0..u64::BITS as usize).filter(|&bit| online >> bit & 1 != 0).map(NodeId::new) {
                    let held = Held::take(cache, Some(node), 150);
                    let strict = cache.alloc_node(Some(node), QUIET | AllocFlags::THIS_NODE);
                    let right = held.0.iter().filter(|&&object| node_of(object) == nearest(node)).count();
                    if right != 150 || strict.and_then(node_of) != Some(node).filter(|&node| nearest(node) == Some(node)) {
                        wrong.push((node, right, strict.and_then(node_of)));
                    }
                    // Half of them go to this CPU's sheaves, if they are near it, so that these have some for the next node.
                    held.give(cache);
                    // SAFETY: allocated above.
                    strict.into_iter().for_each(|object| unsafe { cache.free(object) });
                }
                wrong
            })?
            .join(t.cx);
            ensure!(wrong.is_empty(), "on CPU {on}: (node, right of 150, with THIS_NODE) {wrong:?}");
        }
        for node in nodes() {
            for size in [0, 100, 9_000] {
                let Some(object) = slab::kmalloc_node(size, Some(node), AllocFlags::ZERO) else { return Err(crate::__failed!("no memory")) };
                ensure!(size == 0 || node_of(object) == Some(node), "{size} bytes of node {node} are of {:?}", node_of(object));
                // SAFETY: from kmalloc_node.
                unsafe { slab::kfree(object) };
            }
        }
        destroy(cache, t.cx)
    }

    /// A sheaf may have been filled from another node; who names a node is not given such an object.
    fn an_allocation_for_a_node_looks_at_the_object_in_the_sheaf(t: &mut Test) {
        let cache = cache("test_numa_mismatch")?;
        needs_sheaves(cache)?;
        let Some(here) = home(cpu::current()) else { return Err(crate::__failed!("no node has memory")) };
        let Some(far) = nodes().into_iter().find(|&node| node != here) else { skip!("needs two nodes with memory") };
        cache.set_remote_node_defrag_ratio(1024).map_err(|error| crate::__failed!("{error}"))?;
        let _with = With::policy(Policy::Bypass);
        let half = half_free(cache, far);
        let (foreign, own) = spawn(t.cx, Some(cpu::current()), move |_| {
            // The first refill finds no slab here, takes those there, and fills up from a new one, which is used first.
            let mut held = Held::default();
            let is_far = |held: &Held| held.0.last().is_some_and(|&object| node_of(object) == Some(far));
            while !is_far(&held) && held.0.len() < cache.sheaf_capacity() {
                held.0.extend(cache.alloc(AllocFlags::NOWAIT));
            }
            let foreign = is_far(&held);
            let own = cache.alloc_node(Some(here), AllocFlags::NOWAIT);
            let nodes = (foreign, own.and_then(node_of));
            held.0.extend(own);
            held.give(cache);
            nodes
        })?
        .join(t.cx);
        ensure!(foreign, "no refill from another node");
        ensure_eq!(own, Some(here), "the object that was asked for");
        ensure!(cache.stat(Stat::AllocNodeMismatch) > 0, "alloc_node_mismatch");
        half.give(cache);
        destroy(cache, t.cx)
    }

    /// With the ratio at 0 a refill stays at home, however much lies about on other nodes.
    fn a_refill_looks_at_other_nodes_only_as_often_as_it_may(t: &mut Test) {
        let cache = cache("test_numa_ratio")?;
        needs_sheaves(cache)?;
        let Some(far) = nodes().into_iter().find(|&node| Some(node) != home(cpu::current())) else {
            skip!("needs two nodes with memory")
        };
        cache.set_remote_node_defrag_ratio(0).map_err(|error| crate::__failed!("{error}"))?;
        let _with = With::policy(Policy::Bypass);
        let half = half_free(cache, far);
        let on = cpu::online().iter().find(|&cpu| home(cpu) != Some(far));
        let foreign = spawn(t.cx, on, move |_| {
            let held = Held::take(cache, None, 10 * cache.sheaf_capacity());
            let foreign = held.0.iter().filter(|&&object| node_of(object) == Some(far)).count();
            held.give(cache);
            foreign
        })?
        .join(t.cx);
        ensure_eq!(foreign, 0, "objects of node {far}");
        half.give(cache);
        destroy(cache, t.cx)
    }

    /// Freed in bulk or after a grace period, objects of another node are kept out of the sheaves as well.
    fn bulk_and_deferred_frees_keep_objects_of_other_nodes_apart(t: &mut Test) {
        let cache = cache("test_numa_bulk")?;
        needs_sheaves(cache)?;
        let Some(far) = nodes().into_iter().find(|&node| Some(node) != home(CpuId::BOOT)) else {
            skip!("needs two nodes with memory")
        };
        let counts = spawn(t.cx, Some(CpuId::BOOT), move |_| {
            let near = Held::take(cache, None, 10);
            let mut mixed = Held::take(cache, Some(far), 10);
            mixed.0.extend(near.0);
            // SAFETY: allocated above, each given up once.
            unsafe { cache.free_bulk(&mut mixed.0) };
            let bulk = (cache.stat(Stat::FreeFastpath), cache.stat(Stat::FreeSlowpath));
            for object in Held::take(cache, Some(far), 10).0 {
                // SAFETY: room for a head is in every object; allocated here and given up.
                unsafe { kfree_rcu::kfree_rcu(object.cast::<kfree_rcu::RcuPtr>()) };
            }
            (bulk, cache.stat(Stat::FreeRcuSheaf), cache.stat(Stat::FreeRcuSheafFail))
        })?
        .join(t.cx);
        ensure_eq!(counts, ((10, 10), 0, 10), "(fast, slow) in bulk, then into and past the rcu_free sheaf");
        destroy(cache, t.cx)
    }

    /// What CPUs of a node without memory allocate and free goes through their sheaves and their node's barn.
    fn cpus_of_a_node_without_memory_have_sheaves_and_a_barn(t: &mut Test) {
        let Some(on) = cpu::online().iter().find(|&cpu| home(cpu) != Some(cpu::node_of(cpu))) else {
            skip!("needs a CPU on a node without memory")
        };
        let cache = cache("test_numa_memoryless")?;
        needs_sheaves(cache)?;
        let count = 4 * cache.sheaf_capacity();
        let wrong = spawn(t.cx, Some(on), move |_| {
            let mut wrong = 0;
            for _ in 0..3 {
                let held = Held::take(cache, None, count);
                wrong += held.0.iter().filter(|&&object| node_of(object) != home(on)).count();
                held.give(cache);
            }
            wrong
        })?
        .join(t.cx);
        ensure_eq!(wrong, 0, "objects that are not of the nearest node with memory");
        ensure_eq!(cache.stat(Stat::FreeFastpath), 3 * count as u64, "frees into sheaves");
        ensure_eq!((cache.stat(Stat::FreeSlowpath), cache.stat(Stat::FreeRemote)), (0, 0));
        ensure!(cache.stat(Stat::BarnGet) > 0, "no sheaf came from the barn");
        let barns: Vec<NodeId> = cache.by_node().filter(|info| info.barn_full.0 > 0).map(|info| info.node).collect();
        ensure_eq!(barns, [cpu::node_of(on)], "nodes with full sheaves");
        // With the sheaves gone, the slabs are the nearest node's, and are used again.
        cache.flush_cpus();
        cache.flush_barns();
        let slabs = cache.stat(Stat::AllocSlab);
        spawn(t.cx, Some(on), move |_| Held::take(cache, None, 10).give(cache))?.join(t.cx);
        ensure_eq!(cache.stat(Stat::AllocSlab), slabs, "new slabs, although there are free ones");
        destroy(cache, t.cx)
    }

    /// With all ordinary memory gone: who may use the reserve gets objects, nobody else gets one of these, fresh or freed.
    #[budget_ms(60_000)]
    fn objects_of_the_reserve_never_reach_an_ordinary_caller(t: &mut Test) {
        for policy in [Policy::Bypass, Policy::Batch] {
            let _with = With::policy(policy);
            let cache = cache("test_numa_reserve")?;
            let mut held = Held(Vec::with_capacity(512));
            let mut chain = exhaust();
            let ordinary = || cache.alloc(QUIET);
            let result = (|| {
                ensure!(ordinary().is_none(), "an object without memory for it");
                held.0.extend((0..300).filter_map(|_| cache.alloc(QUIET | AllocFlags::RESERVE)));
                ensure_eq!(held.0.len(), 300, "objects of the reserve");
                ensure!(held.0.iter().all(|&object| mm::home_of(object) & mm::home::RESERVE != 0), "unmarked objects");
                ensure!(ordinary().is_none(), "a new object of the reserve");
                ensure!(cache.alloc(QUIET | AllocFlags::RESERVE | AllocFlags::NO_RESERVE).is_none(), "NO_RESERVE wins");
                ensure!(cache.alloc_nolock(QUIET).is_none(), "a new object of the reserve, by nolock");
                // Half of each slab is free now, and none of it in a sheaf.
                let before = cache.stat(Stat::FreeSlowpath);
                for index in (0..150).rev() {
                    // SAFETY: ours.
                    unsafe { cache.free(held.0.swap_remove(index * 2)) };
                }
                ensure_eq!(cache.stat(Stat::FreeSlowpath) - before, 150, "frees past the sheaves");
                ensure!(ordinary().is_none(), "a freed object of the reserve");
                ensure!(cache.alloc_node(home(cpu::current()), QUIET).is_none(), "the same by node");
                held.0.extend((0..50).filter_map(|_| cache.alloc(QUIET | AllocFlags::RESERVE)));
                ensure_eq!(held.0.len(), 200, "who may use the reserve gets what was freed");
                Ok(())
            })();
            chain.free_all();
            result?;
            // Memory is back: slabs of the reserve are like any other, from when somebody wants an object.
            mm::drain_all(t.cx);
            let marked = |held: &Held| held.0.iter().filter(|&&object| mm::home_of(object) & mm::home::RESERVE != 0).count();
            let before = marked(&held);
            let Some(object) = ordinary() else { return Err(crate::__failed!("no memory")) };
            ensure!(marked(&held) < before, "{before} objects with the mark of the reserve, and none lost it");
            ensure_eq!(mm::home_of(object) & mm::home::RESERVE, 0, "the mark of the reserve");
            held.0.push(object);
            held.give(cache);
            destroy(cache, t.cx)?;
        }
        Ok(())
    }

    /// Where no block is left for a slab of the best order, one of a single ordinary page comes before the reserve.
    fn a_smaller_slab_comes_before_the_reserve(t: &mut Test) {
        let layout = Layout::new("test_numa_smaller", 1024).flags(CacheFlags::NO_MERGE);
        let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        // With sheaves the object would come by one, and these never ask for the reserve.
        cache.set_capacity(0, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        let (mut chain, mut kept, mut single) = (exhaust(), Chain::new(), 0);
        while single < 8
            && let Some(page) = chain.pop()
        {
            // Its buddy stays in use: no two of these merge.
            if page.pfn() % 2 == 0 {
                mm::free_pages(page, 0);
                single += 1;
            } else {
                kept.push(page);
            }
        }
        let object = cache.alloc(QUIET | AllocFlags::RESERVE);
        let home = object.map(mm::home_of);
        // SAFETY: allocated above.
        object.into_iter().for_each(|object| unsafe { cache.free(object) });
        chain.free_all();
        kept.free_all();
        ensure!(home.is_some_and(|home| home & mm::home::RESERVE == 0), "home {home:?}: of the reserve");
        destroy(cache, t.cx)
    }

    /// A slab of the reserve gives its pages back when its last object is, however few partial slabs there are.
    #[budget_ms(60_000)]
    fn an_empty_slab_of_the_reserve_goes_back_at_once(t: &mut Test) {
        let cache = cache("test_numa_empty")?;
        let mut chain = exhaust();
        let object = cache.alloc(QUIET | AllocFlags::RESERVE);
        let slabs = cache.info().num_slabs;
        // SAFETY: allocated above.
        object.into_iter().for_each(|object| unsafe { cache.free(object) });
        let left = cache.info().num_slabs;
        chain.free_all();
        ensure_eq!((object.is_some(), slabs, left), (true, 1, 0));
        destroy(cache, t.cx)
    }

    /// Where all memory is gone, who may sleep gets what a shrinker gives back, and nobody else does.
    #[budget_ms(60_000)]
    fn who_may_sleep_reclaims_and_gets_an_object(t: &mut Test) {
        REGISTERED.call_once(|| mm::shrinker::register(&SHRINKER));
        let cache = cache("test_numa_sleep")?;
        let mut chain = exhaust();
        {
            let mut larder = LARDER.lock_irqsave(ATOMIC);
            for page in (0..512).map_while(|_| chain.pop()) {
                larder.0.push(page);
                IN_LARDER.fetch_add(1, Relaxed);
            }
        }
        let line = "test_numa_sleep: no ";
        let before = (SHRINKER.freed(), said(line));
        let without = cache.alloc_sleep(AllocFlags::ZERO | QUIET, t.cx);
        let scanned = SHRINKER.freed() - before.0;
        // At least one of them is in the log: no other test fails to allocate within a second of it, twice.
        let mut warned = false;
        for _ in 0..3 {
            warned = warned || { cache.alloc(AllocFlags::NOWAIT).is_none() && said(line) > before.1 };
            if !warned {
                sched::sleep_ns(t.cx, 1_100 * crate::toggle::MS);
            }
        }
        // Others, asked first, may have something to give back; then that goes, too.
        let mut with = cache.alloc_sleep(AllocFlags::ZERO | AllocFlags::MAY_SLEEP, t.cx);
        for _ in 0..20 {
            if SHRINKER.freed() != before.0 {
                break;
            }
            while let Ok(page) = mm::alloc_pages(0, None, QUIET) {
                chain.push(page);
            }
            // SAFETY: ours.
            with.into_iter().for_each(|object| unsafe { cache.free(object) });
            cache.shrink();
            with = cache.alloc_sleep(AllocFlags::ZERO | AllocFlags::MAY_SLEEP, t.cx);
        }
        let large = slab::kmalloc_sleep(9_000, AllocFlags::MAY_SLEEP, t.cx);
        let freed = SHRINKER.freed() - before.0;
        from_larder(usize::MAX);
        chain.free_all();
        ensure!(without.is_none() && scanned == 0, "reclaim without MAY_SLEEP");
        ensure!(warned, "no line in the log");
        ensure!(freed > 0, "the shrinker was not asked");
        let Some(object) = with else { return Err(crate::__failed!("no object after reclaim")) };
        // SAFETY: ours.
        ensure!((0..WORDS).all(|word| unsafe { object.cast::<u64>().add(word).read_volatile() } == 0), "not zeroed");
        // SAFETY: ours.
        unsafe { cache.free(object) };
        let Some(object) = large else { return Err(crate::__failed!("no large block after reclaim")) };
        // SAFETY: ours.
        unsafe { slab::kfree(object) };
        destroy(cache, t.cx)
    }
}
