//! The checks of builds without debug assertions: none, in no bytes.

use super::LockClass;

/// Nothing is remembered of a lock's class.
#[derive(Debug)]
pub(crate) struct Tracked;

/// Nobody watches the spinning.
pub(crate) struct StuckWatch;

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
