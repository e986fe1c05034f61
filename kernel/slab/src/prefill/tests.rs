//! Every row of the two tables of the module above, with the sheaves and the barn brought into the state first.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::vec::Vec;

use arch::hosted::in_own_process;
use mm::inject::{self, Plan};

use super::*;
use crate::cache::{CacheFlags, Layout};
use crate::exchange::put_empty;
use crate::flush::{self, Leaked};
use crate::test_machine::{
    assert_all_back, barn_sizes, cache, fill_barn, machine, set_sheaves, sheaf, sheaf_sizes, spawn,
};

const NOWAIT: AllocFlags = AllocFlags::NOWAIT;

/// Takes everything out, of which there must be `n`, and frees it; the cache must not be asked for more.
#[track_caller]
fn drain(mut prefilled: Prefilled, n: usize) {
    let cache = prefilled.sheaf.cache();
    let asked = (cache.stat(Stat::AllocSlowpath), cache.stat(Stat::SheafRefill), cache.stat(Stat::BarnGet));
    let objects: Vec<_> = core::iter::from_fn(|| prefilled.alloc(NOWAIT)).collect();
    assert_eq!((objects.len(), prefilled.size()), (n, 0));
    assert_eq!(asked, (cache.stat(Stat::AllocSlowpath), cache.stat(Stat::SheafRefill), cache.stat(Stat::BarnGet)));
    drop(prefilled);
    // SAFETY: allocated above, each given up once.
    objects.into_iter().for_each(|object| unsafe { cache.free(object) });
}

fn prefills(cache: &RawCache) -> [u64; 3] {
    [Stat::SheafPrefillFast, Stat::SheafPrefillSlow, Stat::SheafPrefillOversize].map(|stat| cache.stat(stat))
}

fn returns(cache: &RawCache) -> [u64; 2] {
    [Stat::SheafReturnFast, Stat::SheafReturnSlow].map(|stat| cache.stat(stat))
}

#[test]
fn a_spare_with_enough_is_taken_as_it_is() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            set_sheaves(cache, 0, Some(5));
            let refilled = cache.stat(Stat::SheafRefill);
            let prefilled = cache.prefill(5, NOWAIT).expect("the spare has five");
            assert_eq!((prefilled.size(), sheaf_sizes(cache), prefills(cache)), (5, (0, None), [1, 0, 0]));
            assert_eq!(cache.stat(Stat::SheafRefill), refilled);
            drain(prefilled, 5);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_spare_with_less_is_filled_up_to_its_capacity() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            set_sheaves(cache, 0, Some(5));
            let prefilled = cache.prefill(6, NOWAIT).expect("memory");
            assert_eq!((prefilled.size(), sheaf_sizes(cache), prefills(cache)), (28, (0, None), [1, 0, 0]));
            drain(prefilled, 28);
            assert_all_back(cache);
        });
    });
}

#[test]
fn without_a_spare_the_barn_gives_a_full_sheaf_and_then_an_empty_one() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let barn = cache.barn().expect("a barn");
            put_empty(barn, sheaf(cache, 0));
            put_full(barn, sheaf(cache, 28));
            let refilled = cache.stat(Stat::SheafRefill);
            let first = cache.prefill(1, NOWAIT).expect("a full sheaf");
            assert_eq!((first.size(), barn_sizes(cache), prefills(cache)), (28, (0, 1), [0, 1, 0]));
            assert_eq!((cache.stat(Stat::BarnGet), cache.stat(Stat::SheafRefill)), (1, refilled));
            let made = cache.stat(Stat::SheafAlloc);
            let second = cache.prefill(1, NOWAIT).expect("memory for objects");
            assert_eq!((second.size(), barn_sizes(cache), prefills(cache)), (28, (0, 0), [0, 2, 0]));
            assert_eq!((cache.stat(Stat::BarnGetFail), cache.stat(Stat::SheafAlloc)), (1, made));
            let third = cache.prefill(1, NOWAIT).expect("memory for a sheaf");
            assert_eq!((third.size(), cache.stat(Stat::SheafAlloc)), (28, made + 1));
            drop([first, second, third]);
            assert_all_back(cache);
        });
    });
}

