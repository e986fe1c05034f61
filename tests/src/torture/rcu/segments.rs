//! Sections that are prolonged: begun in one way, gone on with in others, ended in yet another.
//!
//! Where preemption, soft interrupts and interrupts off are sections of their own, a reader may begin with `read_lock`, switch
//! interrupts off, end the `read_lock`, switch preemption off, let interrupts on again … As long as one of these is in force at
//! each moment it is one section, and no grace period that began after its begin may end before its end. (A section of SRCU is
//! its guard's: a second one may come and go beside it, but cannot take its place, since it may have begun after a grace period.)
//!
//! Some ends come under a lock that is held with interrupts off, as a run queue's would be. Nothing that the end of a reader
//! does there may lead to a run queue: [`no_run_queue_inside`] asks the lock checker.
//!
//! Linux: `rcutorture_one_extend` in kernel/rcu/rcutorture.c; row C-4.

use sync::{ATOMIC, IrqGuard, LockClass, PreemptGuard, Rng, SoftirqGuard, SpinLock};

use super::ops::{Readers, Section};
use crate::lock_paths::inside_of;
use crate::{Failure, ensure};

/// Ways to be in a section, as bits.
const FIRST: u32 = 1 << 0;
const SECOND: u32 = 1 << 1;
const NO_PREEMPTION: u32 = 1 << 2;
const NO_SOFTIRQS: u32 = 1 << 3;
const NO_INTERRUPTS: u32 = 1 << 4;
const ALL: u32 = (1 << 5) - 1;

/// Held where some sections end. With interrupts off, around the end of a reader and nothing else.
static OUTER_CLASS: LockClass = LockClass::new("torture.unlock");

/// A section, and how it is kept up at the moment.
pub(crate) struct Segments<'r> {
    readers: &'r Readers,
    /// [`ALL`]'s bits.
    now: u32,
    marked: [Option<Section>; 2],
    no_preemption: Option<PreemptGuard<'static>>,
    no_softirqs: Option<SoftirqGuard<'static>>,
    no_interrupts: Option<IrqGuard<'static>>,
}

impl<'r> Segments<'r> {
    /// Begins a section, in a way chosen at random.
    pub(crate) fn begin(readers: &'r Readers, rng: &mut Rng) -> Segments<'r> {
        let mut segments = Segments {
            readers,
            now: 0,
            marked: [None, None],
            no_preemption: None,
            no_softirqs: None,
            no_interrupts: None,
        };
        segments.go_on(rng);
        segments
    }

    /// Goes on in another way, without a gap.
    pub(crate) fn go_on(&mut self, rng: &mut Rng) {
        let next = self.choose(rng);
        self.take_up(next & !self.now);
        self.leave(self.now & !next, self.readers.extendable && rng.chance(1, 16));
        self.now = next;
    }

    /// Ends it.
    pub(crate) fn end(mut self, rng: &mut Rng) {
        self.leave(self.now, self.readers.extendable && rng.chance(1, 16));
        self.now = 0;
    }

    /// Whether the thread can lose its CPU now.
    pub(crate) fn is_preemptible(&self) -> bool {
        self.now & (NO_PREEMPTION | NO_SOFTIRQS | NO_INTERRUPTS) == 0
    }

    /// Whether interrupts are off.
    pub(crate) fn has_interrupts_off(&self) -> bool {
        self.now & NO_INTERRUPTS != 0
    }

    /// Something that keeps the section up; mostly a single marked one, as most readers are.
    fn choose(&self, rng: &mut Rng) -> u32 {
        if rng.chance(1, 2) {
            return FIRST;
        }
        let ways = rng.next_u32() & rng.next_u32() & ALL;
        if self.readers.extendable && ways != 0 { ways } else { ways | FIRST }
    }

    fn take_up(&mut self, ways: u32) {
        for (way, marked) in [FIRST, SECOND].into_iter().zip(&mut self.marked) {
            if ways & way != 0 {
                *marked = Some((self.readers.begin)());
            }
        }
        if ways & NO_PREEMPTION != 0 {
            self.no_preemption = Some(PreemptGuard::new(ATOMIC));
        }
        if ways & NO_SOFTIRQS != 0 {
            self.no_softirqs = Some(SoftirqGuard::new(ATOMIC));
        }
        if ways & NO_INTERRUPTS != 0 {
            self.no_interrupts = Some(IrqGuard::new(ATOMIC));
        }
    }

    fn leave(&mut self, ways: u32, under_lock: bool) {
        let lock = SpinLock::new((), &OUTER_CLASS);
        for (way, marked) in [FIRST, SECOND].into_iter().zip(&mut self.marked) {
            if ways & way != 0 {
                let _held = under_lock.then(|| lock.lock_irqsave(ATOMIC));
                *marked = None;
            }
        }
        if ways & NO_PREEMPTION != 0 {
            self.no_preemption = None;
        }
        if ways & NO_SOFTIRQS != 0 {
            self.no_softirqs = None;
        }
        if ways & NO_INTERRUPTS != 0 {
            self.no_interrupts = None;
        }
    }
}

/// Fails if the end of a reader has locked a run queue under a lock of its caller. In builds without lock checks: nothing.
pub(crate) fn no_run_queue_inside() -> Result<(), Failure> {
    let inside = inside_of(OUTER_CLASS.name());
    ensure!(!inside.contains(&"sched.rq"), "the end of a reader locks a run queue, by way of {inside:?}");
    Ok(())
}
