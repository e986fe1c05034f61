//! Bringing the allocator up, before threads and before any other allocator but the page allocator.
//!
//! Order, each step needing only what came before:
//! 1. one page a node holds that node's [`CacheNode`]s of the caches made here;
//! 2. the *sheaf caches*, one a power of two from 64 bytes to a page, which have no sheaves themselves. That is why a
//!    cache may be given sheaves the moment it is made, and why allocating a sheaf never recurses (S0-24);
//! 3. two caches for [`RawCache`] and [`CacheNode`], without sheaves either;
//! 4. the `kmalloc` classes ([`kmalloc`](crate::kmalloc)), made like any other cache.
//!
//! Linux gives its kmalloc caches their sheaves in a second pass, because sheaves come from kmalloc (M-3); here they do
//! not, so one pass is enough.

use core::ptr::NonNull;

use arch::{NodeId, PAGE_SIZE};
use mm::AllocFlags;
use sync::{DynPerCpu, Once};

use crate::Spin;
use crate::cache::{CacheFlags, CreateError, Layout, RawCache};
use crate::cpu::CacheCpu;
use crate::debug;
use crate::merge;
use crate::node::CacheNode;
use crate::registry;
use crate::stats::Stat;

const SHEAF_NAMES: [&str; 7] = ["sheaf-64", "sheaf-128", "sheaf-256", "sheaf-512", "sheaf-1k", "sheaf-2k", "sheaf-4k"];
const SMALLEST_SHEAF: usize = 64;

/// Caches that exist before there is a cache for caches: the sheaf caches, then the two below.
const BOOT_CACHES: usize = SHEAF_NAMES.len() + 2;
const CACHES: usize = SHEAF_NAMES.len();
const NODES: usize = SHEAF_NAMES.len() + 1;

static BOOT: [Once<RawCache>; BOOT_CACHES] = [const { Once::new() }; BOOT_CACHES];

const _: () = assert!(BOOT_CACHES * size_of::<CacheNode>() <= PAGE_SIZE);

/// The cache for sheaves of `bytes`, or nothing if these are too large for one.
#[inline]
pub(crate) fn sheaf_cache(bytes: usize) -> Option<&'static RawCache> {
    let class = bytes.max(SMALLEST_SHEAF).next_power_of_two().ilog2() - SMALLEST_SHEAF.ilog2();
    BOOT.get(class as usize).filter(|_| (class as usize) < SHEAF_NAMES.len())?.get()
}

/// Brings the slab allocator up.
///
/// Context: boot CPU, once, after the page allocator and all per-CPU areas, before anything allocates objects.
///
/// # Panics
/// If there is not enough memory for the first caches, or if called twice.
pub fn init() {
    assert!(BOOT[0].get().is_none(), "the slab allocator is up already");
    debug::init();
    for (index, name) in SHEAF_NAMES.into_iter().chain(["kmem_cache", "kmem_cache_node"]).enumerate() {
        let (size, align) = match index {
            CACHES => (size_of::<RawCache>(), align_of::<RawCache>()),
            NODES => (size_of::<CacheNode>(), align_of::<CacheNode>()),
            class => (SMALLEST_SHEAF << class, SMALLEST_SHEAF),
        };
        let layout = Layout::new(name, size).align(align).flags(CacheFlags::NO_SHEAVES.union(CacheFlags::NO_MERGE));
        BOOT[index].call_once(|| bare(layout).expect("a boot cache is well-formed"));
    }
    for node in online_nodes() {
        give_boot_nodes(node);
    }
    for cache in &BOOT {
        registry::add(cache.get().expect("made above"));
    }
    crate::remote::init();
    crate::rcu_free::init();
    crate::kmalloc::init();
    mm::shrinker::register(&crate::shrinker::SHRINKER);
    mm::oom::register_section(&crate::waiting::report::SECTION);
    sched::hotplug::register(&crate::hotplug::NOTIFIER);
    sched::softirq::register(sched::Softirq::Free, crate::deferred::drain_here);
}

