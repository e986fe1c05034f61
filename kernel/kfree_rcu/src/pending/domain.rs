//! Whose grace periods objects wait for: RCU's, or those of one SRCU domain.
//!
//! All that [`Pending`](super::Pending) asks of either, under names that are the same for both (S3-1, S3-33). RCU has no
//! domains, so its value is empty and costs nothing; an SRCU domain is a reference.

use rcu::pending::LiveCookie;
use rcu::srcu::{self, Flavour, SrcuCookie, SrcuDomain};
use rcu::{CallbackFn, CallbackHead, FullCookie};
use sync::MaySleep;

/// Readers that are waited for together.
pub trait GracePeriods: Copy + Send + Sync + 'static {
    /// A point in time, to be asked later whether a grace period has passed since.
    type Cookie: LiveCookie + Send;

    /// Whether a reader may come to reclaim, which then must not wait for readers.
    const READERS_MAY_ALLOCATE: bool;

    /// A cookie for now; starts nothing. Context: any.
    fn get_state(self) -> Self::Cookie;

    /// Wishes for the grace period that a cookie taken now names, in a hurry or not. Context: any but NMI.
    fn start_poll(self, hurry: bool);

    /// Has `func(head)` called after a grace period, without being lazy about it. Context: any but NMI; only enqueues.
    ///
    /// # Safety
    /// As for [`rcu::call_rcu`].
    unsafe fn call(self, head: *mut CallbackHead, func: CallbackFn);

    /// Waits for all callbacks queued before. Context: task; sleeps.
    fn barrier(self, cx: &mut MaySleep);

    /// Waits for a grace period, in a hurry or not. Context: task; sleeps.
    fn synchronize(self, hurry: bool, cx: &mut MaySleep);
}

/// RCU itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeRcu;

impl GracePeriods for TreeRcu {
    type Cookie = FullCookie;
    const READERS_MAY_ALLOCATE: bool = false;

    #[inline]
    fn get_state(self) -> FullCookie {
        rcu::get_state_full()
    }

    fn start_poll(self, hurry: bool) {
        let _cookie = if hurry { rcu::start_poll_expedited_full() } else { rcu::start_poll_full() };
    }

    unsafe fn call(self, head: *mut CallbackHead, func: CallbackFn) {
        // SAFETY: passed on from the caller.
        unsafe { rcu::call_rcu_hurry(head, func) };
    }

    fn barrier(self, cx: &mut MaySleep) {
        rcu::rcu_barrier(cx);
    }

    fn synchronize(self, hurry: bool, cx: &mut MaySleep) {
        if hurry { rcu::synchronize_rcu_expedited(cx) } else { rcu::synchronize_rcu(cx) }
    }
}

impl<F: Flavour> GracePeriods for &'static SrcuDomain<F> {
    type Cookie = SrcuCookie<'static>;
    const READERS_MAY_ALLOCATE: bool = true;

    #[inline]
    fn get_state(self) -> SrcuCookie<'static> {
        srcu::srcu_get_state(self)
    }

    fn start_poll(self, hurry: bool) {
        let _cookie = if hurry { srcu::srcu_start_poll_expedited(self) } else { srcu::srcu_start_poll(self) };
    }

    unsafe fn call(self, head: *mut CallbackHead, func: CallbackFn) {
        // SAFETY: passed on from the caller.
        unsafe { srcu::call_srcu(self, head, func) };
    }

    fn barrier(self, cx: &mut MaySleep) {
        srcu::srcu_barrier(self, cx);
    }

    fn synchronize(self, hurry: bool, cx: &mut MaySleep) {
        if hurry { srcu::synchronize_srcu_expedited(self, cx) } else { srcu::synchronize_srcu(self, cx) }
    }
}
