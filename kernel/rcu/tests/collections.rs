//! Pointers, lists and maps against models, and with readers on other CPUs, on the hosted machine.

#[path = "../../sched/tests/machine/mod.rs"]
mod machine;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::hosted::in_own_process;
use grange_rcu::{self as rcu, HashNode, ListNode, Rcu, RcuBox, RcuCell, RcuHashMap, RcuList, rcu_barrier, read_lock};
use machine::{machine_with, spawn};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sched::{self};
use sync::{ATOMIC, LockClass, MaySleep};

static CLASS: LockClass = LockClass::new("test.collection");

fn machine(cpus: usize, body: impl FnOnce(&mut MaySleep) + Send) {
    let before_others = |cx: &mut MaySleep| {
        rcu::init(cx);
        rcu::boot_ended();
    };
    machine_with(cpus, before_others, body);
}

/// Runs `test` on values of a strategy, in a machine with one CPU.
fn check<S: Strategy>(cases: u32, strategy: fn() -> S, test: fn(&mut MaySleep, S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    machine(1, |cx| {
        let cx = core::cell::RefCell::new(cx);
        let result = TestRunner::new(config).run(&strategy(), |value| test(&mut cx.borrow_mut(), value));
        assert_eq!(result.err().map(|failure| failure.to_string()), None);
    });
}

/// Lives that have not ended.
static LIVES: AtomicUsize = AtomicUsize::new(0);

/// A value that knows whether it has been dropped.
struct Life {
    number: u32,
    alive: AtomicU32,
}

const ALIVE: u32 = 0xa11e;

impl Life {
    fn new(number: u32) -> Life {
        LIVES.fetch_add(1, Ordering::Relaxed);
        Life { number, alive: AtomicU32::new(ALIVE) }
    }
    fn check(&self) -> u32 {
        assert_eq!(self.alive.load(Ordering::Relaxed), ALIVE, "a reader has found a value that was dropped");
        self.number
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        assert_eq!(self.alive.swap(0xdead, Ordering::Relaxed), ALIVE, "dropped twice");
        LIVES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for what is retired; then exactly `left` are alive.
fn assert_lives(left: usize, cx: &mut MaySleep) {
    rcu_barrier(cx);
    assert_eq!(LIVES.load(Ordering::Relaxed), left);
}

fn entry(number: u32) -> RcuBox<ListNode<Life>> {
    RcuBox::new(ListNode::new(Life::new(number)))
}

fn pair(key: u32, value: u32) -> RcuBox<HashNode<u32, Life>> {
    RcuBox::new(HashNode::new(key, Life::new(value)))
}

#[test]
fn values_are_freed_once_whatever_becomes_of_them() {
    in_own_process(|| {
        machine(2, |cx| {
            let rcu = Rcu::new(RcuBox::new(Life::new(1)));
            rcu.publish(RcuBox::new(Life::new(2)));
            let old = rcu.replace(None).expect("there was one");
            assert_eq!(old.check(), 2);
            let back = old.synchronize(cx);
            assert!(rcu.replace(Some(back)).is_none());
            let polled = rcu.replace(Some(RcuBox::new(Life::new(3)))).expect("there was one").into_polled();
            assert_eq!(polled.check(), 2);
            let mut polled = Some(polled);
            let back = loop {
                match polled.take().expect("put back").try_take() {
                    Ok(back) => break back,
                    Err(again) => polled = Some(again),
                }
                sched::sleep_ns(cx, 1_000_000);
            };
            assert_eq!(RcuBox::into_inner(back).check(), 2);
            drop(rcu.replace(None).map(rcu::Retired::into_polled));
            let waited = Rcu::new(RcuBox::new(Life::new(4))).replace(None).map(|old| old.into_polled().synchronize(cx));
            assert_eq!(waited.map(|life| life.check()), Some(4));
            assert_lives(0, cx);
            let mut cell = RcuCell::new(RcuBox::new(Life::new(5)));
            drop(cell.update(|old| RcuBox::new(Life::new(old.number + 1))));
            assert_eq!(cell.get_mut().check(), 6);
            assert_lives(1, cx);
            drop(cell);
            assert_lives(0, cx);
        });
    });
}

#[test]
fn a_polled_value_is_not_given_back_while_a_reader_lasts() {
    in_own_process(|| {
        machine(2, |cx| {
            let rcu = Arc::new(Rcu::new(RcuBox::new(Life::new(1))));
            let state = Arc::new(AtomicU32::new(0));
            let (theirs, state_too) = (rcu.clone(), state.clone());
            let reader = spawn(cx, Some(1), move |_| {
                let guard = read_lock(ATOMIC);
                let life = theirs.read(&guard).expect("published");
                state_too.store(1, Ordering::SeqCst);
                while state_too.load(Ordering::SeqCst) == 1 {
                    life.check();
                    arch::irq::relax();
                }
                life.check();
            });
            while state.load(Ordering::SeqCst) == 0 {
                sched::sleep_ns(cx, 1_000_000);
            }
            let mut polled = rcu.replace(None).expect("published").into_polled();
            for _ in 0..50 {
                polled = polled.try_take().map(|_| ()).expect_err("the reader has not ended");
                sched::sleep_ns(cx, 1_000_000);
            }
            state.store(2, Ordering::SeqCst);
            assert_eq!(polled.synchronize(cx).check(), 1);
            reader.join(cx);
        });
    });
}

#[test]
fn an_exchange_succeeds_only_on_the_value_that_was_read() {
    in_own_process(|| {
        machine(1, |cx| {
            let rcu: Rcu<u32> = Rcu::null();
            let guard = read_lock(ATOMIC);
            let none = rcu.read(&guard);
            assert!(rcu.replace_if(none, Some(RcuBox::new(1)), &guard).is_ok_and(|old| old.is_none()));
            let one = rcu.read(&guard);
            let refused = rcu.replace_if(none, Some(RcuBox::new(2)), &guard);
            assert_eq!(refused.err().flatten().map(RcuBox::into_inner), Some(2));
            let equal = RcuBox::new(1);
            assert!(rcu.replace_if(Some(&equal), None, &guard).is_err());
            let old = rcu.replace_if(one, Some(RcuBox::new(3)), &guard);
            assert_eq!(old.ok().flatten().as_deref(), Some(&1));
            assert_eq!(rcu.read_cloned(), Some(3));
            drop(guard);
            rcu_barrier(cx);
        });
    });
}

#[test]
fn no_update_is_lost() {
    in_own_process(|| {
        machine(4, |cx| {
            let total = Arc::new(RcuCell::new(RcuBox::new((0_u64, Life::new(0)))));
            let threads: Vec<_> = (0..4)
                .map(|on| {
                    let total = total.clone();
                    spawn(cx, Some(on), move |_| {
                        for _ in 0..2_000 {
                            total.update(|(sum, life)| RcuBox::new((sum + 1, Life::new(life.check() + 1)))).retire();
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join(cx));
            let guard = read_lock(ATOMIC);
            assert_eq!((total.read(&guard).0, total.read(&guard).1.check()), (8_000, 8_000));
            drop(guard);
            assert_lives(1, cx);
        });
    });
}

/// Steps of a cursor: what to do, and a number.
fn list_steps() -> impl Strategy<Value = Vec<(u8, u32)>> {
    vec((0..8_u8, 0..1_000_u32), 1..80)
}

#[test]
fn a_list_is_a_vector_with_a_cursor() {
    in_own_process(|| {
        check(80, list_steps, |cx, steps| {
            let mut list = RcuList::new(&CLASS);
            let mut model: Vec<u32> = Vec::new();
            {
                let mut updater = list.lock(ATOMIC);
                let mut cursor = updater.cursor();
                let mut at = 0;
                for (step, number) in steps {
                    match step {
                        0 | 1 => {
                            cursor.insert(entry(number));
                            model.insert(at, number);
                        }
                        2 => {
                            let removed = cursor.remove().map(|old| old.check());
                            prop_assert_eq!(removed, (at < model.len()).then(|| model.remove(at)));
                        }
                        3 => {
                            let replaced = cursor.replace(entry(number)).ok().map(|old| old.check());
                            let expected = model.get_mut(at).map(|there| std::mem::replace(there, number));
                            prop_assert_eq!(replaced, expected);
                        }
                        4 => {
                            prop_assert_eq!(cursor.advance(), at < model.len());
                            at = (at + 1).min(model.len());
                        }
                        5 => {
                            cursor = updater.cursor();
                            at = 0;
                        }
                        6 => {
                            let found = model[at..].iter().position(|&n| n % 4 == number % 4);
                            prop_assert_eq!(cursor.find(|life| life.check() % 4 == number % 4), found.is_some());
                            at = found.map_or(model.len(), |ahead| at + ahead);
                        }
                        _ => {
                            let mut other = RcuList::new(&CLASS);
                            let more: Vec<_> = (0..number % 4).collect();
                            more.iter().rev().for_each(|&n| other.get_mut().push_front(entry(n)));
                            cursor.splice(&mut other);
                            model.splice(at..at, more);
                            prop_assert_eq!(other.iter(&read_lock(ATOMIC)).count(), 0);
                        }
                    }
                    prop_assert_eq!(cursor.current().map(Life::check), model.get(at).copied());
                }
            }
            let seen: Vec<_> = list.iter(&read_lock(ATOMIC)).map(Life::check).collect();
            prop_assert_eq!(&seen, &model);
            assert_lives(model.len(), cx);
            list.get_mut().push_front(entry(1));
            drop(list);
            assert_lives(0, cx);
            Ok(())
        });
    });
}

/// Steps on a map: what to do, a key and a value.
fn map_steps() -> impl Strategy<Value = Vec<(u8, u32, u32)>> {
    vec((0..9_u8, 0..100_u32, 0..1_000_u32), 1..150)
}

#[test]
fn a_map_is_a_map() {
    in_own_process(|| {
        check(24, map_steps, |cx, steps| {
            let map = RcuHashMap::try_new(1, &CLASS).expect("memory");
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (step, key, value) in steps {
                match step {
                    0..4 => {
                        let inserted = map.insert(pair(key, value)).is_ok();
                        prop_assert_eq!(inserted, !model.contains_key(&key));
                        model.entry(key).or_insert(value);
                    }
                    4 | 5 => {
                        let removed = map.remove(&key).map(|old| old.check());
                        prop_assert_eq!(removed, model.remove(&key));
                    }
                    6 | 7 => {
                        let replaced = map.replace(pair(key, value)).map(|old| old.check());
                        prop_assert_eq!(replaced, model.insert(key, value));
                    }
                    _ => {
                        map.resize(value as usize, cx).expect("memory");
                        prop_assert_eq!(map.buckets(), (value as usize).max(16).next_power_of_two());
                    }
                }
                prop_assert_eq!(map.get(&key, &read_lock(ATOMIC)).map(Life::check), model.get(&key).copied());
            }
            prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            let seen: HashMap<_, _> = map.iter(&read_lock(ATOMIC)).map(|(&key, life)| (key, life.check())).collect();
            prop_assert_eq!(map.iter(&read_lock(ATOMIC)).count(), model.len());
            prop_assert_eq!(&seen, &model);
            assert_lives(model.len(), cx);
            drop(map);
            assert_lives(0, cx);
            Ok(())
        });
    });
}

#[test]
fn more_buckets_than_there_is_memory_for_are_refused() {
    in_own_process(|| {
        machine(1, |cx| {
            assert!(RcuHashMap::<u32, u32>::try_new(usize::MAX, &CLASS).is_err());
            let map = RcuHashMap::try_new(16, &CLASS).expect("memory");
            assert!(map.insert(pair(1, 2)).is_ok());
            assert_eq!(map.resize(usize::MAX / 16, cx), Err(rcu::NoMemory));
            assert_eq!((map.get(&1, &read_lock(ATOMIC)).map(Life::check), map.buckets()), (Some(2), 16));
        });
    });
}

/// Keys of the entries that are there all the time are even, the others odd.
const KEYS: u32 = 64;
/// Rounds of each updater.
const ROUNDS: u32 = 3_000;

/// Runs `read` on two CPUs while `update` runs on two others, once for each round and updater.
fn contend<T: Send + Sync + 'static>(
    shared: Arc<T>,
    read: fn(&T),
    update: fn(&T, u32, &mut MaySleep),
    cx: &mut MaySleep,
) {
    let (stop, passes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..2)
        .map(|on| {
            let (shared, stop, passes) = (shared.clone(), stop.clone(), passes.clone());
            spawn(cx, Some(on), move |_| {
                while !stop.load(Ordering::Relaxed) {
                    read(&shared);
                    passes.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let updaters: Vec<_> = (2..4)
        .map(|on| {
            let shared = shared.clone();
            spawn(cx, Some(on), move |cx| (0..ROUNDS).for_each(|round| update(&shared, round * 2 + on as u32, cx)))
        })
        .collect();
    updaters.into_iter().for_each(|updater| updater.join(cx));
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join(cx));
    assert!(passes.load(Ordering::Relaxed) > 20, "the readers had no time");
}

#[test]
fn readers_of_a_list_see_what_stays_once_and_in_order() {
    in_own_process(|| {
        machine(4, |cx| {
            let mut list = RcuList::new(&CLASS);
            (0..KEYS).rev().step_by(2).for_each(|odd| list.get_mut().push_front(entry(odd - 1)));
            let read = |list: &RcuList<Life>| {
                let guard = read_lock(ATOMIC);
                let seen: Vec<_> = list.iter(&guard).collect();
                assert!(seen.is_sorted_by(|a, b| a.number < b.number));
                assert_eq!(seen.iter().filter(|life| life.check() % 2 == 0).count() as u32, KEYS / 2);
            };
            let update = |list: &RcuList<Life>, turn: u32, _: &mut MaySleep| {
                let key = turn.wrapping_mul(0x9e37_79b9) >> 16 & (KEYS - 1);
                let new = entry(key);
                let mut updater = list.lock(ATOMIC);
                let mut cursor = updater.cursor();
                let found =
                    cursor.find(|life| life.number >= key) && cursor.current().map(|life| life.number) == Some(key);
                match (found, key % 2) {
                    (false, _) => cursor.insert(new),
                    (true, 0) => drop(cursor.replace(new)),
                    (true, _) => drop(cursor.remove()),
                }
            };
            contend(Arc::new(list), read, update, cx);
            assert_lives(0, cx);
        });
    });
}

#[test]
fn readers_of_a_map_find_what_stays_while_its_size_changes() {
    in_own_process(|| {
        machine(4, |cx| {
            let map = RcuHashMap::try_new(16, &CLASS).expect("memory");
            (0..KEYS).step_by(2).for_each(|key| assert!(map.insert(pair(key, key)).is_ok()));
            let read = |map: &RcuHashMap<u32, Life>| {
                let guard = read_lock(ATOMIC);
                (0..KEYS).step_by(2).for_each(|key| assert_eq!(map.get(&key, &guard).map(Life::check), Some(key)));
                let seen: Vec<_> = map.iter(&guard).filter(|(key, _)| **key % 2 == 0).collect();
                assert_eq!(seen.len() as u32, KEYS / 2);
                seen.iter().for_each(|(key, life)| assert_eq!(**key, life.check()));
            };
            let update = |map: &RcuHashMap<u32, Life>, turn: u32, cx: &mut MaySleep| {
                let key = turn.wrapping_mul(0x9e37_79b9) >> 16 & (KEYS - 1);
                if turn.is_multiple_of(64) {
                    map.resize(16 << (turn / 64 % 4), cx).expect("memory");
                } else if key.is_multiple_of(2) {
                    assert!(map.replace(pair(key, key)).is_some_and(|old| old.check() == key));
                } else if map.insert(pair(key, key)).is_err() {
                    drop(map.remove(&key));
                }
            };
            contend(Arc::new(map), read, update, cx);
            assert_lives(0, cx);
        });
    });
}
