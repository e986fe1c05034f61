//! Who has the objects of a cache that remembers it (`U`), and who freed those that are free.
//!
//! Linux: `alloc_traces` and `free_traces` in debugfs (`mm/slub.c`, 7.x), which show both of objects in use.

use super::cell::Cell;
use super::track::Track;
use super::validate::{IsFree, settled};
use crate::Spin;
use crate::cache::RawCache;
use crate::slab_ref::SlabRef;

/// Whose calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traces {
    /// Of who allocated the objects that are in use.
    Alloc,
    /// Of who freed the objects that are free.
    Free,
}

impl RawCache {
    /// Calls `f` with the call behind each object; with none of a cache without `U`, of a slab whose freelist is damaged, and
    /// of objects that nobody has had yet.
    ///
    /// Context: any but NMI. `f` runs under a node's list lock: it must not allocate or free.
    pub fn for_each_trace(&self, which: Traces, mut f: impl FnMut(&Track)) {
        if !self.is_checked() {
            return;
        }
        for node in self.nodes() {
            let partial = node.lock(Spin::May).expect("waited for");
            for slab in partial.iter().chain(partial.full.iter()) {
                self.trace_slab(slab, which, &mut f);
            }
        }
    }

    /// One slab, under its node's list lock.
    fn trace_slab(&self, slab: SlabRef, which: Traces, f: &mut impl FnMut(&Track)) {
        let state = settled(slab);
        let mut is_free: IsFree = [0; _];
        let followed = self.follow(slab, state, state.free(), |object| {
            let index = (object.addr().get() - slab.base().addr()) / self.size();
            is_free[index / 64] |= 1 << (index % 64);
        });
        if followed.is_err() {
            return;
        }
        for index in 0..state.objects as usize {
            let (allocated, freed) = Cell { slab, object: slab.object(index) }.tracks();
            let is_free = is_free[index / 64] >> (index % 64) & 1 != 0;
            let call = match which {
                Traces::Alloc => (!is_free).then_some(allocated),
                Traces::Free => is_free.then_some(freed),
            };
            call.iter().filter(|call| call.is_some()).for_each(&mut *f);
        }
    }
}
