//! Trackers of objects by cookie: nothing is finished under a reader, nothing is lost or stranded, with either store, for RCU
//! and for a domain.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use arch::cpu;
use kfree_rcu::backend::{self, BackEnd, Event};
use kfree_rcu::pending::{self, GivenUp, GracePeriods, Keep, Pages, Pending, Radix, Store, TreeRcu};
use kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu, kfree_rcu_mightsleep, kvfree_rcu_barrier};
use mm::AllocFlags;
use rcu::srcu::{Normal, SrcuDomain, srcu_read_lock};
use slab::{KBox, fail};
use sync::fault::Plan;
use sync::{ATOMIC, IrqGuard, MaySleep};

use crate::together::{MS, soon, spawn};
use crate::toggle::{off, on, others};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

rcu::srcu_domain! {
    /// The domain of this suite.
    static DOMAIN: Normal;
}

/// The domain as a tracker takes it.
const OF_DOMAIN: &SrcuDomain<Normal> = &DOMAIN;

const STAMP: u64 = 0x7065_6e64_696e_6721;

/// Its content is whole as long as it lives; it counts out when it goes.
#[repr(C)]
struct Node {
    stamp: u64,
    alive: Arc<AtomicUsize>,
    rcu: RcuPtr,
    last: u64,
}

has_rcu_ptr!(Node, rcu);

impl Node {
    fn make(alive: &Arc<AtomicUsize>) -> Result<KBox<Node>, Failure> {
        let node = Node { stamp: STAMP, alive: alive.clone(), rcu: RcuPtr::new(), last: STAMP };
        let node = KBox::try_new(node, AllocFlags::NOWAIT).map_err(|error| crate::__failed!("{error}"))?;
        alive.fetch_add(1, SeqCst);
        Ok(node)
    }

    fn is_whole(&self) -> bool {
        // SAFETY: both are fields of a reference.
        unsafe { (&raw const self.stamp).read_volatile() == STAMP && (&raw const self.last).read_volatile() == STAMP }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        (self.stamp, self.last) = (0, 0);
        self.alive.fetch_sub(1, SeqCst);
    }
}

/// A tracker that threads of a test share.
type Nodes<D, S> = Arc<Pending<KBox<Node>, D, S>>;

fn tracker<D: GracePeriods, S: Store>(domain: D) -> Result<Nodes<D, S>, Failure> {
    Ok(Arc::new(Pending::new("rcu_pending", domain).map_err(|error| crate::__failed!("{error}"))?))
}

/// Ends a tracker that all threads are done with.
fn end<D: GracePeriods, S: Store>(nodes: Nodes<D, S>, cx: &mut MaySleep) -> Result<(), Failure> {
    let Some(pending) = Arc::into_inner(nodes) else { return Err(crate::__failed!("a thread has it still")) };
    pending.exit(cx);
    Ok(())
}

fn put<D: GracePeriods, S: Store>(nodes: &Nodes<D, S>, node: KBox<Node>) -> Result<(), Failure> {
    nodes.enqueue(node).map_err(|_| crate::__failed!("an object with a link was refused"))
}

