//! Grace-period sequence numbers: a counter with two state bits, and comparisons that survive wrap-around.
//!
//! [`Seq`] is a value, `SeqCounter` the shared word that holds the newest one. The low two bits are the state
//! (0: no grace period runs; 1: one runs; 2 and 3 are for flavours with phases, SRCU among them), the bits above count
//! grace periods. A grace period is `start` (…00 → …01) and `end` (…01 → the next …00).
//!
//! ```text
//!    4k        4k+1                  4k+4       4k+5              4k+8
//!  ──idle──┬────running────────────┬──idle────┬───running────────┬──idle──
//!        start                    end       start               end
//!   snap here ─────────────────────▲ 4k+4
//!            snap here ──────────────────────────────────────────▲ 4k+8   (the running one may have begun too early)
//! ```
//!
//! Invariants
//! - SEQ-1: only the grace-period machine of the counter writes it, one writer at a time (enforced by its callers: the
//!   grace-period thread for the normal counter, the holder of the expedited mutex for the other).
//! - SEQ-2: a snapshot is at most [`Seq::SNAP_AHEAD`] in front of the counter it was taken from, so "further in
//!   front" means "wrapped, long ago over" ([`Seq::done_exact`]).
//! - SEQ-3: counters start just below the wrap (−300 grace periods), so every run passes it within seconds.
//!
//! Contexts: all, NMI included. Answers to Linux kernel/rcu/rcu.h (`rcu_seq_*`); rows R-2, S3-26.

use core::fmt;

use sync::atomic::{AtomicU64, Ordering, fence};
use sync::const_unless_loom;

#[cfg(loom)]
use crate::model::sync;

/// A grace-period sequence number: grace periods counted above two state bits.
///
/// No `Ord`: the order is circular and only meaningful between numbers less than half the circle apart.
#[derive(Copy, Clone, Eq, PartialEq, Hash)]
#[repr(transparent)]
pub struct Seq(u64);

impl Seq {
    /// Bits of the state.
    const STATE_BITS: u32 = 2;
    /// Mask of the state.
    const STATE_MASK: u64 = (1 << Self::STATE_BITS) - 1;
    /// Where every counter starts: 300 grace periods before the wrap (SEQ-3).
    pub const INITIAL: Seq = Seq((-300_i64 << Self::STATE_BITS) as u64);
    /// No number: over from the start (a cookie for what need not wait). No snapshot has this value.
    pub const COMPLETED: Seq = Seq(1);
    /// No number: a flavour without this kind of grace period (R-9). No snapshot has this value, because a snapshot's
    /// state is 0.
    pub const NOT_TRACKED: Seq = Seq(2);
    /// The most a snapshot can be in front of its counter (SEQ-2).
    pub const SNAP_AHEAD: u64 = 2 * Self::STATE_MASK + 1;
    /// How far in front a number may be before [`Seq::done_exact`] takes it for an old one that wrapped. More than
    /// `SNAP_AHEAD` by one grace period, for a reader whose view of the counter is that old.
    const GUARD_BAND: u64 = Self::SNAP_AHEAD + Self::STATE_MASK;

    /// The number with this bit pattern (figures read back from a trace, tests).
    pub const fn from_raw(raw: u64) -> Self {
        Seq(raw)
    }

    /// The bit pattern, for printing and traces; two patterns must not be compared by size.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The two state bits: 0 when no grace period runs.
    pub const fn state(self) -> u64 {
        self.0 & Self::STATE_MASK
    }

    /// Whether a grace period runs.
    pub const fn is_running(self) -> bool {
        self.state() != 0
    }

    /// The grace periods counted (wraps).
    pub const fn count(self) -> u64 {
        self.0 >> Self::STATE_BITS
    }

    /// The number at the end of the first grace period that begins after now.
    ///
    /// If none runs that is the next one's end; if one runs it may have begun before the caller's update, so it is
    /// the end of the one after.
    #[must_use]
    pub const fn snap(self) -> Seq {
        Seq(self.0.wrapping_add(Self::SNAP_AHEAD) & !Self::STATE_MASK)
    }

    /// Whether the grace period that ends at `target` has begun, as seen from counter value `self`.
    pub const fn started(self, target: Seq) -> bool {
        let before = Seq(target.0.wrapping_sub(1) & !Self::STATE_MASK);
        before.before(self)
    }

