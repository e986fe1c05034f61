//! A search tree whose insert cannot fail halfway: what it may need is in a prefilled sheaf before it begins.
//!
//! As in a maple tree, readers go from the root to a leaf without a lock, and an updater never changes a node that they can
//! see. It makes new ones, from the leaf up to the root, and publishes all of them by one store; the old ones are given to
//! `kfree_rcu`. So an insert needs a node or two for each level, and the lock is held while they are made. If the allocator
//! said no there, everything so far would have to be undone, or the lock dropped to wait for memory and the work begun anew.
//!
//! Instead [`Tree::prepare`] takes a sheaf with as many nodes as the worst case needs. That is where an insert fails for
//! want of memory, if it does, before anything is touched. [`Tree::insert`] uses what it needs, calls nobody who could
//! fail, and gives back the rest: [`Prefilled::alloc`] is a pop off an array.
//!
//! Linux: `mas_store_prealloc` over `kmem_cache_prefill_sheaf` (`lib/maple_tree.c`, 7.x).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arrayvec::ArrayVec;
use kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu_object};
use mm::AllocFlags;
use rcu::{RcuReadGuard, read_lock};
use slab::{CacheFlags, Layout, Prefilled, RawCache};
use sync::{ATOMIC, LockClass, SpinLock};

use crate::together::spawn;
use crate::{Failure, ensure, ensure_eq, ktest};

/// Entries of a node.
const FANOUT: usize = 8;
/// Levels that a tree may have: more entries than memory.
const MAX_LEVELS: usize = 16;

static CLASS: LockClass = LockClass::new("example.insert_ahead");

/// What an entry leads to, by the level of its node.
#[derive(Clone, Copy)]
union Slot {
    /// In a leaf.
    value: u64,
    /// Above.
    child: NonNull<Node>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Of a leaf: the key. Above: no key below this entry is less, unless it is the first of its node.
    key: u64,
    slot: Slot,
}

/// Constant from when it is published.
struct Node {
    /// 0 for a leaf.
    level: usize,
    len: usize,
    /// By key; the first `len` are valid.
    entries: [Entry; FANOUT],
    rcu: RcuPtr,
}

has_rcu_ptr!(Node, rcu);

impl Node {
    fn entries(&self) -> &[Entry] {
        &self.entries[..self.len]
    }

    /// Which entry `key` belongs below, or is.
    fn place_of(&self, key: u64) -> usize {
        self.entries().iter().rposition(|entry| entry.key <= key).unwrap_or(0)
    }
}

/// The nodes that one insert may need.
struct Ahead(Prefilled);

impl Ahead {
    /// A node with these entries, which it has room for.
    fn node<'e>(&mut self, level: usize, entries: impl Iterator<Item = &'e Entry>) -> Entry {
        let place = self.0.alloc(AllocFlags::NOWAIT).expect("prepared").cast::<Node>();
        let mut node =
            Node { level, len: 0, entries: [Entry { key: 0, slot: Slot { value: 0 } }; FANOUT], rcu: RcuPtr::new() };
        for entry in entries {
            node.entries[node.len] = *entry;
            node.len += 1;
        }
        let key = node.entries[0].key;
        // SAFETY: an object of a cache of nodes, just allocated.
        unsafe { place.write(node) };
        Entry { key, slot: Slot { child: place } }
    }

    /// One node with the entries, or two with half of them each if they are too many.
    fn nodes(&mut self, level: usize, entries: &[Entry]) -> (Entry, Option<Entry>) {
        if entries.len() <= FANOUT {
            return (self.node(level, entries.iter()), None);
        }
        let (low, high) = entries.split_at(entries.len() / 2);
        (self.node(level, low.iter()), Some(self.node(level, high.iter())))
    }
}

/// Old nodes, from the root to a leaf, that a change replaces.
type OldPath = ArrayVec<NonNull<Node>, MAX_LEVELS>;

struct Tree {
    cache: &'static RawCache,
    /// Null while the tree is empty. Written under the lock, followed by readers.
    root: AtomicPtr<Node>,
    /// Keeps updaters from one another. Nothing is allocated inside.
    updating: SpinLock<()>,
}

