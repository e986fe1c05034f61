//! The machine put together from MADT, SRAT and SLIT: CPUs, nodes, memory, distances.
//!
//! Proximity domains are 32-bit numbers with gaps; nodes are 0, 1, 2 … in the order of the domains.
//! A domain with CPUs or memory makes a node, so a node may lack either. The boot CPU is CPU 0; the
//! others follow in the MADT's order.
//!
//! - ACPI-2: there is always at least one CPU and one node, whatever the tables say.
//! - ACPI-3: damage in one table costs that table alone: without MADT only the boot CPU is known,
//!   without SRAT everything is on node 0, without SLIT all distances are 10 and 20.
//!
//! Context: any (pure). Answers to `drivers/acpi/numa/srat.c` and `arch/x86/mm/numa.c` of Linux.

use arrayvec::ArrayVec;

use super::madt::Cpus;
use super::slit::{Slit, default_distance};
use super::srat::{MAX_RANGES, Srat};
use super::walk::Damage;
use crate::{MAX_CPUS, MAX_NODES, NodeId};

/// A CPU that firmware describes as enabled.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct CpuEntry {
    /// Its APIC id.
    pub apic_id: u32,
    /// The node that it is on.
    pub node: NodeId,
}

/// A range of physical memory addresses and the node that it is on.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct MemAffinity {
    /// First physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// The node.
    pub node: NodeId,
}

/// Everything the tables say about the shape of the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs by number; the boot CPU first.
    pub cpus: ArrayVec<CpuEntry, MAX_CPUS>,
    /// Memory by node. Says nothing about which of it is usable RAM.
    pub memory: ArrayVec<MemAffinity, MAX_RANGES>,
    /// Number of nodes, at least 1.
    pub nodes: usize,
    /// Relative distance from row to column; 10 on the diagonal.
    pub distance: [[u8; MAX_NODES]; MAX_NODES],
}

impl Machine {
    /// Puts the machine together.
    ///
    /// # Errors
    /// [`Damage::TooMany`] if the SRAT names more domains than there are nodes; call again without.
    pub fn assemble(
        boot_apic_id: u32,
        cpus: &Cpus,
        srat: Option<&Srat>,
        slit: Option<&Slit<'_>>,
    ) -> Result<Self, Damage> {
        let domains = domains(boot_apic_id, cpus, srat)?;
        let node_of = |apic_id: u32| {
            let entry = srat.and_then(|s| s.cpus.iter().find(|(id, _)| *id == apic_id));
            node(&domains, entry.map_or(domains[0], |&(_, domain)| domain))
        };

        let mut machine = Self {
            cpus: ArrayVec::new(),
            memory: ArrayVec::new(),
            nodes: domains.len(),
            distance: [[0; MAX_NODES]; MAX_NODES],
        };
        machine.cpus.push(CpuEntry { apic_id: boot_apic_id, node: node_of(boot_apic_id) });
        for &apic_id in cpus.apic_ids.iter().filter(|&&id| id != boot_apic_id) {
            // The one place more that the boot CPU may need, if the MADT is full without it.
            if machine.cpus.try_push(CpuEntry { apic_id, node: node_of(apic_id) }).is_err() {
                break;
            }
        }
        for range in srat.iter().flat_map(|s| &s.memory) {
            let entry = MemAffinity { start: range.start, len: range.len, node: node(&domains, range.domain) };
            machine.memory.push(entry);
        }
        if machine.memory.is_empty() {
            machine.memory.push(MemAffinity { start: 0, len: u64::MAX, node: NodeId::new(0) });
        }
        for (row, &from) in domains.iter().enumerate() {
            for (column, &to) in domains.iter().enumerate() {
                machine.distance[row][column] =
                    slit.map_or_else(|| default_distance(from, to), |s| s.distance(from, to));
            }
        }
        Ok(machine)
    }
}

/// The domains that become nodes, ascending. Never empty.
fn domains(boot_apic_id: u32, cpus: &Cpus, srat: Option<&Srat>) -> Result<ArrayVec<u32, MAX_NODES>, Damage> {
    let mut domains = ArrayVec::new();
    if let Some(srat) = srat {
        // A CPU of the SRAT that is not in the MADT does not exist; its domain alone makes no node.
        let exists = |id: u32| id == boot_apic_id || cpus.apic_ids.contains(&id);
        let of_cpus = srat.cpus.iter().filter(|(id, _)| exists(*id)).map(|&(_, domain)| domain);
        for domain in of_cpus.chain(srat.memory.iter().map(|range| range.domain)) {
            if !domains.contains(&domain) {
                domains.try_push(domain).map_err(|_| Damage::TooMany)?;
            }
        }
    }
    if domains.is_empty() {
        domains.push(0);
    }
    domains.sort_unstable();
    Ok(domains)
}

