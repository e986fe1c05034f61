//! What tests of the nolock calls share: the visitor, who uses them in the middle of others' business, and the paths through
//! the allocator that it is let loose on.
//!
//! The visitor keeps some objects of its own between visits, each filled with a stamp: whoever is given one of these by
//! mistake, or gives one of its own away, damages a stamp, on one side or the other.

use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::cpu;
use kfree_rcu::{kfree_rcu, kfree_rcu_nolock};
use mm::{AllocFlags, Page};
use slab::{CacheFlags, Layout, RawCache, Stat};
use sync::{ATOMIC, MaySleep, PreemptGuard};

use crate::{Failure, ensure, ensure_eq};

/// What the interrupted side fills its objects with, and what the visitor does.
const OURS: u64 = 0x6f75_7273_6f75_7273;
const VISITORS: u64 = 0x7669_7369_746f_7273;

/// Where in an object the visitor and the paths put its `kfree_rcu` head.
const HEAD: usize = 16;

/// What word `word` of an object holds while it is `whose`.
fn stamp(object: NonNull<u8>, whose: u64, word: usize) -> u64 {
    object.as_ptr().addr() as u64 ^ whose ^ word as u64
}

/// The words of an object that are stamped: sixteen, or all, from its first on and through its middle, where a free object
/// has its link.
fn stamped(bytes: usize) -> impl Iterator<Item = usize> {
    (0..bytes / 8).step_by((bytes / 128).max(1))
}

fn fill(object: NonNull<u8>, bytes: usize, whose: u64) {
    for word in stamped(bytes) {
        // SAFETY: the object has `bytes` bytes and is the caller's.
        unsafe { object.cast::<u64>().add(word).write_volatile(stamp(object, whose, word)) };
    }
}

fn check(object: NonNull<u8>, bytes: usize, whose: u64) {
    // SAFETY: as in `fill`.
    let at = |word| unsafe { object.cast::<u64>().add(word).read_volatile() };
    if !stamped(bytes).all(|word| at(word) == stamp(object, whose, word)) {
        DAMAGED.fetch_add(1, Relaxed);
    }
}

/// Objects that the visitor holds between visits.
static KEPT: [AtomicPtr<u8>; 24] = [const { AtomicPtr::new(ptr::null_mut()) }; 24];
/// Whose objects they are.
static CACHE: AtomicPtr<RawCache> = AtomicPtr::new(ptr::null_mut());
/// Visits, allocations that found nothing, and damaged stamps, on both sides.
static VISITS: AtomicUsize = AtomicUsize::new(0);
static MISSES: AtomicU64 = AtomicU64::new(0);
static DAMAGED: AtomicU64 = AtomicU64::new(0);

/// One visit: an allocation, a free, and an object given to `kfree_rcu`, beginning with another of the three each time.
///
/// Context: any; on several CPUs at once, too.
pub(crate) fn visit() {
    // SAFETY: a cache that `use_cache` was given, which lives for ever.
    let Some(cache) = (unsafe { CACHE.load(Relaxed).as_ref() }) else { return };
    let visit = VISITS.fetch_add(1, Relaxed);
    for turn in 0..3 {
        match (visit + turn) % 3 {
            0 => take(cache),
            1 => give(cache, visit, |object| {
                // SAFETY: the object was the visitor's, and is given up here.
                unsafe { slab::kfree_nolock(object) }
            }),
            _ => give(cache, visit, |object| {
                // SAFETY: as above; the head lies in it.
                unsafe { kfree_rcu_nolock(object.add(HEAD).cast()) }
            }),
        }
    }
}

/// The visitor takes an object, if it has a place for one.
fn take(cache: &RawCache) {
    let is_vacant = |place: &&AtomicPtr<u8>| place.load(Relaxed).is_null();
    let Some(place) = KEPT.iter().find(is_vacant) else { return };
    let Some(object) = cache.alloc_nolock(AllocFlags::NOWAIT) else {
        MISSES.fetch_add(1, Relaxed);
        return;
    };
    fill(object, cache.object_size(), VISITORS);
    let other = place.swap(object.as_ptr(), Relaxed);
    if let Some(other) = NonNull::new(other) {
        // A visitor on another CPU was faster with this place.
        // SAFETY: it was that visitor's, and is ours since the exchange.
        unsafe { slab::kfree_nolock(other) };
    }
}

