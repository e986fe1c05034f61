//! What was replaced is given away: once, and then nobody has it but its readers, until a grace period is over.

use grange_rcu::{Rcu, RcuBox};

fn freed_twice(limit: &Rcu<u64>) {
    let old = limit.replace(None).unwrap();
    old.retire();
    old.retire();
}

fn published_at_once(limit: &Rcu<u64>) {
    let old = limit.replace(None).unwrap();
    limit.publish(old);
}

fn written(limit: &Rcu<u64>) {
    let mut old = limit.replace(None).unwrap();
    *old = 1;
}

fn used_although_polled(limit: &Rcu<u64>) -> RcuBox<u64> {
    let polled = limit.replace(None).unwrap().into_polled();
    let _ = polled.try_take();
    polled.try_take().ok().unwrap()
}

fn main() {}
