//! The ways into `kfree_rcu`: heads of either kind, anywhere in any object, owners, and no head at all.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::{ManuallyDrop, offset_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use kfree_rcu::{
    HasRcuPtr, MAX_OFFSET, RcuPtr, has_rcu_ptr, kfree_rcu, kfree_rcu_bulk, kfree_rcu_bulk_mightsleep,
    kfree_rcu_callback, kfree_rcu_nolock, kfree_rcu_object, kfree_rcu_owned, kfree_rcu_owned_mightsleep,
    kvfree_rcu_barrier,
};
use mm::AllocFlags;
use rcu::{CallbackHead, HashNode, ListNode, Rcu, RcuBox, RcuHashMap, RcuList, call_rcu};
use slab::typed::{Cache, TypedLayout};
use slab::{CacheFlags, KBox, Layout, RawCache};
use sync::{ATOMIC, LockClass, MaySleep};

use crate::together::spawn;
use crate::{Failure, ensure, ensure_eq, ktest};

/// Objects that are freed by both `call_rcu` and `kfree_rcu` keep the large head.
#[repr(C)]
struct Large {
    key: u64,
    rcu: CallbackHead,
}

has_rcu_ptr!(Large, rcu);

/// The owner's field lends its place to the head.
union Tail {
    last_used: u64,
    rcu: ManuallyDrop<RcuPtr>,
}

struct Lent {
    key: u64,
    tail: Tail,
}

has_rcu_ptr!(Lent, tail.rcu);

struct Small {
    key: u64,
    rcu: RcuPtr,
}

has_rcu_ptr!(Small, rcu);

/// The start of a block of pages.
struct Block {
    rcu: RcuPtr,
}

has_rcu_ptr!(Block, rcu);

const _: () = assert!(size_of::<Large>() == 24 && size_of::<Small>() == 16 && size_of::<Lent>() == 16);

fn no_memory() -> Failure {
    crate::__failed!("no memory")
}

fn typed<T>(name: &'static str) -> Result<Cache<T>, Failure> {
    Cache::create(TypedLayout::new(name).flags(CacheFlags::NO_MERGE)).map_err(|error| crate::__failed!("{error}"))
}

/// Ends a cache whose objects have all been given up: were one lost, or freed twice, it would say so.
fn end<T>(cache: Cache<T>, cx: &mut MaySleep) -> Result<(), Failure> {
    cache.destroy(cx).map_err(|(_, leaked)| crate::__failed!("{leaked:?} after all were given up"))
}

/// What `call_rcu` calls for a [`Large`].
///
/// # Safety
/// `head` is that of a `Large` that was given up.
unsafe fn free_large(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head lies at this offset of an object of a cache.
    unsafe { slab::kfree(NonNull::new_unchecked(head.byte_sub(offset_of!(Large, rcu))).cast()) };
}

/// Has `kfree_rcu` find the start of a block of `size` bytes from heads all over it; `alloc` makes such blocks.
fn give_up_by_all_heads(size: usize, mut alloc: impl FnMut() -> Option<NonNull<u8>>) -> Result<(), Failure> {
    let last = size.min(MAX_OFFSET) - size_of::<RcuPtr>();
    for offset in [0, 8, last / 16 * 8, last] {
        if offset > last {
            continue;
        }
        let object = alloc().ok_or_else(no_memory)?;
        // SAFETY: inside the object, aligned as a pointer is; the object is given up, and nobody else knows it.
        unsafe {
            let head = object.add(offset).cast::<RcuPtr>();
            head.write(RcuPtr::new());
            kfree_rcu(head);
        }
    }
    Ok(())
}

/// Objects of the cache that somebody holds, when all that waits for RCU has been waited for.
fn in_use(cache: &'static RawCache, cx: &mut MaySleep) -> u64 {
    for _ in 0..2 {
        kvfree_rcu_barrier(cx);
        rcu::rcu_barrier(cx);
        cache.shrink();
    }
    cache.info().active_objs
}

