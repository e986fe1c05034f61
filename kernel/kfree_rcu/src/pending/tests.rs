//! Trackers on a hosted machine: with both stores, for RCU and for a domain, with memory and without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::vec::Vec;

use core::ptr::NonNull;

use arch::hosted::in_own_process;
use mm::AllocFlags;
use mm::inject::{self, Plan};
use rcu::pending::LiveCookie;
use rcu::srcu::{Normal, srcu_read_lock};
use rcu::{CallbackFn, CallbackHead, Pollable};
use sched::Prio;
use slab::constructed::Construct;
use slab::typed::TypedLayout;
use slab::typesafe::{TypesafeBox, TypesafeCache};
use slab::{KBox, fail};
use sync::{ATOMIC, MaySleep, Rng};

use super::{Deferred, GracePeriods, Pages, Pending, Radix, Store, TreeRcu};
use crate::test_machine::{machine, spawn};
use crate::{RcuPtr, has_rcu_ptr};

const MS: u64 = 1_000_000;

rcu::srcu_domain! {
    static DOMAIN: Normal;
}

/// Counts in when it is made, and out when it is dropped.
struct Node {
    alive: Arc<AtomicUsize>,
    rcu: RcuPtr,
}

has_rcu_ptr!(Node, rcu);

impl Node {
    fn make(alive: &Arc<AtomicUsize>) -> KBox<Node> {
        alive.fetch_add(1, SeqCst);
        KBox::try_new(Node { alive: alive.clone(), rcu: RcuPtr::new() }, AllocFlags::NOWAIT).expect("memory")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, SeqCst);
    }
}

type Nodes<D, S> = Pending<KBox<Node>, D, S>;

fn tracker<D: GracePeriods, S: Store>(domain: D) -> &'static Nodes<D, S> {
    std::boxed::Box::leak(std::boxed::Box::new(Pending::new("test", domain).expect("room for it")))
}

/// Takes a tracker back that all threads are done with, and ends it.
fn end<D: GracePeriods, S: Store>(pending: &'static Nodes<D, S>, cx: &mut MaySleep) {
    // SAFETY: leaked by `tracker`, and used by nobody any more.
    unsafe { core::ptr::read(pending) }.exit(cx);
}

/// Many objects from all CPUs, some of them while others are flushed: all are finished, and all figures are zero again.
fn all_are_finished<D: GracePeriods, S: Store>(domain: D, cx: &mut MaySleep) {
    let (pending, alive) = (tracker::<D, S>(domain), Arc::new(AtomicUsize::new(0)));
    let threads: Vec<_> = (0..2)
        .map(|cpu| {
            let alive = alive.clone();
            spawn(cx, Some(cpu), move |cx| {
                for i in 0..3_000 {
                    pending.enqueue(Node::make(&alive)).unwrap_or_else(|_| panic!("a node has a link"));
                    if i % 100 == 0 {
                        sched::yield_now(cx);
                    }
                }
            })
        })
        .collect();
    pending.flush(cx);
    threads.into_iter().for_each(|thread| thread.join(cx));
    pending.flush(cx);
    assert_eq!((alive.load(SeqCst), pending.counts().enqueued), (0, 6_000));
    let now = pending.waiting();
    assert_eq!((now.objects, now.bytes, now.oldest_ns), (0, 0, 0));
    end(pending, cx);
}

#[test]
fn all_that_was_taken_is_finished() {
    in_own_process(|| {
        machine(2, 1, |cx| {
            all_are_finished::<_, Radix>(TreeRcu, cx);
            all_are_finished::<_, Pages>(TreeRcu, cx);
            all_are_finished::<_, Radix>(&DOMAIN, cx);
            all_are_finished::<_, Pages>(&DOMAIN, cx);
        });
    });
}

/// Objects wait for a reader that was there first, whatever is done meanwhile, and for no other.
fn waits_for<D: GracePeriods, S: Store, G: 'static>(domain: D, enter: fn() -> G, cx: &mut MaySleep) {
    let (pending, alive) = (tracker::<D, S>(domain), Arc::new(AtomicUsize::new(0)));
    let (entered, leave) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (theirs, go) = (entered.clone(), leave.clone());
    let reader = spawn(cx, Some(1), move |_| {
        let _section = enter();
        theirs.store(1, SeqCst);
        while go.load(SeqCst) == 0 {
            arch::irq::relax();
        }
    });
    while entered.load(SeqCst) == 0 {
        sched::yield_now(cx);
    }
    for _ in 0..200 {
        pending.enqueue(Node::make(&alive)).unwrap_or_else(|_| panic!("a node has a link"));
    }
    for _ in 0..10 {
        sched::sleep_ns(cx, 10 * MS);
        pending.reclaim(false, cx);
    }
    assert_eq!(alive.load(SeqCst), 200, "finished under a reader");
    let now = pending.waiting();
    assert!(now.oldest_ns >= 90 * MS && now.bytes >= 200 * size_of::<Node>(), "{now:?}");
    leave.store(1, SeqCst);
    pending.reclaim(true, cx);
    pending.flush(cx);
    reader.join(cx);
    assert_eq!(alive.load(SeqCst), 0);
    end(pending, cx);
}

