//! The checks of builds without debug assertions: none, in no bytes.

use arch::cpu::CpuId;

use super::{HeldLock, LockClass};

/// Nothing is remembered of a lock's class.
#[derive(Debug)]
pub(crate) struct Tracked;

/// Nobody watches the spinning.
pub(crate) struct StuckWatch;

/// Nothing is remembered of a thread's locks.
#[derive(Debug, Default)]
pub struct ThreadLocks;

/// Nothing is remembered of a sleeping lock.
#[derive(Debug)]
pub struct SleepTracked;

impl Tracked {
    pub(crate) const fn new(_: &'static LockClass) -> Self {
        Self
    }

    #[inline(always)]
    pub(crate) fn before_lock(&self) {}

    #[inline(always)]
    pub(crate) fn after_try_lock(&self) {}

    #[inline(always)]
    pub(crate) fn before_unlock(&self) {}

    #[inline(always)]
    pub(crate) fn stuck_watch(&self) -> StuckWatch {
        StuckWatch
    }
}

impl StuckWatch {
    #[inline(always)]
    pub(crate) fn spun(&mut self) {}
}

impl SleepTracked {
    /// Of a lock of any class.
    #[must_use]
    pub const fn new(_: &'static LockClass) -> Self {
        Self
    }

    /// Nothing is checked.
    #[inline(always)]
    pub fn before_lock(&self) {}

    /// Nothing is remembered.
    #[inline(always)]
    pub fn locked(&self) {}

    /// Nothing is checked.
    #[inline(always)]
    pub fn before_unlock(&self) {}
}

impl ThreadLocks {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }

    /// Never calls `f`.
    #[inline(always)]
    pub fn for_each(&self, _: impl FnMut(HeldLock)) {}
}

/// Does nothing.
#[inline(always)]
pub fn set_thread(_: &'static ThreadLocks) {}

/// Never calls `f`.
#[inline(always)]
pub fn for_each_held(_: CpuId, _: impl FnMut(HeldLock)) {}

/// Nothing is known.
pub fn for_each_edge(_: impl FnMut(&'static str, &'static str)) {}
