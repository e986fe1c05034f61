//! The back end of single callbacks: one for each object, and the head list where there is no memory for one.

use core::ptr::NonNull;

use kfree_rcu::backend::{self, BackEnd, Event, Waiting};
use kfree_rcu::{call, kfree_rcu_callback, kvfree_rcu_barrier};
use rcu::CallbackHead;
use slab::fail;
use slab::waiting::{Stage, residence};
use sync::MaySleep;
use sync::fault::Plan;

use super::kfree_rcu_bulk::{give, nodes, with};
use crate::{ensure, ensure_eq, ktest};

/// What was counted of (enqueued, callbacks, trackers, by head, freed).
fn totals() -> [u64; 5] {
    [Event::Enqueued, Event::Callbacks, Event::Pages, Event::ByHead, Event::Freed]
        .map(|event| backend::total(BackEnd::CallRcu, event))
}

/// The same since `before`.
fn since(before: [u64; 5]) -> [u64; 5] {
    let now = totals();
    core::array::from_fn(|at| now[at] - before[at])
}

/// Everything is free.
fn ensure_nothing_waits(cx: &mut MaySleep) -> Result<(), crate::Failure> {
    kvfree_rcu_barrier(cx);
    ensure_eq!(backend::waiting(), Waiting::default());
    Ok(())
}

ktest! {
    /// An object with a link has a tracker allocated, and a callback of its own.
    fn every_object_has_a_callback_and_a_tracker(t: &mut Test) {
        with(BackEnd::CallRcu, "test_call_each", t.cx, |cache, cx| {
            let (objects, before) = (nodes(cache, 500), totals());
            let passed_on = backend::total(BackEnd::Bulk, Event::ByHead);
            let given = objects.len() as u64;
            give(objects);
            let [enqueued, callbacks, trackers, by_head, _] = since(before);
            let passed_on = backend::total(BackEnd::Bulk, Event::ByHead) - passed_on;
            // From NMI-safe memory there is not always some.
            ensure_eq!((enqueued + passed_on, callbacks, trackers, by_head), (given, enqueued, enqueued, 0));
            ensure!(enqueued > given / 2, "only {enqueued} of {given} got a tracker");
            ensure_nothing_waits(cx)?;
            ensure_eq!(since(before)[4], enqueued, "objects freed");
            Ok(())
        })
    }

    /// An object that brings 16 bytes along needs no tracker.
    fn an_object_with_a_callbacks_head_needs_no_tracker(t: &mut Test) {
        with(BackEnd::CallRcu, "test_call_own", t.cx, |cache, cx| {
            let before = totals();
            for node in nodes(cache, 100) {
                let head: NonNull<CallbackHead> = node.cast();
                // SAFETY: allocated here, large enough, and nobody else knows it.
                unsafe {
                    head.write(CallbackHead::new());
                    kfree_rcu_callback(head);
                }
            }
            ensure_eq!(since(before)[..4], [100, 100, 0, 0]);
            ensure_nothing_waits(cx)?;
            ensure_eq!(since(before)[4], 100, "objects freed");
            Ok(())
        })
    }

    /// With trackers switched off, and with no memory for one, objects go through their heads to the pages' back end (S3-22,
    /// S3-23).
    fn without_trackers_objects_go_through_their_heads(t: &mut Test) {
        with(BackEnd::CallRcu, "test_call_heads", t.cx, |cache, cx| {
            for switched_off in [true, false] {
                let (objects, before) = (nodes(cache, 300), totals());
                let given = objects.len() as u64;
                let by_head = backend::total(BackEnd::Bulk, Event::ByHead);
                let recorded = residence(Stage::Bulk).count;
                if switched_off {
                    call::set_trackers(false);
                    give(objects);
                    call::set_trackers(true);
                } else {
                    let failed = fail::with("kmalloc-*", cx, |selection, _| {
                        let _armed = selection.arm(Plan::From(1), Some(sched::current().tid()));
                        give(objects);
                    });
                    failed.map_err(|error| crate::__failed!("{error:?}"))?;
                }
                ensure_eq!(since(before), [0; 5], "switched off: {switched_off}");
                ensure_eq!(backend::total(BackEnd::Bulk, Event::ByHead) - by_head, given);
                ensure_nothing_waits(cx)?;
                ensure!(residence(Stage::Bulk).count > recorded, "nobody knows how long they waited");
            }
            Ok(())
        })
    }
}
