//! Readers of SRCU that are stopped at any instruction of their begin, while grace periods pass.
//!
//! A reader looks which index is current and counts itself there. Between the two nobody knows of it: a grace period that runs
//! meanwhile need not wait for it, and it counts itself at an index that is idle by then. Those after that have to, which is what
//! the first of their two looks is for. The gap is an instruction or two, so threads rarely lose their CPU in it. Here one is
//! stepped through its begin and stopped for [`STOP_NS`] at a boundary chosen at random, while a grace period goes on. The cookie
//! of another one, which it starts then, must not be over at the end of its section.

use core::sync::atomic::Ordering;

use arch::{clock, irq};
use sync::{MaySleep, Rng};

use super::ops::Way;
use super::{Flavour, Torture};
use crate::stepping::{self, Visit};
use crate::torture::control;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// A stop: time for an expedited grace period.
const STOP_NS: u64 = 2 * MS;
/// What a section lasts at most: time for another one, and for an element to age.
const SECTION_NS: u64 = 10 * MS;

/// Stays for a while.
struct Stop;

impl Visit for Stop {
    fn visit() {
        let until = clock::now_ns() + STOP_NS;
        while clock::now_ns() < until {
            irq::relax();
        }
    }
}

impl Flavour {
    /// Asks for a grace period, an expedited one.
    fn hurry(&self) {
        let start = self.ops.updates.iter().find_map(|update| match update.way {
            Way::Poll { start, .. } if update.name == "gp_poll_exp" => Some(start),
            _ => None,
        });
        start.map(|start| start());
    }
}

impl Torture {
    /// The thread that is stopped. One in the kernel: see [`stepping`].
    pub(super) fn read_after_a_stop(&self, mut rng: Rng, cx: &mut MaySleep) {
        let mut boundaries = 0;
        while !control::stutter(cx) {
            let flavour = &self.flavours[rng.index(self.flavours.len())];
            let stop = stepping::only(rng.below(boundaries + 1) as usize);
            let mut section = None;
            flavour.hurry();
            boundaries = stepping::step::<Stop>(stop, || section = Some((flavour.ops.readers.begin)()));
            let cookie = flavour.ops.exact.map(|get| get());
            let Some(element) = flavour.pipe.read() else { continue };
            let live = element.is_live();
            flavour.hurry();
            sched::sleep_ns(cx, rng.below(SECTION_NS));
            let age = element.stage();
            if cookie.is_some_and(|cookie| cookie.is_over()) {
                flavour.seen_stopped.early_cookies.fetch_add(1, Ordering::Relaxed);
            }
            drop(section);
            flavour.seen_stopped.note_shared(age, live);
        }
    }
}
