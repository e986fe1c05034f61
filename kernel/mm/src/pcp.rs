//! Per-CPU page lists: small blocks of the CPU's own node, without the zone's lock.
//!
//! Each CPU keeps a list for each order up to [`MAX_PCP_ORDER`]. An empty one is refilled with a batch under the zone's
//! lock, an overfull one gives a batch back. A [`LocalTryLock`] keeps an interrupt or NMI out of a list in the middle of
//! a change: it then goes to the zone.
//!
//! Invariants:
//! - **PCP-1** Blocks on the lists of a CPU are of the node [`home`] of that CPU, and have kind `PerCpuList`.
//! - **PCP-2** Nothing is on any list before [`enable`]: until then the areas of the CPUs do not exist, and what the boot
//!   CPU had in the template would be copied into each of them.
//! - **PCP-3** `PCP_PAGES` counts the pages on the lists; its own CPU writes it, anybody reads it.
//! - **PCP-4** The lists of a CPU that is offline are empty: whoever takes it offline gives them back ([`drain_parked`]).
//!
//! Lock order: the local lock is outside the zone's lock.
//!
//! Linux: `struct per_cpu_pages` (`include/linux/mmzone.h`, `mm/page_alloc.c`, 6.18), with fixed batches.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use arch::{CpuId, MAX_CPUS, NodeId};
use sync::{ATOMIC, LocalGuard, LocalTryLock, hook};

use crate::memmap::MAP;
use crate::page::{Page, PageKind};
use crate::zone::{self, Spin};

/// The largest order that has per-CPU lists.
pub(crate) const MAX_PCP_ORDER: usize = 3;

/// Blocks of `order` that a refill or a flush moves: 128 KiB.
const fn batch(order: usize) -> usize {
    32 >> order
}

/// Blocks of `order` above which a free flushes a batch.
const fn high(order: usize) -> usize {
    3 * batch(order)
}

const _: () = assert!(batch(MAX_PCP_ORDER) >= 1);

/// Blocks of one order, linked through their first descriptors.
#[derive(Clone, Copy)]
struct List {
    first: Option<&'static Page>,
    len: usize,
}

impl List {
    fn push(&mut self, page: &'static Page, order: usize) {
        page.set_order(order);
        page.set_kind(PageKind::PerCpuList);
        page.set_next(self.first);
        self.first = Some(page);
        self.len += 1;
        PCP_PAGES.add(1 << order);
    }

    fn pop(&mut self, order: usize) -> Option<&'static Page> {
        let page = self.first?;
        debug_assert!(page.kind() == PageKind::PerCpuList && page.order() == order, "PCP-1: {page:?}");
        self.first = page.next();
        self.len -= 1;
        PCP_PAGES.sub(1 << order);
        Some(page)
    }

    /// Gives up to `count` blocks back to `node`; nothing happens if the lock is taken and may not be waited for.
    fn flush(&mut self, order: usize, count: usize, node: NodeId, spin: Spin) {
        let count = count.min(self.len);
        let blocks = (0..count).map_while(|_| Some((self.pop(order)?, order)));
        zone::of(node).put(&MAP, spin, blocks);
    }
}

/// The lists of one CPU.
struct Lists([List; MAX_PCP_ORDER + 1]);

arch::per_cpu! {
    /// This CPU's lists.
    static LISTS: LocalTryLock<Lists> =
        LocalTryLock::new(Lists([List { first: None, len: 0 }; MAX_PCP_ORDER + 1]));

    /// PCP-3.
    static PCP_PAGES: usize = 0;
}

/// PCP-2.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// The nearest node with memory to each CPU. Written by [`enable`].
static HOME: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];

/// The node whose pages the lists of `cpu` hold.
pub(crate) fn home(cpu: CpuId) -> NodeId {
    NodeId::new(usize::from(HOME[cpu.index()].load(Relaxed)))
}

/// Begins to use the lists (PCP-2).
///
/// Context: boot CPU, once the per-CPU areas of all present CPUs are in place and this CPU uses its own.
pub(crate) fn enable() {
    for cpu in arch::cpu::present().iter() {
        let node = arch::cpu::node_of(cpu);
        let home = zone::of(node).fallback().next().unwrap_or(node);
        HOME[cpu.index()].store(home.index() as u8, Relaxed);
    }
    // Relaxed: the other CPUs are started after.
    ENABLED.store(true, Relaxed);
}