    /// Whether the grace period that ends at `target` is over, as seen from counter value `self`.
    ///
    /// Wrap-safe for a target less than half the circle old.
    pub const fn done(self, target: Seq) -> bool {
        !self.before(target)
    }

    /// As [`Seq::done`], and also true for a target so far in front that it can only be an old one that wrapped.
    ///
    /// For cookies, which a user may keep for as long as he likes.
    pub const fn done_exact(self, target: Seq) -> bool {
        self.done(target) || target.0.wrapping_sub(self.0) > Self::GUARD_BAND
    }

    /// Circular "earlier than".
    pub const fn before(self, other: Seq) -> bool {
        (self.0.wrapping_sub(other.0) as i64) < 0
    }

    /// The later of two numbers, circularly.
    #[must_use]
    pub const fn later(self, other: Seq) -> Seq {
        if self.before(other) { other } else { self }
    }

    /// The number that says "a grace period runs" after this one.
    const fn begun(self) -> Seq {
        Seq(self.0.wrapping_add(1))
    }

    /// The number at the end of the grace period that this number says is running.
    #[must_use]
    pub const fn ended(self) -> Seq {
        Seq((self.0 | Self::STATE_MASK).wrapping_add(1))
    }
}

impl fmt::Debug for Seq {
    /// Signed grace-period count and state, as `-300.0`: small numbers near the wrap.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", (self.0 as i64) >> Self::STATE_BITS, self.state())
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.0 as i64) >> Self::STATE_BITS)
    }
}

/// The shared word that holds the newest [`Seq`] of one kind of grace period.
///
/// Written by one writer at a time (SEQ-1), read by anyone. It is never handed out by address to users of RCU: a read
/// without the orderings below proves nothing (S3-26).
pub(crate) struct SeqCounter(AtomicU64);

impl SeqCounter {
    const_unless_loom! {
        /// A counter at [`Seq::INITIAL`].
        pub(crate) fn new() -> Self {
            SeqCounter(AtomicU64::new(Seq::INITIAL.0))
        }
    }

    /// The newest value, unordered: for decisions that a lock or a later check confirms.
    pub(crate) fn current(&self) -> Seq {
        Seq(self.0.load(Ordering::Relaxed))
    }

    /// The newest value; what the CPU that published it did before is visible after.
    pub(crate) fn current_acquire(&self) -> Seq {
        // Acquire: pairs with the Release in `store`; a node's new number is seen only with its new masks.
        Seq(self.0.load(Ordering::Acquire))
    }

    /// Publishes `seq`; the caller is the one writer (SEQ-1).
    pub(crate) fn store(&self, seq: Seq) {
        // Release: pairs with the Acquire in `current_acquire`.
        self.0.store(seq.0, Ordering::Release);
    }

    /// Marks the start of a grace period and orders it before everything the grace period does.
    ///
    /// # Panics
    /// If one runs already (SEQ-1 broken).
    pub(crate) fn start(&self) -> Seq {
        let old = self.current();
        assert!(!old.is_running(), "SEQ-1: grace period {old:?} started twice");
        let new = old.begun();
        self.store(new);
        // Full: pairs with the fence in `snap`. The start before the look at the readers: whoever still saw the old
        // number has its update ordered before every quiescent state that this grace period will accept (ORD-1).
        // Where `before_looks` comes next it does the same; without both loom_looks_at_a_cpu_… finds it.
        fence(Ordering::SeqCst);
        new
    }

    /// Marks the end of the running grace period, after everything the grace period saw.
    ///
    /// # Panics
    /// If none runs (SEQ-1 broken).
    pub(crate) fn end(&self) -> Seq {
        let old = self.current();
        assert!(old.is_running(), "SEQ-1: grace period {old:?} ended twice");
        // Full: pairs with the fence in `done`. All quiescent states before the new number: whoever sees it sees every
        // reader's accesses done (ORD-3). Kept for the language: see "What the models find" in docs/rcu-ordering.md.
        fence(Ordering::SeqCst);
        let new = old.ended();
        self.store(new);
        new
    }

    /// Snapshot for a caller whose earlier accesses must precede the grace period it names.
    pub(crate) fn snap(&self) -> Seq {
        // Full: pairs with the fence in `start`. The caller's update before the read of the counter: a number from
        // before the start means the grace period's scan comes after the update (ORD-1).
        // Model: loom_a_reader_in_idle_is_seen_or_sees_the_update.
        fence(Ordering::SeqCst);
        // Acquire: pairs with `store`, so that a caller who sees a later grace period also sees what ended the last.
        self.current_acquire().snap()
    }

