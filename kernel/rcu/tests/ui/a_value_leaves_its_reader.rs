//! What a reader has found is not handed out of the function in which the reader ends.

use grange_rcu::{Rcu, read_lock};
use sync::ATOMIC;

fn find(limit: &Rcu<u64>) -> Option<&u64> {
    limit.read(&read_lock(ATOMIC))
}

fn main() {}
