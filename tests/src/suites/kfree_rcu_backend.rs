//! The choice between the back ends: each takes objects and frees them, and a switch leaves nothing behind in the old one.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use kfree_rcu::backend::{self, BackEnd, Event, Waiting};
use kfree_rcu::{RcuPtr, kfree_rcu, kfree_rcu_mightsleep, kvfree_rcu_barrier};
use mm::AllocFlags;
use sched::Prio;
use slab::{CacheFlags, Layout, RawCache};
use sync::MaySleep;

use crate::{Failure, ensure, ensure_eq, ktest};

fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, 96).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

/// Gives `objects` objects of `cache` up; says how many there was memory for.
fn give(cache: &RawCache, objects: usize) -> u64 {
    let fresh = || cache.alloc(AllocFlags::NOWAIT);
    // SAFETY: allocated here, and nobody else's; it begins with room for a head.
    (0..objects).filter_map(|_| fresh()).map(|object| unsafe { kfree_rcu(object.cast::<RcuPtr>()) }).count() as u64
}

/// Ends a test: the back end of the boot is in use again, and nothing of `cache` is anywhere.
fn end(cache: &'static RawCache, at_first: BackEnd, cx: &mut MaySleep) -> Result<(), Failure> {
    backend::switch(at_first, cx);
    // SAFETY: nobody uses the cache any more.
    ensure_eq!(unsafe { slab::flush::destroy(cache, cx) }, Ok(()));
    Ok(())
}

ktest! {
    /// Each back end takes what it is given, with a head or without, and has freed it after the barrier.
    fn every_back_end_frees_what_it_was_given(t: &mut Test) {
        let (cache, at_first) = (cache("test_be_each")?, backend::current());
        for back_end in BackEnd::ALL {
            backend::switch(back_end, t.cx);
            ensure_eq!(backend::current(), back_end);
            let count = |event| backend::total(back_end, event);
            let before = (count(Event::Enqueued), count(Event::Freed));
            let mut given = give(cache, 1_000);
            for _ in 0..10 {
                let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { continue };
                // SAFETY: allocated here, and nobody else's.
                unsafe { kfree_rcu_mightsleep(object, t.cx) };
                given += 1;
            }
            let taken = count(Event::Enqueued) - before.0;
            if back_end != BackEnd::Sheaf {
                ensure!(taken >= given, "{}: only {taken} of {given} were taken in", back_end.name());
            }
            kvfree_rcu_barrier(t.cx);
            ensure_eq!(back_end.waiting(), Waiting::default(), "{}", back_end.name());
            ensure_eq!(count(Event::Freed) - before.1, count(Event::Enqueued) - before.0, "{}", back_end.name());
        }
        end(cache, at_first, t.cx)
    }

    /// While objects are given up all the time, the back end is changed again and again: when a switch returns the old one is
    /// empty.
    #[tags(race)]
    fn a_switch_under_load_leaves_the_old_back_end_empty(t: &mut Test) {
        const SWITCHES: usize = 12;
        let (cache, at_first) = (cache("test_be_switch")?, backend::current());
        let stop = Arc::new(AtomicBool::new(false));
        let giver = |cpu| {
            let stop = stop.clone();
            sched::spawn(t.cx, "give", Prio::NORMAL, Some(cpu), move |cx| {
                let mut given = 0;
                while !stop.load(Relaxed) {
                    given += give(cache, 50);
                    sched::sleep_ns(cx, 100_000);
                }
                given
            })
        };
        let givers = arch::cpu::online().iter().map(giver).collect::<Result<alloc::vec::Vec<_>, _>>();
        let givers = givers.map_err(|error| crate::__failed!("{error}"))?;
        let mut left_behind = Ok(());
        for at in 0..SWITCHES {
            let old = backend::current();
            let new = BackEnd::ALL[at % BackEnd::ALL.len()];
            sched::sleep_ns(t.cx, 1_000_000);
            backend::switch(new, t.cx);
            // Objects of another node's go to the engine of pages under `sheaf`, too.
            let shares_engine = [old, new].iter().all(|&one| one != BackEnd::CallRcu);
            if !shares_engine && old.waiting().objects != 0 {
                left_behind = Err(crate::__failed!("{} after {}: {:?}", new.name(), old.name(), old.waiting()));
            }
        }
        stop.store(true, Relaxed);
        let given: u64 = givers.into_iter().map(|giver| giver.join(t.cx)).sum();
        left_behind?;
        t.note(format_args!("{given} objects"));
        ensure!(given > 0, "no object was given up");
        end(cache, at_first, t.cx)
    }
}