#[test]
fn more_than_the_capacity_comes_in_a_sheaf_of_just_that_size() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            for n in [29, 100, 5000] {
                let prefilled = cache.prefill(n, NOWAIT).expect("memory");
                assert_eq!((prefilled.size(), prefilled.sheaf.capacity()), (n, n));
                assert!(prefilled.sheaf.is_oversize());
                drain(prefilled, n);
            }
            assert_eq!(prefills(cache), [0, 0, 3]);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_cache_without_sheaves_prefills_all_the_same() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let layout = Layout::new("test", 64).flags(CacheFlags::NO_SHEAVES | CacheFlags::NO_MERGE);
            let cache = crate::create(layout).expect("memory");
            for n in [1, 2, 100] {
                drain(cache.prefill(n, NOWAIT).expect("memory"), n);
            }
            assert_eq!((prefills(cache), returns(cache)), ([0, 0, 3], [0, 3]));
            assert_all_back(cache);
        });
    });
}

#[test]
fn nothing_and_more_than_a_sheaf_can_count_are_refused() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = crate::create(Layout::new("test", 8).flags(CacheFlags::NO_MERGE)).expect("memory");
            assert!(cache.prefill(0, NOWAIT).is_none());
            assert!(cache.prefill(MAX_CAPACITY + 1, NOWAIT).is_none());
            assert!(cache.prefill(usize::MAX, NOWAIT).is_none());
            drain(cache.prefill(MAX_CAPACITY, NOWAIT).expect("memory"), MAX_CAPACITY);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_prefill_that_finds_no_memory_gives_back_everything() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            for n in [6, 28, 29, 200] {
                let mut refused = 0;
                for nth in 1.. {
                    set_sheaves(cache, 0, Some(5));
                    let armed = inject::arm(Plan::From(nth)).expect("not armed");
                    let prefilled = cache.prefill(n, AllocFlags::NOWARN);
                    let missed = armed.failed() > 0;
                    drop(armed);
                    refused += u32::from(prefilled.is_none());
                    assert!(prefilled.as_ref().is_none_or(|prefilled| prefilled.size() >= n));
                    drop(prefilled);
                    assert_eq!(cache.lent(), Lent { sheaves: 0, objects: 0 });
                    assert_all_back(cache);
                    if !missed {
                        break;
                    }
                }
                // Six are in the slab that the spare's five came from.
                assert_eq!(refused > 0, n > 6, "{n} objects");
            }
        });
    });
}

#[test]
fn objects_on_another_node_serve_where_there_is_no_memory_for_a_slab() {
    in_own_process(|| {
        machine(2, 2, |cx| {
            let cache = cache("test");
            let there = spawn(cx, Some(1), move |_| {
                let objects = [(); 40].map(|()| cache.alloc(NOWAIT).expect("memory"));
                // SAFETY: allocated above, each given up once.
                objects.into_iter().for_each(|object| unsafe { cache.free(object) });
            });
            there.join(cx);
            cache.flush_cpus();
            let here = spawn(cx, Some(0), move |_| {
                let sheaf = sheaf(cache, 0);
                put_empty(cache.barn().expect("a barn"), sheaf);
                // The local slab that came with the sheaf's objects, if any, and then the other node's.
                let _armed = inject::arm(Plan::From(1)).expect("not armed");
                drain(cache.prefill(6, AllocFlags::NOWARN).expect("the other node has some"), 6);
            });
            here.join(cx);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_returned_sheaf_becomes_the_spare_whatever_is_in_it() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            for left in [0, 3, 28] {
                set_sheaves(cache, 1, None);
                let mut prefilled = cache.prefill(28, NOWAIT).expect("memory");
                while prefilled.size() > left {
                    let object = prefilled.alloc(NOWAIT).expect("not empty");
                    // SAFETY: allocated just now.
                    unsafe { cache.free_bulk(&mut [object]) };
                    let mut held = cache.sheaves().expect("nobody interrupts");
                    held.spare.take().map(|spare| cache.flush_and_free(spare));
                }
                let before = returns(cache);
                drop(prefilled);
                assert_eq!(returns(cache), [before[0] + 1, before[1]]);
                assert_eq!(sheaf_sizes(cache).1, Some(left));
                assert_all_back(cache);
            }
        });
    });
}

#[test]
fn a_sheaf_returned_to_a_cpu_that_has_none_becomes_its_main_sheaf() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            drop(cache.prefill(28, NOWAIT).expect("memory"));
            assert_eq!((sheaf_sizes(cache), returns(cache)), ((28, None), [1, 0]));
            assert!(!cache.sheaves().expect("nobody interrupts").main.is_bootstrap(), "CPU-6");
            assert_all_back(cache);
        });
    });
}

