//! Which kind of grace period a thread waits for: at once, normal or expedited.
//!
//! The one place that decides ([`decide`]), from what was asked for and from these:
//!
//! | when | `synchronize_rcu` | `synchronize_rcu_expedited` |
//! |---|---|---|
//! | before [`crate::init`]: one CPU, one thread | at once | at once |
//! | somebody wants normal ones only (`rcupdate.rcu_normal`, [`only_normal`]) | normal | normal |
//! | somebody wants expedited ones (`rcupdate.rcu_expedited`, [`expedite`]), or the kernel still boots | expedited | expedited |
//! | else | normal | expedited |
//!
//! The first line that applies counts. While the kernel boots nobody is disturbed by interrupts and everybody waits for the
//! boot thread; [`boot_ended`] ends that, and with `rcupdate.rcu_normal_after_boot` allows no expedited ones from there on.
//!
//! Wishes nest: each is a [`Held`], and the counters say how many there are. Callbacks and cookies ask for normal grace
//! periods in any case.
//!
//! Invariants
//! - MODE-1: before [`crate::init`] the caller of a function that sleeps is the only thread that could be in a
//!   reader, and it is in none. So an instant *is* a grace period, and the counters take its steps ([`at_once`]).
//! - MODE-2: who waits is in no reader ([`wait`]).
//!
//! Contexts: any. Answers to Linux kernel/rcu/update.c (`rcu_gp_is_normal`, `rcu_gp_is_expedited`,
//! `rcu_end_inkernel_boot`) and tree.c (`rcu_blocking_is_gp`); row R-23.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sync::{IrqGuard, MaySleep};

use crate::config;
#[cfg(loom)]
use crate::model::sync;
use crate::tree::tree_if_built;
use crate::{exp, gp, poll, sync_gp};

/// Wishes for expedited grace periods; the boot's own is one.
static EXPEDITE: AtomicUsize = AtomicUsize::new(1);
/// Wishes for normal ones only.
static ONLY_NORMAL: AtomicUsize = AtomicUsize::new(0);
/// The boot's wish is withdrawn.
static BOOTED: AtomicBool = AtomicBool::new(false);

/// The kinds of grace period that a thread can ask for.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// CPUs report by themselves.
    Normal,
    /// CPUs are interrupted.
    Expedited,
}

/// Waits for a grace period as [`decide`] says. Context: task, outside of readers.
///
/// # Panics
/// If the thread is in a reader all the same, which it can be under [`sync::ATOMIC`]. In all builds: an instant and an
/// expedited grace period take their own thread for quiescent, so nobody would wait for that reader.
pub(crate) fn wait(asked: Kind, cx: &mut MaySleep) {
    assert!(crate::read_depth() == 0, "MODE-2: a thread waits for a grace period inside a reader");
    match decide(asked) {
        None => at_once(cx),
        Some(Kind::Normal) => sync_gp::wait(cx),
        Some(Kind::Expedited) => exp::wait(cx),
    }
}

/// The kind that a thread waits for which asked for `asked`; `None` if there is nothing to wait for (MODE-1).
pub(crate) fn decide(asked: Kind) -> Option<Kind> {
    tree_if_built()?;
    // Unordered: either kind is right at any time.
    let kind = match asked {
        _ if ONLY_NORMAL.load(Ordering::Relaxed) != 0 => Kind::Normal,
        _ if EXPEDITE.load(Ordering::Relaxed) != 0 => Kind::Expedited,
        asked => asked,
    };
    Some(kind)
}

/// The grace period that an instant before [`crate::init`] is. The boot thread gives its token.
fn at_once(cx: &MaySleep) {
    let irqs = IrqGuard::new(cx);
    gp::SEQ.start();
    gp::SEQ.end();
    poll::passed_at_once(&irqs);
}

/// A wish for one kind of grace period; it is withdrawn when this goes.
#[must_use = "the wish is withdrawn when this is dropped"]
#[derive(Debug)]
pub struct Held(&'static AtomicUsize);

impl Held {
    fn new(wishes: &'static AtomicUsize) -> Held {
        wishes.fetch_add(1, Ordering::Relaxed);
        Held(wishes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// From now on [`synchronize_rcu`](crate::synchronize_rcu) waits for an expedited grace period, unless somebody wants normal
/// ones only; until the last of these is dropped. A wait that has begun goes on as it is.
///
/// Context: any.
///
/// ```no_run
/// # fn thread(cx: &mut sync::MaySleep) {
/// let _quickly = grange_rcu::expedite();
/// grange_rcu::synchronize_rcu(cx);
/// # }
/// ```
pub fn expedite() -> Held {
    Held::new(&EXPEDITE)
}

/// From now on [`synchronize_rcu_expedited`](crate::synchronize_rcu_expedited) waits for a normal grace period, so that no
/// CPU is interrupted; until the last of these is dropped. Wins over [`expedite`].
///
/// Context: any.
pub fn only_normal() -> Held {
    Held::new(&ONLY_NORMAL)
}

/// What the command line wishes for. Context: [`crate::init`].
pub(crate) fn init() {
    for (param, wish) in [(&config::EXPEDITED, expedite as fn() -> Held), (&config::NORMAL, only_normal)] {
        if param.get() {
            core::mem::forget(wish());
        }
    }
}

/// The kernel has booted: grace periods are not expedited any more unless somebody asks for it.
///
/// Context: any; the first call counts.
pub fn boot_ended() {
    if BOOTED.swap(true, Ordering::Relaxed) {
        return;
    }
    if config::NORMAL_AFTER_BOOT.get() {
        core::mem::forget(only_normal());
    }
    EXPEDITE.fetch_sub(1, Ordering::Relaxed);
}
