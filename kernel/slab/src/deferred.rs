//! What could not be done where it was asked for, because that may have been an NMI: per CPU, on lock-less lists,
//! until the CPU is in a context that may take locks.
//!
//! Three lists, drained in this order (S1-15): plain frees; objects for `kfree_rcu`, which the drain puts into rcu_free
//! sheaves; full rcu_free sheaves, which the drain hands to `call_rcu`.
//!
//! # Invariants
//! - **DEFER-1** Pushing takes no lock, allocates nothing and cannot fail: the link lies in the object itself, or in the
//!   sheaf's header.
//! - **DEFER-2** Whoever pushes to an empty list queues the CPU's [`IrqWork`] *after* the push; the drain takes the whole
//!   list after the work left the queue. So nothing stays behind (IW-2, LL-3).
//! - **DEFER-3** The work is lazy: it costs no self-IPI while the tick runs, because the interrupt exit or tick that runs it
//!   comes anyway (S1-11).
//!
//! - **DEFER-4** Freeing what was deferred allocates nothing: into the main sheaf if that has room, else to the slab.
//!
//! Context of the drain: hardirq, interrupts on this CPU off; for a dead CPU task. Linux: `struct defer_free` in `mm/slub.c` (7.x).

use core::ptr::NonNull;

use arch::CpuId;
use sched::hotplug::CpusGuard;
use sync::hooks::Slot;
use sync::{ATOMIC, IrqWork, LlistChain, LlistHead, LlistNode, MaySleep, PreemptGuard, bug, hook};

use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;
use crate::waiting::{self, Stage};

/// One CPU's lists. Pushed to by this CPU in any context; drained by it, or for it when it is dead.
struct Deferred {
    frees: LlistHead,
    rcu_objects: LlistHead,
    rcu_sheaves: LlistHead,
    work: IrqWork,
}

sync::per_cpu! {
    static DEFERRED: Deferred = Deferred {
        frees: LlistHead::new(),
        rcu_objects: LlistHead::new(),
        rcu_sheaves: LlistHead::new(),
        work: IrqWork::new(|_| drain_here()),
    };
}

/// What becomes of a deferred `kfree_rcu` object: called with the address of its head, in hardirq context. Set by
/// kfree_rcu.
pub static RCU_OBJECT: Slot<unsafe fn(NonNull<LlistNode>)> = Slot::new();

/// Which of the lists.
#[derive(Clone, Copy)]
enum List {
    Frees,
    RcuObjects,
    RcuSheaves,
}

fn push(which: List, node: NonNull<LlistNode>) {
    let _pin = PreemptGuard::new(ATOMIC);
    // SAFETY: pinned; per-CPU areas are never freed, and everything in this one is shared and lock-less.
    let here: &'static Deferred = unsafe { &*DEFERRED.this_ptr() };
    let list = match which {
        List::Frees => &here.frees,
        List::RcuObjects => &here.rcu_objects,
        List::RcuSheaves => &here.rcu_sheaves,
    };
    // SAFETY: the node lies in memory that the caller gives away with this call, and nobody else links it.
    let was_empty = unsafe { list.add(node.as_ptr()) };
    hook!("slab.deferred.push");
    if was_empty
        && !bug!("deferred.no_kick", "nobody is told that there is something to drain", "slab_nolock.*by_itself")
    {
        here.work.queue_lazy();
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
    waiting::enter(Stage::Deferred, head.cast());
    push(List::RcuObjects, head);
}

/// Hands a full rcu_free sheaf to `call_rcu` as soon as that may be.
///
/// Context: any.
pub(crate) fn defer_rcu_sheaf(sheaf: SheafRef) {
    push(List::RcuSheaves, sheaf.llist_node());
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
        waiting::leave(Stage::Deferred, node.cast());
        let hook = RCU_OBJECT.get().expect("kfree_rcu_nolock before kfree_rcu is up");
        // SAFETY: pushed by `defer_rcu_object`, whose caller gave the object up.
        unsafe { hook(node) };
    });
    oldest_first(&deferred.rcu_sheaves, |node| {
        // SAFETY: pushed by `defer_rcu_sheaf`.
        crate::rcu_free::submit(unsafe { SheafRef::from_llist_node(node) });
    });
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
/// Context: task; sleeps.
pub fn flush(_cpus: &CpusGuard, cx: &mut MaySleep) {
    for cpu in arch::cpu::online().iter() {
        // SAFETY: per-CPU areas are never freed; the work is shared and made to be used across CPUs.
        let there: &'static Deferred = unsafe { &*DEFERRED.ptr_on(cpu) };
        if there.work.is_pending() || !there.is_empty() {
            // An IPI at once instead of the next tick.
            sync::smp::call_on(cpu, |_| drain_here(), 0, true);
        }
        there.work.sync(cx);
    }
}

impl Deferred {
    fn is_empty(&self) -> bool {
        self.frees.is_empty() && self.rcu_objects.is_empty() && self.rcu_sheaves.is_empty()
    }
}
