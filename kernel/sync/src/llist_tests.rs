//! Tests of the lock-less list: alone, with threads, and as loom models.

use std::{boxed::Box, vec::Vec};

use super::*;

/// An object with a link, as users embed it.
#[repr(C)]
struct Item {
    node: LlistNode,
    /// Not an atomic on purpose: Miri and loom see a race if the list does not order it.
    value: Plain,
}

#[cfg(not(loom))]
type Plain = core::cell::UnsafeCell<u64>;
#[cfg(loom)]
type Plain = loom::cell::UnsafeCell<u64>;

#[cfg(not(loom))]
fn read(value: &Plain) -> u64 {
    // SAFETY: the item is ours alone (`LL-1`).
    unsafe { *value.get() }
}

#[cfg(not(loom))]
fn write(to: &Plain, value: u64) {
    // SAFETY: the item is ours alone (`LL-1`).
    unsafe { *to.get() = value };
}

#[cfg(loom)]
fn write(to: &Plain, value: u64) {
    // SAFETY: the item is ours alone (`LL-1`).
    to.with_mut(|to| unsafe { *to = value });
}

/// loom's cell checks that the list has ordered the write before this.
#[cfg(loom)]
fn read(value: &Plain) -> u64 {
    // SAFETY: the item is ours alone (`LL-1`).
    value.with(|value| unsafe { *value })
}

impl Item {
    fn boxed(value: u64) -> *mut LlistNode {
        let item = Self { node: LlistNode::new(), value: Plain::new(0) };
        write(&item.value, value);
        Box::into_raw(Box::new(item)).cast()
    }

    /// The value of an item that the list has given back.
    fn unbox(node: *mut LlistNode) -> u64 {
        // SAFETY: made by `boxed`, and given back once (`LL-1`).
        let item = unsafe { Box::from_raw(node.cast::<Self>()) };
        read(&item.value)
    }
}

fn values(chain: LlistChain) -> Vec<u64> {
    chain.map(Item::unbox).collect()
}

#[cfg(not(loom))]
mod host {
    use std::thread;

    use super::*;

    fn push(list: &LlistHead, value: u64) -> bool {
        // SAFETY: a fresh item of our own.
        unsafe { list.add(Item::boxed(value)) }
    }

    #[test]
    fn the_newest_comes_first_and_reversing_gives_the_oldest() {
        let list = LlistHead::new();
        assert!(push(&list, 1), "the first finds the list empty");
        assert!(!push(&list, 2));
        assert!(!push(&list, 3));
        assert_eq!(values(list.take_all()), [3, 2, 1]);
        assert!(list.is_empty() && list.take_all().is_empty());
        assert!(push(&list, 4), "and the first after a take again");
        push(&list, 5);
        assert_eq!(values(list.take_all().reversed()), [4, 5]);
    }

    #[test]
    fn a_batch_goes_in_as_one() {
        let (list, batch) = (LlistHead::new(), LlistHead::new());
        push(&list, 1);
        let first = Item::boxed(3);
        let last = Item::boxed(2);
        // SAFETY: both are ours.
        unsafe {
            batch.add(last);
            batch.add(first);
            let _ = batch.take_all();
            assert!(!list.add_batch(first, last));
        }
        assert_eq!(values(list.take_all()), [3, 2, 1]);
    }

    #[test]
    fn a_node_may_be_pushed_again_as_soon_as_the_chain_yields_it() {
        let list = LlistHead::new();
        (0..3).for_each(|value| {
            push(&list, value);
        });
        let again = LlistHead::new();
        for node in list.take_all() {
            // SAFETY: the chain has just given it to us (`LL-4`).
            unsafe { again.add(node) };
        }
        assert_eq!(values(again.take_all()), [0, 1, 2]);
    }

    #[test]
    fn with_many_producers_nothing_is_lost_or_doubled_and_each_batch_is_announced_once() {
        let (producers, each) = if cfg!(miri) { (2, 30) } else { (3, 20_000) };
        let list = LlistHead::new();
        let (mut taken, mut batches) = (Vec::new(), 0);
        let announced: usize = thread::scope(|scope| {
            let handles: Vec<_> = (0..producers)
                .map(|producer| {
                    let list = &list;
                    scope.spawn(move || (0..each).filter(|n| push(list, producer * each + n)).count())
                })
                .collect();
            let mut take = || {
                let before = taken.len();
                // Not freed yet: a pointer to a new item at an old address is another one for Miri.
                taken.extend(list.take_all());
                batches += usize::from(taken.len() > before);
            };
            while !handles.iter().all(thread::ScopedJoinHandle::is_finished) {
                take();
                std::hint::spin_loop();
            }
            let announced = handles.into_iter().map(|handle| handle.join().unwrap()).sum();
            // What was joined is sure to be seen by the look with which taking begins.
            take();
            announced
        });
        let mut all: Vec<_> = taken.into_iter().map(Item::unbox).collect();
        all.sort_unstable();
        assert_eq!(all, (0..producers * each).collect::<Vec<_>>());
        assert_eq!(announced, batches, "LL-3");
    }
}

/// In a model every actor is a thread of its own and the main thread only joins: loom does not try to
/// run the others before the first load of the thread that spawned them.
#[cfg(loom)]
mod models {
    use loom::{
        sync::Arc,
        thread::{self, JoinHandle},
    };

    use super::*;

    fn producers<const N: usize>(list: &Arc<LlistHead>) -> [JoinHandle<bool>; N] {
        core::array::from_fn(|n| {
            let list = Arc::clone(list);
            // SAFETY: a fresh item of our own.
            thread::spawn(move || unsafe { list.add(Item::boxed(n as u64 + 1)) })
        })
    }

    fn taker(list: &Arc<LlistHead>) -> JoinHandle<Vec<u64>> {
        let list = Arc::clone(list);
        thread::spawn(move || values(list.take_all()))
    }

    #[test]
    fn loom_what_was_written_before_add_is_seen_after_take_all() {
        loom::model(|| {
            let list = Arc::new(LlistHead::new());
            let (producers, taker) = (producers::<2>(&list), taker(&list));
            let mut all = taker.join().unwrap();
            for producer in producers {
                producer.join().unwrap();
            }
            all.extend(values(list.take_all()));
            all.sort_unstable();
            assert_eq!(all, [1, 2], "each item comes out once, with what was written in it");
        });
    }

    #[test]
    fn loom_one_producer_a_batch_finds_the_list_empty() {
        loom::model(|| {
            let list = Arc::new(LlistHead::new());
            let (producers, taker) = (producers::<2>(&list), taker(&list));
            let first = taker.join().unwrap();
            let announced: usize = producers.map(|producer| usize::from(producer.join().unwrap())).iter().sum();
            let second = values(list.take_all());
            let batches = usize::from(!first.is_empty()) + usize::from(!second.is_empty());
            assert_eq!(announced, batches);
        });
    }

    #[test]
    fn loom_two_takers_get_disjoint_chains() {
        loom::model(|| {
            let list = Arc::new(LlistHead::new());
            let [producer] = producers::<1>(&list);
            let takers = [taker(&list), taker(&list)];
            let mut all: Vec<_> = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
            producer.join().unwrap();
            all.extend(values(list.take_all()));
            assert_eq!(all, [1]);
        });
    }
}
