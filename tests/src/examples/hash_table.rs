//! A hash table that readers search without a lock, and whose nodes are freed by `kfree_rcu`.
//!
//! - A reader holds an [`RcuReadGuard`]: what it finds stays until the guard goes. It takes no lock and never waits.
//! - An updater holds the table's lock. It makes a node ready *before* it links it, by a store with Release; and it gives an
//!   old node up *after* it has unlinked it, by [`kfree_rcu_owned`]: readers that still look at it keep it from being freed.
//! - Nothing waits for a grace period, neither readers nor updaters. A node pays 8 bytes for that, its [`RcuPtr`].
//!
//! A value is changed by a new node in the place of the old one, so a reader finds the old value or the new one, whole.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu_owned};
use mm::AllocFlags;
use rcu::{RcuReadGuard, read_lock};
use slab::typed::{Cache, CacheBox, TypedLayout};
use slab::{CacheFlags, OutOfMemory};
use sync::{ATOMIC, LockClass, MaySleep, Rng, SpinLock};

use crate::together::spawn;
use crate::{ensure, ensure_eq, ktest};

const BUCKETS: usize = 64;

static CLASS: LockClass = LockClass::new("example.hash_table");

/// An entry. Constant once it is linked, but for `next`.
struct Node {
    key: u64,
    value: u64,
    next: AtomicPtr<Node>,
    rcu: RcuPtr,
}

has_rcu_ptr!(Node, rcu);

/// The table. Its nodes are of a cache that it borrows, so they are gone before the cache is.
struct Table<'c> {
    nodes: &'c Cache<Node>,
    /// Each the first link of a chain of nodes that the table owns. Written under the lock, followed by readers.
    buckets: [AtomicPtr<Node>; BUCKETS],
    /// Keeps updaters from one another; inside it the allocator.
    updating: SpinLock<()>,
}

impl<'c> Table<'c> {
    fn new(nodes: &'c Cache<Node>) -> Self {
        let buckets = [const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS];
        Self { nodes, buckets, updating: SpinLock::new((), &CLASS) }
    }

    /// The value of `key` now.
    fn get(&self, key: u64, _reader: &RcuReadGuard<'_>) -> Option<u64> {
        let mut at = &self.buckets[bucket_of(key)];
        // Acquire: pairs with the Release in `put`: the node is seen as it was made.
        // SAFETY: linked when it was found, so it is not freed before a grace period that begins later than the reader.
        while let Some(node) = unsafe { at.load(Acquire).as_ref() } {
            if node.key == key {
                return Some(node.value);
            }
            at = &node.next;
        }
        None
    }

    /// Gives `key` the value, whether it had one or not.
    fn put(&self, key: u64, value: u64) -> Result<(), OutOfMemory<()>> {
        let node = Node { key, value, next: AtomicPtr::new(ptr::null_mut()), rcu: RcuPtr::new() };
        let new = self.nodes.alloc(node, AllocFlags::NOWAIT).map_err(|_| OutOfMemory(()))?;
        let _updating = self.updating.lock_irqsave(ATOMIC);
        let (link, old) = self.find(key);
        let behind = old.map_or(ptr::null_mut(), |old| {
            // SAFETY: linked, and nobody unlinks it: we have the lock.
            unsafe { old.as_ref() }.next.load(Relaxed)
        });
        new.next.store(behind, Relaxed);
        // Release: pairs with the Acquire in `get`.
        link.store(CacheBox::into_raw(new).as_ptr(), Release);
        self.give_up(old);
        Ok(())
    }

    /// Takes `key` out; whether it was there.
    fn remove(&self, key: u64) -> bool {
        let _updating = self.updating.lock_irqsave(ATOMIC);
        let (link, old) = self.find(key);
        if let Some(old) = old {
            // SAFETY: linked, and nobody else unlinks it.
            // Release: what is behind was made by another updater, perhaps; pairs with the Acquire in `get`.
            link.store(unsafe { old.as_ref() }.next.load(Relaxed), Release);
        }
        self.give_up(old);
        old.is_some()
    }

