//! Bulk calls against sheaves, barn and slabs in a known state.

use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use arch::hosted::in_own_process;
use mm::inject::{self, Plan};

use super::*;
use crate::exchange::{put_empty, put_full};
use crate::slab_ref::SlabRef;
use crate::test_machine::{
    assert_all_back, barn_sizes, cache, fill_barn, machine, set_sheaves, sheaf, sheaf_sizes, spawn,
};

/// So many objects in one call.
fn alloc(cache: &RawCache, n: usize) -> Option<Vec<NonNull<u8>>> {
    let mut places = vec![MaybeUninit::uninit(); n];
    let objects = cache.alloc_bulk(&mut places, AllocFlags::NOWARN)?.to_vec();
    assert_eq!(objects.iter().collect::<BTreeSet<_>>().len(), n, "an object was handed out twice");
    Some(objects)
}

fn free(cache: &RawCache, mut objects: Vec<NonNull<u8>>) {
    // SAFETY: from `alloc`, and nobody uses them.
    unsafe { cache.free_bulk(&mut objects) };
}

#[test]
fn an_allocation_takes_main_spare_and_barn_before_slabs() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            set_sheaves(cache, 10, Some(7));
            put_full(cache.barn().expect("a barn"), sheaf(cache, 28));
            let objects = alloc(cache, 10 + 7 + 28 + 5).expect("memory");
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((0, Some(0)), (0, 1)));
            let counts = (cache.stat(Stat::AllocFastpath), cache.stat(Stat::AllocSlowpath), cache.stat(Stat::BarnGet));
            assert_eq!(counts, (45, 5, 1));
            free(cache, objects);
            assert_all_back(cache);
        });
    });
}

#[test]
fn an_allocation_that_main_can_serve_touches_nothing_else() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            set_sheaves(cache, 10, Some(28));
            let objects = alloc(cache, 10).expect("memory");
            assert_eq!((sheaf_sizes(cache), cache.stat(Stat::AllocSlowpath)), ((0, Some(28)), 0));
            free(cache, objects);
            assert_eq!(sheaf_sizes(cache), (10, Some(28)));
            assert_eq!(alloc(cache, 0).map(|none| none.len()), Some(0));
            assert_all_back(cache);
        });
    });
}

#[test]
fn an_allocation_without_enough_memory_loses_nothing_wherever_it_fails() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let mut refused = 0;
            for nth in 1.. {
                set_sheaves(cache, 10, Some(7));
                let armed = inject::arm(Plan::From(nth)).expect("not armed");
                let objects = alloc(cache, 200);
                let missed = armed.failed() > 0;
                drop(armed);
                match objects {
                    Some(objects) => free(cache, objects),
                    None => refused += 1,
                }
                assert_all_back(cache);
                if !missed {
                    break;
                }
            }
            assert!(refused > 5, "only {refused}");
            let balance = |allocs: [Stat; 2]| allocs.map(|stat| cache.stat(stat)).into_iter().sum::<u64>();
            let allocated = balance([Stat::AllocFastpath, Stat::AllocSlowpath]);
            assert_eq!(allocated, balance([Stat::FreeFastpath, Stat::FreeSlowpath]));
        });
    });
}

#[test]
fn zeroing_is_done_to_every_object() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            for _ in 0..2 {
                let mut places = [MaybeUninit::uninit(); 64];
                let objects = cache.alloc_bulk(&mut places, AllocFlags::ZERO).expect("memory");
                for object in &*objects {
                    // SAFETY: an object of 256 bytes that is ours.
                    let bytes = unsafe { core::slice::from_raw_parts_mut(object.as_ptr(), 256) };
                    assert!(bytes.iter().all(|&byte| byte == 0));
                    bytes.fill(0xff);
                }
                // SAFETY: allocated above, given up here.
                unsafe { cache.free_bulk(objects) };
            }
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_free_fills_main_spare_and_the_barns_empty_sheaves_before_slabs() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let objects = alloc(cache, 18 + 21 + 28 + 3).expect("memory");
            set_sheaves(cache, 10, Some(7));
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            free(cache, objects);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((28, Some(28)), (1, 0)));
            let counts = (cache.stat(Stat::FreeFastpath), cache.stat(Stat::FreeSlowpath), cache.stat(Stat::BarnPut));
            assert_eq!(counts, (67, 3, 1));
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_free_on_a_cpu_without_sheaves_makes_it_one() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let objects = alloc(cache, 5).expect("memory");
            free(cache, objects);
            assert_eq!(sheaf_sizes(cache), (5, None));
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_free_into_a_barn_that_wants_no_more_goes_to_slabs() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let objects = alloc(cache, 40).expect("memory");
            set_sheaves(cache, 28, Some(28));
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            let limit = fill_barn(cache);
            free(cache, objects);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((28, Some(28)), (limit, 1)));
            assert_eq!((cache.stat(Stat::FreeFastpath), cache.stat(Stat::FreeSlowpath)), (0, 40));
            assert_all_back(cache);
        });
    });
}

