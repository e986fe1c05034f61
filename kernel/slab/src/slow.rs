//! The slab layer: taking objects from slabs, giving them back, making and dropping slabs.
//!
//! Everything the sheaves cannot serve ends here. The rules that make it right are SLAB-1 to SLAB-4 in
//! [`slab_ref`](crate::slab_ref):
//!
//! | | take one | detach and take all | give back |
//! |---|---|---|---|
//! | take one | list lock | list lock | compare-exchange |
//! | detach and take all | list lock | list lock | compare-exchange |
//! | give back | compare-exchange | compare-exchange | compare-exchange; list lock for full → partial → empty |
//!
//! Context: any but NMI with [`Spin::May`]; any with [`Spin::Never`]. Giving back may always spin: what must not
//! goes through [`deferred`](crate::deferred).
//!
//! Answers to `___slab_alloc`, `refill_objects`, `__slab_free` in Linux `mm/slub.c` (7.x).

use core::ptr::{self, NonNull};

use arch::NodeId;
use mm::AllocFlags;
use sync::{CallbackHead, SpinIrqGuard, bug};

use crate::Spin;
use crate::boot::sheaf_cache;
use crate::cache::{CacheFlags, RawCache};
use crate::debug::report_double_free;
use crate::node::{CacheNode, Partial};
use crate::order::{objects, order_for};
use crate::slab_ref::{SlabRef, State};
use crate::stats::Stat;

/// Objects off a slab's freelist, linked through the objects.
pub(crate) struct Taken {
    pub(crate) slab: SlabRef,
    pub(crate) head: *mut u8,
    pub(crate) count: usize,
}

impl Taken {
    fn pop(&mut self, cache: &RawCache) -> Option<NonNull<u8>> {
        let object = NonNull::new(self.head)?;
        self.head = cache.link(object);
        self.count -= 1;
        cache.prepare(object);
        Some(object)
    }
}

impl RawCache {
    /// Takes up to `max` objects from slabs, handing each to `put`. Returns how many it were.
    ///
    /// From partial slabs of `node`, which has memory, then now and then from other nodes' (M-8), then from new slabs. May
    /// spin.
    pub(crate) fn take_many(
        &self,
        max: usize,
        node: NodeId,
        flags: AllocFlags,
        mut put: impl FnMut(NonNull<u8>),
    ) -> usize {
        if self.is_checked() {
            return (0..max).map_while(|_| self.take_one(node, flags, Spin::May)).map(put).count();
        }
        if self.is_to_fail() {
            return 0;
        }
        let mut got = 0;
        if let Some(partial) = self.node(node).and_then(|here| here.lock(Spin::May)) {
            got += self.take_partial(partial, max, flags, &mut put);
        }
        if got < max {
            got += self.take_remote(max - got, node, flags, &mut put);
        }
        while got < max {
            let Some(taken) = self.new_slab(node, flags, Spin::May) else { break };
            got += self.hand_out(taken, max - got, &mut put);
        }
        got
    }

    /// Takes one object from a slab: of `node`, which has memory, if there is any, else, without
    /// [`AllocFlags::THIS_NODE`], of the nearest other. Partial slabs of other nodes come before new ones: else
    /// each call would make one while `node` is full.
    ///
    /// With [`Spin::Never`] a busy list lock counts as an empty list.
    pub(crate) fn take_one(&self, node: NodeId, flags: AllocFlags, spin: Spin) -> Option<NonNull<u8>> {
        if self.is_to_fail() {
            return None;
        }
        let pop = |node| self.pop_partial(self.node(node)?, flags, spin);
        let mut others = mm::stats::nearest(node).filter(|&other| other != node).peekable();
        let only = flags.contains(AllocFlags::THIS_NODE) || others.peek().is_none();
        pop(node).or_else(|| {
            if only {
                return self.take_from_new(node, flags, spin);
            }
            // The reserve is for when no node has anything else.
            self.take_from_new(node, flags | AllocFlags::THIS_NODE | AllocFlags::NO_RESERVE, spin)
                .or_else(|| others.find_map(pop))
                .or_else(|| self.take_from_new(node, flags, spin))
        })
    }

    /// Takes one object off the first partial slab of `node`.
    fn pop_partial(&self, node: &CacheNode, flags: AllocFlags, spin: Spin) -> Option<NonNull<u8>> {
        let mut partial = node.lock(spin)?;
        if self.is_checked() {
            return self.pop_checked(&mut partial, flags);
        }
        let slab = partial.first_for(flags)?;
        let mut old = slab.state();
        self.count(Stat::CmpxchgDouble);
        loop {
            // A slab on the partial list has a free object, and only we, with the lock, may take it (SLAB-3).
            let object = NonNull::new(old.freelist).expect("SLAB-3: a slab on the partial list is full");
            let new = State { freelist: self.link(object), inuse: old.inuse + 1, ..old };
            match slab.swap(old, new) {
                Ok(()) => {
                    if new.freelist.is_null() {
                        partial.remove(slab);
                    }
                    self.prepare(object);
                    return Some(object);
                }
                Err(now) => {
                    self.count(Stat::CmpxchgDoubleFail);
                    old = now;
                }
            }
        }
    }

