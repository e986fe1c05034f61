//! Readers of each flavour, callbacks and grace periods of SRCU.

use alloc::boxed::Box;

use rcu::srcu::{Fast, FastUpDown, NmiSafe, Normal, call_srcu, srcu_barrier, srcu_down_read, srcu_read_lock};
use rcu::srcu::{synchronize_srcu, synchronize_srcu_expedited};
use sync::CallbackHead;

use crate::bench;

rcu::srcu_domain! {
    static NORMAL: Normal;
    static NMI_SAFE: NmiSafe;
    static FAST: Fast;
    static FAST_UPDOWN: FastUpDown;
}

/// Callbacks that one sample queues: fewer than a flood.
const BATCH: usize = 128;

bench! {
    /// A section of a normal reader: two full barriers, which the compiler makes one, as nothing is between them.
    #[goal(counted = 8)]
    fn read_pair(b: &mut Bencher) {
        b.each(1, |_| drop(srcu_read_lock(&NORMAL)));
        Ok(())
    }

    /// Of an NMI-safe one: two locked increments.
    #[goal(counted = 6)]
    fn read_pair_nmi_safe(b: &mut Bencher) {
        b.each(1, |_| drop(srcu_read_lock(&NMI_SAFE)));
        Ok(())
    }

    /// Of a fast one.
    #[goal(counted = 6)]
    fn read_pair_fast(b: &mut Bencher) {
        b.each(1, |_| drop(srcu_read_lock(&FAST)));
        Ok(())
    }

    /// Of a fast one that could be handed over.
    #[goal(counted = 6)]
    fn read_pair_fast_updown(b: &mut Bencher) {
        b.each(1, |_| drop(srcu_down_read(&FAST_UPDOWN)));
        Ok(())
    }

    /// Queueing a callback; the callbacks have run before the next sample.
    fn call_srcu_enqueue(b: &mut Bencher) {
        let heads = Box::leak(Box::new([const { CallbackHead::new() }; BATCH])).as_mut_ptr();
        let barrier = |cx: &mut sync::MaySleep| srcu_barrier(&NORMAL, cx);
        b.sections(BATCH as u64, barrier, |_, ()| {
            for i in 0..BATCH {
                // SAFETY: leaked, so it stays; not queued, for the barrier has waited for its callback.
                unsafe { call_srcu(&NORMAL, heads.add(i), |_| {}) };
            }
        });
        srcu_barrier(&NORMAL, b.cx);
        Ok(())
    }

    /// A grace period of a domain without readers, one after another: not the first after a while.
    fn synchronize_idle(b: &mut Bencher) {
        b.waits(|cx| synchronize_srcu(&NORMAL, cx));
        Ok(())
    }

    /// An expedited one.
    fn synchronize_expedited(b: &mut Bencher) {
        b.waits(|cx| synchronize_srcu_expedited(&NORMAL, cx));
        Ok(())
    }

    /// An expedited one of a fast domain: two expedited ones of RCU.
    fn synchronize_expedited_fast(b: &mut Bencher) {
        b.waits(|cx| synchronize_srcu_expedited(&FAST, cx));
        Ok(())
    }
}
