//! Lock classes, and the checks that checking builds make at every lock.
//!
//! A [`LockClass`] names a kind of lock. In builds without debug assertions it is a name and the
//! checks are empty. With them each CPU keeps a list of the spin locks it holds, in whatever context,
//! each thread one of the sleeping locks it holds, across sleeps and CPUs,
//! and every lock operation is checked **before** it can deadlock:
//!
//! - *self-deadlock*: this CPU (thread) holds the very lock it is about to spin on (sleep for);
//! - *NMI*: a spinning acquisition in NMI context (only `try_lock` is allowed there);
//! - *rank*: a class with a rank is taken inside classes with lower ranks only;
//! - *innermost*: nothing is taken inside a class that says so;
//! - *order*: taking B while holding A draws the edge A → B; an edge that closes a circle is
//!   reported with the places that drew both directions;
//! - *interrupts*: a class that was ever taken in a hard (soft) interrupt is not taken with
//!   interrupts (soft interrupts) on anywhere;
//! - *stuck*: who spins for [`STUCK_AFTER_NS`] reports itself.
//!
//! Sleeping locks are kept in order among themselves. One inside a spin lock is no matter of order, but always wrong, and
//! found as such (`MaySleep`).
//!
//! Reports of other things tell which locks were held: [`for_each_held`], [`ThreadLocks::for_each`]. In builds without
//! checks nothing is known of them.
//!
//! Each report is a panic that names both places. Because the graph remembers, one run through
//! each path is enough; the two CPUs need not meet. It answers to Linux's lockdep (6.12,
//! kernel/locking/lockdep.c), with classes named by hand instead of by initialisation site.
//!
//! # Invariants
//!
//! - `LO-1` The list of a CPU is changed by that CPU alone; an interrupt or NMI in the middle of
//!   a change leaves it as found, because slots at and above the depth always read as empty. Others may read it at any
//!   time: a slot is filled from atomics, its class last.
//! - `LO-2` A lock is pushed before it is spun for and popped before it is released, so that an
//!   interrupt in between sees it as held.
//! - `LO-3` Edges are only ever added, before the search for a circle: of two CPUs that draw
//!   opposite edges at once, at least one sees the other's.
//!
//! Context: any.

#[cfg(debug_assertions)]
#[path = "lock_order_checked.rs"]
mod checked;
#[cfg(debug_assertions)]
#[path = "lock_order_graph.rs"]
mod graph;
#[cfg(debug_assertions)]
#[path = "lock_order_held.rs"]
mod held;
#[cfg(not(debug_assertions))]
#[path = "lock_order_unchecked.rs"]
mod unchecked;

#[cfg(debug_assertions)]
use checked as checks;
#[cfg(not(debug_assertions))]
use unchecked as checks;

pub(crate) use checks::Tracked;
pub use checks::{SleepTracked, ThreadLocks, for_each_edge, for_each_held, set_thread};

use core::{
    fmt,
    panic::Location,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU16, Ordering},
};

/// Most lock classes that the checks can tell apart.
pub const MAX_CLASSES: usize = 128;

/// How long a CPU may spin for one lock before it reports itself, in checking builds.
///
/// An emulated CPU may be stopped for seconds; nothing here holds a lock for a millisecond.
pub const STUCK_AFTER_NS: u64 = 30_000_000_000;

/// A kind of lock: what the order of locks is stated and checked in.
#[derive(Debug)]
#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "only the checks read the graph and the uses"))]
pub struct LockClass {
    name: &'static str,
    /// Position in the stated order, from outermost; 0 if none is stated.
    rank: u16,
    /// Two locks of this class may nest if the inner one's address is higher.
    by_address: bool,
    /// Nothing may be taken inside.
    innermost: bool,
    /// Index into the graph plus one; 0 until first used in a checking build.
    id: AtomicU16,
    /// First places of use that restrict others; null until seen. See [`Usage`].
    used: [AtomicPtr<Location<'static>>; Usage::COUNT],
}

/// Kinds of use of a class that exclude each other in pairs.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "only the checks tell them apart"))]
enum Usage {
    /// Taken in a hard interrupt.
    InHardirq,
    /// Taken with interrupts on.
    IrqsOn,
    /// Taken while running soft interrupts.
    InSoftirq,
    /// Taken in a thread with soft interrupts possible.
    SoftirqsOn,
}

impl Usage {
    const COUNT: usize = 4;
}

impl LockClass {
    /// A class; `name` is what reports call it, such as `"mm.zone"`.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            rank: 0,
            by_address: false,
            innermost: false,
            id: AtomicU16::new(0),
            used: [const { AtomicPtr::new(ptr::null_mut()) }; Usage::COUNT],
        }
    }

    /// States the position in the lock order: a ranked class is taken inside classes of lower
    /// rank only. Checked even before the opposite order was ever seen.
    #[must_use]
    pub const fn rank(mut self, rank: u16) -> Self {
        assert!(rank != 0, "rank 0 means none");
        self.rank = rank;
        self
    }

    /// Allows two locks of this class to nest if the inner one's address is higher.
    #[must_use]
    pub const fn nests_by_address(mut self) -> Self {
        self.by_address = true;
        self
    }

    /// States that nothing is taken inside: whatever is, is reported at its first time. So no thread is woken under such a
    /// lock, for that takes others.
    #[must_use]
    pub const fn innermost(mut self) -> Self {
        self.innermost = true;
        self
    }

    /// The name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// A lock that is held: `"mm.zone" (0xffff888000123450) since kernel/mm/src/zone.rs:88:9`.
#[derive(Clone, Copy, Debug)]
pub struct HeldLock {
    /// Its class.
    pub class: &'static LockClass,
    /// Where it is: tells locks of one class apart.
    pub address: usize,
    /// Where it was taken.
    pub place: &'static Location<'static>,
}

impl fmt::Display for HeldLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" ({:#x}) since {}", self.class.name, self.address, self.place)
    }
}

/// An unnamed class of its own, as a `&'static LockClass`: `SpinLock::new(0, lock_class!("mm.vmap"))`.
///
/// All locks made at one place of the source share the class.
#[macro_export]
macro_rules! lock_class {
    ($name:expr) => {{
        static CLASS: $crate::LockClass = $crate::LockClass::new($name);
        &CLASS
    }};
}

/// Set once a check has failed or the kernel panics: checks would only get in the way.
static OFF: AtomicBool = AtomicBool::new(false);

/// Switches all lock and context checks off, for good. The panic path calls it first.
///
/// Context: any.
pub fn switch_off() {
    OFF.store(true, Ordering::Relaxed);
}

/// Whether the checks have been switched off.
///
/// Context: any.
#[inline]
pub fn checks_off() -> bool {
    OFF.load(Ordering::Relaxed)
}
