//! Counts readers, and waits for none to be there: with enough of them that is never.

use core::sync::atomic::{AtomicUsize, Ordering};

use sync::{Cx, MaySleep, PreemptGuard};

static READERS: AtomicUsize = AtomicUsize::new(0);

/// A reader, until it goes. It cannot be switched out meanwhile.
pub struct ReadGuard<'c> {
    _pinned: PreemptGuard<'c>,
}

/// Begins a reader.
///
/// Context: any.
pub fn read_lock<'c>(cx: &'c (impl Cx + ?Sized)) -> ReadGuard<'c> {
    READERS.fetch_add(1, Ordering::SeqCst);
    ReadGuard { _pinned: PreemptGuard::new(cx) }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        READERS.fetch_sub(1, Ordering::Release);
    }
}

/// Waits until every reader that is there now has ended. Readers that begin later may or may not be waited for.
///
/// Context: task; sleeps.
pub fn synchronize(cx: &mut MaySleep) {
    while READERS.load(Ordering::Acquire) > 0 {
        sched::sleep_ns(cx, 1_000_000);
    }
}
