//! A rolling hash over what happens, by which two runs that should be one are compared.
//!
//! In a deterministic run everything repeats, so two runs whose logs differ were different long before a line was
//! printed. With the feature `events`, context switches, interrupts, NMIs, wake-ups and waits for locks are counted, and
//! each is folded, with its CPU and the value of the time-stamp counter, into one hash. Every `grange.events=` events the
//! hash is kept as a [*point*](Points) and later sent to whoever watches, who finds the first that differs.
//!
//! Without the feature [`ENABLED`] is false, and [`event`] is no code at all.
//!
//! # Invariants
//!
//! - `EV-1` An event takes its number from one counter that all CPUs share, and the hash is the sum of what each number,
//!   CPU, kind, subject and time mix to. So folding is two additions that need no lock, right in any context and on CPUs
//!   that really run at once; and yet the order counts, because the number is part of the mix.
//! - `EV-2` The ring keeps the latest points. A reader that comes too late goes on at the oldest that is left: then there
//!   is a gap in the numbers, never a wrong point.

use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use arch::cpu;

use crate::param;

/// Whether this build counts events.
pub const ENABLED: bool = cfg!(feature = "events");

/// Points that wait for their reader. With the default period they reach back 32,768 events.
const RING: usize = 512;

/// Points in one message: few enough for a short line.
const BATCH: usize = 32;

param! {
    /// Every how many events their rolling hash is kept; 1 finds the very event. For kernels with the feature `events`.
    pub static PERIOD: u32 = "grange.events", default 64, in 1..=1_000_000, unit "events";
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The CPU changed to another thread.
    Switch = b's',
    /// An interrupt was taken; its subject is the vector.
    Interrupt = b'i',
    /// An NMI was taken.
    Nmi = b'n',
    /// A thread was woken.
    WakeUp = b'w',
    /// A spin lock was not free.
    LockWait = b'l',
}

static ROLLING: Rolling = Rolling::new();

/// Counts an event of this CPU. `subject` says whom or what it was about.
///
/// Context: any, NMI included. Lock-free.
#[inline(always)]
pub fn event(kind: Kind, subject: usize) {
    if ENABLED {
        let cpu = cpu::current().index();
        ROLLING.fold(kind, cpu, subject as u64, arch::clock::cycles(), PERIOD.get());
    }
}

/// The count, the hash, and the latest points.
struct Rolling {
    count: AtomicU64,
    hash: AtomicU64,
    ring: [Slot; RING],
}

/// A point: the hash after so many events, and the last of them.
struct Slot {
    /// How many points there were with this one; 0 while the slot is empty or being written.
    number: AtomicU64,
    /// Hash (upper half), kind, CPU, as [`Point`] unpacks it.
    packed: AtomicU64,
}

impl Rolling {
    const fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            hash: AtomicU64::new(0),
            ring: [const { Slot { number: AtomicU64::new(0), packed: AtomicU64::new(0) } }; RING],
        }
    }

    #[inline(never)]
    fn fold(&self, kind: Kind, cpu: usize, subject: u64, cycles: u64, period: u32) {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let who = (cpu as u64) << 8 | kind as u64;
        let mixed = mix(mix(mix(number) ^ who) ^ subject) ^ cycles;
        let mixed = mix(mixed);
        let hash = self.hash.fetch_add(mixed, Ordering::Relaxed).wrapping_add(mixed);
        if number.is_multiple_of(u64::from(period)) {
            self.keep(number / u64::from(period), hash & 0xffff_ffff_0000_0000 | who);
        }
    }

    fn keep(&self, number: u64, packed: u64) {
        let slot = &self.ring[number as usize % RING];
        slot.number.store(0, Ordering::Relaxed);
        // Release: pairs with the acquire in `get`, whose second look at the number sees at least this 0 if it read
        // the new point.
        slot.packed.store(packed, Ordering::Release);
        // Release: pairs with the acquire in `get`: the point before its number.
        slot.number.store(number, Ordering::Release);
    }

    /// Point `number`, if it is there and has not been overwritten meanwhile.
    fn get(&self, number: u64) -> Option<Point> {
        let slot = &self.ring[number as usize % RING];
        // Acquire: pairs with the release in `keep`.
        let before = slot.number.load(Ordering::Acquire);
        // Acquire: pairs with the release in `keep`.
        let packed = slot.packed.load(Ordering::Acquire);
        (before == number && slot.number.load(Ordering::Relaxed) == number).then_some(Point(packed))
    }

    fn points(&self, period: u32) -> u64 {
        self.count.load(Ordering::Relaxed) / u64::from(period)
    }
}

/// One round of splitmix64: every bit of the result depends on every bit of `value`.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The upper half of the hash, and kind and CPU of the last event in it.
#[derive(Clone, Copy, Default)]
struct Point(u64);

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hash, kind, cpu) = (self.0 >> 32, self.0 as u8 as char, self.0 as u32 >> 8);
        write!(f, "{hash:08x}{kind}{cpu}")
    }
}

