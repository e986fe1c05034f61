//! Allocating from a node, and the memory reserve.
//!
//! # Which node
//!
//! A node is a *wish*: [`RawCache::alloc_node`] gives an object of that node while it has memory, else of the nearest one
//! that has. With [`AllocFlags::THIS_NODE`] it is a *demand*, and the answer is an object of that node or none. A node
//! without memory counts as the nearest one with memory, except for a demand, which fails.
//!
//! In this order:
//! 1. this CPU's main sheaf, if the node is this CPU's; the object there is looked at first, because a refill may have
//!    brought one of another node (NUMA-1);
//! 2. a full sheaf of that node's barn, of which one object is taken;
//! 3. that node's partial slabs, then a new slab of its memory;
//! 4. unless it is a demand: partial slabs of the other nodes, nearest first, then a new slab wherever there is memory.
//!
//! # Invariants
//! - **NUMA-1** Sheaves hold objects of their CPU's [home](mm::home) by rule and not by law: `remote_node_defrag_ratio` of
//!   1024 refills may bring others, and so does a node that is full. Who asks for a node looks at the object itself.
//! - **NUMA-2** An object of a slab from below the min watermark is only given to who asks with RESERVE and not with
//!   NO_RESERVE, straight from the slab; freed, it goes straight back. It is never in a sheaf that anybody else may
//!   take from: not CPUs', barns' or remote ones, and a prefilled one is marked and flushed when it comes back.
//! - **NUMA-3** The reserve mark lasts until the slab is empty, when its pages go back at once, or until who passes over the
//!   slab finds that its node is above the low watermark again. It may go at any time: it only decides where objects go.
//!
//! Linux: `alloc_from_pcs`, `get_from_any_partial`, `pfmemalloc_match` in `mm/slub.c` (7.x). Rows: M-8, S5-4, S5-5, S4-11.

use core::ptr::NonNull;

use arch::{NodeId, PAGE_SIZE};
use mm::AllocFlags;

use crate::Spin;
use crate::cache::RawCache;
use crate::kmalloc;
use crate::stats::Stat;

impl RawCache {
    /// Allocates an object of `node`, or near this CPU without one; see the [module](self).
    ///
    /// Context: any but NMI. Never sleeps. From another node's barn or slabs: takes its barn lock or list lock.
    ///
    /// ```no_run
    /// # fn example(cache: &grange_slab::RawCache, worker: arch::CpuId) -> Option<core::ptr::NonNull<u8>> {
    /// cache.alloc_node(Some(arch::cpu::node_of(worker)), mm::AllocFlags::NOWAIT)
    /// # }
    /// ```
    pub fn alloc_node(&self, node: Option<NodeId>, flags: AllocFlags) -> Option<NonNull<u8>> {
        let Some(wanted) = node else { return self.alloc(flags) };
        let nearest = mm::stats::nearest(wanted).next();
        let object = nearest
            .filter(|&nearest| nearest == wanted || !flags.contains(AllocFlags::THIS_NODE))
            .and_then(|nearest| self.alloc_near(nearest, flags));
        if object.is_none() {
            mm::oom::warn_object(self.name(), self.size(), node, flags);
        }
        self.after_alloc(object, flags)
    }

    /// The same from a node that has memory.
    fn alloc_near(&self, node: NodeId, flags: AllocFlags) -> Option<NonNull<u8>> {
        if let Some(object) = self.alloc_from_main(node, flags) {
            self.count(Stat::AllocFastpath);
            return Some(object);
        }
        self.count(Stat::AllocNodeMismatch);
        let barn = self.node(node).map(|there| &there.barn);
        if let Some(object) = barn.and_then(|barn| barn.take_one(|object| is_of(object, node))) {
            self.count(Stat::AllocFastpath);
            return Some(object);
        }
        let object = self.take_one(node, flags, Spin::May)?;
        self.count(Stat::AllocSlowpath);
        Some(object)
    }

    /// An object of `node` from this CPU's main sheaf, if that is where CPU and object belong.
    fn alloc_from_main(&self, node: NodeId, flags: AllocFlags) -> Option<NonNull<u8>> {
        if mm::home_node() != node || self.sheaf_capacity() == 0 {
            return None;
        }
        let held = self.replace_empty_main(self.sheaves()?, flags, Spin::May)?;
        // CPU-4: this may be another node's CPU by now, so only the object itself tells.
        held.main.pop_if(|object| is_of(object, node))
    }
}

/// Whether `object`, which lies in a slab, is memory of `node`.
fn is_of(object: NonNull<u8>, node: NodeId) -> bool {
    mm::home_of(object) & !mm::home::RESERVE == node.index() as u8
}

/// [`kmalloc`](crate::kmalloc()) from `node`, which is a wish or, with [`AllocFlags::THIS_NODE`], a demand.
///
/// Context: any but NMI; never sleeps.
pub fn kmalloc_node(size: usize, node: Option<NodeId>, flags: AllocFlags) -> Option<NonNull<u8>> {
    match size {
        0 => Some(kmalloc::ZERO_SIZE),
        1..=kmalloc::MAX_CACHED => {
            let cache = kmalloc::cache_for(size);
            cache.alloc_node(node, flags).inspect(|&object| cache.note_asked(object, size, Spin::May))
        }
        _ => kmalloc::large_block(size, PAGE_SIZE, |order| mm::alloc_pages(order, node, flags).ok()),
    }
}
