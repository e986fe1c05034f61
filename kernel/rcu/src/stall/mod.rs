//! Stall warnings: who holds up a grace period that takes too long.
//!
//! | what is wrong | who finds it | says first |
//! |---|---|---|
//! | a CPU or a preempted reader holds up a normal grace period | the grace-period thread, at each of its looks | `detected stalls on CPUs/tasks` |
//! | the grace-period thread gets no CPU (*starved*) | the tick of any CPU | the same, or `self-detected stall on CPU` |
//! | either holds up an expedited grace period | the thread that runs it | `detected expedited stalls on CPUs/tasks` |
//!
//! A report comes when the limit is reached and then each time that three more limits have passed. Limits come from the
//! command line and can be changed by [`set_limits`]; under limits that are marked as a *drill* reports say so, are counted
//! apart and never panic. Who wants to know of reports registers a [`Notifier`].
//!
//! Time is that of the stall clock ([`clock`]), which stands still while nobody gets to look at it: a machine that its host
//! starves gives no false alarm.
//!
//! Invariants
//! - STALL-1: of those who find that a report of the normal grace period is due, one makes it: who moves [`REPORT_AT`] on.
//! - STALL-2: what is reported has been looked at afresh: a CPU that idles or has idled since the grace period saw it first is
//!   not named, though nobody has come round to reporting for it.
//!
//! Contexts: the tick in hardirq context, all else in threads. Nothing allocates. Answers to Linux kernel/rcu/tree_stall.h;
//! rows.

mod awaited;
mod clock;
mod notes;
mod report;

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use sched::Thread;
use sched::watchdog::Pace;

use crate::config::{EXP_STALL_TIMEOUT, STALL_SUPPRESS, STALL_TIMEOUT};
use crate::gp;
use crate::mode::Kind;
use crate::seq::Seq;

pub use awaited::{Awaited, awaited};
pub(crate) use notes::softirq_ran;
pub use report::{Notifier, Stall, register, reports};

/// More patience where locks are checked, which makes everything slower.
const CHECKING_NS: u64 = if cfg!(debug_assertions) { 5_000_000_000 } else { 0 };

/// Looks in a limit: none counts for more than one and a half times its share.
const LOOKS: u64 = 8;
/// The time between two of them at least and, where there is no limit, at most.
const LOOK_NS: (u64, u64) = (1_000_000, 1_000_000_000);

/// A report is due again after so many limits more.
const AGAIN: u64 = 3;

/// When a grace period is reported.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// A normal one that takes so many nanoseconds; 0: never.
    pub normal_ns: u64,
    /// An expedited one; 0: never.
    pub expedited_ns: u64,
    /// Reports are wanted: they say "(drill)", are counted apart and never panic.
    pub drill: bool,
}

/// The limits in force. Written by [`set_limits`].
static NORMAL_NS: AtomicU64 = AtomicU64::new(0);
static EXPEDITED_NS: AtomicU64 = AtomicU64::new(0);
static DRILL: AtomicBool = AtomicBool::new(false);

/// When the normal grace period that runs began, or the one that is wished for was wished for, on the stall clock. This and
/// the next are written by the grace-period thread and by who wishes.
static SINCE_NS: AtomicU64 = AtomicU64::new(0);
/// The grace-period thread's last sign of life since then, on the same.
static SIGN_NS: AtomicU64 = AtomicU64::new(0);
/// When its next report is due, on the same; never is `u64::MAX` (STALL-1).
static REPORT_AT: AtomicU64 = AtomicU64::new(u64::MAX);
/// The grace-period thread; null until it runs.
static THREAD: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());

impl Limits {
    /// Those that the parameters mean: seconds, milliseconds, nothing at all.
    fn from_parameters(seconds: u32, expedited_ms: u32, suppress: bool) -> Limits {
        if suppress {
            return Limits { normal_ns: 0, expedited_ns: 0, drill: false };
        }
        let normal_ns = u64::from(seconds) * 1_000_000_000 + CHECKING_NS;
        let expedited_ns = if expedited_ms == 0 { normal_ns } else { u64::from(expedited_ms) * 1_000_000 };
        Limits { normal_ns, expedited_ns, drill: false }
    }

    /// That of a kind.
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Normal => self.normal_ns,
            Kind::Expedited => self.expedited_ns,
        }
    }
}

/// The limits in force. Context: any.
pub fn limits() -> Limits {
    Limits {
        normal_ns: NORMAL_NS.load(Ordering::Relaxed),
        expedited_ns: EXPEDITED_NS.load(Ordering::Relaxed),
        drill: DRILL.load(Ordering::Relaxed),
    }
}

/// Changes the limits, also for grace periods that run (an expedited one may learn of it an eighth of its old limit later).
/// Returns those that were in force. Context: any but NMI.
pub fn set_limits(limits: Limits) -> Limits {
    let old = self::limits();
    NORMAL_NS.store(limits.normal_ns, Ordering::Relaxed);
    EXPEDITED_NS.store(limits.expedited_ns, Ordering::Relaxed);
    DRILL.store(limits.drill, Ordering::Relaxed);
    REPORT_AT.store(after(SINCE_NS.load(Ordering::Relaxed), limits.normal_ns), Ordering::Relaxed);
    old
}

/// Context: [`crate::init`].
pub(crate) fn init() {
    set_limits(Limits::from_parameters(STALL_TIMEOUT.get(), EXP_STALL_TIMEOUT.get(), STALL_SUPPRESS.get()));
}

