//! A reader ends on the thread on which it began.

use grange_rcu::{RcuReadGuard, read_lock};
use sched::Prio;
use sync::{ATOMIC, MaySleep};

fn sent(cx: &mut MaySleep) {
    let guard = read_lock(ATOMIC);
    let _ = sched::spawn(cx, "other", Prio::NORMAL, None, move |_| drop(guard));
}

fn shared(cx: &mut MaySleep, guard: &'static RcuReadGuard<'static>) {
    let _ = sched::spawn(cx, "other", Prio::NORMAL, None, move |_| drop([guard]));
}

fn main() {}
