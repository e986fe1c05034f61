//! What `slabinfo` shows.

use core::fmt;

use crate::cache::RawCache;
use crate::order::objects;
use crate::registry;

/// One line of `slabinfo`, version 2.1 (M-19). Objects in sheaves count as active, as in Linux.
#[derive(Clone, Copy, Debug)]
pub struct SlabInfo {
    /// Name of the cache.
    pub name: &'static str,
    /// Objects that are not free in a slab.
    pub active_objs: u64,
    /// Objects in all slabs.
    pub num_objs: u64,
    /// Bytes of an object.
    pub objsize: usize,
    /// Objects in a slab of the preferred order.
    pub objperslab: usize,
    /// Pages of such a slab.
    pub pagesperslab: usize,
    /// Slabs.
    pub num_slabs: u64,
}

impl RawCache {
    /// The cache's line of `slabinfo`: sums over nodes, each read by itself.
    ///
    /// Context: any but NMI.
    pub fn info(&self) -> SlabInfo {
        let order = self.orders().preferred;
        let total: u64 = self.nodes().map(|node| node.total_objects()).sum();
        let free: u64 = self.nodes().map(|node| node.free_in_partial()).sum();
        SlabInfo {
            name: self.name(),
            active_objs: total.saturating_sub(free),
            num_objs: total,
            objsize: self.size(),
            objperslab: objects(order, self.size()),
            pagesperslab: 1 << order,
            num_slabs: self.nodes().map(|node| node.nr_slabs()).sum(),
        }
    }

    /// Fill of the barns: (node, full sheaves, empty sheaves).
    pub fn barns(&self) -> impl Iterator<Item = (arch::NodeId, u32, u32)> + '_ {
        self.nodes().map(|node| (node.node, node.barn.nr_full(), node.barn.nr_empty()))
    }

    /// Partial slabs over all nodes.
    pub fn nr_partial(&self) -> usize {
        self.nodes().map(|node| node.nr_partial()).sum()
    }
}

/// The two header lines of `slabinfo`.
pub const HEADER: &str = "slabinfo - version: 2.1\n\
    # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> \
    : tunables <limit> <batchcount> <sharedfactor> \
    : slabdata <active_slabs> <num_slabs> <sharedavail>";

impl fmt::Display for SlabInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, active_objs, num_objs, objsize, objperslab, pagesperslab, num_slabs } = self;
        write!(f, "{name:<17} {active_objs:>6} {num_objs:>6} {objsize:>6} {objperslab:>4} {pagesperslab:>4}")?;
        write!(f, " : tunables {:>4} {:>4} {:>4}", 0, 0, 0)?;
        write!(f, " : slabdata {num_slabs:>6} {num_slabs:>6} {:>6}", 0)
    }
}

/// Every cache's line.
///
/// Context: any but NMI.
pub fn for_each(mut f: impl FnMut(SlabInfo)) {
    registry::for_each(|cache| f(cache.info()));
}
