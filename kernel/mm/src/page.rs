//! [`Page`]: the 64-byte descriptor of one page frame.
//!
//! Every frame of memory has one, at a place that [`memmap`](crate::memmap) computes from its address. Whoever owns
//! the frame owns the descriptor: the buddy allocator while it is free, then whoever allocated it. A descriptor is
//! made once at boot and lives for ever, so `&'static Page` is the name of a block of memory, not the right to it.
//!
//! | bytes | what | free block | slab | large block | vmalloc |
//! |---|---|---|---|---|---|
//! | 0–15 | [`SlabView::pair`] | | freelist, counters | | |
//! | 16–31 | `next`, `prev` | free list | partial list | | `next`: next page of the area |
//! | 32–39 | `cache` | | its cache | size in bytes | |
//! | 40–47 | `on_partial`, `aux` | | slab's own | | |
//! | 48–51 | kind, order, node, reserve | | | | |
//! | 52–55 | page frame number | | | | |
//! | 56–63 | link for lock-less lists | deferred free | deferred free | | |
//!
//! Invariants:
//! - **PAGE-1** `pfn` and `node` are written before the descriptor can be found, and never again.
//! - **PAGE-2** Kinds [`Buddy`](PageKind::Buddy) and [`Free`](PageKind::Free) are written under the lock of the
//!   zone of `node` only; so a zone that finds its own node and `Buddy` in a descriptor owns that block.
//! - **PAGE-3** All frames of an allocated block but the first have kind [`Tail`](PageKind::Tail), and `next` of each
//!   points to the first.
//!
//! Linux: `struct page` and `struct slab` (`include/linux/mm_types.h`, `mm/slab.h`, 6.18). Unlike there, a block of more
//! than one page is always compound, so that any address in it leads to its head. Rows: S1-2, M-9.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};

use arch::{NodeId, PAGE_SHIFT, PAGE_SIZE, PhysAddr};
use sync::LlistNode;

use crate::pair::SlabPair;

/// Who owns a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageKind {
    /// No memory there, or memory that is never given out (holes between regions).
    Hole = 0,
    /// The page descriptors themselves, and the table that finds them.
    Descriptors = 1,
    /// Inside a free block, not its first frame.
    Free = 2,
    /// First frame of a block on a free list of its zone.
    Buddy = 3,
    /// First frame of a free block on a per-CPU list.
    PerCpuList = 4,
    /// First frame of a block freed from NMI, waiting for the next operation under the zone's lock.
    Deferred = 5,
    /// Allocated; its owner said no more.
    Allocated = 6,
    /// Not the first frame of an allocated block (PAGE-3).
    Tail = 7,
    /// A slab.
    Slab = 8,
    /// A large `kmalloc` block; see [`Page::large_size`].
    Large = 9,
    /// A page table.
    Table = 10,
    /// Part of a per-CPU area.
    Percpu = 11,
    /// Mapped by vmalloc.
    Vmalloc = 12,
}

impl PageKind {
    const ALL: [Self; 13] = [
        Self::Hole,
        Self::Descriptors,
        Self::Free,
        Self::Buddy,
        Self::PerCpuList,
        Self::Deferred,
        Self::Allocated,
        Self::Tail,
        Self::Slab,
        Self::Large,
        Self::Table,
        Self::Percpu,
        Self::Vmalloc,
    ];

    /// Whether the frame is the first of an allocated block.
    #[must_use]
    pub fn is_allocated_head(self) -> bool {
        matches!(self, Self::Allocated | Self::Slab | Self::Large | Self::Table | Self::Percpu | Self::Vmalloc)
    }
}

/// The descriptor of a page frame; see the [module](self).
#[repr(C, align(64))]
pub struct Page {
    view: SlabView,
    /// A [`PageKind`]. Written by the owner; read by anybody (address look-ups, the zone: PAGE-2).
    kind: AtomicU8,
    /// Order of the block, in its head and in its tails. Written by the page allocator.
    order: AtomicU8,
    node: u8,
    /// Of an allocated block's head: it came from below the min watermark. Written at each allocation, and by the owner.
    reserve: AtomicBool,
    pfn: u32,
    llist: LlistNode,
}

