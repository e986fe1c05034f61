//! Sections of SRCU that end elsewhere: begun by one thread, ended by another or in a hard interrupt of any CPU.
//!
//! Linux: `rcu_torture_updown` in kernel/rcu/rcutorture.c; row C-4.

use alloc::collections::VecDeque;
use core::ptr::NonNull;

use rcu::srcu::{FastUpDown, Normal, SrcuDownGuard, srcu_up_read};
use sync::{ATOMIC, LockClass, MaySleep, Rng, SpinLock};

use super::pipe::Element;
use super::{Flavour, Torture};
use crate::torture::control;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// Sections that are open at a time, of a flavour.
const MOST: usize = 32;

/// Protects the sections that wait for their ends. Nothing is taken inside it; taken with interrupts off.
static CLASS: LockClass = LockClass::new("torture.updown").innermost();

/// The end of a section, to be had once.
pub(crate) enum Up {
    Normal(SrcuDownGuard<'static, Normal>),
    Fast(SrcuDownGuard<'static, FastUpDown>),
}

impl Up {
    fn up(self) {
        match self {
            Up::Normal(guard) => srcu_up_read(guard),
            Up::Fast(guard) => srcu_up_read(guard),
        }
    }
}

/// A section, and what it found.
struct HandedOver {
    up: Up,
    element: NonNull<Element>,
}

// SAFETY: the section may end anywhere, and an element may be read from anywhere.
unsafe impl Send for HandedOver {}

/// Sections without an owner.
pub(crate) struct Handed(SpinLock<VecDeque<HandedOver>>);

impl Handed {
    pub(super) fn new() -> Handed {
        Handed(SpinLock::new(VecDeque::with_capacity(MOST), &CLASS))
    }
}

impl Flavour {
    /// Begins a section and leaves it to others; false if there are enough.
    fn begin_one(&self, down: fn() -> Up) -> bool {
        if self.handed.0.lock_irqsave(ATOMIC).len() == MOST {
            return false;
        }
        let up = down();
        match self.pipe.read() {
            Some(element) => {
                let section = HandedOver { up, element: NonNull::from(element) };
                let mut handed = self.handed.0.lock_irqsave(ATOMIC);
                // The place may be taken by now: then it ends at once, here.
                if handed.len() < MOST {
                    handed.push_back(section);
                    return true;
                }
                drop(handed);
                self.end(section);
            }
            None => up.up(),
        }
        false
    }

    /// Ends the one that has been open for longest. Context: any but NMI.
    pub(super) fn end_one_handed_over(&self) -> bool {
        let section = self.handed.0.lock_irqsave(ATOMIC).pop_front();
        section.map(|section| self.end(section)).is_some()
    }

    fn end(&self, section: HandedOver) {
        // SAFETY: of this flavour's pipe, which stays.
        let element = unsafe { section.element.as_ref() };
        let (age, live) = (element.stage(), element.is_live());
        section.up.up();
        self.seen_handed.note_shared(age, live);
    }
}

impl Torture {
    /// A thread that begins such sections, and ends some of them.
    pub(super) fn hand_over(&self, mut rng: Rng, cx: &mut MaySleep) {
        while !control::stutter(cx) {
            for flavour in &self.flavours {
                if let Some(down) = flavour.ops.down {
                    flavour.begin_one(down);
                    if rng.chance(1, 2) {
                        flavour.end_one_handed_over();
                    }
                }
            }
            sched::sleep_ns(cx, rng.below(MS));
        }
        // Updaters that are on their way to their end wait for what is left.
        for flavour in &self.flavours {
            while flavour.end_one_handed_over() {}
        }
    }
}
