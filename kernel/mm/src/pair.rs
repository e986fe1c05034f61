//! [`SlabPair`]: the two words of a slab that change together, freelist and counters.
//!
//! The processor's 16-byte compare-exchange is in [`arch::atomic`]; here are the words' orderings.

use core::sync::atomic::Ordering;

use arch::atomic::{Pair, cmpxchg16b};

/// Two 64-bit words, changed together.
#[repr(transparent)]
#[derive(Debug)]
pub struct SlabPair(Pair);

impl SlabPair {
    /// A pair with this value.
    #[must_use]
    pub const fn new(first: u64, second: u64) -> Self {
        Self(Pair::new(first, second))
    }

    /// Reads the two words, one after the other: they may belong to different moments. Then a
    /// [`compare_exchange`](Self::compare_exchange) that expects them fails, unless the pair came back to that value.
    ///
    /// Context: any. Wait-free.
    #[inline]
    pub fn load(&self) -> (u64, u64) {
        // Acquire: pairs with the locked operation in `compare_exchange` and the release in `store`: what was written
        // before the pair changed is seen after.
        (self.0.low.load(Ordering::Acquire), self.0.high.load(Ordering::Acquire))
    }

    /// Writes the two words, one after the other, while nobody else changes them.
    ///
    /// Context: any. Wait-free.
    #[inline]
    pub fn store(&self, (first, second): (u64, u64)) {
        // Release: pairs with the acquire in `load`.
        self.0.low.store(first, Ordering::Release);
        self.0.high.store(second, Ordering::Release);
    }

    /// Puts `new` if the pair is `old`, in one step.
    ///
    /// The processor's locked operation is a full barrier, whether it succeeds or not.
    ///
    /// Context: any, NMI included. Lock-free.
    ///
    /// # Errors
    /// What is there instead of `old`, both words from one moment.
    #[inline]
    pub fn compare_exchange(&self, old: (u64, u64), new: (u64, u64)) -> Result<(), (u64, u64)> {
        cmpxchg16b(&self.0, old, new)
    }
}
