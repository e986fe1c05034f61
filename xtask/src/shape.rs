//! The shape of a machine: CPUs, nodes, memory. Impossible ones are refused here, before QEMU starts.

use std::fmt;

use crate::cli::{Distance, MachineArgs};
use crate::exit::usage;

/// The emulated machine has xAPICs only, whose ids are 8 bits wide with 255 meaning "all".
pub const MAX_CPUS: u32 = 255;
/// As many nodes as the kernel keeps in one word.
pub const MAX_NODES: u32 = 64;
/// Below this the loader and the kernel with its per-CPU areas do not fit.
const MIN_MEMORY: u64 = 64 * MIB;
/// The first node that has memory holds what firmware and loader use.
const MIN_FIRST_NODE: u64 = 32 * MIB;
/// Highest APIC id a CPU can have.
const MAX_APIC_ID: u32 = 254;

const MIB: u64 = 1 << 20;

/// A machine that can exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// CPUs of each node.
    pub node_cpus: Vec<u32>,
    /// Bytes of memory of each node.
    pub node_memory: Vec<u64>,
    /// What the SLIT says.
    pub distance: Distance,
}

/// What a command starts from when the user gives no shape.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// CPUs.
    pub cpus: u32,
    /// Nodes.
    pub nodes: u32,
}

impl Shape {
    /// The shape the arguments describe.
    ///
    /// # Errors
    /// `Usage`, in one line that names the bad input and what is allowed.
    pub fn from_args(args: &MachineArgs, defaults: Defaults) -> anyhow::Result<Shape> {
        let node_cpus = node_cpus(args, defaults)?;
        let nodes = node_cpus.len();
        let node_memory = match &args.node_memory {
            Some(sizes) if sizes.len() != nodes => {
                return Err(usage(format!("--node-memory gives {} sizes for {nodes} nodes: one a node", sizes.len())));
            }
            Some(sizes) => sizes.iter().map(|size| bytes("--node-memory", size)).collect::<anyhow::Result<_>>()?,
            None => deal(bytes("--memory", args.memory.as_deref().unwrap_or("512M"))? / MIB, nodes)
                .into_iter()
                .map(|mib| mib * MIB)
                .collect(),
        };
        let shape = Shape { node_cpus, node_memory, distance: args.distance };
        shape.check_memory()?;
        Ok(shape)
    }

    /// An even shape with the default memory.
    ///
    /// # Errors
    /// As [`Shape::from_args`].
    pub fn even(cpus: u32, nodes: u32) -> anyhow::Result<Shape> {
        Shape::from_args(
            &MachineArgs { cpus: Some(cpus), nodes: Some(nodes), ..MachineArgs::default() },
            Defaults { cpus, nodes },
        )
    }

