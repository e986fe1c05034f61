//! What each CPU keeps for RCU.
//!
//! Two per-CPU structures, by who may touch them:
//! - [`Own`]: its own CPU with interrupts off, nobody else (CPU-1). Plain cells; the proof is the [`IrqsOff`] argument.
//! - [`Shared`]: atomics that the grace-period threads read from other CPUs.
//!
//! Answers to Linux kernel/rcu/tree.h (`struct rcu_data`).

use core::cell::{Cell, RefCell};

use arch::CpuId;
use sync::atomic::{AtomicU64, AtomicUsize};
use sync::{IrqGuard, IrqWork, SpinIrqGuard};

use crate::call::Load;
use crate::cblist::CbList;
#[cfg(loom)]
use crate::model::{arch, sync};
use crate::seq::Seq;

/// Proof that interrupts are off on this CPU.
pub(crate) trait IrqsOff {}
impl IrqsOff for IrqGuard<'_> {}
impl<T: ?Sized> IrqsOff for SpinIrqGuard<'_, T> {}

/// The proof of a hook that is called with interrupts off.
pub(crate) struct ByContract(());
impl IrqsOff for ByContract {}

impl ByContract {
    /// Vouches for it.
    ///
    /// # Safety
    /// Interrupts are off for as long as the value lives.
    #[inline]
    pub(crate) unsafe fn irqs_off() -> Self {
        debug_assert!(!arch::irq::enabled(), "RCU: a hook that wants interrupts off was called with them on");
        Self(())
    }
}

/// State of one CPU that only this CPU uses, with interrupts off (CPU-1).
pub(crate) struct Own {
    /// The grace period this CPU knows of; its leaf's number when they last met.
    pub(crate) gp_seq: Cell<Seq>,
    /// The grace period `gp_seq` wants a quiescent state of this CPU, and has not been told of one.
    pub(crate) owes_qs: Cell<bool>,
    /// A quiescent state has passed since `owes_qs` was set, not yet told to the leaf.
    pub(crate) qs_passed: Cell<bool>,
    /// Ticks since `owes_qs` was set.
    pub(crate) ticks_owing: Cell<u32>,
    /// The running thread's reader was asked to report as soon as it ends (with the special bit, see `reader`).
    pub(crate) report_at_unlock: Cell<bool>,
    /// An expedited grace period waits for this CPU, whose reader or preempt-off section was in the way.
    pub(crate) owes_exp: Cell<bool>,
    /// Its callbacks are run elsewhere (NOCB-1).
    pub(crate) offloaded: Cell<bool>,
    /// Number of callbacks from which on `call_rcu` looks whether something is to be done about them.
    pub(crate) attention_at: Cell<usize>,
    /// What is known of the load by callbacks.
    pub(crate) load: Load,
    /// Callbacks. Borrowed for single operations only, never across a call out.
    pub(crate) cbs: RefCell<CbList>,
}

/// State of one CPU that others read.
pub(crate) struct Shared {
    /// Extended-quiescent-state counter, odd while RCU watches this CPU. Written by its CPU ([`crate::eqs`]).
    pub(crate) watching: AtomicU64,
    /// `watching` as the running grace period saw it first. Written and read under the leaf's lock.
    pub(crate) gp_snap: AtomicU64,
    /// The latest grace period that began with this CPU in its leaf's mask, as raw [`Seq`]. Written under the leaf's lock,
    /// before the leaf's number; read by its CPU after it.
    pub(crate) gp_asked: AtomicU64,
    /// Callbacks on this CPU, as [`CbList::len`]. Written by its CPU; read by barriers and reports.
    pub(crate) cb_len: AtomicUsize,
    /// Callbacks run so far.
    pub(crate) cb_ran: AtomicU64,
}

arch::per_cpu! {
    static OWN: Own = Own {
        gp_seq: Cell::new(Seq::INITIAL),
        owes_qs: Cell::new(false),
        qs_passed: Cell::new(false),
        ticks_owing: Cell::new(0),
        report_at_unlock: Cell::new(false),
        owes_exp: Cell::new(false),
        offloaded: Cell::new(false),
        attention_at: Cell::new(0),
        load: Load::new(),
        cbs: RefCell::new(CbList::new()),
    };
}

arch::per_cpu! {
    static SHARED: Shared = Shared {
        watching: AtomicU64::new(1),
        gp_snap: AtomicU64::new(0),
        gp_asked: AtomicU64::new(Seq::INITIAL.raw()),
        cb_len: AtomicUsize::new(0),
        cb_ran: AtomicU64::new(0),
    };
}

arch::per_cpu! {
    /// Comes back to a reader that ended where it could not report; see `reader`.
    static DEFERRED: IrqWork = IrqWork::new(crate::reader::deferred_irq_work);
}

/// This CPU's own state.
#[inline]
pub(crate) fn own(_irqs_off: &impl IrqsOff) -> &Own {
    // SAFETY: CPU-1: this CPU's copy, and interrupts stay off for as long as the proof is borrowed, so the thread stays here and no interrupt
    // handler comes in between; NMI handlers do not come here. References are shared, all fields are cells.
    unsafe { &*OWN.this_ptr() }
}

/// This CPU's shared state. Context: any; a caller that is not pinned may get that of a CPU it just left.
#[inline]
pub(crate) fn shared_here() -> &'static Shared {
    // SAFETY: areas of present CPUs live for ever, all fields are atomics.
    unsafe { &*SHARED.this_ptr() }
}

/// The shared state of `cpu`.
#[inline]
pub(crate) fn shared(cpu: CpuId) -> &'static Shared {
    // SAFETY: as in `shared_here`.
    unsafe { &*SHARED.ptr_on(cpu) }
}

/// This CPU's work item for deferred reports.
pub(crate) fn deferred_here(_irqs_off: &impl IrqsOff) -> &'static IrqWork {
    // SAFETY: as in `shared_here`; an `IrqWork` is shared by its own protocol.
    unsafe { &*DEFERRED.this_ptr() }
}
