//! Barriers of `kfree_rcu` that begin in the worst moment. In the profile `mutants` alone: the other builds have no hooks.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use arch::{CpuId, clock, cpu};
use kfree_rcu::{kfree_rcu_nolock, kfree_rcu_object, kvfree_rcu_barrier_on_cache};
use slab::RawCache;
use sync::mutants::{Site, attach};
use sync::nmi::as_nmi;
use sync::{ATOMIC, IrqGuard, PreemptGuard, smp};

use crate::kfree::{Node, cache, ensure_all_back, ensure_none_in_use, head, node};
use crate::outcome::needs_sheaves;
use crate::run::Test;
use crate::toggle::{MS, spawn};
use crate::{Failure, ensure, ktest, skip};

/// Barriers in each test.
const ROUNDS: usize = 5;

ktest! {
    /// What an NMI deferred enters a sheaf first, and that sheaf is submitted then (S1-16).
    fn a_barrier_waits_for_what_was_deferred_when_it_began(t: &mut Test) {
        let cache = cache("test_hook_deferred")?;
        needs_sheaves(cache)?;
        let defer = |site: &'static Site| {
            if let Some(node) = here_at(site, "slab.sheaves").and_then(|()| NonNull::new(DEFERRED.swap(ptr::null_mut(), Relaxed))) {
                // SAFETY: the test gave it up to who takes it from here.
                as_nmi(|| unsafe { kfree_rcu_nolock(head(node)) });
            }
        };
        meet(cache, t, defer, |cache| {
            let Some(last) = node(cache) else { return };
            let Some(other) = node(cache) else { return };
            let _off = IrqGuard::new(ATOMIC);
            DEFERRED.store(last.as_ptr(), Relaxed);
            // SAFETY: allocated above, and nobody else knows it.
            unsafe { kfree_rcu_object(other) };
            MOMENT.store(HERE, SeqCst);
            // Until the barrier asks this CPU for something.
            wait_a_moment();
        })?;
        ensure!(DEFERRED.load(Relaxed).is_null(), "nobody came by");
        Ok(())
    }

    /// A sheaf that has just left its CPU is a callback already (S0-7).
    fn a_barrier_waits_for_a_sheaf_that_is_full_when_it_begins(t: &mut Test) {
        let cache = cache("test_hook_detached")?;
        needs_sheaves(cache)?;
        let pause = |site: &'static Site| {
            if here_at(site, "slab.unlocked.rcu_free_gone").is_some() {
                MOMENT.store(HERE, SeqCst);
                wait_a_moment();
            }
        };
        meet(cache, t, pause, |cache| {
            for _ in 0..cache.sheaf_capacity() {
                // SAFETY: allocated here, and nobody else knows it.
                node(cache).into_iter().for_each(|node| unsafe { kfree_rcu_object(node) });
            }
        })
    }

    /// So is one that is not full, and that somebody else has just taken off its CPU (S0-12).
    fn a_barrier_waits_for_a_sheaf_that_another_flush_has_taken(t: &mut Test) {
        let cache = cache("test_hook_flushed")?;
        needs_sheaves(cache)?;
        let pause = |site: &'static Site| {
            if here_at(site, "slab.unlocked.flushed").is_some() {
                MOMENT.store(HERE, SeqCst);
                wait_a_moment();
            }
        };
        meet(cache, t, pause, |cache| {
            let Some(node) = node(cache) else { return };
            let node = node.as_ptr().expose_provenance();
            // On the CPU that is flushed first.
            let first = cpu::online().iter().next().expect("a CPU");
            smp::run_on(first, move || {
                let node = NonNull::new(ptr::with_exposed_provenance_mut::<Node>(node)).expect("a node");
                // SAFETY: allocated above, and nobody else knows it.
                unsafe { kfree_rcu_object(node) };
            });
            cache.flush_cpus();
        })
    }
}

/// The CPU that the handlers are for.
static ON: AtomicUsize = AtomicUsize::new(usize::MAX);
/// What a handler gives up.
static DEFERRED: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// How far the two CPUs have come.
static MOMENT: AtomicUsize = AtomicUsize::new(BEFORE);
const BEFORE: usize = 0;
/// The one is in its moment, and waits there for the barrier of the other to be over, or for a while.
const HERE: usize = 1;
const OVER: usize = 2;

fn here_at(site: &'static Site, name: &str) -> Option<()> {
    (site.name == name && cpu::current().index() == ON.load(Relaxed) && MOMENT.load(Relaxed) == BEFORE).then_some(())
}

/// Gives a barrier the time to end too early.
fn wait_a_moment() {
    let end = clock::now_ns() + 10 * MS;
    while MOMENT.load(SeqCst) == HERE && clock::now_ns() < end {
        arch::irq::relax();
    }
}

/// Has one CPU do `act`, which comes to a moment at which another begins a barrier; what was given up before is free then.
fn meet(
    cache: &'static RawCache,
    t: &mut Test<'_>,
    handler: fn(&'static Site),
    act: fn(&'static RawCache),
) -> Result<(), Failure> {
    let cpus: alloc::vec::Vec<CpuId> = cpu::online().iter().take(2).collect();
    let [mine, other] = cpus[..] else { skip!("needs two CPUs") };
    for _ in 0..ROUNDS {
        MOMENT.store(BEFORE, SeqCst);
        ON.store(other.index(), Relaxed);
        let attached = attach(handler);
        ensure!(attached.is_some(), "somebody else is attached");
        let actor = spawn(t.cx, Some(other), move |_| {
            let _pin = PreemptGuard::new(ATOMIC);
            act(cache);
        })?;
        let waiter = spawn(t.cx, Some(mine), move |cx| {
            while MOMENT.load(SeqCst) != HERE {
                sched::yield_now(cx);
            }
            kvfree_rcu_barrier_on_cache(cache, cx);
            MOMENT.store(OVER, SeqCst);
            ensure_none_in_use(cache, cx)
        })?;
        let result = waiter.join(t.cx);
        actor.join(t.cx);
        drop(attached);
        result?;
    }
    ensure_all_back(cache, t.cx)
}