/// The visitor gives one of its objects up, by `f`.
fn give(cache: &RawCache, first: usize, f: impl FnOnce(NonNull<u8>)) {
    let places = KEPT.iter().cycle().skip(first % KEPT.len()).take(KEPT.len());
    let mut held = places.filter_map(|place| NonNull::new(place.swap(ptr::null_mut(), Relaxed)));
    if let Some(object) = held.next() {
        check(object, cache.object_size(), VISITORS);
        f(object);
    }
}

/// The visitor uses objects of `cache` from now on. What it holds it frees first, and its counts begin anew.
pub(crate) fn use_cache(cache: &'static RawCache) {
    leave();
    CACHE.store(ptr::from_ref(cache).cast_mut(), Relaxed);
    MISSES.store(0, Relaxed);
    DAMAGED.store(0, Relaxed);
}

/// The next visit begins with an allocation, a free or a `kfree_rcu`, by the remainder.
pub(crate) fn begin_with(turn: usize) {
    VISITS.store(turn, Relaxed);
}

/// The visitor frees what it holds.
fn leave() {
    // SAFETY: as in `visit`.
    let Some(cache) = (unsafe { CACHE.load(Relaxed).as_ref() }) else { return };
    for place in &KEPT {
        if let Some(object) = NonNull::new(place.swap(ptr::null_mut(), Relaxed)) {
            check(object, cache.object_size(), VISITORS);
            // SAFETY: the object was the visitor's.
            unsafe { slab::kfree(object) };
        }
    }
}

/// The visitor takes a whole slab of objects, which leaves nothing behind that a path could meet.
fn move_in(cache: &'static RawCache) {
    (0..cache.info().objperslab.min(KEPT.len())).for_each(|_| take(cache));
    cache.shrink();
}

/// Allocations of the visitor that found nothing, and damaged stamps, since [`use_cache`].
pub(crate) fn counts() -> (u64, u64) {
    (MISSES.load(Relaxed), DAMAGED.load(Relaxed))
}

