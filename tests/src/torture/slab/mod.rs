//! Torture of the allocator: every call of every interface, from every context, while what can be changed at run time is changed.
//!
//! | module | what |
//! |---|---|
//! | `mod` | players on all CPUs: single and bulk calls, prefilled sheaves, `kmalloc`, the calls without locks, in a [`Yard`] |
//! | [`pit`] | the same objects from interrupts, timers, callbacks and NMIs |
//! | [`blocks`] | what has no cache of its own: resized, aligned and large blocks, areas |
//! | [`typesafe`] | type-safe caches with readers of RCU and of SRCU |
//! | [`tuner`] | capacities, limits and policies change; caches are shrunk, made, merged and destroyed |
//!
//! Each object has a content that tells whose it is; who meets another one counts damage. At the end every allocation has its
//! free, and every object, sheaf and slab of the caches here is back.

mod blocks;
mod pit;
mod tuner;
mod typesafe;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::cpu;
use sched::Prio;
use sync::{MaySleep, Rng};

use super::{Ongoing, Stat, control};
use crate::yard::Yard;
use crate::{Failure, torture};

use self::typesafe::Readers;

/// Calls of a player between two looks whether to pause.
const BURST: usize = 64;

/// What the threads share and count.
struct Slab {
    yard: Arc<Yard>,
    calls: AtomicU64,
    blocks: AtomicU64,
    changes: AtomicU64,
    caches: AtomicU64,
    readers: Readers,
    /// Content that was not whole, other than in the yard and the pit.
    damaged: AtomicU64,
    /// Where the random numbers of the end come from.
    seed: u64,
}

impl Slab {
    fn play(&self, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        let mut sheaf = None;
        while !control::stutter(cx) {
            for _ in 0..BURST {
                self.yard.play(&mut sheaf, &mut rng);
                pit::act_in_thread(&mut rng);
                // Where one host thread runs all CPUs, this is where another one gets its turn.
                if rng.chance(1, 8) {
                    arch::irq::relax();
                }
                sched::cond_resched(cx);
            }
            self.calls.fetch_add(BURST as u64, Relaxed);
        }
        Ok(())
    }
}

impl Ongoing for Arc<Slab> {
    fn stat(&self, out: &mut Stat) {
        out.work("calls", self.calls.load(Relaxed));
        out.count("refused", self.yard.refused());
        pit::stat(out);
        out.work("blocks", self.blocks.load(Relaxed));
        out.work("changes", self.changes.load(Relaxed));
        out.work("caches", self.caches.load(Relaxed));
        self.readers.stat(out);
        out.error("damaged", self.yard.damaged() + self.damaged.load(Relaxed));
    }

    fn stop(&mut self, cx: &mut MaySleep) -> Result<(), Failure> {
        pit::end(cx)?;
        typesafe::end(cx)?;
        for cache in self.yard.caches() {
            cache.reset_barn_limits(cx);
        }
        self.yard.close(cx, &mut Rng::new(self.seed))
    }
}

torture! {
    /// Every call of the allocator from every context, with content checks, while capacities, limits and caches change
    fn slab(run: &mut Run) {
        let mut rng = run.rng("threads");
        let slab = Arc::new(Slab {
            yard: Yard::new()?,
            calls: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            caches: AtomicU64::new(0),
            readers: Readers::default(),
            damaged: AtomicU64::new(0),
            seed: rng.next_u64(),
        });
        pit::begin(rng.next_u64())?;
        typesafe::begin()?;
        let mut thread = |name: &str, on, f: fn(&Slab, Rng, &mut MaySleep) -> Result<(), Failure>| {
            let (slab, rng) = (slab.clone(), Rng::new(rng.next_u64()));
            run.spawn(name, Prio::NORMAL, on, move |cx| f(&slab, rng, cx))
        };
        for (n, cpu) in cpu::online().iter().enumerate() {
            // Some may move from CPU to CPU.
            thread("slab player", (n % 2 == 0).then_some(cpu), Slab::play)?;
        }
        thread("slab sender", None, |_, rng, cx| pit::send(rng, cx))?;
        thread("slab blocks", None, blocks::play)?;
        thread("slab tuner", None, tuner::change)?;
        thread("slab caches", None, tuner::make_and_destroy)?;
        thread("slab reader", None, typesafe::read)?;
        thread("slab sleeper", None, typesafe::read_and_sleep)?;
        thread("slab updater", None, typesafe::update)?;
        Ok(slab)
    }
}
