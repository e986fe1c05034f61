//! Objects that go from context to context: taken in one, freed in another, through places that an NMI can use.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use mm::AllocFlags;
use slab::{CacheFlags, Layout, RawCache};
use sync::{MaySleep, Rng};

use crate::torture::contexts::{Acts, Context, Contexts};
use crate::torture::{Stat, control};
use crate::yard::account;
use crate::{Failure, ensure_eq};

/// Bytes of an object, in the cache or of `kmalloc`.
const SIZE: usize = 200;
const PLACES: usize = 64;

static CONTEXTS: Contexts<Pit> = Contexts::new("slab-torture");
static CACHE: AtomicPtr<RawCache> = AtomicPtr::new(ptr::null_mut());
static OBJECTS: [AtomicPtr<u8>; PLACES] = [const { AtomicPtr::new(ptr::null_mut()) }; PLACES];
static TAKEN: AtomicU64 = AtomicU64::new(0);
static MISSES: AtomicU64 = AtomicU64::new(0);
static DAMAGED: AtomicU64 = AtomicU64::new(0);

struct Pit;

impl Acts for Pit {
    fn act(context: Context, rng: &mut Rng) {
        act(context == Context::Nmi, rng);
    }

    fn contexts() -> &'static Contexts<Self> {
        &CONTEXTS
    }
}

/// What word `word` of an object holds while it is in use.
fn word_of(object: NonNull<u8>, word: usize) -> u64 {
    !(object.addr().get() as u64) ^ word as u64
}

fn cache() -> &'static RawCache {
    // SAFETY: set by `begin` to a cache that lives until `end`, when nobody comes here any more.
    unsafe { CACHE.load(Relaxed).as_ref() }.expect("a run is on")
}

/// A fresh object, filled.
fn take(nolock: bool, rng: &mut Rng) -> Option<NonNull<u8>> {
    let object = match (nolock || rng.chance(1, 4), rng.chance(1, 4)) {
        (false, false) => cache().alloc(AllocFlags::NOWARN),
        (false, true) => slab::kmalloc(SIZE, AllocFlags::NOWARN),
        (true, false) => cache().alloc_nolock(AllocFlags::NOWARN),
        (true, true) => slab::kmalloc_nolock(SIZE, AllocFlags::NOWARN),
    };
    let counter = if object.is_some() { &TAKEN } else { &MISSES };
    counter.fetch_add(1, Relaxed);
    let object = object?;
    for word in 0..SIZE / 8 {
        // SAFETY: a fresh object of SIZE bytes, which nobody else knows.
        unsafe { object.cast::<u64>().add(word).write_volatile(word_of(object, word)) };
    }
    Some(object)
}

fn free(object: NonNull<u8>, nolock: bool) {
    // SAFETY: it was in a place, and is ours since we took it from there.
    let is_whole = |word| unsafe { object.cast::<u64>().add(word).read_volatile() } == word_of(object, word);
    if !(0..SIZE / 8).all(is_whole) {
        DAMAGED.fetch_add(1, Relaxed);
    }
    match nolock {
        // SAFETY: as above, and given up here; as below.
        true => unsafe { slab::kfree_nolock(object) },
        // SAFETY: as above.
        false => unsafe { slab::kfree(object) },
    }
}

/// Puts a fresh object, or none, into a place, and frees what was there.
fn act(nolock: bool, rng: &mut Rng) {
    let new = if rng.chance(3, 4) { take(nolock, rng) } else { None };
    let new = new.map_or(ptr::null_mut(), NonNull::as_ptr);
    // Release: pairs with the acquire of who takes it from here: the content is there. Acquire: with the release of who put the
    // old one here.
    let old = OBJECTS[rng.index(PLACES)].swap(new, AcqRel);
    if let Some(old) = NonNull::new(old) {
        free(old, nolock || rng.chance(1, 4));
    }
}

/// The same in a thread.
pub(super) fn act_in_thread(rng: &mut Rng) {
    act(false, rng);
}

pub(super) fn begin(seed: u64) -> Result<(), Failure> {
    let layout = Layout::new("torture-pit", SIZE).flags(CacheFlags::NO_MERGE);
    let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
    CACHE.store(ptr::from_ref(cache).cast_mut(), Relaxed);
    [&TAKEN, &MISSES, &DAMAGED].into_iter().for_each(|count| count.store(0, Relaxed));
    CONTEXTS.begin(seed);
    Ok(())
}

/// Has all contexts act until the run ends.
pub(super) fn send(mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    while !control::stutter(cx) {
        for _ in 0..4 {
            CONTEXTS.send(&mut rng, cx);
        }
        sched::sleep_ns(cx, rng.below(400_000));
    }
    Ok(())
}

pub(super) fn stat(out: &mut Stat) {
    CONTEXTS.stat(out);
    out.work("taken", TAKEN.load(Relaxed));
    out.count("misses", MISSES.load(Relaxed));
    out.error("mixed", DAMAGED.load(Relaxed));
}

/// Frees what is left, and accounts for everything. Threads have ended.
pub(super) fn end(cx: &mut MaySleep) -> Result<(), Failure> {
    CONTEXTS.end(cx);
    for place in &OBJECTS {
        // Acquire: as in `act`.
        NonNull::new(place.swap(ptr::null_mut(), Acquire)).into_iter().for_each(|object| free(object, false));
    }
    slab::deferred::flush(&sched::keep_cpus(cx), cx);
    account(cache())?;
    // SAFETY: nobody but this module knows the cache, and nobody comes here any more.
    ensure_eq!(unsafe { slab::flush::destroy(cache(), cx) }, Ok(()), "the pit");
    Ok(())
}
