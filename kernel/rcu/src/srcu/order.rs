//! The core of SRCU without its machinery: two pairs of counters, and what is before what.
//!
//! A reader counts itself at one of two *indices*: a lock when it begins, an unlock when it ends. A grace period looks for
//! the moment when, at each index, all locks that it can see have their unlocks ([`all_gone`]); between the two looks it
//! sends new readers to the other index ([`flip`]), so that a stream of new ones cannot keep it from its end.
//!
//! ```text
//!  reader                             grace period
//!    index = current                    U, an update before it
//!    locks[index] += 1                  unlocks = sum of unlocks[idle]
//!    ── B ──                            ── A ──
//!    reads                              locks = sum of locks[idle];  equal?  else again
//!    ── C ──                            ── E ──  current = the other index  ── D ──
//!    unlocks[index] += 1                and once more, with what is idle now;  F, the free behind it
//! ```
//!
//! | letter | between | with | without it |
//! |---|---|---|---|
//! | A | the sum of unlocks and the sum of locks | B, C | an old reader's lock is missed, or counted after its unlock |
//! | B | the reader's lock and its reads | A, D | it reads what is old, and its lock is not seen |
//! | C | the reader's reads and its unlock | A | it still reads when its unlock is seen |
//! | D | the flip and the second look | B | a reader that the look missed may come back to the old index again and again |
//! | E | the first look and the flip | - | see below |
//!
//! The models in this file's tests leave out A, B, C and D, one at a time, and find what goes wrong. No model finds E missing: a
//! store that is done before loads in front of it would have to be seen, which loom does not do, and what keeps processors
//! from it is that the flip depends on the sums. The language knows nothing of such dependencies, so E is written down.
//! What E is for is progress as well: else the first look could count readers that the flip has sent to its index.
//!
//! Each index is looked at twice over two grace periods, but an idle index is looked at first for another reason than
//! progress: a reader that fetched it before an earlier flip and counted itself only now is found there and nowhere else.
//!
//! Readers of the fast flavours have nothing in the place of B and C. There a whole grace period of RCU stands in the place
//! of A, and a section of RCU is any one instruction; the argument is in docs/rcu-ordering.md.
//!
//! Pure: no idea of CPUs and time. Row R-21. Answers to Linux kernel/rcu/srcutree.c (`srcu_readers_active_idx_check`,
//! `srcu_flip`).

use sync::atomic::{Ordering, fence};

/// The five barriers, so that a model can leave one out.
pub(crate) trait Barriers {
    /// See the table.
    fn a() {
        full();
    }
    /// See the table.
    fn b() {
        full();
    }
    /// See the table.
    fn c() {
        full();
    }
    /// See the table.
    fn d() {
        full();
    }
    /// See the table.
    fn e() {
        full();
    }
}

/// All of them are there.
pub(crate) struct All;
impl Barriers for All {}

/// The reader has no fences: its counting is a barrier itself, or A is a grace period of RCU. In both cases counting is an
/// instruction that the compiler moves nothing across.
pub(crate) struct NoReaderFences;
impl Barriers for NoReaderFences {
    #[inline(always)]
    fn b() {}
    #[inline(always)]
    fn c() {}
}

#[inline(always)]
fn full() {
    // Full: its partner is in the table of the module's documentation.
    fence(Ordering::SeqCst);
}

/// A reader begins: counts its lock by `count`.
#[inline(always)]
pub(crate) fn begin<O: Barriers>(count: impl FnOnce()) {
    count();
    O::b();
}

/// A reader ends: counts its unlock by `count`.
#[inline(always)]
pub(crate) fn end<O: Barriers>(count: impl FnOnce()) {
    O::c();
    count();
}

/// Whether every reader at an index, of those that count here, has ended. `a` is the barrier A.
///
/// Unlocks first: whoever is seen to have ended is then seen to have begun, so the sums are equal only if all have ended.
pub(crate) fn all_gone(unlocks: impl FnOnce() -> u64, a: impl FnOnce(), locks: impl FnOnce() -> u64) -> bool {
    let unlocks = unlocks();
    a();
    locks() == unlocks
}

/// Sends readers to the other index, by `store`.
pub(crate) fn flip<O: Barriers>(store: impl FnOnce()) {
    O::e();
    store();
    O::d();
}

#[cfg(all(test, loom))]
#[path = "order_models.rs"]
mod models;
