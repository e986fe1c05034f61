//! `kfree_srcu`: objects wait for the readers of their domain, who sleep, and for nobody else's.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use alloc::vec::Vec;

use kfree_rcu::pending::{GivenUp, Pending, TreeRcu};
use kfree_rcu::srcu::SrcuTracker;
use kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_srcu, kfree_srcu_mightsleep, kfree_srcu_owned};
use mm::AllocFlags;
use rcu::srcu::{Fast, Normal, srcu_read_lock, synchronize_srcu};
use slab::typed::{Cache, CacheBox, TypedLayout};
use slab::{CacheFlags, KBox};
use sync::Rng;

use crate::together::{MS, spawn};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

rcu::srcu_domain! {
    /// Readers of the objects here.
    static READERS: Normal;
    /// The same with readers that cost nothing.
    static FAST_READERS: Fast;
}

const TAG: u64 = 0x5ac0_0f00;

struct Node {
    tags: [u64; 6],
    rcu: RcuPtr,
    last: u64,
}

has_rcu_ptr!(Node, rcu);

impl Node {
    fn new() -> Self {
        Node { tags: [TAG; 6], rcu: RcuPtr::new(), last: TAG }
    }

    /// Whether the object at `node` is one, as far as its owner wrote it.
    ///
    /// # Safety
    /// The caller keeps it from being freed, or what it looks at is what it wants to know.
    unsafe fn is_whole(node: *const Node) -> bool {
        // SAFETY: by the caller.
        unsafe {
            (&raw const (*node).tags).read_volatile() == [TAG; 6] && (&raw const (*node).last).read_volatile() == TAG
        }
    }
}

fn tracker(name: &'static str) -> Result<SrcuTracker<Normal>, Failure> {
    SrcuTracker::new(name, &READERS).map_err(|error| crate::__failed!("{error:?}"))
}

fn cache(name: &'static str) -> Result<Cache<Node>, Failure> {
    Cache::create(TypedLayout::new(name).flags(CacheFlags::NO_MERGE)).map_err(|error| crate::__failed!("{error}"))
}

