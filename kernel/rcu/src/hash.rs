//! [`RcuHashMap`]: a hash table whose readers take no lock, and which changes its size under them.
//!
//! ```no_run
//! use grange_rcu::{HashNode, RcuBox, RcuHashMap, read_lock};
//! use sync::LockClass;
//!
//! static CLASS: LockClass = LockClass::new("sessions");
//!
//! fn thread(cx: &mut sync::MaySleep) -> Result<(), grange_rcu::NoMemory> {
//!     let sessions: RcuHashMap<u64, &str> = RcuHashMap::try_new(64, &CLASS)?;
//!     assert!(sessions.insert(RcuBox::new(HashNode::new(7, "seven"))).is_ok());
//!     assert_eq!(sessions.get(&7, &read_lock(cx)), Some(&"seven"));
//!     if sessions.is_crowded() {
//!         sessions.resize(2 * sessions.buckets(), cx)?;
//!     }
//!     if let Some(old) = sessions.remove(&7) {
//!         old.retire();
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Buckets and stripes
//!
//! The low bits of a key's hash choose its bucket, a chain of entries. Updaters lock one of [`STRIPES`] spin locks, chosen
//! by the lowest bits: as a table has at least that many buckets and a power of two of them, the stripe of a key is the same
//! in tables of every size, and so one lock keeps order in a key's bucket of the old and of the new table.
//!
//! # Changing the size
//!
//! An entry has two links. The tables that follow one another use them in turn, so an entry can be on chains of two tables:
//!
//! 1. [`RcuHashMap::resize`] makes the new table; each stripe gets to know it.
//! 2. Bucket by bucket of the old table, under the stripe's lock, it puts the entries on the chains of the new one, by their
//!    other link. Whoever changes a bucket that has been copied changes both tables.
//! 3. It publishes the new table for readers, who from here on find it complete.
//! 4. Stripe by stripe updaters let go of the old table.
//! 5. After a grace period nobody is on the way through the old table: it is freed, and its link is free to be used by the
//!    next one.
//!
//! Readers follow one table and one link of each entry from start to end; they do not know that any of this exists, and none of
//! it waits for them but step 5. An updater waits while one bucket is copied.
//!
//! An entry that is removed after step 4 stays on its old chain. Who finds it there has found the old table, before step 3,
//! and so began before the entry's own grace period (HASH-3).
//!
//! Invariants
//! - HASH-1: chains are written under the lock of their stripe. An entry is on a chain of the stripe of its key.
//! - HASH-2: under its lock a stripe's entries are on their chains of `now`; those of the first `copied` buckets also on their
//!   chains of `next`, and `next` is null if there is no other table.
//! - HASH-3: an entry is taken off all chains that readers who begin from now on can find, before it is given away.
//! - HASH-4: a table lives until a grace period has passed since neither `table` nor a stripe points to it.
//!
//! Contexts: looking up any, NMI included; updating any but NMI, under a spin lock with interrupts off, in which nothing is
//! allocated or freed; resizing in a task, sleeps. `Hash` and `Eq` of the keys run inside readers and under the lock, so they do
//! not use the map. Answers to Linux lib/rhashtable.c, which changes its size by itself, in a work item.

mod stripe;
mod table;
#[cfg(test)]
mod tests;

use core::borrow::Borrow;
use core::fmt;
use core::hash::{BuildHasher, Hash};
use core::ops::Deref;
use core::ptr;

use rustc_hash::FxBuildHasher;
use sched::Mutex;
use sync::{ATOMIC, LockClass, MaySleep, SpinIrqGuard};

use crate::boxed::{RcuBox, Retired};
use crate::link::Link;
use crate::reader::RcuReadGuard;
use stripe::{Stripe, Tables};
use table::{Table, TableIter};

/// Locks of a map: as many updaters can be at work at once. A power of two.
pub const STRIPES: usize = 16;

/// Entries for a bucket above which a map is crowded.
const CROWDED: usize = 2;

/// A map that resizes holds this lock of its own, across sleeps; a stripe's lock and the grace period are inside.
static RESIZE_CLASS: LockClass = LockClass::new("rcu.hash_resize");

/// There is no memory for so many buckets.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory for the buckets of a hash table")
    }
}

