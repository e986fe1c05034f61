//! The way through a list or a map ends before the reader does.

use grange_rcu::{RcuHashMap, RcuList, read_lock};
use sync::ATOMIC;

fn through_a_list(list: &RcuList<u64>) -> usize {
    let guard = read_lock(ATOMIC);
    let entries = list.iter(&guard);
    drop(guard);
    entries.count()
}

fn through_a_map(map: &RcuHashMap<u64, u64>) -> Option<u64> {
    let guard = read_lock(ATOMIC);
    let mut entries = map.iter(&guard);
    drop(guard);
    entries.next().map(|(key, _)| *key)
}

fn found_in_a_map(map: &RcuHashMap<u64, u64>) -> u64 {
    let guard = read_lock(ATOMIC);
    let found = map.get(&1, &guard).unwrap();
    drop(guard);
    *found
}

fn main() {}
