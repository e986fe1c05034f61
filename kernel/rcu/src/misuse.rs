//! What is wrong with a callback, found where it happens rather than where it hurts.
//!
//! | mistake | found | what happens |
//! |---|---|---|
//! | queued again before it has run | by the second `call_rcu`, in checking builds | reported; the second one is refused, and the lists are whole |
//! | its function was overwritten | when it is to be called | reported, not called |
//! | it leaves with another count of guards, interrupts off, or in a reader | when it returns, in checking builds | panic that names it |
//! | it sleeps | there, by the check of every sleep: it runs with softirqs off | panic |
//!
//! Context: any but NMI. Linux: debug objects of `rcu_head`s, the callback's lock map; row R-24.

use core::sync::atomic::{AtomicU64, Ordering};

use sync::callback::{CallbackFn, CallbackHead};
use sync::context;

use crate::cblist;
use crate::reader::read_depth;

/// See [`crate::CallbackStats`].
pub(crate) static QUEUED_TWICE: AtomicU64 = AtomicU64::new(0);
/// See [`crate::CallbackStats`].
pub(crate) static NO_FUNCTION: AtomicU64 = AtomicU64::new(0);

/// Whether `head` must not be queued with `func`, because it is queued already. Says so. Interrupts are off.
///
/// # Safety
/// `head` points to memory that can be read.
pub(crate) unsafe fn is_queued(head: *mut CallbackHead, func: CallbackFn) -> bool {
    // SAFETY: passed on from the caller.
    let queued = unsafe { cblist::is_queued(head) };
    if queued {
        // SAFETY: as above.
        report_queued(head, func, unsafe { (*head).func });
    }
    queued
}

#[cold]
#[inline(never)]
fn report_queued(head: *mut CallbackHead, func: CallbackFn, queued: Option<CallbackFn>) {
    QUEUED_TWICE.fetch_add(1, Ordering::Relaxed);
    let queued = queued.map_or(core::ptr::null(), |func| func as *const ());
    let func = func as *const ();
    log::error!("BUG: RCU: callback {head:p} is queued again, with function {func:p}, but has not run since it was");
    log::error!("queued with function {queued:p}; it stays queued once, with that one");
}

/// `head` has no function. Context: where callbacks run.
#[cold]
#[inline(never)]
pub(crate) fn report_no_function(head: *mut CallbackHead) {
    NO_FUNCTION.fetch_add(1, Ordering::Relaxed);
    log::error!("BUG: RCU: callback {head:p} has lost its function since it was queued; it is not called");
}

/// The context that a callback has to leave as it found it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Before {
    guards: u32,
    readers: u32,
    irqs: bool,
}

impl Before {
    /// The context now.
    pub(crate) fn now() -> Before {
        Before { guards: context::preempt_count(), readers: read_depth(), irqs: arch::irq::enabled() }
    }

    /// Checks that `func`, which was called in this context, has left it alone.
    ///
    /// # Panics
    /// If it has not.
    pub(crate) fn check(self, func: CallbackFn) {
        let after = Before::now();
        assert!(self == after, "RCU: callback {:p} was called with {self:?} and left {after:?}", func as *const ());
    }
}
