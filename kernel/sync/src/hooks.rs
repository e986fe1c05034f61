//! Where this storey calls a later one: typed slots, set once at boot.
//!
//! An empty slot costs a load and one predicted branch. Which hook exists, who calls it and who
//! sets it is listed in [`Hooks`] and nowhere else.
//!
//! # Invariants
//!
//! - `HK-1` A slot is set at most once and never cleared. Enforced by [`Slot::set`].
//! - `HK-2` What the setter did before `set` is visible to the hook when it is called.

use core::{marker::PhantomData, mem, ptr};

use arch::trap::TrapFrame;

use crate::atomic::{AtomicPtr, Ordering};

/// A function pointer that is set once; empty until then.
#[derive(Debug)]
pub struct Slot<F> {
    /// Null while empty, else the function.
    func: AtomicPtr<()>,
    _type: PhantomData<F>,
}

impl<F: Copy> Slot<F> {
    /// An empty slot.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(size_of::<F>() == size_of::<*mut ()>(), "a slot holds a function pointer") };
        Self { func: AtomicPtr::new(ptr::null_mut()), _type: PhantomData }
    }

    /// Fills the slot.
    ///
    /// Context: any, at set-up.
    ///
    /// # Panics
    /// If it is filled already (`HK-1`).
    #[track_caller]
    pub fn set(&self, func: F) {
        // SAFETY: `F` has a pointer's size (checked in `new`), and is a function pointer by use.
        let func: *mut () = unsafe { mem::transmute_copy(&func) };
        // Release: pairs with the acquire in `get` (`HK-2`).
        let old = self.func.compare_exchange(ptr::null_mut(), func, Ordering::Release, Ordering::Relaxed);
        assert!(old.is_ok(), "HK-1: this hook has been set before");
    }

    /// What is in the slot.
    ///
    /// Context: any. Wait-free.
    #[inline(always)]
    pub fn get(&self) -> Option<F> {
        // Acquire: pairs with the release in `set` (`HK-2`); a plain load on this machine.
        let func = self.func.load(Ordering::Acquire);
        if func.is_null() {
            return None;
        }
        // SAFETY: a non-null value was an `F` in `set`, of the same size.
        Some(unsafe { mem::transmute_copy(&func) })
    }
}

impl<F: Copy> Default for Slot<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl Slot<fn()> {
    /// Calls the hook if there is one.
    #[inline(always)]
    pub fn call(&self) {
        if let Some(func) = self.get() {
            func();
        }
    }
}

/// Every hook that this storey calls.
#[derive(Debug)]
pub struct Hooks {
    /// Preemption became possible and a reschedule is wanted. Called by the end of a guard in
    /// task context with interrupts on. Set by sched.
    pub preempt_schedule: Slot<fn()>,
    /// The same, on the way out of an interrupt: called and returns with interrupts off. Set by sched.
    pub preempt_schedule_irq: Slot<fn()>,
    /// Run pending soft interrupts; it may switch interrupts on meanwhile. Called at interrupt exit
    /// (interrupts off), and at the end of a [`SoftirqGuard`](crate::SoftirqGuard) or where
    /// [`want_softirqs`](crate::context::want_softirqs) wants it (interrupts on, preemption off), never nested; it looks
    /// itself whether anything is pending. Set by sched.
    pub irq_exit_softirq: Slot<fn()>,
    /// Is a soft interrupt pending on this CPU? Called with preemption off. Set by sched.
    pub softirq_pending: Slot<fn() -> bool>,
    /// Does the tick run on this CPU? If not, lazy `irq_work` kicks itself. Set by sched; without
    /// it there is no tick.
    pub tick_runs: Slot<fn() -> bool>,
    /// First thing in an interrupt, before it counts as one. Set by rcu (extended quiescent states).
    pub irq_enter: Slot<fn()>,
    /// Last thing in an interrupt, after soft interrupts and lazy work. Set by rcu.
    pub irq_exit: Slot<fn()>,
    /// First thing in an NMI, after it counts as one. Set by rcu.
    pub nmi_enter: Slot<fn()>,
    /// Last thing in an NMI, while it still counts as one. Set by rcu.
    pub nmi_exit: Slot<fn()>,
    /// An NMI that no handler claimed. Called in NMI context. Set by the kernel (the report of a hang).
    pub nmi_unknown: Slot<fn(&mut TrapFrame)>,
    /// The number of the thread that runs on this CPU, for trace records. Called in any context, NMI included, with
    /// interrupts off. Set by sched.
    pub current_tid: Slot<fn() -> u64>,
}

/// The one set of hooks.
pub static HOOKS: Hooks = Hooks {
    preempt_schedule: Slot::new(),
    preempt_schedule_irq: Slot::new(),
    irq_exit_softirq: Slot::new(),
    softirq_pending: Slot::new(),
    tick_runs: Slot::new(),
    irq_enter: Slot::new(),
    irq_exit: Slot::new(),
    nmi_enter: Slot::new(),
    nmi_exit: Slot::new(),
    nmi_unknown: Slot::new(),
    current_tid: Slot::new(),
};
