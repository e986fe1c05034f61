//! What a cache has on one node: the list of partial slabs, and the barn.
//!
//! Full slabs are on no list at all, but for those of a debug cache; a free makes them partial again. A slab whose last object is freed stays
//! while the node has few partial slabs (`min_partial`), else its pages go back.
//!
//! Lock order: sheaf lock > barn lock; sheaf lock > list lock > the page allocator's zone lock (M-10). The barn
//! lock and a list lock are never held together.
//!
//! Answers to `struct kmem_cache_node` in Linux `mm/slub.c` (7.x).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::NodeId;
use mm::AllocFlags;
use sync::{ATOMIC, LockClass, SpinIrqGuard, SpinLock, hook};

use crate::Spin;
use crate::barn::Barn;
use crate::slab_ref::SlabRef;
use crate::waiting::Detached;

/// Inside the sheaf lock and the list of caches; nothing nests inside it, least of all a barn lock (M-10).
static LIST_LOCK: LockClass = LockClass::new("slab.list").rank(850);

/// The partial slabs of a node, oldest first. Under the list lock.
pub(crate) struct Partial {
    head: Option<SlabRef>,
    tail: Option<SlabRef>,
    len: usize,
    /// How often the lock was taken to work on the list.
    locks: u64,
    /// The full slabs, of a debug cache only.
    pub(crate) full: Full,
}

impl Partial {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn first(&self) -> Option<SlabRef> {
        self.head
    }

    /// Puts `slab` at the end: slabs in front get time to fill up with frees.
    pub(crate) fn push_back(&mut self, slab: SlabRef) {
        debug_assert!(!slab.is_on_partial());
        slab.set_prev(self.tail);
        slab.set_next(None);
        match self.tail {
            Some(tail) => tail.set_next(Some(slab)),
            None => self.head = Some(slab),
        }
        self.tail = Some(slab);
        slab.set_on_partial(true);
        self.len += 1;
    }

    /// Puts `slab` in front: it is the next that objects are taken from.
    pub(crate) fn push_front(&mut self, slab: SlabRef) {
        debug_assert!(!slab.is_on_partial());
        slab.set_prev(None);
        slab.set_next(self.head);
        match self.head {
            Some(head) => head.set_prev(Some(slab)),
            None => self.tail = Some(slab),
        }
        self.head = Some(slab);
        slab.set_on_partial(true);
        self.len += 1;
    }

    /// Takes `slab`, which is on this list, off it.
    pub(crate) fn remove(&mut self, slab: SlabRef) {
        debug_assert!(slab.is_on_partial());
        match slab.prev() {
            Some(prev) => prev.set_next(slab.next()),
            None => self.head = slab.next(),
        }
        match slab.next() {
            Some(next) => next.set_prev(slab.prev()),
            None => self.tail = slab.prev(),
        }
        slab.set_on_partial(false);
        self.len -= 1;
    }

