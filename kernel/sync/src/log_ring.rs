//! The ring behind the log: many producers in any context, records of a fixed size, never torn.
//!
//! Positions count records from 0 for ever; position `p` lives in slot `p % SLOTS`, in generation
//! `p / SLOTS`. A new record overwrites the oldest one. Each slot has a state:
//!
//! | state | meaning |
//! |---|---|
//! | `2 g` | free for generation `g`; if `g > 0` it holds the whole record of generation `g - 1` |
//! | `2 g + 1` | a producer writes the record of generation `g` |
//!
//! A producer (1) reads the tail, (2) moves the slot's state from `2 g` to `2 g + 1`, which claims
//! the position, (3) moves the tail, (4) writes the record, (5) moves the state to `2 g + 2`.
//! Whoever finds a claimed slot at the tail moves the tail for its claimer, so a producer that is
//! interrupted anywhere holds nobody up. If the slot is still being written in generation `g - 1`
//! (its producer was interrupted and the ring has gone all the way round meanwhile), the new record
//! is dropped and counted; the next record that is written at that place carries the count.
//!
//! It answers to Linux's printk ring buffer (6.12, kernel/printk/printk_ringbuffer.c), which has
//! records of any size and two rings for it.
//!
//! # Invariants
//!
//! - `LR-1` Every position below the tail was claimed by exactly one producer. (The claim is an
//!   exchange of the state; the tail moves past a claimed slot only.)
//! - `LR-2` A reader gets a record whole or not at all: it reads the words between two looks at the
//!   state. Checked by `loom_a_record_is_read_whole_or_not_at_all`.
//! - `LR-3` Every push is accounted for: it returned a position, or a count of lost records has
//!   gone up by one and comes out at the place of the loss. Checked by
//!   `loom_every_push_is_written_or_counted`.
//!
//! Context: any, NMI included. `push` is lock-free: a turn of its loop is repeated only when
//! another producer got on; `read` is wait-free.

use crate::atomic::{AtomicU64, Ordering, fence};

/// A ring of `SLOTS` records of `WORDS` words each.
#[derive(Debug)]
pub struct Ring<const SLOTS: usize, const WORDS: usize> {
    /// The next position to be claimed.
    tail: AtomicU64,
    /// Records dropped since one was last written; the next producer takes it along.
    dropped: AtomicU64,
    slots: [Slot<WORDS>; SLOTS],
}

#[derive(Debug)]
struct Slot<const WORDS: usize> {
    /// See the table of the module.
    state: AtomicU64,
    /// Records lost just before this one. Written and read like a word of the record.
    dropped_before: AtomicU64,
    /// Written by the producer that claimed the slot; read by anyone, between two looks at `state`.
    words: [AtomicU64; WORDS],
}

/// What is at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The record has been copied out; this many were lost just before it.
    Record {
        /// Records dropped between the one at the position before and this one.
        dropped_before: u64,
    },
    /// Claimed, but not written to the end yet.
    BeingWritten,
    /// Nothing yet.
    Empty,
    /// Gone: overwritten by a later record. Go on at [`Ring::oldest`].
    Overwritten,
}

impl<const SLOTS: usize, const WORDS: usize> Ring<SLOTS, WORDS> {
    crate::const_unless_loom! {
        /// An empty ring. All bits zero, so that a static one needs no room in the image.
        #[must_use]
        pub fn new() -> Self {
            Self {
                tail: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                slots: crate::array_of!(Slot::new(); SLOTS),
            }
        }
    }

    /// Appends a record; its position, or `None` if it was dropped (and counted).
    ///
    /// Context: any. Lock-free.
    pub fn push(&self, record: &[u64; WORDS]) -> Option<u64> {
        let position = self.claim()?;
        let slot = self.slot(position);
        // Release: pairs with the acquire fence in `read`: the odd state before the words.
        fence(Ordering::Release);
        // Relaxed: the count travels with the record.
        let dropped =
            if self.dropped.load(Ordering::Relaxed) == 0 { 0 } else { self.dropped.swap(0, Ordering::Relaxed) };
        slot.dropped_before.store(dropped, Ordering::Relaxed);
        for (to, from) in slot.words.iter().zip(record) {
            to.store(*from, Ordering::Relaxed);
        }
        // Release: pairs with the acquire load in `read`, and with the acquire of the exchange in
        // `claim` one generation later: the words before the even state.
        slot.state.store(2 * Self::generation(position) + 2, Ordering::Release);
        Some(position)
    }

