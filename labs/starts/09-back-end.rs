//! Lab 9: a back end for `kfree_rcu`. The task is told in docs/labs/09-back-end.md.

use sync::MaySleep;

use crate::pool::{self, Object};

/// Frees the object once every reader that may see it is gone.
///
/// Context: task, softirq, hardirq. Never waits, needs no memory.
pub fn free_later(object: &'static Object) {
    pool::free(object);
}

/// Waits until all that was given before is free.
///
/// Context: task; sleeps.
pub fn barrier(cx: &mut MaySleep) {
    cx.assert_may_sleep();
}

/// Objects that were given and are not freed.
///
/// Context: any.
pub fn waiting() -> usize {
    0
}
