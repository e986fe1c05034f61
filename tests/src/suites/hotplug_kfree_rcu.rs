//! `kfree_rcu` while CPUs go and come: its barrier covers what was given on a CPU that has gone since.

use kfree_rcu::{backend, kvfree_rcu_barrier};
use sync::Rng;

use crate::kfree::{Way, cache, ensure_none_in_use, give_up_large, give_up_many, node};
use crate::toggle::{Load, off, on, others, spawn, toggle_all};
use crate::{ensure, ensure_eq, ktest};

/// Bytes of a block that no sheaf takes.
const LARGE: usize = 40_000;

ktest! {
    /// Partly filled sheaves, deferred lists and the back end's pages of a CPU that goes: one barrier later all is free.
    fn the_barrier_covers_what_was_given_on_a_cpu_that_has_gone(t: &mut Test) {
        let cache = cache("test_hp_barrier")?;
        for cpu in others(t.cx)? {
            for count in [1, 7, 200] {
                spawn(t.cx, Some(cpu), move |cx| {
                    give_up_many(cache, count, cx);
                    (0..count).for_each(|at| _ = give_up_large(LARGE, at % 2 == 0, cx));
                })?
                .join(t.cx);
                off(cpu, t.cx)?;
                kvfree_rcu_barrier(t.cx);
                let pending = backend::waiting().objects;
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
                    // SAFETY: allocated here, and nobody else knows it.
                    node(cache).into_iter().for_each(|node| unsafe { Way::any(rng).give_up(node, cx) });
                    if rng.chance(1, 8) {
                        give_up_large(LARGE, rng.chance(1, 2), cx);
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
        ensure_eq!(backend::waiting().objects, 0, "objects wait in the back end");
        ensure!(turns.iter().all(|&turns| turns > 5), "too little happened: {turns:?}");
        Ok(())
    }
}
