//! The shape of a hosted machine: CPUs dealt out to the nodes in equal runs, memory in equal parts, distances 10 and 20.

use core::cell::UnsafeCell;
use core::slice;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::memory::{DIRECT_MAP, PHYS_BASE};
use crate::acpi::MemAffinity;
use crate::cpu::{self, CpuId, MAX_CPUS, MAX_NODES, NodeId};
use crate::{PAGE_SIZE, percpu};

/// RAM of each node. Written by [`describe`] while no CPU runs, constant while one does.
struct Ranges(UnsafeCell<[MemAffinity; MAX_NODES]>);

// SAFETY: written only between machines, under the lock that lets one machine run at a time.
unsafe impl Sync for Ranges {}

static RANGES: Ranges = Ranges(UnsafeCell::new([MemAffinity { start: 0, len: 0, node: NodeId::new(0) }; MAX_NODES]));
/// How many of `RANGES` are in use.
static NODES: AtomicUsize = AtomicUsize::new(0);

/// What the caller of [`boot`](super::boot) asked for.
#[derive(Copy, Clone, Debug)]
pub(super) struct Shape {
    cpus: usize,
    nodes: usize,
    /// Bytes of RAM in each node, per-CPU areas included; whole pages.
    node_bytes: usize,
}

impl Shape {
    /// A machine with `cpus` CPUs on `nodes` nodes, each with room for `mem_per_node` bytes of RAM beside the per-CPU areas.
    ///
    /// # Panics
    ///
    /// If there is no CPU or no node, or too many.
    pub(super) fn new(cpus: usize, nodes: usize, mem_per_node: usize) -> Self {
        assert!((1..=MAX_CPUS).contains(&cpus), "a machine has 1 to {MAX_CPUS} CPUs, not {cpus}");
        assert!((1..=MAX_NODES).contains(&nodes), "a machine has 1 to {MAX_NODES} nodes, not {nodes}");
        let mem = mem_per_node.next_multiple_of(PAGE_SIZE);
        // A node has at most this many CPUs.
        let node_bytes = mem + cpus.div_ceil(nodes) * percpu::area_size();
        Self { cpus, nodes, node_bytes: node_bytes.next_multiple_of(2 << 20) }
    }

    pub(super) fn cpus(&self) -> impl Iterator<Item = CpuId> + use<> {
        (0..self.cpus).map(CpuId::new)
    }

    /// Bytes of RAM of the whole machine.
    pub(super) fn bytes(&self) -> usize {
        self.nodes * self.node_bytes
    }

    fn node_of(&self, cpu: CpuId) -> NodeId {
        NodeId::new(cpu.index() * self.nodes / self.cpus)
    }
}

/// Tells everybody about the machine, and makes the per-CPU areas in the RAM that is mapped already.
pub(super) fn describe(shape: &Shape) {
    let mut ends = [0; MAX_NODES];
    for (node, end) in ends.iter_mut().enumerate().take(shape.nodes) {
        cpu::add_node(NodeId::new(node));
        *end = (node + 1) * shape.node_bytes;
    }
    for cpu in shape.cpus() {
        let node = shape.node_of(cpu);
        cpu::describe(cpu, cpu.index() as u32, node);
        let end = &mut ends[node.index()];
        *end -= percpu::area_size();
        let area = core::ptr::with_exposed_provenance_mut(DIRECT_MAP as usize + *end);
        // SAFETY: the end of the node's RAM, mapped, page-aligned, and left out of `RANGES` below.
        unsafe { percpu::init_area(cpu, area) };
    }
    // SAFETY: no CPU runs yet, and one machine is set up at a time.
    let ranges = unsafe { &mut *RANGES.0.get() };
    for node in 0..shape.nodes {
        let start = node * shape.node_bytes;
        ranges[node] =
            MemAffinity { start: PHYS_BASE + start as u64, len: (ends[node] - start) as u64, node: NodeId::new(node) };
    }
    // Relaxed: CPUs are started afterwards.
    NODES.store(shape.nodes, Ordering::Relaxed);
}

/// The RAM of the machine, by node. Empty if none runs.
pub fn memory_ranges() -> &'static [MemAffinity] {
    // SAFETY: the first `NODES` entries are constant while a machine runs.
    unsafe { slice::from_raw_parts(RANGES.0.get().cast(), NODES.load(Ordering::Relaxed)) }
}

/// No machine.
pub(super) fn forget() {
    NODES.store(0, Ordering::Relaxed);
    cpu::forget();
    percpu::forget_areas();
}
