//! The combining tree: nodes, their locks, and the way from a CPU to its leaf.
//!
//! What the drawing in [`crate::geometry`] shows, with state. A CPU's quiescent state clears its bit in its leaf; the one
//! that clears the last bit goes on to the parent; the one that clears the root's last bit ends the grace period
//! ([`crate::report`]).
//!
//! Invariants
//! - TREE-1: no two node locks are held at once by one CPU, and nothing but a per-CPU area's own data is touched
//!   under one: in particular no thread is woken, so a run-queue lock is never taken inside a node lock. Checking
//!   builds report whatever is taken inside (`LockClass::innermost`).
//! - TREE-2: `Node::gp_seq` is written under the node's lock by the grace-period thread only. Read without it, it tells a
//!   CPU of its leaf that a grace period has begun, and whether that waits for the CPU (ORD-4); what is done to the node
//!   because of it is checked against the number under the lock.
//! - TREE-3: in a running grace period a node's `qsmask` bit is set exactly while something below the bit has not
//!   reported. An inner node begins with all its children; a leaf with the online CPUs that were not idle. (Linux lets
//!   empty leaves drop out of the parents' masks; here such a leaf reports at once, as one with idle CPUs does.)
//! - TREE-4: `NodeState::online` changes under the leaf's lock only; a grace period takes the copy it sees when it
//!   sets up the leaf, and a CPU that comes online later begins after the update that the grace period waits for.
//!
//! Lock order: `rcu.node` is taken inside anything but itself; nothing is taken inside it. Always with interrupts
//! off, because interrupts report quiescent states.
//!
//! Answers to Linux kernel/rcu/tree.h (`struct rcu_node`); rows R-1, S3-36.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
// A figure of the bench, no part of what models check.
use core::sync::atomic::{AtomicU64, Ordering};

use arch::CpuId;
use sync::{Cx, LockClass, Once, SpinIrqGuard, SpinLock, static_or_lazy};

use crate::blkd::BlockedList;
use crate::exp::ExpNode;
use crate::geometry::{Geometry, Place};
#[cfg(loom)]
use crate::model::{arch, sched, sync};
use crate::seq::SeqCounter;

/// Protects [`NodeState`] of one node. See "Lock order" in the module documentation.
static NODE_CLASS: LockClass = LockClass::new("rcu.node").innermost();

/// One node of the tree.
pub(crate) struct Node {
    /// Where it sits.
    pub(crate) place: Place,
    /// `None` for the root.
    parent: Option<&'static Node>,
    /// All children's bits of an inner node; unused in a leaf.
    children: u64,
    /// The grace period this node has been told about (TREE-2).
    pub(crate) gp_seq: SeqCounter,
    /// End of the furthest grace period that somebody below has asked for. Written under the node's lock; it only grows, so
    /// what is read without the lock has been asked for.
    pub(crate) gp_seq_needed: SeqCounter,
    /// Times the lock was taken; a figure for the bench. Written under the lock.
    pub(crate) locked: AtomicU64,
    /// The expedited half's own data.
    pub(crate) exp: ExpNode,
    state: SpinLock<NodeState>,
}

/// What a node's lock protects.
pub(crate) struct NodeState {
    /// Children (leaf: CPUs) that have not reported in the running grace period (TREE-3).
    pub(crate) qsmask: u64,
    /// What `qsmask` began with.
    pub(crate) qsmaskinit: u64,
    /// Leaf: CPUs that are online (TREE-4).
    pub(crate) online: u64,
    /// Leaf: readers that were switched out.
    pub(crate) blkd: BlockedList<sched::Thread>,
    /// Children (leaf: CPUs) that have not reported in the running expedited grace period.
    pub(crate) expmask: u64,
}

/// A node, locked.
pub(crate) type NodeGuard<'a> = SpinIrqGuard<'a, NodeState>;

impl Node {
    /// Takes the node's lock. A thread gives its token, so that sleeping under the lock does not compile.
    ///
    /// Context: any but NMI; interrupts off while held.
    pub(crate) fn lock<'a>(&'a self, cx: &'a impl Cx) -> NodeGuard<'a> {
        let state = self.state.lock_irqsave(cx);
        self.locked.store(self.locked.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        state
    }

    /// The parent; `None` for the root.
    pub(crate) fn parent(&self) -> Option<&'static Node> {
        self.parent
    }

