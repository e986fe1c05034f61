//! Who has published a box does not have it any more.

use grange_rcu::{Rcu, RcuBox};

fn written(limit: &Rcu<u64>) {
    let mut value = RcuBox::new(1);
    limit.publish(value);
    *value = 2;
}

fn published_twice(limit: &Rcu<u64>, other: &Rcu<u64>) {
    let value = RcuBox::new(1);
    limit.publish(value);
    other.publish(value);
}

fn main() {}