    /// Whether the grace period that ends at `target` is over; if so the caller's later accesses come after it.
    pub(crate) fn done(&self, target: Seq) -> bool {
        let done = self.current_acquire().done_exact(target);
        if done {
            // Full: pairs with the fence in `end`. The number before whatever the caller now frees (ORD-3).
            // Model, with the Acquire above: loom_a_reader_in_idle_is_seen_or_sees_the_update.
            fence(Ordering::SeqCst);
        }
        done
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn idle(k: i64) -> Seq {
        Seq::from_raw((k << 2) as u64)
    }
    fn running(k: i64) -> Seq {
        Seq::from_raw(((k << 2) | 1) as u64)
    }

    #[test]
    fn counters_start_three_hundred_grace_periods_below_the_wrap() {
        let c = SeqCounter::new();
        for _ in 0..299 {
            c.start();
            c.end();
        }
        assert!(c.current().raw() > u64::MAX - 8);
        c.start();
        assert_eq!(c.end().raw(), 0);
    }

    #[test]
    fn snapshot_while_idle_is_the_end_of_the_next_grace_period() {
        assert_eq!(idle(5).snap(), idle(6));
    }

    #[test]
    fn snapshot_while_running_is_the_end_of_the_one_after() {
        assert_eq!(running(5).snap(), idle(7));
    }

    #[test]
    fn snapshots_cross_the_wrap() {
        assert_eq!(running(-1).snap(), idle(1));
        assert!(!running(-1).done(idle(1)) && idle(1).done(idle(1)));
        assert!(!idle(0).started(idle(1)) && running(0).started(idle(1)));
    }

    #[test]
    fn a_number_from_far_in_front_counts_as_old() {
        let now = idle(0);
        assert!(!now.done_exact(now.snap()));
        assert!(!now.done_exact(running(0).snap()));
        assert!(now.done_exact(idle(3)), "two grace periods further than any snapshot");
        assert!(now.done_exact(idle(i64::MAX >> 2)));
    }

    #[test]
    #[should_panic(expected = "SEQ-1")]
    fn a_second_start_is_caught() {
        let c = SeqCounter::new();
        c.start();
        c.start();
    }

    /// A counter value that the machine can hold: states 0 and 1.
    fn any_value() -> impl Strategy<Value = Seq> {
        (any::<u64>(), 0..2_u64).prop_map(|(c, s)| Seq(c << 2 | s))
    }

    proptest! {
        /// From any value a snapshot needs exactly one whole grace period that starts afterwards.
        #[test]
        fn a_snapshot_is_done_after_exactly_one_full_later_grace_period(v in any_value()) {
            let target = v.snap();
            prop_assert_eq!(target.state(), 0);
            let mut now = v;
            if now.is_running() {
                prop_assert!(!now.started(target));
                now = now.ended();
                prop_assert!(!now.done(target) && !now.done_exact(target));
            }
            prop_assert!(!now.started(target) && !now.done(target));
            now = now.begun();
            prop_assert!(now.started(target) && !now.done(target) && !now.done_exact(target));
            now = now.ended();
            prop_assert!(now.started(target) && now.done(target) && now.done_exact(target));
        }

        /// Once done, done for as long as the number is less than half the circle old.
        #[test]
        fn done_stays_done(v in any_value(), later in 0..(1_u64 << 60)) {
            let target = v.snap();
            let now = Seq(target.0.wrapping_add(later << 2));
            prop_assert!(now.done(target) && now.done_exact(target) && now.started(target));
        }

        /// `done_exact` is never false for good: outside a band of a few grace periods everything is done.
        #[test]
        fn done_exact_is_false_only_in_a_narrow_band(v in any_value(), t in any_value()) {
            let ahead = t.0.wrapping_sub(v.0);
            prop_assert_eq!(!v.done_exact(t), ahead != 0 && ahead <= Seq::GUARD_BAND);
        }

        #[test]
        fn later_is_the_one_that_is_not_before(v in any_value(), d in 0..(1_u64 << 62)) {
            let w = Seq(v.0.wrapping_add(d));
            prop_assert_eq!(v.later(w), w);
            prop_assert_eq!(w.later(v), w);
        }
    }
}