#[test]
fn with_a_spare_there_the_barn_gets_the_sheaf_filled_up() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            set_sheaves(cache, 0, Some(0));
            let barn = cache.barn().expect("a barn");
            put_full(barn, sheaf(cache, 28));
            {
                // Keeps the spare in its place.
                let spare = cache.sheaves().expect("nobody interrupts").spare.take();
                let mut prefilled = cache.prefill(1, NOWAIT).expect("a full sheaf");
                cache.sheaves().expect("nobody interrupts").spare = spare;
                let object = prefilled.alloc(NOWAIT).expect("full");
                // SAFETY: allocated just now.
                unsafe { cache.free(object) };
                assert_eq!((prefilled.size(), barn_sizes(cache)), (27, (0, 0)));
            }
            assert_eq!((barn_sizes(cache), returns(cache)), ((1, 0), [0, 1]));
            let full = barn.get_full_or_empty().expect("just put there");
            assert!(full.is_full(), "{} of {}", full.size(), full.capacity());
            put_full(barn, full);
            assert_all_back(cache);
        });
    });
}

/// A sheaf in a caller's hands, while this CPU has main and spare and the barn wants no more.
fn one_too_many(cache: &'static RawCache) -> (Prefilled, u32) {
    let prefilled = cache.prefill(1, NOWAIT).expect("memory");
    set_sheaves(cache, 3, Some(3));
    (prefilled, fill_barn(cache))
}

#[test]
fn a_barn_without_room_gets_nothing_and_the_sheaf_is_flushed() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let (prefilled, limit) = one_too_many(cache);
            let (flushed, freed) = (cache.stat(Stat::SheafFlush), cache.stat(Stat::SheafFree));
            drop(prefilled);
            assert_eq!((barn_sizes(cache), returns(cache)), ((limit, 0), [0, 1]));
            assert_eq!((cache.stat(Stat::SheafFlush), cache.stat(Stat::SheafFree)), (flushed + 28, freed + 1));
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_barn_that_has_room_gets_sheaves_over_its_limit_once_the_look_is_past() {
    in_own_process(|| {
        machine(1, 1, |_| {
            // The constructor runs between the look at the room and the put: there it fills the barn.
            static CACHE: sync::Once<&'static RawCache> = sync::Once::new();
            static FILLED: AtomicBool = AtomicBool::new(false);
            fn fill_it_up(_: NonNull<u8>) {
                if let Some(cache) = CACHE.get()
                    && !FILLED.swap(true, Relaxed)
                {
                    fill_barn(cache);
                }
            }
            let layout = Layout::new("test", 256).flags(CacheFlags::NO_MERGE).ctor(fill_it_up);
            let cache = crate::create(layout).expect("memory");
            let mut prefilled = cache.prefill(28, NOWAIT).expect("memory");
            set_sheaves(cache, 3, Some(3));
            let objects: Vec<_> = core::iter::from_fn(|| prefilled.alloc(NOWAIT)).collect();
            // Nothing may be left in slabs, or the sheaf is filled up without a new one.
            let rest = the_rest(cache);
            CACHE.call_once(|| cache);
            drop(prefilled);
            let (limit, _) = cache.barn().expect("a barn").limits();
            assert_eq!((barn_sizes(cache), returns(cache)), ((limit + 1, 0), [0, 1]));
            cache.flush_and_free(rest);
            // SAFETY: allocated above, each given up once.
            objects.into_iter().for_each(|object| unsafe { cache.free(object) });
            assert_all_back(cache);
        });
    });
}

/// A sheaf with all that is left in slabs.
fn the_rest(cache: &RawCache) -> SheafRef {
    let info = cache.info();
    let n = (info.num_objs - info.active_objs) as usize;
    let all = SheafRef::alloc(cache, n.max(1), NOWAIT, Spin::May).expect("memory for a sheaf");
    assert_eq!(cache.take_many(n, mm::home_node(), NOWAIT, |object| assert!(all.push(object))), n);
    all
}

#[test]
fn a_sheaf_that_cannot_be_filled_up_for_the_barn_is_flushed() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let mut prefilled = cache.prefill(28, NOWAIT).expect("memory");
            set_sheaves(cache, 3, Some(3));
            let object = prefilled.alloc(NOWAIT).expect("full");
            let rest = the_rest(cache);
            {
                let _armed = inject::arm(Plan::From(1)).expect("not armed");
                drop(prefilled);
            }
            assert_eq!((barn_sizes(cache), returns(cache)), ((0, 0), [0, 1]));
            cache.flush_and_free(rest);
            // SAFETY: allocated above, given up once.
            unsafe { cache.free(object) };
            assert_all_back(cache);
        });
    });
}

