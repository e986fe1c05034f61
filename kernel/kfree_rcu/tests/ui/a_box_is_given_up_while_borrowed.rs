//! Who borrows from a box, or shares it, keeps it from being given up.

use grange_kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu_owned};
use slab::KBox;

struct Node {
    key: u64,
    rcu: RcuPtr,
}

has_rcu_ptr!(Node, rcu);

fn borrowed(node: KBox<Node>) -> u64 {
    let key = &node.key;
    kfree_rcu_owned(node);
    *key
}

fn shared(node: &KBox<Node>) {
    kfree_rcu_owned(*node);
}

fn only_looked_at(node: &Node) {
    kfree_rcu_owned(node);
}

fn main() {}