    /// Makes a slab, takes one object of it and puts the rest on the partial list.
    fn take_from_new(&self, node: NodeId, flags: AllocFlags, spin: Spin) -> Option<NonNull<u8>> {
        let mut taken = self.new_slab(node, flags, spin)?;
        if self.is_checked() {
            return self.list_and_pop_checked(taken, flags, spin);
        }
        let object = taken.pop(self)?;
        if taken.count == 0 {
            return Some(object);
        }
        let home = self.node(taken.slab.node()).expect("a node with memory has a CacheNode");
        let Some(mut partial) = home.lock(spin) else {
            if !bug!("nolock.slab_kept", "a new slab whose list is busy is forgotten", "slab_hooks") {
                self.drop_slab(taken.slab, spin);
            }
            return None;
        };
        let old = taken.slab.state();
        let new = State { freelist: taken.head, inuse: old.inuse - taken.count as u32, ..old };
        // Nobody else knows an object of this slab yet, so this cannot fail.
        taken.slab.swap(old, new).expect("a slab that nobody knows changed");
        partial.push_back(taken.slab);
        Some(object)
    }

    /// Takes up to `max` objects from slabs of a partial list, whole freelists at a time.
    fn take_partial(
        &self,
        partial: SpinIrqGuard<'_, Partial>,
        max: usize,
        flags: AllocFlags,
        put: &mut impl FnMut(NonNull<u8>),
    ) -> usize {
        let Some(mut chain) = detach(partial, max, flags) else { return 0 };
        let mut got = 0;
        loop {
            // Read the link first: once its freelist is taken, a free may put the slab on a list again.
            let next = chain.next();
            let taken = self.take_all(chain);
            got += self.hand_out(taken, max - got, put);
            match next {
                Some(next) => chain = next,
                None => return got,
            }
        }
    }

    /// Takes objects from other nodes' partial slabs, if these have more than they want to keep.
    ///
    /// Done for `remote_node_defrag_ratio` of 1024 refills, nearest first, and only with a try-lock (M-8).
    fn take_remote(&self, max: usize, node: NodeId, flags: AllocFlags, put: &mut impl FnMut(NonNull<u8>)) -> usize {
        if arch::clock::cycles() % 1024 >= u64::from(self.remote_node_defrag_ratio()) {
            return 0;
        }
        mm::stats::nearest(node)
            .filter(|&other| other != node)
            .filter_map(|other| self.node(other)?.lock(Spin::Never))
            .find(|partial| partial.len() > self.min_partial())
            .map_or(0, |partial| self.take_partial(partial, max, flags, put))
    }

    /// Takes up to `max` objects from partial slabs of nodes other than `node`, nearest first: where there is no memory for a
    /// slab, any node's leftovers will do. May spin.
    pub(crate) fn take_leftovers(
        &self,
        max: usize,
        node: NodeId,
        flags: AllocFlags,
        mut put: impl FnMut(NonNull<u8>),
    ) -> usize {
        let mut got = 0;
        // Of a debug cache `take_many` has asked all nodes.
        for other in mm::stats::nearest(node).filter(|&other| other != node && !self.is_checked()) {
            if got == max {
                break;
            }
            if let Some(partial) = self.node(other).and_then(|there| there.lock(Spin::May)) {
                got += self.take_partial(partial, max - got, flags, &mut put);
            }
        }
        got
    }

    /// Takes the whole freelist of a slab that we took off the partial list.
    fn take_all(&self, slab: SlabRef) -> Taken {
        let mut old = slab.state();
        self.count(Stat::CmpxchgDouble);
        loop {
            let new = State { freelist: ptr::null_mut(), inuse: old.objects, ..old };
            match slab.swap(old, new) {
                Ok(()) => return Taken { slab, head: old.freelist, count: old.free() as usize },
                Err(now) => {
                    self.count(Stat::CmpxchgDoubleFail);
                    old = now;
                }
            }
        }
    }

    /// Hands out up to `max` of what was taken, and gives the rest back to the slab. Returns how many.
    fn hand_out(&self, mut taken: Taken, max: usize, put: &mut impl FnMut(NonNull<u8>)) -> usize {
        let mut got = 0;
        while got < max {
            let Some(object) = taken.pop(self) else { return got };
            put(object);
            got += 1;
        }
        if let Some(head) = NonNull::new(taken.head) {
            let mut tail = head;
            while let Some(next) = NonNull::new(self.link(tail)) {
                tail = next;
            }
            self.give_back(taken.slab, head, tail, taken.count);
        }
        got
    }

