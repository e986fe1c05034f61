//! Allocating and freeing blocks of pages: the calls of everybody else.
//!
//! | call | context | waits for locks | reclaims |
//! |---|---|---|---|
//! | [`alloc_pages`], [`free_pages`] | any but NMI | zone lock | |
//! | [`alloc_pages_sleep`] | thread that may sleep | zone lock | yes |
//! | [`alloc_pages_nolock`], [`free_pages_nolock`] | any | never | |
//!
//! An allocation goes: fault injection; this CPU's lists, if the node is right; the zones, nearest first, down to their min
//! watermark; this CPU's lists emptied into the zones and once more; with RESERVE, down to the last page. What came that way
//! is marked ([`Page::is_reserve`]).
//!
//! Invariants:
//! - **ALLOC-1** A block is given to one owner at a time: taken off its list by whoever holds the list's lock, and put back
//!   only from an allocated kind (checked at every free, so a double free is found at once).
//!
//! Linux: `__alloc_frozen_pages_noprof`, `alloc_frozen_pages_nolock_noprof` (`mm/page_alloc.c`, 6.18). Rows: S1-5, M-11.

use core::ptr;
use core::sync::atomic::Ordering::Relaxed;

use arch::{CpuId, NodeId};
use sync::MaySleep;
use sync::context::in_nmi;

use crate::buddy::MAX_ORDER;
use crate::flags::{AllocError, AllocFlags};
use crate::memmap::MAP;
use crate::page::{Page, PageKind};
use crate::zone::{self, Spin, Zone};
use crate::{inject, oom, pcp, shrinker};

/// A block of `2^order` pages from `node`, or the nearest node that has one; from near this CPU if there is no `node`.
///
/// The block is aligned to its size. Its memory is not cleared, unless the flags say so. It belongs to the caller until
/// [`free_pages`]; the descriptor has kind [`PageKind::Allocated`], and its view is the caller's to use.
///
/// Context: task, softirq, hardirq, locks held. Takes the zone lock of one node after the other. Does not sleep.
///
/// # Errors
/// No node has such a block.
///
/// # Panics
/// In checking builds, in NMI.
pub fn alloc_pages(order: usize, node: Option<NodeId>, flags: AllocFlags) -> Result<&'static Page, AllocError> {
    debug_assert!(!in_nmi(), "alloc_pages in NMI: use alloc_pages_nolock");
    try_alloc(order, node, flags, Spin::May).ok_or_else(|| {
        count_failure(node);
        oom::warn_no_wait(order, node, flags);
        AllocError
    })
}

/// The same for a thread that may wait: it reclaims memory before it gives up.
///
/// With [`AllocFlags::MAY_SLEEP`]: what lies on the lists of other CPUs is fetched, the shrinkers are asked for memory, and
/// what they free only after a grace period is waited for. Without it, the same as [`alloc_pages`].
///
/// Context: thread that may sleep.
///
/// # Errors
/// There is no such block even so; the log then has the out-of-memory report, unless NOWARN.
pub fn alloc_pages_sleep(
    order: usize,
    node: Option<NodeId>,
    flags: AllocFlags,
    cx: &mut MaySleep,
) -> Result<&'static Page, AllocError> {
    cx.assert_may_sleep();
    if let Some(page) = try_alloc(order, node, flags, Spin::May) {
        return Ok(page);
    }
    if flags.contains(AllocFlags::MAY_SLEEP) && order <= MAX_ORDER {
        let page = shrinker::reclaim_until(1 << order, cx, || try_alloc(order, node, flags, Spin::May));
        if let Some(page) = page {
            return Ok(page);
        }
    }
    count_failure(node);
    oom::report_failure(order, node, flags);
    Err(AllocError)
}

/// The same from anywhere: it never waits for a lock, and fails more easily.
///
/// Context: any, NMI included, at any instruction of this allocator. Locks are only tried.
pub fn alloc_pages_nolock(order: usize, node: Option<NodeId>, flags: AllocFlags) -> Option<&'static Page> {
    try_alloc(order, node, flags, Spin::Never)
}

/// Gives a block back.
///
/// Context: task, softirq, hardirq, locks held. Takes this CPU's lists or the zone lock.
///
/// # Panics
/// If `page` is not the head of an allocated block of that order: freed twice, or never allocated (ALLOC-1).
pub fn free_pages(page: &'static Page, order: usize) {
    debug_assert!(!in_nmi(), "free_pages in NMI: use free_pages_nolock");
    retire(page, order);
    if !pcp::free(page, order, Spin::May) {
        zone::put_back(page, order, Spin::May);
    }
}

/// Gives a block back from anywhere. Always succeeds: where the lock is taken, the block waits on a lock-less list for
/// whoever takes it next.
///
/// Context: any, NMI included, at any instruction of this allocator. Locks are only tried.
///
/// # Panics
/// As [`free_pages`].
pub fn free_pages_nolock(page: &'static Page, order: usize) {
    retire(page, order);
    if !pcp::free(page, order, Spin::Never) && !zone::put_back(page, order, Spin::Never) {
        zone::of(page.node()).defer(page, order);
    }
}

