//! [`Zone`]: the memory of one node, behind one lock.
//!
//! Operations come in two manners ([`Spin`]): *may spin*, and *never*: then the lock is only tried, which is what an NMI
//! may do. A free that finds the lock taken leaves its block on a lock-less list; whoever takes the lock next puts it
//! away first, so nothing is lost and an allocation never fails beside memory that waits there.
//!
//! Invariants:
//! - **ZONE-1** `free` mirrors the pages on the free lists; it is written under the lock and read without.
//! - **ZONE-2** A block on `deferred` has kind `Deferred`, its order, and is counted in `deferred_pages`.
//! - **ZONE-3** Nothing inside the lock allocates, logs or calls out.
//!
//! Watermarks, as in Linux (`mm/page_alloc.c`): below *low*, frees go past the per-CPU lists; below *min*, only
//! [`AllocFlags::RESERVE`](crate::AllocFlags::RESERVE) gets memory.

use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::{MAX_NODES, NodeId};
use sync::{ATOMIC, LlistHead, LockClass, SpinIrqGuard, SpinLock, bug, hook};

use crate::buddy::{FreeLists, MAX_ORDER};
use crate::memmap::{MAP, MemMap};
use crate::page::{Page, PageKind};

/// Protects the free lists of one node, and the descriptors on them. Innermost: nothing is taken inside it, and of two
/// zones never both. Taken with interrupts off; only tried in NMI.
static ZONE_LOCK: LockClass = LockClass::new("mm.zone").rank(900);

/// Whether an operation may wait for a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spin {
    /// Any context but NMI.
    May,
    /// Any context: locks are only tried.
    Never,
}

/// The memory of one node.
pub(crate) struct Zone {
    lists: SpinLock<FreeLists>,
    /// Blocks whose free found the lock taken (ZONE-2).
    deferred: LlistHead,
    deferred_pages: AtomicUsize,
    /// ZONE-1.
    free: AtomicUsize,
    /// Frames that were ever given to the zone. Written at boot.
    managed: AtomicUsize,
    /// Written at boot.
    min: AtomicUsize,
    low: AtomicUsize,
    /// Nodes with memory, nearest first; this one first if it has any. Written at boot.
    fallback: [AtomicU8; MAX_NODES],
    fallback_len: AtomicUsize,
    pub(crate) counts: Counts,
}

/// What happened to a zone; written with atomic adds, read for statistics.
pub(crate) struct Counts {
    /// Blocks given out (to users and to per-CPU lists), by callers that preferred this node.
    pub(crate) local: AtomicU64,
    /// Blocks given out to callers that preferred another node.
    pub(crate) foreign: AtomicU64,
    /// Frees that went by the lock-less list.
    pub(crate) deferred: AtomicU64,
    /// Requests for this node that no node could serve.
    pub(crate) failed: AtomicU64,
}

impl Zone {
    pub(crate) const fn new() -> Self {
        Self {
            lists: SpinLock::new(FreeLists::new(), &ZONE_LOCK),
            deferred: LlistHead::new(),
            deferred_pages: AtomicUsize::new(0),
            free: AtomicUsize::new(0),
            managed: AtomicUsize::new(0),
            min: AtomicUsize::new(0),
            low: AtomicUsize::new(0),
            fallback: [const { AtomicU8::new(0) }; MAX_NODES],
            fallback_len: AtomicUsize::new(0),
            counts: Counts {
                local: AtomicU64::new(0),
                foreign: AtomicU64::new(0),
                deferred: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            },
        }
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.free.load(Relaxed)
    }

    pub(crate) fn managed_pages(&self) -> usize {
        self.managed.load(Relaxed)
    }

    pub(crate) fn deferred_pages(&self) -> usize {
        self.deferred_pages.load(Relaxed)
    }

    pub(crate) fn min(&self) -> usize {
        self.min.load(Relaxed)
    }

    pub(crate) fn low(&self) -> usize {
        self.low.load(Relaxed)
    }

    pub(crate) fn has_memory(&self) -> bool {
        self.managed_pages() != 0
    }

    /// Whether frees should reach the free lists at once.
    pub(crate) fn is_low(&self) -> bool {
        self.free_pages() < self.low()
    }

    /// Free blocks of each order, after what was deferred is put away.
    pub(crate) fn blocks(&self, map: &MemMap) -> [usize; MAX_ORDER + 1] {
        self.drain_deferred(map);
        self.lists.lock_irqsave(ATOMIC).blocks()
    }

    /// Nodes with memory, nearest first.
    pub(crate) fn fallback(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.fallback[..self.fallback_len.load(Relaxed)].iter().map(|node| NodeId::new(usize::from(node.load(Relaxed))))
    }

