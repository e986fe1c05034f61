//! The end: on a machine that has come to rest, what is given up comes back by itself and in time, though nobody waits for it.

use arch::cpu;
use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::{bulk, kfree_rcu, kfree_rcu_nolock};
use slab::{RawCache, rcu_bound};
use sync::nmi::as_nmi;
use sync::{MaySleep, smp};

use crate::kfree::{cache, head, node_nolock};
use crate::together::MS;
use crate::{Failure, ensure_eq};

/// How long objects may wait for others to come.
const BOUND_MS: u64 = 20;
/// Half of it, so often: much longer than a grace period takes, and not enough to fill a page of pointers.
const PATIENCE: u32 = 200;

/// Gives objects up to each back end, and looks whether they come back while others come.
pub(super) fn come_back(cx: &mut MaySleep) -> Result<(), Failure> {
    let (cache, company) = (cache("torture-late")?, cache("torture-company")?);
    let (back_end, delay_ns, bound) = (backend::current(), bulk::drain_delay_ns(), rcu_bound::bound());
    bulk::set_drain_delay_ns(BOUND_MS * MS);
    rcu_bound::set_bound(Some(BOUND_MS));
    let result = BackEnd::ALL.into_iter().try_for_each(|back_end| {
        backend::switch(back_end, cx);
        smp::run_on_mask(&cpu::online(), |_| {
            give_up(cache);
            as_nmi(|| give_up(cache));
        });
        for _ in 0..PATIENCE {
            sched::sleep_ns(cx, BOUND_MS * MS / 2);
            if cache.waiting().total().objects == 0 {
                break;
            }
            // What comes later holds nobody up.
            smp::run_on_mask(&cpu::online(), |_| give_up(company));
        }
        ensure_eq!(cache.waiting().total().objects, 0, "objects wait for nobody with the back end {}", back_end.name());
        Ok(())
    });
    backend::switch(back_end, cx);
    bulk::set_drain_delay_ns(delay_ns);
    rcu_bound::set_bound(bound);
    result?;
    for cache in [cache, company] {
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { slab::flush::destroy(cache, cx) }, Ok(()), "{}", cache.name());
    }
    Ok(())
}

/// An object, by the call that an NMI may make where this is one.
fn give_up(cache: &RawCache) {
    let Some(node) = node_nolock(cache) else { return };
    match sync::context::in_nmi() {
        // SAFETY: allocated here, and nobody else knows it; as below.
        true => unsafe { kfree_rcu_nolock(head(node)) },
        // SAFETY: as above.
        false => unsafe { kfree_rcu(head(node)) },
    }
}
