//! Without a head an object can be given up by who may sleep, and by nobody else.

use grange_kfree_rcu::{RcuPtr, kfree_rcu_object, kfree_rcu_owned};
use slab::KBox;

struct Node {
    key: u64,
    /// No `has_rcu_ptr!` names it.
    rcu: RcuPtr,
}

fn owned(number: KBox<u64>) {
    kfree_rcu_owned(number);
}

fn raw(node: KBox<Node>) {
    unsafe { kfree_rcu_object(KBox::into_raw(node)) };
}

fn main() {}
