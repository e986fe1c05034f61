//! The shape of the combining tree: a pure function from CPUs and fan-outs to levels and nodes.
//!
//! CPUs report to leaves, leaves to inner nodes, those to the root; each lock is taken by at most fan-out children for
//! one grace period, so the root's lock sees `leaves / fan-out`-like traffic, not one hit per CPU.
//!
//! ```text
//!  6 CPUs, leaf fan-out 2, inner fan-out 2 (numbers are positions in the node array):
//!
//!                      0  cpus 0-5                 level 0: root
//!                ┌─────┴──────┐
//!            1 cpus 0-3    2 cpus 4-5              level 1
//!           ┌────┴────┐       │
//!        3 cpu 0-1 4 cpu 2-3 5 cpu 4-5             level 2: leaves
//! ```
//!
//! Levels and nodes are as few as the fan-outs allow. Which children go to which node is the [`Spread`]: as evenly as can be,
//! or full nodes first (`rcutree.rcu_fanout_exact`), the last one of a level having what is left:
//!
//! ```text
//!  9 CPUs, leaf fan-out 4:    even  0-2 | 3-5 | 6-8        exact  0-3 | 4-7 | 8
//! ```
//!
//! Invariants
//! - GEO-1: nodes are numbered breadth-first from the root, so a parent's position is lower than its children's.
//! - GEO-2: every CPU is in exactly one leaf, every node but the root has exactly one parent, whose CPU range holds its.
//! - GEO-3: no node has more children (a leaf: CPUs) than its fan-out, hence than bits in a mask.
//!
//! Unlike Linux, which fixes four levels at compile time, up to [`MAX_LEVELS`] are built as the CPUs need them, so that
//! deep trees can be studied on few CPUs. Answers to Linux kernel/rcu/tree.c (`rcu_init_geometry`); rows R-1, S3-36.

use core::fmt;

/// The most levels a tree may have; with the smallest fan-out of two that holds 256 CPUs.
pub const MAX_LEVELS: usize = 8;
/// The smallest fan-out: less would not combine.
pub const MIN_FANOUT: u32 = 2;
/// The largest fan-out: one bit a child in a 64-bit mask.
pub const MAX_FANOUT: u32 = 64;

/// Why a tree cannot be built; the boot stops with this one line.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum GeometryError {
    /// A fan-out outside `MIN_FANOUT..=MAX_FANOUT`.
    Fanout(u32),
    /// The CPUs do not fit into `MAX_LEVELS` levels.
    TooManyCpus {
        /// CPUs asked for.
        cpus: usize,
        /// CPUs that the deepest tree of these fan-outs holds.
        capacity: usize,
    },
    /// No CPU at all.
    NoCpus,
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fanout(n) => {
                write!(f, "rcu: fan-out {n} is not within {MIN_FANOUT}..={MAX_FANOUT}")
            }
            Self::TooManyCpus { cpus, capacity } => {
                write!(f, "rcu: {cpus} CPUs do not fit into {MAX_LEVELS} levels of these fan-outs ({capacity} would)")
            }
            Self::NoCpus => write!(f, "rcu: no CPU to track"),
        }
    }
}

/// How children are dealt out to the nodes of a level.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Spread {
    /// Each node but the last has as many as its share, rounded up.
    Even,
    /// Each node but the last has as many as the fan-out.
    Exact,
}

/// The shape of a tree.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Geometry {
    cpus: usize,
    levels: usize,
    /// Nodes of each level, root first; zero beyond `levels`.
    nodes_at: [usize; MAX_LEVELS],
    /// CPUs that a full node of each level covers.
    span_at: [usize; MAX_LEVELS],
}

// With the smallest fan-outs; so whatever the parameters allow holds every machine.
const _: () = assert!(arch::cpu::MAX_CPUS <= (MIN_FANOUT as usize).pow(MAX_LEVELS as u32));

/// One node's place in the shape.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Level, 0 for the root.
    pub level: usize,
    /// First CPU below this node.
    pub cpu_lo: usize,
    /// Last CPU below this node.
    pub cpu_hi: usize,
    /// Position of the parent; `None` for the root.
    pub parent: Option<usize>,
    /// This node's bit in its parent's masks; zero for the root.
    pub grpmask: u64,
}