/// An entry of a map.
pub struct HashNode<K, V> {
    /// The next entry's of the chain, by the table's `link` (HASH-1).
    links: [Link<HashNode<K, V>>; 2],
    key: K,
    value: V,
}

impl<K, V> HashNode<K, V> {
    /// An entry that is in no map.
    pub const fn new(key: K, value: V) -> Self {
        HashNode { links: [const { Link::null() }; 2], key, value }
    }

    /// Its key.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Key and value, without their entry.
    pub fn into_inner(self) -> (K, V) {
        (self.key, self.value)
    }
}

/// To the value.
impl<K, V> Deref for HashNode<K, V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.value
    }
}

/// A map; see the [module](self).
pub struct RcuHashMap<K: Send + Sync + 'static, V: Send + Sync + 'static, S = FxBuildHasher> {
    /// What readers use: never null, written by `resize` only. The map owns it.
    table: Link<Table<K, V>>,
    stripes: [Stripe<K, V>; STRIPES],
    hasher: S,
    /// Held by the one that resizes.
    resizing: Mutex<()>,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> RcuHashMap<K, V> {
    /// An empty map of at least so many buckets, whose locks are of `class`. Context: where the global allocator may be used.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn try_new(buckets: usize, class: &'static LockClass) -> Result<Self, NoMemory> {
        Self::try_with_hasher(buckets, class, FxBuildHasher)
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static, S> RcuHashMap<K, V, S> {
    /// As [`try_new`](RcuHashMap::try_new), with a hash function. Its low bits have to be good ones.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn try_with_hasher(buckets: usize, class: &'static LockClass, hasher: S) -> Result<Self, NoMemory> {
        let table = Table::boxed(buckets, 0)?.into_raw();
        Ok(RcuHashMap {
            table: Link::new(table),
            stripes: core::array::from_fn(|_| Stripe::new(table, class)),
            hasher,
            resizing: Mutex::new((), &RESIZE_CLASS),
        })
    }

    /// The table for readers that begin now.
    ///
    /// # Safety
    /// As [`Link::follow`].
    #[inline]
    unsafe fn now<'g>(&self) -> &'g Table<K, V> {
        // SAFETY: HASH-4; the rest by the caller. Never null.
        unsafe { self.table.follow().unwrap_unchecked() }
    }

    /// How many buckets it has.
    pub fn buckets(&self) -> usize {
        let _reader = crate::read_lock(ATOMIC);
        // SAFETY: in a reader.
        unsafe { self.now() }.buckets()
    }

    /// How many entries it has; others may be adding and removing some.
    pub fn len(&self) -> usize {
        self.stripes.iter().map(Stripe::len).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it has more entries for each bucket than is good for those who look for one.
    pub fn is_crowded(&self) -> bool {
        self.len() > CROWDED * self.buckets()
    }

    /// All entries, bucket by bucket, in no order, for as long as the reader lives. What is inserted or removed meanwhile is
    /// seen or not. Context: any.
    pub fn iter<'g>(&'g self, _reader: &'g RcuReadGuard<'_>) -> HashIter<'g, K, V> {
        // SAFETY: in a reader, which lasts for 'g.
        HashIter(unsafe { self.now() }.iter())
    }
}

