//! Objects of another node, when they are freed: straight home, or a sheaf at a time.
//!
//! An object may only wait in a sheaf of its own node's CPUs; else a node's memory would be handed out on another (M-8).
//! What a CPU frees of other nodes goes one of two ways, which [`set_policy`] chooses between while the kernel runs:
//!
//! | [`Policy`] | way | costs an object |
//! |---|---|---|
//! | `Bypass` | to its slab, as in Linux | a compare-exchange on a descriptor that another node's CPUs use; a list lock where the slab was full or is empty now |
//! | `Batch` | into this CPU's *remote* sheaf, which goes to the barn of its objects' node as one piece | a push; a barn lock for a sheaf's capacity |
//!
//! # Why batches are the default
//!
//! Objects of 64 bytes, sheaves of 60; instructions by `cargo xtask bench slab_remote --icount --cpus 2 --nodes 2`, time by
//! the same without `--icount`, counts by the notes of the test
//! `slab_numa.what_one_node_allocates_and_another_frees_is_whole_and_comes_home`:
//!
//! | each object | bypass | batch |
//! |---|---|---|
//! | a free: instructions; under two emulated CPUs | 238; 148 ns | 76; 55 ns |
//! | from producer to consumer: instructions of both | 312 | 120 |
//! | compare-exchanges | 1.033 | 0.001 |
//! | list locks | 0.051 | 0.002 |
//! | barn locks | 0 | 0.033: two for a sheaf |
//! | a free, objects of two other nodes in turn (`--cpus 3 --nodes 3`): instructions | 238 | 186; without the row of REMOTE-3 477 |
//!
//! The batch also makes [`alloc_node`](RawCache::alloc_node) cheaper, which then finds a sheaf in the node's barn: 133
//! instructions against 264 from its slabs. What the bypass has to be said for: no object waits on a CPU (REMOTE-4).
//!
//! # Invariants
//! - **REMOTE-1** All objects in a remote sheaf are of the node that the sheaf names, and none is of the reserve (S5-4).
//! - **REMOTE-2** A full sheaf never stays: the free that fills it exchanges it for an empty one of that node's barn; where
//!   the barn has none, it is put there and the next free makes a new one; where the barn has too many full ones, the
//!   objects go to their slabs, the sheaf to this CPU's own barn, and the next free begins anew.
//! - **REMOTE-3** A CPU has one remote sheaf. Objects of a third node go to their slabs, until so many of them have come in
//!   a row that the sheaf had better be theirs ([`Strangers`]); then what is in it is handed over first: to the barn if at
//!   least half full, else to slabs, so that barns are not littered with sheaves of an object or two. Without the row, objects
//!   of two nodes in turn would hand over a sheaf each time.
//! - **REMOTE-4** A sheaf that is not full has no timer: it waits for more objects or for a flush, which takes it along
//!   with the CPU's other sheaves (barrier, shrink, destroy, a CPU that goes). So a CPU holds less than one sheaf's capacity.
//!
//! Context: any but NMI; a free from NMI goes by the deferred list first.
//!
//! Linux has the bypass only (`__slab_free` from `slab_free`, `mm/slub.c`, 7.x). Row: M-8.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arch::NodeId;
use mm::AllocFlags;

use crate::Spin;
use crate::barn::NoSwap;
use crate::cache::RawCache;
use crate::exchange::{Held, put_full, put_full_held};
use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;

/// How objects of other nodes go home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Each straight to its slab.
    Bypass,
    /// A sheaf at a time to its node's barn.
    Batch,
}

sync::param! {
    /// How objects that are freed on another node than their own go home: each to its slab, or a sheaf at a time.
    static SLAB_REMOTE: choice = "grange.slab_remote", default "batch", one of ["bypass", "batch"];
}

static BATCH: AtomicBool = AtomicBool::new(true);

/// Does what the command line says. Context: boot.
pub(crate) fn init() {
    set_policy(if SLAB_REMOTE.get() == "bypass" { Policy::Bypass } else { Policy::Batch });
}

/// What is done from now on. What lies in remote sheaves then stays until a flush.
///
/// Context: any.
pub fn set_policy(policy: Policy) {
    BATCH.store(policy == Policy::Batch, Relaxed);
}

/// What is done.
///
/// Context: any.
pub fn policy() -> Policy {
    if BATCH.load(Relaxed) { Policy::Batch } else { Policy::Bypass }
}

/// Objects in a row that were neither of the CPU's node nor of the remote sheaf's. A push into that sheaf ends the row, which
/// is seen by the sheaf's size, so that the push need not say so.
pub(crate) struct Strangers {
    row: u8,
    /// Objects in the remote sheaf when the last one came.
    size: u16,
}

impl Strangers {
    pub(crate) const NONE: Self = Self { row: 0, size: 0 };
    /// As many in a row get the remote sheaf for their node.
    const ENOUGH: u8 = 8;

    /// Another one, with `size` objects in the remote sheaf. Whether that is enough.
    fn another(&mut self, size: usize) -> bool {
        let row = if usize::from(self.size) == size { self.row + 1 } else { 1 };
        let enough = row == Self::ENOUGH;
        *self = if enough { Self::NONE } else { Self { row, size: size as u16 } };
        enough
    }
}

