//! A reader does not wait for itself.

use grange_rcu::{Rcu, RcuBox, Retired, rcu_barrier, read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sync::MaySleep;

fn all_kinds(cx: &mut MaySleep) {
    let guard = read_lock(cx);
    synchronize_rcu(cx);
    synchronize_rcu_expedited(cx);
    rcu_barrier(cx);
    drop(guard);
}

fn for_its_own_value(cx: &mut MaySleep, limit: &Rcu<u64>) -> Option<RcuBox<u64>> {
    let guard = read_lock(cx);
    let found = limit.read(&guard);
    let old: Option<Retired<u64>> = limit.replace(None);
    let old = old.map(|old| old.synchronize(cx));
    assert!(found.is_some());
    old
}

fn main() {}
