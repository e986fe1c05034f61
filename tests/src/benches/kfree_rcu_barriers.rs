//! What a barrier takes while objects wait in many caches: over all of them, and for one (D-8).

use alloc::vec::Vec;

use kfree_rcu::{RcuPtr, kfree_rcu, kvfree_rcu_barrier, kvfree_rcu_barrier_on_cache};
use mm::AllocFlags;
use slab::RawCache;
use sync::MaySleep;

use super::slab::{cache, destroy};
use crate::bench::Bencher;
use crate::together::spawn;
use crate::{Failure, bench};

/// Caches in which objects wait.
const CACHES: usize = 20;
/// Objects of each cache that each CPU gives up: less than a sheaf.
const OBJECTS: usize = 5;
/// Barriers that are measured.
const SAMPLES: usize = 21;

/// Has objects of all caches wait on every CPU.
fn fill(caches: &[&'static RawCache], cx: &mut MaySleep) -> Result<(), Failure> {
    for cpu in arch::cpu::online().iter() {
        let caches = caches.to_vec();
        let thread = spawn(cx, Some(cpu), move |_| {
            for cache in caches.iter().flat_map(|cache| [*cache; OBJECTS]) {
                let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { continue };
                let head = object.cast::<RcuPtr>();
                // SAFETY: a fresh object with room for a head, which nobody else knows.
                unsafe {
                    head.write(RcuPtr::new());
                    kfree_rcu(head);
                }
            }
        })?;
        thread.join(cx);
    }
    Ok(())
}

/// Measures `barrier` while objects wait in all caches.
fn measure(b: &mut Bencher<'_>, barrier: fn(&'static RawCache, &mut MaySleep)) -> Result<(), Failure> {
    let caches: Vec<&'static RawCache> = (0..CACHES).map(|_| cache("bench_barriers")).collect::<Result<_, _>>()?;
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        fill(&caches, b.cx)?;
        let begin = arch::clock::now_ns();
        barrier(caches[0], b.cx);
        times.push(arch::clock::now_ns() - begin);
    }
    b.waited(times);
    caches.into_iter().try_for_each(|cache| destroy(cache, b.cx))
}

bench! {
    /// For one cache.
    fn one_cache(b: &mut Bencher) {
        measure(b, kvfree_rcu_barrier_on_cache)
    }

    /// Over all.
    fn all_caches(b: &mut Bencher) {
        measure(b, |_, cx| kvfree_rcu_barrier(cx))
    }
}
