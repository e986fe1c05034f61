//! Readers, callbacks and grace periods.

use alloc::boxed::Box;

use rcu::{call_rcu, rcu_barrier, read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sync::CallbackHead;

use crate::bench;

/// Callbacks that one sample queues.
const BATCH: usize = 256;

bench! {
    /// The read side, when nothing is wanted of the reader.
    #[goal(counted = 6)]
    fn read_lock_unlock(b: &mut Bencher) {
        b.each(1, |cx| drop(read_lock(cx)));
        Ok(())
    }

    /// Queueing a callback; the callbacks have run before the next sample.
    #[goal(counted = 40)]
    fn call_rcu_enqueue(b: &mut Bencher) {
        let heads = Box::leak(Box::new([const { CallbackHead::new() }; BATCH])).as_mut_ptr();
        b.sections(BATCH as u64, rcu_barrier, |_, ()| {
            for i in 0..BATCH {
                // SAFETY: leaked, so it stays; not queued, for the barrier has waited for its callback.
                unsafe { call_rcu(heads.add(i), |_| {}) };
            }
        });
        rcu_barrier(b.cx);
        Ok(())
    }

    /// A grace period of an idle machine.
    #[goal(counted = 4_000_000, timed = 4_000_000)]
    fn synchronize_idle(b: &mut Bencher) {
        b.waits(synchronize_rcu);
        Ok(())
    }

    /// An expedited one.
    #[goal(counted = 4_000, timed = 40_000)]
    fn synchronize_expedited(b: &mut Bencher) {
        b.waits(synchronize_rcu_expedited);
        Ok(())
    }
}