/// A cache for one kind of path, made once.
pub(crate) fn cache(name: &'static str, size: usize, flags: CacheFlags) -> &'static RawCache {
    let layout = Layout::new(name, size).flags(flags | CacheFlags::NO_MERGE);
    slab::registry::find(name).unwrap_or_else(|| slab::create(layout).expect("memory for a cache"))
}

/// What a path works with.
pub(crate) struct Bed {
    /// Its cache.
    pub(crate) cache: &'static RawCache,
    /// Objects and pages that it holds. Never grows while a path is stepped: that would be another allocator's path.
    objects: Vec<NonNull<u8>>,
    pages: Vec<(&'static Page, usize)>,
    /// Stamps are neither written nor looked at: [`with_stamps_left_alone`](Self::with_stamps_left_alone).
    plain: bool,
}

impl Bed {
    /// One that holds nothing.
    pub(crate) fn new(cache: &'static RawCache) -> Bed {
        Bed { cache, objects: Vec::with_capacity(2000), pages: Vec::with_capacity(200), plain: false }
    }

    fn keep(&mut self, object: Option<NonNull<u8>>) {
        let Some(object) = object else { return };
        assert!(self.objects.len() < self.objects.capacity());
        if !self.plain {
            fill(object, self.cache.object_size(), OURS);
        }
        self.objects.push(object);
    }

    /// Does `f`, which steps over an operation, without boundaries that are not the allocator's: all stamps are looked at
    /// before, and written after.
    pub(crate) fn with_stamps_left_alone<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        self.objects.iter().for_each(|&object| check(object, self.cache.object_size(), OURS));
        self.plain = true;
        let result = f(self);
        self.plain = false;
        self.objects.iter().for_each(|&object| fill(object, self.cache.object_size(), OURS));
        result
    }

    /// Allocates `count` objects.
    pub(crate) fn take(&mut self, count: usize) {
        for _ in 0..count {
            let object = self.cache.alloc(AllocFlags::NOWARN);
            self.keep(object);
        }
    }

    /// The object that was allocated last, after a look at its stamp.
    fn last(&mut self) -> Option<NonNull<u8>> {
        let object = self.objects.pop()?;
        if !self.plain {
            check(object, self.cache.object_size(), OURS);
        }
        Some(object)
    }

    /// Frees `count` objects, those that were allocated last first.
    pub(crate) fn give(&mut self, count: usize) {
        for _ in 0..count {
            let Some(object) = self.last() else { return };
            // SAFETY: allocated from the cache, and given up here.
            unsafe { self.cache.free(object) };
        }
    }

    /// Gives `count` objects to `kfree_rcu`.
    pub(crate) fn give_rcu(&mut self, count: usize) {
        for _ in 0..count {
            let Some(object) = self.last() else { return };
            // SAFETY: as in `give`; the head lies in the object.
            unsafe { kfree_rcu(object.add(HEAD).cast()) };
        }
    }

    /// Frees `count` objects by the nolock call.
    fn give_nolock(&mut self, count: usize) {
        for _ in 0..count {
            let Some(object) = self.last() else { return };
            // SAFETY: as in `give`.
            unsafe { slab::kfree_nolock(object) };
        }
    }

    /// Gives `count` objects to `kfree_rcu` by the nolock call.
    fn give_rcu_nolock(&mut self, count: usize) {
        for _ in 0..count {
            let Some(object) = self.last() else { return };
            // SAFETY: as in `give_rcu`.
            unsafe { kfree_rcu_nolock(object.add(HEAD).cast()) };
        }
    }

    fn take_pages(&mut self, count: usize, order: usize) {
        for _ in 0..count {
            assert!(self.pages.len() < self.pages.capacity());
            self.pages.extend(mm::alloc_pages(order, None, AllocFlags::NOWARN).ok().map(|page| (page, order)));
        }
    }

    fn give_pages(&mut self, count: usize) {
        self.pages
            .drain(self.pages.len().saturating_sub(count)..)
            .for_each(|(page, order)| mm::free_pages(page, order));
    }

    /// Has objects allocated on a CPU of another node; false if there is none.
    fn take_on_another_node(&mut self, count: usize) -> bool {
        let here = cpu::node_of(cpu::current());
        let Some(there) = cpu::online().iter().find(|&other| cpu::node_of(other) != here) else { return false };
        for _ in 0..count {
            let cache = self.cache;
            let object =
                sync::smp::run_on(there, || cache.alloc(AllocFlags::NOWARN).map(|object| object.as_ptr().addr()));
            self.keep(object.flatten().and_then(|address| NonNull::new(ptr::with_exposed_provenance_mut(address))));
        }
        self.objects.iter().any(|&object| mm::page_of(object.as_ptr()).is_some_and(|page| page.node() != here))
    }

    /// Objects that it holds.
    pub(crate) fn held(&self) -> usize {
        self.objects.len()
    }

    /// Of its objects, how many `f` says yes to.
    pub(crate) fn count(&self, f: impl FnMut(&&NonNull<u8>) -> bool) -> usize {
        self.objects.iter().filter(f).count()
    }

    fn capacity(&self) -> usize {
        self.cache.sheaf_capacity()
    }

    /// Everything is given back, nothing is in sheaves, barns or lists any more, and the visitor has objects of its own.
    pub(crate) fn begin(&mut self) {
        self.give(usize::MAX);
        self.give_pages(usize::MAX);
        leave();
        slab::deferred::drain_here();
        self.cache.shrink();
        move_in(self.cache);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.give(usize::MAX);
        self.give_pages(usize::MAX);
    }
}

/// Waits until everything that was given up is free, and gives all free objects back to their slabs and these to mm.
pub(crate) fn settle(cache: &'static RawCache, cx: &mut MaySleep) {
    kfree_rcu::kvfree_rcu_barrier(cx);
    cache.shrink();
    // A flush submits rcu_free sheaves that came in meanwhile.
    rcu::rcu_barrier(cx);
    cache.shrink();
}

/// Every object is free again, every page has gone back, every sheaf as well, and no stamp was damaged.
pub(crate) fn ensure_all_back(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    let (_, damaged) = counts();
    leave();
    settle(cache, cx);
    let info = cache.info();
    ensure_eq!(damaged, 0, "objects of {} with two holders", cache.name());
    ensure_eq!(info.active_objs, 0, "objects of {} are lost", cache.name());
    ensure_eq!(info.num_slabs, 0, "slabs of {} stay although they are empty", cache.name());
    ensure_eq!(cache.stat(Stat::SheafAlloc), cache.stat(Stat::SheafFree), "sheaves of {} are lost", cache.name());
    Ok(())
}

/// A path through the allocator: from an empty cache, what leads up to it, and the operation that takes it.
pub(crate) struct Path {
    /// What it is.
    pub(crate) name: &'static str,
    /// Which cache.
    pub(crate) kind: Kind,
    /// Gets everything ready; false if this machine has no such path.
    pub(crate) set_up: fn(&mut Bed) -> bool,
    /// The operation.
    pub(crate) operation: fn(&mut Bed),
    /// What an operation on this path counts: it is done, without the visitor, until the next one would count it.
    pub(crate) counts: Option<Stat>,
}

/// The caches that paths lead through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Small objects, with sheaves.
    Small,
    /// Large objects without sheaves: few in a slab.
    Bare,
}