/// Gives the pages on this CPU's lists back to their node.
///
/// Context: any but NMI.
pub fn drain_local() {
    pcp::drain_local();
}

/// Gives the pages on the lists of a CPU that went offline back to their node.
///
/// Context: any but NMI.
///
/// # Safety
/// `cpu` is parked, and stays so meanwhile.
pub unsafe fn drain_parked(cpu: CpuId) {
    // SAFETY: passed on from the caller.
    unsafe { pcp::drain_parked(cpu) };
}

/// Gives the pages on the lists of all online CPUs, and those freed from NMI, back to their nodes.
///
/// A CPU that goes offline meanwhile may keep what it has until it is parked and [`drain_parked`].
///
/// Context: thread that may sleep.
pub fn drain_all(cx: &mut MaySleep) {
    cx.assert_may_sleep();
    sync::smp::call_mask(&arch::cpu::online(), |_| pcp::drain_local(), 0, true);
    for (_, zone) in zone::with_memory() {
        zone.drain_deferred(&MAP);
    }
}

/// Every zone's free lists, checked against the descriptors.
///
/// Context: any but NMI. Linear in the free blocks, with interrupts off: for tests and the shell.
///
/// # Panics
/// If an invariant is broken.
pub fn check() {
    for (_, zone) in zone::with_memory() {
        zone.check(&MAP);
    }
}

fn try_alloc(order: usize, node: Option<NodeId>, flags: AllocFlags, spin: Spin) -> Option<&'static Page> {
    if order > MAX_ORDER || inject::should_fail(order) {
        return None;
    }
    let (page, reserve) = find(order, node, flags, spin)?;
    hand_out(page, order);
    page.set_reserve(reserve);
    if flags.contains(AllocFlags::ZERO) {
        // SAFETY: the block is ours, and the direct map of `bytes` from its start is writable memory.
        unsafe { ptr::write_bytes(page.virt(), 0, page.bytes()) };
    }
    Some(page)
}

/// A free block, and whether it is from below the min watermark.
fn find(order: usize, node: Option<NodeId>, flags: AllocFlags, spin: Spin) -> Option<(&'static Page, bool)> {
    let wanted = node.unwrap_or_else(|| arch::cpu::node_of(arch::cpu::current()));
    let only = flags.contains(AllocFlags::THIS_NODE);
    let above_min = || from_zones(order, wanted, only, spin, Zone::min);
    pcp::alloc(order, if only { Some(wanted) } else { node }, zone::of(wanted).min(), spin)
        .or_else(above_min)
        .or_else(|| {
            // What this CPU holds back may be all that is left, or what a larger block needs to merge.
            if spin == Spin::May {
                pcp::drain_local();
            }
            above_min()
        })
        .map(|page| (page, false))
        .or_else(|| Some((flags.may_dip().then(|| from_zones(order, wanted, only, spin, |_| 0))??, true)))
}

/// Asks the zones, nearest first, or the wanted one only.
fn from_zones(
    order: usize,
    wanted: NodeId,
    only: bool,
    spin: Spin,
    mark: impl Fn(&Zone) -> usize,
) -> Option<&'static Page> {
    zone::of(wanted).fallback().filter(|&node| !only || node == wanted).find_map(|node| {
        let zone = zone::of(node);
        let mut found = None;
        zone.take(&MAP, order, 1, mark(zone), spin, |page| found = Some(page));
        if found.is_some() {
            let count = if node == wanted { &zone.counts.local } else { &zone.counts.foreign };
            count.fetch_add(1, Relaxed);
        }
        found
    })
}

/// Makes a free block an allocated one (PAGE-3).
fn hand_out(page: &'static Page, order: usize) {
    page.set_next(None);
    page.set_prev(None);
    for tail in tails(page, order) {
        tail.set_next(Some(page));
        tail.set_order(order);
        tail.set_kind(PageKind::Tail);
    }
    page.set_order(order);
    page.set_kind(PageKind::Allocated);
}

/// Takes a block from its owner (ALLOC-1).
#[track_caller]
fn retire(page: &'static Page, order: usize) {
    assert!(
        page.kind().is_allocated_head() && page.order() == order,
        "ALLOC-1: freed with order {order}, but it is {page:?}"
    );
    page.set_kind(PageKind::Free);
    for tail in tails(page, order) {
        tail.set_kind(PageKind::Free);
    }
}

fn tails(page: &'static Page, order: usize) -> impl Iterator<Item = &'static Page> {
    (1..1usize << order).map(move |i| MAP.page(page.pfn() + i).expect("MAP-2: a block without descriptors"))
}

fn count_failure(node: Option<NodeId>) {
    let node = node.unwrap_or_else(|| arch::cpu::node_of(arch::cpu::current()));
    zone::of(node).counts.failed.fetch_add(1, Relaxed);
}