/// Every node that exists, with or without memory (S5-5).
fn online_nodes() -> impl Iterator<Item = NodeId> {
    let mask = arch::cpu::nodes_online();
    (0..u64::BITS as usize).filter(move |&bit| mask >> bit & 1 != 0).map(NodeId::new)
}

/// The boot caches' part of `node`, in one page of the node's own memory.
fn give_boot_nodes(node: NodeId) {
    let page = mm::alloc_pages(0, Some(node), AllocFlags::NOWAIT).expect("no page for the first caches");
    for (index, cache) in BOOT.iter().enumerate() {
        let place = page.virt().cast::<CacheNode>().wrapping_add(index);
        // SAFETY: a fresh page, and `BOOT_CACHES` CacheNodes fit in it (asserted above), aligned as a page is.
        unsafe { place.write(CacheNode::new(node, 0)) };
        let here = NonNull::new(place).expect("a page is not at null");
        cache.get().expect("made before its nodes").set_node(node, here);
    }
}

/// A cache with its per-CPU part but no nodes.
fn bare(layout: Layout) -> Result<RawCache, CreateError> {
    let cpu = DynPerCpu::new(|_| CacheCpu::new()).map_err(|_| CreateError::NoMemory)?;
    RawCache::new(layout, cpu)
}

/// Makes a cache, with its nodes, and puts it on the list; or hands out one that is just like it ([`merge`]).
///
/// Context: any but NMI; not under a lock that the allocator may need.
///
/// # Errors
/// A size or alignment that no slab can hold, or no memory.
///
/// # Panics
/// Where it would return an error, if the flags have [`CacheFlags::PANIC`].
pub fn create(layout: Layout) -> Result<&'static RawCache, CreateError> {
    match try_create(layout) {
        Err(error) if layout.flags.contains(CacheFlags::PANIC) => panic!("cache {}: {error}", layout.name),
        result => result,
    }
}

fn try_create(layout: Layout) -> Result<&'static RawCache, CreateError> {
    let caches = BOOT[CACHES].get().expect("the slab allocator is not up");
    let nodes = BOOT[NODES].get().expect("the slab allocator is not up");
    let cache = bare(layout)?;
    if let Some(like) = merge::instead_of(&cache) {
        return Ok(like);
    }
    let place = caches.alloc(AllocFlags::NOWAIT).ok_or(CreateError::NoMemory)?.cast::<RawCache>();
    // SAFETY: a fresh object of RawCache's size and alignment.
    unsafe { place.write(cache) };
    // SAFETY: just written; from here on shared, and never moved.
    let cache: &'static RawCache = unsafe { place.as_ref() };
    for node in online_nodes() {
        let object = nodes.take_one(node, AllocFlags::NOWAIT, Spin::May).inspect(|_| nodes.count(Stat::AllocSlowpath));
        let Some(here) = nodes.after_alloc(object, AllocFlags::NOWAIT) else {
            // SAFETY: nobody has seen the cache yet.
            unsafe { dismantle(cache) };
            return Err(CreateError::NoMemory);
        };
        let here = here.cast::<CacheNode>();
        // SAFETY: a fresh object of CacheNode's size and alignment.
        unsafe { here.write(CacheNode::new(node, cache.sheaf_capacity())) };
        cache.set_node(node, here);
    }
    registry::add(cache);
    // A CPU that went or came before the cache was on the list was not counted right.
    cache.follow_cpus();
    Ok(cache)
}

/// Gives back what a cache is made of.
///
/// # Safety
/// Nobody refers to the cache, and it has no slabs and no sheaves.
pub(crate) unsafe fn dismantle(cache: &'static RawCache) {
    for node in cache.nodes() {
        let object = NonNull::from(node).cast();
        // SAFETY: came from the cache of CacheNodes in `create`, and the caller says nobody uses it.
        unsafe { BOOT[NODES].get().expect("up").free(object) };
    }
    let object = NonNull::from(cache);
    // SAFETY: the caller says nobody refers to it; it is read out whole, so that its per-CPU part is dropped, and
    // then its memory goes back to where `create` got it.
    unsafe {
        drop(object.read());
        BOOT[CACHES].get().expect("up").free(object.cast());
    }
}