#[test]
fn an_oversize_sheaf_is_flushed_and_never_kept() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            drop(cache.prefill(29, NOWAIT).expect("memory"));
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache), returns(cache)), ((0, None), (0, 0), [0, 1]));
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_refill_that_has_enough_changes_nothing() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            set_sheaves(cache, 0, Some(5));
            let prefilled = cache.prefill(5, NOWAIT).expect("the spare has five");
            let prefilled = prefilled.refill(0, NOWAIT).expect("zero is there").refill(5, NOWAIT).expect("five, too");
            drain(prefilled, 5);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_refill_within_the_capacity_fills_the_same_sheaf_up_to_it() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            set_sheaves(cache, 0, Some(5));
            let prefilled = cache.prefill(5, NOWAIT).expect("the spare has five");
            let sheaf = prefilled.sheaf;
            let prefilled = prefilled.refill(6, NOWAIT).expect("memory");
            assert_eq!((prefilled.sheaf, prefilled.size()), (sheaf, 28));
            assert_eq!(cache.lent(), Lent { sheaves: 1, objects: 28 });
            drain(prefilled, 28);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_refill_beyond_the_capacity_returns_the_old_sheaf_for_a_larger_one() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            set_sheaves(cache, 0, Some(5));
            let prefilled = cache.prefill(5, NOWAIT).expect("the spare has five");
            let prefilled = prefilled.refill(29, NOWAIT).expect("memory");
            assert_eq!((prefilled.size(), sheaf_sizes(cache), returns(cache)), (29, (0, Some(5)), [1, 0]));
            assert_eq!(cache.lent(), Lent { sheaves: 1, objects: 29 });
            let prefilled = prefilled.refill(1000, NOWAIT).expect("memory");
            assert_eq!((prefilled.size(), returns(cache)), (1000, [1, 1]));
            drain(prefilled, 1000);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_refill_without_memory_gives_the_old_sheaf_back_with_all_it_had() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            for n in [6, 29] {
                set_sheaves(cache, 0, Some(5));
                let prefilled = cache.prefill(5, NOWAIT).expect("the spare has five");
                let rest = the_rest(cache);
                let old = {
                    let _armed = inject::arm(Plan::From(1)).expect("not armed");
                    prefilled.refill(n, AllocFlags::NOWARN).expect_err("no memory")
                };
                assert_eq!((old.size(), cache.lent()), (5, Lent { sheaves: 1, objects: 5 }));
                drain(old.refill(5, NOWAIT).expect("five are there"), 5);
                cache.flush_and_free(rest);
                assert_all_back(cache);
            }
        });
    });
}

#[test]
fn a_sheaf_with_objects_of_the_reserve_is_not_kept() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            let pages = take_all_pages();
            assert!(cache.prefill(20, AllocFlags::NOWARN).is_none());
            let both = AllocFlags::RESERVE | AllocFlags::NO_RESERVE | AllocFlags::NOWARN;
            assert!(cache.prefill(20, both).is_none());
            let prefilled = cache.prefill(20, AllocFlags::RESERVE).expect("the reserve");
            assert!(prefilled.sheaf.is_reserve());
            assert_eq!(prefilled.size(), 20, "no more of the reserve than was asked for");
            drop(prefilled);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache), returns(cache)), ((0, None), (0, 0), [0, 1]));
            pages.into_iter().for_each(|page| mm::free_pages(page, 0));
            let prefilled = cache.prefill(20, AllocFlags::RESERVE).expect("memory");
            assert!(!prefilled.sheaf.is_reserve(), "the reserve was not needed");
            drop(prefilled);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_sheaf_that_lies_in_the_reserve_is_not_kept() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            // The rest of its slab is enough for ten more: only the sheaf itself needs memory.
            let object = cache.take_one(mm::home_node(), NOWAIT, Spin::May).expect("memory");
            let pages = take_all_pages();
            let memory = || crate::slow::alloc_unsheaved(256, AllocFlags::NOWARN, Spin::May);
            let places: Vec<_> = core::iter::from_fn(memory).collect();
            assert!(cache.prefill(10, AllocFlags::NOWARN).is_none());
            let prefilled = cache.prefill(10, AllocFlags::RESERVE).expect("the reserve");
            assert!(prefilled.sheaf.is_reserve());
            drop(prefilled);
            assert_eq!((sheaf_sizes(cache), returns(cache)), ((0, None), [0, 1]));
            for place in places {
                crate::slow::free_unsheaved(place, Spin::May);
            }
            pages.into_iter().for_each(|page| mm::free_pages(page, 0));
            crate::slow::free_unsheaved(object, Spin::May);
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_sheaf_may_come_back_on_another_node() {
    in_own_process(|| {
        machine(2, 2, |cx| {
            let cache = cache("test");
            let here = spawn(cx, Some(0), move |_| cache.prefill(28, NOWAIT).expect("memory"));
            let prefilled = here.join(cx);
            let there = spawn(cx, Some(1), move |_| {
                drop(prefilled);
                assert_eq!(sheaf_sizes(cache), (28, None));
            });
            there.join(cx);
            assert_eq!(cache.lent(), Lent { sheaves: 0, objects: 0 });
            assert_all_back(cache);
        });
    });
}