impl Kind {
    /// The cache.
    pub(crate) fn cache(self) -> &'static RawCache {
        match self {
            Kind::Small => cache("test_nolock", 1024, CacheFlags::empty()),
            Kind::Bare => cache("test_nolock_bare", 2048, CacheFlags::NO_SHEAVES),
        }
    }
}

const fn path(name: &'static str, set_up: fn(&mut Bed) -> bool, operation: fn(&mut Bed)) -> Path {
    Path { name, kind: Kind::Small, set_up, operation, counts: None }
}

const fn counted(mut path: Path, stat: Stat) -> Path {
    path.counts = Some(stat);
    path
}

const fn bare(mut path: Path) -> Path {
    path.kind = Kind::Bare;
    path
}

/// How many operations there are, without visits, before the one that is on the path; nothing if this machine has no such path.
///
/// # Errors
/// Many operations lead nowhere.
pub(crate) fn operations_before(path: &Path, bed: &mut Bed) -> Result<Option<usize>, Failure> {
    const MOST: usize = 2000;
    let Some(stat) = path.counts else { return Ok(Some(0)) };
    bed.begin();
    let _pin = PreemptGuard::new(ATOMIC);
    if !(path.set_up)(bed) {
        return Ok(None);
    }
    let old = bed.cache.stat(stat);
    let on_it = (0..MOST).find(|_| {
        (path.operation)(bed);
        bed.cache.stat(stat) != old
    });
    ensure!(on_it.is_some(), "{}: {MOST} operations do not count {}", path.name, stat.name());
    Ok(on_it)
}

/// Every path. The first word says whose: alloc, free, flush, kfree_rcu, nolock, pages.
pub(crate) const PATHS: &[Path] = &[
    path("alloc from main", |b| had(b, 1), |b| b.take(1)),
    path("alloc, spare becomes main", |b| hold(b, 2, 2) && takes(b, b.capacity()), |b| b.take(1)),
    counted(path("alloc, full sheaf from the barn", |b| hold(b, 6, 6), |b| b.take(1)), Stat::BarnGet),
    path("alloc, sheaf and slab are new", |_| true, |b| b.take(1)),
    counted(path("alloc, refill from partial slabs", scattered, |b| b.take(1)), Stat::SheafRefill),
    bare(path("alloc from a partial slab", |b| takes(b, 1), |b| b.take(1))),
    bare(counted(path("alloc from a new slab", |_| true, |b| b.take(1)), Stat::AllocSlab)),
    path("free into main", |b| takes(b, 1), |b| b.give(1)),
    path("free, spare becomes main", |b| hold(b, 2, 1), |b| b.give(1)),
    counted(path("free, full sheaf into the barn", |b| hold(b, 4, 4) && hold(b, 4, 0), |b| b.give(1)), Stat::BarnPut),
    counted(path("free, sheaf is new", |b| hold(b, 3, 0), |b| b.give(1)), Stat::SheafAlloc),
    counted(path("free, barn refuses, spare is flushed", |b| hold(b, 20, 0), |b| b.give(1)), Stat::BarnPutFail),
    path("free of another node's object", |b| b.take_on_another_node(1), |b| b.give(1)),
    path("free of more of them", |b| b.take_on_another_node(2) && gives(b, 1), |b| b.give(1)),
    path(
        "free, other node's full sheaf goes home",
        |b| b.take_on_another_node(b.capacity()) && gives(b, b.capacity() - 1),
        |b| b.give(1),
    ),
    bare(counted(path("free, full slab becomes partial", |b| takes(b, 40), |b| b.give(1)), Stat::FreeAddPartial)),
    bare(path("free, partial slab becomes empty and stays", |b| takes(b, 1), |b| b.give(1))),
    bare(counted(path("free, pages go back", |b| takes(b, 150), |b| b.give(1)), Stat::FreeSlab)),
    path("prefill from the spare, and back", |b| hold(b, 2, 0), |b| drop(b.cache.prefill(4, AllocFlags::NOWARN))),
    path("prefill of a new sheaf, and back", |_| true, |b| drop(b.cache.prefill(40, AllocFlags::NOWARN))),
    path("bulk alloc and free", |b| hold(b, 2, 2), |b| bulk(b.cache)),
    path("flush of the barns", |b| hold(b, 4, 4), |b| _ = b.cache.flush_barns()),
    path("kfree_rcu, sheaf is new", |b| takes(b, 1), |b| b.give_rcu(1)),
    path("kfree_rcu into the sheaf", |b| takes(b, 2) && gives_rcu(b, 1), |b| b.give_rcu(1)),
    path("kfree_rcu, full sheaf goes to RCU", |b| hold(b, 1, 0) && gives_rcu(b, b.capacity() - 1), |b| b.give_rcu(1)),
    bare(path("kfree_rcu of a cache without sheaves", |b| takes(b, 1), |b| b.give_rcu(1))),
    bare(path("kfree_rcu of a large object", |_| true, |_| large_given_up())),
    path("nolock, free into main", |b| takes(b, 1), |b| b.give_nolock(1)),
    path("nolock, kfree_rcu", |b| takes(b, 1), |b| b.give_rcu_nolock(1)),
    bare(path("nolock, free is deferred", |b| takes(b, 1), |b| b.give_nolock(1))),
    bare(path("nolock, kfree_rcu is deferred", |b| takes(b, 1), |b| b.give_rcu_nolock(1))),
    bare(path("nolock, drain of what was deferred", deferred, |_| drained())),
    bare(path("pages, list of the CPU is refilled", |_| emptied(), |b| b.take_pages(1, 0))),
    bare(path("pages, list of the CPU runs over", |b| emptied() && paged(b, 130, 96), |b| b.give_pages(1))),
    bare(path("pages, block too large for lists", |_| true, |b| b.take_pages(1, 5))),
    bare(path(
        "pages, large block goes back",
        |b| {
            b.take_pages(1, 5);
            true
        },
        |b| b.give_pages(1),
    )),
    path("pages, kmalloc and kfree of a large object", |_| true, |_| large_object()),
];