    /// What trace records call this node: its level, its first and its last CPU, 16 bits each.
    pub(crate) fn trace_id(&self) -> u64 {
        (self.place.level << 32 | self.place.cpu_lo << 16 | self.place.cpu_hi) as u64
    }

    /// The bit of CPU `cpu` in the masks of this leaf.
    pub(crate) fn bit_of(&self, cpu: CpuId) -> u64 {
        1 << (cpu.index() - self.place.cpu_lo)
    }

    /// The CPUs of the bits of `mask`, in this leaf.
    pub(crate) fn cpus(&self, mask: u64) -> impl Iterator<Item = (CpuId, u64)> + use<> {
        let lo = self.place.cpu_lo;
        bits(mask).map(move |bit| (CpuId::new(lo + bit.trailing_zeros() as usize), bit))
    }

    /// What `qsmask` begins with, for an inner node.
    pub(crate) fn children(&self) -> u64 {
        self.children
    }

    fn new(place: Place, parent: Option<&'static Node>, children: u64) -> Node {
        Node {
            place,
            parent,
            children,
            gp_seq: SeqCounter::new(),
            gp_seq_needed: SeqCounter::new(),
            locked: AtomicU64::new(0),
            exp: ExpNode::new(),
            state: SpinLock::new(
                NodeState { qsmask: 0, qsmaskinit: 0, online: 0, blkd: BlockedList::new(), expmask: 0 },
                &NODE_CLASS,
            ),
        }
    }
}

/// The bits of `mask`, one by one.
fn bits(mut mask: u64) -> impl Iterator<Item = u64> {
    core::iter::from_fn(move || {
        let bit = mask & mask.wrapping_neg();
        mask ^= bit;
        (bit != 0).then_some(bit)
    })
}

/// The whole tree.
pub(crate) struct Tree {
    /// Its shape.
    pub(crate) shape: Geometry,
    /// Breadth-first from the root (GEO-1).
    nodes: &'static [&'static Node],
}

static_or_lazy! {
    static TREE: Once<Tree> = Once::new();
}

impl Tree {
    /// One of this shape, in which no grace period has begun and no CPU is online. Its nodes live for ever. Allocates.
    pub(crate) fn new(shape: Geometry) -> Tree {
        let mut children = vec![0; shape.nodes()];
        for place in (1..shape.nodes()).map(|index| shape.place(index)) {
            children[place.parent.expect("GEO-2: only the root has no parent")] |= place.grpmask;
        }
        let mut nodes: Vec<&'static Node> = Vec::with_capacity(children.len());
        for (index, children) in children.into_iter().enumerate() {
            let place = shape.place(index);
            let parent = place.parent.map(|parent| nodes[parent]);
            nodes.push(Box::leak(Box::new(Node::new(place, parent, children))));
        }
        Tree { shape, nodes: Vec::leak(nodes) }
    }

    /// The root.
    pub(crate) fn root(&self) -> &'static Node {
        self.nodes[0]
    }

    /// All nodes, parents before children.
    pub(crate) fn nodes(&self) -> &'static [&'static Node] {
        self.nodes
    }

    /// The leaves.
    pub(crate) fn leaves(&self) -> &'static [&'static Node] {
        &self.nodes[self.shape.first_leaf()..]
    }

    /// The leaf of CPU `cpu`.
    pub(crate) fn leaf_of(&self, cpu: CpuId) -> &'static Node {
        self.nodes[self.shape.leaf_of(cpu.index())]
    }

    /// Whether `node` is a leaf.
    pub(crate) fn is_leaf(&self, node: &Node) -> bool {
        node.place.level + 1 == self.shape.levels()
    }
}

/// Makes `tree()`. Context: task, boot, once; allocates.
pub(crate) fn build(shape: Geometry) {
    TREE.call_once(|| Tree::new(shape));
}

/// The tree.
///
/// # Panics
/// Before [`build`].
pub(crate) fn tree() -> &'static Tree {
    TREE.get().expect("RCU is used before rcu::init")
}

/// The tree, if it has been built.
pub(crate) fn tree_if_built() -> Option<&'static Tree> {
    TREE.get()
}