#[test]
fn objects_of_another_node_go_past_the_sheaves() {
    in_own_process(|| {
        machine(2, 2, |cx| {
            let cache = cache("test");
            let there =
                spawn(cx, Some(1), move |_| alloc(cache, 20).expect("memory").into_iter().map(Address::from).collect());
            let theirs: Vec<Address> = there.join(cx);
            let here = spawn(cx, Some(0), move |_| {
                let ours = alloc(cache, 20).expect("memory");
                // One of theirs, one of ours, and so on.
                let theirs = theirs.into_iter().map(NonNull::from);
                let mixed = ours.into_iter().zip(theirs).flat_map(|(ours, theirs)| [theirs, ours]).collect();
                free(cache, mixed);
                assert_eq!((cache.stat(Stat::FreeFastpath), cache.stat(Stat::FreeSlowpath)), (20, 20));
                let held = cache.sheaves().expect("nobody interrupts");
                held.main.with_objects(|objects| {
                    assert_eq!(objects.len(), 20);
                    assert!(objects.iter().all(|&object| mm::is_home(mm::home_of(object))));
                    cache.give_back_many(objects);
                });
            });
            here.join(cx);
            assert_all_back(cache);
        });
    });
}

/// An object on its way to another thread.
struct Address(NonNull<u8>);

// SAFETY: an object belongs to no CPU; whoever has the value has the object.
unsafe impl Send for Address {}

impl From<NonNull<u8>> for Address {
    fn from(object: NonNull<u8>) -> Self {
        Self(object)
    }
}

impl From<Address> for NonNull<u8> {
    fn from(address: Address) -> Self {
        address.0
    }
}

#[test]
fn a_cache_without_sheaves_serves_bulk_calls_from_slabs() {
    in_own_process(|| {
        machine(1, 1, |_| {
            use crate::cache::{CacheFlags, Layout};
            let layout = Layout::new("test", 64).flags(CacheFlags::NO_SHEAVES | CacheFlags::NO_MERGE);
            let cache = crate::create(layout).expect("memory");
            free(cache, alloc(cache, 500).expect("memory"));
            assert_eq!((cache.stat(Stat::AllocSlowpath), cache.stat(Stat::FreeSlowpath)), (500, 500));
            assert_eq!(cache.stat(Stat::SheafAlloc), 0);
            assert_all_back(cache);
        });
    });
}

#[test]
fn what_may_not_be_freed_is_left_out() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let [one, other] = alloc(cache, 2).expect("memory")[..] else { unreachable!("two") };
            // SAFETY: inside an object.
            let middle = unsafe { one.add(8) };
            let before = crate::debug::reports();
            // The second of the two frees of `one`, and that of an address in its midst.
            free(cache, vec![one, other, middle, one]);
            assert_eq!(crate::debug::reports() - before, 2);
            assert_eq!(cache.stat(Stat::FreeFastpath) + cache.stat(Stat::FreeSlowpath), 2);
            assert_all_back(cache);
        });
    });
}

#[test]
fn what_goes_to_slabs_goes_by_slab() {
    in_own_process(|| {
        machine(1, 1, |_| {
            use crate::cache::{CacheFlags, Layout};
            let layout = Layout::new("test", 256).flags(CacheFlags::NO_SHEAVES | CacheFlags::NO_MERGE);
            let cache = crate::create(layout).expect("memory");
            let objects = alloc(cache, 64).expect("memory");
            let slab_of = |object: &NonNull<u8>| SlabRef::of(*object).expect("in a slab").base().addr();
            let (a, mut rest): (Vec<_>, Vec<_>) =
                objects.iter().partition(|object| slab_of(object) == slab_of(&objects[0]));
            // All of one slab, with two others in between.
            let (first, last) = a.split_at(5);
            let mixed =
                [first, &[rest.pop().expect("63")], &last[..5], &[rest.pop().expect("62")], &last[5..]].concat();
            cache.set_min_partial(0);
            let before = [Stat::FreeAddPartial, Stat::FreeSlab].map(|stat| cache.stat(stat));
            free(cache, mixed);
            // One by one, the slab would have gone on the partial list with its first object.
            let after = [Stat::FreeAddPartial, Stat::FreeSlab].map(|stat| cache.stat(stat));
            assert_eq!(after, [before[0] + 1, before[1] + 1]);
            free(cache, rest);
            assert_all_back(cache);
        });
    });
}
