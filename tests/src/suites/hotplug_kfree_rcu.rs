//! `kfree_rcu` while CPUs go and come: its barrier covers what was given on a CPU that has gone since.

use core::ptr::NonNull;

use kfree_rcu::{RcuPtr, bulk, kfree_rcu, kfree_rcu_mightsleep, kfree_rcu_nolock, kvfree_rcu_barrier};
use mm::AllocFlags;
use slab::{CacheFlags, Layout, RawCache};
use sync::{IrqGuard, MaySleep, Rng};

use crate::toggle::{Load, off, on, others, spawn, toggle_all};
use crate::{Failure, ensure, ensure_eq, ktest};

/// Bytes of a block that no sheaf takes.
const LARGE: usize = 40_000;

fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, 96).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

/// Gives up a fresh object of `cache` in one of all the ways.
fn give_one_up(cache: &RawCache, way: u64, cx: &mut MaySleep) {
    let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { return };
    let head = object.cast::<RcuPtr>();
    if way == 0 {
        // SAFETY: allocated above, and nobody else's.
        unsafe { kfree_rcu_mightsleep(object, cx) };
        return;
    }
    let _irqs = (way == 1).then(|| IrqGuard::new(cx));
    if way <= 2 {
        // SAFETY: as above; it begins with room for a head.
        unsafe { kfree_rcu_nolock(head) };
    } else {
        // SAFETY: as above.
        unsafe { kfree_rcu(head) };
    }
}

/// Gives up something that waits in the back end.
fn give_large_up(vmalloc: bool, cx: &mut MaySleep) {
    let memory: Option<NonNull<u8>> = if vmalloc {
        mm::vmalloc(LARGE, cx).ok()
    } else {
        slab::kmalloc(LARGE, AllocFlags::NOWAIT | AllocFlags::NOWARN)
    };
    // SAFETY: allocated above, and nobody else's; it begins with room for a head.
    memory.into_iter().for_each(|memory| unsafe { kfree_rcu(memory.cast::<RcuPtr>()) });
}

/// A barrier has been waited for: no object of `cache` is in use.
fn ensure_none_in_use(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    // What the barrier freed is in sheaves and barns. A CPU that goes meanwhile has flushed its own before the guard is ours.
    let _cpus = sched::keep_cpus(cx);
    cache.shrink();
    ensure_eq!(cache.info().active_objs, 0, "objects of {} were not waited for", cache.name());
    Ok(())
}

ktest! {
    /// Partly filled sheaves, deferred lists and the back end's pages of a CPU that goes: one barrier later all is free.
    fn the_barrier_covers_what_was_given_on_a_cpu_that_has_gone(t: &mut Test) {
        let cache = cache("test_hp_barrier")?;
        for cpu in others(t.cx)? {
            for count in [1, 7, 200] {
                spawn(t.cx, Some(cpu), move |cx| {
                    for at in 0..count {
                        give_one_up(cache, at % 4, cx);
                        give_large_up(at % 2 == 0, cx);
                    }
                })?
                .join(t.cx);
                off(cpu, t.cx)?;
                kvfree_rcu_barrier(t.cx);
                let pending = bulk::pending();
                let none_in_use = ensure_none_in_use(cache, t.cx);
                on(cpu, t.cx)?;
                none_in_use?;
                ensure_eq!(pending, 0, "objects wait in the back end");
            }
        }
        // SAFETY: nobody uses the cache any more.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }

    /// Threads that give objects up in all ways, wherever they are, and then wait for their own by a barrier.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn barriers_cover_all_objects_while_cpus_go_and_come(t: &mut Test) {
        let cpus = others(t.cx)?;
        let mut load = Load::new();
        for name in ["test_hp_give_1", "test_hp_give_2", "test_hp_give_3"] {
            let cache = cache(name)?;
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                for _ in 0..rng.below(200) {
                    give_one_up(cache, rng.below(64), cx);
                    if rng.chance(1, 8) {
                        give_large_up(rng.chance(1, 2), cx);
                        sched::yield_now(cx);
                    }
                }
                kvfree_rcu_barrier(cx);
                ensure_none_in_use(cache, cx)
            })?;
        }
        let result = toggle_all(&cpus, &mut t.rng, t.cx);
        let turns = load.end(t.cx)?;
        result?;
        kvfree_rcu_barrier(t.cx);
        t.note(format_args!("barriers: {turns:?}"));
        ensure_eq!(bulk::pending(), 0, "objects wait in the back end");
        ensure!(turns.iter().all(|&turns| turns > 5), "too little happened: {turns:?}");
        Ok(())
    }
}
