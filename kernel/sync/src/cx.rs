//! What the type system knows about context.
//!
//! # The idea
//!
//! Every function that may sleep takes the thread's token, `&mut MaySleep`. Everything that makes
//! sleeping wrong (preemption off, a spin lock, an RCU reader) is a guard that is made from a
//! *shared* borrow of the token and keeps it borrowed. So this does not compile:
//!
//! ```compile_fail,E0502
//! # use grange_sync::{MaySleep, PreemptGuard};
//! fn sleeps(_: &mut MaySleep) {}
//! fn thread(cx: &mut MaySleep) {
//!     let guard = PreemptGuard::new(cx);
//!     sleeps(cx);        // error: the guard still borrows the token
//!     drop(guard);
//! }
//! ```
//!
//! and this does:
//!
//! ```
//! # use grange_sync::{MaySleep, PreemptGuard};
//! fn sleeps(_: &mut MaySleep) {}
//! fn thread(cx: &mut MaySleep) {
//!     let guard = PreemptGuard::new(cx);
//!     drop(guard);
//!     sleeps(cx);
//! }
//! ```
//!
//! Interrupt handlers, and internals that do not care, have no token: they use [`ATOMIC`].
//!
//! # Invariants
//!
//! - `CX-1` There is at most one `MaySleep` a thread, and it never leaves its thread. Enforced by
//!   the contract of [`MaySleep::new`] and by `!Send + !Sync`.
//! - `CX-2` A guard made from a token keeps the token borrowed until it is dropped. Enforced by
//!   the lifetimes of the guards.
//! - `CX-3` Interrupt handlers never get a `MaySleep`: handlers take no token, and the only mint
//!   is `sched`, at the start of a thread.
//!
//! A thread may still pass [`ATOMIC`] where it has a token; then only the run-time checks of
//! checking builds ([`MaySleep::assert_may_sleep`]) stand between it and a sleep under a guard.
//!
//! Linux has no such types; the run-time half answers to `might_sleep()` (include/linux/kernel.h).

use core::marker::PhantomData;

/// Proof-carrying context: what a guard may be made from.
///
/// Implemented by [`MaySleep`], [`Atomic`] and every guard. It promises nothing at run time; it
/// ties the new guard's lifetime to the value it was made from.
pub trait Cx {}

/// The token of a thread that may sleep here and now.
///
/// A zero-sized value, one a thread, handed down as `&mut` to whatever may sleep.
#[derive(Debug)]
pub struct MaySleep(PhantomData<*mut ()>);

impl MaySleep {
    /// Mints the token of a thread.
    ///
    /// Context: the start of a thread.
    ///
    /// # Safety
    /// The caller mints at most one token a thread, passes it only to code that runs on that
    /// thread, and only where the thread holds no guard (`CX-1`).
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(PhantomData)
    }

    /// In checking builds, panics unless sleeping is legal now: nothing but task context, no
    /// guard, interrupts on. Functions that sleep call it first, also when they end up not
    /// sleeping, so that a wrong caller is found at the first call.
    ///
    /// Context: task.
    ///
    /// # Panics
    /// In checking builds, with the place of the caller and the place where preemption was
    /// switched off.
    #[inline(always)]
    #[track_caller]
    pub fn assert_may_sleep(&mut self) {
        #[cfg(not(loom))]
        if cfg!(debug_assertions) {
            crate::context::check_may_sleep(core::panic::Location::caller());
        }
    }
}

impl Cx for MaySleep {}

/// The context of code that has no token: interrupt handlers and internals.
#[derive(Clone, Copy, Debug)]
pub struct Atomic;

impl Cx for Atomic {}

/// "No token here": what interrupt handlers and internals make guards from.
pub const ATOMIC: &Atomic = &Atomic;
