//! The back end of pages of pointers: when it asks for grace periods, what it frees without one, and what it does without memory.
//!
//! Times are read off the drain that is armed, not waited for.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use arch::{clock, cpu};
use kfree_rcu::backend::{self, BackEnd, Event, Waiting};
use kfree_rcu::{bulk, call, kfree_rcu, kfree_rcu_mightsleep, kvfree_rcu_barrier, page_cache};
use mm::inject::{self, Plan};
use sched::{JoinHandle, Prio};
use slab::RawCache;
use sync::MaySleep;

use crate::kfree::{self, Node, ensure_all_back, head, node};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Pointers in a page.
const PAGE: usize = 507;
/// For the lazy interrupt work that arms a drain.
const SOON_NS: u64 = 20_000_000;

/// A thread in a read-side section: no grace period ends that begins meanwhile.
struct Reader {
    leave: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn enter(cx: &mut MaySleep) -> Result<Reader, Failure> {
        let (entered, leave) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (is_in, go) = (entered.clone(), leave.clone());
        // Elsewhere if it can be: who holds an expedited grace period up is boosted above us.
        let elsewhere = cpu::online().iter().find(|&cpu| cpu != cpu::current());
        let thread = sched::spawn(cx, "reader", Prio::NORMAL, elsewhere, move |cx| {
            while !go.load(SeqCst) {
                let _section = rcu::read_lock(cx);
                is_in.store(true, SeqCst);
                while !go.load(SeqCst) {
                    arch::irq::relax();
                }
            }
        });
        let thread = thread.map_err(|error| crate::__failed!("{error}"))?;
        while !entered.load(SeqCst) {
            sched::yield_now(cx);
        }
        Ok(Reader { leave, thread })
    }

    fn leave(self, cx: &mut MaySleep) {
        self.leave.store(true, SeqCst);
        self.thread.join(cx);
    }
}

