//! Barrier torture: several CPUs post a callback each at the same time, and all have run when the barrier returns.
//!
//! The posters wait for the next round, post, and say so. Whoever leads the round then calls the barrier, and looks.
//! Now and then a poster posts a burst, whose end an offloaded CPU keeps off its list for a while.
//! Every round is another flavour's, where a kind has several.
//!
//! Linux: `rcu_torture_barrier`, `rcu_torture_barrier_cbs` in kernel/rcu/rcutorture.c; rows C-2, C-6.

use core::array;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use sync::callback::CallbackHead;
use sync::{ATOMIC, IrqGuard, MaySleep, Rng};

use super::Torture;
use super::ops::Way;
use crate::torture::control;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// Callbacks of a burst: more than an offloaded CPU puts on its list in a tick.
const BURST: usize = 24;

/// A poster's callback.
#[repr(C)]
struct Posted {
    /// First, so that a head is its callback. The poster's until it posts, then the callback's.
    head: UnsafeCell<CallbackHead>,
    /// It has not run.
    pending: AtomicBool,
}

// SAFETY: the head goes from its poster to the callback by posting, and back by `pending`.
unsafe impl Sync for Posted {}

/// What all in a round share.
#[derive(Default)]
pub(crate) struct Rounds {
    /// The round that is on.
    number: AtomicUsize,
    /// Posters that have posted in it.
    posted: AtomicUsize,
    /// Rounds, rounds in which all had run, rounds in which not.
    pub(crate) tried: AtomicU64,
    pub(crate) good: AtomicU64,
    pub(crate) bad: AtomicU64,
}

/// # Safety
/// `head` is that of a [`Posted`] whose poster waits for it.
unsafe fn ran(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head is the first field, and nobody writes `pending` otherwise than by its methods.
    let pending = unsafe { &(*head.cast::<Posted>()).pending };
    // Release: pairs with the Acquire in `is_pending`: who sees it may post the head again.
    pending.store(false, Ordering::Release);
}

impl Torture {
    /// The thread of one poster. `posted` is where its callback says that it runs; the leader looks there.
    pub(super) fn post_callbacks(&self, me: usize, mut rng: Rng, cx: &mut MaySleep) {
        let Poster(all) = &self.posters[me];
        let mut round = 0;
        while !control::should_stop() {
            let number = self.rounds.number.load(Ordering::Acquire);
            if number == round {
                sched::sleep_ns(cx, MS / 4);
                continue;
            }
            round = number;
            let Some(call) = self.flavour_of(round).iter().find_map(|update| match &update.way {
                Way::Call(call) => Some(*call),
                _ => None,
            }) else {
                self.rounds.posted.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let mine = if rng.chance(1, 4) { &all[..] } else { &all[..1] };
            for posted in mine {
                posted.pending.store(true, Ordering::Relaxed);
            }
            {
                let _irqs = rng.chance(1, 2).then(|| IrqGuard::new(ATOMIC));
                for posted in mine {
                    // SAFETY: it stays in `self`, which outlives the barrier at its end, and is not posted again until it ran.
                    unsafe { (call.queue)(posted.head.get(), ran) };
                }
            }
            // Release: pairs with the Acquire in `lead_rounds`.
            self.rounds.posted.fetch_add(1, Ordering::Release);
            while mine.iter().any(Posted::is_pending) {
                sched::sleep_ns(cx, MS / 4);
            }
        }
    }

    /// The thread that calls barriers.
    pub(super) fn lead_rounds(&self, mut rng: Rng, cx: &mut MaySleep) {
        let (rounds, posters) = (&self.rounds, self.posters.len());
        while !control::stutter(cx) {
            rounds.posted.store(0, Ordering::Relaxed);
            // Release: pairs with the Acquire in `post_callbacks`.
            let round = rounds.number.fetch_add(1, Ordering::Release) + 1;
            // Acquire: pairs with the Release there: who has posted is seen as pending, unless it ran.
            while rounds.posted.load(Ordering::Acquire) < posters {
                if control::rest(cx, MS / 8) {
                    return;
                }
            }
            if rng.chance(1, 4) {
                // So that what is posted lies there for a while, whatever happens to its CPU.
                sched::sleep_ns(cx, rng.below(4 * MS));
            }
            (self.flavours[round % self.flavours.len()].ops.barrier)(cx);
            let missing = self.posters.iter().flat_map(|Poster(all)| all).filter(|posted| posted.is_pending()).count();
            rounds.tried.fetch_add(1, Ordering::Relaxed);
            if missing == 0 { &rounds.good } else { &rounds.bad }.fetch_add(1, Ordering::Relaxed);
            sched::sleep_ns(cx, rng.below(4 * MS));
        }
    }

    /// Ways of the flavour that round `number` is about.
    fn flavour_of(&self, number: usize) -> &'static [super::ops::Update] {
        self.flavours[number % self.flavours.len()].ops.updates
    }
}

impl Posted {
    fn new() -> Posted {
        Posted { head: UnsafeCell::new(CallbackHead::new()), pending: AtomicBool::new(false) }
    }

    fn is_pending(&self) -> bool {
        // Acquire: pairs with the Release in `ran`.
        self.pending.load(Ordering::Acquire)
    }
}

/// A poster, as part of what is tortured.
pub(crate) struct Poster([Posted; BURST]);

impl Poster {
    pub(super) fn new() -> Poster {
        Poster(array::from_fn(|_| Posted::new()))
    }
}