/// Where somebody who collects the points has got to.
#[derive(Debug)]
pub struct Reader {
    /// The point that is due.
    next: u64,
}

impl Reader {
    /// Begins at the first point.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "used in statics")]
    pub const fn new() -> Self {
        Self { next: 1 }
    }

    /// The points that have come since, some of them at a time; `None` when there is no more.
    ///
    /// Context: any.
    pub fn take(&mut self) -> Option<Points> {
        if ENABLED { self.take_from(&ROLLING, PERIOD.get()) } else { None }
    }

    fn take_from(&mut self, rolling: &Rolling, period: u32) -> Option<Points> {
        let last = rolling.points(period);
        // `EV-2`. One slot is left out: the next point may be going into it.
        self.next = self.next.max((last + 2).saturating_sub(RING as u64));
        let mut points = Points { first: self.next, period, len: 0, points: [Point(0); BATCH] };
        while self.next <= last && points.len < BATCH {
            let Some(point) = rolling.get(self.next) else { break };
            points.points[points.len] = point;
            points.len += 1;
            self.next += 1;
        }
        (points.len > 0).then_some(points)
    }
}

/// Some points that follow each other. As JSON: `first` is how many events are in the first of them, each further one has
/// `period` more; a point is eight digits of its hash, then the kind (its letter) and the CPU of its last event.
pub struct Points {
    first: u64,
    period: u32,
    len: usize,
    points: [Point; BATCH],
}

impl fmt::Display for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, period) = (self.first * u64::from(self.period), self.period);
        write!(f, r#"{{"first":{first},"period":{period},"points":""#)?;
        for (at, point) in self.points[..self.len].iter().enumerate() {
            write!(f, "{}{point}", if at > 0 { " " } else { "" })?;
        }
        f.write_str("\"}")
    }
}

#[cfg(test)]
mod tests {
    use std::{boxed::Box, string::String, string::ToString, vec::Vec};

    use super::*;

    /// Folds `(cpu, subject, cycles)`s and returns all points, read after each `burst` events.
    fn told(events: &[(usize, u64, u64)], period: u32, burst: usize) -> Vec<String> {
        let (rolling, mut reader) = (Box::new(Rolling::new()), Reader::new());
        let mut out = Vec::new();
        for events in events.chunks(burst) {
            events.iter().for_each(|&(cpu, subject, cycles)| rolling.fold(Kind::Switch, cpu, subject, cycles, period));
            out.extend(core::iter::from_fn(|| reader.take_from(&rolling, period)).map(|points| points.to_string()));
        }
        out
    }

    fn some(count: u64) -> Vec<(usize, u64, u64)> {
        (0..count).map(|n| ((n % 4) as usize, n * 7, n * 1000)).collect()
    }

    #[test]
    fn points_come_at_each_period_with_the_last_event_in_them() {
        let lines = told(&some(10), 4, 100);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let rest = lines[0].strip_prefix(r#"{"first":4,"period":4,"points":""#).unwrap().strip_suffix("\"}").unwrap();
        let points: Vec<&str> = rest.split(' ').collect();
        assert_eq!(points.iter().map(|point| &point[8..]).collect::<Vec<_>>(), ["s3", "s3"]);
        assert_ne!(points[0][..8], points[1][..8]);
    }

    #[test]
    fn an_event_that_is_other_later_elsewhere_or_swapped_changes_all_points_after_it() {
        let right = told(&some(12), 4, 4);
        let change = |how: fn(&mut Vec<(usize, u64, u64)>)| {
            let mut events = some(12);
            how(&mut events);
            told(&events, 4, 4)
        };
        assert_eq!(change(|_| ()), right);
        for changed in [
            change(|events| events[5].2 += 1),
            change(|events| events[5].1 += 1),
            change(|events| events[5].0 = 3),
            change(|events| events.swap(5, 6)),
            change(|events| events.insert(5, (0, 0, 0))),
        ] {
            assert_eq!(changed[0], right[0]);
            assert_ne!(changed[1], right[1]);
            assert_ne!(changed[2], right[2]);
        }
    }

    #[test]
    fn a_reader_that_comes_late_goes_on_at_the_oldest_point_that_is_left() {
        let count = 3 * RING as u64;
        let lines = told(&some(count), 1, count as usize);
        let points = lines.iter().map(|line| line.split(' ').count()).sum::<usize>();
        assert_eq!(points, RING - 1);
        assert!(lines[0].starts_with(&std::format!(r#"{{"first":{},"#, count + 2 - RING as u64)), "{}", lines[0]);
        assert!(lines.iter().all(|line| line.split(' ').count() <= BATCH));
    }
}