const _: () = assert!(size_of::<Page>() == 64 && size_of::<SlabView>() == 48);

/// What a slab keeps in its descriptor. Its owner, the slab allocator, says which lock guards what.
#[repr(C, align(16))]
pub struct SlabView {
    /// Freelist and counters, changed together by one 16-byte compare-exchange.
    pub pair: SlabPair,
    /// Link of a list of slabs.
    pub next: AtomicPtr<Page>,
    /// Link of a list of slabs.
    pub prev: AtomicPtr<Page>,
    /// The cache; in the descriptors of all frames of the slab ([`Page::enter_slab`]).
    pub cache: AtomicPtr<()>,
    /// Whether the slab is on its node's partial list.
    pub on_partial: AtomicBool,
    /// Free for the slab's own use.
    pub aux: AtomicU32,
}

impl Page {
    /// The descriptor of frame `pfn` on `node`, before it is given to anybody.
    ///
    /// # Panics
    /// If `pfn` lies above 16 TiB of memory.
    pub(crate) fn new(pfn: usize, node: NodeId, kind: PageKind) -> Self {
        Self {
            view: SlabView {
                pair: SlabPair::new(0, 0),
                next: AtomicPtr::new(ptr::null_mut()),
                prev: AtomicPtr::new(ptr::null_mut()),
                cache: AtomicPtr::new(ptr::null_mut()),
                on_partial: AtomicBool::new(false),
                aux: AtomicU32::new(0),
            },
            kind: AtomicU8::new(kind as u8),
            order: AtomicU8::new(0),
            node: node.index() as u8,
            reserve: AtomicBool::new(false),
            pfn: u32::try_from(pfn).expect("PAGE-1: memory above 16 TiB"),
            llist: LlistNode::new(),
        }
    }

    /// Who owns the frame.
    ///
    /// Context: any. A hint unless the caller owns the frame or an object in it.
    ///
    /// # Panics
    /// If the descriptor has been overwritten.
    #[inline]
    pub fn kind(&self) -> PageKind {
        // Acquire: pairs with the release in `set_kind`: what the owner wrote before is seen.
        PageKind::ALL[usize::from(self.kind.load(Ordering::Acquire))]
    }

    /// Says who owns the frame from now on; what the owner wrote into the view before is then visible to whoever
    /// reads the new kind.
    ///
    /// Context: any; the caller owns the block, and `kind` is not one of the page allocator's own.
    #[inline]
    pub fn set_kind(&self, kind: PageKind) {
        // Release: pairs with the acquire in `kind`.
        self.kind.store(kind as u8, Ordering::Release);
    }