/// Runs `body` on one CPU, with a cache and `back_end` in use and nothing waiting there; then everything must be back.
pub(super) fn with(
    back_end: BackEnd,
    name: &'static str,
    cx: &mut MaySleep,
    body: impl FnOnce(&'static RawCache, &mut MaySleep) -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    let (cache, at_first) = (kfree::cache(name)?, backend::current());
    backend::switch(back_end, cx);
    let thread = sched::spawn(cx, "bulk", Prio::NORMAL, Some(cpu::current()), move |cx| body(cache, cx));
    let result = thread.map_err(|error| crate::__failed!("{error}")).and_then(|thread| thread.join(cx));
    page_cache::set_back_off_ms(0);
    backend::reclaim(true, cx);
    let over = wait_until(cx, || !page_cache::is_backing_off());
    page_cache::set_back_off_ms(5_000);
    backend::switch(at_first, cx);
    result?;
    ensure!(over, "the back-off of the test goes on");
    ensure_all_back(cache, cx)
}

/// Fresh nodes, as many as there is memory for.
pub(super) fn nodes(cache: &RawCache, many: usize) -> Vec<NonNull<Node>> {
    (0..many).filter_map(|_| node(cache)).collect()
}

/// Gives nodes up. They are the caller's.
pub(super) fn give(nodes: Vec<NonNull<Node>>) {
    // SAFETY: by the caller nobody else knows them.
    nodes.into_iter().for_each(|node| unsafe { kfree_rcu(head(node)) });
}

fn waiting() -> usize {
    BackEnd::Bulk.waiting().objects
}

fn total(event: Event) -> u64 {
    backend::total(BackEnd::Bulk, event)
}

/// Waits until `is_so`; false if it is not after a time in which hundreds of grace periods end.
fn wait_until(cx: &mut MaySleep, is_so: impl Fn() -> bool) -> bool {
    (0..2_500).any(|_| {
        sched::sleep_ns(cx, 1_000_000);
        is_so()
    })
}

/// Waits until interrupt work that was queued has run.
fn settle(cx: &mut MaySleep) {
    sched::sleep_ns(cx, SOON_NS);
}

ktest! {
    /// A page's cookie is renewed at each insert: the first object's grace period is not enough (K-2).
    fn a_page_waits_for_the_grace_period_of_its_last_object(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_last", t.cx, |cache, cx| {
            give(nodes(cache, 1));
            rcu::synchronize_rcu(cx);
            let reader = Reader::enter(cx)?;
            give(nodes(cache, 1));
            backend::reclaim(true, cx);
            let waiting = waiting();
            reader.leave(cx);
            ensure_eq!(waiting, 2, "freed inside a grace period, or in two pages");
            Ok(())
        })
    }

    /// What has expired is freed without a grace period of its own, whoever asked for the one that is over (K-4, K-9).
    fn what_has_expired_is_freed_without_a_grace_period_of_its_own(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_ready", t.cx, |cache, cx| {
            let before = (total(Event::Callbacks), total(Event::GracePeriods));
            give(nodes(cache, 100));
            ensure!(mm::shrinker::all().any(|one| one.name() == "kfree_rcu" && one.count() >= 100), "not counted");
            rcu::synchronize_rcu(cx);
            let pages = backend::reclaim(true, cx);
            ensure_eq!(BackEnd::Bulk.waiting(), Waiting::default());
            ensure!(pages > 0, "the page of pointers stays");
            ensure_eq!((total(Event::Callbacks), total(Event::GracePeriods)), before, "grace periods were asked for");
            Ok(())
        })
    }

    /// At the last effort nothing is left out that is under way already: batches, buckets, lists through heads, callbacks.
    fn the_last_effort_waits_for_what_is_being_freed(t: &mut Test) {
        let cases = [(BackEnd::Bulk, true), (BackEnd::Pending, true), (BackEnd::CallRcu, true), (BackEnd::CallRcu, false)];
        for (back_end, trackers) in cases {
            with(back_end, "test_bulk_settle", t.cx, move |cache, cx| {
                call::set_trackers(trackers);
                let left = (0..5).map(|_| {
                    give(nodes(cache, 6 * PAGE));
                    backend::reclaim(false, cx);
                    cache.waiting().total().objects
                });
                let left = left.sum::<u64>();
                call::set_trackers(true);
                ensure_eq!(left, 0, "{}, trackers: {trackers}", back_end.name());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// What reclaim says came back is not only its own pages.
    fn what_the_objects_gave_back_is_told(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_honest", t.cx, |_, cx| {
            let blocks: Vec<_> = (0..64).filter_map(|_| slab::kmalloc(64 << 10, mm::AllocFlags::NOWAIT)).collect();
            let pages = blocks.len() * 16;
            // SAFETY: allocated here, and nobody else knows them.
            blocks.into_iter().for_each(|block| unsafe { kfree_rcu_mightsleep(block, cx) });
            rcu::synchronize_rcu(cx);
            let told = backend::reclaim(true, cx);
            // Others may take some of them at once.
            ensure!(told >= pages / 2, "{told} of {pages} pages");
            Ok(())
        })
    }

    /// The last effort has a grace period expedited, and then everything has expired.
    fn what_has_not_expired_is_freed_after_an_expedited_grace_period(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_expedite", t.cx, |cache, cx| {
            give(nodes(cache, 1_000));
            backend::reclaim(false, cx);
            // A batch that is being freed counts no more.
            ensure_eq!(BackEnd::Bulk.waiting(), Waiting::default());
            Ok(())
        })
    }

    /// The first object arms the drain 5 s ahead, later ones and batches that come back leave it alone, and a full page has it come
    /// at once: it is only ever made to come sooner (K-3, S0-23).
    fn a_drain_that_is_armed_only_ever_comes_sooner(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_sooner", t.cx, |cache, cx| {
            ensure_eq!(bulk::drain_delay_ns(), 5_000_000_000);
            let here = cpu::current();
            settle(cx);
            let reader = Reader::enter(cx)?;
            let (callbacks, freed) = (total(Event::Callbacks), total(Event::Freed));
            give(nodes(cache, PAGE));
            let sent = wait_until(cx, || total(Event::Callbacks) > callbacks);
            let before_ns = clock::now_ns();
            give(nodes(cache, 1));
            settle(cx);
            let first = bulk::drain_due_ns(here);
            give(nodes(cache, 1));
            reader.leave(cx);
            let back = wait_until(cx, || total(Event::Freed) >= freed + PAGE as u64);
            settle(cx);
            let then = bulk::drain_due_ns(here);
            ensure!(sent && back, "a full page was not sent at once, or did not come back");
            let Some(due_ns) = first else { return Err(crate::__failed!("the first object armed no drain")) };
            let ahead_ns = due_ns - before_ns;
            ensure!((5_000_000_000..6_000_000_000).contains(&ahead_ns), "the drain was armed {ahead_ns} ns ahead");
            ensure_eq!(then, first, "the drain was put off");
            give(nodes(cache, PAGE));
            ensure!(wait_until(cx, || waiting() == 0), "a full page did not have the drain come");
            ensure!(clock::now_ns() < due_ns, "the drain came when it was to come");
            Ok(())
        })
    }

    /// Two batches wait, what comes collects meanwhile, and all of it is thousands of objects for a few callbacks (K-1, K-5,
    /// S2-1, S2-8).
    fn two_batches_wait_while_what_comes_collects(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_batches", t.cx, |cache, cx| {
            const ROUNDS: usize = 6;
            let callbacks = total(Event::Callbacks);
            let reader = Reader::enter(cx)?;
            let mut given = 0;
            for _ in 0..ROUNDS {
                let nodes = nodes(cache, PAGE);
                given += nodes.len();
                give(nodes);
                settle(cx);
            }
            let while_held = (total(Event::Callbacks) - callbacks, waiting());
            reader.leave(cx);
            let by_itself = wait_until(cx, || waiting() == 0);
            ensure_eq!(while_held, (2, given), "callbacks and objects while a reader held them up");
            ensure!(by_itself, "{} objects were left behind", waiting());
            let callbacks = total(Event::Callbacks) - callbacks;
            ensure!(callbacks <= ROUNDS as u64, "{callbacks} callbacks for {given} objects");
            Ok(())
        })
    }

    /// More objects than RCU lets callbacks collect: a grace period is expedited, once, long before memory is short (S3-29).
    fn a_flood_has_one_grace_period_expedited(t: &mut Test) {
        if cpu::online().iter().count() < 2 {
            skip!("needs two CPUs");
        }
        with(BackEnd::Bulk, "test_bulk_flood", t.cx, |cache, cx| {
            let asked = total(Event::GracePeriods);
            let reader = Reader::enter(cx)?;
            give(nodes(cache, bulk::FLOOD_OBJECTS - PAGE));
            settle(cx);
            let before = total(Event::GracePeriods) - asked;
            for _ in 0..4 {
                give(nodes(cache, PAGE));
                settle(cx);
            }
            let flooded = total(Event::GracePeriods) - asked;
            reader.leave(cx);
            ensure_eq!((before, flooded), (0, 1), "before the flood, and in it");
            ensure!(wait_until(cx, || waiting() == 0), "{} objects were left behind", waiting());
            Ok(())
        })
    }

    /// With no memory for pages every object is linked through its head, and one without a head is waited for: nothing waits for
    /// memory, and nothing is lost (S2-2, S3-22, S3-23, K-8).
    fn with_no_memory_objects_are_linked_through_their_heads(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_no_memory", t.cx, |cache, cx| {
            let (objects, mut headless) = (nodes(cache, 1_500), nodes(cache, 3));
            let given = objects.len() as u64;
            let Some(armed) = inject::arm(Plan::From(1)) else { skip!("fail_page_alloc is on the command line") };
            page_cache::set_back_off_ms(0);
            backend::reclaim(true, cx);
            let over = wait_until(cx, || !page_cache::is_backing_off());
            let before = (total(Event::ByHead), total(Event::Waited));
            give(objects);
            // SAFETY: allocated above, and nobody else knows them.
            headless.drain(..).for_each(|node| unsafe { kfree_rcu_mightsleep(node.cast(), cx) });
            let after = (total(Event::ByHead), total(Event::Waited));
            drop(armed);
            ensure!(over, "the back-off goes on");
            ensure_eq!(after, (before.0 + given, before.1 + 3), "objects by their heads, and waited for");
            kvfree_rcu_barrier(cx);
            ensure_eq!(BackEnd::Bulk.waiting(), Waiting::default());
            Ok(())
        })
    }

    /// An object without a head has a page allocated for it that may not be had without waiting for locks (K-8).
    fn an_object_without_a_head_gets_a_page_even_in_the_back_off(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_headless", t.cx, |cache, cx| {
            backend::reclaim(true, cx);
            let before = (total(Event::ByHead), total(Event::Waited), total(Event::Enqueued));
            for node in nodes(cache, 20) {
                // SAFETY: allocated above, and nobody else knows it.
                unsafe { kfree_rcu_mightsleep(node.cast(), cx) };
            }
            let after = (total(Event::ByHead), total(Event::Waited), total(Event::Enqueued));
            ensure_eq!(after, (before.0, before.1, before.2 + 20));
            Ok(())
        })
    }

    /// A shrinker's call takes the spare pages; from then on no page is allocated until one comes back after the back-off, and
    /// in the long run as many as before (K-7, K-9).
    fn after_memory_was_short_pages_come_back_one_by_one(t: &mut Test) {
        with(BackEnd::Bulk, "test_bulk_back_off", t.cx, |cache, cx| {
            const BACK_OFF_MS: u32 = 200;
            let spare = || cpu::online().iter().map(page_cache::spare_on).sum::<usize>();
            page_cache::set_back_off_ms(BACK_OFF_MS);
            let from_ns = clock::now_ns();
            backend::reclaim(true, cx);
            ensure_eq!((spare(), page_cache::is_backing_off()), (0, true));
            let by_head = total(Event::ByHead);
            give(nodes(cache, 10));
            let in_time = page_cache::is_backing_off();
            let by_head = total(Event::ByHead) - by_head;
            ensure!(wait_until(cx, || !page_cache::is_backing_off()), "the back-off does not end");
            let lasted_ns = clock::now_ns() - from_ns;
            ensure!(!in_time || by_head == 10, "{by_head} of 10 objects by their heads");
            ensure!(lasted_ns >= u64::from(BACK_OFF_MS) * 1_000_000, "it lasted for {lasted_ns} ns");
            ensure_eq!(spare(), 1, "after the back-off");
            // The spare page is taken, and the next arming finds none.
            kvfree_rcu_barrier(cx);
            give(nodes(cache, 2 * PAGE));
            ensure!(wait_until(cx, || spare() >= 5), "{} spare pages", spare());
            Ok(())
        })
    }
}