ktest! {
    /// A reader sleeps with an object in hand, through grace periods of RCU, and sees its content to the end.
    #[tags(race)]
    fn an_object_waits_for_a_reader_that_sleeps(t: &mut Test) {
        static PUBLISHED: AtomicPtr<Node> = AtomicPtr::new(core::ptr::null_mut());
        static ENTERED: AtomicBool = AtomicBool::new(false);
        static GO: AtomicBool = AtomicBool::new(false);
        let (tracker, nodes) = (tracker("test_sleeps")?, cache("test_srcu_sleeps")?);
        let node = nodes.alloc(Node::new(), AllocFlags::NOWAIT).map_err(|_| crate::__failed!("no memory"))?;
        PUBLISHED.store(CacheBox::into_raw(node).as_ptr(), Release);
        ENTERED.store(false, Relaxed);
        GO.store(false, Relaxed);
        let reader = spawn(t.cx, None, |cx| {
            let section = srcu_read_lock(&READERS);
            let node = PUBLISHED.load(Acquire);
            ENTERED.store(true, Release);
            let mut whole = true;
            while !GO.load(Acquire) {
                // SAFETY: found in the section, which lasts.
                whole &= unsafe { Node::is_whole(node) };
                sched::sleep_ns(cx, MS);
            }
            // SAFETY: as above.
            whole &= unsafe { Node::is_whole(node) };
            drop(section);
            whole
        })?;
        while !ENTERED.load(Acquire) {
            sched::sleep_ns(t.cx, MS / 10);
        }
        let old = NonNull::new(PUBLISHED.swap(core::ptr::null_mut(), Relaxed)).expect("published above");
        // SAFETY: unpublished; from `into_raw` of a box of this cache.
        kfree_srcu_owned(&tracker, unsafe { CacheBox::from_raw(old, &nodes) });
        for _ in 0..3 {
            rcu::synchronize_rcu_expedited(t.cx);
            // Whoever gets the object writes all over it.
            let others: Vec<_> = (0..50).filter_map(|_| nodes.alloc(Node::new(), AllocFlags::NOWARN).ok()).collect();
            for mut other in others {
                ensure!(!core::ptr::eq(&raw const *other, old.as_ptr()), "handed out while a reader is in it");
                other.tags = [0; 6];
            }
        }
        ensure_eq!(tracker.waiting().objects, 1, "it waits");
        GO.store(true, Release);
        ensure!(reader.join(t.cx), "the content changed under a reader");
        tracker.flush(t.cx);
        ensure_eq!(tracker.waiting().objects, 0);
        tracker.exit(t.cx);
        nodes.destroy(t.cx).map_err(|(_, leaked)| crate::__failed!("{leaked:?}"))
    }

    /// Objects of caches, kmalloc and vmalloc, with a head and without, given up on all CPUs, are all freed.
    #[tags(race)]
    fn every_kind_of_object_that_was_given_up_is_freed(t: &mut Test) {
        static GIVEN: AtomicUsize = AtomicUsize::new(0);
        let (tracker, nodes) = (alloc::sync::Arc::new(tracker("test_kinds")?), cache("test_srcu_kinds")?);
        let owner = alloc::boxed::Box::into_raw(alloc::boxed::Box::new(nodes));
        // SAFETY: valid until it is taken back below, when the threads are gone.
        let nodes: &'static Cache<Node> = unsafe { &*owner };
        GIVEN.store(0, Relaxed);
        let mut threads = Vec::new();
        for on in arch::cpu::online().iter() {
            let (tracker, mut rng) = (tracker.clone(), Rng::new(t.rng.next_u64()));
            threads.push(spawn(t.cx, Some(on), move |cx| {
                for _ in 0..150 {
                    let kind = rng.index(5);
                    let bytes = match kind {
                        0 => {
                            let Ok(node) = nodes.alloc(Node::new(), AllocFlags::NOWAIT) else { continue };
                            kfree_srcu_owned(&tracker, node);
                            None
                        }
                        1 => {
                            let Ok(node) = KBox::try_new(Node::new(), AllocFlags::NOWAIT) else { continue };
                            kfree_srcu_owned(&tracker, node);
                            None
                        }
                        2 => slab::kmalloc(20_000, AllocFlags::NOWAIT),
                        3 => mm::vmalloc(9_000, cx).ok(),
                        _ => slab::kmalloc(100, AllocFlags::NOWAIT),
                    };
                    GIVEN.fetch_add(usize::from(kind < 2 || bytes.is_some()), Relaxed);
                    let Some(bytes) = bytes else { continue };
                    // SAFETY: a fresh block that nobody else knows, with room for a head where one is used.
                    unsafe {
                        if rng.chance(1, 2) {
                            bytes.cast::<RcuPtr>().write(RcuPtr::new());
                            kfree_srcu(&tracker, bytes.cast());
                        } else {
                            kfree_srcu_mightsleep(&tracker, bytes, cx);
                        }
                    }
                    sched::cond_resched(cx);
                }
            })?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        tracker.flush(t.cx);
        ensure_eq!(tracker.waiting().objects, 0);
        ensure_eq!(tracker.waiting().bytes, 0);
        ensure!(GIVEN.load(Relaxed) > 100, "hardly anything was given up");
        t.note(format_args!("{} objects, {:?}", GIVEN.load(Relaxed), tracker.counts()));
        let Some(tracker) = alloc::sync::Arc::into_inner(tracker) else {
            return Err(crate::__failed!("a thread has ended, and still has the tracker"));
        };
        tracker.exit(t.cx);
        // SAFETY: from `into_raw` above; what borrowed it is gone.
        let nodes = *unsafe { alloc::boxed::Box::from_raw(owner) };
        nodes.destroy(t.cx).map_err(|(_, leaked)| crate::__failed!("{leaked:?}"))
    }

    /// A tracker knows its domain: a reader of another one, or of RCU, holds nothing up.
    fn readers_of_other_domains_hold_nothing_up(t: &mut Test) {
        let (tracker, nodes) = (tracker("test_domains")?, cache("test_srcu_domains")?);
        let fast: SrcuTracker<Fast> =
            SrcuTracker::new("test_fast", &FAST_READERS).map_err(|error| crate::__failed!("{error:?}"))?;
        let of_rcu: Pending<GivenUp, TreeRcu> =
            Pending::new("test_rcu", TreeRcu).map_err(|error| crate::__failed!("{error:?}"))?;
        let node = || nodes.alloc(Node::new(), AllocFlags::NOWAIT).map_err(|_| crate::__failed!("no memory"));
        {
            let section = srcu_read_lock(&READERS);
            kfree_srcu_owned(&tracker, node()?);
            kfree_srcu_owned(&fast, node()?);
            kfree_srcu_owned(&of_rcu, node()?);
            fast.flush(t.cx);
            of_rcu.flush(t.cx);
            ensure_eq!((fast.waiting().objects, of_rcu.waiting().objects), (0, 0), "held up by another domain's reader");
            ensure_eq!(tracker.waiting().objects, 1, "not held up by the domain's own reader");
            drop(section);
        }
        synchronize_srcu(&READERS, t.cx);
        tracker.exit(t.cx);
        fast.exit(t.cx);
        of_rcu.exit(t.cx);
        nodes.destroy(t.cx).map_err(|(_, leaked)| crate::__failed!("{leaked:?}"))
    }

    /// Builds with assertions find an object that waits and is given up again, or freed; it is freed once.
    fn an_object_that_waits_is_neither_given_up_again_nor_freed(t: &mut Test) {
        if !cfg!(debug_assertions) {
            skip!("needs assertions");
        }
        t.damages_slabs = true;
        let (tracker, nodes) = (tracker("test_twice")?, cache("test_srcu_twice")?);
        let node = nodes.alloc(Node::new(), AllocFlags::NOWAIT).map_err(|_| crate::__failed!("no memory"))?;
        let node = CacheBox::into_raw(node);
        // SAFETY: inside the node.
        let head = unsafe { node.byte_add(core::mem::offset_of!(Node, rcu)) }.cast::<RcuPtr>();
        let before = slab::debug::reports();
        let section = srcu_read_lock(&READERS);
        // SAFETY: what is wrong with it is what the test is about; the checks are there to notice.
        unsafe {
            kfree_srcu(&tracker, head);
            kfree_srcu(&tracker, head);
            kfree_srcu_mightsleep(&tracker, node.cast(), t.cx);
            slab::kfree(node.cast());
        }
        let (waiting, reports) = (tracker.waiting().objects, slab::debug::reports() - before);
        drop(section);
        tracker.exit(t.cx);
        ensure_eq!((waiting, reports), (1, 3), "objects that wait, and reports");
        nodes.destroy(t.cx).map_err(|(_, leaked)| crate::__failed!("{leaked:?}"))
    }
}
