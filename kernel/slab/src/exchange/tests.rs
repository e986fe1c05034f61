//! Every step of allocating and freeing past main, and every case of finding things changed after the lock was dropped.
//!
//! Sheaves hold 28 objects. What happens while the lock is dropped is done by the constructor of the first object of the slab
//! that a refill makes ([`meanwhile`]), or before the step under test is called by itself.

use std::vec::Vec;

use arch::hosted::in_own_process;
use mm::inject::{self, Plan};
use sync::{ATOMIC, SpinLock, lock_class};

use super::*;
use crate::cache::{CacheFlags, Layout};
use crate::test_machine::{assert_all_back, barn_sizes, cache, fill_barn, machine, set_sheaves, sheaf, sheaf_sizes};

const NOWAIT: AllocFlags = AllocFlags::NOWAIT;

/// Runs `body` on a machine of one CPU, with a cache that has everything back at the end.
fn with_cache(body: fn(&'static RawCache)) {
    machine(1, 1, |_| {
        let cache = cache("test");
        body(cache);
        crate::deferred::drain_here();
        assert_all_back(cache);
    });
}

fn alloc(cache: &RawCache) -> NonNull<u8> {
    cache.alloc(NOWAIT).expect("memory")
}

fn free(cache: &RawCache, object: NonNull<u8>) {
    // SAFETY: from `alloc`, and nobody uses it.
    unsafe { cache.free(object) };
}

/// An object that came past the sheaves.
fn from_slab(cache: &RawCache) -> NonNull<u8> {
    let mut object = None;
    cache.take_many(1, mm::home_node(), NOWAIT, |taken| object = Some(taken));
    cache.after_alloc(object, NOWAIT).expect("memory")
}

fn stats<const N: usize>(cache: &RawCache, stats: [Stat; N]) -> [u64; N] {
    stats.map(|stat| cache.stat(stat))
}

// Allocating (M-5).

#[test]
fn alloc_exchanges_an_empty_main_with_a_spare_that_holds_something() {
    in_own_process(|| {
        with_cache(|cache| {
            set_sheaves(cache, 0, Some(3));
            let object = alloc(cache);
            assert_eq!(sheaf_sizes(cache), (2, Some(0)));
            assert_eq!(stats(cache, [Stat::AllocFastpath, Stat::BarnGetFail]), [1, 0]);
            free(cache, object);
        });
    });
}

#[test]
fn alloc_exchanges_an_empty_main_for_a_full_one_of_the_barn() {
    in_own_process(|| {
        with_cache(|cache| {
            set_sheaves(cache, 0, Some(0));
            put_full(cache.barn().expect("a barn"), sheaf(cache, 28));
            let object = alloc(cache);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((27, Some(0)), (0, 1)));
            assert_eq!(stats(cache, [Stat::AllocFastpath, Stat::BarnGet]), [1, 1]);
            free(cache, object);
        });
    });
}

#[test]
fn alloc_does_not_leave_the_bootstrap_sheaf_in_the_barn() {
    in_own_process(|| {
        with_cache(|cache| {
            put_full(cache.barn().expect("a barn"), sheaf(cache, 28));
            let object = alloc(cache);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((27, None), (0, 0)));
            free(cache, object);
        });
    });
}

#[test]
fn alloc_refills_the_empty_spare_where_the_barn_has_none() {
    in_own_process(|| {
        with_cache(|cache| {
            set_sheaves(cache, 0, Some(0));
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            let made = cache.stat(Stat::SheafAlloc);
            let object = alloc(cache);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((27, Some(0)), (0, 1)));
            assert_eq!(stats(cache, [Stat::SheafAlloc, Stat::SheafRefill, Stat::BarnGetFail]), [made, 28, 1]);
            free(cache, object);
        });
    });
}