impl Tree {
    fn new(name: &'static str) -> Result<Self, Failure> {
        let layout = Layout::new(name, size_of::<Node>()).flags(CacheFlags::NO_MERGE);
        let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        Ok(Self { cache, root: AtomicPtr::new(core::ptr::null_mut()), updating: SpinLock::new((), &CLASS) })
    }

    /// Nodes that an insert needs at most: two on each level, and a root above them.
    fn worst_case(&self) -> usize {
        let _reader = read_lock(ATOMIC);
        // Acquire: pairs with the Release in `insert`.
        // SAFETY: published, and not freed while the reader lasts.
        let levels = unsafe { self.root.load(Acquire).as_ref() }.map_or(0, |root| root.level + 1);
        2 * levels + 1
    }

    /// Takes in advance what an insert may need; nothing if there is not enough memory.
    fn prepare(&self) -> Option<Ahead> {
        self.cache.prefill(self.worst_case(), AllocFlags::NOWARN).map(Ahead)
    }

    fn get(&self, key: u64, _reader: &RcuReadGuard<'_>) -> Option<u64> {
        // Acquire: pairs with the Release in `insert`: it publishes every node below, too.
        // SAFETY: published, and not freed while the reader lasts.
        let mut node = unsafe { self.root.load(Acquire).as_ref() }?;
        while node.level > 0 {
            // SAFETY: above leaves slots are children, published with their parent.
            node = unsafe { node.entries[node.place_of(key)].slot.child.as_ref() };
        }
        let entry = node.entries().iter().find(|entry| entry.key == key)?;
        // SAFETY: in a leaf slots are values.
        Some(unsafe { entry.slot.value })
    }

    /// Inserts, or replaces. The room must have been taken for a tree of at least this height.
    ///
    /// # Errors
    /// `ahead`: the tree has grown since, and nothing was done.
    fn insert(&self, mut ahead: Ahead, key: u64, value: u64) -> Result<(), Ahead> {
        let _updating = self.updating.lock_irqsave(ATOMIC);
        if ahead.0.size() < self.worst_case() {
            return Err(ahead);
        }
        // Nothing below can fail.
        let mut old = OldPath::new();
        let new = Entry { key, slot: Slot { value } };
        let (low, high) = match NonNull::new(self.root.load(Relaxed)) {
            None => (ahead.node(0, [new].iter()), None),
            Some(root) => Self::replace(root, new, &mut ahead, &mut old),
        };
        let root = match high {
            None => low,
            // SAFETY: `low` was made above.
            Some(high) => ahead.node(unsafe { low.slot.child.as_ref() }.level + 1, [low, high].iter()),
        };
        // SAFETY: as above: what `node` returns leads to a node.
        // Release: pairs with the Acquire in `get` and `worst_case`: all new nodes are seen as they were made.
        self.root.store(unsafe { root.slot.child }.as_ptr(), Release);
        for node in old {
            // SAFETY: on the old path, which nothing leads to any more; each node is on it once.
            unsafe { kfree_rcu_object(node) };
        }
        Ok(())
    }

    /// One or two nodes in the place of `node`, with `new` below; what they replace comes to `old`.
    fn replace(node: NonNull<Node>, new: Entry, ahead: &mut Ahead, old: &mut OldPath) -> (Entry, Option<Entry>) {
        old.push(node);
        // SAFETY: part of the tree, of which the caller has the lock.
        let node = unsafe { node.as_ref() };
        let at = node.place_of(new.key);
        let mut entries: ArrayVec<Entry, { FANOUT + 1 }> = node.entries().iter().copied().collect();
        if node.level > 0 {
            // SAFETY: above leaves slots are children.
            let child = unsafe { entries[at].slot.child };
            let (low, high) = Self::replace(child, new, ahead, old);
            entries[at] = low;
            high.into_iter().for_each(|high| entries.insert(at + 1, high));
        } else if entries[at].key == new.key {
            entries[at] = new;
        } else {
            entries.insert(at + usize::from(entries[at].key < new.key), new);
        }
        ahead.nodes(node.level, &entries)
    }

    /// Gives up every node below `node` and it.
    fn give_up(node: NonNull<Node>) {
        // SAFETY: part of a tree that nobody changes any more; not freed before a grace period has passed.
        let entries = unsafe { node.as_ref() };
        if entries.level > 0 {
            // SAFETY: above leaves slots are children.
            entries.entries().iter().for_each(|entry| Self::give_up(unsafe { entry.slot.child }));
        }
        // SAFETY: its parent goes as well, and each node has one.
        unsafe { kfree_rcu_object(node) };
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(root) = NonNull::new(*self.root.get_mut()) {
            Self::give_up(root);
        }
    }
}