    /// A new slab near `node`, every object of it taken.
    fn new_slab(&self, node: NodeId, flags: AllocFlags, spin: Spin) -> Option<Taken> {
        let orders = self.orders();
        let may_be_smaller = orders.minimum < orders.preferred;
        // The reserve is not for slabs that are larger than they must be.
        let preferred = if may_be_smaller { flags | AllocFlags::NO_RESERVE } else { flags };
        let page = match self.slab_pages(orders.preferred, node, preferred, spin) {
            Some(page) => page,
            None if may_be_smaller => {
                let page = self.slab_pages(orders.minimum, node, flags, spin)?;
                self.count(Stat::OrderFallback);
                page
            }
            None => return None,
        };
        let total = objects(page.order(), self.size());
        let slab = SlabRef::make(page, self, total as u32);
        if self.is_checked() {
            self.lay_out(slab);
        }
        if let Some(ctor) = self.ctor().filter(|_| !self.delays_frees()) {
            (0..total).for_each(|index| ctor(slab.object(index)));
        }
        let head = self.link_all(slab, total);
        self.node(slab.node()).expect("a node with memory has a CacheNode").slab_added(total as u32);
        self.count(Stat::AllocSlab);
        sync::trace!(
            "slab.new_slab",
            cache = sync::trace::text(self.name()),
            slab = slab.object(0).as_ptr().addr(),
            objects = total
        );
        Some(Taken { slab, head, count: total })
    }

    fn slab_pages(&self, order: usize, node: NodeId, flags: AllocFlags, spin: Spin) -> Option<&'static mm::Page> {
        // A failure is reported once, by who knows what for.
        let flags = (flags - AllocFlags::ZERO) | AllocFlags::NOWARN;
        match spin {
            Spin::May => mm::alloc_pages(order, Some(node), flags).ok(),
            Spin::Never => mm::alloc_pages_nolock(order, Some(node), flags),
        }
    }

    /// Gives `count` objects, linked from `head` to `tail`, back to their slab. May spin on the list lock, and
    /// on the page allocator's when the slab becomes superfluous. Returns how many pages went back.
    ///
    /// Of a debug cache it is one object, which may turn out not to be given back.
    pub(crate) fn give_back(&self, slab: SlabRef, head: NonNull<u8>, tail: NonNull<u8>, count: usize) -> usize {
        if self.is_checked() {
            debug_assert!(count == 1, "a chain of objects of a debug cache");
            return self.give_back_checked(slab, head);
        }
        if count == 1 {
            self.wipe_freed(head);
        }
        let node = self.node(slab.node()).expect("a node with memory has a CacheNode");
        let mut old = slab.state();
        self.count(Stat::CmpxchgDouble);
        loop {
            if self.is_freed_again(head, old.freelist) {
                report_double_free(self, head);
                return 0;
            }
            self.set_link(tail, old.freelist);
            let mut new = State { freelist: head.as_ptr(), inuse: old.inuse - count as u32, ..old };
            if count > 1
                && bug!("slab.miscount", "objects given back together count as one less", "slab_nolock.*storm*nothing")
            {
                new.inuse += 1;
            }
            let was_full = old.freelist.is_null();
            // The list lock comes first, so that the transition and the list change together.
            let lock = (was_full || new.inuse == 0).then(|| node.lock(Spin::May)).flatten();
            if let Err(now) = slab.swap(old, new) {
                self.count(Stat::CmpxchgDoubleFail);
                old = now;
                continue;
            }
            return lock.map_or(0, |partial| self.relist(slab, partial, was_full, new.inuse == 0));
        }
    }

    /// Puts a slab that had no free object, or has only free ones now, where it belongs. Returns how many pages went back.
    pub(crate) fn relist(
        &self,
        slab: SlabRef,
        mut partial: SpinIrqGuard<'_, Partial>,
        was_full: bool,
        empty: bool,
    ) -> usize {
        let listed = slab.is_on_partial();
        if !was_full && !listed {
            // Somebody has detached it and is about to take its whole freelist.
            return 0;
        }
        // The reserve takes back what it can (NUMA-3).
        if empty && (partial.len() >= self.min_partial() || slab.is_reserve()) {
            if listed {
                partial.remove(slab);
                self.count(Stat::FreeRemovePartial);
            }
            drop(partial);
            return self.drop_slab(slab, Spin::May);
        }
        if !listed
            && !bug!(
                "slab.not_relisted",
                "a full slab stays off the list when an object is freed",
                "slab_nolock.*storm*nothing"
            )
        {
            partial.push_back(slab);
            self.count(Stat::FreeAddPartial);
        }
        0
    }

    /// Gives the pages of a slab without users back. Returns how many that were: none as yet if they wait for a grace period.
    pub(crate) fn drop_slab(&self, slab: SlabRef, spin: Spin) -> usize {
        if self.is_checked() && !self.may_drop(slab) {
            return 0;
        }
        self.node(slab.node()).expect("a node with memory has a CacheNode").slab_removed(slab.state().objects);
        self.count(Stat::FreeSlab);
        sync::trace!("slab.drop_slab", cache = sync::trace::text(self.name()), slab = slab.object(0).as_ptr().addr());
        if spin == Spin::May && self.flags().contains(CacheFlags::TYPESAFE_BY_RCU) {
            // A reader may still look at an object of it (M-13).
            // SAFETY: the slab has no object in use and is on no list; it is RCU's from here on.
            unsafe { self.call_after_readers(slab.rcu_head(), after_grace_period) };
            return 0;
        }
        let order = slab.order();
        let page = slab.unmake();
        match spin {
            Spin::May => mm::free_pages(page, order),
            Spin::Never => mm::free_pages_nolock(page, order),
        }
        1 << order
    }

    /// Gives many objects back, those of one slab together (M-12). Returns how many pages went back.
    pub(crate) fn give_back_many(&self, objects: &mut [NonNull<u8>]) -> usize {
        /// How many objects of other slabs are passed over in search of one more of the same.
        const LOOKAHEAD: usize = 3;
        let mut len = objects.len();
        let mut pages = 0;
        while len > 0 {
            len -= 1;
            let tail = objects[len];
            let Some(slab) = self.slab_of_mine(tail) else { continue };
            if self.is_checked() || self.hardening().sees_each_object() {
                pages += self.give_back(slab, tail, tail, 1);
                continue;
            }
            let (mut head, mut count, mut passed, mut index) = (tail, 1, 0, len);
            while index > 0 && passed < LOOKAHEAD {
                index -= 1;
                let object = objects[index];
                if SlabRef::of(object) == Some(slab) {
                    self.set_link(object, head.as_ptr());
                    head = object;
                    count += 1;
                    len -= 1;
                    objects[index] = objects[len];
                } else {
                    passed += 1;
                }
            }
            pages += self.give_back(slab, head, tail, count);
        }
        pages
    }
}

