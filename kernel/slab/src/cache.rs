//! [`RawCache`]: one kind of object.
//!
//! What an allocation or free reads stands in front: per-CPU offset, sizes, flags. Everything is written before the
//! cache is published and constant afterwards, but for the tunables, which are atomics.
//!
//! Answers to `struct kmem_cache` in Linux `mm/slab.h` (7.x).

use core::ptr::{self, NonNull};
use core::sync::atomic::{
    AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

use arch::{MAX_NODES, NodeId};
use bitflags::bitflags;
use rcu::srcu::{Core, Flavour, SrcuDomain};
use sync::DynPerCpu;

use crate::cpu::CacheCpu;
use crate::debug::{self, DebugFlags, Parts};
use crate::harden::{Harden, Hardening};
use crate::merge::Sharing;
use crate::node::CacheNode;
use crate::order::{self, Orders};
use crate::sheaf;
use crate::stats::Stat;

bitflags! {
    /// What is special about a cache.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct CacheFlags: u32 {
        /// Objects start on cache lines.
        const HWCACHE_ALIGN = 1 << 0;
        /// Slab pages go back only after a grace period: an RCU reader may look at a freed object and find another
        /// of the same type in its place, but never anything else (M-13). Or a reader of the domain of SRCU that the layout
        /// names (G-7).
        const TYPESAFE_BY_RCU = 1 << 1;
        /// No sheaves: for what sheaves are made of.
        const NO_SHEAVES = 1 << 2;
        /// One of the `kmalloc` size classes.
        const KMALLOC = 1 << 3;
        /// The cache has its slabs and counters for itself: `create` never hands out an existing one, nor this one to
        /// others.
        const NO_MERGE = 1 << 4;
        /// `create` panics where it would return an error: for what the kernel cannot live without.
        const PANIC = 1 << 5;
    }
}

/// Puts a new object into its first state. Called once an object when its slab is made, in the context of the
/// allocation that made it.
pub type Ctor = fn(NonNull<u8>);

/// What a cache is made of: a name, a size, and what is set apart from the defaults.
///
/// ```
/// use grange_slab::{CacheFlags, Layout};
/// const INODES: Layout = Layout::new("inode", 600).align(64).flags(CacheFlags::NO_MERGE.union(CacheFlags::PANIC));
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a layout is nothing until `create` makes a cache of it"]
pub struct Layout {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) align: usize,
    pub(crate) flags: CacheFlags,
    pub(crate) ctor: Option<Ctor>,
    pub(crate) capacity: usize,
    pub(crate) debug: DebugFlags,
    pub(crate) harden: Harden,
    pub(crate) srcu: Option<&'static Core>,
}

impl Layout {
    /// Objects of `size` bytes, aligned to 8, shown as `name` in `slabinfo`.
    pub const fn new(name: &'static str, size: usize) -> Self {
        Self {
            name,
            size,
            align: align_of::<usize>(),
            flags: CacheFlags::empty(),
            ctor: None,
            capacity: 0,
            debug: DebugFlags::empty(),
            harden: Harden::empty(),
            srcu: None,
        }
    }

    /// Alignment of every object: a power of two up to a page. Less than 8 means 8.
    pub const fn align(self, align: usize) -> Self {
        Self { align, ..self }
    }

    /// What is special about the cache; replaces what was said before.
    pub const fn flags(self, flags: CacheFlags) -> Self {
        Self { flags, ..self }
    }

    /// Slab pages go back only after a grace period of `domain`, as with [`CacheFlags::TYPESAFE_BY_RCU`] after one of RCU. The
    /// domain stays as long as the kernel: slabs may outlive the cache's last user.
    pub const fn typesafe_by_srcu<F: Flavour>(self, domain: &'static SrcuDomain<F>) -> Self {
        Self { srcu: Some(domain.core()), ..self }
    }

    /// Constructor.
    pub const fn ctor(self, ctor: Ctor) -> Self {
        Self { ctor: Some(ctor), ..self }
    }

    /// Sheaf capacity that the user asks for; counts if it is more than the default (M-1).
    pub const fn capacity(self, capacity: usize) -> Self {
        Self { capacity, ..self }
    }

    /// What the cache checks, besides what `slab_debug=` says (M-16).
    pub const fn debug(self, debug: DebugFlags) -> Self {
        Self { debug, ..self }
    }

    /// How the cache is hardened, besides what the command line says (M-21).
    pub const fn harden(self, harden: Harden) -> Self {
        Self { harden, ..self }
    }
}

