//! Lab 8: RCU from what a scheduler has. The task is told in docs/labs/08-tiny-rcu.md.

use sync::{Cx, MaySleep, PreemptGuard, smp};

/// A reader, until it goes. It cannot be switched out meanwhile.
pub struct ReadGuard<'c> {
    _pinned: PreemptGuard<'c>,
}

/// Begins a reader.
///
/// Context: any.
pub fn read_lock<'c>(cx: &'c (impl Cx + ?Sized)) -> ReadGuard<'c> {
    ReadGuard { _pinned: PreemptGuard::new(cx) }
}

/// Waits until every reader that is there now has ended. Readers that begin later may or may not be waited for.
///
/// Context: task; sleeps.
pub fn synchronize(cx: &mut MaySleep) {
    cx.assert_may_sleep();
    smp::call_all(|_| (), 0, true);
}
