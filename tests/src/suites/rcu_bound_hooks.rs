//! The bound on sheaves that do not get full, where one is begun in the midst of the keeper's look. In the profile `mutants` alone:
//! the other builds have no hooks.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use arch::{CpuId, cpu};
use kfree_rcu::{kfree_rcu, kfree_rcu_nolock};
use slab::{RawCache, rcu_bound};
use sync::mutants::{Site, attach};
use sync::nmi::as_nmi;
use sync::{ATOMIC, IrqGuard, MaySleep};

use super::rcu_sheaf::Bound;
use crate::kfree::{cache, ensure_all_back, head, node};
use crate::outcome::needs_sheaves;
use crate::together::{MS, soon, spawn};
use crate::{Failure, ensure, ktest};

/// The bound, and how much of it is over for the older sheaf when the keeper looks.
const BOUND_MS: u64 = 200;
const AGE_MS: u64 = 150;

/// Where the keeper looks, and the head of what is given up there meanwhile.
static ON: AtomicUsize = AtomicUsize::new(0);
static YOUNGER: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Gives the younger object up while the keeper of its CPU looks. The marks say that it does: it was marked before.
fn begin_a_sheaf(site: &'static Site) {
    let here = cpu::current();
    if site.name != "slab.caches" || here.index() != ON.load(Relaxed) || rcu_bound::is_armed_on(here) {
        return;
    }
    let _off = IrqGuard::new(ATOMIC);
    if let Some(younger) = NonNull::new(YOUNGER.swap(ptr::null_mut(), Relaxed)) {
        // SAFETY: the test gave it up to who takes it from here.
        as_nmi(|| unsafe { kfree_rcu_nolock(younger.cast()) });
    }
}

fn has_rcu_free(cache: &'static RawCache, on: CpuId) -> bool {
    cache.sheaves_on(on).is_some_and(|sheaves| sheaves.rcu_free.is_some())
}

/// Whether the older of two sheaves goes while the younger one, begun while the keeper looked, still has time.
fn older_goes_first(
    older: &'static RawCache,
    younger: &'static RawCache,
    on: CpuId,
    cx: &mut MaySleep,
) -> Result<bool, Failure> {
    let long = Bound::new(Some(100 * BOUND_MS));
    let given = spawn(cx, Some(on), move |_| {
        let nodes = (node(older)?, node(younger)?);
        YOUNGER.store(head(nodes.1).as_ptr().cast(), Relaxed);
        // SAFETY: allocated above, and nobody else knows it.
        unsafe { kfree_rcu(head(nodes.0)) };
        Some(())
    })?
    .join(cx);
    ensure!(given.is_some(), "no memory");
    sched::sleep_ns(cx, AGE_MS * MS);
    ON.store(on.index(), Relaxed);
    let attached = attach(begin_a_sheaf);
    let bound = Bound::new(Some(BOUND_MS));
    let met = soon(cx, || has_rcu_free(younger, on));
    drop(attached);
    ensure!(met, "nobody came by while the keeper looked");
    ensure!(soon(cx, || !has_rcu_free(older, on)), "the older sheaf is kept");
    let first = has_rcu_free(younger, on);
    ensure!(soon(cx, || !has_rcu_free(younger, on)), "the younger sheaf is kept");
    drop(bound);
    drop(long);
    Ok(first)
}

ktest! {
    /// S0-18: a sheaf that is begun while the keeper looks does not prolong the time of those that are older. Where a host lets the
    /// keeper look too late to tell, it is tried again.
    #[budget_ms(60_000)]
    fn a_sheaf_that_comes_while_the_keeper_looks_prolongs_no_others_time(t: &mut Test) {
        const ROUNDS: usize = 5;
        let (older, younger) = (cache("test_rbh_older")?, cache("test_rbh_younger")?);
        needs_sheaves(older)?;
        let on = cpu::current();
        let mut first = false;
        for _ in 0..ROUNDS {
            first = older_goes_first(older, younger, on, t.cx)?;
            if first {
                break;
            }
        }
        ensure!(first, "in {ROUNDS} rounds the older sheaf was kept as long as the younger one");
        for cache in [older, younger] {
            ensure_all_back(cache, t.cx)?;
            // SAFETY: nobody else knows the cache.
            unsafe { slab::flush::destroy(cache, t.cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))?;
        }
        Ok(())
    }
}
