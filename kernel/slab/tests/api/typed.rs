//! Caches of values, of objects that keep their state, and of objects that readers see change hands.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use arch::hosted::in_own_process;
use grange_slab::constructed::{Construct, CtorCache};
use grange_slab::flush::Leaked;
use grange_slab::typed::{Cache, CacheBox, TypedLayout};
use grange_slab::typesafe::{TypesafeCache, TypesafeSlot};
use grange_slab::{CreateError, OutOfMemory};
use mm::AllocFlags;
use mm::inject::{Plan, arm};
use sync::ATOMIC;

use super::machine::{spawn, try_machine_with};
use super::{Dropped, boot, up};

const NOWAIT: AllocFlags = AllocFlags::NOWAIT;

#[test]
fn values_have_their_size_and_alignment_and_are_dropped_once_on_any_cpu() {
    in_own_process(|| {
        boot("", |cx| {
            static VALUES: sync::Once<Cache<Dropped>> = sync::Once::new();
            let values = VALUES.call_once(|| Cache::create(TypedLayout::new("dropped").align(64)).unwrap());
            let drops = Arc::new(AtomicUsize::new(0));
            let held: Vec<CacheBox<'static, Dropped>> =
                (0..200).map(|n| values.alloc(Dropped(drops.clone(), [n; 20]), NOWAIT).unwrap()).collect();
            for (n, value) in held.iter().enumerate() {
                assert!((&raw const **value).addr().is_multiple_of(64));
                assert_eq!(value.1, [n as u64; 20]);
            }
            let thread = spawn(cx, Some(1), move |_| drop(held));
            thread.join(cx);
            assert_eq!(drops.load(Relaxed), 200);
            let mut last = values.alloc_node(Dropped(drops.clone(), [7; 20]), None, NOWAIT).unwrap();
            last.1[0] = 8;
            let value = CacheBox::into_inner(last);
            assert_eq!((value.1[0], value.1[1], drops.load(Relaxed)), (8, 7, 200));
            drop(value);
            drop(values.alloc_sleep(Dropped(drops.clone(), [0; 20]), AllocFlags::MAY_SLEEP, cx).unwrap());
            assert_eq!(drops.load(Relaxed), 202);
            let raw = values.raw().unwrap();
            raw.shrink();
            assert_eq!(raw.info().active_objs, 0);
        });
    });
}

#[test]
fn values_without_size_need_no_cache() {
    #[derive(Debug, PartialEq)]
    #[repr(align(64))]
    struct Nothing;
    in_own_process(|| {
        boot("", |cx| {
            let armed = arm(Plan::From(1)).unwrap();
            let nothings = Cache::create(TypedLayout::new("nothing")).unwrap();
            let boxed: Vec<_> = (0..1000).map(|_| nothings.alloc(Nothing, NOWAIT).unwrap()).collect();
            assert!(boxed.iter().all(|nothing| (&raw const **nothing).addr() == 64));
            assert!(nothings.raw().is_none() && armed.seen() == 0);
            drop((boxed, armed));
            assert!(nothings.destroy(cx).is_ok());
        });
    });
}

