//! Where the memory is, per node and per order.
//!
//! Each figure is right at some moment; together they are of one moment only while nobody allocates. Then
//! `managed = free + on per-CPU lists + deferred + in use` holds exactly, and `in use` is computed from it.
//!
//! Linux: `/proc/buddyinfo`, `/proc/zoneinfo`.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use arch::NodeId;

use crate::buddy::MAX_ORDER;
use crate::memmap::MAP;
use crate::{pcp, zone};

/// The memory of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeStats {
    /// Which node.
    pub node: NodeId,
    /// Pages given to the allocator at boot.
    pub managed: usize,
    /// Pages on the free lists.
    pub free: usize,
    /// Pages on the per-CPU lists.
    pub per_cpu: usize,
    /// Pages freed from NMI that wait to be put away.
    pub deferred: usize,
    /// Free blocks of each order.
    pub blocks: [usize; MAX_ORDER + 1],
    /// Below this many free pages, frees go past the per-CPU lists.
    pub low: usize,
    /// Below this many free pages, only RESERVE gets memory.
    pub min: usize,
    /// Blocks taken from the free lists for callers that preferred this node.
    pub local: u64,
    /// Blocks taken from the free lists for callers that preferred another node.
    pub foreign: u64,
    /// Frees that found the lock taken.
    pub deferred_frees: u64,
    /// Requests for this node that no node could serve.
    pub failed: u64,
}

impl NodeStats {
    /// Pages that somebody has.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.managed.saturating_sub(self.free + self.per_cpu + self.deferred)
    }
}

impl fmt::Display for NodeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node {}: {} pages, {} free, {} per-CPU, {} in use, low {}, min {}; blocks by order",
            self.node,
            self.managed,
            self.free,
            self.per_cpu + self.deferred,
            self.in_use(),
            self.low,
            self.min
        )?;
        self.blocks.iter().try_for_each(|blocks| write!(f, " {blocks}"))
    }
}

/// The figures of a node; of one without memory, zeros.
///
/// Context: any but NMI. Takes the zone lock.
pub fn node(node: NodeId) -> NodeStats {
    let zone = zone::of(node);
    let blocks = zone.blocks(&MAP);
    NodeStats {
        node,
        managed: zone.managed_pages(),
        free: blocks.iter().enumerate().map(|(order, blocks)| blocks << order).sum(),
        per_cpu: arch::cpu::present().iter().filter(|&cpu| pcp::home(cpu) == node).map(pcp::pages_on).sum(),
        deferred: zone.deferred_pages(),
        blocks,
        low: zone.low(),
        min: zone.min(),
        local: zone.counts.local.load(Relaxed),
        foreign: zone.counts.foreign.load(Relaxed),
        deferred_frees: zone.counts.deferred.load(Relaxed),
        failed: zone.counts.failed.load(Relaxed),
    }
}

/// The figures of all nodes that have memory.
///
/// Context: any but NMI.
pub fn nodes() -> impl Iterator<Item = NodeStats> {
    zone::with_memory().map(|(id, _)| node(id))
}

/// The nodes with memory, nearest to `node` first: itself, if it has any.
///
/// Context: any.
pub fn nearest(node: NodeId) -> impl Iterator<Item = NodeId> {
    zone::of(node).fallback()
}

/// Whether so few pages of `node` are free that frees go past the per-CPU lists. Of a node without memory: no.
///
/// Context: any. A hint, read without a lock.
pub fn is_low(node: NodeId) -> bool {
    zone::of(node).is_low()
}

/// Free pages of all nodes, without a lock: those on the free lists only.
///
/// Context: any.
pub fn free_pages() -> usize {
    zone::with_memory().map(|(_, zone)| zone.free_pages()).sum()
}

/// Pages of all nodes that were given to the allocator at boot.
///
/// Context: any.
pub fn managed_pages() -> usize {
    zone::with_memory().map(|(_, zone)| zone.managed_pages()).sum()
}