/// Why a cache could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateError {
    /// Size 0, or more than the largest slab holds.
    BadSize(usize),
    /// Not a power of two, or more than a page.
    BadAlign(usize),
    /// More than a sheaf can hold.
    BadCapacity(usize),
    /// No memory for the cache itself.
    NoMemory,
}

impl core::fmt::Display for CreateError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadSize(size) => write!(f, "object size {size}: not between 1 and the largest slab"),
            Self::BadAlign(align) => write!(f, "alignment {align}: not a power of two up to a page"),
            Self::BadCapacity(objects) => write!(f, "sheaf capacity {objects}: more than {}", sheaf::MAX_CAPACITY),
            Self::NoMemory => f.write_str("no memory for a cache"),
        }
    }
}

impl core::error::Error for CreateError {}

/// One kind of object: the untyped cache.
pub struct RawCache {
    /// Sheaves and counters of each CPU.
    cpu: DynPerCpu<CacheCpu>,
    /// Where the object begins that an address points into, by masking, if objects lie at multiples of their size; else 0.
    start_mask: usize,
    /// 2^64 / `size`, rounded up: a division by `size` is a multiplication with it.
    reciprocal: u64,
    /// Bytes from one object to the next.
    size: u32,
    /// Bytes that the user gets; grows, within `size`, when a user with larger objects joins.
    object_size: AtomicU32,
    /// Alignment of every object.
    align: u32,
    /// Where in a free object the freelist link lies.
    link_offset: u32,
    /// Bytes in front of an object that belong to it: its left red zone.
    left: u32,
    flags: CacheFlags,
    /// What it checks.
    debug: DebugFlags,
    hardening: Hardening,
    /// How its objects lie if it is a debug cache.
    parts: Option<Parts>,
    /// Reports about it.
    reports: AtomicU64,
    /// Objects in a new sheaf; 0 switches sheaves off. Tunable.
    capacity: AtomicU32,
    orders: Orders,
    min_partial: AtomicUsize,
    /// Of 1024 refills that find no local partial slab, how many look at other nodes. Tunable.
    remote_node_defrag_ratio: AtomicU32,
    /// Sheaf capacity to come back to, plus one, while allocations can be made to fail ([`fail`](crate::fail)); else 0.
    pub(crate) fail: AtomicU32,
    ctor: Option<Ctor>,
    /// The domain whose readers may look at free objects of a type-safe cache; none if those are RCU's.
    srcu: Option<&'static Core>,
    name: &'static str,
    /// By node; null where there is no such node. Written before the cache is published.
    nodes: [AtomicPtr<CacheNode>; MAX_NODES],
    /// Who shares the cache.
    pub(crate) sharing: Sharing,
    /// Next in the list of caches, under its lock.
    pub(crate) next: AtomicPtr<RawCache>,
}

