//! Looking something up under a reader.

use core::hint::black_box;

use rcu::{HashNode, ListNode, RcuBox, RcuHashMap, RcuList, read_lock};
use sync::LockClass;

use crate::bench;

static CLASS: LockClass = LockClass::new("bench.rcu_list");

/// Entries.
const ENTRIES: u64 = 64;

bench! {
    /// One of 64 keys in a map of 64 buckets, with the reader around it.
    #[goal(counted = 30)]
    fn map_lookup(b: &mut Bencher) {
        let map = RcuHashMap::try_new(ENTRIES as usize, &CLASS).map_err(|error| crate::__failed!("{error}"))?;
        for key in 0..ENTRIES {
            let _new = map.insert(RcuBox::new(HashNode::new(key, key)));
        }
        let mut key = 0;
        b.each(1, |cx| {
            key = (key + 1) % ENTRIES;
            black_box(map.get(&black_box(key), &read_lock(cx)));
        });
        Ok(())
    }

    /// An entry of a list, on the way through 64.
    #[goal(counted = 8)]
    fn list_entry(b: &mut Bencher) {
        let mut list = RcuList::new(&CLASS);
        (0..ENTRIES).for_each(|n| list.get_mut().push_front(RcuBox::new(ListNode::new(n))));
        b.each(ENTRIES, |cx| {
            black_box(list.iter(&read_lock(cx)).sum::<u64>());
        });
        Ok(())
    }
}
