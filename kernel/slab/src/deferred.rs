//! What could not be done where it was asked for, because that may have been an NMI: per CPU, on lock-less lists,
//! until the CPU is in a context that may take locks.
//!
//! Three lists, drained in this order (S1-15): plain frees; objects for `kfree_rcu`, which the drain puts into rcu_free
//! sheaves; full rcu_free sheaves, which the drain hands to `call_rcu`.
//!
//! # How it is noticed
//!
//! Whoever pushes to an empty list raises a soft interrupt, quietly ([`softirq::raise_quietly`]): no interrupt to oneself, no
//! `irq_work`, and no test on any path that has not been there before (S1-11). The drain comes with whatever is first:
//!
//! | what | where the bit is seen |
//! |---|---|
//! | the end of the outermost guard, interrupts on | bit 31 of `preempt_count`, which that end tests anyway (`PC-7` of `sync::context`) |
//! | the exit of an interrupt, the tick's at the latest; the end of a section without soft interrupts | the word of pending soft interrupts |
//! | a CPU that is about to idle | the same word, the last thing before it halts |
//!
//! Only a CPU whose tick is stopped, an idle one, has none of these to come: there, and only there, the raise is a self-IPI
//! (`sched::idle`, case 4). [`counts`] says how often, and [`waiting::residence`] how long things lay here.
//!
//! # Invariants
//! - **DEFER-1** Pushing takes no lock, allocates nothing and cannot fail: the link lies in the object itself, or in the
//!   sheaf's header.
//! - **DEFER-2** Whoever pushes to an empty list raises *after* the push; the drain takes the whole list after the raise was
//!   taken back. So nothing stays behind (SCHED-14, LL-3).
//! - **DEFER-3** A drain that has taken a list counts as under way until all that was on it is done; who waits for what was
//!   deferred before waits for that, too ([`flush`]): the drain may be interrupted by whom it waits for.
//! - **DEFER-4** Freeing what was deferred allocates nothing: into the main sheaf if that has room, else to the slab.
//!
//! Context of the drain: softirq, interrupts on; for a dead CPU task. Linux: `struct defer_free` in `mm/slub.c` (7.x), where an
//! irq_work with a self-IPI does it.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use arch::{CpuId, clock};
use sched::Softirq;
use sched::hotplug::CpusGuard;
use sched::softirq;
use sync::hooks::Slot;
use sync::{ATOMIC, LlistChain, LlistHead, LlistNode, MaySleep, PreemptGuard, bug, hook};

use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;
use crate::waiting::{self, Stage};

/// One CPU's lists. Pushed to by this CPU in any context; drained by it, or for it when it is dead.
struct Deferred {
    frees: LlistHead,
    rcu_objects: LlistHead,
    rcu_sheaves: LlistHead,
    /// Drains under way (DEFER-3), one inside the other. Written by this CPU; by others while it is dead.
    draining: AtomicU32,
    /// When the oldest entry came; 0 where nothing waits. Written by this CPU, in any context.
    since: AtomicU64,
}

sync::per_cpu! {
    static DEFERRED: Deferred = Deferred {
        frees: LlistHead::new(),
        rcu_objects: LlistHead::new(),
        rcu_sheaves: LlistHead::new(),
        draining: AtomicU32::new(0),
        since: AtomicU64::new(0),
    };
    /// What was pushed, by list; raises; of these self-IPIs.
    static FREES: u64 = 0;
    static RCU_OBJECTS: u64 = 0;
    static RCU_SHEAVES: u64 = 0;
    static RAISES: u64 = 0;
    static INTERRUPTS: u64 = 0;
}

/// What was deferred since boot, and what it took to have it done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Plain frees.
    pub frees: u64,
    /// Objects for `kfree_rcu`.
    pub rcu_objects: u64,
    /// Full rcu_free sheaves.
    pub rcu_sheaves: u64,
    /// How often the CPU was told: pushes to an empty list.
    pub raises: u64,
    /// Of these with an interrupt to itself, because its tick was stopped.
    pub interrupts: u64,
}

/// The sum of all CPUs' counts.
///
/// Context: any. What is counted meanwhile may be in some of the numbers already.
pub fn counts() -> Counts {
    arch::cpu::present().iter().map(counts_on).fold(Counts::default(), |sum, one| Counts {
        frees: sum.frees + one.frees,
        rcu_objects: sum.rcu_objects + one.rcu_objects,
        rcu_sheaves: sum.rcu_sheaves + one.rcu_sheaves,
        raises: sum.raises + one.raises,
        interrupts: sum.interrupts + one.interrupts,
    })
}

