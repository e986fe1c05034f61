//! What a cache is, holds and has room for: what `slabinfo` shows (M-17, M-19).
//!
//! Figures are read one after the other while the cache is in use. Those of a node that lie under its list lock belong
//! together ([`NodeInfo`]), those of one CPU's sheaves do ([`CpuSheaves`]); sums over nodes and CPUs are no snapshot.
//!
//! Linux: `/proc/slabinfo`, `/sys/kernel/slab/<cache>/` (`mm/slub.c`, `mm/slab_common.c`, 7.x).

use core::fmt;

use arch::{CpuId, NodeId};
use sync::smp;

use crate::Spin;
use crate::cache::{CacheFlags, RawCache};
use crate::debug::DebugFlags;
use crate::node::CacheNode;
use crate::order::objects;
use crate::registry;
use crate::sheaf::SheafRef;

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

    /// What the cache has on each node.
    ///
    /// Context: any but NMI. Takes each node's list lock for the length of its partial list.
    pub fn by_node(&self) -> impl Iterator<Item = NodeInfo> + '_ {
        self.nodes().map(NodeInfo::of)
    }

    /// How full the sheaves of `cpu` are: at one moment, for it is that CPU that looks. Nothing if it is offline.
    ///
    /// Context: task, interrupts on, no lock held.
    pub fn sheaves_on(&'static self, cpu: CpuId) -> Option<CpuSheaves> {
        loop {
            let look = || {
                let held = self.sheaves()?;
                Some(CpuSheaves {
                    main: Fill::of(held.main),
                    spare: held.spare.map(Fill::of),
                    rcu_free: held.rcu_free.map(Fill::of),
                    remote: held.remote.map(Fill::of),
                })
            };
            match smp::run_on(cpu, look)? {
                Some(fill) => return Some(fill),
                // The call has hit somebody there who is using them.
                None => arch::irq::relax(),
            }
        }
    }

    /// The cache's attributes under the names that they have below `/sys/kernel/slab` (M-17); yes is 1, and the constructor
    /// is its address.
    ///
    /// Context: any but NMI.
    pub fn attributes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let orders = self.orders();
        let sum = |f: fn(&NodeInfo) -> u64| self.by_node().map(|node| f(&node)).sum::<u64>();
        let flag = |flag| u64::from(self.flags().contains(flag));
        let debug = |flag| u64::from(self.debug().contains(flag));
        [
            ("object_size", self.object_size() as u64),
            ("slab_size", self.size() as u64),
            ("align", self.align() as u64),
            ("order", orders.preferred as u64),
            ("objs_per_slab", objects(orders.preferred, self.size()) as u64),
            ("slabs", sum(|node| node.slabs)),
            ("partial", sum(|node| node.partial)),
            ("objects", sum(|node| node.total_objects - node.free_objects)),
            ("objects_partial", sum(|node| node.partial_objects - node.free_objects)),
            ("total_objects", sum(|node| node.total_objects)),
            ("sheaf_capacity", self.sheaf_capacity() as u64),
            ("min_partial", self.min_partial() as u64),
            // Of the slabs that CPUs had of their own before there were sheaves (M-2).
            ("cpu_partial", 0),
            ("cpu_slabs", 0),
            ("slabs_cpu_partial", 0),
            ("remote_node_defrag_ratio", self.remote_node_defrag_ratio().into()),
            ("aliases", self.aliases() as u64),
            ("ctor", self.ctor().map_or(0, |ctor| ctor as usize as u64)),
            ("hwcache_align", flag(CacheFlags::HWCACHE_ALIGN)),
            ("sanity_checks", debug(DebugFlags::CONSISTENCY)),
            ("red_zone", debug(DebugFlags::RED_ZONE)),
            ("poison", debug(DebugFlags::POISON)),
            ("store_user", debug(DebugFlags::STORE_USER)),
            ("trace", debug(DebugFlags::TRACE)),
            ("failslab", (self.is_selected() || self.debug().contains(DebugFlags::FAILSLAB)).into()),
            ("destroy_by_rcu", u64::from(self.flags().contains(CacheFlags::TYPESAFE_BY_RCU) && self.srcu().is_none())),
            ("destroy_by_srcu", self.srcu().is_some().into()),
        ]
        .into_iter()
    }

    /// Partial slabs over all nodes.
    pub fn nr_partial(&self) -> usize {
        self.nodes().map(|node| node.nr_partial()).sum()
    }
}

