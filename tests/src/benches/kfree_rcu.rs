//! Objects freed after a grace period.

use kfree_rcu::{RcuPtr, kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;

use super::slab;
use crate::bench;

/// Objects of one sample: many grace periods' worth.
const OBJECTS: u64 = 1_000_000;

bench! {
    /// An object allocated and given up, in the long run: grace periods, callbacks and the frees themselves count, whichever
    /// thread does them, and so does what is left over from the sample before.
    #[goal(counted = 75)]
    fn alloc_and_kfree_rcu(b: &mut Bencher) {
        let cache = slab::cache("bench_kfree_rcu")?;
        b.samples = 5;
        b.sections(OBJECTS, |_| (), |_, ()| {
            for _ in 0..OBJECTS {
                let Some(object) = cache.alloc(AllocFlags::NOWAIT).map(|object| object.cast::<RcuPtr>()) else { continue };
                // SAFETY: a fresh object with room for a head, which nobody else knows.
                unsafe {
                    object.write(RcuPtr::new());
                    kfree_rcu(object);
                }
            }
        });
        kvfree_rcu_barrier(b.cx);
        slab::destroy(cache, b.cx)
    }
}
