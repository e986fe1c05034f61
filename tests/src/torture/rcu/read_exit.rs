//! Threads whose last deed is a section: bursts of them start, read, and are gone.
//!
//! What a reader leaves behind at its end (a place on the list of blocked readers, a boost, a report that was put off) must not
//! outlive its thread, nor pass to the next tenant of its memory.
//!
//! Linux: `rcu_torture_read_exit` in kernel/rcu/rcutorture.c; row C-4.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use arch::clock;
use sched::Prio;
use sync::{MaySleep, Rng};

use super::Torture;
use super::segments::Segments;
use crate::Failure;
use crate::torture::control;

/// A microsecond in nanoseconds.
const US: u64 = 1_000;

impl Torture {
    /// The thread that starts them.
    pub(super) fn read_and_exit(self: &Arc<Self>, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        while !control::stutter(cx) {
            let mut burst = Vec::new();
            for _ in 0..self.setup.read_exit_burst {
                let (this, rng) = (self.clone(), Rng::new(rng.next_u64()));
                let thread = sched::spawn(cx, "rcu reads, exits", Prio::NORMAL, None, move |_| this.last_section(rng));
                // Where memory is short, this is not what is tortured.
                burst.extend(thread);
            }
            for thread in burst {
                thread.join(cx);
                self.read_exits.fetch_add(1, Ordering::Relaxed);
            }
            if control::rest(cx, self.setup.read_exit_delay_ns) {
                break;
            }
        }
        Ok(())
    }

    /// Reads, and exits with no instruction more than need be.
    fn last_section(&self, mut rng: Rng) {
        let flavour = &self.flavours[rng.index(self.flavours.len())];
        for _ in 0..=rng.below(3) {
            let segments = Segments::begin(&flavour.ops.readers, &mut rng);
            let Some(element) = flavour.pipe.read() else { return segments.end(&mut rng) };
            let live = element.is_live();
            // Often as long as a slice, so that some are preempted in their last section.
            clock::udelay(if segments.is_preemptible() { rng.below(9_000) } else { rng.below(5 * US) / US });
            let age = element.stage();
            segments.end(&mut rng);
            flavour.seen_exiting.note_shared(age, live);
        }
    }
}