/// The counts of one CPU, which is present.
///
/// Context: any.
pub fn counts_on(cpu: CpuId) -> Counts {
    let [frees, rcu_objects, rcu_sheaves, raises, interrupts] = [
        FREES.ptr_on(cpu),
        RCU_OBJECTS.ptr_on(cpu),
        RCU_SHEAVES.ptr_on(cpu),
        RAISES.ptr_on(cpu),
        INTERRUPTS.ptr_on(cpu),
    ]
    // SAFETY: areas of present CPUs live for ever; the owner counts by single instructions.
    .map(|at| unsafe { at.read_volatile() });
    Counts { frees, rcu_objects, rcu_sheaves, raises, interrupts }
}

/// What becomes of a deferred `kfree_rcu` object: called with the address of its head, not in NMI context. Set by kfree_rcu.
pub static RCU_OBJECT: Slot<unsafe fn(NonNull<LlistNode>)> = Slot::new();

fn push(list: impl FnOnce(&Deferred) -> &LlistHead, node: NonNull<LlistNode>) {
    let _pin = PreemptGuard::new(ATOMIC);
    // SAFETY: pinned; per-CPU areas are never freed, and everything in this one is shared and lock-less.
    let here: &'static Deferred = unsafe { &*DEFERRED.this_ptr() };
    // SAFETY: the node lies in memory that the caller gives away with this call, and nobody else links it.
    let was_empty = unsafe { list(here).add(node.as_ptr()) };
    hook!("slab.deferred.push");
    if was_empty
        && !bug!(
            "deferred.no_kick",
            "nobody is told that there is something to drain",
            "slab_nolock.*by_itself kfree_rcu_nolock"
        )
    {
        // Another list may have been first. Relaxed: a hint for figures.
        let _ = here.since.compare_exchange(0, clock::now_ns(), Ordering::Relaxed, Ordering::Relaxed);
        RAISES.inc();
        if softirq::raise_quietly(Softirq::Free) {
            INTERRUPTS.inc();
        }
    }
}

/// Frees `object`, which the caller gives up, as soon as that may be.
///
/// Context: any.
pub(crate) fn defer_free(object: NonNull<u8>) {
    // Objects of a cache have their freelist link where it hurts nobody; anything else is at least a page.
    let offset = match SlabRef::of(object) {
        Some(slab) if slab.cache().may_defer(slab, object) => slab.cache().deferral_offset(),
        Some(_) => return,
        None => 0,
    };
    // SAFETY: inside the object, which the caller gives up.
    let node = unsafe { object.add(offset) }.cast::<LlistNode>();
    // SAFETY: as above; the link is aligned as a pointer is.
    unsafe { node.write(LlistNode::new()) };
    FREES.inc();
    push(|here| &here.frees, node);
}

/// Hands the object whose `kfree_rcu` head is `head` to `kfree_rcu` as soon as that may be.
///
/// Context: any.
///
/// # Safety
/// `head` lies in an object that was given up to `kfree_rcu`; nobody but readers looks at it any more, and nobody at the
/// head.
pub unsafe fn defer_rcu_object(head: NonNull<LlistNode>) {
    // SAFETY: the caller hands the head over.
    unsafe { head.write(LlistNode::new()) };
    if counts_here(head) {
        waiting::enter(Stage::Deferred, head.cast());
    }
    RCU_OBJECTS.inc();
    push(|here| &here.rcu_objects, head);
}

/// Whether the object that `head` lies in counts as waiting while it is deferred: to ask for the size of a vmalloc area takes
/// a lock, so it counts from the drain on.
fn counts_here(head: NonNull<LlistNode>) -> bool {
    !mm::is_vmalloc(head.as_ptr().cast())
}

/// Hands a full rcu_free sheaf to `call_rcu` as soon as that may be.
///
/// Context: any.
pub(crate) fn defer_rcu_sheaf(sheaf: SheafRef) {
    RCU_SHEAVES.inc();
    push(|here| &here.rcu_sheaves, sheaf.llist_node());
}

/// Does what this CPU has deferred, at once.
///
/// Context: any but NMI.
pub fn drain_here() {
    let _pin = PreemptGuard::new(ATOMIC);
    // SAFETY: as in `push`.
    drain(unsafe { &*DEFERRED.this_ptr() });
}