    /// Copies the record at `position` out.
    ///
    /// Context: any. Wait-free. `record` is meaningful only for [`Read::Record`].
    pub fn read(&self, position: u64, record: &mut [u64; WORDS]) -> Read {
        let slot = self.slot(position);
        let whole = 2 * Self::generation(position) + 2;
        // Acquire: pairs with the release at the end of `push`.
        let state = slot.state.load(Ordering::Acquire);
        if state < whole {
            return if state + 1 == whole { Read::BeingWritten } else { Read::Empty };
        }
        if state > whole {
            return Read::Overwritten;
        }
        let dropped_before = slot.dropped_before.load(Ordering::Relaxed);
        for (to, from) in record.iter_mut().zip(&slot.words) {
            *to = from.load(Ordering::Relaxed);
        }
        // Acquire: pairs with the release fence in `push`: if a word of a later generation was
        // read, the look at the state sees that generation, at least (`LR-2`).
        fence(Ordering::Acquire);
        if slot.state.load(Ordering::Relaxed) == whole { Read::Record { dropped_before } } else { Read::Overwritten }
    }

    /// The position that the next record gets.
    ///
    /// Context: any.
    pub fn end(&self) -> u64 {
        // Acquire: pairs with the release in `claim`, so that a position below it is never found
        // `Empty`.
        self.tail.load(Ordering::Acquire)
    }

    /// The oldest position that can still be read.
    ///
    /// Context: any.
    pub fn oldest(&self) -> u64 {
        self.end().saturating_sub(SLOTS as u64)
    }

    /// Records dropped that no later record has reported yet.
    ///
    /// Context: any.
    pub fn dropped_at_end(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn slot(&self, position: u64) -> &Slot<WORDS> {
        &self.slots[(position % SLOTS as u64) as usize]
    }

    fn generation(position: u64) -> u64 {
        position / SLOTS as u64
    }

    /// Steps 1 to 3 of the module's story.
    fn claim(&self) -> Option<u64> {
        loop {
            // Acquire: pairs with the release in `move_tail`: the state read next is at least the
            // claim of the round before. Not needed for `LR-1` to `LR-3`, and no model fails without
            // it: an older state would only look like an interrupted producer and drop this record.
            let position = self.tail.load(Ordering::Acquire);
            let free = 2 * Self::generation(position);
            let state = &self.slot(position).state;
            match state.load(Ordering::Relaxed) {
                now if now == free => {
                    // Acquire: pairs with the release at the end of `push`, one generation ago.
                    let claim = state.compare_exchange(free, free + 1, Ordering::Acquire, Ordering::Relaxed);
                    if claim.is_ok() {
                        self.move_tail(position);
                        return Some(position);
                    }
                }
                // Claimed: help, then try the next position.
                now if now > free => self.move_tail(position),
                // The producer of the generation before is still inside.
                _ => {
                    if self.tail.load(Ordering::Relaxed) == position {
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                        return None;
                    }
                }
            }
        }
    }

    /// Moves the tail past `position`, unless that has been done.
    fn move_tail(&self, position: u64) {
        // Release: pairs with the acquire loads in `claim` and `end`: the claim before the tail.
        // If it fails somebody else has moved it: that is as good.
        let _ = self.tail.compare_exchange(position, position + 1, Ordering::Release, Ordering::Relaxed);
    }
}

impl<const SLOTS: usize, const WORDS: usize> Default for Ring<SLOTS, WORDS> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const WORDS: usize> Slot<WORDS> {
    crate::const_unless_loom! {
        fn new() -> Self {
            Self {
                state: AtomicU64::new(0),
                dropped_before: AtomicU64::new(0),
                words: crate::array_of!(AtomicU64::new(0); WORDS),
            }
        }
    }
}

#[cfg(test)]
#[path = "log_ring_tests.rs"]
mod tests;