    /// The link to the node of `key`, and that node; else the last link of its chain. The lock is held.
    fn find(&self, key: u64) -> (&AtomicPtr<Node>, Option<NonNull<Node>>) {
        let mut at = &self.buckets[bucket_of(key)];
        loop {
            let Some(node) = NonNull::new(at.load(Relaxed)) else { return (at, None) };
            // SAFETY: linked, and nobody unlinks it: the lock is held.
            let found = unsafe { node.as_ref() };
            if found.key == key {
                return (at, Some(node));
            }
            at = &found.next;
        }
    }

    /// Frees a node that was just unlinked, once nobody can be reading it.
    fn give_up(&self, old: Option<NonNull<Node>>) {
        if let Some(old) = old {
            // SAFETY: from `into_raw` of a box of this cache, and no link points to it any more.
            kfree_rcu_owned(unsafe { CacheBox::from_raw(old, self.nodes) });
        }
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        for bucket in &self.buckets {
            while let Some(node) = NonNull::new(bucket.load(Relaxed)) {
                // SAFETY: the table is borrowed by nobody, so there are neither readers nor updaters.
                bucket.store(unsafe { node.as_ref() }.next.load(Relaxed), Relaxed);
                self.give_up(Some(node));
            }
        }
    }
}

/// Few keys share a bucket, but some do.
fn bucket_of(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BUCKETS.ilog2())) as usize
}

/// Keys that the test uses: several a bucket.
const KEYS: u64 = 200;

/// Updates at random; every value names its key.
fn update(table: &Table<'_>, rng: &mut Rng, rounds: usize, cx: &mut MaySleep) {
    for round in 0..rounds {
        let key = rng.index(KEYS as usize) as u64;
        if rng.chance(2, 3) {
            let _no_memory = table.put(key, round as u64 * KEYS + key);
        } else {
            table.remove(key);
        }
        sched::cond_resched(cx);
    }
}

ktest! {
    /// Readers on half of the CPUs find values that belong to their keys while the others update.
    #[tags(race)]
    fn readers_of_the_hash_table_find_whole_entries(t: &mut Test) {
        static FOUND: AtomicU64 = AtomicU64::new(0);
        let layout = TypedLayout::new("example_hash").flags(CacheFlags::NO_MERGE);
        let nodes = Cache::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        let owner = Box::into_raw(Box::new(nodes));
        // SAFETY: valid until it is taken back at the end, when the threads and the table are gone.
        let nodes: &'static Cache<Node> = unsafe { &*owner };
        let table = Arc::new(Table::new(nodes));
        let over = Arc::new(AtomicBool::new(false));
        let (mut readers, mut updaters) = (Vec::new(), Vec::new());
        for (index, on) in arch::cpu::online().iter().enumerate() {
            let (table, over, mut rng) = (table.clone(), over.clone(), Rng::new(t.rng.next_u64()));
            if index % 2 == 0 {
                updaters.push(spawn(t.cx, Some(on), move |cx| update(&table, &mut rng, 2_000, cx))?);
            } else {
                readers.push(spawn(t.cx, Some(on), move |cx| {
                    let mut right = true;
                    while !over.load(Relaxed) {
                        let reader = read_lock(cx);
                        for key in 0..KEYS {
                            let value = table.get(key, &reader);
                            right &= value.is_none_or(|value| value % KEYS == key);
                            FOUND.fetch_add(u64::from(value.is_some()), Relaxed);
                        }
                        drop(reader);
                        arch::irq::relax();
                        sched::cond_resched(cx);
                    }
                    right
                })?);
            }
        }
        updaters.into_iter().for_each(|updater| updater.join(t.cx));
        over.store(true, Relaxed);
        for reader in readers {
            ensure!(reader.join(t.cx), "a reader found a value of another key");
        }
        t.note(format_args!("{} entries found", FOUND.load(Relaxed)));
        for key in 0..KEYS {
            let there = table.get(key, &read_lock(t.cx)).is_some();
            ensure_eq!(table.remove(key), there, "key {key}");
            ensure_eq!(table.get(key, &read_lock(t.cx)), None);
        }
        drop(table);
        // SAFETY: from `into_raw` above; what borrowed it is gone.
        let nodes = *unsafe { Box::from_raw(owner) };
        // The end of a cache waits for what was given up.
        nodes.destroy(t.cx).map_err(|(_, leaked)| crate::__failed!("{leaked:?}"))
    }
}