/// A reader was there before objects are given up: their content stays, however hard the tracker is pressed.
fn waits_for_a_reader<D: GracePeriods, S: Store, G: 'static>(
    domain: D,
    enter: fn() -> G,
    cx: &mut MaySleep,
) -> Result<(), Failure> {
    const OBJECTS: usize = 300;
    let (nodes, alive) = (tracker::<D, S>(domain)?, Arc::new(AtomicUsize::new(0)));
    let mut held = Vec::new();
    for _ in 0..OBJECTS {
        held.push(Node::make(&alive)?);
    }
    let seen: Vec<usize> = held.iter().map(|node| core::ptr::from_ref::<Node>(node).expose_provenance()).collect();
    let (entered, leave) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_in, go) = (entered.clone(), leave.clone());
    let reader = spawn(cx, None, move |_| {
        let _section = enter();
        is_in.store(true, SeqCst);
        let mut whole = true;
        while !go.load(SeqCst) {
            for &node in &seen {
                // SAFETY: given up after this section began, so it stays until the section ends.
                whole &= unsafe { (*core::ptr::with_exposed_provenance::<Node>(node)).is_whole() };
            }
            arch::irq::relax();
        }
        whole
    })?;
    ensure!(soon(cx, || entered.load(SeqCst)));
    held.into_iter().try_for_each(|node| put(&nodes, node))?;
    for _ in 0..5 {
        sched::sleep_ns(cx, 10 * MS);
        nodes.reclaim(false, cx);
    }
    let (then, now) = (alive.load(SeqCst), nodes.waiting());
    leave.store(true, SeqCst);
    ensure!(reader.join(cx), "the content changed under a reader");
    ensure_eq!(then, OBJECTS, "objects went under a reader");
    ensure_eq!(now.objects, OBJECTS);
    ensure!(now.bytes >= OBJECTS * size_of::<Node>() && now.oldest_ns >= 40 * MS, "{now:?}");
    nodes.flush(cx);
    ensure_eq!(alive.load(SeqCst), 0);
    end(nodes, cx)
}

/// Objects come from all CPUs over some grace periods, and all go by themselves.
fn strands_nothing<D: GracePeriods, S: Store>(domain: D, cx: &mut MaySleep) -> Result<(), Failure> {
    let (nodes, alive) = (tracker::<D, S>(domain)?, Arc::new(AtomicUsize::new(0)));
    let mut threads = Vec::new();
    for on in cpu::online().iter().take(4) {
        let (nodes, alive) = (nodes.clone(), alive.clone());
        threads.push(spawn(cx, Some(on), move |cx| {
            for lot in 0..20 {
                for _ in 0..70 {
                    let node = Node::make(&alive)?;
                    let _irqs = (lot % 3 == 0).then(|| IrqGuard::new(ATOMIC));
                    put(&nodes, node)?;
                }
                sched::sleep_ns(cx, 2 * MS);
            }
            Ok(())
        })?);
    }
    for thread in threads {
        thread.join(cx)?;
    }
    ensure!(soon(cx, || nodes.waiting().objects == 0), "stranded: {:?} {:?}", nodes.waiting(), nodes.counts());
    ensure_eq!(alive.load(SeqCst), 0);
    let counts = nodes.counts();
    ensure!(counts.callbacks * 20 < counts.enqueued, "{counts:?}: a callback is for many objects");
    end(nodes, cx)
}

/// No node is to be had, nor anything else of such a size: objects with a link go on lists.
fn does_without_nodes<S: Store>(caches: &str, cx: &mut MaySleep) -> Result<(), Failure> {
    let (nodes, alive) = (tracker::<_, S>(TreeRcu)?, Arc::new(AtomicUsize::new(0)));
    let mut held = Vec::new();
    for _ in 0..500 {
        held.push(Node::make(&alive)?);
    }
    let thread = Some(sched::current().tid());
    let refused = fail::with(caches, cx, |selection, _| {
        let armed = selection.arm(Plan::From(1), thread);
        let result = held.into_iter().try_for_each(|node| put(&nodes, node));
        drop(armed);
        result
    });
    refused.map_err(|error| crate::__failed!("{error}"))??;
    ensure!(nodes.counts().linked > 0, "{:?}: a node was found", nodes.counts());
    nodes.flush(cx);
    ensure_eq!(alive.load(SeqCst), 0);
    end(nodes, cx)
}

