//! [`SeqCount`]: readers that never write, and try again if a writer was there.
//!
//! The data is read through relaxed atomics (or is otherwise allowed to be read while it changes);
//! the counter tells whether what was read belongs together. Writers exclude each other by other
//! means, a lock as a rule. It answers to Linux's seqcount_t (6.12, include/linux/seqlock.h).
//!
//! # Invariants
//!
//! - `SQ-1` The count is odd exactly while a writer is inside.
//! - `SQ-2` A reader that saw any store of a writer fails [`retry`](SeqCount::retry). Checked by
//!   `loom_a_reader_never_accepts_halves_of_two_writes`.
//! - `SQ-3` A writer is not interrupted by a reader that waits on the same CPU: such readers (NMI)
//!   use [`try_begin`](SeqCount::try_begin) and go another way.

use crate::atomic::{AtomicU32, Ordering, fence, pause, point};

/// A sequence counter; see the [module](self).
#[derive(Debug)]
pub struct SeqCount {
    /// Even: at rest. Odd: a writer is inside. Written by writers only.
    count: AtomicU32,
}

/// What a read section began with.
#[derive(Clone, Copy, Debug)]
#[must_use = "what was read is worth nothing until `retry` says so"]
pub struct SeqStart(u32);

impl SeqCount {
    crate::const_unless_loom! {
        /// A counter at rest.
        #[must_use]
        pub fn new() -> Self {
            Self { count: AtomicU32::new(0) }
        }
    }

    /// Begins a read section; waits while a writer is inside.
    ///
    /// Context: any that cannot have interrupted a writer (`SQ-3`).
    #[inline]
    pub fn begin(&self) -> SeqStart {
        loop {
            if let Some(start) = self.try_begin() {
                return start;
            }
            pause();
        }
    }

    /// Begins a read section, unless a writer is inside.
    ///
    /// Context: any. Wait-free.
    #[inline]
    pub fn try_begin(&self) -> Option<SeqStart> {
        // Acquire: pairs with the release store in `write`: data that is read after this is at
        // least as new as the count.
        let count = self.count.load(Ordering::Acquire);
        point();
        count.is_multiple_of(2).then_some(SeqStart(count))
    }

    /// Ends a read section; true if what was read must be read again.
    ///
    /// Context: any. Wait-free.
    #[inline]
    #[must_use = "if true, what was read does not belong together"]
    pub fn retry(&self, start: SeqStart) -> bool {
        // Acquire: pairs with the release fence in `write`: if a store of a writer was read, the
        // load after this sees its odd count, at least.
        fence(Ordering::Acquire);
        self.count.load(Ordering::Relaxed) != start.0
    }

    /// Reads until it was not disturbed.
    ///
    /// Context: as [`begin`](Self::begin).
    #[inline]
    pub fn read<R>(&self, mut f: impl FnMut() -> R) -> R {
        loop {
            let start = self.begin();
            let result = f();
            if !self.retry(start) {
                return result;
            }
        }
    }

    /// Changes the data; readers that overlap try again.
    ///
    /// Context: any. Never waits.
    ///
    /// # Safety
    /// No other writer is inside, on any CPU and in any context that this one may interrupt or be
    /// interrupted by.
    #[inline]
    pub unsafe fn write<R>(&self, f: impl FnOnce() -> R) -> R {
        let count = self.count.load(Ordering::Relaxed);
        debug_assert!(count.is_multiple_of(2), "SQ-1: two writers at once");
        self.count.store(count.wrapping_add(1), Ordering::Relaxed);
        // Release: pairs with the acquire fence in `retry`: the odd count before the data.
        fence(Ordering::Release);
        point();
        let result = f();
        point();
        // Release: pairs with the acquire in `try_begin`: the data before the even count.
        self.count.store(count.wrapping_add(2), Ordering::Release);
        result
    }
}

impl Default for SeqCount {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{sync::Arc, sync::atomic::AtomicUsize, thread};

    use super::*;

    #[test]
    fn loom_a_reader_never_accepts_halves_of_two_writes() {
        loom::model(|| {
            let shared = Arc::new((SeqCount::new(), AtomicUsize::new(0), AtomicUsize::new(0)));
            let writer = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (seq, a, b) = &*shared;
                    for value in 1..=2 {
                        // SAFETY: this thread is the only writer.
                        unsafe {
                            seq.write(|| {
                                a.store(value, Ordering::Relaxed);
                                b.store(value, Ordering::Relaxed);
                            });
                        }
                    }
                })
            };
            // A thread of its own, see the models of the list.
            let reader = thread::spawn(move || {
                let (seq, a, b) = &*shared;
                if let Some(start) = seq.try_begin() {
                    let halves = (a.load(Ordering::Relaxed), b.load(Ordering::Relaxed));
                    if !seq.retry(start) {
                        assert_eq!(halves.0, halves.1, "accepted halves of two writes");
                    }
                }
            });
            reader.join().unwrap();
            writer.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    #[test]
    fn a_read_that_overlaps_a_write_is_told_to_try_again() {
        let seq = SeqCount::new();
        let start = seq.begin();
        assert!(!seq.retry(start));
        // SAFETY: one thread.
        unsafe { seq.write(|| assert!(seq.try_begin().is_none(), "a writer is inside")) };
        assert!(seq.retry(start));
        assert!(!seq.retry(seq.begin()));
    }

    #[test]
    fn two_words_written_together_are_read_together() {
        let shared = (SeqCount::new(), AtomicU64::new(0), AtomicU64::new(0));
        let (seq, a, b) = &shared;
        let rounds = if cfg!(miri) { 50 } else { 20_000 };
        thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..=rounds {
                    // SAFETY: this thread is the only writer.
                    unsafe {
                        seq.write(|| {
                            a.store(value, Ordering::Relaxed);
                            b.store(value * 3, Ordering::Relaxed);
                        });
                    }
                }
            });
            loop {
                let (a, b) = seq.read(|| (a.load(Ordering::Relaxed), b.load(Ordering::Relaxed)));
                assert_eq!(a * 3, b);
                if a == rounds {
                    break;
                }
            }
        });
    }
}
