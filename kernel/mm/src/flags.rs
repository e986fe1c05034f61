//! [`AllocFlags`] and [`AllocError`]: what a caller may say, and what it may hear.

use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// How an allocation may behave. None is [`NOWAIT`](Self::NOWAIT).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct AllocFlags: u32 {
        /// It may reclaim and wait. Only for calls that take the token: without it the flag does nothing.
        const MAY_SLEEP = 1 << 0;
        /// The memory is zeroed.
        const ZERO = 1 << 1;
        /// It may use the last pages of a node, below the min watermark: for work that gives memory back.
        const RESERVE = 1 << 2;
        /// It may not use them, whatever else is said.
        const NO_RESERVE = 1 << 3;
        /// Failure is expected and not reported in the log.
        const NOWARN = 1 << 4;
        /// From the node that was asked for or from none. Without it a node is a wish: the nearest with memory will do.
        const THIS_NODE = 1 << 5;
    }
}

impl AllocFlags {
    /// It fails rather than wait. The absence of all flags.
    pub const NOWAIT: Self = Self::empty();

    /// Whether pages below the min watermark may be taken: RESERVE, unless NO_RESERVE is said as well.
    #[must_use]
    pub fn may_dip(self) -> bool {
        self.contains(Self::RESERVE) && !self.contains(Self::NO_RESERVE)
    }
}

/// There is no memory of the kind that was asked for. A value like any other: the caller carries on without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocError;

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

impl core::error::Error for AllocError {}
