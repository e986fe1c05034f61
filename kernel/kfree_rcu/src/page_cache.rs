//! Spare pages of pointers, a few for each CPU (K-7).
//!
//! A page that has done its work is kept for the next object, as long as there are fewer than `rcutree.rcu_min_cached_objs`
//! on its CPU. Where there is none, one is taken from the page allocator without waiting, and the CPU's spare pages are
//! filled up by a work item, which may wait for locks.
//!
//! When memory is short a shrinker takes them all ([`drain`]), and from then on *the back-off* lasts: no page is allocated to
//! remember objects by, so those with heads are linked through them, until one page, allocated after
//! `rcutree.rcu_delay_page_cache_fill_msec`, ends it.
//!
//! # Invariants
//! - **PC-1** Taking and putting neither allocates nor wakes anybody: the refill is queued from where the drain is armed.
//!
//! Lock: each CPU's `kfree_rcu.pages`, interrupts off, inside `kfree_rcu.bulk`; nothing nests inside it. Never from NMI.
//! Linux: `bkvcache`, `fill_page_cache_func`, `backoff_page_cache_fill` in `mm/slab_common.c` (7.x).

use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use arch::CpuId;
use sched::{DelayedWork, WorkItem, WorkQueue};
use sync::{ATOMIC, LockClass, SpinLock};

use crate::bnode::{Bnode, Stack};

sync::param! {
    /// Spare pages of pointers that kfree_rcu keeps on each CPU.
    static MIN_CACHED: u32 = "rcutree.rcu_min_cached_objs", default 5, in 0..=64, unit "pages";
}

sync::param! {
    /// For how long kfree_rcu allocates no page of pointers once memory was short.
    static BACK_OFF_MS: u32 = "rcutree.rcu_delay_page_cache_fill_msec", default 5000, in 0..=100_000, unit "ms";
}

static CLASS: LockClass = LockClass::new("kfree_rcu.pages");

/// One CPU's spare pages.
struct Spare {
    pages: SpinLock<Stack>,
    refill: DelayedWork,
}

sync::per_cpu! {
    static SPARE: Spare = Spare {
        pages: SpinLock::new(Stack::new(), &CLASS),
        refill: DelayedWork::new(|work, _| refill(work)),
    };
}

/// Memory was short, and no refill has been tried since.
static BACKING_OFF: AtomicBool = AtomicBool::new(false);
/// How long that lasts. Set at boot and by [`set_back_off_ms`].
static BACK_OFF: AtomicU32 = AtomicU32::new(5_000);

fn spare_of(cpu: CpuId) -> &'static Spare {
    // SAFETY: per-CPU areas are never freed; a Spare is shared by its lock.
    unsafe { &*SPARE.ptr_on(cpu) }
}

pub(crate) fn init() {
    set_back_off_ms(BACK_OFF_MS.get());
}

/// For how long no page is allocated once memory was short, from the next time on; at most 100 s count.
///
/// Context: any.
pub fn set_back_off_ms(ms: u32) {
    BACK_OFF.store(ms.min(100_000), Relaxed);
}

/// Whether the back-off lasts.
///
/// Context: any.
#[must_use]
pub fn is_backing_off() -> bool {
    BACKING_OFF.load(Relaxed)
}

/// Spare pages of `cpu`, which is present.
///
/// Context: any but NMI.
#[must_use]
pub fn spare_on(cpu: CpuId) -> usize {
    spare_of(cpu).pages.lock_irqsave(ATOMIC).len()
}

/// A page of this CPU's, if it has one.
pub(crate) fn take() -> Option<Bnode> {
    spare_of(arch::cpu::current()).pages.lock_irqsave(ATOMIC).pop()
}

/// Keeps an empty page for this CPU. Handed back if there are enough, or the back-off lasts.
pub(crate) fn put(page: Bnode) -> Result<(), Bnode> {
    let mut pages = spare_of(arch::cpu::current()).pages.lock_irqsave(ATOMIC);
    if pages.len() >= MIN_CACHED.get() as usize || is_backing_off() {
        return Err(page);
    }
    pages.push(page);
    Ok(())
}

/// Has the spare pages of `cpu` filled up if there is none. Context: task, hardirq; not under a run-queue lock.
pub(crate) fn arm(cpu: CpuId, queue: &WorkQueue) {
    let spare = spare_of(cpu);
    if spare.pages.lock_irqsave(ATOMIC).len() == 0 && MIN_CACHED.get() != 0 {
        let delay_ms = if is_backing_off() { BACK_OFF.load(Relaxed) } else { 0 };
        queue.queue_delayed_on(cpu, &spare.refill, u64::from(delay_ms) * 1_000_000);
    }
}

/// The work item of [`arm`]: after a back-off one page, else as many as are kept.
fn refill(work: &WorkItem) {
    // SAFETY: only `Spare::refill` has this function, which begins with its item and lies in a per-CPU area.
    let spare: &'static Spare = unsafe { &*ptr::from_ref(work).byte_sub(offset_of!(Spare, refill)).cast() };
    let wanted = if is_backing_off() { 1 } else { MIN_CACHED.get() as usize };
    while spare.pages.lock_irqsave(ATOMIC).len() < wanted {
        let Some(page) = Bnode::alloc_task() else { break };
        spare.pages.lock_irqsave(ATOMIC).push(page);
    }
    BACKING_OFF.store(false, Relaxed);
}

/// Spare pages of all CPUs.
pub(crate) fn total() -> usize {
    arch::cpu::present().iter().map(spare_on).sum()
}

/// Memory is short: gives all spare pages back and begins the back-off, or begins it anew. Says how many they were. Context: task.
pub(crate) fn drain(queue: &WorkQueue) -> usize {
    BACKING_OFF.store(true, Relaxed);
    let give_back = |cpu| {
        spare_of(cpu).refill.cancel();
        empty(cpu)
    };
    let pages = arch::cpu::present().iter().map(give_back).sum();
    // So that the back-off ends, whether somebody needs a page or not.
    arm(arch::cpu::current(), queue);
    pages
}

/// Gives the spare pages of `cpu` back. Says how many they were. Context: task.
pub(crate) fn empty(cpu: CpuId) -> usize {
    let mut all = core::mem::take(&mut *spare_of(cpu).pages.lock_irqsave(ATOMIC));
    let pages = all.len();
    while let Some(page) = all.pop() {
        page.free();
    }
    pages
}
