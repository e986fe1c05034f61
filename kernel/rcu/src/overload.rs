//! Too many callbacks: how a CPU notices, and what it does about it. The whole story stands in [`crate::call`].
//!
//! | noticed | by | done |
//! |---|---|---|
//! | [`config::QHIMARK`] wait on the CPU, or that many more | `call_rcu` with interrupts on, else the tick | *hurry* |
//! | that many will wait in a few ticks, at the present rate | the tick | *hurry* |
//! | `rcutree.qovld` wait | the same | *overload* |
//! | [`config::HELP_AT`] could run but do not get to | `call_rcu` in a thread with everything on | it runs [`config::HELP`] |
//!
//! *Hurry*: no limit by number on a run of callbacks, until fewer than [`config::QLOWMARK`] wait; the grace-period thread
//! looks at the CPUs now. *Overload*: as long as one CPU is, every CPU that owes a quiescent state passes through the
//! scheduler at its next tick instead of two ticks later, until fewer than `qhimark` wait.
//!
//! Invariants
//! - OVL-1: `attention_at` is no more than what calls for any of these next; it is set anew by whoever changes one of them.
//!
//! Contexts: the owning CPU, interrupts off, but for [`attend`]. Linux: `call_rcu_core`, `check_cb_ovld` in
//! kernel/rcu/tree.c; the rate and the help are ours. Rows R-6, S3-29.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arch::clock;
use sync::{ATOMIC, IrqGuard, context};

use crate::cpu::{Own, own, shared_here};
use crate::hist::{Histogram, Snapshot};
use crate::{call, config, gp, invoke};

/// What a CPU knows of its load by callbacks.
pub(crate) struct Load {
    /// It hurries.
    hurry: Cell<bool>,
    /// Number of callbacks at which it next tells the grace-period thread; 0 before the first look.
    hurry_at: Cell<usize>,
    /// It counts in [`OVERLOADED`].
    overloaded: Cell<bool>,
    /// Callbacks queued here up to the last tick.
    queued: Cell<u64>,
    /// The tick in which `burst` callbacks have been queued, for [`Load::is_burst`].
    burst_tick: Cell<u64>,
    burst: Cell<u32>,
    /// One callback whose waiting is timed: since when, 0 for none.
    timed_since_ns: Cell<u64>,
    /// It has run when so many have.
    timed: Cell<u64>,
}

/// Times that a CPU had too many callbacks.
static BY_NUMBER: AtomicU64 = AtomicU64::new(0);
/// Times that it had not, but would soon.
static BY_RATE: AtomicU64 = AtomicU64::new(0);
/// Times that a CPU became overloaded.
static OVERLOADS: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds that callbacks have waited till they had run: at most one on each CPU at a time is timed, from a tick on.
static WAITS: Histogram = Histogram::new();
/// CPUs that are overloaded.
static OVERLOADED: AtomicUsize = AtomicUsize::new(0);

impl Load {
    pub(crate) const fn new() -> Load {
        Load {
            hurry: Cell::new(false),
            hurry_at: Cell::new(0),
            overloaded: Cell::new(false),
            queued: Cell::new(0),
            burst_tick: Cell::new(0),
            burst: Cell::new(0),
            timed_since_ns: Cell::new(0),
            timed: Cell::new(0),
        }
    }

    /// Whether the CPU hurries.
    pub(crate) fn hurries(&self) -> bool {
        self.hurry.get()
    }

    /// Counts one more callback in the tick that `now_ns` is in; true if there were `most` before.
    pub(crate) fn is_burst(&self, now_ns: u64, most: u32) -> bool {
        let tick = now_ns / sched::config::tick_ns();
        if self.burst_tick.replace(tick) != tick {
            self.burst.set(0);
        }
        let before = self.burst.get();
        self.burst.set(before.saturating_add(1));
        before >= most
    }

    /// Whether `len` calls for hurry (again).
    fn is_flood(&self, len: usize) -> bool {
        len >= self.hurry_at.get().max(high_mark())
    }

    /// Hurries, with `len` callbacks waiting.
    fn start_hurry(&self, len: usize) {
        self.hurry.set(true);
        self.hurry_at.set(len + high_mark());
    }

    /// Times the youngest of `queued` callbacks, if none is being timed.
    fn time_one(&self, queued: u64) {
        if self.timed_since_ns.get() == 0 {
            self.timed_since_ns.set(clock::now_ns());
            self.timed.set(queued);
        }
    }

    /// `ran` callbacks have run here. If none wait although the one that is timed has not, it went elsewhere.
    fn look_at_time(&self, ran: u64, none_wait: bool) {
        let since = self.timed_since_ns.get();
        if since == 0 {
            return;
        }
        let over = ran >= self.timed.get();
        if over {
            WAITS.record(clock::now_ns() - since);
        }
        if over || none_wait {
            self.timed_since_ns.set(0);
        }
    }

    fn look_at_overload(&self, len: usize) -> bool {
        let begins = !self.overloaded.get() && len >= config::overload_mark();
        if begins {
            self.overloaded.set(true);
            OVERLOADED.fetch_add(1, Ordering::Relaxed);
            OVERLOADS.fetch_add(1, Ordering::Relaxed);
        } else if self.overloaded.get() && len < high_mark().min(config::overload_mark()) {
            self.overloaded.set(false);
            OVERLOADED.fetch_sub(1, Ordering::Relaxed);
        }
        begins
    }
}