impl Geometry {
    /// The tree with the fewest levels that holds `cpus` CPUs, `leaf_fanout` to a leaf and `fanout` nodes to a node.
    ///
    /// # Errors
    /// See [`GeometryError`].
    pub fn new(cpus: usize, fanout: u32, leaf_fanout: u32, spread: Spread) -> Result<Self, GeometryError> {
        for n in [fanout, leaf_fanout] {
            if !(MIN_FANOUT..=MAX_FANOUT).contains(&n) {
                return Err(GeometryError::Fanout(n));
            }
        }
        if cpus == 0 {
            return Err(GeometryError::NoCpus);
        }
        let (mut levels, mut capacity) = (1, leaf_fanout as usize);
        while capacity < cpus {
            if levels == MAX_LEVELS {
                return Err(GeometryError::TooManyCpus { cpus, capacity });
            }
            capacity = capacity.saturating_mul(fanout as usize);
            levels += 1;
        }
        let mut shape = Geometry { cpus, levels, nodes_at: [0; MAX_LEVELS], span_at: [0; MAX_LEVELS] };
        // From the leaves upwards: so many children there are, each of which covers so many CPUs.
        let (mut children, mut span, mut most) = (cpus, 1, leaf_fanout as usize);
        for level in (0..levels).rev() {
            let nodes = children.div_ceil(most);
            span *= match spread {
                Spread::Even => children.div_ceil(nodes),
                Spread::Exact => most,
            };
            shape.nodes_at[level] = nodes;
            shape.span_at[level] = span;
            (children, most) = (nodes, fanout as usize);
        }
        Ok(shape)
    }

    /// CPUs the tree tracks.
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// Levels, leaves included.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Nodes of one level; level 0 has one.
    pub fn nodes_at(&self, level: usize) -> usize {
        self.nodes_at[level]
    }

    /// All nodes.
    pub fn nodes(&self) -> usize {
        self.nodes_at.iter().sum()
    }

    /// Position of the first leaf.
    pub fn first_leaf(&self) -> usize {
        self.first_at(self.levels - 1)
    }

    /// Position of the leaf of CPU `cpu`.
    pub fn leaf_of(&self, cpu: usize) -> usize {
        self.first_leaf() + cpu / self.span_at[self.levels - 1]
    }

    /// Where node number `index` (breadth-first, GEO-1) sits.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn place(&self, index: usize) -> Place {
        assert!(index < self.nodes(), "GEO-1: no node {index}");
        let mut level = 0;
        while index >= self.first_at(level) + self.nodes_at[level] {
            level += 1;
        }
        let nth = index - self.first_at(level);
        let span = self.span_at[level];
        let cpu_lo = nth * span;
        let cpu_hi = (cpu_lo + span).min(self.cpus) - 1;
        if level == 0 {
            return Place { level, cpu_lo, cpu_hi, parent: None, grpmask: 0 };
        }
        let per_parent = self.span_at[level - 1] / span;
        Place {
            level,
            cpu_lo,
            cpu_hi,
            parent: Some(self.first_at(level - 1) + nth / per_parent),
            grpmask: 1 << (nth % per_parent),
        }
    }

    fn first_at(&self, level: usize) -> usize {
        self.nodes_at[..level].iter().sum()
    }
}