#[test]
fn nothing_is_finished_under_a_reader_of_the_domain() {
    in_own_process(|| {
        machine(2, 1, |cx| {
            waits_for::<_, Radix, _>(TreeRcu, || rcu::read_lock(ATOMIC), cx);
            waits_for::<_, Pages, _>(TreeRcu, || rcu::read_lock(ATOMIC), cx);
            waits_for::<_, Radix, _>(&DOMAIN, || srcu_read_lock(&DOMAIN), cx);
        });
    });
}

#[test]
fn without_pages_objects_wait_on_lists() {
    in_own_process(|| {
        machine(1, 1, |cx| {
            let (pending, alive) = (tracker::<_, Pages>(TreeRcu), Arc::new(AtomicUsize::new(0)));
            let nodes: Vec<_> = (0..2_000).map(|_| Node::make(&alive)).collect();
            let armed = inject::arm(Plan::From(1)).expect("nobody else arms");
            nodes.into_iter().for_each(|node| pending.enqueue(node).unwrap_or_else(|_| panic!("a node has a link")));
            drop(armed);
            assert_eq!((pending.counts().linked, pending.waiting().nodes), (2_000, 0));
            pending.flush(cx);
            assert_eq!(alive.load(SeqCst), 0);
            end(pending, cx);
        });
    });
}

/// An object without a link, whose end notes which thread brought it.
struct Headless(NonNull<u8>);

// SAFETY: a block of `kmalloc` that nobody else knows.
unsafe impl Send for Headless {}

static ENDED_BY: std::sync::Mutex<Vec<u64>> = std::sync::Mutex::new(Vec::new());

// SAFETY: as above; there is no link.
unsafe impl Deferred for Headless {
    fn into_parts(self) -> (NonNull<u8>, Option<NonNull<RcuPtr>>) {
        (self.0, None)
    }

    unsafe fn from_object(object: NonNull<u8>) -> Self {
        Self(object)
    }

    unsafe fn object_of(_: NonNull<RcuPtr>) -> NonNull<u8> {
        unreachable!("it has no link")
    }

    unsafe fn finish(objects: &mut [NonNull<u8>]) {
        for &mut object in objects {
            ENDED_BY.lock().expect("no panic").push(sched::current().tid());
            // SAFETY: by the caller.
            unsafe { slab::kfree(object) };
        }
    }
}

#[test]
fn who_may_sleep_finishes_what_is_over_before_waiting() {
    in_own_process(|| {
        machine(2, 1, |cx| {
            let pending = Pending::<Headless>::new("headless", TreeRcu).expect("room for it");
            let make = || Headless(slab::kmalloc(100, AllocFlags::NOWAIT).expect("memory"));
            let me = sched::current();
            let late = make();
            fail::with("kmalloc-*", cx, |selection, cx| {
                // The worker of this CPU is less urgent, and does not get to it.
                sched::set_prio(me, Prio::CRITICAL);
                (0..10).for_each(|_| assert!(pending.enqueue(make()).is_ok()));
                let cookie = rcu::start_poll_full();
                while !rcu::poll(cookie) {
                    sched::yield_now(cx);
                }
                assert_eq!(*ENDED_BY.lock().expect("no panic"), []);
                let armed = selection.arm(Plan::From(1), Some(me.tid()));
                pending.enqueue_mightsleep(late, cx);
                drop(armed);
                sched::set_prio(me, Prio::NORMAL);
            })
            .expect("nobody else selects");
            assert_eq!(*ENDED_BY.lock().expect("no panic"), [me.tid(); 11]);
            pending.exit(cx);
        });
    });
}

/// Grace periods that end when somebody says so.
#[derive(Clone, Copy)]
struct Told;

/// How many have ended.
static TOLD: AtomicUsize = AtomicUsize::new(0);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Since(usize);

impl Pollable for Since {
    fn is_over(&self) -> bool {
        TOLD.load(SeqCst) > self.0
    }
}

impl LiveCookie for Since {
    const MAX_LIVE: usize = 1;
}

impl GracePeriods for Told {
    type Cookie = Since;
    const READERS_MAY_ALLOCATE: bool = false;

    fn get_state(self) -> Since {
        Since(TOLD.load(SeqCst))
    }

    fn start_poll(self, _: bool) {}

    unsafe fn call(self, head: *mut CallbackHead, func: CallbackFn) {
        // SAFETY: passed on from the caller.
        unsafe { rcu::call_rcu_hurry(head, func) };
    }

    fn barrier(self, cx: &mut MaySleep) {
        rcu::rcu_barrier(cx);
    }

    fn synchronize(self, _: bool, _: &mut MaySleep) {
        TOLD.fetch_add(1, SeqCst);
    }
}

