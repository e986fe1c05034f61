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
//!   taken back, and raises again while anything is left. So nothing stays behind (SCHED-14, LL-3).
//! - **DEFER-3** Each list counts what was pushed, before the push, and what is done, after; its entries are done in the order
//!   of the pushes. Who waits for what was deferred before waits until as many are done as had been pushed ([`flush`]),
//!   wherever they are: on the list, taken, or in the drain's hands.
//! - **DEFER-4** Freeing what was deferred allocates nothing: into the main sheaf if that has room, else to the slab.
//! - **DEFER-5** One soft interrupt does at most [`SHARE`] entries; what is left of the lists it took stays with the CPU, in
//!   order. Drains do not nest: one that interrupts another leaves it all to that.
//!
//! Context of the drain: softirq, interrupts on; for a dead CPU task. Linux: `struct defer_free` in `mm/slub.c` (7.x), where an
//! irq_work with a self-IPI does it.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{CpuId, clock};
use sched::Softirq;
use sched::hotplug::CpusGuard;
use sched::softirq;
use sync::hooks::Slot;
use sync::{ATOMIC, LlistChain, LlistHead, LlistNode, MaySleep, PreemptGuard, bug, hook};

use crate::rcu_bound;
use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;
use crate::waiting::{self, Stage};

/// Entries that one soft interrupt does.
const SHARE: usize = 64;
/// Between two looks of who waits for a drain.
const PAUSE_NS: u64 = 20_000;

/// A list of a CPU, in the order in which they are drained.
#[derive(Clone, Copy)]
enum List {
    Frees,
    RcuObjects,
    RcuSheaves,
}

const LISTS: usize = 3;

/// One CPU's lists. Pushed to by this CPU in any context; drained by it, or for it when it is dead.
struct Deferred {
    lists: [LlistHead; LISTS],
    /// What was taken off each list and is not done, oldest first. Belongs to the drain.
    taken: UnsafeCell<[Option<LlistChain>; LISTS]>,
    /// Entries of each list that are done (DEFER-3). Written by the drain.
    done: [AtomicU64; LISTS],
    /// A drain is under way (DEFER-5). Written by this CPU; by others while it is dead.
    draining: AtomicBool,
    /// When the oldest entry on the lists came; 0 where there is none. Written by this CPU, in any context.
    since: AtomicU64,
    /// When the oldest came of those that were taken last. Written by the drain.
    taken_since: AtomicU64,
}

// SAFETY: `taken` is used by the drain only, of which there is one at a time (DEFER-5), on the CPU or for it while it is dead.
unsafe impl Sync for Deferred {}

