//! Readers in threads: sections of every kind, at whose end nothing may be too old.
//!
//! What is looked at, at the end of a section and before it is over:
//!
//! | what | wrong if | row |
//! |---|---|---|
//! | the stage of the element found at its begin | a grace period went by inside ([`LAST_GOOD`]) | C-1 |
//! | whether the element was whole when it was found | it was not ([`Element::is_live`](super::pipe::Element::is_live)) | C-2 |
//! | cookies that were made at its begin | they are over | C-3 |
//! | the numbers of grace periods then and now | two of a kind have ended | C-1 |
//! | after a sleep, whether RCU boosts it | it does | C-7 |
//!
//! Each reader counts for itself, in memory that no other CPU writes: a locked instruction at each section would order what is
//! to be found unordered.
//!
//! Linux: `rcu_torture_reader`, `rcu_torture_one_read` in kernel/rcu/rcutorture.c; rows C-1 to C-4.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::{clock, irq};
use arrayvec::ArrayVec;
use rcu::seq::Seq;
use sync::{MaySleep, Rng};

use super::ops::{AnyCookie, Readers};
use super::pipe::{LAST_GOOD, STAGES};
use super::segments::Segments;
use super::{Flavour, Torture, interrupts};
use crate::torture::control;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// A reader sleeps once in so many nanoseconds, so that each CPU idles now and then.
const REST_EVERY_NS: u64 = 40 * MS;
/// For so long.
const REST_NS: u64 = MS / 2;
/// For so long at most, a pointer that is leaked is used later.
const LEAK_NS: u64 = 20 * MS;

/// What one reader has seen. Written by one thread, or by interrupts of all CPUs with [`Seen::note_shared`].
#[derive(Default)]
pub(crate) struct Seen {
    /// Sections by the stage of their element at the end.
    pub(crate) ages: [AtomicU64; STAGES + 1],
    /// Sections by the grace periods that ended inside, where that was looked at.
    pub(crate) batches: [AtomicU64; STAGES + 1],
    /// Elements that were not whole: Linux's `rtmbe`.
    pub(crate) not_live: AtomicU64,
    /// Cookies that were over inside the section in which they were made.
    pub(crate) early_cookies: AtomicU64,
    /// Rests after which the reader was boosted, though it had left its section long ago.
    pub(crate) still_boosted: AtomicU64,
}

/// Adds one, for who is the only writer.
fn bump(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Seen {
    /// A section in an interrupt, an NMI or a short thread: several may note at once.
    pub(crate) fn note_shared(&self, age: usize, live: bool) {
        self.ages[age].fetch_add(1, Ordering::Relaxed);
        self.not_live.fetch_add(u64::from(!live), Ordering::Relaxed);
    }

    pub(crate) fn sections(&self) -> u64 {
        self.ages.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl Torture {
    /// The thread of reader `me`.
    pub(super) fn read(&self, me: usize, mut rng: Rng, cx: &mut MaySleep) {
        let mut rested_ns = clock::now_ns();
        while !control::stutter(cx) {
            let flavour = &self.flavours[rng.index(self.flavours.len())];
            if !self.section(flavour, me, &mut rng, cx) {
                // Nothing has been published.
                sched::sleep_ns(cx, REST_NS);
            }
            flavour.pipe.checks.look(&mut rng);
            if self.setup.interrupts && rng.chance(1, 64) {
                interrupts::arm_timer(me, rng.below(MS));
            }
            (flavour.ops.readers.rest)(cx);
            if clock::now_ns() - rested_ns > REST_EVERY_NS {
                sched::sleep_ns(cx, REST_NS);
                rested_ns = clock::now_ns();
                if sched::current().rcu.boost.load(Ordering::Relaxed) != 0 {
                    bump(&flavour.seen[me].still_boosted);
                }
            }
        }
        self.preempted.fetch_add(sched::current().involuntary_switches(), Ordering::Relaxed);
    }

    /// A section; false if there is nothing to be found.
    fn section(&self, flavour: &Flavour, me: usize, rng: &mut Rng, cx: &mut MaySleep) -> bool {
        let (seen, readers) = (&flavour.seen[me], &flavour.ops.readers);
        let looks = rng.chance(1, 4);
        let mut segments = Segments::begin(readers, rng);
        let before = looks.then(|| (readers.batches)());
        let Some(element) = flavour.pipe.read() else {
            segments.end(rng);
            return false;
        };
        let live = element.is_live();
        let mut cookies = ArrayVec::<AnyCookie, 2>::new();
        if looks {
            cookies.extend(readers.cookies.iter().map(|get| get()));
        }
        flavour.pipe.checks.note(me, element, rng);
        dwell(readers, &segments, rng, cx);
        for _ in 0..rng.below(4) {
            segments.go_on(rng);
            dwell(readers, &segments, rng, cx);
        }
        if self.setup.leak_pointers {
            // On purpose: what was found is used when the section is over.
            segments.end(rng);
            sched::sleep_ns(cx, rng.below(LEAK_NS));
            bump(&seen.ages[element.stage()]);
            return true;
        }
        let age = element.stage();
        if cookies.iter().any(AnyCookie::is_over) {
            bump(&seen.early_cookies);
        }
        let now = before.map(|_| (readers.batches)());
        segments.end(rng);
        bump(&seen.ages[age]);
        if !live {
            bump(&seen.not_live);
        }
        if let (Some(before), Some(now)) = (before, now) {
            let ended = now.into_iter().zip(before).map(|(now, before)| ended_between(before, now)).max();
            bump(&seen.batches[ended.unwrap_or(0).min(STAGES as u64) as usize]);
        }
        true
    }
}

/// What a reader does inside: mostly little, at times so much that it loses its CPU, or sleeps if its flavour may.
fn dwell(readers: &Readers, segments: &Segments<'_>, rng: &mut Rng, cx: &mut MaySleep) {
    let (dice, (long_in, long_ns)) = (rng.next_u64(), readers.long);
    let ns = if segments.is_preemptible() && readers.sleep && dice.is_multiple_of(16) {
        return sched::sleep_ns(cx, (dice >> 32) % (2 * MS));
    } else if segments.is_preemptible() && dice.is_multiple_of(long_in) {
        long_ns
    } else if !segments.has_interrupts_off() && dice.is_multiple_of(512) {
        // Some ticks without a reschedule.
        4 * MS
    } else {
        dice >> 52
    };
    let end = clock::now_ns() + ns;
    while clock::now_ns() < end {
        irq::relax();
    }
}

/// Grace periods that have ended from one number to another of the same counter, which may wrap in between.
fn ended_between(before: Seq, now: Seq) -> u64 {
    Seq::from_raw(now.raw().wrapping_sub(before.raw()).wrapping_add(before.state())).count()
}

/// Sections that saw too much, of a histogram.
pub(crate) fn too_old(counts: &[u64]) -> u64 {
    counts[LAST_GOOD + 1..].iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_counted_across_the_wrap_of_the_number() {
        let seq = |count: i64, state: u64| Seq::from_raw(((count << 2) as u64) | state);
        assert_eq!(ended_between(seq(-1, 1), seq(-1, 1)), 0);
        assert_eq!(ended_between(seq(-1, 0), seq(-1, 1)), 0);
        assert_eq!(ended_between(seq(-1, 1), seq(0, 0)), 1);
        assert_eq!(ended_between(seq(-2, 2), seq(0, 1)), 2);
    }
}
