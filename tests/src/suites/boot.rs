//! What the boot promises to everything after it.

use arch::{MAX_NODES, NodeId, cpu};

use crate::{ensure, ensure_eq, ktest};

ktest! {
    /// Every CPU that the machine has came up. `maxcpus=` would keep some from it.
    fn every_present_cpu_is_online(_t: &mut Test) {
        ensure_eq!(cpu::online(), cpu::present());
        Ok(())
    }

    /// A CPU is on a node that exists.
    fn every_cpu_is_on_a_known_node(_t: &mut Test) {
        let nodes = cpu::nodes_online();
        for id in cpu::present().iter() {
            let node = cpu::node_of(id);
            ensure!(nodes & (1 << node.index()) != 0, "CPU {id} is on node {node}, of {nodes:#b}");
        }
        Ok(())
    }

    /// A node is nearest to itself.
    fn no_node_is_nearer_than_ones_own(_t: &mut Test) {
        let nodes = cpu::nodes_online();
        let known = || (0..MAX_NODES).filter(|&index| nodes & (1 << index) != 0).map(NodeId::new);
        for (from, to) in known().flat_map(|from| known().map(move |to| (from, to))) {
            let (own, other) = (cpu::distance(from, from), cpu::distance(from, to));
            ensure!(from == to || own < other, "node {from}: {own} to itself, {other} to node {to}");
        }
        Ok(())
    }

    /// Pages asked for on a node that has plenty are on that node.
    fn pages_come_from_the_node_that_was_asked_for(_t: &mut Test) {
        for stats in mm::stats::nodes().filter(|stats| stats.free > 4 * stats.low) {
            let Ok(page) = mm::alloc_pages(0, Some(stats.node), mm::AllocFlags::NOWAIT) else {
                return Err(crate::__failed!("no page on node {}", stats.node));
            };
            let node = page.node();
            mm::free_pages(page, 0);
            ensure_eq!(node, stats.node);
        }
        Ok(())
    }
}