impl RawCache {
    /// Puts `object` of another home than this CPU's into the remote sheaf, if it is this cache's and there is one for its node: before
    /// anything else is known of it. `home` is no node's number for an object of the reserve, or for what is no object.
    #[inline]
    pub(crate) fn push_remote(&self, object: NonNull<u8>, home: u8) -> bool {
        if policy() == Policy::Bypass {
            return false;
        }
        let Some(held) = self.sheaves() else { return false };
        let Some(batch) = held.remote.filter(|batch| batch.node_byte() == home) else { return false };
        if !SlabRef::holds(self, object) {
            return false;
        }
        self.push_to_batch(held, batch, object);
        true
    }

    #[inline]
    fn push_to_batch(&self, held: Held, batch: SheafRef, object: NonNull<u8>) {
        let fits = batch.push(object);
        debug_assert!(fits, "REMOTE-2: a full remote sheaf stayed");
        self.count(Stat::FreeRemote);
        if batch.is_full() {
            self.exchange_batch(held, batch);
        }
    }

    /// Frees `object` of `slab`, which this CPU's sheaves are not for: of another node, or of the reserve.
    pub(crate) fn free_remote(&self, slab: SlabRef, object: NonNull<u8>) {
        if !self.begin_batch(slab, object) {
            self.free_to_slab(slab, object);
        }
    }

    /// Puts `object` into a new remote sheaf. False if that cannot be.
    fn begin_batch(&self, slab: SlabRef, object: NonNull<u8>) -> bool {
        if policy() == Policy::Bypass || slab.is_reserve() || self.sheaf_capacity() == 0 {
            return false;
        }
        let Some(held) = self.sheaves() else { return false };
        let Some((held, batch)) = self.batch_for(held, slab.node()) else { return false };
        self.push_to_batch(held, batch, object);
        true
    }

    /// The remote sheaf for objects of `node`. On `None` the lock is dropped.
    fn batch_for(&self, mut held: Held, node: NodeId) -> Option<(Held, SheafRef)> {
        if let Some(batch) = held.remote.filter(|batch| batch.node() != node) {
            if !held.strangers.another(batch.size()) {
                return None;
            }
            held.remote = None;
            drop(held);
            self.hand_over(batch);
            held = self.sheaves()?;
        }
        if held.remote.is_none() {
            let spare = held.spare.take_if(|spare| spare.is_empty());
            let empty = match spare.or_else(|| self.barn()?.get_empty(Spin::May)) {
                Some(empty) => empty,
                None => {
                    drop(held);
                    let empty = self.new_sheaf(AllocFlags::NO_RESERVE | AllocFlags::NOWARN, Spin::May)?;
                    // CPU-4: another CPU perhaps, and an interrupt may have begun a batch.
                    match self.sheaves().filter(|held| held.remote.is_none() && self.is_current(empty)) {
                        Some(again) => held = again,
                        None => {
                            self.put_empty_or_free(empty);
                            return None;
                        }
                    }
                    empty
                }
            };
            empty.set_node(node);
            held.remote = Some(empty);
        }
        let batch = held.remote.filter(|batch| batch.node() == node)?;
        Some((held, batch))
    }

    /// Exchanges the full remote sheaf `full` for an empty one (REMOTE-2).
    #[inline(never)]
    fn exchange_batch(&self, mut held: Held, full: SheafRef) {
        let node = full.node();
        let Some(barn) = self.node(node).map(|home| &home.barn) else { unreachable!("a node with objects has a barn") };
        held.remote = None;
        match barn.replace_full(full, Spin::May) {
            Ok(empty) => {
                empty.set_node(node);
                held.remote = Some(empty);
                self.count(Stat::BarnPut);
            }
            Err(NoSwap::NoEmpty) => {
                put_full_held(held, barn, full);
            }
            Err(NoSwap::TooManyFull) => {
                drop(held);
                self.count(Stat::BarnPutFail);
                self.flush(full);
                self.put_empty_or_free(full);
            }
        }
    }

    /// Gives away a remote sheaf that is not full (REMOTE-3).
    fn hand_over(&self, batch: SheafRef) {
        let barn = self.node(batch.node()).map(|home| &home.barn);
        match barn.filter(|barn| batch.size() * 2 >= batch.capacity() && barn.has_room_for_full()) {
            Some(barn) => put_full(barn, batch),
            None => {
                self.flush(batch);
                self.put_empty_or_free(batch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_strangers_ends_with_a_push_or_when_it_is_long_enough() {
        let mut strangers = Strangers::NONE;
        let rows = |strangers: &mut Strangers, sizes: [usize; 12]| sizes.map(|size| strangers.another(size));
        let eighth = |index| core::array::from_fn(|at| at == index);
        assert_eq!(rows(&mut strangers, [5; 12]), eighth(7), "eight in a row, then four of the next");
        assert_eq!(rows(&mut strangers, core::array::from_fn(|at| at)), [false; 12], "in turn with pushes");
        assert_eq!(rows(&mut strangers, [1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]), eighth(10), "anew after a push");
    }
}