#[test]
fn alloc_refills_an_empty_sheaf_of_the_barn_where_there_is_no_spare() {
    in_own_process(|| {
        with_cache(|cache| {
            set_sheaves(cache, 0, None);
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            let made = cache.stat(Stat::SheafAlloc);
            let object = alloc(cache);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((27, Some(0)), (0, 0)));
            assert_eq!(stats(cache, [Stat::SheafAlloc, Stat::SheafRefill]), [made, 28]);
            free(cache, object);
        });
    });
}

#[test]
fn alloc_makes_a_sheaf_where_there_is_none() {
    in_own_process(|| {
        with_cache(|cache| {
            let object = alloc(cache);
            assert_eq!(sheaf_sizes(cache), (27, None));
            assert_eq!(stats(cache, [Stat::SheafAlloc, Stat::SheafRefill, Stat::AllocFastpath]), [1, 28, 1]);
            free(cache, object);
        });
    });
}

/// A cache whose sheaves are whole pages, so that there is memory for objects and none for sheaves.
fn with_page_sheaves(body: fn(&'static RawCache)) {
    machine(1, 1, |_| {
        let layout = Layout::new("test", 256).flags(CacheFlags::NO_MERGE).capacity(1020);
        let cache = crate::create(layout).expect("memory");
        assert_eq!(cache.sheaf_capacity(), 1020);
        body(cache);
        assert_all_back(cache);
    });
}

#[test]
fn alloc_takes_one_object_off_a_slab_where_there_is_no_memory_for_a_sheaf() {
    in_own_process(|| {
        with_page_sheaves(|cache| {
            // Keeps a slab with more to take.
            let kept = from_slab(cache);
            let armed = inject::arm(Plan::From(1)).expect("not armed");
            let object = alloc(cache);
            drop(armed);
            assert_eq!(sheaf_sizes(cache), (0, None));
            assert_eq!(stats(cache, [Stat::AllocFastpath, Stat::AllocSlowpath]), [0, 1]);
            free(cache, object);
            free(cache, kept);
        });
    });
}

#[test]
fn alloc_without_locks_exchanges_but_does_not_refill() {
    in_own_process(|| {
        with_cache(|cache| {
            set_sheaves(cache, 0, Some(1));
            put_full(cache.barn().expect("a barn"), sheaf(cache, 28));
            let objects: Vec<_> = (0..30).map(|_| cache.alloc_nolock(NOWAIT).expect("memory")).collect();
            // One of the spare, 28 of the barn, and one off a slab: sheaves stay empty.
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((0, Some(0)), (0, 1)));
            assert_eq!(stats(cache, [Stat::AllocFastpath, Stat::AllocSlowpath]), [29, 1]);
            objects.into_iter().for_each(|object| free(cache, object));
        });
    });
}

// Finding things changed after a refill (M-7).

/// What is put into main and spare while an allocation fills a sheaf with the lock dropped.
static MEANWHILE: SpinLock<Option<(SheafRef, Option<SheafRef>)>> = SpinLock::new(None, lock_class!("test.meanwhile"));

fn on_new_object(object: NonNull<u8>) {
    let Some((main, spare)) = MEANWHILE.lock_irqsave(ATOMIC).take() else { return };
    let cache = SlabRef::of(object).expect("an object of a slab").cache();
    let mut held = cache.sheaves().expect("the lock is dropped for a refill");
    assert!(held.main.is_empty() && held.spare.is_none(), "a refill has taken the spare along");
    let old = core::mem::replace(&mut held.main, main);
    held.spare = spare;
    drop(held);
    put_empty(cache.barn().expect("a barn"), old);
}

