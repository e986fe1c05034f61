//! Polled grace periods: a cookie now, a question later.
//!
//! | cookie | size | over when |
//! |---|---|---|
//! | [`Cookie`] | 8 bytes | a grace period of either kind that began after it is over; of two that overlap, one may not be counted |
//! | [`FullCookie`] | 16 bytes | a normal *or* an expedited grace period that began after it is over, exactly |
//!
//! The short cookie reads a third counter, the *polled* twin. A grace period of either kind that starts while the twin is
//! idle starts it; whichever that started by then ends first ends it. So the end of an overlapping one may go by
//! unnoticed: the cookie is then over a grace period later than need be, never earlier. [`start_poll`] leaves a note, so
//! that this later grace period is started without being asked for again.
//!
//! Interrupts off does **not** freeze anything here: with interrupts off on this CPU the running grace period can end and
//! the next one begin, two steps of the counter; only that one's end needs this CPU (S3-27). Code that compares
//! cookies must not assume otherwise.
//!
//! The raw numbers are never handed out by address (S3-26). Rows R-10, S3-18, S3-25 to S3-28.

use sync::atomic::{AtomicU64, Ordering};
use sync::{ATOMIC, IrqGuard, MaySleep, SpinIrqGuard, static_or_lazy};

use crate::exp;
use crate::gp;
#[cfg(loom)]
use crate::model::sync;
use crate::seq::{Seq, SeqCounter};
use crate::sync_gp::synchronize_rcu;
use crate::tree::{NodeState, tree};

/// The root's lock, under which the twin is written (SEQ-1 for [`POLLED`]).
type Root<'a> = SpinIrqGuard<'a, NodeState>;

static_or_lazy! {
    /// The polled twin.
    static POLLED: SeqCounter = SeqCounter::new();
    /// The twin as the running normal grace period found or started it; raw. Under the root's lock.
    static NORM_SNAP: AtomicU64 = AtomicU64::new(0);
    /// The same for the expedited one.
    static EXP_SNAP: AtomicU64 = AtomicU64::new(0);
    /// The furthest cookie that `start_poll` gave out; raw. Under the root's lock.
    static WANTED: AtomicU64 = AtomicU64::new(Seq::INITIAL.raw());
}

/// A point in time, to be asked later whether a grace period has passed since. See the module documentation.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Cookie(Seq);

/// A cookie that counts grace periods of each kind exactly, at twice the size.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct FullCookie {
    norm: Seq,
    exp: Seq,
}

/// What can be asked whether its grace period is over.
pub trait Pollable: Copy {
    /// Whether a grace period has passed since the cookie was made. If true, that is ordered before what follows.
    ///
    /// Context: any, NMI included. Wait-free.
    fn is_over(self) -> bool;
}

impl Pollable for Cookie {
    fn is_over(self) -> bool {
        POLLED.done(self.0)
    }
}

impl Pollable for FullCookie {
    fn is_over(self) -> bool {
        gp::SEQ.done(self.norm) || exp::SEQ.done(self.exp)
    }
}

/// A cookie for now. Starts nothing: if nobody asks for a grace period, it may never be over.
///
/// What the caller did before is before the grace period that the cookie names. Context: any, NMI included.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn get_state() -> Cookie {
    Cookie(POLLED.snap())
}

/// As [`get_state`], exact.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn get_state_full() -> FullCookie {
    FullCookie { norm: gp::SEQ.snap(), exp: exp::SEQ.snap() }
}

/// A cookie for now, and a wish for the grace period that it names.
///
/// Context: any but NMI, interrupts on or off (S3-18); wakes no thread if interrupts are off.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn start_poll() -> Cookie {
    let cookie = get_state();
    {
        let _root = tree().root().lock(ATOMIC);
        let furthest = Seq::from_raw(WANTED.load(Ordering::Relaxed)).later(cookie.0);
        WANTED.store(furthest.raw(), Ordering::Relaxed);
    }
    gp::request(gp::SEQ.snap());
    cookie
}

/// As [`start_poll`], exact.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn start_poll_full() -> FullCookie {
    let cookie = get_state_full();
    gp::request(cookie.norm);
    cookie
}

/// Whether a grace period has passed since `cookie`. Context: any.
pub fn poll(cookie: impl Pollable) -> bool {
    cookie.is_over()
}

/// The first of `cookies` that is over, for one price of ordering (S3-25). Context: any.
pub fn poll_any<C: Pollable>(cookies: &[C]) -> Option<usize> {
    cookies.iter().position(|cookie| cookie.is_over())
}

/// Waits for a grace period unless one has passed since `cookie`. Context: task, sleeps.
pub fn cond_synchronize(cookie: impl Pollable, cx: &mut MaySleep) {
    cx.assert_may_sleep();
    if !cookie.is_over() {
        synchronize_rcu(cx);
    }
}

fn started(snap: &AtomicU64) {
    if !POLLED.current().is_running() {
        POLLED.start();
    }
    snap.store(POLLED.current().raw(), Ordering::Relaxed);
}

fn ended(snap: &AtomicU64) {
    if POLLED.current().raw() == snap.load(Ordering::Relaxed) {
        POLLED.end();
    }
}

/// A normal grace period has started.
pub(crate) fn norm_started(_: &Root<'_>) {
    started(&NORM_SNAP);
}

/// A normal grace period is over.
pub(crate) fn norm_ended(_: &Root<'_>) {
    ended(&NORM_SNAP);
}

/// An expedited grace period has started.
pub(crate) fn exp_started(_: &Root<'_>) {
    started(&EXP_SNAP);
}

/// An expedited grace period is over.
pub(crate) fn exp_ended(_: &Root<'_>) {
    ended(&EXP_SNAP);
}

/// Before the tree is built: an instant was a grace period ([`crate::mode`]). The boot CPU, interrupts off.
pub(crate) fn passed_at_once(_: &IrqGuard<'_>) {
    POLLED.start();
    POLLED.end();
}

/// Whether a cookie of `start_poll` needs yet another grace period.
pub(crate) fn still_wanted(_: &Root<'_>) -> bool {
    !POLLED.current().done(Seq::from_raw(WANTED.load(Ordering::Relaxed)))
}
