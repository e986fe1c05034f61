//! The protocol of a trace ring: producers that interrupt each other, one attempt each, records never torn.
//!
//! Positions count records from 0 for ever; position `p` lives in slot `p % slots`, in generation `p / slots`. Each slot has a
//! state:
//!
//! | state | meaning |
//! |---|---|
//! | `2 g + 1` | a producer writes the record of generation `g` |
//! | `2 g + 2` | it holds the whole record of generation `g` |
//! | 0 | nothing was written yet |
//!
//! A producer (1) takes a position, by adding one to the tail, (2) moves the slot's state to `2 g + 1`, if that is an older
//! generation's and even, (3) writes the record, (4) moves the state to `2 g + 2`. If (2) does not succeed at once, the
//! ring has come round inside of somebody: either the slot's writer was interrupted and the tail has gone all the way
//! round since, or this producer was, between (1) and (2). Then the record is lost, and the caller counts it.
//!
//! This differs from [`log_ring`](crate::log_ring), whose producers try again until they succeed and so leave no position
//! empty: this one is **wait-free**, which makes it fit for the inside of anything, at the price of positions without
//! a record, which readers pass over.
//!
//! # Invariants
//!
//! - `TRR-1` Between (2) and (4) a slot belongs to one producer: only an even state is exchanged for an odd one.
//! - `TRR-2` A reader gets a record whole or not at all: it reads the words between two looks at the state. Checked by
//!   `loom_a_record_is_read_whole_or_not_at_all`.
//! - `TRR-3` Every push is written, or says that it was not. Checked by `loom_every_push_is_written_or_said_to_be_lost`.
//!
//! Context: any, NMI included. Wait-free.

use crate::atomic::{AtomicU64, Ordering, fence};

/// Words of a record.
pub const WORDS: usize = 7;

/// Room for one record. All bits zero is an empty one.
#[derive(Debug)]
#[repr(C)]
pub struct Slot {
    /// See the table of the module.
    state: AtomicU64,
    /// Written by the producer that owns the slot (`TRR-1`); read by anyone, between two looks at `state`.
    words: [AtomicU64; WORDS],
}

/// Appends a record to the ring of these slots; false if it was lost.
#[must_use = "a record that was lost is to be counted"]
pub fn push(tail: &AtomicU64, slots: &[Slot], record: &[u64; WORDS]) -> bool {
    let (position, count) = (tail.fetch_add(1, Ordering::Relaxed), slots.len() as u64);
    let (slot, writing) = (&slots[(position % count) as usize], 2 * (position / count) + 1);
    let old = slot.state.load(Ordering::Relaxed);
    // Acquire: pairs with the release at the end of an older push: its words before these. (A CPU's own interrupts need
    // no order; a record that a thread finishes on another CPU would.)
    let claim = || slot.state.compare_exchange(old, writing, Ordering::Acquire, Ordering::Relaxed);
    if old % 2 == 1 || old > writing || claim().is_err() {
        return false;
    }
    // Release: pairs with the acquire fence in `read`: the odd state before the words.
    fence(Ordering::Release);
    for (to, from) in slot.words.iter().zip(record) {
        to.store(*from, Ordering::Relaxed);
    }
    // Release: pairs with the acquire load in `read`: the words before the even state.
    slot.state.store(writing + 1, Ordering::Release);
    true
}

/// The record at `position`; `None` if there is none, it is being written, or a later one has taken its place.
pub fn read(slots: &[Slot], position: u64) -> Option<[u64; WORDS]> {
    let count = slots.len() as u64;
    let (slot, whole) = (&slots[(position % count) as usize], 2 * (position / count) + 2);
    // Acquire: pairs with the release at the end of `push`.
    if slot.state.load(Ordering::Acquire) != whole {
        return None;
    }
    let mut record = [0; WORDS];
    for (to, from) in record.iter_mut().zip(&slot.words) {
        *to = from.load(Ordering::Relaxed);
    }
    // Acquire: pairs with the release fence in `push`: if a word of a later record was read, the look at the state sees
    // at least that this one was begun (`TRR-2`).
    fence(Ordering::Acquire);
    (slot.state.load(Ordering::Relaxed) == whole).then_some(record)
}

