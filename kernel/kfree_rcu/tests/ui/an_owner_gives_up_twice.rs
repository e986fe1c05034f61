//! What was given up has no owner any more, whichever box it was in.

use grange_kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu_owned, kfree_rcu_owned_mightsleep};
use slab::KBox;
use slab::typed::CacheBox;
use sync::MaySleep;

struct Node {
    key: u64,
    rcu: RcuPtr,
}

has_rcu_ptr!(Node, rcu);

fn twice(node: KBox<Node>) {
    kfree_rcu_owned(node);
    kfree_rcu_owned(node);
}

fn freed_as_well(node: CacheBox<'_, Node>) {
    kfree_rcu_owned(node);
    drop(node);
}

fn used(node: KBox<Node>, cx: &mut MaySleep) -> u64 {
    kfree_rcu_owned_mightsleep(node, cx);
    node.key
}

fn main() {}
