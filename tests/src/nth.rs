//! Every allocation of a piece of work fails in turn.
//!
//! A sweep runs the work with its first allocation failing, then with its second, and so on until it meets no failure any
//! more: so each place that allocates has failed, in the state that the places before it have led to. The work may succeed
//! or say that it could not be done; afterwards every cache has as many objects in use as before, and every page is back.
//! Objects fail for the sweeping thread alone ([`slab::fail`]), pages for the whole machine ([`mm::inject`]).

use alloc::vec::Vec;

use kfree_rcu::kvfree_rcu_barrier;
use mm::inject;
use sched::work;
use slab::fail::{self, Armed, FailError, Plan, Selection};
use slab::registry;
use sync::MaySleep;

use crate::{Failure, ensure, skip};

/// No work allocates so often.
const MOST: u64 = 1_000;

/// The running thread, to fail its allocations alone.
pub(crate) fn me() -> Option<u64> {
    Some(sched::current().tid())
}

/// Why nothing can fail on purpose.
pub(crate) fn busy(error: FailError) -> Failure {
    match error {
        FailError::Busy => Failure::Skipped("failslab is on the command line".into()),
        FailError::NoCache => crate::__failed!("{error}"),
    }
}

/// What is in use, machine-wide: objects by cache, and pages.
struct InUse {
    /// With room for all caches from the beginning: a look changes nothing.
    objects: Vec<(&'static str, u64)>,
    pages: usize,
    /// Workers come when others block, and stay: (how many there are, how many have ended).
    workers: (u64, u64),
}

impl InUse {
    fn new() -> Self {
        Self { objects: Vec::with_capacity(128), pages: 0, workers: (0, 0) }
    }

    /// Looks when all that is on its way is back.
    fn look(&mut self, cx: &mut MaySleep) {
        kvfree_rcu_barrier(cx);
        mm::vmalloc::purge(cx);
        registry::for_each_unlocked(cx, |cache| {
            cache.shrink();
        });
        rcu::rcu_barrier(cx);
        mm::drain_all(cx);
        mm::check();
        self.objects.clear();
        registry::for_each(|cache| self.objects.push((cache.name(), cache.info().active_objs)));
        self.pages = mm::stats::nodes().map(|node| node.in_use()).sum();
        self.workers = work::pools().fold((0, 0), |(all, ended), pool| (all + pool.workers as u64, ended + pool.ended));
    }

    /// Whether nothing is in use that was not.
    fn is_within(&self, before: &InUse) -> bool {
        let same_caches = self.objects.iter().map(|(name, _)| name).eq(before.objects.iter().map(|(name, _)| name));
        let counts = self.objects.iter().zip(&before.objects);
        same_caches && self.pages <= before.pages && counts.into_iter().all(|((_, now), (_, then))| now <= then)
    }
}

/// A sweep over work that allocates.
#[derive(Clone, Copy)]
pub(crate) struct Sweep<'a> {
    /// Caches whose objects fail, as globs.
    pub(crate) caches: &'a str,
    /// Nobody else does anything: pages fail, too, and whatever was in use before is in use afterwards, machine-wide. Otherwise it is
    /// left to the work to know what of its own is lost.
    pub(crate) alone: bool,
    /// Whether to leave the rest out.
    pub(crate) over: fn() -> bool,
}

/// A [`Sweep`] alone on the machine, to its end. Returns how many failures of objects and pages it met.
pub(crate) fn sweep(
    caches: &str,
    cx: &mut MaySleep,
    work: impl FnMut(&mut MaySleep) -> Result<bool, Failure>,
) -> Result<(u64, u64), Failure> {
    Sweep { caches, alone: true, over: || false }.run(cx, work)
}

impl Sweep<'_> {
    /// Runs `work` without a failure, then with each of its allocations failing in turn, objects first and then pages; whether it
    /// could be done is what it returns. Returns how many failures of objects and pages it met.
    pub(crate) fn run(
        self,
        cx: &mut MaySleep,
        mut work: impl FnMut(&mut MaySleep) -> Result<bool, Failure>,
    ) -> Result<(u64, u64), Failure> {
        for _ in 0..2 {
            ensure!(work(cx)? || !self.alone, "it does not work even if nothing fails");
        }
        if !self.alone {
            return self.once(cx, &mut work);
        }
        let (mut before, mut after) = (InUse::new(), InUse::new());
        // Again if there was a new worker, whose memory would look like lost; and if less is in use than before, because
        // something was still on its way at the first look.
        for _ in 0..5 {
            before.look(cx);
            let met = self.once(cx, &mut work)?;
            // What other threads did meanwhile is over soon; what was lost stays.
            for _ in 0..10 {
                if (self.over)() {
                    // Others end, too, and give back what they had.
                    return Ok(met);
                }
                after.look(cx);
                if (&before.objects, before.pages) == (&after.objects, after.pages) {
                    return Ok(met);
                }
                sched::sleep_ns(cx, 10_000_000);
            }
            if before.workers == after.workers && !after.is_within(&before) {
                break;
            }
        }
        let lines = before.objects.iter().zip(&after.objects).filter(|(was, is)| was != is);
        let changed: Vec<_> = lines.map(|(was, is)| (is.0, was.1, is.1)).collect();
        Err(crate::__failed!("objects before and after: {changed:?}; pages {}, {}", before.pages, after.pages))
    }

    /// Each allocation fails in turn.
    fn once(
        self,
        cx: &mut MaySleep,
        work: &mut impl FnMut(&mut MaySleep) -> Result<bool, Failure>,
    ) -> Result<(u64, u64), Failure> {
        let of_objects = |selection: &Selection, cx: &mut MaySleep| {
            self.in_turn("object", cx, work, |nth| Some(selection.arm(Plan::Nth(nth), me())))
        };
        let objects = fail::with(self.caches, cx, of_objects).map_err(busy)??;
        let pages = if self.alone { self.in_turn("page", cx, work, |nth| inject::arm(Plan::Nth(nth)))? } else { 0 };
        Ok((objects, pages))
    }

    /// Each allocation that `arm` has fail fails in turn, until the work meets none. Returns how many it met.
    fn in_turn(
        self,
        what: &str,
        cx: &mut MaySleep,
        work: &mut impl FnMut(&mut MaySleep) -> Result<bool, Failure>,
        arm: impl Fn(u64) -> Option<Armed>,
    ) -> Result<u64, Failure> {
        for nth in 1..MOST {
            if (self.over)() {
                return Ok(nth - 1);
            }
            let Some(armed) = arm(nth) else { skip!("fail_page_alloc is on the command line") };
            let done = work(cx);
            let failed = armed.failed();
            drop(armed);
            let done = done.map_err(|failure| crate::__failed!("{what} {nth}: {failure:?}"))?;
            if failed == 0 {
                ensure!(done || !self.alone, "it did not work although no {what} failed");
                return Ok(nth - 1);
            }
        }
        Err(crate::__failed!("more than {MOST} allocations of a {what}"))
    }
}