fn high_mark() -> usize {
    config::QHIMARK.get() as usize
}

/// `call_rcu` has found as many callbacks as call for attention. Context: any but NMI, interrupts on.
#[cold]
#[inline(never)]
pub(crate) fn attend() {
    let (flood, help) = {
        let irqs = IrqGuard::new(ATOMIC);
        let me = own(&irqs);
        let len = me.cbs.borrow().len();
        let flood = notice(me, len);
        (flood, me.cbs.borrow().done_len() >= config::HELP_AT)
    };
    if flood {
        call::advance_and_request();
        gp::hurry();
    }
    // With preemption, softirqs and interrupts on the caller holds no spin lock that a callback could want.
    if help && context::preemptible() {
        invoke::help();
    }
}

/// `len` callbacks wait: does something about it here; true if the grace-period thread is to be told.
pub(crate) fn notice(me: &Own, len: usize) -> bool {
    let load = &me.load;
    let flood = load.is_flood(len);
    if flood {
        load.start_hurry(len);
        BY_NUMBER.fetch_add(1, Ordering::Relaxed);
    }
    let overload = load.look_at_overload(len);
    set_attention(me);
    flood || overload
}

/// Callbacks have run: `len` are left.
pub(crate) fn relax(me: &Own, len: usize) {
    let load = &me.load;
    if len < config::QLOWMARK.get() as usize {
        load.hurry.set(false);
        load.hurry_at.set(high_mark());
    }
    load.look_at_overload(len);
    load.look_at_time(shared_here().cb_ran.load(Ordering::Relaxed), len == 0);
    set_attention(me);
}

/// Sets `attention_at` (OVL-1). The callbacks are not borrowed.
pub(crate) fn set_attention(me: &Own) {
    let load = &me.load;
    let mut at = load.hurry_at.get().max(high_mark());
    if !load.overloaded.get() {
        at = at.min(config::overload_mark());
    }
    if me.cbs.borrow().done_len() >= config::HELP_AT {
        at = 0;
    }
    me.attention_at.set(at);
}

/// The tick's look: at the number, for what was queued with interrupts off, and at the rate.
pub(crate) fn tick(me: &Own) {
    let load = &me.load;
    let len = me.cbs.borrow().len();
    let queued = shared_here().cb_ran.load(Ordering::Relaxed) + len as u64;
    if len != 0 {
        load.time_one(queued);
    }
    let rate = queued.saturating_sub(load.queued.replace(queued)) as usize;
    if me.offloaded.get() {
        // What ran are callbacks that its threads have called: no rate of this list.
        return;
    }
    let mut tell = len >= me.attention_at.get() && notice(me, len);
    let soon = len + rate * config::RATE_HORIZON_TICKS;
    if !load.hurries() && soon >= high_mark() {
        load.hurry.set(true);
        BY_RATE.fetch_add(1, Ordering::Relaxed);
        tell = true;
    }
    if tell {
        gp::hurry();
    }
}

/// How long callbacks have waited till they had run, in nanoseconds: a sample, one on each CPU at a time, counted from the
/// tick after it was queued. Those of offloaded CPUs are not in it. Context: any.
pub fn callback_waits() -> Snapshot {
    WAITS.snapshot()
}

/// Whether some CPU is overloaded, so that quiescent states are wanted early. Context: any.
pub(crate) fn is_overloaded() -> bool {
    OVERLOADED.load(Ordering::Relaxed) != 0
}

/// Counts a flood that was noticed for an offloaded CPU.
pub(crate) fn count_flood() {
    BY_NUMBER.fetch_add(1, Ordering::Relaxed);
}

/// What was noticed and done about callbacks so far.
#[derive(Copy, Clone, Debug)]
pub struct CallbackStats {
    /// Times that a CPU hurried because `qhimark` callbacks, or that many more, waited on it.
    pub floods: u64,
    /// Times that it hurried because they soon would, at the rate at which they came.
    pub floods_foreseen: u64,
    /// Times that a CPU became overloaded.
    pub overloads: u64,
    /// CPUs that are.
    pub overloaded: usize,
    /// Callbacks that `call_rcu` ran itself because many waited to be run.
    pub helped: u64,
    /// Lazy callbacks that nobody has asked a grace period for.
    pub lazy: usize,
    /// Callbacks that were queued again before they had run, and refused; checking builds only.
    pub queued_twice: u64,
    /// Callbacks that could not be called, because their function was gone.
    pub no_function: u64,
}

/// Reads all of it, one after another. Context: any but NMI.
pub fn callback_stats() -> CallbackStats {
    CallbackStats {
        floods: BY_NUMBER.load(Ordering::Relaxed),
        floods_foreseen: BY_RATE.load(Ordering::Relaxed),
        overloads: OVERLOADS.load(Ordering::Relaxed),
        overloaded: OVERLOADED.load(Ordering::Relaxed),
        helped: invoke::HELPED.load(Ordering::Relaxed),
        lazy: crate::nocb::lazy_waiting(),
        queued_twice: crate::misuse::QUEUED_TWICE.load(Ordering::Relaxed),
        no_function: crate::misuse::NO_FUNCTION.load(Ordering::Relaxed),
    }
}