/// An object the end of which brings another, whose grace period is over at once: a flood.
struct Brood(NonNull<u8>);

// SAFETY: a block of `kmalloc` that nobody else knows.
unsafe impl Send for Brood {}

static BROODS: AtomicPtr<Pending<Brood, Told>> = AtomicPtr::new(core::ptr::null_mut());
/// So many are yet to come.
static TO_COME: AtomicUsize = AtomicUsize::new(10_000);

impl Brood {
    fn make() -> Self {
        Self(slab::kmalloc(100, AllocFlags::NOWAIT).expect("memory"))
    }
}

// SAFETY: as above; there is no link.
unsafe impl Deferred for Brood {
    fn into_parts(self) -> (NonNull<u8>, Option<NonNull<RcuPtr>>) {
        (self.0, None)
    }

    unsafe fn from_object(object: NonNull<u8>) -> Self {
        Self(object)
    }

    unsafe fn object_of(_: NonNull<RcuPtr>) -> NonNull<u8> {
        unreachable!("it has no link")
    }

    unsafe fn finish(objects: &mut [NonNull<u8>]) {
        for &mut object in objects {
            // SAFETY: by the caller.
            unsafe { slab::kfree(object) };
            if TO_COME.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                // SAFETY: it is there until nothing is to come any more.
                let pending = unsafe { &*BROODS.load(SeqCst) };
                assert!(pending.enqueue(Brood::make()).is_ok(), "there is memory");
                TOLD.fetch_add(1, SeqCst);
            }
        }
    }
}

#[test]
fn who_waits_for_what_was_there_is_not_held_up_by_a_flood() {
    in_own_process(|| {
        machine(1, 1, |cx| {
            let pending =
                std::boxed::Box::leak(std::boxed::Box::new(Pending::new("broods", Told).expect("room for it")));
            BROODS.store(pending, SeqCst);
            let me = sched::current();
            // The worker of this CPU is less urgent, and does not get to it.
            sched::set_prio(me, Prio::CRITICAL);
            assert!(pending.enqueue(Brood::make()).is_ok());
            pending.flush(cx);
            pending.reclaim(false, cx);
            let left = TO_COME.swap(0, SeqCst);
            sched::set_prio(me, Prio::NORMAL);
            assert!(left > 5_000, "only {left} of 10,000 were yet to come");
            // SAFETY: leaked above; nothing comes any more.
            unsafe { core::ptr::read(pending) }.exit(cx);
        });
    });
}

/// An object that readers could be looking at while it changes hands.
struct Slot {
    held: AtomicBool,
    rcu: RcuPtr,
}

has_rcu_ptr!(Slot, rcu);

impl Construct for Slot {
    fn construct() -> Self {
        Slot { held: AtomicBool::new(false), rcu: RcuPtr::new() }
    }
}

/// Threads take objects from what waits, here or anywhere, or from the allocator, and give them back in other numbers.
fn used_again<S: Store>(name: &'static str, cx: &mut MaySleep) {
    let cache = TypesafeCache::<Slot>::create(TypedLayout::new(name)).expect("a cache");
    let cache: &'static TypesafeCache<Slot> = std::boxed::Box::leak(std::boxed::Box::new(cache));
    let pending = Pending::<TypesafeBox<'static, Slot>, TreeRcu, S>::new(name, TreeRcu).expect("room for it");
    let pending = Arc::new(pending);
    let threads = [0, 1].map(|cpu| {
        let pending = pending.clone();
        spawn(cx, Some(cpu), move |cx| {
            let (mut held, mut rng) = (Vec::new(), Rng::new(cpu as u64));
            for _ in 0..300 {
                for _ in 0..rng.index(20) {
                    let found = if rng.chance(1, 8) { pending.dequeue_from_all() } else { pending.dequeue() };
                    let slot = found.or_else(|| cache.alloc(AllocFlags::NOWAIT)).expect("memory");
                    assert!(!slot.held.swap(true, SeqCst), "somebody has it already");
                    held.push(slot);
                }
                for slot in held.drain(..rng.index(held.len() + 1)) {
                    slot.held.store(false, SeqCst);
                    assert!(pending.enqueue(slot).is_ok(), "it has a link");
                }
                sched::cond_resched(cx);
            }
            held.iter().for_each(|slot| slot.held.store(false, SeqCst));
        })
    });
    threads.into_iter().for_each(|thread| thread.join(cx));
    let counts = pending.counts();
    assert!(counts.dequeued > counts.enqueued / 4, "{counts:?}");
    Arc::into_inner(pending).expect("the threads are gone").exit(cx);
    cache.raw().shrink();
    assert_eq!(cache.raw().info().active_objs, 0, "objects are lost");
}

#[test]
fn what_waits_is_used_again_by_one_holder_at_a_time() {
    in_own_process(|| {
        machine(2, 1, |cx| {
            used_again::<Radix>("again_in_trees", cx);
            used_again::<Pages>("again_in_lists", cx);
        });
    });
}
