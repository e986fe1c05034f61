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
//! that this later grace period is started without being asked for again; [`start_poll_expedited`] likewise.
//!
//! A user who takes a cookie for each thing that he wants to free need not start a grace period each time: only if the
//! cookie differs from that of the call before (S3-28). [`crate::pending`] keeps any number of things by their cookies.
//!
//! Invariant
//! - TWIN-1: a grace period starts the twin before its own counter, and ends it after. So of two cookies the earlier one is over
//!   no later, whatever their sizes: a full one that was made before a short one is over when that is.
//!   Model: `loom_an_earlier_full_cookie_is_over_when_a_later_short_one_is`.
//!
//! Interrupts off does **not** freeze anything here: with interrupts off on this CPU the running grace period can end and
//! the next one begin, two steps of the counter; only that one's end needs this CPU (S3-27). Code that compares
//! cookies must not assume otherwise.
//!
//! The raw numbers are never handed out by address (S3-26). Rows R-10, S3-18, S3-25 to S3-28.

use sched::work::{self, WorkItem};
use sync::atomic::{AtomicU64, Ordering};
use sync::{ATOMIC, IrqGuard, IrqWork, MaySleep, SpinIrqGuard, bug, static_or_lazy};

use crate::exp::{self, synchronize_rcu_expedited};
use crate::gp;
#[cfg(loom)]
use crate::model::{arch, sched, sync};
use crate::seq::{Seq, SeqCounter};
use crate::sync_gp::synchronize_rcu;
use crate::tree::{NodeState, tree, tree_if_built};

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
    /// The furthest cookie for which `start_poll_expedited` owes an expedited grace period; raw. Under the root's lock.
    static WANTED_EXPEDITED: AtomicU64 = AtomicU64::new(Seq::INITIAL.raw());
    /// Runs those, since whoever asks for one may not be able to wait.
    static EXPEDITE: WorkItem = WorkItem::new(expedite);
    /// Queues that, where a run queue may be held (GP-3).
    static QUEUE_EXPEDITE: IrqWork = IrqWork::new(|_| {
        work::queue_work_unbound(&EXPEDITE);
    });
}

/// A point in time, to be asked later whether a grace period has passed since. See the module documentation.
///
/// Equal cookies are over at the same time; of different ones each needs to be asked.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Cookie(Seq);

/// A cookie that counts grace periods of each kind exactly, at twice the size.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct FullCookie {
    norm: Seq,
    exp: Seq,
}

impl Cookie {
    /// The most different cookies that have been handed out and are not over, at any moment.
    ///
    /// That a counter that stands at `4k + 1` leaves open: `4k + 4`, handed out before the grace period began, and `4k + 8`.
    pub const MAX_LIVE: usize = 2;

    /// A cookie that is over from the start: for what need not wait.
    #[must_use]
    pub const fn completed() -> Cookie {
        Cookie(Seq::COMPLETED)
    }
}

impl FullCookie {
    /// As [`Cookie::MAX_LIVE`]: two of each kind, in each combination, because the two counters are read one after the other.
    pub const MAX_LIVE: usize = 4;

    /// As [`Cookie::completed`].
    #[must_use]
    pub const fn completed() -> FullCookie {
        FullCookie { norm: Seq::COMPLETED, exp: Seq::COMPLETED }
    }
}

/// What can be asked whether its grace period is over.
pub trait Pollable {
    /// Whether a grace period has passed since the cookie was made. If true, that is ordered before what follows.
    ///
    /// Context: any, NMI included. Wait-free.
    fn is_over(&self) -> bool;
}

impl Pollable for Cookie {
    fn is_over(&self) -> bool {
        self.0 == Seq::COMPLETED || POLLED.done(self.0)
    }
}

impl Pollable for FullCookie {
    fn is_over(&self) -> bool {
        *self == FullCookie::completed() || gp::SEQ.done(self.norm) || exp::SEQ.done(self.exp)
    }
}

impl<C: Pollable + ?Sized> Pollable for &C {
    fn is_over(&self) -> bool {
        (**self).is_over()
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
/// Context: any but NMI, interrupts on or off (S3-18), also with a run queue locked; wakes no thread if interrupts are off.
/// Before [`crate::init`] the wish is for the first grace period of all.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn start_poll() -> Cookie {
    let cookie = get_state();
    sync::trace!("rcu.poll_start", cookie = cookie.0.raw());
    if let Some(tree) = tree_if_built() {
        want(&WANTED, cookie, &tree.root().lock(ATOMIC));
        gp::request(gp::SEQ.snap());
    }
    cookie
}

/// As [`start_poll`], exact.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn start_poll_full() -> FullCookie {
    let cookie = get_state_full();
    sync::trace!("rcu.poll_start_full", norm = cookie.norm.raw(), exp = cookie.exp.raw());
    gp::request(cookie.norm);
    cookie
}

