//! CPUs and NUMA nodes: their numbers, sets of them, and what the machine says about them.
//!
//! A backend describes the machine once, at boot, with [`describe`], [`set_distance`] and [`set_online`]; everybody else
//! reads. CPU numbers are dense from 0 (the boot CPU); APIC ids may be sparse and are only seen by the backend.
//!
//! Invariants:
//!
//! - `CPU-1` A CPU number is below [`MAX_CPUS`] and a node number below [`MAX_NODES`]: the constructors check.
//! - `CPU-2` online ⊆ started ⊆ present; the present mask, nodes, APIC ids and distances are constant once the boot CPU has
//!   finished discovery.
//!
//! Context: all reads are wait-free and allowed anywhere, NMI included.
//!
//! Linux: `include/linux/cpumask.h`, `include/linux/nodemask.h`, `drivers/base/arch_numa.c`. REQUIREMENTS: the machine.

use core::fmt;
use core::ops::{BitAnd, BitOr, Sub};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Most CPUs a machine can have: xAPIC ids are one byte.
pub const MAX_CPUS: usize = 256;
/// Most NUMA nodes a machine can have: a set of nodes is one word.
pub const MAX_NODES: usize = 64;
/// Distance of a node to itself, as in an ACPI SLIT.
pub const LOCAL_DISTANCE: u8 = 10;
/// Distance between different nodes if the machine does not tell, as in Linux.
pub const REMOTE_DISTANCE: u8 = 20;

const MASK_WORDS: usize = MAX_CPUS / 64;

/// The number of a CPU, below [`MAX_CPUS`].
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct CpuId(u16);

impl CpuId {
    /// The CPU that boots the machine.
    pub const BOOT: Self = Self(0);

    /// CPU number `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`MAX_CPUS`].
    #[inline]
    pub const fn new(index: usize) -> Self {
        assert!(index < MAX_CPUS, "CPU-1: a CPU number is below MAX_CPUS");
        Self(index as u16)
    }

    /// The number, for indexing.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The number of a NUMA node, below [`MAX_NODES`].
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct NodeId(u8);

impl NodeId {
    /// Node number `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`MAX_NODES`].
    #[inline]
    pub const fn new(index: usize) -> Self {
        assert!(index < MAX_NODES, "CPU-1: a node number is below MAX_NODES");
        Self(index as u8)
    }

    /// The number, for indexing.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A set of CPUs: a plain value.
#[derive(Copy, Clone, Eq, PartialEq, Default)]
pub struct CpuMask([u64; MASK_WORDS]);

impl CpuMask {
    /// No CPU.
    pub const EMPTY: Self = Self([0; MASK_WORDS]);

    /// The set of `cpu` alone.
    #[inline]
    pub const fn of(cpu: CpuId) -> Self {
        let mut mask = Self::EMPTY;
        mask.0[cpu.index() / 64] = 1 << (cpu.index() % 64);
        mask
    }

    /// CPUs 0 to `count - 1`.
    ///
    /// # Panics
    ///
    /// If `count` is above [`MAX_CPUS`].
    pub fn first_n(count: usize) -> Self {
        (0..count).map(CpuId::new).collect()
    }

    /// Whether `cpu` is in the set.
    #[inline]
    pub const fn contains(&self, cpu: CpuId) -> bool {
        self.0[cpu.index() / 64] & (1 << (cpu.index() % 64)) != 0
    }

    /// Adds `cpu`; whether it is new.
    #[inline]
    pub fn insert(&mut self, cpu: CpuId) -> bool {
        let new = !self.contains(cpu);
        self.0[cpu.index() / 64] |= 1 << (cpu.index() % 64);
        new
    }

    /// Takes `cpu` out; whether it was there.
    #[inline]
    pub fn remove(&mut self, cpu: CpuId) -> bool {
        let was = self.contains(cpu);
        self.0[cpu.index() / 64] &= !(1 << (cpu.index() % 64));
        was
    }

    /// Number of CPUs in the set.
    #[inline]
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether the set has no CPU.
    #[inline]
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// The lowest CPU of the set.
    #[inline]
    pub fn first(&self) -> Option<CpuId> {
        self.iter().next()
    }

    /// The CPUs of the set, lowest first.
    #[inline]
    pub fn iter(&self) -> CpuMaskIter {
        CpuMaskIter { rest: *self }
    }
}

impl BitAnd for CpuMask {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] & other.0[i]))
    }
}

impl BitOr for CpuMask {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}

impl Sub for CpuMask {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] & !other.0[i]))
    }
}

impl FromIterator<CpuId> for CpuMask {
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> Self {
        let mut mask = Self::EMPTY;
        for cpu in cpus {
            mask.insert(cpu);
        }
        mask
    }
}

impl IntoIterator for CpuMask {
    type Item = CpuId;
    type IntoIter = CpuMaskIter;
    fn into_iter(self) -> CpuMaskIter {
        self.iter()
    }
}

