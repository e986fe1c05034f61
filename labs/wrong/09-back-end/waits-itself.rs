//! A grace period for each object, on the spot, which never comes while the caller is a reader.

use core::sync::atomic::{AtomicUsize, Ordering};

use sync::MaySleep;

use crate::pool::{self, Object};

static LEFT: AtomicUsize = AtomicUsize::new(0);

pub fn free_later(object: &'static Object) {
    LEFT.fetch_add(1, Ordering::Relaxed);
    let over = rcu::start_poll_expedited();
    while !rcu::poll(over) {
        arch::irq::relax();
    }
    pool::free(object);
    LEFT.fetch_sub(1, Ordering::Relaxed);
}

pub fn barrier(cx: &mut MaySleep) {
    cx.assert_may_sleep();
}

pub fn waiting() -> usize {
    LEFT.load(Ordering::Relaxed)
}