/// Gives the pages of a slab back after its grace period.
unsafe fn after_grace_period(head: *mut CallbackHead) {
    // SAFETY: RCU hands back what `drop_slab` handed over.
    let slab = unsafe { SlabRef::from_rcu_head(head) };
    let order = slab.order();
    mm::free_pages(slab.unmake(), order);
}

/// Takes slabs that a caller with `flags` may have, with `max` free objects in all if there are as many, off the list; returns
/// them linked by `next`. What the last one has too many goes back to it: were it left on the list, each refill would make
/// a new slab for the rest, however many partial ones there are.
fn detach(mut partial: SpinIrqGuard<'_, Partial>, max: usize, flags: AllocFlags) -> Option<SlabRef> {
    let mut chain: Option<SlabRef> = None;
    let mut free = 0;
    while let Some(slab) = partial.first_for(flags) {
        partial.remove(slab);
        slab.set_next(chain);
        chain = Some(slab);
        free += slab.state().free() as usize;
        if free >= max {
            break;
        }
    }
    chain
}

/// Memory for a sheaf: from the boot cache of its size, or whole pages for an oversize one.
pub(crate) fn alloc_unsheaved(bytes: usize, flags: AllocFlags, spin: Spin) -> Option<NonNull<u8>> {
    let node = mm::home_node();
    match sheaf_cache(bytes) {
        Some(cache) => cache.take_one(node, flags, spin).inspect(|_| cache.count(Stat::AllocSlowpath)),
        None => {
            let page = match spin {
                Spin::May => mm::alloc_pages(order_for(bytes), Some(node), flags).ok()?,
                Spin::Never => mm::alloc_pages_nolock(order_for(bytes), Some(node), flags)?,
            };
            NonNull::new(page.virt())
        }
    }
}

/// Gives back what [`alloc_unsheaved`] gave; returns how many pages went back. With [`Spin::Never`] through the deferred
/// list.
pub(crate) fn free_unsheaved(memory: NonNull<u8>, spin: Spin) -> usize {
    if spin == Spin::Never {
        crate::deferred::defer_free(memory);
        return 0;
    }
    match SlabRef::of(memory) {
        Some(slab) => {
            slab.cache().count(Stat::FreeSlowpath);
            slab.cache().give_back(slab, memory, memory, 1)
        }
        None => {
            let page = mm::page_of(memory.as_ptr()).expect("a sheaf lies in pages").head();
            let order = page.order();
            mm::free_pages(page, order);
            1 << order
        }
    }
}
