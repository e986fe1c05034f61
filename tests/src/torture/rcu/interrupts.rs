//! Readers in timers, hard interrupts, soft interrupts and NMIs; and threads that take the CPU from readers.
//!
//! A *prodder*, of higher priority than readers, wakes again and again: it preempts whoever reads there, at times for longer
//! than a grace period takes, and interrupts a CPU. RCU has one on each CPU, other kinds have one. Its interrupt reads, raises a soft interrupt that reads, and an
//! NMI comes on top. Readers arm timers, which read when they go off. Every NMI of the run reads, also one that a disturber
//! has sent.
//!
//! Handlers find what they torture in [`TORTURED`]. A kind is taken out of it at its end, and freed when every CPU has been
//! through an interrupt since.
//!
//! Linux: `rcu_torture_timer`, `test_nmis` of kernel/rcu/rcutorture.c; rows C-4, C-7.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use arch::{clock, cpu, ipi, irq};
use sched::Timer;
use sched::softirq::{self, Softirq};
use sync::nmi::NmiHandler;
use sync::{MaySleep, Once, Rng};

use super::Torture;
use super::pipe::STAGES;
use super::reader::Seen;
use crate::com2;
use crate::softirq_calls;
use crate::torture::control;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// How long a handler stays in its section.
const SECTION_NS: u64 = 2_000;

/// Where a section runs, besides threads.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Timer,
    Hardirq,
    Softirq,
    Nmi,
}

impl Place {
    pub(crate) const ALL: [Place; 4] = [Place::Timer, Place::Hardirq, Place::Softirq, Place::Nmi];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Place::Timer => "nt",
            Place::Hardirq => "hardirqs",
            Place::Softirq => "softirqs",
            Place::Nmi => "nmis",
        }
    }
}

/// Kinds that can run at a time.
const KINDS: usize = 4;
/// What handlers torture.
static TORTURED: [AtomicPtr<Torture>; KINDS] = [const { AtomicPtr::new(ptr::null_mut()) }; KINDS];
/// Timers that readers arm; each serves several.
static TIMERS: [Timer; 8] = [const { Timer::new(in_timer) }; 8];
static NMI_HANDLER: NmiHandler = NmiHandler::new("rcu-torture", in_nmi);

/// What sections in interrupts have seen, by their place.
#[derive(Default)]
pub(crate) struct SeenThere([Seen; Place::ALL.len()]);

impl SeenThere {
    pub(crate) fn at(&self, place: Place) -> &Seen {
        &self.0[place as usize]
    }
}

/// Has interrupts read what `torture` tortures, until [`leave`].
pub(super) fn join(torture: &Torture) {
    static REGISTERED: Once<()> = Once::new();
    REGISTERED.call_once(|| {
        sync::nmi::register(&NMI_HANDLER);
        softirq_calls::add(in_softirq);
    });
    let mine = ptr::from_ref(torture).cast_mut();
    // Release: pairs with the Acquire in `read_here`.
    let taken = TORTURED
        .iter()
        .any(|slot| slot.compare_exchange(ptr::null_mut(), mine, Ordering::Release, Ordering::Relaxed).is_ok());
    assert!(taken, "more than {KINDS} kinds of RCU are tortured at once");
}

/// No interrupt knows `torture` any more when this returns. Context: task, interrupts on.
pub(super) fn leave(torture: &Torture) {
    let mine = ptr::from_ref(torture).cast_mut();
    for slot in &TORTURED {
        let _not_mine = slot.compare_exchange(mine, ptr::null_mut(), Ordering::Relaxed, Ordering::Relaxed);
    }
    // Each handler that has found it does so with interrupts off, in a softirq, or in an NMI on top of something.
    for timer in &TIMERS {
        timer.cancel_sync();
    }
    sync::smp::call_all(|_| (), 0, true);
}

/// Has a timer go off on this CPU in `ns`.
pub(super) fn arm_timer(who: usize, ns: u64) {
    TIMERS[who % TIMERS.len()].arm_in(ns);
}

fn in_timer(_: &Timer) {
    read_here(Place::Timer);
}

fn in_hardirq(_: usize) {
    read_here(Place::Hardirq);
    softirq::raise(Softirq::Test);
}

fn in_softirq() {
    read_here(Place::Softirq);
}

fn in_nmi(_: &mut arch::trap::TrapFrame) -> bool {
    read_here(Place::Nmi);
    // Sent by somebody here, most likely; but who asks a stuck machine where it is wants an answer.
    !control::should_stop() && !com2::seems_stuck()
}

/// A section of each flavour that can be read in `place`.
fn read_here(place: Place) {
    for slot in &TORTURED {
        // Acquire: pairs with the Release in `join`.
        // SAFETY: null, or what ends only after `leave`, which waits for this.
        let Some(torture) = (unsafe { slot.load(Ordering::Acquire).as_ref() }) else { continue };
        for flavour in &torture.flavours {
            let readers = &flavour.ops.readers;
            if if place == Place::Nmi { readers.in_nmis } else { readers.in_interrupts } {
                let section = (readers.begin)();
                let Some(element) = flavour.pipe.read() else { continue };
                let live = element.is_live();
                let end = clock::now_ns() + SECTION_NS;
                while clock::now_ns() < end {
                    irq::relax();
                }
                let age = element.stage();
                drop(section);
                flavour.seen_there.at(place).note_shared(age, live);
            }
            if place == Place::Hardirq {
                flavour.end_one_handed_over();
            }
        }
    }
}

impl Torture {
    /// A prodder's thread.
    pub(super) fn prod(&self, mut rng: Rng, cx: &mut MaySleep) {
        while !control::rest(cx, 50_000 + rng.below(2 * MS)) {
            if control::is_paused() {
                continue;
            }
            if rng.chance(1, 32) {
                // So long that a grace period could be over before the reader goes on.
                let end = clock::now_ns() + rng.below(12 * MS);
                while clock::now_ns() < end {
                    irq::relax();
                    sched::cond_resched(cx);
                }
            }
            if !self.setup.interrupts {
                continue;
            }
            let _stay = sched::keep_cpus(cx);
            let online = cpu::online();
            if let Some(target) = online.iter().nth(rng.index(online.count())) {
                sync::smp::call_on(target, in_hardirq, 0, false);
                if rng.chance(1, 2) {
                    ipi::send_nmi(target);
                }
            }
        }
    }
}

/// Sums of a histogram that several have.
pub(crate) fn sum<'a>(each: impl Iterator<Item = &'a [AtomicU64; STAGES + 1]>) -> [u64; STAGES + 1] {
    let mut sum = [0; STAGES + 1];
    for counts in each {
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count.load(Ordering::Relaxed);
        }
    }
    sum
}