/// `count` objects came and went.
fn had(b: &mut Bed, count: usize) -> bool {
    b.take(count);
    b.give(count);
    true
}

fn takes(b: &mut Bed, count: usize) -> bool {
    b.take(count);
    true
}

fn gives(b: &mut Bed, count: usize) -> bool {
    b.give(count);
    true
}

fn gives_rcu(b: &mut Bed, count: usize) -> bool {
    b.give_rcu(count);
    true
}

/// Takes `sheaves` sheaves' worth of objects, and frees `back` of them.
fn hold(b: &mut Bed, sheaves: usize, back: usize) -> bool {
    b.take(sheaves * b.capacity());
    b.give(back * b.capacity());
    true
}

/// Free objects are in partial slabs and nowhere else.
fn scattered(b: &mut Bed) -> bool {
    hold(b, 8, 4);
    b.cache.shrink();
    true
}

/// Interrupts, which drain what was deferred, are off for a moment: so it is drained where it is asked for.
fn deferred(b: &mut Bed) -> bool {
    b.take(4);
    b.give_nolock(2);
    b.give_rcu_nolock(2);
    true
}

fn drained() {
    sync::smp::run_on(cpu::current(), slab::deferred::drain_here);
}

fn emptied() -> bool {
    mm::drain_local();
    true
}

fn paged(b: &mut Bed, count: usize, back: usize) -> bool {
    b.take_pages(count, 0);
    b.give_pages(back);
    true
}

fn bulk(cache: &RawCache) {
    let mut places = [MaybeUninit::uninit(); 30];
    if let Some(objects) = cache.alloc_bulk(&mut places, AllocFlags::NOWARN) {
        // SAFETY: just allocated from the cache, and given up here.
        unsafe { cache.free_bulk(objects) };
    }
}

fn large_given_up() {
    if let Some(object) = slab::kmalloc(20_000, AllocFlags::NOWARN) {
        // SAFETY: allocated here, and given up; a head lies in it.
        unsafe { kfree_rcu(object.add(HEAD).cast()) };
    }
}

fn large_object() {
    if let Some(object) = slab::kmalloc(20_000, AllocFlags::NOWARN) {
        // SAFETY: allocated here.
        unsafe { slab::kfree(object) };
    }
}