impl RawCache {
    /// A cache of the given layout without nodes.
    pub(crate) fn new(layout: Layout, cpu: DynPerCpu<CacheCpu>) -> Result<Self, CreateError> {
        let mut layout = layout;
        if layout.srcu.is_some() {
            layout.flags |= CacheFlags::TYPESAFE_BY_RCU;
        }
        let Layout { name, size: object_size, mut align, flags, ctor, capacity, srcu, .. } = layout;
        if object_size == 0 || order::order_for(object_size) > mm::MAX_ORDER {
            return Err(CreateError::BadSize(object_size));
        }
        if !align.is_power_of_two() || align > arch::PAGE_SIZE {
            return Err(CreateError::BadAlign(align));
        }
        align = align.max(align_of::<usize>());
        if flags.contains(CacheFlags::HWCACHE_ALIGN) {
            align = align.max(line_share(object_size));
        }
        let (debug, parts) = debug::choose(&layout, align);
        let hardening = Hardening::choose(&layout, debug);
        let (link_offset, size) = match parts {
            Some(parts) => (parts.link, parts.size),
            None => place_link(object_size, align, keeps_content(ctor, flags)),
        };
        let cpus = arch::cpu::present().count();
        let orders = order::orders(size, cpus).ok_or(CreateError::BadSize(object_size))?;
        if capacity > sheaf::MAX_CAPACITY {
            return Err(CreateError::BadCapacity(capacity));
        }
        let capacity = if flags.contains(CacheFlags::NO_SHEAVES) || parts.is_some() || hardening.sees_each_object() {
            0
        } else {
            sheaf::default_capacity(object_size).max(sheaf::round_capacity(capacity))
        };
        let left = parts.map_or(0, |parts| parts.left);
        Ok(Self {
            cpu,
            // A slab begins with a page.
            start_mask: if size.is_power_of_two() && size <= arch::PAGE_SIZE && left == 0 { !(size - 1) } else { 0 },
            reciprocal: u64::MAX / size as u64 + 1,
            size: size as u32,
            object_size: AtomicU32::new(object_size as u32),
            align: align as u32,
            link_offset: link_offset as u32,
            left: left as u32,
            flags,
            debug,
            hardening,
            parts,
            reports: AtomicU64::new(0),
            capacity: AtomicU32::new(capacity as u32),
            orders,
            min_partial: AtomicUsize::new(order::min_partial(size)),
            remote_node_defrag_ratio: AtomicU32::new(1000),
            fail: AtomicU32::new(0),
            ctor,
            srcu,
            name,
            nodes: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_NODES],
            sharing: Sharing::new(),
            next: AtomicPtr::new(ptr::null_mut()),
        })
    }

    /// Bytes from one object to the next.
    #[inline]
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// What masks an address in an object to the object's start, where that is all it takes.
    #[inline(always)]
    pub(crate) fn start_mask(&self) -> Option<usize> {
        Some(self.start_mask).filter(|&mask| mask != 0)
    }

    /// `offset / size`, for an offset in a slab: exact, since both are far below 2^32.
    #[inline]
    pub(crate) fn index_at(&self, offset: usize) -> usize {
        ((u128::from(self.reciprocal) * offset as u128) >> 64) as usize
    }

    /// Bytes that the user of an object has.
    #[inline]
    pub fn object_size(&self) -> usize {
        self.object_size.load(Relaxed) as usize
    }

    /// Makes objects that are zeroed be zeroed up to `size` at least. Under the lock of the list of caches.
    pub(crate) fn raise_object_size(&self, size: usize) {
        debug_assert!(size <= self.size());
        self.object_size.fetch_max(size as u32, Relaxed);
    }

    /// Alignment of every object.
    pub fn align(&self) -> usize {
        self.align as usize
    }

    /// Name in `slabinfo`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What is special about the cache.
    pub fn flags(&self) -> CacheFlags {
        self.flags
    }

    /// What the cache checks; constant. One with any of [`DebugFlags::CHECKS`] has no sheaves (M-1).
    #[inline]
    pub fn debug(&self) -> DebugFlags {
        self.debug
    }

    /// Bytes in front of an object that belong to it.
    #[inline]
    pub(crate) fn left(&self) -> usize {
        self.left as usize
    }

    #[inline]
    pub(crate) fn hardening(&self) -> Hardening {
        self.hardening
    }

    pub(crate) fn parts(&self) -> Option<Parts> {
        self.parts
    }

    /// How often damage to objects or slabs of this cache was reported.
    pub fn reports(&self) -> u64 {
        self.reports.load(Relaxed)
    }

    pub(crate) fn count_report(&self) {
        self.reports.fetch_add(1, Relaxed);
    }

    /// Objects in a new sheaf; 0 if the cache has no sheaves.
    #[inline]
    pub fn sheaf_capacity(&self) -> usize {
        self.capacity.load(Relaxed) as usize
    }

    /// Empty slabs that a node keeps.
    pub fn min_partial(&self) -> usize {
        self.min_partial.load(Relaxed)
    }

    /// Of 1024 refills that find no partial slab on their node, how many look at other nodes.
    pub fn remote_node_defrag_ratio(&self) -> u32 {
        self.remote_node_defrag_ratio.load(Relaxed)
    }

    pub(crate) fn store_sheaf_capacity(&self, objects: usize) {
        self.capacity.store(objects as u32, Relaxed);
    }

    pub(crate) fn store_min_partial(&self, slabs: usize) {
        self.min_partial.store(slabs, Relaxed);
    }

    pub(crate) fn store_remote_node_defrag_ratio(&self, ratio: u32) {
        self.remote_node_defrag_ratio.store(ratio, Relaxed);
    }

    pub(crate) fn orders(&self) -> Orders {
        self.orders
    }

    pub(crate) fn ctor(&self) -> Option<Ctor> {
        self.ctor
    }

    /// Whether objects keep what is in them while they are free. Such a cache cannot give zeroed ones.
    pub(crate) fn keeps_content(&self) -> bool {
        keeps_content(self.ctor, self.flags)
    }

    /// The domain that a type-safe cache's slabs wait for; none if that is RCU.
    pub(crate) fn srcu(&self) -> Option<&'static Core> {
        self.srcu
    }

    #[inline(always)]
    pub(crate) fn cpu(&self) -> &DynPerCpu<CacheCpu> {
        &self.cpu
    }

    /// What the cache has on `node`; nothing where there is no such node.
    #[inline]
    pub(crate) fn node(&self, node: NodeId) -> Option<&'static CacheNode> {
        // Acquire, with the release in `set_node`: a node can come while the cache is in use.
        let here = self.nodes[node.index()].load(Acquire);
        // SAFETY: null, or a CacheNode that lives as long as the cache.
        unsafe { here.as_ref() }
    }

    pub(crate) fn set_node(&self, node: NodeId, here: NonNull<CacheNode>) {
        // Release, with the acquire in `node`: the CacheNode is complete.
        self.nodes[node.index()].store(here.as_ptr(), Release);
    }

    /// Every node of the cache.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &'static CacheNode> + '_ {
        (0..MAX_NODES).filter_map(|index| self.node(NodeId::new(index)))
    }

    /// The freelist link in the free object `object`.
    #[inline]
    pub(crate) fn link(&self, object: NonNull<u8>) -> *mut u8 {
        let place = self.link_place(object);
        // SAFETY: the object is free and in the caller's hand.
        self.hardening.hide(place, unsafe { place.read() })
    }

    #[inline]
    pub(crate) fn set_link(&self, object: NonNull<u8>, next: *mut u8) {
        let place = self.link_place(object);
        // SAFETY: as in `link`; the link offset is a multiple of the pointer's alignment.
        unsafe { place.write(self.hardening.hide(place, next)) };
    }

    /// Where the freelist link of `object` lies.
    #[inline]
    pub(crate) fn link_place(&self, object: NonNull<u8>) -> *mut *mut u8 {
        // SAFETY: the link lies inside the object's place in its slab (`place_link`, `Parts`).
        unsafe { object.as_ptr().add(self.link_offset as usize).cast() }
    }

    /// Where in a free object a lock-less list may link it.
    pub(crate) fn deferral_offset(&self) -> usize {
        self.parts.map_or(self.link_offset as usize, |parts| parts.deferral)
    }

    /// Where in a free object its freelist link lies.
    pub(crate) fn link_offset(&self) -> usize {
        self.link_offset as usize
    }

    /// Counts one event on this CPU. Context: any. The fast paths use [`CacheCpu::count`].
    #[inline]
    pub(crate) fn count(&self, stat: Stat) {
        // SAFETY: as in `count_many`.
        unsafe { self.cpu.place().behind(CacheCpu::stat_offset(stat)).inc::<0>() };
    }

    /// Counts `n` events on this CPU. Context: any.
    #[inline]
    pub(crate) fn count_many(&self, stat: Stat, n: u64) {
        // SAFETY: a counter of this cache's CacheCpu, which every CPU's area holds at this place.
        unsafe { self.cpu.place().behind(CacheCpu::stat_offset(stat)).add::<0>(n) };
    }
}

