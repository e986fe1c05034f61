//! Who takes a value out of its pointer without a grace period has the pointer alone: nobody reads.

use grange_rcu::{Rcu, RcuBox, RcuHashMap, RcuList, read_lock};
use sync::ATOMIC;

fn taken(limit: Rcu<u64>) {
    let guard = read_lock(ATOMIC);
    let found = limit.read(&guard);
    let owned: Option<RcuBox<u64>> = limit.into_inner();
    assert!(found.is_some() && owned.is_some());
}

fn written(mut limit: Rcu<u64>) {
    let guard = read_lock(ATOMIC);
    let found = limit.read(&guard);
    limit.get_mut().map(|value| *value = 1);
    assert!(found.is_some());
}

fn list_dropped(list: RcuList<u64>) {
    let guard = read_lock(ATOMIC);
    let first: Option<&u64> = list.iter(&guard).next();
    drop(list);
    assert!(first.is_some());
}

fn map_dropped(map: RcuHashMap<u64, u64>) {
    let guard = read_lock(ATOMIC);
    let found = map.get(&1, &guard);
    drop(map);
    assert!(found.is_some());
}

fn main() {}
