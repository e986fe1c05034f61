//! rcu_free sheaves: objects that wait for a grace period, a sheaf at a time (S0).
//!
//! Each CPU collects objects given to `kfree_rcu` in a third sheaf. When it is full it is detached and goes to
//! `call_rcu` as one piece: one callback for `capacity` objects. After the grace period the whole sheaf, full of free
//! objects, goes to the barn of the node it was detached on, and from there to a CPU that runs dry: the objects never see
//! their slabs (S0-17).
//!
//! The storey `kfree_rcu` decides what comes here; this module is the part that needs the inside of the allocator.
//!
//! # Invariants
//! - **RCUF-1** A full sheaf is submitted *before* the sheaf lock is dropped, so that a barrier that then takes the lock
//!   on this CPU finds either an object in `rcu_free` or a callback in front of its own (S0-7). The exception is
//!   [`Spin::Never`] with interrupts off: there it goes to the deferred list, which every barrier drains before and after it looks here (S1-16).
//! - **RCUF-2** The sheaf remembers the node it was detached on: the callback may run anywhere (S0-8).
//! - **RCUF-3** A sheaf that a flush submits is freed object by object after the grace period and never reaches a barn:
//!   the cache may be on its way out (S0-11).
//!
//! Linux: `__kfree_rcu_sheaf`, `rcu_free_sheaf`, `rcu_free_sheaf_nobarn` in `mm/slub.c` (7.x).

use core::ptr::NonNull;

use mm::AllocFlags;
use sync::{CallbackHead, bug, hook};

use crate::cache::RawCache;
use crate::exchange::Held;
use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;
use crate::{Spin, exchange, local_node, waiting};

/// Puts `object` into this CPU's rcu_free sheaf: it is freed after a grace period. False if that cannot be: the object
/// lies in no slab, or on another node, or its cache has no sheaves, or the way there is busy (S0-2, S0-4, S0-5).
///
/// Context: any but NMI with [`Spin::May`], any with [`Spin::Never`].
///
/// # Safety
/// If the answer is true the caller has given the object up: nobody but readers that started before looks at it. It was asked
/// whether it [may](crate::debug::may_wait).
pub unsafe fn free(object: NonNull<u8>, spin: Spin) -> bool {
    let Some(slab) = SlabRef::of(object) else { return false };
    let cache = slab.cache();
    let done = slab.is_home() && cache.sheaf_capacity() != 0 && push(cache, object, spin);
    cache.count(if done { Stat::FreeRcuSheaf } else { Stat::FreeRcuSheafFail });
    done
}

fn push(cache: &RawCache, object: NonNull<u8>, spin: Spin) -> bool {
    let Some(mut held) = cache.sheaves() else { return false };
    let sheaf = match held.rcu_free {
        Some(sheaf) => sheaf,
        None => {
            let barn = cache.node(local_node()).map(|node| &node.barn);
            let spare = held.spare.filter(|spare| spare.is_empty());
            if spare.is_some() {
                held.spare = None;
            }
            match spare.or_else(|| barn?.get_empty(spin)) {
                Some(empty) => begin(cache, &mut held, empty),
                None => {
                    drop(held);
                    let flags = AllocFlags::NO_RESERVE | AllocFlags::NOWARN;
                    let Some(empty) = cache.new_sheaf(flags, spin) else { return false };
                    hook!("slab.unlocked.rcu_free");
                    // CPU-4: another CPU perhaps, and an interrupt may have installed one.
                    let Some(again) = cache.sheaves() else {
                        empty.free(spin);
                        return false;
                    };
                    held = again;
                    let theirs = held.rcu_free.filter(|_| {
                        !bug!(
                            "rcu_free.install_blind",
                            "a new rcu_free sheaf takes the place of one that came meanwhile",
                            "slab_hooks.*rcu_free*"
                        )
                    });
                    match theirs {
                        Some(theirs) => {
                            if !bug!(
                                "rcu_free.surplus_lost",
                                "a new rcu_free sheaf that came too late is forgotten",
                                "slab_hooks"
                            ) {
                                empty.free(spin);
                            }
                            theirs
                        }
                        None if cache.is_current(empty)
                            || bug!(
                                "rcu_free.stale_capacity",
                                "a new sheaf becomes rcu_free although the capacity was changed meanwhile",
                                "slab_hooks.*rcu_free*"
                            ) =>
                        {
                            begin(cache, &mut held, empty)
                        }
                        None => {
                            empty.free(spin);
                            return false;
                        }
                    }
                }
            }
        }
    };
    let fits = sheaf.push(object);
    debug_assert!(fits, "S0-1: a full rcu_free sheaf stayed with its CPU");
    if !sheaf.is_full() {
        return true;
    }
    held.rcu_free = None;
    hook!("slab.rcu_free.detached");
    let other =
        bug!("rcu_free.wrong_node", "a sheaf goes to node 0's barn after its grace period", "slab_nolock.*own_node");
    sheaf.set_node(if other { arch::NodeId::new(0) } else { local_node() });
    waiting::detach(arch::cpu::current(), sheaf);
    let submit_or_defer = || {
        if spin == Spin::May || (arch::irq::enabled() && !sync::context::in_nmi()) {
            submit(sheaf);
        } else {
            crate::deferred::defer_rcu_sheaf(sheaf);
        }
    };
    let late =
        bug!("kfree_rcu.submitted_late", "a full sheaf is submitted without the sheaf lock", "kfree_rcu_hooks.*full*");
    if !late {
        // RCUF-1: still under the sheaf lock.
        submit_or_defer();
    }
    if bug!(
        "rcu_free.flag_left",
        "the sheaf lock stays taken when a full sheaf has gone to RCU",
        "kfree_rcu slab_nolock"
    ) {
        core::mem::forget(held);
        return true;
    }
    drop(held);
    hook!("slab.unlocked.rcu_free_gone");
    if late {
        submit_or_defer();
    }
    true
}