ktest! {
    /// Content, with a reader of RCU, and with one of a domain.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn nothing_goes_under_a_reader(t: &mut Test) {
        if cpu::online_count() == 1 {
            skip!("the reader needs a CPU of its own");
        }
        waits_for_a_reader::<_, Radix, _>(TreeRcu, || rcu::read_lock(ATOMIC), t.cx)?;
        waits_for_a_reader::<_, Pages, _>(TreeRcu, || rcu::read_lock(ATOMIC), t.cx)?;
        waits_for_a_reader::<_, Radix, _>(OF_DOMAIN, || srcu_read_lock(&DOMAIN), t.cx)?;
        waits_for_a_reader::<_, Pages, _>(OF_DOMAIN, || srcu_read_lock(&DOMAIN), t.cx)
    }

    /// S3-6, S3-13: many grace periods one behind the other, nobody who flushes, and nothing is left behind.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn nothing_is_stranded(t: &mut Test) {
        strands_nothing::<_, Radix>(TreeRcu, t.cx)?;
        strands_nothing::<_, Pages>(TreeRcu, t.cx)?;
        strands_nothing::<_, Radix>(OF_DOMAIN, t.cx)?;
        strands_nothing::<_, Pages>(OF_DOMAIN, t.cx)
    }

    /// A tracker ends with objects on every CPU, grace periods not over, and callbacks and work on their way (S3-15).
    fn a_tracker_ends_with_objects_on_every_cpu(t: &mut Test) {
        for _ in 0..5 {
            let (nodes, alive) = (tracker::<_, Radix>(TreeRcu)?, Arc::new(AtomicUsize::new(0)));
            for on in cpu::online().iter() {
                let (nodes, alive) = (nodes.clone(), alive.clone());
                spawn(t.cx, Some(on), move |_| (0..100).try_for_each(|_| put(&nodes, Node::make(&alive)?)))?.join(t.cx)?;
            }
            end(nodes, t.cx)?;
            ensure_eq!(alive.load(SeqCst), 0);
        }
        Ok(())
    }

    /// S3-7: the store's nodes are not to be had.
    fn without_memory_objects_wait_on_lists(t: &mut Test) {
        // What `kmalloc_nolock` falls back to as well.
        does_without_nodes::<Radix>("kmalloc-512,kmalloc-1k,kmalloc-2k", t.cx)
    }

    /// S3-8, S3-11: vmalloc areas, large blocks and objects without a head, with memory for nodes and without, and without even
    /// that for a head: then the caller is told, or waits.
    fn objects_without_a_head_get_one_or_are_refused(t: &mut Test) {
        let given_up: Pending<GivenUp> = match Pending::new("given_up", TreeRcu) {
            Ok(given_up) => given_up,
            Err(error) => return Err(crate::__failed!("{error}")),
        };
        let mut given = Vec::new();
        for i in 0..120 {
            let object = match i % 3 {
                0 => mm::vmalloc(20_000, t.cx).ok(),
                1 => slab::kmalloc(50_000, AllocFlags::NOWAIT),
                _ => slab::kmalloc(100, AllocFlags::NOWAIT),
            };
            let Some(object) = object else { return Err(crate::__failed!("no memory")) };
            // SAFETY: fresh, and nobody else's.
            given.push(unsafe { GivenUp::new(object, None) });
        }
        let left = given.split_off(90);
        let second = given.split_off(45);
        let areas = given.iter().filter(|given| mm::is_vmalloc(given.object().as_ptr())).count() as u64;
        for object in given {
            ensure!(given_up.enqueue(object).is_ok(), "there is memory");
        }
        ensure_eq!(given_up.counts().linked, areas, "areas, and nothing else, are on lists");
        let thread = Some(sched::current().tid());
        let (mut refused, nodes) = (Vec::new(), "kmalloc-512,kmalloc-1k,kmalloc-2k");
        fail::with(nodes, t.cx, |selection, _| {
            let _armed = selection.arm(Plan::From(1), thread);
            refused.extend(second.into_iter().filter_map(|object| given_up.enqueue(object).err()));
        })
        .map_err(|error| crate::__failed!("{error}"))?;
        ensure_eq!(refused.len(), 0, "a head of 16 bytes was to be had");
        // Nothing at all, and a fresh bucket.
        given_up.flush(t.cx);
        let all = fail::with("kmalloc-*", t.cx, |selection, cx| {
            let mut refused = 0;
            for object in left {
                let armed = selection.arm(Plan::From(1), thread);
                let result = given_up.enqueue(object);
                drop(armed);
                let Err(object) = result else { continue };
                refused += 1;
                if refused == 1 {
                    let armed = selection.arm(Plan::From(1), thread);
                    given_up.enqueue_mightsleep(object, cx);
                    drop(armed);
                } else {
                    given_up.enqueue_mightsleep(object, cx);
                }
            }
            refused
        });
        ensure!(all.map_err(|error| crate::__failed!("{error}"))? > 0, "there was memory after all");
        given_up.exit(t.cx);
        Ok(())
    }

    /// What a CPU that went had taken is finished all the same; its callback and work go elsewhere.
    fn objects_of_a_cpu_that_went_are_finished(t: &mut Test) {
        let target = others(t.cx)?[0];
        let (nodes, alive) = (tracker::<_, Radix>(TreeRcu)?, Arc::new(AtomicUsize::new(0)));
        for _ in 0..3 {
            let (theirs, count) = (nodes.clone(), alive.clone());
            spawn(t.cx, Some(target), move |_| (0..200).try_for_each(|_| put(&theirs, Node::make(&count)?)))?.join(t.cx)?;
            off(target, t.cx)?;
            let gone = soon(t.cx, || nodes.waiting().objects == 0);
            on(target, t.cx)?;
            ensure!(gone, "stranded on {target}: {:?}", nodes.waiting());
        }
        ensure_eq!(alive.load(SeqCst), 0);
        end(nodes, t.cx)
    }

    /// The back end over a tracker, with either store: caches' objects, large blocks, areas, with a head and without.
    fn both_stores_serve_kfree_rcu(t: &mut Test) {
        let (at_first, kept) = (backend::current(), pending::store());
        for keep in Keep::ALL {
            pending::set_store(keep);
            backend::switch(BackEnd::Pending, t.cx);
            let count = |event| backend::total(BackEnd::Pending, event);
            let (enqueued, freed) = (count(Event::Enqueued), count(Event::Freed));
            for i in 0..600 {
                let object = match i % 20 {
                    0 => mm::vmalloc(20_000, t.cx).ok(),
                    1 => slab::kmalloc(50_000, AllocFlags::NOWAIT),
                    _ => slab::kmalloc(24 + i, AllocFlags::NOWAIT),
                };
                let Some(object) = object else { return Err(crate::__failed!("no memory")) };
                if i % 3 == 0 {
                    // SAFETY: fresh, and nobody else's.
                    unsafe { kfree_rcu_mightsleep(object, t.cx) };
                } else {
                    // SAFETY: as above; it begins with room for a head.
                    unsafe { kfree_rcu(object.cast()) };
                }
            }
            kvfree_rcu_barrier(t.cx);
            ensure!(count(Event::Enqueued) >= enqueued + 600, "{}: some went elsewhere", keep.name());
            ensure_eq!(count(Event::Freed) - freed, count(Event::Enqueued) - enqueued, "{}", keep.name());
            ensure_eq!(BackEnd::Pending.waiting().objects, 0, "{}", keep.name());
        }
        pending::set_store(kept);
        backend::switch(at_first, t.cx);
        Ok(())
    }

    /// S3-17: what has expired is given back without a new grace period; only if that is not enough one is expedited.
    fn reclaim_takes_what_has_expired_before_it_hurries(t: &mut Test) {
        let (nodes, alive) = (tracker::<_, Pages>(TreeRcu)?, Arc::new(AtomicUsize::new(0)));
        for _ in 0..100 {
            put(&nodes, Node::make(&alive)?)?;
        }
        let before = rcu::stats().exp_gps;
        let bytes = nodes.waiting().bytes;
        rcu::synchronize_rcu(t.cx);
        let freed = nodes.reclaim(true, t.cx);
        // A worker may have been first.
        ensure!(soon(t.cx, || alive.load(SeqCst) == 0) && freed <= bytes, "{freed} of {bytes} bytes");
        let after = rcu::stats().exp_gps;
        for _ in 0..100 {
            put(&nodes, Node::make(&alive)?)?;
        }
        nodes.reclaim(true, t.cx);
        ensure!(soon(t.cx, || alive.load(SeqCst) == 0));
        t.note(format_args!("{} expedited at first, {} then", after - before, rcu::stats().exp_gps - after));
        // Alone, a CPU need not run one.
        ensure!(rcu::stats().exp_gps > after || cpu::online_count() == 1, "nothing was expedited although nothing had expired");
        end(nodes, t.cx)
    }
}