fn enabled() -> bool {
    ENABLED.load(Relaxed)
}

/// This CPU's lists, unless this context interrupted a user of them.
#[inline]
fn lock() -> Option<LocalGuard<'static, Lists>> {
    let lists = LocalTryLock::this(&LISTS, ATOMIC)?;
    hook!("mm.pcp");
    Some(lists)
}

/// A block of `order` for a caller who wants it from `node` (or, with `None`, from near this CPU), if the lists of this
/// CPU can serve that: kind `Free`, not yet anybody's.
///
/// Context: any with [`Spin::Never`], else any but NMI.
pub(crate) fn alloc(order: usize, node: Option<NodeId>, mark: usize, spin: Spin) -> Option<&'static Page> {
    if order > MAX_PCP_ORDER || !enabled() {
        return None;
    }
    let mut lists = lock()?;
    let home = home(arch::cpu::current());
    if node.is_some_and(|node| node != home) {
        return None;
    }
    let list = &mut lists.0[order];
    if list.first.is_none() {
        let zone = zone::of(home);
        let got = zone.take(&MAP, order, batch(order), mark + zone.low() - zone.min(), spin, |page| {
            list.push(page, order);
        });
        zone.counts.local.fetch_add(got as u64, Relaxed);
    }
    list.pop(order)
}

/// Takes a free block, unless the lists of this CPU are not for it.
///
/// Context: any with [`Spin::Never`], else any but NMI.
pub(crate) fn free(page: &'static Page, order: usize, spin: Spin) -> bool {
    if order > MAX_PCP_ORDER || !enabled() || zone::of(page.node()).is_low() {
        return false;
    }
    let Some(mut lists) = lock() else { return false };
    let home = home(arch::cpu::current());
    if page.node() != home {
        return false;
    }
    let list = &mut lists.0[order];
    list.push(page, order);
    if list.len > high(order) {
        list.flush(order, batch(order), home, spin);
    }
    true
}

/// Gives everything on this CPU's lists back to the zone.
///
/// Context: any but NMI. Does nothing if it interrupted a user of the lists.
pub(crate) fn drain_local() {
    if !enabled() {
        return;
    }
    let Some(mut lists) = lock() else { return };
    let home = home(arch::cpu::current());
    for (order, list) in lists.0.iter_mut().enumerate() {
        list.flush(order, usize::MAX, home, Spin::May);
    }
}

/// Gives everything on the lists of `cpu` back to the zone.
///
/// Context: any but NMI.
///
/// # Safety
/// `cpu` is parked: it runs nothing that allocates or frees pages.
pub(crate) unsafe fn drain_parked(cpu: CpuId) {
    // SAFETY: areas of present CPUs live for ever.
    let lists = unsafe { &*LISTS.ptr_on(cpu) };
    debug_assert!(!lists.is_locked(), "PCP: CPU {cpu} went offline while it changed its lists");
    // SAFETY: by the caller nobody uses the lists but us.
    let lists = unsafe { &mut *lists.as_ptr() };
    for (order, list) in lists.0.iter_mut().enumerate() {
        let mut next = list.first.take();
        list.len = 0;
        let blocks = core::iter::from_fn(|| {
            let page = next?;
            next = page.next();
            Some((page, order))
        });
        zone::of(home(cpu)).put(&MAP, Spin::May, blocks);
    }
    // SAFETY: as above, for the counter (PCP-3).
    unsafe { PCP_PAGES.ptr_on(cpu).write_volatile(0) };
}

/// Pages on the lists of `cpu`, a moment ago.
///
/// Context: any.
pub(crate) fn pages_on(cpu: CpuId) -> usize {
    // SAFETY: the counter is a word in an area that is never freed; its CPU may write it at the same time with a single
    // instruction, so a volatile read sees some value that was there (PCP-3).
    unsafe { ptr::read_volatile(PCP_PAGES.ptr_on(cpu)) }
}