    /// The first slab that a caller with `flags` may take from.
    pub(crate) fn first_for(&self, flags: AllocFlags) -> Option<SlabRef> {
        self.iter().find(|slab| slab.may_serve(flags))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SlabRef> {
        core::iter::successors(self.head, |slab| slab.next())
    }
}

/// The full slabs of a debug cache on a node, newest first. Under the list lock.
pub(crate) struct Full(Option<SlabRef>);

impl Full {
    pub(crate) fn push(&mut self, slab: SlabRef) {
        slab.set_prev(None);
        slab.set_next(self.0);
        if let Some(next) = self.0.replace(slab) {
            next.set_prev(Some(slab));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SlabRef> {
        core::iter::successors(self.0, |slab| slab.next())
    }

    /// Takes `slab`, which is on this list, off it.
    pub(crate) fn remove(&mut self, slab: SlabRef) {
        match slab.prev() {
            Some(prev) => prev.set_next(slab.next()),
            None => self.0 = slab.next(),
        }
        if let Some(next) = slab.next() {
            next.set_prev(slab.prev());
        }
    }
}

/// One cache on one node.
pub(crate) struct CacheNode {
    pub(crate) node: NodeId,
    partial: SpinLock<Partial>,
    /// Slabs of this node, and objects in them. Written with atomic adds, read for statistics.
    nr_slabs: AtomicU64,
    total_objects: AtomicU64,
    pub(crate) barn: Barn,
    /// Sheaves for that barn that wait for a grace period.
    pub(crate) waiting: Detached,
}

// SAFETY: the partial list names slabs by their descriptors, which belong to no CPU; it is under its lock.
unsafe impl Send for Partial {}

impl CacheNode {
    pub(crate) fn new(node: NodeId, sheaf_capacity: usize) -> Self {
        Self {
            node,
            partial: SpinLock::new(Partial { head: None, tail: None, len: 0, locks: 0, full: Full(None) }, &LIST_LOCK),
            nr_slabs: AtomicU64::new(0),
            total_objects: AtomicU64::new(0),
            barn: Barn::new(node, sheaf_capacity),
            waiting: Detached::new(),
        }
    }

    /// Takes the list lock; with [`Spin::Never`] only tries to.
    pub(crate) fn lock(&self, spin: Spin) -> Option<SpinIrqGuard<'_, Partial>> {
        let mut partial = match spin {
            Spin::May => self.partial.lock_irqsave(ATOMIC),
            Spin::Never => self.partial.try_lock_irqsave(ATOMIC)?,
        };
        hook!("slab.list");
        partial.locks += 1;
        Some(partial)
    }

    pub(crate) fn slab_added(&self, objects: u32) {
        self.nr_slabs.fetch_add(1, Relaxed);
        self.total_objects.fetch_add(u64::from(objects), Relaxed);
    }

    pub(crate) fn slab_removed(&self, objects: u32) {
        self.nr_slabs.fetch_sub(1, Relaxed);
        self.total_objects.fetch_sub(u64::from(objects), Relaxed);
    }

    /// Free objects in the partial slabs.
    pub(crate) fn free_in_partial(&self) -> u64 {
        self.partial.lock_irqsave(ATOMIC).iter().map(|slab| u64::from(slab.state().free())).sum()
    }

    /// Length of the partial list.
    pub(crate) fn nr_partial(&self) -> usize {
        self.partial.lock_irqsave(ATOMIC).len()
    }

    /// How often the list lock was taken, but for statistics.
    pub(crate) fn locks(&self) -> u64 {
        self.partial.lock_irqsave(ATOMIC).locks
    }

    pub(crate) fn nr_slabs(&self) -> u64 {
        self.nr_slabs.load(Relaxed)
    }

    pub(crate) fn total_objects(&self) -> u64 {
        self.total_objects.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use arch::hosted::in_own_process;

    use super::*;
    use crate::cache::{CacheFlags, Layout, RawCache};
    use crate::stats::Stat;
    use crate::test_machine::{assert_all_back, machine};

    /// Runs `body` on a machine of one CPU, with a cache whose objects come from slabs one by one.
    fn with_cache(body: fn(&'static RawCache)) {
        machine(1, 1, |_| {
            let layout = Layout::new("test", 256).flags(CacheFlags::NO_SHEAVES | CacheFlags::NO_MERGE);
            let cache = crate::create(layout).expect("memory for a cache");
            body(cache);
            assert_all_back(cache);
        });
    }

    /// Allocates `slabs` slabs full of objects and frees them; calls `watch` before each free and after the last.
    fn free_slabs(cache: &RawCache, slabs: usize, mut watch: impl FnMut()) {
        let objects = slabs * cache.info().objperslab;
        let held: Vec<_> = (0..objects).map(|_| cache.alloc(AllocFlags::NOWAIT).expect("memory")).collect();
        for object in held {
            watch();
            // SAFETY: allocated above, given up once.
            unsafe { cache.free(object) };
        }
        watch();
    }

    #[test]
    fn a_free_takes_the_list_lock_only_where_its_slab_was_full_or_is_empty_now() {
        in_own_process(|| {
            with_cache(|cache| {
                let per_slab = cache.info().objperslab;
                let mut counts = Vec::new();
                free_slabs(cache, 1, || counts.push((cache.lock_counts().list, cache.stat(Stat::CmpxchgDouble))));
                for (index, pair) in counts.windows(2).enumerate() {
                    let (locks, exchanges) = (pair[1].0 - pair[0].0, pair[1].1 - pair[0].1);
                    assert_eq!((locks, exchanges), (u64::from([0, per_slab - 1].contains(&index)), 1), "free {index}");
                }
            });
        });
    }

    #[test]
    fn an_empty_slab_stays_while_the_list_is_shorter_than_it_may_be() {
        in_own_process(|| {
            with_cache(|cache| {
                free_slabs(cache, 8, || ());
                // One that has been partial is on the list, and counts itself.
                assert_eq!((cache.min_partial(), cache.info().num_slabs), (5, 4));
            });
        });
    }
}
