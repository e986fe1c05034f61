//! What happens to a tracker while one that takes an object looks for memory, its lock dropped. In the profile `mutants` alone:
//! the other builds have no hooks.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use arch::cpu;
use kfree_rcu::pending::{Pending, TreeRcu};
use kfree_rcu::{RcuPtr, has_rcu_ptr};
use mm::AllocFlags;
use rcu::srcu::{Normal, SrcuDomain, synchronize_srcu};
use slab::KBox;
use sync::Once;
use sync::mutants::{Site, attach};

use crate::together::{soon, spawn, spin_until};
use crate::{ensure, ensure_eq, ktest, skip};

rcu::srcu_domain! {
    /// The domain of this suite.
    static DOMAIN: Normal;
}

/// Counts out when it goes.
struct Node {
    rcu: RcuPtr,
}

has_rcu_ptr!(Node, rcu);

static ALIVE: AtomicUsize = AtomicUsize::new(0);

impl Drop for Node {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, SeqCst);
    }
}

fn node() -> Option<KBox<Node>> {
    let node = KBox::try_new(Node { rcu: RcuPtr::new() }, AllocFlags::NOWAIT).ok()?;
    ALIVE.fetch_add(1, SeqCst);
    Some(node)
}

/// Somebody steps in once.
static MAY: AtomicBool = AtomicBool::new(false);

fn is_meant(site: &Site) -> bool {
    site.name == "kfree_rcu.pending.unlocked" && MAY.swap(false, SeqCst)
}

/// The tracker that is stepped into.
static STEPPED: Once<&'static Pending<KBox<Node>>> = Once::new();

/// Takes 100 objects in, as interrupts would.
fn fill_bucket(site: &'static Site) {
    if is_meant(site)
        && let Some(pending) = STEPPED.get()
    {
        (0..100).filter_map(|_| node()).for_each(|node| _ = pending.enqueue(node));
    }
}

/// What the grace period of a domain does to an object on its way in.
static WAITED: AtomicUsize = AtomicUsize::new(0);

/// Has a grace period of the domain pass.
fn let_pass(site: &'static Site) {
    if is_meant(site) {
        WAITED.store(1, SeqCst);
        spin_until(|| WAITED.load(SeqCst) == 2);
    }
}

ktest! {
    /// S3-5: the tree that lacked a node has become another one when the node is there.
    fn a_tree_that_others_fill_meanwhile_takes_the_node_or_needs_none(t: &mut Test) {
        let pending = Pending::new("stepped", TreeRcu).map_err(|error| crate::__failed!("{error}"))?;
        let pending: &'static Pending<KBox<Node>> = STEPPED.call_once(|| Box::leak(Box::new(pending)));
        let before = pending.counts().enqueued;
        for _ in 0..20 {
            let attached = attach(fill_bucket);
            ensure!(attached.is_some(), "somebody else is attached");
            MAY.store(true, SeqCst);
            for _ in 0..70 {
                let Some(node) = node() else { return Err(crate::__failed!("no memory")) };
                ensure!(pending.enqueue(node).is_ok(), "it has a link");
            }
            drop(attached);
            ensure!(!MAY.load(SeqCst), "nobody looked for memory");
            pending.flush(t.cx);
        }
        ensure_eq!(pending.counts().enqueued - before, 20 * 170);
        ensure_eq!(pending.counts().linked, 0, "there is memory");
        ensure_eq!((pending.waiting().objects, ALIVE.load(SeqCst)), (0, 0));
        Ok(())
    }

    /// S3-9: the grace period that an object needs passes while memory is looked for.
    fn an_object_whose_grace_period_passes_on_the_way_in_is_finished_at_once(t: &mut Test) {
        let here = cpu::current();
        let Some(other) = cpu::online().iter().find(|&other| other != here) else { skip!("needs 2 CPUs") };
        let of_domain: &'static SrcuDomain<Normal> = &DOMAIN;
        let pending = Pending::<KBox<Node>, _>::new("passed", of_domain).map_err(|error| crate::__failed!("{error}"))?;
        let passer = spawn(t.cx, Some(other), move |cx| {
            let asked = soon(cx, || WAITED.load(SeqCst) == 1);
            synchronize_srcu(&DOMAIN, cx);
            WAITED.store(2, SeqCst);
            asked
        })?;
        let Some(node) = node() else { return Err(crate::__failed!("no memory")) };
        let attached = attach(let_pass);
        ensure!(attached.is_some(), "somebody else is attached");
        MAY.store(true, SeqCst);
        let is_taken = pending.enqueue(node).is_ok();
        let (alive, counts) = (ALIVE.load(SeqCst), pending.counts());
        drop(attached);
        ensure!(passer.join(t.cx), "nobody looked for memory");
        ensure!(is_taken);
        ensure_eq!((alive, counts.enqueued), (0, 0), "it waits for what is over");
        pending.exit(t.cx);
        Ok(())
    }
}