/// Makes `empty` this CPU's rcu_free sheaf.
fn begin(cache: &RawCache, held: &mut Held, empty: SheafRef) -> SheafRef {
    cache.collecting(arch::cpu::current()).begin(empty);
    *held.rcu_free.insert(empty)
}

/// Hands a detached sheaf to RCU. Only enqueues, so it is legal under the sheaf lock.
pub(crate) fn submit(sheaf: SheafRef) {
    let cache = sheaf.cache();
    sync::trace!(
        "slab.rcu_submit",
        cache = sync::trace::text(cache.name()),
        sheaf = sheaf.as_ptr().addr(),
        objects = sheaf.size()
    );
    if bug!("rcu_free.early", "a full sheaf goes to the barn without a grace period", "kfree_rcu_torture.*sheaves") {
        // SAFETY: none; that is the bug.
        return unsafe { to_barn(sheaf.rcu_head()) };
    }
    // SAFETY: the sheaf is ours and goes away with this call; the callback is its only user from here on.
    unsafe { rcu::call_rcu(sheaf.rcu_head(), to_barn) };
}

/// After the grace period: the sheaf goes to the barn it came from, or its objects to their slabs (S0-10).
unsafe fn to_barn(head: *mut CallbackHead) {
    // SAFETY: RCU hands back what `submit` handed over.
    let sheaf = unsafe { SheafRef::from_rcu_head(head) };
    let cache = sheaf.cache();
    let barn = cache.node(sheaf.node()).map(|node| &node.barn);
    if !waiting::returned(sheaf) {
        return;
    }
    sync::trace!(
        "slab.rcu_done",
        cache = sync::trace::text(cache.name()),
        sheaf = sheaf.as_ptr().addr(),
        objects = sheaf.size()
    );
    if let Some(barn) = barn.filter(|barn| barn.has_room_for_full()) {
        exchange::put_full(barn, sheaf);
        return;
    }
    cache.count(Stat::BarnPutFail);
    cache.flush(sheaf);
    match barn.filter(|barn| barn.has_room_for_empty()) {
        Some(barn) => exchange::put_empty(barn, sheaf),
        None => {
            sheaf.free(Spin::May);
        }
    }
}

/// After the grace period of a sheaf that a flush submitted (RCUF-3).
unsafe fn to_slabs(head: *mut CallbackHead) {
    // SAFETY: RCU hands back what `submit_flushed` handed over.
    let sheaf = unsafe { SheafRef::from_rcu_head(head) };
    if !waiting::returned(sheaf) {
        return;
    }
    sheaf.cache().flush_and_free(sheaf);
}

/// Hands a partly filled sheaf that a flush took off a CPU to RCU (S0-12).
pub(crate) fn submit_flushed(sheaf: SheafRef) {
    // SAFETY: as in `submit`.
    unsafe { rcu::call_rcu(sheaf.rcu_head(), to_slabs) };
}