/// Allocates with main empty and no spare, while somebody gives the CPU a main sheaf and perhaps a spare with so many objects.
/// Returns the sizes of main and spare, and those of the barn, after.
fn meanwhile(main: usize, spare: Option<usize>) -> ((usize, Option<usize>), (u32, u32)) {
    let mut found = None;
    machine(1, 1, |_| {
        let cache = crate::create(Layout::new("test", 256).flags(CacheFlags::NO_MERGE).ctor(on_new_object));
        let cache = cache.expect("memory");
        set_sheaves(cache, 0, None);
        let theirs = (sheaf(cache, main), spare.map(|size| sheaf(cache, size)));
        // No object is left in a slab, so the refill makes one.
        let info = cache.info();
        let rest: Vec<_> = (info.active_objs..info.num_objs).map(|_| from_slab(cache)).collect();
        *MEANWHILE.lock_irqsave(ATOMIC) = Some(theirs);
        let object = alloc(cache);
        assert!(MEANWHILE.lock_irqsave(ATOMIC).is_none(), "the refill made no slab");
        found = Some((sheaf_sizes(cache), barn_sizes(cache)));
        free(cache, object);
        rest.into_iter().for_each(|object| free(cache, object));
        assert_all_back(cache);
    });
    found.expect("the machine ran to its end")
}

#[test]
fn a_refill_that_finds_main_still_empty_and_a_spare_leaves_the_old_main_to_the_barn() {
    in_own_process(|| {
        // One empty sheaf is the old main from before, the other that which came in its place.
        assert_eq!(meanwhile(0, Some(3)), ((27, Some(3)), (0, 2)));
    });
}

#[test]
fn a_refill_that_finds_main_still_empty_and_no_spare_makes_it_the_spare() {
    in_own_process(|| assert_eq!(meanwhile(0, None), ((27, Some(0)), (0, 1))));
}

#[test]
fn a_refill_that_finds_objects_in_main_and_no_spare_leaves_its_sheaf_as_the_spare() {
    in_own_process(|| assert_eq!(meanwhile(5, None), ((4, Some(28)), (0, 1))));
}

#[test]
fn a_refill_that_finds_objects_in_main_and_an_empty_spare_takes_the_spares_place() {
    in_own_process(|| assert_eq!(meanwhile(5, Some(0)), ((4, Some(28)), (0, 2))));
}

#[test]
fn a_refill_that_finds_objects_in_main_and_spare_leaves_its_sheaf_to_the_barn() {
    in_own_process(|| assert_eq!(meanwhile(5, Some(3)), ((4, Some(3)), (1, 1))));
}

// Freeing (M-6).

#[test]
fn free_exchanges_a_full_main_with_a_spare_that_has_room() {
    in_own_process(|| {
        with_cache(|cache| {
            let object = from_slab(cache);
            set_sheaves(cache, 28, Some(27));
            free(cache, object);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((28, Some(28)), (0, 0)));
            assert_eq!(stats(cache, [Stat::FreeFastpath, Stat::BarnPut]), [1, 0]);
        });
    });
}

#[test]
fn free_makes_a_full_main_the_spare_and_takes_an_empty_sheaf_of_the_barn() {
    in_own_process(|| {
        with_cache(|cache| {
            let object = from_slab(cache);
            set_sheaves(cache, 28, None);
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            let made = cache.stat(Stat::SheafAlloc);
            free(cache, object);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((1, Some(28)), (0, 0)));
            assert_eq!(stats(cache, [Stat::FreeFastpath, Stat::SheafAlloc]), [1, made]);
        });
    });
}

#[test]
fn free_on_a_cpu_without_sheaves_does_not_make_the_bootstrap_sheaf_a_spare() {
    in_own_process(|| {
        with_cache(|cache| {
            let object = from_slab(cache);
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            free(cache, object);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((1, None), (0, 0)));
        });
    });
}

#[test]
fn free_exchanges_a_full_main_for_an_empty_one_of_the_barn() {
    in_own_process(|| {
        with_cache(|cache| {
            let object = from_slab(cache);
            set_sheaves(cache, 28, Some(28));
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            free(cache, object);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((1, Some(28)), (1, 0)));
            assert_eq!(stats(cache, [Stat::FreeFastpath, Stat::BarnPut]), [1, 1]);
        });
    });
}