    /// The order of the block that this is the head or a tail of.
    #[inline]
    pub fn order(&self) -> usize {
        usize::from(self.order.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn set_order(&self, order: usize) {
        self.order.store(order as u8, Ordering::Relaxed);
    }

    /// The node whose memory it is.
    #[inline]
    pub fn node(&self) -> NodeId {
        NodeId::new(usize::from(self.node))
    }

    /// Whether the block that this is the head of came from below the min watermark: memory that is only for those who
    /// asked with [`RESERVE`](crate::AllocFlags::RESERVE), which the owner has to see to (S5-4).
    ///
    /// Context: any; the caller owns the block.
    #[inline]
    pub fn is_reserve(&self) -> bool {
        self.reserve.load(Ordering::Relaxed)
    }

    /// Says whether it is.
    ///
    /// Context: any; the caller owns the block. No other may give ordinary memory this mark.
    #[inline]
    pub fn set_reserve(&self, reserve: bool) {
        self.reserve.store(reserve, Ordering::Relaxed);
    }

    /// The page frame number.
    #[inline]
    pub fn pfn(&self) -> usize {
        self.pfn as usize
    }

    /// The physical address of the frame.
    #[inline]
    pub fn phys(&self) -> PhysAddr {
        PhysAddr::new((self.pfn as u64) << PAGE_SHIFT)
    }

    /// Where the frame is in the direct map.
    #[inline]
    pub fn virt(&self) -> *mut u8 {
        crate::memmap::direct_map(self.pfn())
    }

    /// Bytes of the block that this is the head of.
    #[inline]
    pub fn bytes(&self) -> usize {
        PAGE_SIZE << self.order()
    }

    /// The first frame of the allocated block that this one belongs to.
    ///
    /// Context: any; meaningful while the block stays allocated. O(1), two loads.
    #[inline]
    pub fn head(&'static self) -> &'static Page {
        if self.kind() != PageKind::Tail {
            return self;
        }
        // SAFETY: `next` of a tail points to the head's descriptor, which lives for ever (PAGE-3); the acquire in
        // `kind` made it visible. If the block was freed meanwhile it is null or another descriptor's address.
        unsafe { self.view.next.load(Ordering::Relaxed).as_ref() }.unwrap_or(self)
    }

    /// What a slab keeps here. The caller owns the block.
    #[inline]
    pub fn slab(&self) -> &SlabView {
        &self.view
    }

    /// Bytes that were asked for, of a [`Large`](PageKind::Large) block.
    #[inline]
    pub fn large_size(&self) -> usize {
        self.view.cache.load(Ordering::Relaxed).addr()
    }

    /// Makes the block a [`Large`](PageKind::Large) one of `size` bytes.
    ///
    /// Context: any; the caller owns the block.
    pub fn set_large(&self, size: usize) {
        debug_assert!(size <= self.bytes());
        self.view.cache.store(ptr::without_provenance_mut(size), Ordering::Relaxed);
        self.set_kind(PageKind::Large);
    }

    /// A link with which the owner of the block may put it on a lock-less list.
    #[inline]
    pub fn llist(&self) -> *mut LlistNode {
        (&raw const self.llist).cast_mut()
    }

    /// The descriptor whose [`llist`](Self::llist) is `node`.
    ///
    /// # Safety
    /// `node` came from `llist` of a descriptor.
    #[inline]
    pub unsafe fn from_llist(node: *mut LlistNode) -> &'static Page {
        // SAFETY: the caller's contract; descriptors live for ever.
        unsafe { &*node.byte_sub(core::mem::offset_of!(Page, llist)).cast::<Page>() }
    }

    pub(crate) fn link(&self) -> (Option<&'static Page>, Option<&'static Page>) {
        (deref(&self.view.next), deref(&self.view.prev))
    }

    pub(crate) fn next(&self) -> Option<&'static Page> {
        deref(&self.view.next)
    }

    pub(crate) fn set_next(&self, page: Option<&'static Page>) {
        self.view.next.store(as_ptr(page), Ordering::Relaxed);
    }

    pub(crate) fn set_prev(&self, page: Option<&'static Page>) {
        self.view.prev.store(as_ptr(page), Ordering::Relaxed);
    }
}

fn deref(link: &AtomicPtr<Page>) -> Option<&'static Page> {
    // SAFETY: the page allocator stores null or the address of a descriptor in the links of pages it owns, and
    // descriptors live for ever.
    unsafe { link.load(Ordering::Relaxed).as_ref() }
}

fn as_ptr(page: Option<&'static Page>) -> *mut Page {
    page.map_or(ptr::null_mut(), |page| ptr::from_ref(page).cast_mut())
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x} {:?} order {} node {}", self.pfn, self.kind(), self.order(), self.node)
    }
}

/// Finds the descriptor of an address in the direct map, or nothing: vmalloc and kernel image addresses have none.
///
/// An address in a hole between regions may find a descriptor of kind [`PageKind::Hole`].
///
/// Context: any. O(1): two loads.
#[inline]
pub fn page_of(ptr: *const u8) -> Option<&'static Page> {
    crate::memmap::MAP.page_at(ptr.addr())
}

/// The descriptor of every frame, those in holes included, in the order of addresses.
///
/// Context: any. As many as the machine has frames: for reports.
pub fn all() -> impl Iterator<Item = &'static Page> {
    crate::memmap::MAP.pages()
}
