//! What the allocator itself might do wrong with objects that wait.

use arch::hosted::in_own_process;
use mm::AllocFlags;
use sync::ATOMIC;

use super::*;
use crate::debug::{Report, reports, with_reports};
use crate::test_machine::{cache, machine, sheaf};

fn last_report() -> Option<Report> {
    let mut last = None;
    with_reports(|report| last = Some(*report));
    last
}

#[test]
fn a_sheaf_that_comes_back_inside_its_grace_period_is_reported_and_not_used() {
    in_own_process(|| {
        machine(1, 1, |cx| {
            let cache = cache("early");
            let sheaf = sheaf(cache, 3);
            let section = rcu::read_lock(ATOMIC);
            sheaf_leaves(sheaf);
            assert!(!sheaf_returns(sheaf));
            let report = last_report().expect("a report");
            assert_eq!((report.kind, report.cache), (Kind::TooEarly, "early"));
            sheaf_leaves(sheaf);
            drop(section);
            rcu::synchronize_rcu(cx);
            assert!(sheaf_returns(sheaf));
            assert_eq!(reports(), 1);
            cache.flush_and_free(sheaf);
        });
    });
}

#[test]
fn an_object_that_still_waits_is_not_handed_out() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let cache = cache("waits");
            let object = cache.alloc(AllocFlags::NOWAIT).expect("memory");
            assert!(may_wait(object));
            // As if its grace period were over, which nobody has seen to.
            assert!(cache.free_fast(object));
            assert_eq!(cache.alloc(AllocFlags::NOWAIT), None);
            let report = last_report().expect("a report");
            assert_eq!((report.kind, report.object), (Kind::TooEarly, object.as_ptr().addr()));
            assert!(report.given.is_some_and(|given| given.location().file() == file!()));
            assert!(cache.alloc(AllocFlags::NOWAIT).is_some(), "the next one is as good as ever");
        });
    });
}

#[test]
fn the_places_of_two_objects_may_be_the_same_but_are_never_mixed_up() {
    let mut taken = std::collections::BTreeMap::new();
    let (first, second) = (1..)
        .find_map(|n: usize| taken.insert(slot(n * 64, PLACES), n * 64).map(|other| (other, n * 64)))
        .expect("there are finitely many");
    let [first, second] = [first, second].map(|at| NonNull::new(ptr::without_provenance_mut::<u8>(at)).expect("not 0"));
    Place::of(first).set(first, Location::caller());
    assert!(place_of(first).is_some() && place_of(second).is_none());
    Place::of(second).set(second, Location::caller());
    assert!(place_of(first).is_none() && place_of(second).is_some());
}