impl fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(CpuId::index)).finish()
    }
}

/// As Linux lists CPUs: `0-3,8`.
impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().map(CpuId::index).peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// Iterator over the CPUs of a [`CpuMask`].
#[derive(Clone, Debug)]
pub struct CpuMaskIter {
    rest: CpuMask,
}

impl Iterator for CpuMaskIter {
    type Item = CpuId;
    #[inline]
    fn next(&mut self) -> Option<CpuId> {
        for (index, word) in self.rest.0.iter_mut().enumerate() {
            if *word != 0 {
                let bit = word.trailing_zeros() as usize;
                *word &= *word - 1;
                return Some(CpuId::new(index * 64 + bit));
            }
        }
        None
    }
}

/// A set of CPUs that several CPUs change at once. The set as a whole is not read at one instant.
#[derive(Default)]
pub struct AtomicCpuMask([AtomicU64; MASK_WORDS]);

impl AtomicCpuMask {
    /// No CPU.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MASK_WORDS])
    }

    /// Adds `cpu`; whether it was there before. A full barrier, as each locked instruction on x86 is.
    #[inline]
    pub fn set(&self, cpu: CpuId) -> bool {
        let bit = 1 << (cpu.index() % 64);
        // SeqCst: pairs with `load`, `test` and `clear` on other CPUs; what was written before the bit was set is seen by
        // whoever sees the bit, and the callers use set-then-check protocols, which need the store ordered before loads.
        self.0[cpu.index() / 64].fetch_or(bit, Ordering::SeqCst) & bit != 0
    }

    /// Takes `cpu` out; whether it was there. A full barrier.
    #[inline]
    pub fn clear(&self, cpu: CpuId) -> bool {
        let bit = 1 << (cpu.index() % 64);
        // SeqCst: as in `set`.
        self.0[cpu.index() / 64].fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Whether `cpu` is in the set.
    #[inline]
    pub fn test(&self, cpu: CpuId) -> bool {
        // Acquire: pairs with `set` and `clear`.
        self.0[cpu.index() / 64].load(Ordering::Acquire) & (1 << (cpu.index() % 64)) != 0
    }

    /// The set, word by word.
    #[inline]
    pub fn load(&self) -> CpuMask {
        // Acquire: pairs with `set` and `clear`.
        CpuMask(core::array::from_fn(|i| self.0[i].load(Ordering::Acquire)))
    }
}

/// CPUs that the machine has. Written by [`describe`] at boot.
static PRESENT: AtomicCpuMask = AtomicCpuMask::new();
/// CPUs that run. Written by [`set_online`].
static ONLINE: AtomicCpuMask = AtomicCpuMask::new();
/// CPUs that have run at some time. Written by [`set_online`].
static STARTED: AtomicCpuMask = AtomicCpuMask::new();
/// Node of each CPU. Written by [`describe`] at boot (CPU-2), so Relaxed everywhere.
static NODE_OF: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];
/// APIC id of each CPU. As `NODE_OF`.
static APIC_ID: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// Nodes that have CPUs or memory. Written by [`describe`] and [`add_node`] at boot (CPU-2).
static NODES: AtomicU64 = AtomicU64::new(0);
/// Distance from node to node; 0: not told. As `NODE_OF`.
static DISTANCE: [[AtomicU8; MAX_NODES]; MAX_NODES] = [const { [const { AtomicU8::new(0) }; MAX_NODES] }; MAX_NODES];

/// The CPU that runs this. Out of date at once unless the caller is pinned.
#[inline(always)]
pub fn current() -> CpuId {
    CpuId(crate::percpu::CPU_NUMBER.get())
}

/// CPUs that the machine has, running or not.
pub fn present() -> CpuMask {
    PRESENT.load()
}

/// CPUs that run.
pub fn online() -> CpuMask {
    ONLINE.load()
}

/// Whether `cpu` runs.
pub fn is_online(cpu: CpuId) -> bool {
    ONLINE.test(cpu)
}

/// Whether `cpu` has ever run. One that has and does not now is parked: it answers NMIs, and an interrupt wakes it.
pub fn has_started(cpu: CpuId) -> bool {
    STARTED.test(cpu)
}

/// Number of CPUs that run.
pub fn online_count() -> usize {
    online().count()
}

/// Says that `cpu` runs, or no longer does.
///
/// # Panics
///
/// If a CPU that is not present is to be online (CPU-2).
pub fn set_online(cpu: CpuId, is_online: bool) {
    if is_online {
        assert!(PRESENT.test(cpu), "CPU-2: CPU {cpu} is not present and cannot be online");
        STARTED.set(cpu);
        ONLINE.set(cpu);
    } else {
        ONLINE.clear(cpu);
    }
}

/// The node that `cpu` belongs to.
#[inline]
pub fn node_of(cpu: CpuId) -> NodeId {
    NodeId(NODE_OF[cpu.index()].load(Ordering::Relaxed))
}