impl<K: Hash + Eq + Send + Sync + 'static, V: Send + Sync + 'static, S: BuildHasher> RcuHashMap<K, V, S> {
    /// The value of `key`, for as long as the reader lives. Context: any.
    #[inline]
    pub fn get<'g, Q: Hash + Eq + ?Sized>(&'g self, key: &Q, _reader: &'g RcuReadGuard<'_>) -> Option<&'g V>
    where
        K: Borrow<Q>,
    {
        // SAFETY: in a reader, which lasts for 'g.
        let table: &'g Table<K, V> = unsafe { self.now() };
        let mut at = table.bucket(self.hasher.hash_one(key) as usize);
        loop {
            // SAFETY: LINK-1, in a reader (HASH-3).
            let node: &'g HashNode<K, V> = unsafe { at.follow() }?;
            if node.key.borrow() == key {
                return Some(&node.value);
            }
            at = table.link_of(node);
        }
    }

    /// Adds an entry, unless its key has one. Context: any but NMI.
    ///
    /// # Errors
    /// `node`: its key has an entry.
    pub fn insert(&self, node: RcuBox<HashNode<K, V>>) -> Result<(), RcuBox<HashNode<K, V>>> {
        let (hash, stripe, mut tables) = self.lock_stripe(&node.key);
        if tables.find(hash, &node.key).is_some() {
            return Err(node);
        }
        tables.add(hash, node.into_raw());
        stripe.added();
        Ok(())
    }

    /// Adds an entry, in the place of the one that its key has. Context: any but NMI.
    pub fn replace(&self, node: RcuBox<HashNode<K, V>>) -> Option<Retired<HashNode<K, V>>> {
        let (hash, stripe, mut tables) = self.lock_stripe(&node.key);
        let Some(old) = tables.find(hash, &node.key) else {
            tables.add(hash, node.into_raw());
            stripe.added();
            return None;
        };
        tables.exchange(hash, old, node.into_raw());
        // SAFETY: HASH-3: it is off the chains of the stripe's tables.
        Some(unsafe { Retired::new(old) })
    }

    /// Takes the entry of `key` out. Context: any but NMI.
    pub fn remove<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<Retired<HashNode<K, V>>>
    where
        K: Borrow<Q>,
    {
        let (hash, stripe, mut tables) = self.lock_stripe(key);
        let old = tables.find(hash, key)?;
        tables.take(hash, old);
        stripe.removed();
        // SAFETY: HASH-3, as in `replace`.
        Some(unsafe { Retired::new(old) })
    }

    /// The hash of `key`, and what its updaters need.
    fn lock_stripe<Q: Hash + ?Sized>(&self, key: &Q) -> (usize, &Stripe<K, V>, SpinIrqGuard<'_, Tables<K, V>>) {
        let hash = self.hasher.hash_one(key) as usize;
        let stripe = &self.stripes[hash % STRIPES];
        (hash, stripe, stripe.lock())
    }

    /// Gives the map at least so many buckets, more or fewer than it has. See the [module](self).
    ///
    /// Context: task, sleeps. Readers and updaters go on meanwhile.
    ///
    /// # Errors
    /// [`NoMemory`]; the map is as before.
    pub fn resize(&self, buckets: usize, cx: &mut MaySleep) -> Result<(), NoMemory> {
        let _turn = self.resizing.lock(cx);
        // SAFETY: tables are replaced by the holder of `resizing`.
        let now = unsafe { self.now() };
        let new = Table::boxed(buckets, now.other_link())?.into_raw();
        for first in 0..STRIPES {
            self.stripes[first].lock().begin_copy(new);
            for bucket in (first..now.buckets()).step_by(STRIPES) {
                self.stripes[first].lock().copy(bucket, |key| self.hasher.hash_one(key) as usize);
                sched::cond_resched(cx);
            }
        }
        let old = self.table.swap(new);
        for stripe in &self.stripes {
            stripe.lock().end_copy();
        }
        let old = ptr::NonNull::new(old).expect("a map has a table");
        // SAFETY: HASH-4: readers that begin now find the new table, and so do updaters.
        drop(unsafe { Retired::new(old) }.synchronize(cx));
        Ok(())
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static, S> Drop for RcuHashMap<K, V, S> {
    /// Frees all that is left at once: readers borrow the map, so there are none.
    fn drop(&mut self) {
        // SAFETY: nobody else uses the map, so neither the table nor an entry goes away but here.
        unsafe { self.now() }.free_entries();
        // SAFETY: it was made by `Table::boxed`, and the map goes.
        drop(unsafe { RcuBox::from_raw(self.table.get()) });
    }
}

/// A reader's way through a map: keys and values.
pub struct HashIter<'g, K, V>(TableIter<'g, K, V>);

impl<'g, K, V> Iterator for HashIter<'g, K, V> {
    type Item = (&'g K, &'g V);

    fn next(&mut self) -> Option<Self::Item> {
        // SAFETY: made by `RcuHashMap::iter` from a reader that lasts for 'g.
        unsafe { self.0.next() }.map(|node| (&node.key, &node.value))
    }
}
