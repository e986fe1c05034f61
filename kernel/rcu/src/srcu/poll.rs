//! Polled grace periods of a domain: a cookie now, a question later.
//!
//! A cookie borrows its domain, so it cannot be asked of another, nor outlive it:
//!
//! ```no_run
//! use grange_rcu::srcu::{Normal, SrcuDomain, srcu_start_poll};
//!
//! fn updater(domain: &SrcuDomain<Normal>, cx: &mut sync::MaySleep) {
//!     let cookie = srcu_start_poll(domain);
//!     if !cookie.is_over() {
//!         cookie.cond_synchronize(cx);
//!     }
//! }
//! ```
//!
//! Row R-21. Answers to Linux `get_state_synchronize_srcu`, `start_poll_synchronize_srcu`, `poll_state_synchronize_srcu`.

use core::fmt;

use sync::{MaySleep, context};

use super::domain::{Core, SrcuDomain};
use super::flavour::Flavour;
use super::{gp, wait};
use crate::pending::LiveCookie;
use crate::poll::Pollable;
use crate::seq::Seq;

/// A point in time of a domain, to be asked later whether a grace period has passed since.
#[derive(Copy, Clone)]
pub struct SrcuCookie<'d> {
    core: &'d Core,
    end: Seq,
}

/// A cookie for now. Starts nothing: if nobody asks for a grace period, it may never be over.
///
/// What the caller did before is before the grace period that the cookie names. Context: any, NMI included. Wait-free.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn srcu_get_state<F: Flavour>(domain: &SrcuDomain<F>) -> SrcuCookie<'_> {
    let core = domain.core();
    SrcuCookie { core, end: core.gp.seq.snap() }
}

/// A cookie for now, and a wish for the grace period that it names.
///
/// Context: any but NMI, interrupts on or off; wakes no thread if they are off.
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn srcu_start_poll<F: Flavour>(domain: &SrcuDomain<F>) -> SrcuCookie<'_> {
    debug_assert!(!context::in_nmi(), "SRCU: srcu_start_poll in NMI context");
    let cookie = srcu_get_state(domain);
    gp::request(cookie.core, cookie.end, false);
    cookie
}

/// As [`srcu_start_poll`], with a wish for an expedited one, as of [`synchronize_srcu_expedited`](super::synchronize_srcu_expedited).
///
/// Context: as [`srcu_start_poll`].
#[must_use = "a cookie that is dropped cannot be asked"]
pub fn srcu_start_poll_expedited<F: Flavour>(domain: &SrcuDomain<F>) -> SrcuCookie<'_> {
    debug_assert!(!context::in_nmi(), "SRCU: srcu_start_poll_expedited in NMI context");
    let cookie = srcu_get_state(domain);
    gp::request(cookie.core, cookie.end, true);
    cookie
}

impl Pollable for SrcuCookie<'_> {
    fn is_over(&self) -> bool {
        (*self).is_over()
    }
}

impl LiveCookie for SrcuCookie<'_> {
    /// Of one domain: those of one counter, as of [`Cookie`](crate::Cookie::MAX_LIVE).
    const MAX_LIVE: usize = crate::Cookie::MAX_LIVE;
}

impl SrcuCookie<'_> {
    /// Whether a grace period has passed since the cookie was made. If true, that is ordered before what follows.
    ///
    /// Context: any, NMI included. Wait-free.
    pub fn is_over(self) -> bool {
        self.core.gp.seq.done(self.end)
    }

    /// Waits for a grace period unless one has passed since the cookie was made: the one that it names, so that nobody waits for
    /// two.
    ///
    /// Context: task, sleeps; not in a section of the domain.
    pub fn cond_synchronize(self, cx: &mut MaySleep) {
        cx.assert_may_sleep();
        if !self.is_over() {
            gp::request(self.core, self.end, false);
            wait::wait_for(self.core, self.end, cx);
        }
    }
}

impl PartialEq for SrcuCookie<'_> {
    /// Whether both name the same grace period of the same domain: then one need be kept only.
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.core, other.core) && self.end == other.end
    }
}

impl Eq for SrcuCookie<'_> {}

impl fmt::Debug for SrcuCookie<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SrcuCookie({}, {:?})", self.core.name, self.end)
    }
}