/// The APIC id of `cpu`, which only the interrupt controller cares for.
#[inline]
pub fn apic_id(cpu: CpuId) -> u32 {
    APIC_ID[cpu.index()].load(Ordering::Relaxed)
}

/// Nodes that have CPUs or memory, as bits.
pub fn nodes_online() -> u64 {
    NODES.load(Ordering::Relaxed)
}

/// CPUs of `node`, running or not.
pub fn cpus_of(node: NodeId) -> CpuMask {
    present().iter().filter(|&cpu| node_of(cpu) == node).collect()
}

/// Distance between two nodes as in an ACPI SLIT: 10 is local; 20 if the machine does not tell.
pub fn distance(from: NodeId, to: NodeId) -> u8 {
    match DISTANCE[from.index()][to.index()].load(Ordering::Relaxed) {
        0 if from == to => LOCAL_DISTANCE,
        0 => REMOTE_DISTANCE,
        told => told,
    }
}

/// Adds `cpu` to the present CPUs. Context: boot, by the backend's discovery.
pub fn describe(cpu: CpuId, apic_id: u32, node: NodeId) {
    APIC_ID[cpu.index()].store(apic_id, Ordering::Relaxed);
    NODE_OF[cpu.index()].store(node.0, Ordering::Relaxed);
    add_node(node);
    PRESENT.set(cpu);
}

/// Says that `node` exists. Context: boot, by the backend's discovery.
pub fn add_node(node: NodeId) {
    NODES.fetch_or(1 << node.index(), Ordering::Relaxed);
}

/// Sets the distance between two nodes, one direction. Context: boot, by the backend's discovery.
pub fn set_distance(from: NodeId, to: NodeId, distance: u8) {
    DISTANCE[from.index()][to.index()].store(distance, Ordering::Relaxed);
}

/// Forgets the machine. Only a hosted machine that ends does this.
#[cfg(not(target_os = "none"))]
pub(crate) fn forget() {
    for cpu in present().iter() {
        ONLINE.clear(cpu);
        STARTED.clear(cpu);
        PRESENT.clear(cpu);
    }
    NODES.store(0, Ordering::Relaxed);
    for distance in DISTANCE.iter().flatten() {
        distance.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;
    use std::vec::Vec;

    fn mask(cpus: &[usize]) -> CpuMask {
        cpus.iter().copied().map(CpuId::new).collect()
    }

    #[test]
    fn a_mask_holds_what_was_inserted_and_not_what_was_removed() {
        let mut m = CpuMask::EMPTY;
        assert!(m.is_empty() && m.first().is_none());
        assert!(m.insert(CpuId::new(255)));
        assert!(m.insert(CpuId::new(0)));
        assert!(!m.insert(CpuId::new(0)), "the second time it is not new");
        assert!(m.contains(CpuId::new(255)) && !m.contains(CpuId::new(63)));
        assert_eq!(m.count(), 2);
        assert!(m.remove(CpuId::new(0)) && !m.remove(CpuId::new(0)));
        assert_eq!(m.first(), Some(CpuId::new(255)));
    }

    #[test]
    fn a_mask_is_iterated_lowest_first_across_words() {
        let cpus: Vec<usize> = mask(&[200, 63, 64, 1, 127, 128]).iter().map(CpuId::index).collect();
        assert_eq!(cpus, [1, 63, 64, 127, 128, 200]);
        assert_eq!(CpuMask::first_n(MAX_CPUS).count(), MAX_CPUS);
    }

    #[test]
    fn masks_are_combined_like_sets() {
        let (a, b) = (mask(&[1, 2, 70]), mask(&[2, 3, 70]));
        assert_eq!(a & b, mask(&[2, 70]));
        assert_eq!(a | b, mask(&[1, 2, 3, 70]));
        assert_eq!(a - b, mask(&[1]));
        assert_eq!(CpuMask::of(CpuId::new(70)) & a, mask(&[70]));
    }

    #[test]
    fn a_mask_is_printed_as_ranges() {
        assert_eq!(format!("{}", mask(&[0, 1, 2, 5, 64, 65])), "0-2,5,64-65");
        assert_eq!(format!("{}", CpuMask::EMPTY), "");
    }

    #[test]
    fn an_atomic_mask_tells_who_was_first() {
        let m = AtomicCpuMask::new();
        assert!(!m.set(CpuId::new(130)));
        assert!(m.set(CpuId::new(130)) && m.test(CpuId::new(130)));
        assert_eq!(m.load(), mask(&[130]));
        assert!(m.clear(CpuId::new(130)));
        assert!(!m.clear(CpuId::new(130)));
    }

    #[test]
    #[should_panic(expected = "CPU-1")]
    fn a_cpu_number_beyond_the_last_is_refused() {
        let _ = CpuId::new(MAX_CPUS);
    }
}
