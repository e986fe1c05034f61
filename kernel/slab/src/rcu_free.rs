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
//! - **RCUF-1** A sheaf is submitted *before* the sheaf lock is dropped, whether it is full or somebody takes it off its CPU
//!   earlier, so that a barrier that then takes the lock on this CPU finds either an object in `rcu_free` or a callback in front
//!   of its own (S0-7). The exception is a full one with [`Spin::Never`] and interrupts off: there it goes to the deferred list, which
//!   every barrier drains before and after it looks here (S1-16).
//! - **RCUF-2** The sheaf remembers the node it was detached on: the callback may run anywhere (S0-8).
//! - **RCUF-3** A sheaf that is submitted before it is full is freed object by object after the grace period and never
//!   reaches a barn: the cache may be on its way out (S0-11).
//! - **RCUF-4** A sheaf is submitted when the bound of [`rcu_bound`](crate::rcu_bound) is over, full or not.
//!
//! What becomes of a sheaf after its grace period is in [`rcu_return`](crate::rcu_return).
//!
//! Linux: `__kfree_rcu_sheaf` in `mm/slub.c` (7.x).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arch::{CpuId, NodeId};
use mm::AllocFlags;
use sync::callback::CallbackFn;
use sync::{PreemptGuard, bug, hook};

use crate::cache::RawCache;
use crate::cpu::{Here, Sheaves};
use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;
use crate::{Spin, local_node, rcu_bound, rcu_return, waiting};

/// What a sheaf waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// `call_rcu`: on a CPU with lazy callbacks its grace period may be seconds away (S0-20).
    Lazy,
    /// `call_rcu_hurry`: the next grace period.
    Hurry,
}

sync::param! {
    /// Whether sheaves of objects given to kfree_rcu may wait with a CPU's lazy callbacks.
    static RCU_SHEAF: choice = "grange.rcu_sheaf", default "lazy", one of ["lazy", "hurry"];
}

static HURRY: AtomicBool = AtomicBool::new(false);

/// Does what the command line says. Context: boot.
pub(crate) fn init() {
    set_policy(if RCU_SHEAF.get() == "hurry" { Policy::Hurry } else { Policy::Lazy });
}

/// What sheaves that are submitted from now on wait for.
///
/// Context: any.
pub fn set_policy(policy: Policy) {
    HURRY.store(policy == Policy::Hurry, Relaxed);
}

/// What sheaves wait for.
///
/// Context: any.
pub fn policy() -> Policy {
    if HURRY.load(Relaxed) { Policy::Hurry } else { Policy::Lazy }
}

/// Puts the object that `address` lies in into this CPU's rcu_free sheaf: it is freed after a grace period. If that cannot be,
/// `otherwise` is called with the address: it lies in no slab, or on another node, or its cache has no sheaves, or the way there
/// is busy (S0-2, S0-4, S0-5).
///
/// Context: any but NMI with [`Spin::May`], any with [`Spin::Never`]. Usually wait-free: a look-up and a push. What comes after
/// is not in the way: the calls that leave here are jumps.
///
/// # Safety
/// The caller has given the object up, to `otherwise` if that is called: nobody but readers that started before looks at it. It
/// was asked whether it [may](crate::debug::may_wait).
#[inline(always)]
pub unsafe fn free_or(address: NonNull<u8>, spin: Spin, otherwise: impl FnOnce(NonNull<u8>)) {
    let Some((cache, object)) = SlabRef::local_object_at(address) else { return refuse(address, otherwise) };
    // Two ways out, so that nothing need be made ready for either on the usual one.
    match Here::lock_or_pin(cache) {
        Ok(here) => {
            if !here.push_rcu(object) {
                free_slow(here, cache, object, address, spin, otherwise);
            }
        }
        Err(pin) => free_busy(pin, cache, object, address, spin, otherwise),
    }
}

/// [`free_or`], saying whether the object was taken.
///
/// # Safety
/// If the answer is true the caller has given the object up: nobody but readers that started before looks at it. It was asked
/// whether it [may](crate::debug::may_wait).
#[inline]
pub unsafe fn free(address: NonNull<u8>, spin: Spin) -> bool {
    let mut taken = true;
    // SAFETY: the caller's contract.
    unsafe { free_or(address, spin, |_| taken = false) };
    taken
}