sync::per_cpu! {
    static DEFERRED: Deferred = Deferred {
        lists: [const { LlistHead::new() }; LISTS],
        taken: UnsafeCell::new([const { None }; LISTS]),
        done: [const { AtomicU64::new(0) }; LISTS],
        draining: AtomicBool::new(false),
        since: AtomicU64::new(0),
        taken_since: AtomicU64::new(0),
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
    /// How often it took an interrupt to itself, because its tick was stopped. Also of the times that a CPU's
    /// [keeper](rcu_bound) was to be armed.
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

fn push(list: List, node: NonNull<LlistNode>) {
    let _pin = PreemptGuard::new(ATOMIC);
    // SAFETY: pinned; per-CPU areas are never freed, and everything in this one is shared and lock-less.
    let here: &'static Deferred = unsafe { &*DEFERRED.this_ptr() };
    // Before the push (DEFER-3).
    match list {
        List::Frees => FREES.inc(),
        List::RcuObjects => RCU_OBJECTS.inc(),
        List::RcuSheaves => RCU_SHEAVES.inc(),
    }
    // SAFETY: the node lies in memory that the caller gives away with this call, and nobody else links it.
    let was_empty = unsafe { here.lists[list as usize].add(node.as_ptr()) };
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
        raise();
    }
}

/// Has this CPU drain soon.
///
/// Context: any.
pub(crate) fn raise() {
    let _pin = PreemptGuard::new(ATOMIC);
    if softirq::raise_quietly(Softirq::Free) {
        INTERRUPTS.inc();
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
    push(List::Frees, node);
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
    push(List::RcuObjects, head);
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
    push(List::RcuSheaves, sheaf.llist_node());
}

/// Does what this CPU has deferred, up to a share (DEFER-5); the rest soon. Arms the CPU's [keeper](rcu_bound) if that was asked
/// for.
///
/// Context: any but NMI.
pub fn drain_here() {
    let _pin = PreemptGuard::new(ATOMIC);
    rcu_bound::arm(arch::cpu::current());
    // SAFETY: as in `push`.
    let here: &'static Deferred = unsafe { &*DEFERRED.this_ptr() };
    // Relaxed: only what interrupts this CPU sees it meanwhile.
    if here.draining.swap(true, Ordering::Relaxed) {
        return;
    }
    here.drain(SHARE);
    here.draining.store(false, Ordering::Relaxed);
    // Also what a drain has left to this one that interrupted it.
    if here.has_work() {
        raise();
    }
}

impl Deferred {
    /// Does up to `share` entries of what was taken; takes the lists if nothing is left of that.
    ///
    /// The caller has marked the drain as under way, or the CPU is dead.
    fn drain(&self, mut share: usize) {
        // SAFETY: there is one drain at a time (DEFER-5).
        let taken = unsafe { &mut *self.taken.get() };
        if taken.iter().all(Option::is_none) {
            self.take(taken);
        }
        for (list, chain) in [List::Frees, List::RcuObjects, List::RcuSheaves].into_iter().zip(taken) {
            let done = &self.done[list as usize];
            while share != 0
                && let Some(rest) = chain
            {
                let Some(node) = rest.next() else {
                    *chain = None;
                    break;
                };
                finish(list, NonNull::new(node).expect("a chain yields nodes"));
                // Release: pairs with the acquire in `has_done`: who waits sees what was done.
                done.store(done.load(Ordering::Relaxed) + 1, Ordering::Release);
                share -= 1;
            }
            if chain.as_ref().is_some_and(LlistChain::is_empty) {
                *chain = None;
            }
        }
    }

    fn take(&self, taken: &mut [Option<LlistChain>; LISTS]) {
        let since = self.since.swap(0, Ordering::Relaxed);
        self.taken_since.store(since, Ordering::Relaxed);
        if since != 0 {
            waiting::record(Stage::Deferred, clock::now_ns().saturating_sub(since));
        }
        for (list, chain) in self.lists.iter().zip(taken) {
            let all = list.take_all();
            hook!("slab.deferred.drain");
            *chain = Some(all.reversed()).filter(|all| !all.is_empty());
        }
    }

    /// Whether anything is left. The caller is who drains.
    fn has_work(&self) -> bool {
        // SAFETY: the caller is pinned to the CPU and does not interrupt a drain, or the CPU is dead.
        let taken = unsafe { &*self.taken.get() };
        taken.iter().any(Option::is_some) || self.lists.iter().any(|list| !list.is_empty())
    }

    /// Whether as many entries of each list are done.
    fn has_done(&self, pushed: [u64; LISTS]) -> bool {
        // Acquire: pairs with the release in `drain`.
        self.done.iter().zip(pushed).all(|(done, pushed)| done.load(Ordering::Acquire) >= pushed)
    }
}

/// Does what `node` was pushed to `list` for.
fn finish(list: List, node: NonNull<LlistNode>) {
    match list {
        List::Frees => {
            // SAFETY: pushed by `defer_free`, so it lies in an object that is ours to free.
            unsafe { free_by_link(node) };
            if bug!("deferred.freed_twice", "a deferred object is freed twice", "slab_nolock.stepped*path") {
                // SAFETY: none; that is the bug.
                unsafe { free_by_link(node) };
            }
        }
        List::RcuObjects => {
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
        }
        // SAFETY: pushed by `defer_rcu_sheaf`.
        List::RcuSheaves => crate::rcu_free::submit(unsafe { SheafRef::from_llist_node(node) }),
    }
}

/// For how long the oldest entry there is has been deferred, in nanoseconds: a hint.
///
/// Context: any.
pub(crate) fn oldest_ns() -> Option<u64> {
    let since = |cpu| {
        // SAFETY: per-CPU areas are never freed; what is used of this one is shared.
        let there: &'static Deferred = unsafe { &*DEFERRED.ptr_on(cpu) };
        if there.has_done(pushed_on(cpu)) {
            return None;
        }
        let times = [&there.since, &there.taken_since].map(|at| at.load(Ordering::Relaxed));
        times.into_iter().filter(|&at| at != 0).min()
    };
    let oldest = arch::cpu::present().iter().filter_map(since).min()?;
    Some(clock::now_ns().saturating_sub(oldest))
}

/// How many entries were pushed to each list of a CPU.
fn pushed_on(cpu: CpuId) -> [u64; LISTS] {
    let counts = counts_on(cpu);
    [counts.frees, counts.rcu_objects, counts.rcu_sheaves]
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
    let there: &'static Deferred = unsafe { &*DEFERRED.ptr_on(cpu) };
    while there.has_work() {
        there.drain(usize::MAX);
    }
    rcu_bound::arm(cpu);
}

/// Waits until everything that was deferred before on any CPU is done (S1-16, first step; S1-17). A CPU that is offline has
/// nothing deferred ([`drain_parked`]).
///
/// Context: task; sleeps. Any number of threads at once.
pub fn flush(_cpus: &CpusGuard, cx: &mut MaySleep) {
    for cpu in arch::cpu::online().iter() {
        // SAFETY: per-CPU areas are never freed; what is used of this one is shared and lock-less.
        let there: &'static Deferred = unsafe { &*DEFERRED.ptr_on(cpu) };
        let pushed = pushed_on(cpu);
        if there.has_done(pushed) {
            continue;
        }
        // Somebody may have seen to that, but with no hurry.
        sync::smp::call_on(cpu, |_| raise(), 0, true);
        while !there.has_done(pushed)
            && !bug!("deferred.not_waited", "a barrier does not wait for a drain that is under way", "kfree_rcu_nolock")
        {
            sched::sleep_ns(cx, PAUSE_NS);
        }
    }
}