    /// CPUs of the whole machine.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.node_cpus.iter().sum()
    }

    /// Nodes.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.node_cpus.len() as u32
    }

    /// Bytes of the whole machine.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.node_memory.iter().sum()
    }

    /// Short name for folders: `7c3n`.
    #[must_use]
    pub fn slug(&self) -> String {
        format!("{}c{}n", self.cpus(), self.nodes())
    }

    /// Sockets and cores a socket. A node is a socket where all nodes are alike; else each CPU is its own socket, which
    /// also keeps the APIC ids without gaps.
    #[must_use]
    pub fn sockets_and_cores(&self) -> (u32, u32) {
        let cores = self.node_cpus[0];
        let even = cores > 0 && self.node_cpus.iter().all(|&cpus| cpus == cores);
        let highest_id = (self.nodes() - 1) * cores.next_power_of_two() + cores.saturating_sub(1);
        if even && highest_id <= MAX_APIC_ID { (self.nodes(), cores) } else { (self.cpus(), 1) }
    }

    /// Distance between two nodes, 10 to oneself.
    #[must_use]
    pub fn distance_between(&self, a: u32, b: u32) -> u32 {
        let apart = a.abs_diff(b);
        let hops = if self.distance == Distance::Ring { apart.min(self.nodes() - apart) } else { apart };
        (10 + 10 * hops).min(254)
    }

    /// The options that give this shape again.
    #[must_use]
    pub fn options(&self) -> String {
        let even_cpus = deal(u64::from(self.cpus()), self.node_cpus.len());
        let cpus = if self.node_cpus.iter().map(|&c| u64::from(c)).eq(even_cpus) {
            format!("--cpus {} --nodes {}", self.cpus(), self.nodes())
        } else {
            format!("--node-cpus {}", join(self.node_cpus.iter()))
        };
        let even_memory = deal(self.memory() / MIB, self.node_memory.len());
        match self.node_memory.iter().map(|bytes| bytes / MIB).eq(even_memory) {
            true if self.memory() == 512 * MIB => cpus,
            true => format!("{cpus} --memory {}M", self.memory() / MIB),
            false => format!(
                "{cpus} --node-memory {}",
                join(self.node_memory.iter().map(|bytes| format!("{}M", bytes / MIB)))
            ),
        }
    }

    fn check_memory(&self) -> anyhow::Result<()> {
        if self.memory() < MIN_MEMORY {
            return Err(usage(format!(
                "{} MiB of memory: too small, at least {} MiB",
                self.memory() / MIB,
                MIN_MEMORY / MIB
            )));
        }
        let empty = |node: &usize| self.node_cpus[*node] == 0 && self.node_memory[*node] == 0;
        if let Some(node) = (0..self.node_cpus.len()).find(empty) {
            return Err(usage(format!("node {node} has neither CPUs nor memory: the kernel could not know of it")));
        }
        let first = self.node_memory.iter().enumerate().find(|(_, bytes)| **bytes > 0);
        if let Some((node, bytes)) = first.filter(|(_, bytes)| **bytes < MIN_FIRST_NODE) {
            return Err(usage(format!(
                "node {node}, the first with memory, has {} MiB: too small, at least {} MiB",
                bytes / MIB,
                MIN_FIRST_NODE / MIB
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: u32| if n == 1 { "" } else { "s" };
        write!(f, "{} CPU{} on {} node{}", self.cpus(), plural(self.cpus()), self.nodes(), plural(self.nodes()))
    }
}

fn join(items: impl Iterator<Item = impl fmt::Display>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

/// `total` in `parts` parts that differ by at most one, the larger ones first.
fn deal(total: u64, parts: usize) -> Vec<u64> {
    let parts = parts as u64;
    (0..parts).map(|part| total / parts + u64::from(part < total % parts)).collect()
}

fn node_cpus(args: &MachineArgs, defaults: Defaults) -> anyhow::Result<Vec<u32>> {
    if let Some(split) = &args.node_cpus {
        let cpus = split.iter().fold(0_u32, |sum, &cpus| sum.saturating_add(cpus));
        check_counts(cpus, split.len() as u32)?;
        if args.cpus.is_some_and(|given| given != cpus) || args.nodes.is_some_and(|given| given as usize != split.len())
        {
            let split_text = join(split.iter());
            return Err(usage(format!(
                "--node-cpus {split_text} is {cpus} CPUs on {} nodes, which --cpus or --nodes contradicts",
                split.len()
            )));
        }
        return Ok(split.clone());
    }
    let cpus = args.cpus.unwrap_or(defaults.cpus);
    // A user who asks for one CPU and says nothing of nodes does not mean the default's two.
    let nodes =
        args.nodes.unwrap_or(if args.cpus.is_some() { defaults.nodes.min(cpus.max(1)) } else { defaults.nodes });
    check_counts(cpus, nodes)?;
    if nodes > cpus {
        return Err(usage(format!(
            "--nodes {nodes} with --cpus {cpus}: more nodes than CPUs; for nodes without CPUs give --node-cpus, such as 1,0"
        )));
    }
    Ok(deal(u64::from(cpus), nodes as usize).into_iter().map(|cpus| cpus as u32).collect())
}

fn check_counts(cpus: u32, nodes: u32) -> anyhow::Result<()> {
    if !(1..=MAX_CPUS).contains(&cpus) {
        return Err(usage(format!("{cpus} CPUs: allowed are 1 to {MAX_CPUS} (an xAPIC has 255 ids for CPUs)")));
    }
    if !(1..=MAX_NODES).contains(&nodes) {
        return Err(usage(format!("{nodes} nodes: allowed are 1 to {MAX_NODES}")));
    }
    Ok(())
}

/// A size such as `512M` or `2G`; without a suffix it is MiB, as for QEMU.
fn bytes(option: &str, text: &str) -> anyhow::Result<u64> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], MIB),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, MIB),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|bytes| bytes % MIB == 0);
    bytes.ok_or_else(|| usage(format!("{option} {text}: not a size in whole MiB, such as 512M or 2G")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(args: &MachineArgs) -> Result<Shape, String> {
        Shape::from_args(args, Defaults { cpus: 4, nodes: 2 }).map_err(|error| {
            assert_eq!(crate::exit::of(&error), crate::exit::Exit::Usage);
            error.to_string()
        })
    }

    fn args(cpus: u32, nodes: u32) -> MachineArgs {
        MachineArgs { cpus: Some(cpus), nodes: Some(nodes), ..MachineArgs::default() }
    }

    #[test]
    fn cpus_and_memory_are_dealt_out_with_the_rest_to_the_first_nodes() {
        let shape = shape(&args(7, 3)).unwrap();
        assert_eq!(shape.node_cpus, [3, 2, 2]);
        assert_eq!(shape.node_memory.iter().map(|bytes| bytes / MIB).collect::<Vec<_>>(), [171, 171, 170]);
        assert_eq!(shape.sockets_and_cores(), (7, 1));
        assert_eq!(shape.slug(), "7c3n");
    }

    #[test]
    fn equal_nodes_are_sockets_unless_their_apic_ids_would_not_fit() {
        assert_eq!(shape(&args(8, 2)).unwrap().sockets_and_cores(), (2, 4));
        assert_eq!(shape(&args(255, 3)).unwrap().sockets_and_cores(), (255, 1));
        assert_eq!(shape(&args(255, 1)).unwrap().sockets_and_cores(), (1, 255));
    }

    #[test]
    fn distances_of_a_ring_close_and_those_of_a_line_do_not() {
        let mut shape = shape(&args(4, 4)).unwrap();
        assert_eq!((0..4).map(|node| shape.distance_between(0, node)).collect::<Vec<_>>(), [10, 20, 30, 20]);
        shape.distance = Distance::Line;
        assert_eq!(shape.distance_between(0, 3), 40);
    }

    #[test]
    fn one_cpu_without_a_word_about_nodes_is_one_node() {
        let one = shape(&MachineArgs { cpus: Some(1), ..MachineArgs::default() }).unwrap();
        assert_eq!((one.cpus(), one.nodes()), (1, 1));
    }

    #[test]
    fn impossible_shapes_are_refused_in_one_line_that_names_the_input() {
        let with = |change: fn(&mut MachineArgs)| {
            let mut args = MachineArgs::default();
            change(&mut args);
            shape(&args).unwrap_err()
        };
        let cases: [(String, &str); 14] = [
            (shape(&args(0, 1)).unwrap_err(), "0 CPUs: allowed are 1 to 255"),
            (shape(&args(256, 1)).unwrap_err(), "xAPIC has 255 ids"),
            (shape(&args(4, 0)).unwrap_err(), "0 nodes: allowed are 1 to 64"),
            (shape(&args(100, 65)).unwrap_err(), "65 nodes"),
            (shape(&args(2, 3)).unwrap_err(), "more nodes than CPUs"),
            (with(|a| a.node_cpus = Some(vec![0, 0])), "0 CPUs"),
            (with(|a| (a.node_cpus, a.cpus) = (Some(vec![2, 1]), Some(4))), "contradicts"),
            (with(|a| (a.node_cpus, a.nodes) = (Some(vec![2, 1]), Some(3))), "contradicts"),
            (with(|a| a.memory = Some("16M".into())), "16 MiB of memory: too small, at least 64 MiB"),
            (with(|a| a.memory = Some("lots".into())), "--memory lots: not a size"),
            (with(|a| a.memory = Some("99999999999G".into())), "not a size"),
            (with(|a| a.node_memory = Some(vec!["64M".into()])), "1 sizes for 2 nodes"),
            (
                with(|a| {
                    a.node_cpus = Some(vec![2, 0]);
                    a.node_memory = Some(vec!["256M".into(), "0".into()]);
                }),
                "node 1 has neither CPUs nor memory",
            ),
            (with(|a| a.node_memory = Some(vec!["8M".into(), "512M".into()])), "node 0, the first with"),
        ];
        for (error, expected) in cases {
            assert!(error.contains(expected) && !error.contains('\n'), "{error:?} lacks {expected:?}");
        }
    }

    #[test]
    fn the_first_node_may_lack_memory() {
        let sizes = Some(vec!["0".into(), "256M".into()]);
        let shape = shape(&MachineArgs { node_memory: sizes, ..MachineArgs::default() }).unwrap();
        assert_eq!(shape.node_memory, [0, 256 * MIB]);
    }

    #[test]
    fn the_options_of_a_shape_give_the_same_shape() {
        let uneven = MachineArgs {
            node_cpus: Some(vec![4, 0, 3]),
            node_memory: Some(vec!["256M".into(), "64M".into(), "0".into()]),
            ..MachineArgs::default()
        };
        assert_eq!(shape(&uneven).unwrap().options(), "--node-cpus 4,0,3 --node-memory 256M,64M,0M");
        assert_eq!(shape(&args(7, 3)).unwrap().options(), "--cpus 7 --nodes 3");
    }
}