/// What is no object of a slab of this node.
#[cold]
#[inline(never)]
fn refuse(address: NonNull<u8>, otherwise: impl FnOnce(NonNull<u8>)) {
    if let Some(slab) = SlabRef::of(address) {
        slab.cache().count(Stat::FreeRcuSheafFail);
    }
    otherwise(address);
}

/// A free that the fast path could not do: there is no sheaf yet, or it gets full.
#[cold]
#[inline(never)]
fn free_slow(
    here: Here,
    cache: &RawCache,
    object: NonNull<u8>,
    address: NonNull<u8>,
    spin: Spin,
    otherwise: impl FnOnce(NonNull<u8>),
) {
    drop(here);
    free_anew(cache, object, address, spin, otherwise);
}

/// A free that interrupted somebody who has the sheaves.
#[cold]
#[inline(never)]
fn free_busy(
    pin: PreemptGuard<'static>,
    cache: &RawCache,
    object: NonNull<u8>,
    address: NonNull<u8>,
    spin: Spin,
    otherwise: impl FnOnce(NonNull<u8>),
) {
    drop(pin);
    free_anew(cache, object, address, spin, otherwise);
}

#[inline]
fn free_anew(
    cache: &RawCache,
    object: NonNull<u8>,
    address: NonNull<u8>,
    spin: Spin,
    otherwise: impl FnOnce(NonNull<u8>),
) {
    if cache.sheaf_capacity() != 0 && push(cache, object, spin) {
        return cache.count(Stat::FreeRcuSheaf);
    }
    cache.count(Stat::FreeRcuSheafFail);
    otherwise(address);
}

impl Sheaves {
    /// Makes `empty` the sheaf of `cache` for objects that wait, which this CPU has none of.
    fn begin_rcu_free(&mut self, cache: &RawCache, empty: SheafRef) -> SheafRef {
        cache.collecting(arch::cpu::current()).begin(empty);
        rcu_bound::watch();
        *self.rcu_free.insert(empty)
    }

    /// Hands the sheaf for objects that wait to RCU although it is not full (S0-12); whether there was one. These are the
    /// sheaves of `cpu`, and it is done before anybody else gets them (RCUF-1).
    pub(crate) fn submit_rcu_free(&mut self, cpu: CpuId) -> bool {
        self.end_rcu_free(cpu).map(|sheaf| call(sheaf, rcu_return::to_slabs)).is_some()
    }

    /// Takes the sheaf for objects that wait, on its way to RCU. These are the sheaves of `cpu`.
    fn end_rcu_free(&mut self, cpu: CpuId) -> Option<SheafRef> {
        let sheaf = self.rcu_free.take()?;
        let other = bug!(
            "rcu_free.wrong_node",
            "a sheaf goes to node 0's barn after its grace period",
            "slab_nolock.*own_node"
        );
        sheaf.set_node(if other { NodeId::new(0) } else { arch::cpu::node_of(cpu) });
        waiting::detach(cpu, sheaf);
        Some(sheaf)
    }
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
                Some(empty) => held.begin_rcu_free(cache, empty),
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
                            held.begin_rcu_free(cache, empty)
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
    held.end_rcu_free(arch::cpu::current());
    hook!("slab.rcu_free.detached");
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

/// Hands a full sheaf to RCU. Only enqueues, so it is legal under the sheaf lock.
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
        return unsafe { rcu_return::to_barn(sheaf.rcu_head()) };
    }
    call(sheaf, rcu_return::to_barn);
}

fn call(sheaf: SheafRef, func: CallbackFn) {
    // SAFETY: the sheaf is ours and goes away with this call; the callback is its only user from here on.
    unsafe {
        match policy() {
            Policy::Lazy => rcu::call_rcu(sheaf.rcu_head(), func),
            Policy::Hurry => rcu::call_rcu_hurry(sheaf.rcu_head(), func),
        }
    }
}