/// When a limit from `start` is over.
fn after(start: u64, limit: u64) -> u64 {
    if limit == 0 { u64::MAX } else { start + limit }
}

/// The caller is the grace-period thread.
pub(crate) fn thread_runs() {
    THREAD.store(ptr::from_ref(sched::current()).cast_mut(), Ordering::Relaxed);
}

/// The grace-period thread, once it runs.
fn thread() -> Option<&'static Thread> {
    // SAFETY: null, or from a `&'static Thread`.
    unsafe { THREAD.load(Ordering::Relaxed).as_ref() }
}

/// A normal grace period begins, or is wished for while none runs: from now on it, or the thread, is late.
///
/// Context: any but NMI.
pub(crate) fn begins() {
    let now = clock::restart();
    SINCE_NS.store(now, Ordering::Relaxed);
    SIGN_NS.store(now, Ordering::Relaxed);
    REPORT_AT.store(after(now, NORMAL_NS.load(Ordering::Relaxed)), Ordering::Relaxed);
}

/// The grace-period thread gets on with its work.
pub(crate) fn thread_lives() {
    SIGN_NS.store(clock::now(), Ordering::Relaxed);
}

/// The grace-period thread has looked at the CPUs that grace period `gp` waits for, as it does every `period_ns`. Reports,
/// if it is due. Context: task.
pub(crate) fn check(gp: Seq, period_ns: u64) {
    let now = clock::advance(period_ns.max(look_ns()));
    SIGN_NS.store(now, Ordering::Relaxed);
    if is_due(now) {
        report::normal(gp, now - SINCE_NS.load(Ordering::Relaxed), None);
    }
}

/// The tick: looks after the grace-period thread. Context: hardirq.
pub(crate) fn tick() {
    let gp = gp::SEQ.current();
    notes::tick(gp);
    if !gp::has_work() {
        return;
    }
    let now = clock::advance(look_ns().max(sched::config::tick_ns()));
    let limit = NORMAL_NS.load(Ordering::Relaxed);
    let silent = now.saturating_sub(SIGN_NS.load(Ordering::Relaxed));
    // A thread that is only late will report itself, in better style.
    if silent >= limit / 2 && is_due(now) {
        report::normal(gp, now.saturating_sub(SINCE_NS.load(Ordering::Relaxed)), Some(silent));
    }
}

/// What a look counts for at least: more than a tick, since a host gives its time in larger pieces.
fn look_ns() -> u64 {
    NORMAL_NS.load(Ordering::Relaxed) / LOOKS
}

/// Whether the caller is to report now (STALL-1).
fn is_due(now: u64) -> bool {
    let at = REPORT_AT.load(Ordering::Relaxed);
    let again = after(now, AGAIN * NORMAL_NS.load(Ordering::Relaxed));
    now >= at && REPORT_AT.compare_exchange(at, again, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// The patience of the thread that waits for an expedited grace period.
pub(crate) struct Watch {
    pace: Pace,
    period_ns: u64,
    /// The limits that were told of, in watched time.
    told_until_ns: u64,
}

impl Watch {
    /// Starts now.
    pub(crate) fn new() -> Watch {
        let mut pace = Pace::new();
        pace.restart(arch::clock::now_ns());
        Watch { pace, period_ns: 0, told_until_ns: 0 }
    }

    /// Nanoseconds to the next look.
    pub(crate) fn patience_ns(&mut self) -> u64 {
        let limit = EXPEDITED_NS.load(Ordering::Relaxed);
        self.period_ns = if limit == 0 { LOOK_NS.1 } else { (limit / LOOKS).clamp(LOOK_NS.0, LOOK_NS.1) };
        self.period_ns
    }

    /// That time is over: reports, if the expedited grace period `gp` has taken too long. Context: task.
    pub(crate) fn check_expedited(&mut self, gp: Seq) {
        let age = self.pace.look(arch::clock::now_ns(), self.period_ns);
        let limit = EXPEDITED_NS.load(Ordering::Relaxed);
        if limit != 0 && age >= limit.max(self.told_until_ns) {
            self.told_until_ns = age + AGAIN * limit;
            report::expedited(gp, age);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_from_the_parameters_and_checking_builds_wait_five_seconds_more() {
        let more = if cfg!(debug_assertions) { 5 } else { 0 };
        let limits = |seconds, ms, suppress| {
            let limits = Limits::from_parameters(seconds, ms, suppress);
            assert!(!limits.drill);
            (limits.of(Kind::Normal), limits.of(Kind::Expedited))
        };
        let s = 1_000_000_000;
        let default = limits(STALL_TIMEOUT.get(), EXP_STALL_TIMEOUT.get(), STALL_SUPPRESS.get());
        assert_eq!(default, ((21 + more) * s, (21 + more) * s));
        assert_eq!(limits(3, 250, false), ((3 + more) * s, s / 4));
        assert_eq!(limits(3, 250, true), (0, 0));
        assert_eq!((after(7, 0), after(7, 5)), (u64::MAX, 12), "without a limit nothing is ever due");
    }

    #[test]
    fn a_timeout_out_of_bounds_is_refused() {
        for (line, fits) in [
            ("rcupdate.rcu_cpu_stall_timeout=2", false),
            ("rcupdate.rcu_cpu_stall_timeout=301", false),
            ("rcupdate.rcu_exp_cpu_stall_timeout=300001", false),
            ("rcupdate.rcu_cpu_stall_timeout=21", true),
        ] {
            assert_eq!(sync::param::parse(line).is_ok(), fits, "{line}");
        }
    }
}
