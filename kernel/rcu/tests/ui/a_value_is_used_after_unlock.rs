//! What a reader has found is not used when the reader is over.

use grange_rcu::{Rcu, read_lock};
use sync::MaySleep;

fn thread(cx: &MaySleep, limit: &Rcu<u64>) -> Option<u64> {
    let guard = read_lock(cx);
    let found = limit.read(&guard);
    drop(guard);
    found.copied()
}

fn main() {}
