//! Objects freed after a grace period, each back end in instructions: allocated and given up, in the long run. Grace periods,
//! callbacks and the frees themselves count, whichever thread does them, and so does what is left over from the sample before.

use core::ptr::NonNull;

use ::slab::RawCache;
use arrayvec::ArrayVec;
use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::pending::{Keep, set_store};
use kfree_rcu::{RcuPtr, kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;
use sync::MaySleep;

use super::slab;
use crate::bench::Bencher;
use crate::{Failure, bench};

/// Objects of one sample: many grace periods' worth.
const OBJECTS: u64 = 1_000_000;

/// After so many objects another CPU gets a turn. Where one host thread runs all CPUs that is the only one for whoever drives the
/// grace periods there: a CPU that never pauses goes on from tick to tick, and the other one does no more than take its tick.
const TURN: u64 = 1_000;

/// Objects of a sample of the call alone: fewer than a sheaf of them holds.
const FEW: u64 = 32;

/// So many objects, fewer if there is no memory.
#[inline(always)]
fn objects(cache: &'static RawCache, n: u64) -> impl Iterator<Item = NonNull<RcuPtr>> {
    (0..n).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).map(NonNull::cast)
}

/// Gives up what [`objects`] gave.
#[inline(always)]
fn give_up(object: NonNull<RcuPtr>) {
    // SAFETY: a fresh object with room for a head, which nobody else knows.
    unsafe {
        object.write(RcuPtr::new());
        kfree_rcu(object);
    }
}

/// Measures with `back_end`.
fn alloc_and_give_up(b: &mut Bencher<'_>, back_end: BackEnd) -> Result<(), Failure> {
    let cache = slab::cache("bench_kfree_rcu")?;
    backend::switch(back_end, b.cx);
    b.samples = 5;
    b.sections(
        OBJECTS,
        |_| (),
        |_, ()| {
            for _ in 0..OBJECTS / TURN {
                arch::irq::relax();
                objects(cache, TURN).for_each(give_up);
            }
        },
    );
    kvfree_rcu_barrier(b.cx);
    backend::switch(BackEnd::Sheaf, b.cx);
    slab::destroy(cache, b.cx)
}

bench! {
    /// The call alone, with sheaves: so few objects, into an rcu_free sheaf that is there, that it does not fill.
    fn call(b: &mut Bencher) {
        let cache = slab::cache("bench_kfree_rcu")?;
        let prepare = |cx: &mut MaySleep| {
            kvfree_rcu_barrier(cx);
            objects(cache, 1).for_each(give_up);
            objects(cache, FEW).collect::<ArrayVec<_, { FEW as usize }>>()
        };
        b.sections(FEW, prepare, |_, objects| objects.into_iter().for_each(give_up));
        kvfree_rcu_barrier(b.cx);
        slab::destroy(cache, b.cx)
    }

    /// With sheaves, which is what a kernel does if nothing is said.
    #[goal(counted = 75)]
    fn alloc_and_kfree_rcu(b: &mut Bencher) {
        alloc_and_give_up(b, BackEnd::Sheaf)
    }

    /// With pages of pointers.
    fn alloc_and_kfree_rcu_bulk(b: &mut Bencher) {
        alloc_and_give_up(b, BackEnd::Bulk)
    }

    /// With the tracker of cookies, in radix trees.
    fn alloc_and_kfree_rcu_pending_radix(b: &mut Bencher) {
        set_store(Keep::Trees);
        alloc_and_give_up(b, BackEnd::Pending)
    }

    /// With the tracker of cookies, in lists of pages.
    fn alloc_and_kfree_rcu_pending_pages(b: &mut Bencher) {
        set_store(Keep::Lists);
        alloc_and_give_up(b, BackEnd::Pending)
    }

    /// With one callback each, the head of 8 bytes found by a tracker.
    fn alloc_and_kfree_rcu_call_rcu(b: &mut Bencher) {
        alloc_and_give_up(b, BackEnd::CallRcu)
    }
}