fn drain(deferred: &Deferred) {
    deferred.draining.fetch_add(1, Ordering::Relaxed);
    // Pairs with the acquire fence in `flush`: whoever sees a list empty that is emptied below sees that it is under way.
    fence(Ordering::Release);
    let since = deferred.since.swap(0, Ordering::Relaxed);
    if since != 0 {
        waiting::record(Stage::Deferred, clock::now_ns().saturating_sub(since));
    }
    oldest_first(&deferred.frees, |node| {
        // SAFETY: pushed by `defer_free`, so it lies in an object that is ours to free.
        unsafe { free_by_link(node) };
        if bug!("deferred.freed_twice", "a deferred object is freed twice", "slab_nolock.stepped*path") {
            // SAFETY: none; that is the bug.
            unsafe { free_by_link(node) };
        }
    });
    oldest_first(&deferred.rcu_objects, |node| {
        if bug!(
            "deferred.rcu_lost",
            "an object that was deferred for kfree_rcu is forgotten",
            "slab_nolock.stepped*path"
        ) {
            return;
        }
        if counts_here(node) {
            waiting::leave(Stage::Deferred, node.cast());
        }
        let hook = RCU_OBJECT.get().expect("kfree_rcu_nolock before kfree_rcu is up");
        // SAFETY: pushed by `defer_rcu_object`, whose caller gave the object up.
        unsafe { hook(node) };
    });
    oldest_first(&deferred.rcu_sheaves, |node| {
        // SAFETY: pushed by `defer_rcu_sheaf`.
        crate::rcu_free::submit(unsafe { SheafRef::from_llist_node(node) });
    });
    // Release: pairs with the acquire in `flush`, which then sees what was done.
    deferred.draining.fetch_sub(1, Ordering::Release);
}

fn oldest_first(list: &LlistHead, mut f: impl FnMut(NonNull<LlistNode>)) {
    let chain: LlistChain = list.take_all();
    hook!("slab.deferred.drain");
    for node in chain.reversed() {
        f(NonNull::new(node).expect("a chain yields nodes"));
    }
}

/// Frees the object that `link` lies in.
///
/// # Safety
/// `link` was pushed by [`defer_free`].
unsafe fn free_by_link(link: NonNull<LlistNode>) {
    let address = link.as_ptr().cast::<u8>();
    if let Some(slab) = SlabRef::of(link.cast()) {
        let (cache, object) = (slab.cache(), slab.object_at(address));
        if cache.is_checked() {
            cache.release_deferral(object);
        }
        if !(slab.is_home() && cache.free_fast(object)) {
            cache.count(Stat::FreeSlowpath);
            cache.give_back(slab, object, object, 1);
        }
        return;
    }
    let page = mm::page_of(address).expect("a deferred object lies in pages").head();
    mm::free_pages(page, page.order());
}

/// Does what a CPU that is offline has deferred.
///
/// Context: task.
///
/// # Safety
/// `cpu` is parked, and stays so meanwhile.
pub(crate) unsafe fn drain_parked(cpu: CpuId) {
    // SAFETY: per-CPU areas are never freed. Taking a list is legal from any CPU; by the caller nobody pushes.
    drain(unsafe { &*DEFERRED.ptr_on(cpu) });
}

/// Waits until everything that was deferred before on any CPU is done (S1-16, first step; S1-17). A CPU that is offline has
/// nothing deferred ([`drain_parked`]).
///
/// Context: task; sleeps. Any number of threads at once.
pub fn flush(_cpus: &CpusGuard, _cx: &mut MaySleep) {
    for cpu in arch::cpu::online().iter() {
        // SAFETY: per-CPU areas are never freed; what is used of this one is shared and lock-less.
        let there: &'static Deferred = unsafe { &*DEFERRED.ptr_on(cpu) };
        if !there.is_empty() {
            sync::smp::call_on(cpu, |_| drain_here(), 0, true);
        }
        // Pairs with the release fence in `drain`.
        fence(Ordering::Acquire);
        // The call may have interrupted a drain, and an empty list may be in somebody's hands (DEFER-3). It is short: that
        // thread or soft interrupt has preemption off. Acquire: pairs with the release at its end.
        while there.draining.load(Ordering::Acquire) != 0
            && !bug!("deferred.not_waited", "a barrier does not wait for a drain that is under way", "kfree_rcu_nolock")
        {
            arch::irq::relax();
        }
    }
}

impl Deferred {
    fn is_empty(&self) -> bool {
        self.frees.is_empty() && self.rcu_objects.is_empty() && self.rcu_sheaves.is_empty()
    }
}