ktest! {
    /// With every allocation failing from the preparation on, each insert is done, and none is half done.
    fn an_insert_that_was_prepared_needs_no_memory(t: &mut Test) {
        let tree = Tree::new("example_tree")?;
        let mut model = BTreeMap::new();
        let (mut refused, mut busy) = (0, 0);
        for round in 0..600_u64 {
            let key = t.rng.below(1_000);
            // Now and then there is no memory beforehand: then nothing is done.
            let scarce = round % 7 == 0;
            let prepare = || {
                let armed = scarce.then(|| mm::inject::arm(mm::inject::Plan::From(1)));
                let ahead = tree.prepare();
                drop(armed);
                ahead
            };
            let Some(ahead) = prepare() else {
                refused += 1;
                let found = tree.get(key, &read_lock(t.cx));
                ensure_eq!(found, model.get(&key).copied(), "key {key} after a preparation that failed");
                continue;
            };
            let armed = mm::inject::arm(mm::inject::Plan::From(1));
            busy += usize::from(armed.is_none());
            let before = tree.cache.stat(slab::Stat::AllocSlab);
            ensure!(tree.insert(ahead, key, round).is_ok(), "nobody else makes the tree grow");
            drop(armed);
            ensure_eq!(tree.cache.stat(slab::Stat::AllocSlab), before, "the insert asked for memory");
            model.insert(key, round);
        }
        t.note(format_args!("{} keys, {refused} refused beforehand, {busy} without injection", model.len()));
        ensure!(refused > 0 || busy > 0, "the first insert needs a slab, and there was no page for it");
        {
            let reader = read_lock(t.cx);
            for key in 0..1_000 {
                ensure_eq!(tree.get(key, &reader), model.get(&key).copied(), "key {key}");
            }
        }
        // A sheaf that was taken for a smaller tree is refused, and nothing is done.
        let small = tree.cache.prefill(1, AllocFlags::NOWARN).map(Ahead);
        let small = small.filter(|small| small.0.size() < tree.worst_case());
        if let Some(small) = small {
            ensure!(tree.insert(small, 0, u64::MAX).is_err(), "one node was enough for a tree");
            ensure_eq!(tree.get(0, &read_lock(t.cx)), model.get(&0).copied());
        }
        let cache = tree.cache;
        drop(tree);
        // SAFETY: the tree was its only user, and has given everything up.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }

    /// Readers on other CPUs find every key that was inserted before they looked, while the tree splits under them.
    #[tags(race)]
    fn readers_find_what_was_inserted_while_the_tree_grows(t: &mut Test) {
        const KEYS: u64 = 800;
        let tree = Arc::new(Tree::new("example_grows")?);
        let done = Arc::new(AtomicU64::new(0));
        let mut readers = Vec::new();
        for on in arch::cpu::online().iter().skip(1) {
            let (tree, done) = (tree.clone(), done.clone());
            readers.push(spawn(t.cx, Some(on), move |cx| {
                loop {
                    // Acquire: pairs with the Release below: that many keys are in the tree.
                    let until = done.load(Acquire);
                    let reader = read_lock(cx);
                    let all = (0..until).all(|n| tree.get(scattered(n), &reader) == Some(n));
                    drop(reader);
                    if !all || until == KEYS {
                        return all;
                    }
                    arch::irq::relax();
                    sched::cond_resched(cx);
                }
            })?);
        }
        for n in 0..KEYS {
            let Some(ahead) = tree.prepare() else { return Err(crate::__failed!("no memory")) };
            ensure!(tree.insert(ahead, scattered(n), n).is_ok(), "nobody else makes the tree grow");
            // Release: pairs with the Acquire above.
            done.store(n + 1, Release);
            sched::cond_resched(t.cx);
        }
        for reader in readers {
            ensure!(reader.join(t.cx), "a reader missed a key, or found another's value");
        }
        let cache = tree.cache;
        drop(tree);
        // SAFETY: as above.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }
}

/// Keys in an order that splits nodes everywhere.
fn scattered(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