/// A cookie for now, and a wish for an expedited grace period. A worker thread runs it, and one serves all who ask meanwhile.
///
/// Context: as [`start_poll`].
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn start_poll_expedited() -> Cookie {
    let cookie = get_state();
    if let Some(tree) = tree_if_built() {
        want(&WANTED_EXPEDITED, cookie, &tree.root().lock(ATOMIC));
        if arch::irq::enabled() {
            work::queue_work_unbound(&EXPEDITE);
        } else {
            QUEUE_EXPEDITE.queue();
        }
    }
    cookie
}

/// As [`start_poll_expedited`], exact.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn start_poll_expedited_full() -> FullCookie {
    let cookie = get_state_full();
    // Later than the exact one, so that one is over when this one is.
    let _later = start_poll_expedited();
    cookie
}

/// Whether a grace period has passed since `cookie`. Context: any.
pub fn poll(cookie: impl Pollable) -> bool {
    cookie.is_over()
}

/// The index of the first of `cookies` that is over (S3-25).
///
/// A look at one that is not over is a load of its counters; the full barrier is paid once, for the one that is. Cookies of
/// several kinds go through references:
///
/// ```no_run
/// use grange_rcu::{self as rcu, Pollable};
///
/// let (short, full) = (rcu::start_poll(), rcu::start_poll_full());
/// match rcu::poll_any::<&dyn Pollable>(&[&short, &full]) {
///     Some(first) => log::info!("number {first} is over; of those behind it nothing is known"),
///     None => log::info!("none is over"),
/// }
/// ```
///
/// Context: any.
pub fn poll_any<C: Pollable>(cookies: &[C]) -> Option<usize> {
    cookies.iter().position(C::is_over)
}

/// Waits for a grace period unless one has passed since `cookie`. Context: task, sleeps.
pub fn cond_synchronize(cookie: impl Pollable, cx: &mut MaySleep) {
    cx.assert_may_sleep();
    if !cookie.is_over() {
        synchronize_rcu(cx);
    }
}

/// As [`cond_synchronize`], for an expedited one.
pub fn cond_synchronize_expedited(cookie: impl Pollable, cx: &mut MaySleep) {
    cx.assert_may_sleep();
    if !cookie.is_over() {
        synchronize_rcu_expedited(cx);
    }
}

/// Asks for the grace period that serves what was asked for before [`crate::init`]: nothing ran then, so it is the first.
pub(crate) fn init() {
    gp::request(gp::SEQ.snap());
}

fn want(wanted: &AtomicU64, cookie: Cookie, _: &Root<'_>) {
    let furthest = Seq::from_raw(wanted.load(Ordering::Relaxed)).later(cookie.0);
    wanted.store(furthest.raw(), Ordering::Relaxed);
}

fn is_wanted(wanted: &AtomicU64, _: &Root<'_>) -> bool {
    !POLLED.current().done(Seq::from_raw(wanted.load(Ordering::Relaxed)))
}

/// The work of [`start_poll_expedited`]. A wish that comes after the last look queues the item again.
fn expedite(_: &WorkItem, cx: &mut MaySleep) {
    while is_wanted(&WANTED_EXPEDITED, &tree().root().lock(&*cx)) {
        synchronize_rcu_expedited(cx);
    }
}

fn started(snap: &AtomicU64) {
    if !POLLED.current().is_running() {
        POLLED.start();
    }
    snap.store(POLLED.current().raw(), Ordering::Relaxed);
}

fn ended(snap: &AtomicU64) {
    let is_its_own = POLLED.current().raw() == snap.load(Ordering::Relaxed);
    if is_its_own
        || (POLLED.current().is_running()
            && bug!("rcu.poll_twin", "a grace period that began before the polled twin's ends it", "rcu_poll.*twin*"))
    {
        POLLED.end();
    }
}

/// A normal grace period is about to start.
pub(crate) fn norm_starts(_: &Root<'_>) {
    started(&NORM_SNAP);
}

/// A normal grace period is over.
pub(crate) fn norm_ended(_: &Root<'_>) {
    ended(&NORM_SNAP);
}

/// An expedited grace period is about to start.
pub(crate) fn exp_starts(_: &Root<'_>) {
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
pub(crate) fn still_wanted(root: &Root<'_>) -> bool {
    is_wanted(&WANTED, root)
}
