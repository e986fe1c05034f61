//! What a call of `kfree_rcu_nolock` costs in an NMI: each call is timed alone, so that the rare ones are seen.
//!
//! The NMI is played, with interrupts off; how it begins and ends is not measured. In a run that counts a nanosecond is an
//! instruction.

use alloc::vec::Vec;
use core::ptr::NonNull;

use arch::clock;
use kfree_rcu::{kfree_rcu_nolock, kvfree_rcu_barrier};
use mm::AllocFlags;
use slab::{CacheFlags, Layout, RawCache};
use sync::nmi::as_nmi;
use sync::{ATOMIC, IrqGuard};

use crate::bench::Bencher;
use crate::{Failure, bench};

/// Calls that are timed.
const CALLS: usize = 20_000;
/// Of them between two barriers: what waits must fit into memory.
const STRETCH: usize = 2_000;

bench! {
    /// A call that finds the sheaf free, as nearly all do; the row has what one call in a thousand takes, which fills a sheaf or
    /// makes one.
    fn call(b: &mut Bencher) {
        time_calls(b, "sheaf", CacheFlags::empty())
    }

    /// A call for an object that the sheaf cannot take: on the deferred list, with the raise where the list was empty.
    fn deferring_call(b: &mut Bencher) {
        time_calls(b, "deferred", CacheFlags::NO_SHEAVES)
    }

    /// The same and the drain, by what the end of the guard takes.
    fn deferring_call_and_drain(b: &mut Bencher) {
        let cache = cache(CacheFlags::NO_SHEAVES)?;
        b.sections(
            1,
            |_| cache.alloc(AllocFlags::NOWAIT),
            |_, object| {
                let _pin = sync::PreemptGuard::new(ATOMIC);
                object.into_iter().for_each(|object| {
                    let _off = IrqGuard::new(ATOMIC);
                    as_nmi(|| give_up(object));
                });
            },
        );
        super::slab::destroy(cache, b.cx)
    }
}

fn cache(flags: CacheFlags) -> Result<&'static RawCache, Failure> {
    slab::create(Layout::new("bench_nolock", 200).flags(flags | CacheFlags::NO_MERGE))
        .map_err(|error| crate::__failed!("{error}"))
}

fn give_up(object: NonNull<u8>) {
    // SAFETY: the caller has allocated it, and gives it up; a head lies in it.
    unsafe { kfree_rcu_nolock(object.add(16).cast()) };
}

/// Nanoseconds of `f` in an NMI.
fn timed(f: impl FnOnce()) -> u64 {
    let _off = IrqGuard::new(ATOMIC);
    as_nmi(|| {
        let begin = clock::now_ns();
        f();
        clock::now_ns() - begin
    })
}

fn time_calls(b: &mut Bencher<'_>, way: &str, flags: CacheFlags) -> Result<(), Failure> {
    let cache = cache(flags)?;
    let empty = (0..100).map(|_| timed(|| ())).min().unwrap_or(0);
    let told = slab::deferred::counts();
    let mut samples = Vec::with_capacity(CALLS);
    while samples.len() < CALLS {
        for _ in 0..STRETCH {
            let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { break };
            samples.push(timed(|| give_up(object)).saturating_sub(empty));
        }
        kvfree_rcu_barrier(b.cx);
    }
    let now = slab::deferred::counts();
    samples.sort_unstable();
    let at = |per_mille: usize| samples[(samples.len() - 1) * per_mille / 1_000];
    b.row(
        way,
        &[
            ("p50", at(500)),
            ("p99.9", at(999)),
            ("max", at(1_000)),
            ("calls", samples.len() as u64),
            ("deferred", now.rcu_objects + now.rcu_sheaves - told.rcu_objects - told.rcu_sheaves),
            ("interrupts", now.interrupts - told.interrupts),
        ],
    );
    b.took(1, samples);
    super::slab::destroy(cache, b.cx)
}