/// One cache on one node.
#[derive(Clone, Copy, Debug)]
pub struct NodeInfo {
    /// The node.
    pub node: NodeId,
    /// Slabs, and objects in them.
    pub slabs: u64,
    /// Objects in all slabs.
    pub total_objects: u64,
    /// Slabs on the partial list.
    pub partial: u64,
    /// Objects in the slabs of that list.
    pub partial_objects: u64,
    /// Those of them that are free.
    pub free_objects: u64,
    /// The partial slabs by how full they are, in tenths: `fill[0]` are those with less than a tenth of their objects in
    /// use, `fill[9]` those with nine tenths or more.
    pub fill: [u64; 10],
    /// Full sheaves in the barn, and how many it keeps.
    pub barn_full: (u32, u32),
    /// Empty sheaves in the barn, and how many it keeps.
    pub barn_empty: (u32, u32),
}

impl NodeInfo {
    fn of(node: &CacheNode) -> Self {
        let (max_full, max_empty) = node.barn.limits();
        let mut info = Self {
            node: node.node,
            slabs: 0,
            total_objects: 0,
            partial: 0,
            partial_objects: 0,
            free_objects: 0,
            fill: [0; 10],
            barn_full: (node.barn.nr_full(), max_full),
            barn_empty: (node.barn.nr_empty(), max_empty),
        };
        let partial = node.lock(Spin::May).expect("waited for");
        for slab in partial.iter() {
            let state = slab.state();
            info.partial += 1;
            info.partial_objects += u64::from(state.objects);
            info.free_objects += u64::from(state.free());
            info.fill[tenth(state.inuse, state.objects)] += 1;
        }
        // Read last: a slab is counted before it comes to the list. One that goes is taken off the list first.
        info.slabs = node.nr_slabs();
        info.total_objects = node.total_objects();
        info
    }
}

/// Which tenth of `objects` `inuse` lies in; all of them are in the last.
fn tenth(inuse: u32, objects: u32) -> usize {
    (u64::from(inuse) * 10 / u64::from(objects)).min(9) as usize
}

/// How full a sheaf is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    /// Objects in it.
    pub size: usize,
    /// Objects that it has room for.
    pub capacity: usize,
}

impl Fill {
    fn of(sheaf: SheafRef) -> Self {
        Self { size: sheaf.size(), capacity: sheaf.capacity() }
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.size, self.capacity)
    }
}

/// The sheaves of one CPU. One of capacity 0 stands for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuSheaves {
    /// Where objects are taken and put.
    pub main: Fill,
    /// What main is exchanged with.
    pub spare: Option<Fill>,
    /// What waits for a grace period.
    pub rcu_free: Option<Fill>,
    /// Objects of another node, on their way home.
    pub remote: Option<Fill>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    #[test]
    fn a_slab_with_all_objects_in_use_is_in_the_last_tenth() {
        for (inuse, objects, expected) in [(0, 64, 0), (6, 64, 0), (7, 64, 1), (32, 64, 5), (63, 64, 9), (64, 64, 9)] {
            assert_eq!(tenth(inuse, objects), expected, "{inuse} of {objects}");
        }
        assert_eq!(tenth(1, 1), 9);
    }

    #[test]
    fn a_line_of_slabinfo_has_the_columns_that_the_header_names() {
        let info = SlabInfo {
            name: "kmalloc-64",
            active_objs: 12,
            num_objs: 128,
            objsize: 64,
            objperslab: 64,
            pagesperslab: 1,
            num_slabs: 2,
        };
        let line = "kmalloc-64            12    128     64   64    1 : tunables    0    0    0 : slabdata      2      2      0";
        assert_eq!(info.to_string(), line);
        let (version, header) = HEADER.split_once('\n').unwrap();
        assert_eq!(version, "slabinfo - version: 2.1");
        // As the readers of this format count: words, where the header's are named between angles but for the first.
        let named: Vec<&str> = header.trim_start_matches("# ").split_whitespace().collect();
        let values: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(named.len(), values.len());
        for (name, value) in named.iter().zip(&values).skip(1) {
            assert_eq!(name.starts_with('<'), value.parse::<u64>().is_ok(), "{name} {value}");
            assert!(name.starts_with('<') || name == value, "{name} {value}");
        }
        assert_eq!(String::from(named[0]), "name");
    }
}