#[test]
fn free_flushes_the_spare_and_uses_it_where_the_barn_has_too_many_full_ones() {
    in_own_process(|| {
        with_cache(|cache| {
            let object = from_slab(cache);
            set_sheaves(cache, 28, Some(28));
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            let limit = fill_barn(cache);
            let made = cache.stat(Stat::SheafAlloc);
            free(cache, object);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((1, Some(28)), (limit, 1)));
            let counts = [Stat::FreeFastpath, Stat::BarnPutFail, Stat::SheafFlush, Stat::SheafAlloc];
            assert_eq!(stats(cache, counts), [1, 1, 28, made]);
        });
    });
}

#[test]
fn free_makes_a_sheaf_and_leaves_main_to_the_barn_where_that_has_no_empty_one() {
    in_own_process(|| {
        with_cache(|cache| {
            let object = from_slab(cache);
            set_sheaves(cache, 28, Some(28));
            let made = cache.stat(Stat::SheafAlloc);
            free(cache, object);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((1, Some(28)), (1, 0)));
            let counts = [Stat::FreeFastpath, Stat::BarnPut, Stat::BarnPutFail, Stat::SheafAlloc];
            assert_eq!(stats(cache, counts), [1, 1, 0, made + 1]);
        });
    });
}

#[test]
fn free_flushes_all_of_main_where_there_is_no_memory_for_a_sheaf() {
    in_own_process(|| {
        with_page_sheaves(|cache| {
            let object = from_slab(cache);
            set_sheaves(cache, 1020, Some(1020));
            let armed = inject::arm(Plan::From(1)).expect("not armed");
            free(cache, object);
            drop(armed);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((1, Some(1020)), (0, 0)));
            assert_eq!(stats(cache, [Stat::FreeFastpath, Stat::SheafFlush, Stat::BarnPutFail]), [1, 1020, 1]);
        });
    });
}

#[test]
fn free_goes_to_the_slab_where_a_cpu_without_sheaves_finds_no_memory_for_one() {
    in_own_process(|| {
        with_page_sheaves(|cache| {
            let object = from_slab(cache);
            let armed = inject::arm(Plan::From(1)).expect("not armed");
            free(cache, object);
            drop(armed);
            assert_eq!(sheaf_sizes(cache), (0, None));
            assert_eq!(stats(cache, [Stat::FreeFastpath, Stat::FreeSlowpath, Stat::BarnPutFail]), [0, 1, 0]);
        });
    });
}

#[test]
fn free_goes_to_the_slab_for_whom_interrupts_the_holder_of_the_sheaves() {
    in_own_process(|| {
        with_cache(|cache| {
            let object = from_slab(cache);
            set_sheaves(cache, 3, None);
            let held = cache.sheaves().expect("nobody interrupts");
            free(cache, object);
            drop(held);
            assert_eq!((sheaf_sizes(cache), cache.stat(Stat::FreeSlowpath)), ((3, None), 1));
        });
    });
}

// Installing an empty sheaf after the lock was dropped (M-7).

/// Installs an empty sheaf while main and spare hold so many objects. Returns whether main is there to be used.
fn install(cache: &'static RawCache, main: usize, spare: Option<usize>) -> bool {
    set_sheaves(cache, main, spare);
    let empty = sheaf(cache, 0);
    cache.install_empty(empty).is_some()
}

#[test]
fn an_empty_sheaf_becomes_main_and_main_the_spare_where_there_is_none() {
    in_own_process(|| {
        with_cache(|cache| {
            assert!(install(cache, 28, None));
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((0, Some(28)), (0, 0)));
        });
    });
}

#[test]
fn an_empty_sheaf_is_left_to_the_barn_where_main_has_room_by_now() {
    in_own_process(|| {
        with_cache(|cache| {
            assert!(install(cache, 27, Some(28)));
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((27, Some(28)), (0, 1)));
        });
    });
}