ktest! {
    /// A type with the 16-byte head goes to `call_rcu`, `kfree_rcu` and `kfree_rcu_nolock` as its user likes (S1-1, S1-3).
    fn a_type_with_the_large_head_is_freed_by_callback_and_without(t: &mut Test) {
        let cache = typed::<Large>("test_large_head")?;
        for key in 0..300 {
            let Ok(owner) = cache.alloc(Large { key, rcu: CallbackHead::new() }, AllocFlags::NOWAIT) else { continue };
            if key % 5 == 4 {
                kfree_rcu_owned(owner);
                continue;
            }
            let object = slab::typed::CacheBox::into_raw(owner);
            // SAFETY: given up by its box, and the head is a field of it.
            unsafe {
                let head = object.byte_add(Large::OFFSET).cast::<CallbackHead>();
                match key % 5 {
                    0 => call_rcu(head.as_ptr(), free_large),
                    1 => kfree_rcu_object(object),
                    2 => kfree_rcu_nolock(RcuPtr::in_callback(head)),
                    _ => kfree_rcu_callback(head),
                }
            }
        }
        // What `call_rcu` has is no business of this storey's barrier; the end of a cache waits for both.
        end(cache, t.cx)
    }

    /// A head may lie in a union with what only the object's owner looks at.
    fn a_head_in_a_union_costs_nothing(t: &mut Test) {
        let cache = typed::<Lent>("test_union_head")?;
        for key in 0..100 {
            let entry = Lent { key, tail: Tail { last_used: key } };
            let owner = cache.alloc(entry, AllocFlags::NOWAIT).map_err(|_| no_memory())?;
            // SAFETY: the owner's field, until the entry is given up.
            ensure_eq!((owner.key, unsafe { owner.tail.last_used }), (key, key));
            kfree_rcu_owned(owner);
        }
        end(cache, t.cx)
    }

    /// From a head anywhere in the first page, the object's start is found: in slabs of any size, large blocks, vmalloc areas.
    fn the_object_is_found_from_a_head_anywhere_in_its_first_page(t: &mut Test) {
        // Sizes that divide no page, and more than one.
        for size in [8, 24, 40, 136, 1000, 4104, 6000] {
            let layout = Layout::new("test_head_at", size).flags(CacheFlags::NO_MERGE);
            let cache: &'static RawCache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
            // Fill a slab or two, so that heads lie in all of its pages.
            for _ in 0..10 {
                give_up_by_all_heads(size, || cache.alloc(AllocFlags::NOWAIT))?;
            }
            // SAFETY: its objects have been given up, and nobody else knows it.
            ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()), "objects of {size} bytes");
        }
        for size in [8193, 50_000, 300_000] {
            give_up_by_all_heads(size, || slab::kmalloc(size, AllocFlags::NOWAIT))?;
        }
        mm::vmalloc::purge(t.cx);
        let (before, _) = mm::vmalloc::usage();
        const TIMES: usize = 8;
        for _ in 0..TIMES {
            give_up_by_all_heads(20_000, || mm::vmalloc(20_000, t.cx).ok())?;
        }
        kvfree_rcu_barrier(t.cx);
        mm::vmalloc::purge(t.cx);
        // Threads have stacks there, and some worker may have come or gone.
        let (after, _) = mm::vmalloc::usage();
        ensure!(after < before + TIMES, "{before} areas before, {after} after");
        Ok(())
    }

    /// Owners of either kind give up what they own, with a head or without, values of no size included.
    fn an_owner_gives_up_its_object(t: &mut Test) {
        let cache = typed::<Small>("test_owned")?;
        for key in 0..50 {
            let small = || Small { key, rcu: RcuPtr::new() };
            kfree_rcu_owned(cache.alloc(small(), AllocFlags::NOWAIT).map_err(|_| no_memory())?);
            kfree_rcu_owned(KBox::try_new(small(), AllocFlags::NOWAIT).map_err(|_| no_memory())?);
            let bare = cache.alloc(small(), AllocFlags::NOWAIT).map_err(|_| no_memory())?;
            ensure_eq!(bare.key, key);
            kfree_rcu_owned_mightsleep(bare, t.cx);
            kfree_rcu_owned_mightsleep(KBox::try_new(key, AllocFlags::NOWAIT).map_err(|_| no_memory())?, t.cx);
            kfree_rcu_owned_mightsleep(KBox::try_new((), AllocFlags::NOWAIT).map_err(|_| no_memory())?, t.cx);
        }
        end(cache, t.cx)
    }

    /// `kvmalloc` gives blocks of either kind; which it was is found from the address, with a head and without.
    fn a_block_of_kvmalloc_is_given_up_whatever_it_is(t: &mut Test) {
        for size in [100, 5000, 3 << 20] {
            let with_head = slab::kvmalloc(size, AllocFlags::MAY_SLEEP, t.cx).ok_or_else(no_memory)?;
            let without = slab::kvmalloc(size, AllocFlags::MAY_SLEEP, t.cx).ok_or_else(no_memory)?;
            // SAFETY: fresh blocks that nobody else knows, with room for a head.
            unsafe {
                with_head.cast::<RcuPtr>().write(RcuPtr::new());
                kfree_rcu(with_head.cast());
                kfree_rcu::kfree_rcu_mightsleep(without, t.cx);
            }
        }
        kvfree_rcu_barrier(t.cx);
        ensure_eq!(kfree_rcu::backend::waiting().objects, 0);
        Ok(())
    }

    /// Boxes of either kind are published, replaced, and go to lists and maps side by side; values are whole, and all come back.
    #[tags(race)]
    fn boxes_with_the_small_head_are_retired_without_callbacks(t: &mut Test) {
        type Value = [u64; 700];
        static CLASS: LockClass = LockClass::new("test.small_boxes");
        let classes = slab::registry::find("kmalloc-8k").ok_or_else(|| crate::__failed!("no such class"))?;
        let before = in_use(classes, t.cx);
        let small = |n: u64| kfree_rcu::try_small_box([n; 700]).map_err(|_| no_memory());
        let value: Arc<Rcu<Value>> = Arc::new(Rcu::new(small(0)?));
        let over = Arc::new(AtomicBool::new(false));
        let (found, stop) = (value.clone(), over.clone());
        let reader = spawn(t.cx, None, move |cx| {
            let mut whole = true;
            while !stop.load(Relaxed) {
                let guard = rcu::read_lock(cx);
                whole &= found.read(&guard).is_none_or(|value| value.iter().all(|word| *word == value[0]));
                drop(guard);
                sched::cond_resched(cx);
            }
            whole
        })?;
        let callbacks = rcu::callback_stats().queued_twice;
        for n in 1..200 {
            // Every fifth is of the other kind.
            let new = if n % 5 == 0 { RcuBox::new([n; 700]) } else { small(n)? };
            let old = value.replace(Some(new)).ok_or_else(|| crate::__failed!("there was a value"))?;
            ensure_eq!(old[0], n - 1);
            // Retired, waited for, or dropped again unpublished.
            match n % 40 {
                7 => ensure_eq!(RcuBox::into_inner(old.synchronize(t.cx))[699], n - 1),
                8 => drop(old.into_polled().synchronize(t.cx)),
                _ => old.retire(),
            }
            sched::cond_resched(t.cx);
        }
        ensure_eq!(rcu::callback_stats().queued_twice, callbacks, "a head was taken for a queued one");
        over.store(true, Relaxed);
        ensure!(reader.join(t.cx), "a value changed under a reader");
        let map: RcuHashMap<u64, [u64; 690]> = RcuHashMap::try_new(16, &CLASS).map_err(|_| no_memory())?;
        let list: RcuList<Value> = RcuList::new(&CLASS);
        for n in 0..20 {
            let node = HashNode::new(n, [n; 690]);
            let node = if n % 2 == 0 { RcuBox::new(node) } else { kfree_rcu::try_small_box(node).map_err(|_| no_memory())? };
            ensure!(map.insert(node).is_ok(), "key {n} is new");
            list.lock(t.cx).push_front(kfree_rcu::try_small_box(ListNode::new([n; 700])).map_err(|_| no_memory())?);
        }
        for n in 0..15 {
            ensure_eq!(map.get(&n, &rcu::read_lock(t.cx)).map(|value| value[5]), Some(n));
            drop(map.remove(&n));
            drop(list.lock(t.cx).cursor().remove());
        }
        drop((map, list, value));
        ensure_eq!(in_use(classes, t.cx), before, "boxes are lost");
        Ok(())
    }

    /// What the small head saves: 8 bytes of each box, and of memory what the next smaller class of kmalloc does (S1-4, D-13).
    fn the_small_head_saves_8_bytes_of_each_box(t: &mut Test) {
        fn bytes<const WORDS: usize>() -> Result<[usize; 2], Failure> {
            let of = |boxed: &RcuBox<[u64; WORDS]>| {
                let object = slab::object_of(NonNull::from(&**boxed).cast()).ok_or_else(no_memory)?;
                // SAFETY: the box's own block.
                Ok((NonNull::from(&**boxed).addr().get() - object.addr().get(), unsafe { slab::ksize(object) }))
            };
            let (large, small) = (RcuBox::new([0; WORDS]), kfree_rcu::try_small_box([0; WORDS]).map_err(|_| no_memory())?);
            let ((large_head, large), (small_head, small)) = (of(&large)?, of(&small)?);
            ensure_eq!((large_head, small_head), (16, 8), "bytes in front of the value");
            Ok([large, small])
        }
        let sizes = [(24, bytes::<3>()?), (56, bytes::<7>()?), (88, bytes::<11>()?), (120, bytes::<15>()?), (248, bytes::<31>()?)];
        for (value, [large, small]) in sizes {
            t.note(format_args!("a value of {value} bytes: {large} with the large head, {small} with the small one"));
            ensure!(small < large, "a value of {value} bytes");
        }
        Ok(())
    }

    /// Objects of two caches, of other CPUs, and without sheaves, in one call: each is freed once, and readers see their content.
    #[tags(race)]
    fn many_objects_given_up_in_one_call_are_freed_once(t: &mut Test) {
        let caches = [typed::<Small>("test_bulk_small")?, typed::<Small>("test_bulk_other")?];
        let make = |key: u64, cache: &Cache<Small>| {
            let node = cache.alloc(Small { key, rcu: RcuPtr::new() }, AllocFlags::NOWAIT).map_err(|_| no_memory())?;
            Ok::<_, Failure>(slab::typed::CacheBox::into_raw(node))
        };
        let mut given = 0;
        for round in 0..30 {
            let mut objects: Vec<NonNull<Small>> = Vec::new();
            for n in 0..1 + 7 * round {
                // Runs of one cache, and in between one of the other.
                objects.push(make(n, &caches[usize::from(n % 11 == 10)])?);
            }
            let guard = rcu::read_lock(ATOMIC);
            if round % 3 == 2 {
                drop(guard);
                let addresses: Vec<NonNull<u8>> = objects.iter().map(|object| object.cast()).collect();
                // SAFETY: allocated above, each once, and nobody else knows them.
                unsafe { kfree_rcu_bulk_mightsleep(&addresses, t.cx) };
            } else {
                // SAFETY: as above; the reader here keeps them from being freed.
                unsafe { kfree_rcu_bulk(&objects) };
                for (n, object) in objects.iter().enumerate() {
                    // SAFETY: in the section that began before they were given up.
                    ensure_eq!(unsafe { (&raw const (*object.as_ptr()).key).read_volatile() }, n as u64);
                }
                drop(guard);
            }
            given += objects.len() as u64;
        }
        let large: Vec<NonNull<Block>> =
            (0..10).filter_map(|_| slab::kmalloc(20_000, AllocFlags::NOWAIT)).map(NonNull::cast).collect();
        // SAFETY: fresh blocks with room for the head at their start.
        unsafe { kfree_rcu_bulk(&large) };
        let counted = |stat| caches.iter().filter_map(Cache::raw).map(|raw| raw.stat(stat)).sum::<u64>();
        let through_sheaves = (counted(slab::Stat::FreeRcuSheaf), counted(slab::Stat::FreeRcuSheafFail));
        t.note(format_args!("{given} objects: {through_sheaves:?} through sheaves, and not"));
        for cache in caches {
            end(cache, t.cx)?;
        }
        Ok(())
    }
}
