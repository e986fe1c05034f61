//! Merging: one cache for several users whose layouts are alike.
//!
//! [`create`](crate::create) hands out an existing cache where a new one would be just like it: its objects then share slabs,
//! sheaves and counters, and partly filled slabs are fewer. Each `create` is one *user*, and each
//! [`destroy`](crate::flush::destroy) takes one away; only the last one destroys. The cache goes by the name of its first
//! user; those of the others are kept as its *aliases*, also when the users are gone, for as long as the cache lives.
//!
//! | | alike if |
//! |---|---|
//! | place of an object | both have the same bytes from one object to the next: these decide the alignment, too |
//! | hardening | equal |
//! | flags | equal, but for HWCACHE_ALIGN, which is in the size already, and PANIC |
//! | sheaves | the existing cache's capacity is at least what the new one would get |
//! | neither has | a constructor, debugging, or one of TYPESAFE_BY_RCU, NO_MERGE, KMALLOC, NO_SHEAVES |
//!
//! The `kmalloc` classes are left out, so that their figures are those of `kmalloc`, and an object of a cache that goes to the
//! wrong free is noticed. (Linux leaves them out where it checks copies to user space, and merges with them elsewhere.)
//!
//! What is tuned on a merged cache is tuned for all of its users. `slab_nomerge` on the command line switches merging off.
//!
//! # Invariants
//! - **MERGE-1** The count of users changes under the lock of the list of caches, and a cache without users is not on the
//!   list: so nobody is handed a cache that is being destroyed.
//! - **MERGE-2** Names are only added while the cache lives, under that lock; they are read without.
//!
//! Answers to `find_mergeable` and `__kmem_cache_alias` in Linux `mm/slab_common.c` and `mm/slub.c` (7.x).

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use mm::AllocFlags;

use crate::cache::{CacheFlags, RawCache};
use crate::kbox::KBox;
use crate::registry;

sync::param! {
    /// Gives every cache slabs of its own, also where another one is just like it.
    static NOMERGE: bool = "slab_nomerge", default false;
}

/// A cache that has one of these shares with nobody.
const ALONE: CacheFlags =
    CacheFlags::TYPESAFE_BY_RCU.union(CacheFlags::NO_MERGE).union(CacheFlags::KMALLOC).union(CacheFlags::NO_SHEAVES);

/// Flags that say nothing about the objects that is not in their size.
const INDIFFERENT: CacheFlags = CacheFlags::HWCACHE_ALIGN.union(CacheFlags::PANIC);

/// A name by which a user knows the cache.
struct Alias {
    name: &'static str,
    next: *mut Alias,
}

/// Who shares a cache.
pub(crate) struct Sharing {
    /// Calls of `create` minus calls of `destroy` (MERGE-1).
    users: AtomicU32,
    /// The names but for the cache's own, newest first (MERGE-2).
    names: AtomicPtr<Alias>,
}

impl Sharing {
    /// One user.
    pub(crate) const fn new() -> Self {
        Self { users: AtomicU32::new(1), names: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Takes one user away unless it is the last; then false. Under the lock of the list of caches.
    pub(crate) fn leave(&self) -> bool {
        let users = self.users.load(Relaxed);
        if users == 1 {
            return false;
        }
        self.users.store(users - 1, Relaxed);
        true
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        // Acquire, with the release in `join`: the record is complete.
        let mut here = self.names.load(Acquire);
        core::iter::from_fn(move || {
            // SAFETY: null, or a record that lives as long as the cache (MERGE-2), which the caller refers to.
            let alias = unsafe { here.as_ref() }?;
            here = alias.next;
            Some(alias.name)
        })
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        let mut here = *self.names.get_mut();
        while let Some(alias) = NonNull::new(here) {
            // SAFETY: records come from `KBox::into_raw` in `join`, and each is on one list once.
            here = unsafe { KBox::from_raw(alias) }.next;
        }
    }
}

impl RawCache {
    /// Users of this cache beyond the first (M-17).
    pub fn aliases(&self) -> usize {
        self.sharing.users.load(Relaxed) as usize - 1
    }

    /// The names, but for its own, by which this cache was ever asked for.
    pub fn alias_names(&self) -> impl Iterator<Item = &'static str> {
        self.sharing.names()
    }

    /// Whether some user knows the cache by `name`.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name() == name || self.alias_names().any(|alias| alias == name)
    }

    fn may_share(&self) -> bool {
        self.ctor().is_none() && !self.flags().intersects(ALONE) && self.debug().is_empty()
    }

    /// Whether objects of `new` can as well be objects of this cache.
    fn suits(&self, new: &RawCache) -> bool {
        self.may_share()
            && self.size() == new.size()
            && self.harden() == new.harden()
            && self.flags() - INDIFFERENT == new.flags() - INDIFFERENT
            && self.sheaf_capacity() >= new.sheaf_capacity()
    }

    /// Makes the user who wanted `new` a user of this cache. Under the lock of the list of caches.
    fn join(&self, new: &RawCache, record: &mut Option<KBox<Alias>>) {
        let users = &self.sharing.users;
        users.store(users.load(Relaxed) + 1, Relaxed);
        self.raise_object_size(new.object_size());
        if self.is_called(new.name()) {
            return;
        }
        let Some(mut alias) = record.take() else { return };
        alias.next = self.sharing.names.load(Relaxed);
        // Release, with the acquire in `names`.
        self.sharing.names.store(KBox::into_raw(alias).as_ptr(), Release);
    }
}

/// An existing cache to use instead of `new`, of which the caller is then a user; nothing if there is none.
///
/// Context: any but NMI.
pub(crate) fn instead_of(new: &RawCache) -> Option<&'static RawCache> {
    if NOMERGE.get() || !new.may_share() {
        return None;
    }
    let mut record = KBox::try_new(Alias { name: new.name(), next: ptr::null_mut() }, AllocFlags::NOWAIT).ok();
    record.as_ref()?;
    let mut found = None;
    registry::for_each(|cache| {
        if found.is_none() && cache.suits(new) {
            cache.join(new, &mut record);
            found = Some(cache);
        }
    });
    found
}