fn node(domains: &[u32], domain: u32) -> NodeId {
    NodeId::new(domains.iter().position(|&d| d == domain).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::{madt, slit, srat};
    use super::*;
    use std::vec::Vec;

    fn cpus(ids: &[u8]) -> Cpus {
        let records: Vec<_> = ids.iter().map(|&id| madt::build::cpu(id, 1)).collect();
        madt::parse(&madt::build::madt(&records), 254).unwrap()
    }

    fn affinity(cpu_domains: &[(u8, u32)], memory: &[(u64, u64, u32)]) -> Srat {
        let mut records: Vec<_> = cpu_domains.iter().map(|&(id, domain)| srat::build::cpu(id, domain, 1)).collect();
        records.extend(memory.iter().map(|&(s, l, d)| srat::build::memory(s, l, d, 1)));
        srat::parse(&srat::build::srat(3, &records)).unwrap()
    }

    fn nodes_of(machine: &Machine) -> Vec<(u32, usize)> {
        machine.cpus.iter().map(|c| (c.apic_id, c.node.index())).collect()
    }

    #[test]
    fn the_boot_cpu_comes_first_even_if_it_is_not_first_in_the_madt() {
        let machine = Machine::assemble(4, &cpus(&[0, 1, 4, 5]), None, None).unwrap();
        assert_eq!(nodes_of(&machine), [(4, 0), (0, 0), (1, 0), (5, 0)]);
    }

    #[test]
    fn without_tables_there_is_one_cpu_on_one_node_with_all_memory() {
        let machine = Machine::assemble(0, &Cpus::default(), None, None).unwrap();
        assert_eq!((machine.cpus.len(), machine.nodes, machine.distance[0][0]), (1, 1, 10));
        assert_eq!(machine.memory[0], MemAffinity { start: 0, len: u64::MAX, node: NodeId::new(0) });
    }

    #[test]
    fn domains_with_gaps_become_dense_nodes() {
        let srat = affinity(&[(0, 3), (1, 200)], &[(0, 0x1000, 3), (0x1000, 0x1000, 200)]);
        let machine = Machine::assemble(0, &cpus(&[0, 1]), Some(&srat), None).unwrap();
        assert_eq!(nodes_of(&machine), [(0, 0), (1, 1)]);
        assert_eq!(machine.memory[1].node.index(), 1);
        assert_eq!((machine.nodes, machine.distance[0][1], machine.distance[1][1]), (2, 20, 10));
    }

    #[test]
    fn nodes_without_memory_and_nodes_without_cpus_are_nodes() {
        let srat = affinity(&[(0, 0), (1, 1)], &[(0, 0x1000, 0), (0x1000, 0x1000, 2)]);
        let machine = Machine::assemble(0, &cpus(&[0, 1]), Some(&srat), None).unwrap();
        assert_eq!(machine.nodes, 3);
        assert!(machine.memory.iter().all(|m| m.node.index() != 1));
        assert!(machine.cpus.iter().all(|c| c.node.index() != 2));
    }

    #[test]
    fn distances_are_looked_up_by_domain_and_stored_by_node() {
        let srat = affinity(&[(0, 0), (1, 2)], &[]);
        let table = slit::build::slit(3, &[10, 11, 12, 13, 10, 14, 15, 16, 10]);
        let slit = slit::parse(&table).unwrap();
        let machine = Machine::assemble(0, &cpus(&[0, 1]), Some(&srat), Some(&slit)).unwrap();
        assert_eq!((machine.distance[0][1], machine.distance[1][0]), (12, 15));
    }

    #[test]
    fn a_cpu_that_the_srat_forgets_is_on_node_zero() {
        let srat = affinity(&[(0, 1)], &[(0, 0x1000, 0)]);
        let machine = Machine::assemble(0, &cpus(&[0, 7]), Some(&srat), None).unwrap();
        assert_eq!(nodes_of(&machine), [(0, 1), (7, 0)]);
    }

    #[test]
    fn a_domain_of_absent_cpus_makes_no_node() {
        let srat = affinity(&[(0, 0), (9, 5)], &[(0, 0x1000, 0)]);
        assert_eq!(Machine::assemble(0, &cpus(&[0]), Some(&srat), None).unwrap().nodes, 1);
    }

    #[test]
    fn more_domains_than_nodes_is_damage() {
        let ranges: Vec<_> = (0..=MAX_NODES as u64).map(|n| (n << 12, 0x1000, n as u32)).collect();
        let srat = affinity(&[], &ranges);
        assert!(matches!(Machine::assemble(0, &cpus(&[0]), Some(&srat), None), Err(Damage::TooMany)));
    }
}
