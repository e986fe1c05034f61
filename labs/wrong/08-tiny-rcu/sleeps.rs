//! Sleeps for 20 ms, in which every reader should surely be done.

use sync::{Cx, MaySleep, PreemptGuard};

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
    sched::sleep_ns(cx, 20_000_000);
}
