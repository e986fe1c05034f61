//! Objects that one node allocates and another frees: straight to their slabs, against a sheaf at a time. On a machine with
//! more than two nodes the bursts are of all other nodes in turn, which is the worst there is for sheaves.
//!
//! The counts of locks and compare-exchanges that go with these figures are notes of the test
//! `slab_numa.what_one_node_allocates_and_another_frees_is_whole_and_comes_home`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use arch::{CpuId, NodeId, cpu};
use mm::AllocFlags;
use sched::Prio;
use slab::RawCache;
use slab::remote::{self, Policy};

use super::slab::{cache, destroy};
use crate::bench::Bencher;
use crate::{Failure, bench, skip};

/// Objects in a sample: four sheaves.
const BURST: usize = 240;
/// Objects that one thread passes to another in a sample.
const PASSED: usize = 20_000;

/// The nodes with memory that are not this CPU's.
fn other_nodes() -> Vec<NodeId> {
    mm::stats::nearest(mm::home::home_node()).skip(1).collect()
}

/// Allocates from all of `nodes` in turn.
fn take(cache: &RawCache, nodes: &[NodeId], held: &mut Vec<NonNull<u8>>) {
    let node = nodes.iter().copied().cycle().take(BURST);
    held.extend(node.filter_map(|node| cache.alloc_node(Some(node), AllocFlags::NOWAIT)));
}

fn give(cache: &RawCache, held: &mut Vec<NonNull<u8>>) {
    // SAFETY: allocated by `take`, each given up once.
    held.drain(..).for_each(|object| unsafe { cache.free(object) });
}

/// Measures allocating a burst from another node, or freeing one.
fn burst(b: &mut Bencher<'_>, policy: Policy, frees: bool) -> Result<(), Failure> {
    let nodes = other_nodes();
    if nodes.is_empty() {
        skip!("needs two nodes with memory");
    }
    let cache = cache("bench_remote")?;
    let before = remote::policy();
    remote::set_policy(policy);
    let held = core::cell::RefCell::new(Vec::with_capacity(BURST));
    // What sheaves, barn and partial lists keep is there from the first sample on.
    take(cache, &nodes, &mut held.borrow_mut());
    give(cache, &mut held.borrow_mut());
    if frees {
        b.sections(
            BURST as u64,
            |_| take(cache, &nodes, &mut held.borrow_mut()),
            |_, ()| give(cache, &mut held.borrow_mut()),
        );
    } else {
        b.sections(
            BURST as u64,
            |_| give(cache, &mut held.borrow_mut()),
            |_, ()| take(cache, &nodes, &mut held.borrow_mut()),
        );
    }
    give(cache, &mut held.borrow_mut());
    remote::set_policy(before);
    destroy(cache, b.cx)
}

/// Measures passing objects through a ring from this CPU to one of another node, which frees them.
fn pass(b: &mut Bencher<'_>, policy: Policy) -> Result<(), Failure> {
    const SLOTS: usize = 256;
    let Some(there) = cpu::online().iter().find(|&there| home(there) != home(cpu::current())) else {
        skip!("needs CPUs of two nodes with memory")
    };
    let cache = cache("bench_pass")?;
    let before = remote::policy();
    remote::set_policy(policy);
    let ring: Arc<Vec<AtomicPtr<u8>>> = Arc::new((0..SLOTS).map(|_| AtomicPtr::new(ptr::null_mut())).collect());
    b.samples = 11;
    b.sections(
        PASSED as u64,
        |cx| {
            let ring = ring.clone();
            sched::spawn(cx, "consumer", Prio::NORMAL, Some(there), move |_| {
                for at in 0..PASSED {
                    let object = loop {
                        // Acquire: pairs with the release below.
                        match NonNull::new(ring[at % SLOTS].swap(ptr::null_mut(), Ordering::Acquire)) {
                            Some(object) => break object,
                            None => arch::irq::relax(),
                        }
                    };
                    // SAFETY: allocated below, and given away.
                    unsafe { cache.free(object) };
                }
            })
        },
        |cx, consumer| {
            let Ok(consumer) = consumer else { return };
            for at in 0..PASSED {
                while !ring[at % SLOTS].load(Ordering::Relaxed).is_null() {
                    arch::irq::relax();
                }
                let object = loop {
                    if let Some(object) = cache.alloc(AllocFlags::NOWAIT) {
                        break object;
                    }
                };
                // Release: pairs with the acquire above.
                ring[at % SLOTS].store(object.as_ptr(), Ordering::Release);
            }
            consumer.join(cx);
        },
    );
    remote::set_policy(before);
    destroy(cache, b.cx)
}

/// The nearest node with memory.
fn home(cpu: CpuId) -> Option<NodeId> {
    mm::stats::nearest(cpu::node_of(cpu)).next()
}

bench! {
    /// Freeing 240 objects of another node, each to its slab.
    fn free_bypass(b: &mut Bencher) {
        burst(b, Policy::Bypass, true)
    }

    /// The same in sheaves to that node's barn.
    fn free_batch(b: &mut Bencher) {
        burst(b, Policy::Batch, true)
    }

    /// Allocating 240 objects of another node from its slabs.
    fn alloc_node_from_slabs(b: &mut Bencher) {
        burst(b, Policy::Bypass, false)
    }

    /// The same from its barn.
    fn alloc_node_from_barn(b: &mut Bencher) {
        burst(b, Policy::Batch, false)
    }

    /// An object from a CPU of one node to one of another that frees it, to its slab. Both CPUs at once.
    fn pass_bypass(b: &mut Bencher) {
        pass(b, Policy::Bypass)
    }

    /// The same with frees in sheaves.
    fn pass_batch(b: &mut Bencher) {
        pass(b, Policy::Batch)
    }
}
