//! Tests of the ring: alone, with threads, and as loom models.

use super::*;

/// A record whose words all tell the same, so that a torn one shows.
fn record(value: u64) -> [u64; 3] {
    [value, !value, value.wrapping_mul(3)]
}

/// The value of a record that must be whole.
fn value_of(record: [u64; 3]) -> u64 {
    let value = record[0];
    assert_eq!(record, self::record(value), "a torn record");
    value
}

#[cfg(not(loom))]
mod host {
    use std::{thread, vec::Vec};

    use super::*;

    fn read<const N: usize>(ring: &Ring<N, 3>, position: u64) -> (Read, u64) {
        let mut out = [0; 3];
        match ring.read(position, &mut out) {
            read @ Read::Record { .. } => (read, value_of(out)),
            other => (other, 0),
        }
    }

    #[test]
    fn records_come_out_in_order_at_their_positions() {
        let ring = Ring::<4, 3>::new();
        assert_eq!(read(&ring, 0).0, Read::Empty);
        for value in 0..4 {
            assert_eq!(ring.push(&record(value)), Some(value));
        }
        for value in 0..4 {
            assert_eq!(read(&ring, value), (Read::Record { dropped_before: 0 }, value));
        }
        assert_eq!((ring.oldest(), ring.end()), (0, 4));
    }

    #[test]
    fn the_oldest_record_gives_way_and_its_reader_is_told() {
        let ring = Ring::<4, 3>::new();
        for value in 0..6 {
            ring.push(&record(value));
        }
        assert_eq!(read(&ring, 1).0, Read::Overwritten);
        assert_eq!(ring.oldest(), 2);
        assert_eq!(read(&ring, 2).1, 2);
        assert_eq!(read(&ring, 6).0, Read::Empty);
    }

    #[test]
    fn an_interrupted_producer_holds_nobody_up_until_the_ring_comes_round() {
        // Play a producer that was stopped right after its claim, before it moved the tail.
        let ring = Ring::<2, 3>::new();
        ring.slots[0].state.store(1, Ordering::Relaxed);
        assert_eq!(ring.push(&record(7)), Some(1), "the tail is moved for it");
        assert_eq!(read(&ring, 0).0, Read::BeingWritten);
        assert_eq!(read(&ring, 1).1, 7);
        // Round: its slot is next and it is still inside.
        assert_eq!(ring.push(&record(8)), None);
        assert_eq!(ring.push(&record(9)), None);
        assert_eq!(ring.dropped_at_end(), 2);
        // It finishes; the next record says what is missing before it.
        ring.slots[0].state.store(2, Ordering::Relaxed);
        assert_eq!(ring.push(&record(10)), Some(2));
        assert_eq!(read(&ring, 2), (Read::Record { dropped_before: 2 }, 10));
        assert_eq!(ring.dropped_at_end(), 0);
    }

    #[test]
    fn with_many_producers_and_a_reader_nothing_is_torn_and_all_is_accounted_for() {
        const PRODUCERS: u64 = 3;
        let each: u64 = if cfg!(miri) { 40 } else { 30_000 };
        let ring = Ring::<8, 3>::new();
        let (mut seen, mut overwritten) = (Vec::new(), 0);
        let written = thread::scope(|scope| {
            let producers: Vec<_> = (0..PRODUCERS)
                .map(|producer| {
                    let ring = &ring;
                    scope.spawn(move || (0..each).filter(|n| ring.push(&record(producer << 32 | n)).is_some()).count())
                })
                .collect();
            let mut position = 0;
            loop {
                let all_done = producers.iter().all(thread::ScopedJoinHandle::is_finished);
                match read(&ring, position) {
                    (Read::Record { .. }, value) => {
                        seen.push(value);
                        position += 1;
                    }
                    (Read::Overwritten, _) => {
                        let oldest = ring.oldest().max(position + 1);
                        overwritten += oldest - position;
                        position = oldest;
                    }
                    (Read::BeingWritten, _) => std::hint::spin_loop(),
                    (Read::Empty, _) if all_done => break,
                    (Read::Empty, _) => std::hint::spin_loop(),
                }
            }
            producers.into_iter().map(|producer| producer.join().unwrap() as u64).sum::<u64>()
        });
        assert_eq!(ring.end(), written, "a position for each that was written");
        assert_eq!(seen.len() as u64 + overwritten, written, "each is read, or reported as gone");
        let mut last = [None; PRODUCERS as usize];
        for value in seen {
            let (producer, n) = ((value >> 32) as usize, value & 0xffff_ffff);
            assert!(last[producer].is_none_or(|last| last < n), "out of order");
            last[producer] = Some(n);
        }
    }
}

#[cfg(loom)]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn loom_a_record_is_read_whole_or_not_at_all() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let ring = Arc::new(Ring::<1, 3>::new());
            let producer = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    assert_eq!(ring.push(&record(1)), Some(0));
                    assert_eq!(ring.push(&record(2)), Some(1));
                })
            };
            // A thread of its own, see the models of the list.
            let reader = thread::spawn(move || {
                let mut out = [0; 3];
                for position in 0..2 {
                    if let Read::Record { .. } = ring.read(position, &mut out) {
                        assert_eq!(value_of(out), position + 1);
                    }
                }
            });
            reader.join().unwrap();
            producer.join().unwrap();
        });
    }

    #[test]
    fn loom_every_push_is_written_or_counted() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let ring = Arc::new(Ring::<2, 3>::new());
            let producers: [_; 2] = core::array::from_fn(|producer| {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    let first = ring.push(&record(10 * producer as u64 + 1));
                    let second = ring.push(&record(10 * producer as u64 + 2));
                    u64::from(first.is_some()) + u64::from(second.is_some())
                })
            });
            let written: u64 = producers.map(|thread| thread.join().unwrap()).iter().sum();
            assert_eq!(ring.end(), written, "a position for each that was written");
            let mut dropped = ring.dropped_at_end();
            let mut out = [0; 3];
            // Of four pushes into two slots the last two written are there.
            for position in ring.oldest()..ring.end() {
                match ring.read(position, &mut out) {
                    Read::Record { dropped_before } => dropped += dropped_before,
                    other => panic!("position {position}: {other:?}"),
                }
                value_of(out);
            }
            assert!(written + dropped <= 4);
            if written <= 2 {
                assert_eq!(written + dropped, 4, "nothing overwritten, so every loss shows");
            }
        });
    }

    #[test]
    fn loom_a_position_below_the_end_is_never_empty() {
        loom::model(|| {
            let ring = Arc::new(Ring::<2, 3>::new());
            let producer = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || ring.push(&record(1)))
            };
            let reader = thread::spawn(move || {
                let mut out = [0; 3];
                if ring.end() == 1 {
                    assert_ne!(ring.read(0, &mut out), Read::Empty);
                }
            });
            reader.join().unwrap();
            producer.join().unwrap();
        });
    }
}