    /// Takes the lock and puts away what was deferred.
    fn enter(&self, map: &MemMap, spin: Spin) -> Option<SpinIrqGuard<'_, FreeLists>> {
        let mut lists = match spin {
            Spin::May => self.lists.lock_irqsave(ATOMIC),
            Spin::Never => self.lists.try_lock_irqsave(ATOMIC)?,
        };
        hook!("mm.zone");
        for node in self.deferred.take_all() {
            // SAFETY: only `defer` adds to this list, and it adds links of descriptors.
            let page = unsafe { Page::from_llist(node) };
            debug_assert!(page.kind() == PageKind::Deferred, "ZONE-2: {page:?}");
            let order = page.order();
            self.deferred_pages.fetch_sub(1 << order, Relaxed);
            if bug!(
                "mm.deferred_lost",
                "pages that were freed while the zone was busy are forgotten",
                "mm.nolock_calls_at*"
            ) {
                continue;
            }
            lists.put(map, page, order);
        }
        Some(lists)
    }

    fn leave(&self, lists: SpinIrqGuard<'_, FreeLists>) {
        self.free.store(lists.pages(), Relaxed);
    }

    /// Takes up to `count` blocks of `order`, and leaves at least `mark` pages; `each` gets them under the lock.
    pub(crate) fn take(
        &self,
        map: &MemMap,
        order: usize,
        count: usize,
        mark: usize,
        spin: Spin,
        mut each: impl FnMut(&'static Page),
    ) -> usize {
        // A look without the lock first: an exhausted zone is passed over cheaply.
        if self.free_pages() + self.deferred_pages() < mark + (1 << order) {
            return 0;
        }
        let Some(mut lists) = self.enter(map, spin) else { return 0 };
        let mut taken = 0;
        while taken < count && lists.pages() >= mark + (1 << order) {
            let Some(page) = lists.take(map, order) else { break };
            each(page);
            taken += 1;
        }
        self.leave(lists);
        taken
    }

    /// Puts blocks back; with [`Spin::Never`] `false`, and nothing is taken from `blocks`, if the lock is taken.
    pub(crate) fn put(
        &self,
        map: &MemMap,
        spin: Spin,
        blocks: impl IntoIterator<Item = (&'static Page, usize)>,
    ) -> bool {
        let Some(mut lists) = self.enter(map, spin) else { return false };
        for (page, order) in blocks {
            lists.put(map, page, order);
        }
        self.leave(lists);
        true
    }

    /// Leaves a block for whoever takes the lock next.
    ///
    /// Context: any. Lock-free.
    pub(crate) fn defer(&self, page: &'static Page, order: usize) {
        page.set_order(order);
        page.set_kind(PageKind::Deferred);
        self.deferred_pages.fetch_add(1 << order, Relaxed);
        self.counts.deferred.fetch_add(1, Relaxed);
        // SAFETY: the link is part of a descriptor, which lives for ever, of a block that its freer owns and that is
        // on no list.
        unsafe { self.deferred.add(page.llist()) };
    }

    /// Puts away what was deferred, if anything.
    pub(crate) fn drain_deferred(&self, map: &MemMap) {
        if !self.deferred.is_empty() {
            self.put(map, Spin::May, None);
        }
    }

    /// Checks the free lists.
    pub(crate) fn check(&self, map: &MemMap) {
        let Some(lists) = self.enter(map, Spin::May) else { return };
        lists.check(map);
        self.leave(lists);
    }

    /// Sizes the zone, at boot.
    pub(crate) fn set_up(&self, managed: usize) {
        self.managed.store(managed, Relaxed);
        let min = watermark(managed);
        self.min.store(min, Relaxed);
        self.low.store(min + min / 4, Relaxed);
    }

    /// Says which nodes are asked, nearest first, at boot.
    pub(crate) fn set_fallback(&self, nodes: impl Iterator<Item = NodeId>) {
        let mut len = 0;
        for node in nodes {
            self.fallback[len].store(node.index() as u8, Relaxed);
            len += 1;
        }
        self.fallback_len.store(len, Relaxed);
    }
}

/// The min watermark: 1/256 of the zone, at most 4 MiB.
fn watermark(managed: usize) -> usize {
    (managed / 256).min(1024)
}

/// The zones of the machine; of nodes without memory, empty ones.
static ZONES: [Zone; MAX_NODES] = [const { Zone::new() }; MAX_NODES];

/// The zone of a node.
#[inline]
pub(crate) fn of(node: NodeId) -> &'static Zone {
    &ZONES[node.index()]
}

/// The zones that have memory.
pub(crate) fn with_memory() -> impl Iterator<Item = (NodeId, &'static Zone)> {
    (0..MAX_NODES).map(NodeId::new).map(|node| (node, of(node))).filter(|(_, zone)| zone.has_memory())
}

/// Puts a block of its machine's node back.
pub(crate) fn put_back(page: &'static Page, order: usize, spin: Spin) -> bool {
    of(page.node()).put(&MAP, spin, Some((page, order)))
}
