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
//! # Invariants
//! - **REMOTE-1** All objects in a remote sheaf are of the node that the sheaf names, and none is of the reserve (S5-4).
//! - **REMOTE-2** A full sheaf never stays: the free that fills it exchanges it for an empty one of that node's barn; where
//!   the barn has none, it is put there and the next free makes a new one; where the barn has too many full ones, the
//!   objects go to their slabs and the sheaf stays.
//! - **REMOTE-3** A CPU has one remote sheaf. An object of a third node hands over what is there first: to the barn if at least
//!   half full, else to slabs, so that barns are not littered with sheaves of an object or two.
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
use crate::exchange::{Held, put_full};
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

impl RawCache {
    /// Frees `object` of `slab`, which this CPU's main sheaf is not for: of another node, or of the reserve.
    pub(crate) fn free_remote(&self, slab: SlabRef, object: NonNull<u8>) {
        if policy() == Policy::Batch && (self.push_remote(object) || self.begin_batch(slab, object)) {
            return;
        }
        self.free_to_slab(slab, object);
    }

    /// Puts `object` into the remote sheaf, if there is one for its node.
    #[inline]
    fn push_remote(&self, object: NonNull<u8>) -> bool {
        // Not equal to any node's number for an object of the reserve.
        let home = mm::home_of(object);
        let Some(held) = self.sheaves() else { return false };
        let Some(batch) = held.remote.filter(|batch| batch.node_byte() == home) else { return false };
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

    /// Puts `object` into a new remote sheaf. False if that cannot be.
    #[cold]
    #[inline(never)]
    fn begin_batch(&self, slab: SlabRef, object: NonNull<u8>) -> bool {
        if slab.is_reserve() || self.sheaf_capacity() == 0 {
            return false;
        }
        let Some(held) = self.sheaves() else { return false };
        let Some((held, batch)) = self.batch_for(held, slab.node()) else { return false };
        self.push_to_batch(held, batch, object);
        true
    }

    /// The remote sheaf for objects of `node`. On `None` the lock is dropped.
    fn batch_for(&self, mut held: Held, node: NodeId) -> Option<(Held, SheafRef)> {
        if let Some(third) = held.remote.take_if(|batch| batch.node() != node) {
            drop(held);
            self.hand_over(third);
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
                put_full(barn, full);
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
