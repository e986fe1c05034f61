//! Does a grace period order memory between CPUs that have nothing else in common?
//!
//! Three readers and the updater, and plain accesses everywhere but at the last step:
//!
//! 1. B counts its rounds.
//! 2. A, inside a section, reads how far B has come, notes that, and hangs the note on its element.
//! 3. The updater has replaced the element, waits for a grace period, which waits for A's section, and says that the note is
//!    ready.
//! 4. C, who sees that, reads how far B has come: not less than A saw.
//!
//! What A read and wrote is before the end of the grace period, and so before what C does. A note that is wrong, or a round
//! that C sees go backwards, is a grace period that waited for A but did not order it.
//!
//! Linux: `rcu_torture_reader_do_mbchk` in kernel/rcu/rcutorture.c, `rtmbkf` of its line; row C-2.

use alloc::boxed::Box;
use core::ptr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use sync::Rng;

use super::pipe::Element;

/// States of a note: nobody uses it; its reader writes it or it hangs on an element; somebody may look; somebody looks.
const IDLE: usize = 0;
const WRITTEN: usize = 1;
const READY: usize = 2;
const LOOKED_AT: usize = 3;

/// A reader's rounds, and its note about another's.
pub(crate) struct Check {
    /// Rounds of this reader. Written by it alone.
    rounds: AtomicU64,
    state: AtomicUsize,
    /// The note: who, and how far. Written by this reader in state [`IDLE`], read by whoever looks.
    about: AtomicUsize,
    seen: AtomicU64,
}

impl Check {
    /// The element with a note on it is too old for any reader now: the note may be looked at. Context: the updater.
    pub(super) fn make_ready(element: &Element) {
        let check = element.check.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: null, or one of the checks of the element's own pipe.
        if let Some(check) = unsafe { check.as_ref() } {
            // Release: pairs with the Acquire in `look`. All that comes before it is the grace period's to order.
            check.state.store(READY, Ordering::Release);
        }
    }
}

/// The checks of a pipe's readers.
pub(crate) struct Checks {
    each: Box<[Check]>,
    /// Notes that were looked at, and those that were wrong.
    pub(crate) looks: AtomicU64,
    pub(crate) failures: AtomicU64,
}

impl Checks {
    pub(super) fn new(readers: usize) -> Checks {
        let check = || Check {
            rounds: AtomicU64::new(0),
            state: AtomicUsize::new(IDLE),
            about: AtomicUsize::new(0),
            seen: AtomicU64::new(0),
        };
        Checks { each: (0..readers).map(|_| check()).collect(), looks: AtomicU64::new(0), failures: AtomicU64::new(0) }
    }

    /// Step 2, and 1 for others, by reader `me` inside its section with `element`.
    pub(crate) fn note(&self, me: usize, element: &Element, rng: &mut Rng) {
        let mine = &self.each[me];
        mine.rounds.store(mine.rounds.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if mine.state.load(Ordering::Acquire) != IDLE || !element.check.load(Ordering::Relaxed).is_null() {
            return;
        }
        let about = rng.index(self.each.len());
        mine.about.store(about, Ordering::Relaxed);
        mine.seen.store(self.each[about].rounds.load(Ordering::Relaxed), Ordering::Relaxed);
        mine.state.store(WRITTEN, Ordering::Relaxed);
        let hung = element.check.compare_exchange(
            ptr::null_mut(),
            ptr::from_ref(mine).cast_mut(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if hung.is_err() {
            mine.state.store(IDLE, Ordering::Relaxed);
        }
    }

    /// Step 4, for a note chosen at random. Context: a reader's thread.
    pub(crate) fn look(&self, rng: &mut Rng) {
        let check = &self.each[rng.index(self.each.len())];
        // Acquire: pairs with the Release in `make_ready`.
        let taken = check.state.compare_exchange(READY, LOOKED_AT, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            return;
        }
        let now = self.each[check.about.load(Ordering::Relaxed)].rounds.load(Ordering::Relaxed);
        self.looks.fetch_add(1, Ordering::Relaxed);
        if now < check.seen.load(Ordering::Relaxed) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `note`; its reader writes the note anew only after this look.
        check.state.store(IDLE, Ordering::Release);
    }
}
