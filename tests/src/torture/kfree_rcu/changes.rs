//! What can be changed while objects wait, and barriers.

use core::sync::atomic::Ordering::Relaxed;

use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::pending::{self, Keep};
use kfree_rcu::{kvfree_rcu_barrier, kvfree_rcu_barrier_on_cache};
use slab::rcu_free::{self, Policy};
use slab::rcu_return::MOST;
use slab::{RawCache, rcu_bound};
use sync::{MaySleep, Rng};

use super::KfreeRcu;
use crate::kfree::{Way, cache, ensure_none_in_use, node};
use crate::together::MS;
use crate::torture::control;
use crate::{Failure, ensure_eq};

/// Capacity of a sheaf of which more comes back than a callback frees.
const LARGE_SHEAF: usize = 3 * MOST;

/// Settings of the machine.
pub(super) struct Settings {
    back_end: BackEnd,
    store: Keep,
    bound: Option<u64>,
    policy: Policy,
}

impl Settings {
    /// As they are.
    pub(super) fn now() -> Self {
        Self {
            back_end: backend::current(),
            store: pending::store(),
            bound: rcu_bound::bound(),
            policy: rcu_free::policy(),
        }
    }

    /// Makes them what they were.
    pub(super) fn put_back(&self, cx: &mut MaySleep) {
        backend::switch(self.back_end, cx);
        pending::set_store(self.store);
        rcu_bound::set_bound(self.bound);
        rcu_free::set_policy(self.policy);
    }
}

/// Changes something, again and again.
pub(super) fn change(shared: &KfreeRcu, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    while !control::stutter(cx) {
        match rng.index(8) {
            0 | 1 => backend::switch(BackEnd::ALL[rng.index(BackEnd::ALL.len())], cx),
            2 => pending::set_store(Keep::ALL[rng.index(2)]),
            3 => rcu_bound::set_bound(Some(rng.below(50)).filter(|&ms| ms != 0)),
            4 => rcu_free::set_policy(if rng.chance(1, 2) { Policy::Hurry } else { Policy::Lazy }),
            // No memory for it is no error here.
            5 => _ = shared.cache.set_capacity(rng.index(100), cx),
            6 => _ = backend::reclaim(rng.chance(1, 2), cx),
            _ => _ = shared.cache.shrink(),
        }
        shared.changes.fetch_add(1, Relaxed);
        sched::sleep_ns(cx, rng.below(5_000_000));
    }
    Ok(())
}

/// Gives objects of a cache up and waits for them, again and again: then none is in use. The last ones the end of the cache waits
/// for.
pub(super) fn wait(shared: &KfreeRcu, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    while !control::stutter(cx) {
        // Without memory for a cache there is nothing to wait for.
        let Ok(short) = cache("torture-barrier") else {
            sched::sleep_ns(cx, MS);
            continue;
        };
        if rng.chance(1, 2) {
            // A large sheaf that comes back is left to a worker. No memory for it is no error here.
            _ = short.set_capacity(LARGE_SHEAF, cx);
        }
        for _ in 0..rng.index(4) {
            give_up_some(short, &mut rng, cx);
            if rng.chance(1, 4) {
                backend::switch(BackEnd::ALL[rng.index(BackEnd::ALL.len())], cx);
            }
            match rng.chance(1, 2) {
                true => kvfree_rcu_barrier(cx),
                false => kvfree_rcu_barrier_on_cache(short, cx),
            }
            ensure_none_in_use(short, cx)?;
            shared.barriers.fetch_add(1, Relaxed);
        }
        give_up_some(short, &mut rng, cx);
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { slab::flush::destroy(short, cx) }, Ok(()), "a cache whose objects were given to kfree_rcu");
        sched::sleep_ns(cx, rng.below(2_000_000));
    }
    Ok(())
}

fn give_up_some(cache: &'static RawCache, rng: &mut Rng, cx: &mut MaySleep) {
    for _ in 0..1 + rng.index(150) {
        let Some(node) = node(cache) else { continue };
        // SAFETY: allocated above, and nobody else knows it.
        unsafe { Way::any(rng).give_up(node, cx) };
    }
}
