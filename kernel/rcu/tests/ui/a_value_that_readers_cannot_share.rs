//! Readers are on many CPUs at once, and values are dropped on any, later: they are `Sync`, `Send` and `'static`.

use std::cell::Cell;
use std::rc::Rc;

use grange_rcu::{Rcu, RcuBox, RcuHashMap, RcuList};

fn cells() -> Rcu<Cell<u64>> {
    Rcu::null()
}

fn counts(_: &RcuList<Rc<u64>>) {}

fn keys(_: &RcuHashMap<Rc<u64>, u64>) {}

fn borrowed(limit: &Rcu<&u64>) {
    let local = 1;
    limit.publish(RcuBox::new(&local));
}

fn main() {}