fn keeps_content(ctor: Option<Ctor>, flags: CacheFlags) -> bool {
    ctor.is_some() || flags.contains(CacheFlags::TYPESAFE_BY_RCU)
}

/// Alignment for objects that want their own cache lines: a whole line, halved while two objects fit in it.
fn line_share(size: usize) -> usize {
    const LINE: usize = 64;
    let mut align = LINE;
    while size <= align / 2 {
        align /= 2;
    }
    align
}

/// Where the freelist link goes, and how large the object becomes: in the middle of the object, far from the ends
/// that overruns hit first; behind it when a free object's content must survive.
fn place_link(object_size: usize, align: usize, keep_content: bool) -> (usize, usize) {
    const WORD: usize = size_of::<usize>();
    let words = object_size.next_multiple_of(WORD);
    if keep_content {
        (words, (words + WORD).next_multiple_of(align))
    } else {
        ((words / 2) & !(WORD - 1), words.next_multiple_of(align))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_lies_inside_the_object_and_behind_the_content_that_must_survive() {
        for object_size in 1..300 {
            for align in [8, 16, 64] {
                let (offset, size) = place_link(object_size, align, false);
                assert!(offset.is_multiple_of(8) && offset + 8 <= size);
                let (offset, size) = place_link(object_size, align, true);
                assert!(offset >= object_size && offset + 8 <= size && size.is_multiple_of(align));
            }
        }
    }

    #[test]
    fn small_objects_share_a_cache_line() {
        assert_eq!(line_share(200), 64);
        assert_eq!(line_share(33), 64);
        assert_eq!(line_share(32), 32);
        assert_eq!(line_share(8), 8);
    }
}
