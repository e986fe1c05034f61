//! What is tortured: the flavours of RCU as a table of what they can do.
//!
//! Linux: `struct rcu_torture_ops` in kernel/rcu/rcutorture.c; row C-3.

use rcu::seq::Seq;
use rcu::srcu::{Fast, FastUpDown, NmiSafe, Normal, SrcuCookie, SrcuReadGuard};
use rcu::{Cookie, FullCookie, Pollable, RcuReadGuard};
use sync::callback::{CallbackFn, CallbackHead};
use sync::{MaySleep, PreemptGuard};

/// A section of a reader; it ends when this goes.
#[expect(dead_code, reason = "guards are there for their ends")]
pub(crate) enum Section {
    Rcu(RcuReadGuard<'static>),
    Normal(SrcuReadGuard<'static, Normal>),
    NmiSafe(SrcuReadGuard<'static, NmiSafe>),
    Fast(SrcuReadGuard<'static, Fast>),
    FastUpDown(SrcuReadGuard<'static, FastUpDown>),
    NoPreemption(PreemptGuard<'static>),
    /// Readers of this flavour say nothing.
    Unmarked,
}

/// A cookie of any flavour.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum AnyCookie {
    Short(Cookie),
    Full(FullCookie),
    Srcu(SrcuCookie<'static>),
}

impl AnyCookie {
    pub(crate) fn is_over(&self) -> bool {
        match self {
            AnyCookie::Short(cookie) => cookie.is_over(),
            AnyCookie::Full(cookie) => cookie.is_over(),
            AnyCookie::Srcu(cookie) => Pollable::is_over(cookie),
        }
    }
}

/// Makes a cookie for now.
pub(crate) type GetCookie = fn() -> AnyCookie;

/// A way to have a function called after a grace period.
pub(crate) struct Call {
    /// Queues a callback.
    pub(crate) queue: unsafe fn(*mut CallbackHead, CallbackFn),
    /// The callback of elements that are queued so: [`super::pipe::aged`] with this.
    pub(crate) aged: CallbackFn,
    /// A cookie that has to be over when the callback runs.
    pub(crate) exact: Option<GetCookie>,
}

/// A way to wait for a grace period.
pub(crate) enum Way {
    /// Until it is over.
    Wait(fn(&mut MaySleep)),
    /// By a callback.
    Call(&'static Call),
    /// A cookie now, and later a grace period unless one has passed.
    Conditional(GetCookie, fn(AnyCookie, &mut MaySleep)),
    /// A cookie now, asked again and again. Beside it others are made; so many different ones are open at a time at most.
    Poll { start: GetCookie, get: GetCookie, most_live: usize },
}

/// A way to wait, by the name of the parameter that chooses it.
pub(crate) struct Update {
    pub(crate) name: &'static str,
    pub(crate) way: Way,
}

/// What readers of a flavour may do.
#[derive(Copy, Clone)]
pub(crate) struct Readers {
    /// Begins a section.
    pub(crate) begin: fn() -> Section,
    /// Preemption, soft interrupts and interrupts off are sections too, and may prolong one or be all of it.
    pub(crate) extendable: bool,
    /// Sections sleep.
    pub(crate) sleep: bool,
    /// One in so many times a section stays for so many nanoseconds: longer than a slice, and than a grace period takes.
    pub(crate) long: (u64, u64),
    /// They are in interrupt handlers, too.
    pub(crate) in_interrupts: bool,
    /// And in NMI handlers.
    pub(crate) in_nmis: bool,
    /// What a thread does between sections, so that grace periods pass.
    pub(crate) rest: fn(&mut MaySleep),
    /// Cookies that must not be over at the end of the section in which they were made.
    pub(crate) cookies: &'static [GetCookie],
    /// The numbers of grace periods, of each kind; a section sees the end of one of a kind at most.
    pub(crate) batches: fn() -> [Seq; 2],
}

/// A flavour.
pub(crate) struct Ops {
    pub(crate) name: &'static str,
    pub(crate) readers: Readers,
    pub(crate) updates: &'static [Update],
    /// A cookie that is over after each of them, if it was made before.
    pub(crate) exact: Option<GetCookie>,
    /// Waits for all callbacks queued before.
    pub(crate) barrier: fn(&mut MaySleep),
    /// Begins a section that somebody else ends: returns that end.
    pub(crate) down: Option<fn() -> super::updown::Up>,
}
