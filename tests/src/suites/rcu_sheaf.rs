//! Sheaves of objects that wait for a grace period: their states, where they come from and go, how long one that does not get
//! full is kept, and how much a callback does.

use alloc::vec::Vec;
use core::ptr::NonNull;

use arch::{CpuId, cpu};
use kfree_rcu::{RcuPtr, kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;
use rcu::nocb::{deoffload, offload, set_lazy};
use slab::harden::Harden;
use slab::info::CpuSheaves;
use slab::rcu_free::{self, Policy};
use slab::{CacheFlags, Layout, RawCache, Stat, rcu_bound, rcu_return};
use sync::{MaySleep, Rng};

use crate::kfree::{Node, cache, ensure_none_in_use, head, is_whole, node};
use crate::outcome::needs_sheaves;
use crate::stepping::{self, Visit};
use crate::together::{Urgent, soon};
use crate::toggle::{others, spawn};
use crate::{Failure, ensure, ensure_eq, ktest};

/// A cache of nodes for one test, and the capacity of its sheaves.
fn bed(name: &'static str) -> Result<(&'static RawCache, u64), Failure> {
    let cache = cache(name)?;
    needs_sheaves(cache)?;
    Ok((cache, cache.sheaf_capacity() as u64))
}

/// The bound on sheaves that do not get full, for the time of a test.
pub(super) struct Bound(Option<u64>);

impl Bound {
    /// In milliseconds.
    pub(super) fn new(ms: Option<u64>) -> Self {
        let before = rcu_bound::bound();
        rcu_bound::set_bound(ms);
        Self(before)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        rcu_bound::set_bound(self.0);
    }
}

/// Allocates `count` nodes.
fn take(cache: &RawCache, count: u64) -> Result<Vec<NonNull<Node>>, Failure> {
    let nodes: Vec<_> = (0..count).map_while(|_| node(cache)).collect();
    ensure_eq!(nodes.len() as u64, count, "no memory");
    Ok(nodes)
}

/// Gives up `count` fresh nodes in a thread on `cpu`.
fn give_on(cpu: CpuId, cache: &'static RawCache, count: u64, cx: &mut MaySleep) -> Result<(), Failure> {
    spawn(cx, Some(cpu), move |_| {
        for node in take(cache, count)? {
            // SAFETY: allocated above, and nobody else knows it.
            unsafe { kfree_rcu(head(node)) };
        }
        Ok(())
    })?
    .join(cx)
}

/// Destroys the cache of a test, which checks that every object has come back.
fn end(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    kvfree_rcu_barrier(cx);
    ensure_none_in_use(cache, cx)?;
    ensure_eq!(cache.stat(Stat::SheafAlloc), cache.stat(Stat::SheafFree), "sheaves of {}", cache.name());
    // SAFETY: the test is over, and nobody else knows the cache.
    unsafe { slab::flush::destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
}

fn in_rcu_free(cache: &'static RawCache) -> usize {
    cpu::online().iter().filter_map(|cpu| Some(cache.sheaves_on(cpu)?.rcu_free?.size)).sum()
}

/// Whether the sheaves of a CPU are in one of the states that they may be in (S0-1).
fn is_lawful(sheaves: &CpuSheaves) -> bool {
    let capacity = sheaves.main.capacity;
    let spare = sheaves.spare.is_none_or(|spare| capacity != 0 && spare.capacity == capacity);
    let rcu_free = sheaves.rcu_free.is_none_or(|fill| (1..fill.capacity).contains(&fill.size));
    sheaves.main.size <= capacity && spare && rcu_free
}

/// In the midst of `kfree_rcu`, as an NMI: gives an object up, if there is one.
struct GiveOne;

static STEPPED: sync::Once<&'static RawCache> = sync::Once::new();

impl Visit for GiveOne {
    fn visit() {
        let Some(node) = STEPPED.get().and_then(|cache| crate::kfree::node_nolock(cache)) else { return };
        // SAFETY: allocated above, and nobody else knows it.
        unsafe { kfree_rcu::kfree_rcu_nolock(head(node)) };
    }
}

ktest! {
    /// S0-1: whatever is done on a CPU, main is there, and rcu_free is none or neither empty nor full.
    #[tags(race)]
    fn the_sheaves_of_a_cpu_are_in_a_lawful_state_at_any_time(t: &mut Test) {
        let (cache, _) = bed("test_rs_states")?;
        let mut threads = Vec::new();
        for on in cpu::online().iter() {
            let mut rng = Rng::new(t.rng.next_u64());
            threads.push(spawn(t.cx, Some(on), move |cx| {
                let mut held = Vec::new();
                for _ in 0..2_000 {
                    match rng.below(5) {
                        0 | 1 => held.extend(node(cache)),
                        // SAFETY: allocated above, and nobody else knows it.
                        2 | 3 => held.pop().into_iter().for_each(|node| unsafe { kfree_rcu(head(node)) }),
                        // SAFETY: as above.
                        _ => held.pop().into_iter().for_each(|node| unsafe { cache.free(node.cast()) }),
                    }
                    sched::cond_resched(cx);
                }
                // SAFETY: as above.
                held.into_iter().for_each(|node| unsafe { cache.free(node.cast()) });
            })?);
        }
        let mut unlawful = None;
        for _ in 0..200 {
            let seen = cpu::online().iter().filter_map(|cpu| cache.sheaves_on(cpu));
            unlawful = unlawful.or(seen.filter(|sheaves| !is_lawful(sheaves)).last());
            sched::yield_now(t.cx);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        ensure_eq!(unlawful, None);
        end(cache, t.cx)
    }

    /// S0-2: an object of a cache without sheaves goes to the back end, and is counted there.
    fn an_object_of_a_cache_without_sheaves_goes_to_the_back_end(t: &mut Test) {
        let (cache, capacity) = bed("test_rs_entry")?;
        cache.set_capacity(0, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        give_on(cpu::current(), cache, 2 * capacity, t.cx)?;
        ensure_eq!((cache.stat(Stat::FreeRcuSheaf), cache.stat(Stat::FreeRcuSheafFail)), (0, 2 * capacity));
        end(cache, t.cx)
    }

    /// S0-4: whoever finds the sheaf lock taken, because it interrupted the holder, counts a fail, and the object goes
    /// another way.
    #[budget_ms(60_000)]
    fn an_interrupted_holder_of_the_sheaf_lock_is_a_fail_and_no_wait(t: &mut Test) {
        let (cache, _) = bed("test_rs_busy")?;
        let cache = *STEPPED.call_once(|| cache);
        let mut boundaries = 0;
        for run in stepping::runs(&[3]) {
            boundaries += stepping::step::<GiveOne>(run, || {
                for _ in 0..4 {
                    let Some(node) = node(cache) else { continue };
                    // SAFETY: allocated above, and nobody else knows it.
                    unsafe { kfree_rcu(head(node)) };
                }
            });
            kvfree_rcu_barrier(t.cx);
        }
        let (taken, failed) = (cache.stat(Stat::FreeRcuSheaf), cache.stat(Stat::FreeRcuSheafFail));
        t.note(format_args!("{boundaries} boundaries, {taken} objects into sheaves, {failed} fails"));
        ensure!(taken > 0 && failed > 0, "{taken} into sheaves, {failed} fails");
        ensure_none_in_use(cache, t.cx)
    }

    /// S0-5: an empty sheaf comes from the spare, else from the barn, else from memory.
    fn an_empty_sheaf_comes_from_spare_then_barn_then_memory(t: &mut Test) {
        let (cache, capacity) = bed("test_rs_empty")?;
        let here = cpu::current();
        let empties = |cache: &RawCache| cache.by_node().map(|node| node.barn_empty.0).sum::<u32>();
        spawn(t.cx, Some(here), move |_| {
            let made = || cache.stat(Stat::SheafAlloc);
            // One sheaf is main now; its objects are here, and there is no other.
            let mut nodes = take(cache, capacity)?;
            let give = |nodes: &mut Vec<NonNull<Node>>| {
                // SAFETY: allocated here, and nobody else knows it.
                nodes.pop().into_iter().for_each(|node| unsafe { kfree_rcu(head(node)) });
            };
            let before = made();
            give(&mut nodes);
            let made = made() - before;
            // SAFETY: as above.
            nodes.into_iter().for_each(|node| unsafe { cache.free(node.cast()) });
            ensure_eq!(made, 1, "no spare and no barn: a new sheaf");
            Ok(())
        })?
        .join(t.cx)?;
        kvfree_rcu_barrier(t.cx);
        cache.shrink();
        // Two sheaves' worth come in, and go again: main and an empty spare are left.
        spawn(t.cx, Some(here), move |_| {
            let nodes = take(cache, 3 * capacity)?;
            // SAFETY: as above.
            nodes.into_iter().for_each(|node| unsafe { cache.free(node.cast()) });
            let nodes = take(cache, 2 * capacity)?;
            let spare = cache.sheaves_on(here).and_then(|sheaves| sheaves.spare);
            let (made, kept) = (cache.stat(Stat::SheafAlloc), empties(cache));
            for node in nodes {
                // SAFETY: as above.
                unsafe { kfree_rcu(head(node)) };
            }
            let Some(spare) = spare.filter(|spare| spare.size == 0) else { return Ok(()) };
            ensure_eq!(spare.capacity as u64, capacity);
            // The first of the two comes from the spare; the second from the barn if that has one.
            let more = cache.stat(Stat::SheafAlloc) - made;
            ensure_eq!(more, u64::from(kept == 0), "sheaves made although spare and barn ({kept}) have some");
            Ok(())
        })?
        .join(t.cx)?;
        end(cache, t.cx)
    }

    /// S0-6, S0-10: one callback for each full sheaf; the barn takes as many as its limit says and no more, whichever CPUs they
    /// come from at once. The rest of the objects goes to slabs.
    #[tags(race)]
    fn a_barn_with_a_limit_set_takes_no_more_sheaves_from_rcu(t: &mut Test) {
        const LIMIT: u32 = 3;
        const SHEAVES: u64 = 12;
        let (cache, capacity) = bed("test_rs_limit")?;
        cache.set_barn_limits(LIMIT, LIMIT, t.cx);
        let mut all = 0;
        for on in cpu::online().iter() {
            give_on(on, cache, SHEAVES * capacity, t.cx)?;
            all += SHEAVES * capacity;
        }
        rcu_return::wait(t.cx);
        ensure_eq!(cache.stat(Stat::FreeRcuSheaf) + cache.stat(Stat::FreeRcuSheafFail), all);
        let over = cache.by_node().map(|node| node.barn_full.0).find(|&full| full > LIMIT);
        ensure_eq!(over, None, "full sheaves in a barn");
        let refused = cache.stat(Stat::BarnPutFail);
        ensure!(refused > 0, "nothing was refused");
        ensure!(cache.stat(Stat::SheafFlush) >= refused * capacity, "what was refused went to slabs");
        end(cache, t.cx)
    }

    /// S0-17: sheaves that come back many at once are kept, above the limit, while they are wanted, and their objects used again
    /// without a look at a slab; afterwards the barn comes down to its limit by itself.
    fn what_is_wanted_again_is_kept_above_the_limit_and_only_that(t: &mut Test) {
        const ROUNDS: u64 = 12;
        const SHEAVES: u64 = 40;
        let _bound = Bound::new(Some(20));
        let (cache, capacity) = bed("test_rs_demand")?;
        let here = cpu::current();
        for _ in 0..ROUNDS {
            give_on(here, cache, SHEAVES * capacity, t.cx)?;
            rcu_return::wait(t.cx);
        }
        let (kept, refused) = (cache.stat(Stat::BarnPut), cache.stat(Stat::BarnPutFail));
        t.note(format_args!("{kept} sheaves kept, {refused} refused"));
        ensure!(kept > 2 * refused, "{kept} sheaves kept, {refused} refused");
        let over = || cache.by_node().any(|node| node.barn_full.0 > node.barn_full.1);
        ensure!(soon(t.cx, || !over()), "the barn stays over its limit");
        end(cache, t.cx)
    }

    /// S0-11: a sheaf that is submitted before it is full never reaches a barn.
    fn a_sheaf_that_is_not_full_never_reaches_a_barn(t: &mut Test) {
        let _bound = Bound::new(None);
        let (cache, capacity) = bed("test_rs_partial")?;
        give_on(cpu::current(), cache, capacity - 1, t.cx)?;
        ensure_eq!(in_rcu_free(cache) as u64, capacity - 1);
        kvfree_rcu_barrier(t.cx);
        let counts = [Stat::BarnPut, Stat::BarnPutFail, Stat::SheafFlush].map(|stat| cache.stat(stat));
        ensure_eq!(counts, [0, 0, capacity - 1]);
        end(cache, t.cx)
    }

    /// S0-9: what is done to each object when it is freed is done after the grace period, once an object.
    fn an_object_that_is_wiped_when_freed_is_whole_till_then(t: &mut Test) {
        let layout = Layout::new("test_rs_wiped", size_of::<Node>()).align(align_of::<Node>());
        let layout = layout.flags(CacheFlags::NO_MERGE).harden(Harden::ZERO_ON_FREE);
        let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        ensure_eq!(cache.sheaf_capacity(), 0, "objects that are looked at one by one have no sheaves");
        let nodes = take(cache, 100)?;
        {
            let reader = rcu::read_lock(&*t.cx);
            // SAFETY: allocated above, and nobody else knows them.
            nodes.iter().for_each(|&node| unsafe { kfree_rcu(head(node)) });
            ensure!(nodes.iter().all(|&node| is_whole(node)), "wiped under a reader");
            drop(reader);
        }
        kvfree_rcu_barrier(t.cx);
        ensure_none_in_use(cache, t.cx)?;
        // SAFETY: nobody else knows the cache.
        unsafe { slab::flush::destroy(cache, t.cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
    }

    /// S0-15: the counters agree with each other, by CPU and in the sum, and can be set back.
    fn the_counters_of_sheaves_agree_and_can_be_set_back(t: &mut Test) {
        const SHEAVES: u64 = 7;
        let _bound = Bound::new(None);
        let (cache, capacity) = bed("test_rs_counters")?;
        let here = cpu::current();
        give_on(here, cache, SHEAVES * capacity + 1, t.cx)?;
        kvfree_rcu_barrier(t.cx);
        let [given, failed] = [Stat::FreeRcuSheaf, Stat::FreeRcuSheafFail].map(|stat| cache.stat_on(here, stat));
        ensure_eq!(given + failed, SHEAVES * capacity + 1, "objects, on this CPU");
        ensure_eq!(given, cache.stat(Stat::FreeRcuSheaf), "objects, in all");
        ensure_eq!(Stat::FreeRcuSheaf.name(), "free_rcu_sheaf");
        ensure_eq!(Stat::FreeRcuSheafFail.name(), "free_rcu_sheaf_fail");
        let [put, refused, flushed] = [Stat::BarnPut, Stat::BarnPutFail, Stat::SheafFlush].map(|stat| cache.stat(stat));
        ensure_eq!(put + refused, given / capacity, "sheaves that came back full");
        ensure_eq!(flushed, given % capacity + refused * capacity, "objects of the others");
        cache.clear_stats(&sched::keep_cpus(t.cx));
        ensure_eq!([Stat::FreeRcuSheaf, Stat::BarnPut, Stat::SheafFlush].map(|stat| cache.stat(stat)), [0; 3]);
        kvfree_rcu_barrier(t.cx);
        ensure_none_in_use(cache, t.cx)?;
        // SAFETY: nobody else knows the cache.
        unsafe { slab::flush::destroy(cache, t.cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
    }

    /// S0-18: a sheaf that does not get full goes to RCU when its time is over, on a CPU that works and on one that idles; and
    /// without a bound it stays.
    #[budget_ms(60_000)]
    fn a_sheaf_that_does_not_get_full_goes_when_its_time_is_over(t: &mut Test) {
        const MS: u64 = 15;
        let (cache, _) = bed("test_rs_bound")?;
        for on in cpu::online().iter() {
            let bound = Bound::new(None);
            give_on(on, cache, 3, t.cx)?;
            sched::sleep_ns(t.cx, 3 * MS * 1_000_000);
            ensure_eq!(in_rcu_free(cache), 3, "CPU {on}: submitted without a bound");
            drop(bound);
            // What is there already gets the new bound, too.
            let before = rcu_bound::submitted();
            let _bound = Bound::new(Some(MS));
            ensure!(soon(t.cx, || in_rcu_free(cache) == 0), "CPU {on}: the sheaf is kept");
            ensure!(rcu_bound::submitted() > before);
            give_on(on, cache, 2, t.cx)?;
            ensure!(soon(t.cx, || in_rcu_free(cache) == 0), "CPU {on}: the next sheaf is kept");
            rcu_return::wait(t.cx);
            ensure_none_in_use(cache, t.cx)?;
        }
        end(cache, t.cx)
    }

    /// S0-18: a CPU that holds nothing has no time running.
    #[budget_ms(60_000)]
    fn no_time_runs_on_a_cpu_that_holds_nothing(t: &mut Test) {
        let _bound = Bound::new(Some(10));
        let (cache, _) = bed("test_rs_idle")?;
        let on = *others(t.cx)?.last().expect("there is one");
        give_on(on, cache, 1, t.cx)?;
        let at_rest = || in_rcu_free(cache) == 0 && !rcu_bound::is_armed_on(on);
        ensure!(soon(t.cx, at_rest), "{} objects held, armed: {}", in_rcu_free(cache), rcu_bound::is_armed_on(on));
        end(cache, t.cx)
    }

    /// S0-20: on a CPU with lazy callbacks a full sheaf waits with them, or hurries, as the switch says.
    #[budget_ms(60_000)]
    fn a_sheaf_is_lazy_or_hurries_as_the_switch_says(t: &mut Test) {
        let on = *others(t.cx)?.last().expect("there is one");
        let (cache, capacity) = bed("test_rs_lazy")?;
        let back = || cache.stat(Stat::BarnPut) + cache.stat(Stat::BarnPutFail);
        // Long enough that nothing here can be due by itself before the test's time is over.
        set_lazy(Some(100_000));
        offload(on, t.cx).map_err(|error| crate::__failed!("CPU {on}: {error}"))?;
        give_on(on, cache, capacity, t.cx)?;
        let lazy = (rcu::callback_stats().lazy, back());
        rcu_free::set_policy(Policy::Hurry);
        let given = give_on(on, cache, capacity, t.cx);
        let hurried = soon(t.cx, || back() >= 1);
        rcu_free::set_policy(Policy::Lazy);
        set_lazy(None);
        deoffload(on, t.cx).map_err(|error| crate::__failed!("CPU {on}: {error}"))?;
        given?;
        ensure!(lazy.0 >= 1 && lazy.1 == 0, "{} lazy callbacks, {} sheaves back", lazy.0, lazy.1);
        ensure!(hurried, "no sheaf came back");
        end(cache, t.cx)
    }

    /// S0-17: where others run a CPU's callbacks, each sheaf still comes back by one of them, and whole, and is allocated from:
    /// no object sees its slab again.
    #[budget_ms(60_000)]
    fn sheaves_serve_a_cpu_whose_callbacks_run_elsewhere(t: &mut Test) {
        const ROUNDS: u64 = 20;
        let on = *others(t.cx)?.last().expect("there is one");
        let _bound = Bound::new(None);
        let (cache, capacity) = bed("test_rs_elsewhere")?;
        let stats = || [Stat::AllocSlowpath, Stat::FreeSlowpath, Stat::FreeRcuSheaf, Stat::FreeRcuSheafFail].map(|s| cache.stat(s));
        let back = || cache.stat(Stat::BarnPut) + cache.stat(Stat::BarnPutFail);
        offload(on, t.cx).map_err(|error| crate::__failed!("CPU {on}: {error}"))?;
        let mut given = Ok(());
        let mut warm = stats();
        for round in 0..ROUNDS {
            if round == 2 {
                warm = stats();
            }
            given = given.and(give_on(on, cache, 3 * capacity, t.cx));
            rcu::rcu_barrier(t.cx);
        }
        let seen = stats();
        deoffload(on, t.cx).map_err(|error| crate::__failed!("CPU {on}: {error}"))?;
        given?;
        ensure_eq!(seen[2] + seen[3], 3 * capacity * ROUNDS);
        ensure_eq!(back(), seen[2] / capacity, "callbacks");
        if seen[3] == 0 {
            ensure_eq!([seen[0] - warm[0], seen[1] - warm[1]], [0, 0], "objects from slabs, and to slabs");
        }
        end(cache, t.cx)
    }

    /// S0-21, S5-10: a callback leaves a large sheaf that no barn wants to a worker, and a barrier waits for that.
    fn a_large_sheaf_is_left_to_a_worker_and_waited_for(t: &mut Test) {
        const ROUNDS: u64 = 10;
        // The worker does not get the CPU before this thread has looked, unless the barrier waits for it.
        let _urgent = Urgent::new();
        let (cache, _) = bed("test_rs_large")?;
        let capacity = cache.set_capacity(20 * rcu_return::MOST, t.cx).map_err(|error| crate::__failed!("{error}"))? as u64;
        cache.set_barn_limits(0, 0, t.cx);
        for _ in 0..ROUNDS {
            let counts = || [cache.stat(Stat::SheafFlush), rcu_return::left_to_worker(), cache.stat(Stat::FreeRcuSheafFail)];
            let before = counts();
            give_on(cpu::current(), cache, capacity, t.cx)?;
            kvfree_rcu_barrier(t.cx);
            let [flushed, left, failed] = counts();
            if failed == before[2] {
                ensure_eq!((flushed - before[0], left - before[1]), (capacity, 1), "objects flushed, sheaves left to the worker");
            }
            cache.shrink();
            ensure_eq!(cache.info().active_objs, 0, "a barrier has not waited for the worker");
        }
        end(cache, t.cx)
    }

    /// S1-2: the head lies anywhere in an object, of whatever size: the object is found, and comes back whole.
    fn an_object_is_found_from_an_address_anywhere_in_it(t: &mut Test) {
        for size in [8, 24, 64, 72, 200, 448, 1024, 1500, 4096, 5000, 8192] {
            let layout = Layout::new("test_rs_inside", size).flags(CacheFlags::NO_MERGE);
            let cache = slab::create(layout).map_err(|error| crate::__failed!("{size}: {error}"))?;
            for offset in (0..size.min(4096)).step_by(size.div_ceil(16).next_multiple_of(8)) {
                let object = cache.alloc(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory"))?;
                // SAFETY: inside the object, which nobody else knows, with room for a head.
                unsafe { kfree_rcu(object.byte_add(offset).cast::<RcuPtr>()) };
            }
            kvfree_rcu_barrier(t.cx);
            ensure_none_in_use(cache, t.cx)?;
            // SAFETY: nobody else knows the cache.
            unsafe { slab::flush::destroy(cache, t.cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))?;
        }
        Ok(())
    }
}