#[test]
fn a_cache_for_what_no_slab_holds_is_refused() {
    #[repr(align(8192))]
    struct Wide(#[expect(dead_code, reason = "size and alignment are the point")] u8);
    in_own_process(|| {
        boot("", |_| {
            assert_eq!(Cache::create(TypedLayout::<Wide>::new("wide")).err(), Some(CreateError::BadAlign(8192)));
            assert!(Cache::create(TypedLayout::<u64>::new("narrow").align(1)).is_ok(), "never less than the type's");
        });
    });
}

#[test]
fn without_memory_a_value_comes_back() {
    in_own_process(|| {
        boot("", |_| {
            let values: Cache<Dropped> = Cache::create(TypedLayout::new("dropped")).unwrap();
            let drops = Arc::new(AtomicUsize::new(0));
            let armed = arm(Plan::From(1)).unwrap();
            let OutOfMemory(value) = values.alloc(Dropped(drops.clone(), [5; 20]), AllocFlags::NOWARN).unwrap_err();
            assert_eq!((value.1, drops.load(Relaxed)), ([5; 20], 0));
            drop((armed, value));
            assert_eq!(drops.load(Relaxed), 1);
        });
    });
}

#[test]
fn a_forgotten_box_keeps_its_cache_alive() {
    in_own_process(|| {
        boot("", |cx| {
            let values: Cache<[u64; 131]> = Cache::create(TypedLayout::new("values")).unwrap();
            let raw = CacheBox::into_raw(values.alloc([3; 131], NOWAIT).unwrap());
            let Err((values, Leaked(1))) = values.destroy(cx) else { panic!("one object is in use") };
            // SAFETY: from `into_raw`, of this cache, once.
            let value = unsafe { CacheBox::from_raw(raw, &values) };
            assert_eq!(*value, [3; 131]);
            drop(value);
            assert!(values.destroy(cx).is_ok());
        });
    });
}

#[test]
fn like_typed_caches_are_one() {
    in_own_process(|| {
        boot("", |cx| {
            let words: Cache<[u64; 131]> = Cache::create(TypedLayout::new("words")).unwrap();
            let halves: Cache<[u32; 262]> = Cache::create(TypedLayout::new("halves")).unwrap();
            assert!(core::ptr::eq(words.raw().unwrap(), halves.raw().unwrap()));
            let word = words.alloc([1; 131], NOWAIT).unwrap();
            assert!(halves.destroy(cx).is_ok());
            assert_eq!(*word, [1; 131]);
        });
    });
}

/// How many tallies were ever made.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// An object that counts its holders and knows its number.
struct Tally {
    number: usize,
    holders: usize,
    _rest: [u64; 16],
}

impl Construct for Tally {
    fn construct() -> Self {
        Tally { number: MADE.fetch_add(1, Relaxed), holders: 0, _rest: [0; 16] }
    }
}

#[test]
fn an_object_is_constructed_with_its_slab_and_keeps_its_state() {
    in_own_process(|| {
        boot("", |cx| {
            let tallies: CtorCache<Tally> = CtorCache::create(TypedLayout::new("tally")).unwrap();
            let mut seen = std::collections::BTreeMap::new();
            for round in 0..5 {
                // ZERO would undo the constructor and is not heard.
                let mut held: Vec<_> = (0..300).map(|_| tallies.alloc(AllocFlags::ZERO).unwrap()).collect();
                for tally in &mut held {
                    let before = seen.entry(tally.number).or_insert(0);
                    assert_eq!(tally.holders, *before, "round {round}, object {}", tally.number);
                    tally.holders += 1;
                    *before += 1;
                }
                // Also through slabs: every link and counter of theirs is beside the object.
                held.drain(..150);
                tallies.raw().shrink();
            }
            let objects = tallies.raw().info().num_objs as usize;
            assert!((300..=MADE.load(Relaxed)).contains(&objects));
            assert!(tallies.destroy(cx).is_ok());
        });
    });
}

#[test]
fn zeroed_objects_of_a_cache_that_keeps_state_are_a_panic() {
    in_own_process(|| {
        let stopped = try_machine_with(1, up, |_| {
            let tallies: CtorCache<Tally> = CtorCache::create(TypedLayout::new("tally")).unwrap();
            tallies.raw().alloc(AllocFlags::ZERO);
        });
        let text = format!("{:?}", stopped.unwrap_err());
        assert!(text.contains("tally: ZERO would wipe what its objects keep"), "{text}");
    });
}

/// An object with a state that its owners leave behind.
struct Session(AtomicUsize);

impl Construct for Session {
    fn construct() -> Self {
        Session(AtomicUsize::new(1))
    }
}

#[test]
fn a_slot_owns_its_object_and_says_what_it_holds() {
    in_own_process(|| {
        boot("", |cx| {
            let sessions: TypesafeCache<Session> = TypesafeCache::create(TypedLayout::new("session")).unwrap();
            let slot = TypesafeSlot::new();
            let [first, second] = [(); 2].map(|()| sessions.alloc(NOWAIT).unwrap());
            assert_eq!((first.0.load(Relaxed), second.0.load(Relaxed)), (1, 1));
            first.0.store(10, Relaxed);
            second.0.store(20, Relaxed);
            {
                let reader = rcu::read_lock(ATOMIC);
                assert!(slot.read(&reader).is_none());
                assert!(slot.swap(Some(first)).is_none());
                let found = slot.read(&reader).unwrap();
                assert!(found.0.load(Relaxed) == 10 && slot.holds(found));
                let first = slot.swap(Some(second)).unwrap();
                assert!(!slot.holds(found) && first.0.load(Relaxed) == 10);
                drop(first);
                // Used again at once, as its last holder left it, under the reader's eyes.
                let again = sessions.alloc(NOWAIT).unwrap();
                assert!(core::ptr::eq(&raw const *again, found) && again.0.load(Relaxed) == 10);
                again.0.store(30, Relaxed);
                assert_eq!(found.0.load(Relaxed), 30);
            }
            drop(slot);
            assert!(sessions.destroy(cx).is_ok(), "the slot freed what was in it");
        });
    });
}
