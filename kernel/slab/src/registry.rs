//! The list of all caches.

use core::ptr;
use core::sync::atomic::Ordering::Relaxed;

use sched::Mutex;
use sched::hotplug::keep_cpus;
use sync::{ATOMIC, LockClass, MaySleep, SpinIrqGuard, SpinLock, hook};

use crate::cache::RawCache;

/// Outermost of the slab locks but for the CPU-hotplug lock (M-10); held for the links only.
static CLASS: LockClass = LockClass::new("slab.caches").rank(700);

/// Whoever walks the list with [`CACHES`] dropped holds this, and whoever takes a cache off it: so a cache that a walk has
/// come to stays until the walk is over. Outside of all locks but for CPU hotplug (M-10).
static WALK_CLASS: LockClass = LockClass::new("slab.walk");
static WALK: Mutex<()> = Mutex::new((), &WALK_CLASS);

/// First cache, newest first.
struct Head(*mut RawCache);

// SAFETY: the list links caches, which belong to no CPU, and is under its lock.
unsafe impl Send for Head {}

static CACHES: SpinLock<Head> = SpinLock::new(Head(ptr::null_mut()), &CLASS);

fn lock() -> SpinIrqGuard<'static, Head> {
    let head = CACHES.lock_irqsave(ATOMIC);
    hook!("slab.caches");
    head
}

/// Puts a complete cache on the list.
pub(crate) fn add(cache: &'static RawCache) {
    let mut head = lock();
    cache.next.store(head.0, Relaxed);
    head.0 = ptr::from_ref(cache).cast_mut();
}

/// Takes a cache off the list if it has but one user, and waits for walks that may have come to it; else takes one user
/// away and returns false (MERGE-1).
///
/// Context: task; sleeps.
pub(crate) fn remove(cache: &'static RawCache, cx: &mut MaySleep) -> bool {
    let _walk = WALK.lock(cx);
    let mut head = lock();
    if cache.sharing.leave() {
        return false;
    }
    if ptr::eq(head.0, cache) {
        head.0 = cache.next.load(Relaxed);
        return true;
    }
    let mut here = head.0;
    // SAFETY: every cache on the list is alive: it is taken off, under this lock, before it is destroyed.
    while let Some(other) = unsafe { here.as_ref() } {
        if ptr::eq(other.next.load(Relaxed), cache) {
            other.next.store(cache.next.load(Relaxed), Relaxed);
            break;
        }
        here = other.next.load(Relaxed);
    }
    true
}

/// Calls `f` for every cache, newest first, with the list locked.
///
/// Context: any but NMI. `f` must not make or destroy a cache.
pub fn for_each(mut f: impl FnMut(&'static RawCache)) {
    let head = lock();
    let mut here = head.0;
    // SAFETY: as in `remove`.
    while let Some(cache) = unsafe { here.as_ref() } {
        f(cache);
        here = cache.next.load(Relaxed);
    }
}

/// Calls `f` for every cache with no spin lock held, so `f` may call other CPUs. Caches that are made meanwhile are not
/// seen; who destroys one waits.
///
/// Context: task; sleeps.
pub fn for_each_unlocked(cx: &mut MaySleep, mut f: impl FnMut(&'static RawCache)) {
    let _walk = WALK.lock(cx);
    let mut here = lock().0;
    // SAFETY: as in `remove`; the mutex keeps those alive that were on the list when it was taken.
    while let Some(cache) = unsafe { here.as_ref() } {
        f(cache);
        here = cache.next.load(Relaxed);
    }
}

/// Calls `f` for every cache as [`with`] does for one.
///
/// Context: as [`with`].
pub(crate) fn for_each_with(cx: &mut MaySleep, mut f: impl FnMut(&'static RawCache, &mut MaySleep)) {
    let _cpus = keep_cpus(cx);
    let _walk = WALK.lock(cx);
    let mut here = lock().0;
    // SAFETY: as in `for_each_unlocked`.
    while let Some(cache) = unsafe { here.as_ref() } {
        f(cache, cx);
        here = cache.next.load(Relaxed);
    }
}

/// Calls `f` for the cache of that name, which stays meanwhile, and nothing if there is none. No CPU comes or goes meanwhile
/// either, so `f` may use all of [`tune`](crate::tune).
///
/// Context: task; sleeps. `f` must not destroy a cache, nor allocate with MAY_SLEEP.
pub fn with<R>(name: &str, cx: &mut MaySleep, f: impl FnOnce(&'static RawCache, &mut MaySleep) -> R) -> Option<R> {
    let _cpus = keep_cpus(cx);
    let _walk = WALK.lock(cx);
    find(name).map(|cache| f(cache, cx))
}

/// The cache of that name, or with that alias. Who destroys it does not wait: see [`with`].
pub fn find(name: &str) -> Option<&'static RawCache> {
    let mut found: Option<&'static RawCache> = None;
    for_each(|cache| {
        if cache.name() == name || (found.is_none() && cache.is_called(name)) {
            found = Some(cache);
        }
    });
    found
}