#[test]
fn a_cache_is_not_destroyed_while_a_sheaf_is_out_even_an_empty_one() {
    in_own_process(|| {
        machine(1, 1, |cx| {
            let cache = cache("test");
            let mut prefilled = cache.prefill(28, NOWAIT).expect("memory");
            assert_eq!(cache.lent(), Lent { sheaves: 1, objects: 28 });
            // SAFETY: nobody but this thread knows the cache.
            assert_eq!(unsafe { flush::destroy(cache, cx) }, Err(Leaked(28)));
            let objects: Vec<_> = core::iter::from_fn(|| prefilled.alloc(NOWAIT)).collect();
            // SAFETY: allocated above, each given up once.
            objects.into_iter().for_each(|object| unsafe { cache.free(object) });
            assert_eq!(cache.lent(), Lent { sheaves: 1, objects: 0 });
            // SAFETY: as above.
            assert_eq!(unsafe { flush::destroy(cache, cx) }, Err(Leaked(0)));
            drop(prefilled);
            // SAFETY: as above.
            assert_eq!(unsafe { flush::destroy(cache, cx) }, Ok(()));
        });
    });
}

#[test]
fn zeroing_is_done_when_an_object_is_taken_out() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("test");
            for flags in [NOWAIT, AllocFlags::ZERO] {
                let mut prefilled = cache.prefill(28, flags).expect("memory");
                while let Some(object) = prefilled.alloc(AllocFlags::ZERO) {
                    // SAFETY: an object of 256 bytes that is ours.
                    let bytes = unsafe { core::slice::from_raw_parts_mut(object.as_ptr(), 256) };
                    assert!(bytes.iter().all(|&byte| byte == 0));
                    bytes.fill(0xff);
                    // SAFETY: allocated above, given up once.
                    unsafe { cache.free(object) };
                }
            }
            assert_all_back(cache);
        });
    });
}

/// Takes every page that can be had without the reserve.
fn take_all_pages() -> Vec<&'static mm::Page> {
    core::iter::from_fn(|| mm::alloc_pages(0, None, AllocFlags::NOWARN).ok()).collect()
}

#[test]
fn a_prefill_that_may_sleep_gets_what_a_shrinker_gives_back() {
    in_own_process(|| {
        static HOARD: sync::SpinLock<Vec<&'static mm::Page>> =
            sync::SpinLock::new(Vec::new(), sync::lock_class!("test.hoard"));
        static SHRINKER: mm::Shrinker = mm::Shrinker::new(
            "test",
            || HOARD.lock_irqsave(sync::ATOMIC).len(),
            |pages, _| {
                let hoard = core::mem::take(&mut *HOARD.lock_irqsave(sync::ATOMIC));
                hoard.into_iter().map(|page| mm::free_pages(page, 0)).count().min(pages)
            },
        );
        machine(1, 1, |cx| {
            let cache = cache("test");
            mm::shrinker::register(&SHRINKER);
            *HOARD.lock_irqsave(sync::ATOMIC) = take_all_pages();
            let flags = AllocFlags::MAY_SLEEP | AllocFlags::NOWARN;
            assert!(cache.prefill(100, flags).is_none(), "without the token the flag does nothing");
            assert!(cache.prefill_sleep(100, AllocFlags::NOWARN, cx).is_none(), "nor without the flag the token");
            assert!(cache.prefill_sleep(0, flags, cx).is_none());
            assert!(!HOARD.lock_irqsave(sync::ATOMIC).is_empty(), "nobody reclaims for that");
            drain(cache.prefill_sleep(100, flags, cx).expect("the hoard was given back"), 100);
            assert_all_back(cache);
        });
    });
}