#[test]
fn an_empty_sheaf_is_left_to_the_barn_where_the_spare_has_room_by_now() {
    in_own_process(|| {
        with_cache(|cache| {
            assert!(install(cache, 28, Some(27)));
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((27, Some(28)), (0, 1)));
        });
    });
}

#[test]
fn an_empty_sheaf_becomes_main_and_a_full_main_goes_to_the_barn_over_its_limit() {
    in_own_process(|| {
        with_cache(|cache| {
            let limit = fill_barn(cache);
            let put = cache.stat(Stat::BarnPut);
            assert!(install(cache, 28, Some(28)));
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((0, Some(28)), (limit + 1, 0)));
            assert_eq!(cache.stat(Stat::BarnPut), put + 1);
        });
    });
}

#[test]
fn an_empty_sheaf_goes_to_the_barn_where_the_sheaves_are_in_use() {
    in_own_process(|| {
        with_cache(|cache| {
            set_sheaves(cache, 28, None);
            let empty = sheaf(cache, 0);
            let held = cache.sheaves().expect("nobody interrupts");
            assert!(cache.install_empty(empty).is_none());
            drop(held);
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((28, None), (0, 1)));
        });
    });
}

#[test]
fn an_empty_sheaf_of_another_capacity_is_freed() {
    in_own_process(|| {
        with_cache(|cache| {
            let stale = SheafRef::alloc(cache, 12, NOWAIT, Spin::May).expect("memory");
            set_sheaves(cache, 28, None);
            assert!(cache.install_empty(stale).is_none());
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((28, None), (0, 0)));
            assert_eq!(cache.stat(Stat::SheafFree), 1);
        });
    });
}

#[test]
fn a_full_sheaf_whose_capacity_has_gone_out_of_use_is_flushed_with_the_sheaves_given_up() {
    in_own_process(|| {
        with_cache(|cache| {
            // As if the capacity were being changed on another CPU this moment: it tells the barns first.
            cache.barn().expect("a barn").set_capacity(60);
            assert!(!install(cache, 28, Some(28)), "main is to be had still");
            assert_eq!((sheaf_sizes(cache), barn_sizes(cache)), ((0, Some(28)), (0, 0)));
            assert_eq!(stats(cache, [Stat::BarnPutFail, Stat::SheafFlush, Stat::SheafFree]), [1, 28, 1]);
            cache.barn().expect("a barn").set_capacity(28);
        });
    });
}

// Freeing without locks.

#[test]
fn free_without_locks_exchanges_but_makes_and_flushes_nothing() {
    in_own_process(|| {
        with_cache(|cache| {
            let objects: Vec<_> = (0..3).map(|_| from_slab(cache)).collect();
            set_sheaves(cache, 28, Some(27));
            put_empty(cache.barn().expect("a barn"), sheaf(cache, 0));
            let counts = [Stat::SheafAlloc, Stat::SheafFlush, Stat::SheafFree];
            let before = stats(cache, counts);
            let free = |object| {
                // SAFETY: from `from_slab`, and nobody uses it.
                unsafe { crate::kfree_nolock(object) };
            };
            free(objects[0]);
            assert_eq!(sheaf_sizes(cache), (28, Some(28)), "the spare had room for one");
            free(objects[1]);
            assert_eq!(
                (sheaf_sizes(cache), barn_sizes(cache)),
                ((1, Some(28)), (1, 0)),
                "the barn had one empty sheaf"
            );
            let main = cache.sheaves().expect("nobody interrupts").main;
            cache.take_many(27, mm::home_node(), NOWAIT, |object| assert!(main.push(object)));
            free(objects[2]);
            assert_eq!(
                (sheaf_sizes(cache), barn_sizes(cache)),
                ((28, Some(28)), (1, 0)),
                "it waits for another context"
            );
            assert_eq!(stats(cache, counts), before);
        });
    });
}