#[cfg(test)]
impl Slot {
    fn new() -> Self {
        Self { state: AtomicU64::new(0), words: core::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn record(value: u64) -> [u64; WORDS] {
        [value; WORDS]
    }

    #[test]
    fn the_oldest_record_gives_way() {
        let (tail, slots) = (AtomicU64::new(0), [Slot::new(), Slot::new()]);
        assert_eq!(read(&slots, 0), None);
        for value in 0..3 {
            assert!(push(&tail, &slots, &record(value)));
        }
        assert_eq!([0, 1, 2, 3].map(|at| read(&slots, at)), [None, Some(record(1)), Some(record(2)), None]);
    }

    #[test]
    fn what_comes_round_inside_of_a_producer_is_lost_and_goes_on_after_it() {
        let (tail, slots) = (AtomicU64::new(0), [Slot::new(), Slot::new()]);
        // A producer that was interrupted in the middle of position 0.
        tail.store(1, Ordering::Relaxed);
        slots[0].state.store(1, Ordering::Relaxed);
        assert!(push(&tail, &slots, &record(1)));
        assert!(!push(&tail, &slots, &record(2)), "its slot is being written");
        assert!(push(&tail, &slots, &record(3)));
        assert_eq!([0, 1, 2, 3].map(|at| read(&slots, at)), [None, None, None, Some(record(3))]);
        slots[0].state.store(2, Ordering::Relaxed);
        assert!(push(&tail, &slots, &record(4)));
        assert_eq!(read(&slots, 4), Some(record(4)));
    }

    #[test]
    fn a_producer_that_was_overtaken_does_not_overwrite_what_is_newer() {
        let (tail, slots) = (AtomicU64::new(0), [Slot::new()]);
        for value in 0..3 {
            assert!(push(&tail, &slots, &record(value)));
        }
        // It had taken position 1 and comes back now.
        tail.store(1, Ordering::Relaxed);
        assert!(!push(&tail, &slots, &record(9)));
        assert_eq!(read(&slots, 2), Some(record(2)));
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    /// Producers and a reader of one slot, which is the most that they can be in each other's way.
    fn with_producers(producers: u64, pushes: u64, reads: bool) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let ring = Arc::new((AtomicU64::new(0), [Slot::new()]));
            let producers: std::vec::Vec<_> = (0..producers)
                .map(|producer| {
                    let ring = Arc::clone(&ring);
                    let values = 10 * producer + 1..10 * producer + 1 + pushes;
                    thread::spawn(move || values.filter(|&value| push(&ring.0, &ring.1, &[value; WORDS])).count())
                })
                .collect();
            let count = producers.len() as u64 * pushes;
            if reads {
                let ring = Arc::clone(&ring);
                // A thread of its own, see the models of the list.
                let reader = thread::spawn(move || {
                    for record in (0..count).filter_map(|position| read(&ring.1, position)) {
                        assert!(record[0] != 0 && record == [record[0]; WORDS], "torn: {record:?}");
                    }
                });
                reader.join().unwrap();
            }
            let written: usize = producers.into_iter().map(|producer| producer.join().unwrap()).sum();
            let kept = (0..count).filter(|&position| read(&ring.1, position).is_some()).count();
            assert!(kept == 1 && written >= 1 && written as u64 <= count, "{written} written, {kept} kept");
        });
    }

    #[test]
    fn loom_a_record_is_read_whole_or_not_at_all() {
        with_producers(1, 2, true);
    }

    #[test]
    fn loom_every_push_is_written_or_said_to_be_lost() {
        with_producers(2, 2, false);
    }
}
