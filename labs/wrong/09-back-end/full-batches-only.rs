//! Queues a callback for each 64 objects; the last few wait for company.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::cpu::{self, MAX_CPUS};
use rcu::{CallbackHead, call_rcu, rcu_barrier};
use sync::{ATOMIC, LockClass, MaySleep, SpinLock};

use crate::pool::{self, Object};

static CLASS: LockClass = LockClass::new("lab.back_end");

/// Lists of objects that were given to a CPU, linked by their `next`.
struct Lists {
    gathering: *mut Object,
    /// Behind a callback that was queued; the callback is free if this is null.
    waiting: *mut Object,
}

// SAFETY: an object that was given up is as good on any CPU.
unsafe impl Send for Lists {}

/// What a CPU has. The callback comes first, so that its address is this.
#[repr(C)]
struct OfCpu {
    /// The callback's queue's, from when `waiting` is filled until it is emptied; nobody's else.
    callback: UnsafeCell<CallbackHead>,
    /// Inside it nothing but `call_rcu`; taken with interrupts off.
    lists: SpinLock<Lists>,
    /// Objects that were given and are not freed.
    left: AtomicUsize,
    gathered: AtomicUsize,
}

// SAFETY: lists are under a lock, and the callback is its queue's.
unsafe impl Sync for OfCpu {}

static ALL: [OfCpu; MAX_CPUS] = [const {
    OfCpu {
        callback: UnsafeCell::new(CallbackHead::new()),
        lists: SpinLock::new(Lists { gathering: ptr::null_mut(), waiting: ptr::null_mut() }, &CLASS),
        left: AtomicUsize::new(0),
        gathered: AtomicUsize::new(0),
    }
}; MAX_CPUS];

impl OfCpu {
    /// What was gathered waits from now on, if nothing else does.
    fn begin(&'static self, lists: &mut Lists) {
        if lists.waiting.is_null() && !lists.gathering.is_null() {
            lists.waiting = core::mem::replace(&mut lists.gathering, ptr::null_mut());
            // SAFETY: nothing waited, so the callback is on no list; this lives for ever.
            unsafe { call_rcu(self.callback.get(), grace_period_over) };
        }
    }
}

/// Frees the object once every reader that may see it is gone.
///
/// Context: task, softirq, hardirq. Never waits, needs no memory.
pub fn free_later(object: &'static Object) {
    let mine = &ALL[cpu::current().index()];
    let mut lists = mine.lists.lock_irqsave(ATOMIC);
    object.next.store(lists.gathering, Ordering::Relaxed);
    lists.gathering = ptr::from_ref(object).cast_mut();
    mine.left.fetch_add(1, Ordering::Relaxed);
    if mine.gathered.fetch_add(1, Ordering::Relaxed) % 64 == 63 {
        mine.begin(&mut lists);
    }
}

/// # Safety
/// Called by RCU, with the callback of one of [`ALL`], on whatever CPU.
unsafe fn grace_period_over(callback: *mut CallbackHead) {
    // SAFETY: the callback is the first field of one of `ALL`.
    let of: &'static OfCpu = unsafe { &*callback.cast() };
    let mut over = {
        let mut lists = of.lists.lock_irqsave(ATOMIC);
        let over = core::mem::replace(&mut lists.waiting, ptr::null_mut());
        of.begin(&mut lists);
        over
    };
    // SAFETY: objects are statics.
    while let Some(object) = unsafe { over.as_ref() } {
        over = object.next.load(Ordering::Relaxed);
        pool::free(object);
        of.left.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until all that was given before is free.
///
/// Context: task; sleeps.
pub fn barrier(cx: &mut MaySleep) {
    // For what waits; then for what was gathered, whose callback that of the former has queued.
    rcu_barrier(cx);
    rcu_barrier(cx);
}

/// Objects that were given and are not freed.
///
/// Context: any.
pub fn waiting() -> usize {
    ALL.iter().map(|of| of.left.load(Ordering::Relaxed)).sum()
}
