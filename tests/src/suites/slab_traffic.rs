//! What sheaves cost and save over time, in counts: locks for objects that change hands, and slabs for objects that come and
//! go at random.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arch::cpu;
use mm::AllocFlags;
use sched::Prio;
use slab::{CacheFlags, Layout, RawCache, Stat};
use sync::{MaySleep, Rng};

use crate::outcome::needs_sheaves;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Bytes of the objects.
const SIZE: usize = 64;

fn cache(name: &'static str, flags: CacheFlags) -> Result<&'static RawCache, Failure> {
    slab::create(Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE | flags))
        .map_err(|error| crate::__failed!("{name}: {error}"))
}

fn destroy(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: its test is over, and nobody else knew it.
    unsafe { slab::flush::destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
}

/// Allocates `count` objects here and frees them on another CPU of this node, through a ring of places.
fn pass_on(cache: &'static RawCache, count: usize, cx: &mut MaySleep) -> Result<(), Failure> {
    const RING: usize = 64;
    let here = cpu::current();
    let Some(there) = cpu::online().iter().find(|&other| other != here && cpu::node_of(other) == cpu::node_of(here))
    else {
        skip!("needs two CPUs on one node")
    };
    let ring: Arc<Vec<AtomicPtr<u8>>> = Arc::new((0..RING).map(|_| AtomicPtr::new(ptr::null_mut())).collect());
    let theirs = ring.clone();
    let consumer = sched::spawn(cx, "consumer", Prio::NORMAL, Some(there), move |cx| {
        for turn in 0..count {
            // Acquire: pairs with the release below, so the object is as its giver left it.
            let object = loop {
                match NonNull::new(theirs[turn % RING].swap(ptr::null_mut(), Acquire)) {
                    Some(object) => break object,
                    None => sched::yield_now(cx),
                }
            };
            // SAFETY: the producer gave it away.
            unsafe { cache.free(object) };
        }
    });
    let producer = sched::spawn(cx, "producer", Prio::NORMAL, Some(here), move |cx| {
        for turn in 0..count {
            let place = &ring[turn % RING];
            while !place.load(Relaxed).is_null() {
                sched::yield_now(cx);
            }
            let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { return Err(crate::__failed!("no memory")) };
            // Release: pairs with the acquire above.
            place.store(object.as_ptr(), Release);
        }
        Ok(())
    });
    let (producer, consumer) = (producer.map_err(|error| crate::__failed!("{error}"))?, consumer);
    let produced = producer.join(cx);
    consumer.map_err(|error| crate::__failed!("{error}"))?.join(cx);
    produced
}

/// Slabs of a cache after each round of a random load: how many, how many of them partial, and how many objects live.
struct Round {
    slabs: u64,
    partial: u64,
    live: u64,
}

/// Rounds in which the number of live objects rises and falls, those that go being picked at random.
fn random_rounds(cache: &'static RawCache, rng: &mut Rng) -> Result<Vec<Round>, Failure> {
    const ROUNDS: usize = 24;
    const MOST: usize = 6_000;
    let mut live: Vec<NonNull<u8>> = Vec::with_capacity(MOST);
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        // High and low water in turn, so that slabs are left with holes.
        let target = if round % 2 == 0 { MOST } else { MOST / 4 };
        for _ in 0..2 * MOST {
            let grow = live.len() < target;
            if live.is_empty() || (live.len() < MOST && rng.below(100) < if grow { 75 } else { 25 }) {
                live.push(cache.alloc(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory"))?);
            } else {
                let object = live.swap_remove(rng.index(live.len()));
                // SAFETY: allocated above, given up here.
                unsafe { cache.free(object) };
            }
        }
        let slabs = cache.info().num_slabs;
        rounds.push(Round { slabs, partial: cache.nr_partial() as u64, live: live.len() as u64 });
    }
    // SAFETY: allocated above, each given up once.
    live.into_iter().for_each(|object| unsafe { cache.free(object) });
    Ok(rounds)
}

ktest! {
    /// A producer and a consumer on two CPUs of a node share a barn: whole sheaves go through it, so its lock is taken at
    /// most once for as many operations as a sheaf holds objects, but for one at either end, and in the long run no object sees a slab.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn producer_and_consumer_take_the_barn_lock_once_a_sheaf(t: &mut Test) {
        const COUNT: usize = 20_000;
        let cache = cache("test_pass_on", CacheFlags::empty())?;
        needs_sheaves(cache)?;
        let runner = |cx: &mut MaySleep| pass_on(cache, COUNT, cx);
        runner(t.cx)?;
        let (before, flushed) = (cache.lock_counts(), cache.stat(Stat::SheafFlush));
        runner(t.cx)?;
        let after = cache.lock_counts();
        let (barn, list) = (after.barn - before.barn, after.list - before.list);
        let (operations, capacity) = (2 * COUNT as u64, cache.sheaf_capacity() as u64);
        t.figure(format_args!(
            r#"{{"traffic":"producer_consumer","operations":{operations},"capacity":{capacity},"barn_locks":{barn},"list_locks":{list}}}"#
        ));
        ensure!(barn <= operations / capacity + 2, "{barn} barn locks for {operations} operations of sheaves of {capacity}");
        ensure_eq!(cache.stat(Stat::SheafFlush), flushed, "objects went to slabs in the second run");
        destroy(cache, t.cx)
    }

    /// Under a load that rises and falls at random, sheaves hold back a bounded number of objects, and the slabs they leave
    /// behind are not more fragmented than by that number (S5-13).
    #[budget_ms(60_000)]
    fn sheaves_fragment_slabs_by_no_more_than_they_hold(t: &mut Test) {
        let seed = t.rng.next_u64();
        let mut all = Vec::new();
        for (name, flags) in [("test_frag_on", CacheFlags::empty()), ("test_frag_off", CacheFlags::NO_SHEAVES)] {
            let cache = cache(name, flags)?;
            if !flags.contains(CacheFlags::NO_SHEAVES) {
                needs_sheaves(cache)?;
            }
            let on = cpu::current();
            let load = move |_: &mut MaySleep| random_rounds(cache, &mut Rng::new(seed));
            let thread = sched::spawn(t.cx, "load", Prio::NORMAL, Some(on), load);
            let rounds = thread.map_err(|error| crate::__failed!("{error}"))?.join(t.cx)?;
            let per_slab = cache.info().objperslab as u64;
            for (index, round) in rounds.iter().enumerate() {
                let free = round.slabs * per_slab - round.live;
                t.figure(format_args!(
                    r#"{{"traffic":"{name}","round":{index},"live":{},"slabs":{},"partial":{},"free_percent":{}}}"#,
                    round.live, round.slabs, round.partial, free * 100 / (round.slabs * per_slab)
                ));
            }
            all.push((rounds, per_slab, cache.sheaf_capacity() as u64));
            destroy(cache, t.cx)?;
        }
        let [(on, per_slab, capacity), (off, ..)] = &all[..] else { unreachable!("two runs") };
        // Main, spare and what the barn keeps; beyond that it is pages that count, and a slab may be held by one object.
        let held = (2 + 10) * capacity;
        for (index, (on, off)) in on.iter().zip(off).enumerate() {
            ensure_eq!(on.live, off.live, "the same load");
            ensure!(on.slabs <= off.slabs + held.div_ceil(*per_slab) * 3,
                "round {index}: {} slabs with sheaves, {} without", on.slabs, off.slabs);
        }
        Ok(())
    }
}
