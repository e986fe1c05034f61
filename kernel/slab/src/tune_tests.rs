//! Tuning under load, on a hosted machine whose CPUs are threads.

use std::string::ToString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::vec::Vec;

use arch::hosted::in_own_process;
use mm::AllocFlags;
use sync::{Rng, smp};

use super::*;
use crate::debug::DebugFlags;
use crate::test_machine::{machine, spawn};
use crate::{CreateError, Layout, create, debug, kfree_nolock, rcu_free};

const WORDS: usize = 16;

fn cache(name: &'static str) -> &'static RawCache {
    create(Layout::new(name, WORDS * 8).flags(CacheFlags::NO_MERGE)).expect("a cache")
}

/// Whether every sheaf in every barn and on every CPU has the capacity that the cache has.
fn every_sheaf_is_current(cache: &'static RawCache) -> bool {
    let on = |cpu| loop {
        let current = smp::run_on(cpu, || {
            let held = cache.sheaves()?;
            let main = Some(held.main).filter(|main| !main.is_bootstrap());
            Some(
                [main, held.spare, held.rcu_free, held.remote]
                    .into_iter()
                    .flatten()
                    .all(|sheaf| cache.is_current(sheaf)),
            )
        });
        match current {
            Some(Some(current)) => return current,
            Some(None) => arch::irq::relax(),
            None => return true,
        }
    };
    cache.nodes().all(|node| node.barn.is_sound()) && arch::cpu::online().iter().all(on)
}

/// Objects of a thread, each full of a pattern of its own.
struct Held {
    cache: &'static RawCache,
    objects: Vec<(core::ptr::NonNull<u64>, u64)>,
}

impl Held {
    fn take(&mut self, rng: &mut Rng) {
        let Some(object) = self.cache.alloc(AllocFlags::NOWAIT) else { return };
        let (object, pattern) = (object.cast::<u64>(), rng.next_u64());
        // SAFETY: the object has WORDS words and is ours.
        (0..WORDS).for_each(|word| unsafe { object.add(word).write(pattern ^ word as u64) });
        self.objects.push((object, pattern));
    }

    fn give(&mut self, rng: &mut Rng) {
        let (object, pattern) = self.objects.swap_remove(rng.index(self.objects.len()));
        for word in 0..WORDS {
            // SAFETY: the object has WORDS words and is ours.
            assert_eq!(unsafe { object.add(word).read() }, pattern ^ word as u64, "somebody else wrote to {object:p}");
        }
        // SAFETY: given up, and nobody else's; the room that kfree_rcu needs is not used by rcu_free sheaves.
        unsafe {
            match rng.below(4) {
                0 => kfree_nolock(object.cast()),
                1 if debug::may_wait(object.cast()) && rcu_free::free(object.cast(), crate::Spin::May) => {}
                1 => {
                    debug::wait_over(object.cast());
                    self.cache.free(object.cast());
                }
                _ => self.cache.free(object.cast()),
            }
        }
    }

    fn turn(&mut self, rng: &mut Rng) {
        // Bursts, so that whole sheaves go to the barn and come back.
        let aim = rng.index(800);
        while self.objects.len() < aim {
            self.take(rng);
        }
        while self.objects.len() > aim {
            self.give(rng);
        }
    }
}

/// Runs `tune` `rounds` times while every CPU allocates and frees; then every page of the cache must be back.
pub(crate) fn under_load(
    rounds: usize,
    cpus: usize,
    nodes: usize,
    tune: impl Fn(&'static RawCache, &mut Rng, &mut MaySleep) + Send + 'static,
) {
    machine(cpus, nodes, move |cx| {
        let cache = cache("tuned");
        let over = Arc::new(AtomicBool::new(false));
        // Does not wait for its turn among the load.
        sched::set_prio(sched::current(), sched::Prio::HIGH);
        let load: Vec<_> = (0..cpus)
            .map(|cpu| {
                let (over, mut rng) = (over.clone(), Rng::new(cpu as u64 + 1));
                spawn(cx, Some(cpu), move |cx| {
                    let mut held = Held { cache, objects: Vec::with_capacity(1000) };
                    let mut turns = 0;
                    while !over.load(Relaxed) {
                        held.turn(&mut rng);
                        turns += 1;
                        sched::cond_resched(cx);
                    }
                    while !held.objects.is_empty() {
                        held.give(&mut rng);
                    }
                    turns
                })
            })
            .collect();
        let mut rng = Rng::new(0x7e57);
        for _ in 0..rounds {
            tune(cache, &mut rng, cx);
            sched::sleep_ns(cx, rng.below(2_000_000));
        }
        over.store(true, Relaxed);
        let turns: Vec<u64> = load.into_iter().map(|thread| thread.join(cx)).collect();
        assert!(turns.iter().all(|&turns| turns > 1), "too little happened: {turns:?}");
        crate::deferred::flush(&keep_cpus(cx), cx);
        // SAFETY: the load has ended, and nobody else knows the cache.
        assert_eq!(unsafe { crate::flush::destroy(cache, cx) }, Ok(()));
    });
}

#[test]
fn no_sheaf_of_the_old_capacity_is_in_use_after_a_change_under_load() {
    in_own_process(|| {
        under_load(40, 3, 2, |cache, rng, cx| {
            // Without empty sheaves in barns each that is needed is made on the way, with the lock dropped.
            if rng.chance(1, 2) {
                cache.set_barn_limits(0, 0, cx)
            } else {
                cache.reset_barn_limits(cx)
            }
            let asked = [0, 1, 4, 28, 32, 60, 61, 124, 508, 1000][rng.index(10)];
            let capacity = cache.set_capacity(asked, cx).expect("in range");
            assert!(capacity >= asked && capacity == cache.sheaf_capacity());
            assert!(every_sheaf_is_current(cache), "a sheaf of another capacity than {capacity}");
            sched::sleep_ns(cx, rng.below(2_000_000));
            assert!(
                every_sheaf_is_current(cache),
                "a sheaf of another capacity than {capacity} came in after the change"
            );
        })
    });
}

#[test]
fn barns_keep_to_limits_that_change_under_load() {
    const CPUS: u32 = 3;
    in_own_process(|| {
        under_load(40, CPUS as usize, 1, |cache, rng, cx| {
            let (full, empty) = (rng.below(20) as u32, rng.below(20) as u32);
            cache.set_barn_limits(full, empty, cx);
            assert!(cache.nodes().all(|node| node.barn.is_sound()));
            sched::sleep_ns(cx, rng.below(2_000_000));
            for info in cache.by_node() {
                let (node, (nr_full, _), (nr_empty, _)) = (info.node, info.barn_full, info.barn_empty);
                // Empty sheaves come in by exchange for full ones, whatever the limit: as many more as there were full ones.
                assert!(nr_full <= full + 2 * CPUS, "node {node}: {nr_full} full sheaves, limit {full}");
                assert!(
                    nr_empty <= empty.max(full) + 40 + 2 * CPUS,
                    "node {node}: {nr_empty} empty sheaves, limit {empty}"
                );
            }
        })
    });
}

#[test]
fn limits_of_barns_follow_the_cpus_of_their_node_unless_they_were_set() {
    in_own_process(|| {
        machine(6, 1, |cx| {
            let limits = |cache: &RawCache| cache.nodes().map(|node| node.barn.limits()).next();
            let (off, on) =
                (|cpu, cx: &mut _| sched::cpu_off(cpu, cx).unwrap(), |cpu, cx: &mut _| sched::cpu_on(cpu, cx).unwrap());
            let (early, last, other) = (cache("early"), arch::CpuId::new(5), arch::CpuId::new(4));
            assert_eq!(limits(early), Some((14, 14)), "two sheaves a CPU, and two on their way");
            off(last, cx);
            assert_eq!(limits(early), Some((12, 12)));
            assert_eq!(limits(cache("late")), Some((12, 12)));
            early.set_barn_limits(7, 3, cx);
            off(other, cx);
            assert_eq!(limits(early), Some((7, 3)), "they were set");
            assert_eq!(limits(crate::registry::find("late").expect("made above")), Some((10, 10)));
            on(last, cx);
            on(other, cx);
            assert_eq!(limits(early), Some((7, 3)), "they were set");
            early.reset_barn_limits(cx);
            assert_eq!(limits(early), Some((14, 14)));
        });
    });
}

#[test]
fn a_capacity_is_rounded_and_what_no_sheaf_can_hold_is_refused() {
    in_own_process(|| {
        machine(1, 1, |cx| {
            let cache = cache("rounded");
            assert_eq!(cache.set_capacity(32, cx), Ok(60));
            assert_eq!(cache.set_capacity(60, cx), Ok(60));
            assert_eq!(cache.set_capacity(MAX_CAPACITY, cx), Ok(MAX_CAPACITY));
            assert_eq!(cache.set_capacity(MAX_CAPACITY + 1, cx), Err(TuneError::Capacity(MAX_CAPACITY + 1)));
            assert_eq!(cache.sheaf_capacity(), MAX_CAPACITY);
            let sheaves = crate::registry::find("sheaf-64").expect("made at boot");
            assert_eq!(sheaves.set_capacity(4, cx), Err(TuneError::NoSheaves("sheaf-64")));
            assert_eq!(sheaves.set_capacity(0, cx), Ok(0));
            assert_eq!(cache.set_remote_node_defrag_ratio(1025), Err(TuneError::DefragRatio(1025)));
            assert_eq!(cache.set_remote_node_defrag_ratio(1024), Ok(()));
        });
    });
}

#[test]
fn a_creator_may_ask_for_more_and_boot_and_debug_caches_have_no_sheaves() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let capacity = |layout: Layout| create(layout.flags(CacheFlags::NO_MERGE)).map(RawCache::sheaf_capacity);
            assert_eq!(capacity(Layout::new("default", 64)), Ok(60));
            assert_eq!(capacity(Layout::new("less", 64).capacity(10)), Ok(60));
            assert_eq!(capacity(Layout::new("more", 64).capacity(61)), Ok(124));
            assert_eq!(capacity(Layout::new("large", 4096).capacity(32)), Ok(60));
            let too_many = MAX_CAPACITY + 1;
            assert_eq!(capacity(Layout::new("most", 64).capacity(too_many)), Err(CreateError::BadCapacity(too_many)));
            assert_eq!(capacity(Layout::new("checked", 64).debug(DebugFlags::POISON)), Ok(0));
            let boot = ["sheaf-64", "sheaf-4k", "kmem_cache", "kmem_cache_node"].map(crate::registry::find);
            assert!(boot.iter().all(|cache| cache.expect("made at boot").sheaf_capacity() == 0));
        });
    });
}

#[test]
fn an_error_names_what_was_asked_for_and_what_is_allowed() {
    assert_eq!(TuneError::Capacity(70_000).to_string(), "sheaf capacity 70000: 1 to 65532, or 0 for no sheaves");
    assert_eq!(TuneError::NoSheaves("sheaf-64").to_string(), "sheaf-64 cannot have sheaves: only capacity 0");
    assert_eq!(TuneError::DefragRatio(1025).to_string(), "remote_node_defrag_ratio 1025: 0 to 1024");
}
