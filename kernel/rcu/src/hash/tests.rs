//! A change of size, step by step.

use core::hash::Hasher;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::hosted::in_own_process;

use super::*;

static CLASS: LockClass = LockClass::new("test.hash");

#[test]
fn what_is_changed_while_the_size_changes_is_changed_in_both_tables() {
    in_own_process(|| {
        let map = RcuHashMap::try_new(64, &CLASS).expect("memory");
        (0..200_u32).for_each(|key| assert!(map.insert(RcuBox::new(HashNode::new(key, 0))).is_ok()));
        let new = Table::boxed(256, 1).expect("memory").into_raw();
        // One half of each stripe's buckets is copied.
        for first in 0..STRIPES {
            map.stripes[first].lock().begin_copy(new);
            let half = (first..64).step_by(STRIPES).take(2);
            half.for_each(|bucket| map.stripes[first].lock().copy(bucket, |key| map.hasher.hash_one(key) as usize));
        }
        for key in 0..300 {
            match key % 3 {
                0 => core::mem::forget(map.remove(&key)),
                1 => core::mem::forget(map.replace(RcuBox::new(HashNode::new(key, 1)))),
                _ => drop(map.insert(RcuBox::new(HashNode::new(key, 2)))),
            }
        }
        for first in 0..STRIPES {
            let half = (first..64).step_by(STRIPES).skip(2);
            half.for_each(|bucket| map.stripes[first].lock().copy(bucket, |key| map.hasher.hash_one(key) as usize));
        }
        let entries = |map: &RcuHashMap<u32, i32>| {
            let mut all: alloc::vec::Vec<_> = map.iter(&crate::read_lock(ATOMIC)).map(|(&k, &v)| (k, v)).collect();
            all.sort_unstable();
            all
        };
        let old_entries = entries(&map);
        map.table.swap(new);
        map.stripes.iter().for_each(|stripe| stripe.lock().end_copy());
        assert_eq!(entries(&map), old_entries);
        assert_eq!(map.len(), old_entries.len());
        assert!(old_entries.iter().all(|(key, _)| map.remove(key).map(core::mem::forget).is_some()));
        assert!(map.is_empty() && entries(&map).is_empty());
    });
}

/// A hash function that says something else each time: how often it has been asked before.
struct Fickle(AtomicU64);

struct Said(u64);

impl BuildHasher for Fickle {
    type Hasher = Said;
    fn build_hasher(&self) -> Said {
        Said(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

impl Hasher for Said {
    fn write(&mut self, _: &[u8]) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

#[test]
fn an_entry_stays_with_its_lock_whatever_its_hash_says_next() {
    in_own_process(|| {
        let map = RcuHashMap::try_with_hasher(64, &CLASS, Fickle(AtomicU64::new(0))).expect("memory");
        (0..64_usize).for_each(|key| assert!(map.insert(RcuBox::new(HashNode::new(key, ()))).is_ok()));
        let new = Table::boxed(256, 1).expect("memory").into_raw();
        for first in 0..STRIPES {
            map.stripes[first].lock().begin_copy(new);
            for bucket in (first..64).step_by(STRIPES) {
                map.stripes[first].lock().copy(bucket, |key| map.hasher.hash_one(key) as usize + 1);
            }
        }
        let _reader = crate::read_lock(ATOMIC);
        // SAFETY: the map keeps it; the box is published, so only the value.
        let table = unsafe { &(*new).value };
        let mut found = 0;
        for bucket in 0..table.buckets() {
            let mut at = table.bucket(bucket);
            // SAFETY: in a reader.
            while let Some(node) = unsafe { at.follow() } {
                assert_eq!(bucket % STRIPES, node.key % STRIPES, "entry {} is on a chain of another lock", node.key);
                found += 1;
                at = table.link_of(node);
            }
        }
        assert_eq!(found, 64);
        core::mem::forget(map);
    });
}