impl fmt::Display for Geometry {
    /// One line for the boot log: `rcu: 6 CPUs, 3 levels: 1 2 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPUs, {} levels:", self.cpus, self.levels)?;
        for level in 0..self.levels {
            write!(f, " {}", self.nodes_at[level])?;
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::Spread::{Even, Exact};
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn few_cpus_need_one_node() {
        let g = Geometry::new(16, 64, 16, Even).unwrap();
        assert_eq!((g.levels(), g.nodes(), g.leaf_of(15)), (1, 1, 0));
        assert_eq!(g.place(0), Place { level: 0, cpu_lo: 0, cpu_hi: 15, parent: None, grpmask: 0 });
    }

    #[test]
    fn linux_defaults_hold_64_cpus_in_two_levels() {
        let g = Geometry::new(64, 64, 16, Even).unwrap();
        assert_eq!((g.levels(), g.nodes(), g.first_leaf(), g.leaf_of(63)), (2, 5, 1, 4));
    }

    #[test]
    fn the_drawing_in_the_docs_is_what_is_built() {
        let g = Geometry::new(6, 2, 2, Exact).unwrap();
        assert_eq!(g.to_string(), "6 CPUs, 3 levels: 1 2 3");
        assert_eq!(g.place(2), Place { level: 1, cpu_lo: 4, cpu_hi: 5, parent: Some(0), grpmask: 2 });
        assert_eq!(g.place(5), Place { level: 2, cpu_lo: 4, cpu_hi: 5, parent: Some(2), grpmask: 1 });
    }

    #[test]
    fn cpus_are_spread_evenly_unless_exact_nodes_are_asked_for() {
        let leaves = |spread| {
            let g = Geometry::new(9, 2, 4, spread).unwrap();
            let places = (g.first_leaf()..g.nodes()).map(|i| g.place(i));
            places.map(|p| (p.cpu_lo, p.cpu_hi)).collect::<Vec<_>>()
        };
        assert_eq!(leaves(Even), [(0, 2), (3, 5), (6, 8)]);
        assert_eq!(leaves(Exact), [(0, 3), (4, 7), (8, 8)]);
    }

    #[test]
    fn eight_levels_of_two_hold_256_cpus_and_no_more() {
        assert_eq!(Geometry::new(256, 2, 2, Even).unwrap().levels(), 8);
        let err = Geometry::new(257, 2, 2, Even).unwrap_err();
        assert_eq!(err, GeometryError::TooManyCpus { cpus: 257, capacity: 256 });
        assert!(!err.to_string().contains('\n'));
    }

    #[test]
    fn fanouts_outside_the_range_are_refused() {
        assert_eq!(Geometry::new(4, 1, 16, Even), Err(GeometryError::Fanout(1)));
        assert_eq!(Geometry::new(4, 64, 65, Even), Err(GeometryError::Fanout(65)));
        assert_eq!(Geometry::new(0, 64, 16, Even), Err(GeometryError::NoCpus));
    }

    proptest! {
        #[test]
        fn every_cpu_has_one_leaf_and_every_child_one_bit(
            cpus in 1_usize..=256, fanout in 2_u32..=64, leaf in 2_u32..=64, exact: bool)
        {
            let g = Geometry::new(cpus, fanout, leaf, if exact { Exact } else { Even });
            let g = g.expect("holds 256 CPUs whatever the fan-outs are");
            prop_assert_eq!(g.nodes_at(g.levels() - 1), cpus.div_ceil(leaf as usize), "as few leaves as can be");
            // Even: what the nodes of a level but the last have in common, the last one does not exceed, and one child
            // less for each would not do.
            if !exact {
                let share = g.place(g.first_leaf());
                prop_assert!((share.cpu_hi - share.cpu_lo) * g.nodes_at(g.levels() - 1) < cpus);
            }
            let mut child_bits: Vec<u64> = vec![0; g.nodes()];
            let mut covered = vec![0; cpus];
            for i in 0..g.nodes() {
                let p = g.place(i);
                prop_assert!(p.cpu_lo <= p.cpu_hi && p.cpu_hi < cpus);
                if let Some(up) = p.parent {
                    prop_assert!(up < i);
                    prop_assert_eq!(child_bits[up] & p.grpmask, 0);
                    child_bits[up] |= p.grpmask;
                    let q = g.place(up);
                    prop_assert!(q.level + 1 == p.level && q.cpu_lo <= p.cpu_lo && p.cpu_hi <= q.cpu_hi);
                    prop_assert!(child_bits[up].count_ones() <= fanout);
                } else {
                    prop_assert_eq!(i, 0);
                }
                if i >= g.first_leaf() {
                    prop_assert!(p.cpu_hi - p.cpu_lo < leaf as usize);
                    for (cpu, n) in covered.iter_mut().enumerate().take(p.cpu_hi + 1).skip(p.cpu_lo) {
                        *n += 1;
                        prop_assert_eq!(g.leaf_of(cpu), i);
                    }
                }
            }
            prop_assert!(covered.iter().all(|&n| n == 1));
        }
    }
}
