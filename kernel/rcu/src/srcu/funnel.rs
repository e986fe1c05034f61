//! Requests for grace periods on their way to the one who runs them.
//!
//! A small domain has one node, with a lock. A big one has a tree of them, of the shape of RCU's own
//! ([`crate::geometry`]): a request climbs from its CPU's leaf and stops where one before it has asked for the same, so
//! that each lock is taken by few. All end at the root, which is the one node that a small domain has; so a domain can
//! become big while requests are under way, some from leaves and some not. It does so at a grace period, in a thread, if
//! somebody has asked for it:
//!
//! | `srcutree.convert_to_big` | asks |
//! |---|---|
//! | 0 | nobody but [`make_big`](super::SrcuDomain::make_big) |
//! | 1 | its first grace period |
//! | 2 | requests, when enough of them in one tick have found the root's lock taken |
//! | 3 | as 1 where there are `srcutree.big_cpu_lim` CPUs, else as 2 |
//!
//! If there is no memory it stays small, and is asked again by the next grace period. It never becomes small again.
//!
//! Unlike in Linux the nodes know nothing of callbacks: a grace period looks at each CPU's counters in any case, and
//! so looks at its list as well. That spares a domain the many states between small and big.
//!
//! Invariants
//! - FUN-1: no wish is lost. It is left at a node only if the one who asked there before for as much is on its way to the root
//!   with interrupts off, or has been there; at the root it makes the machine run, or the machine runs and looks under
//!   the root's lock before it rests.
//!
//! Lock: `srcu.node`, one at a time, nothing inside, interrupts off. Row R-21. Answers to Linux kernel/rcu/srcutree.c
//! (`srcu_funnel_gp_start`, `srcu_transition_to_big`).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;
use core::{ptr, slice};

use arch::{clock, cpu};
use sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use sync::{ATOMIC, IrqGuard, LockClass, SpinIrqGuard, SpinLock};

use super::config;
use crate::seq::Seq;
use crate::tree::tree;

/// Protects [`Asked`]. See "Lock" in the module documentation.
static NODE_CLASS: LockClass = LockClass::new("srcu.node");

/// What has been asked for at a node.
struct Asked {
    /// End of the furthest grace period.
    any: Seq,
    /// End of the furthest one that is to be expedited.
    expedited: Seq,
    /// Root: the machine runs, or has been told to.
    working: bool,
}

impl Asked {
    const fn new() -> Asked {
        Asked { any: Seq::INITIAL, expedited: Seq::INITIAL, working: false }
    }

    /// Adds a wish. False if it is no news.
    fn add(&mut self, target: Seq, expedited: bool) -> bool {
        let (news, hurry) = (self.any.before(target), expedited && self.expedited.before(target));
        if news {
            self.any = target;
        }
        if hurry {
            self.expedited = target;
        }
        news || hurry
    }
}

/// A node below the root.
struct Node {
    asked: SpinLock<Asked>,
    /// Position of the parent; the root for nodes of the level below it.
    parent: Option<usize>,
}

/// What the requester is to do.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Launch {
    /// Start the machine, at once or after a tick for others to join.
    Start { at_once: bool },
    /// The machine runs; have it look now instead of later.
    Hurry,
}

/// The nodes of a domain.
pub(crate) struct Funnel {
    root: SpinLock<Asked>,
    /// The nodes below the root, in the order of the geometry, from position 1 on; null while the domain is small. The first of
    /// a boxed slice. Written once, by the machine.
    below: AtomicPtr<Node>,
    /// Somebody wants the domain to be big.
    grow: AtomicBool,
    /// The tick that `contended` counts in, and in it requests that found the root's lock taken.
    window: AtomicU64,
    contended: AtomicU64,
}

impl Funnel {
    pub(crate) const fn new() -> Funnel {
        Funnel {
            root: SpinLock::new(Asked::new(), &NODE_CLASS),
            below: AtomicPtr::new(ptr::null_mut()),
            grow: AtomicBool::new(false),
            window: AtomicU64::new(0),
            contended: AtomicU64::new(0),
        }
    }

    fn below(&self) -> Option<&[Node]> {
        // Acquire: pairs with the Release in `grow_if_asked`.
        let first = self.below.load(Ordering::Acquire);
        // SAFETY: the first of a leaked slice of that length, which stays until the domain goes.
        (!first.is_null()).then(|| unsafe { slice::from_raw_parts(first, nodes_below()) })
    }

    /// Whether the domain has its tree.
    pub(crate) fn is_big(&self) -> bool {
        self.below().is_some()
    }

    /// Carries a wish for the grace period that ends at `target` towards the root; what there is to be done if it came there
    /// and was news. Interrupts are off (FUN-1).
    pub(crate) fn climb(&self, target: Seq, expedited: bool, _irqs: &IrqGuard<'_>) -> Option<Launch> {
        if let Some(below) = self.below() {
            let leaf = tree().shape.leaf_of(cpu::current().index());
            let mut at = (leaf > 0).then_some(leaf);
            while let Some(index) = at {
                let node = &below[index - 1];
                if !node.asked.lock_irqsave(ATOMIC).add(target, expedited) {
                    return None;
                }
                at = node.parent;
            }
        }
        let mut root = self.lock_root();
        if !root.add(target, expedited) {
            return None;
        }
        if !root.working {
            root.working = true;
            return Some(Launch::Start { at_once: expedited });
        }
        expedited.then_some(Launch::Hurry)
    }

    /// Takes the root's lock, and notes whether somebody had it.
    fn lock_root(&self) -> SpinIrqGuard<'_, Asked> {
        if let Some(root) = self.root.try_lock_irqsave(ATOMIC) {
            return root;
        }
        self.note_contention();
        self.root.lock_irqsave(ATOMIC)
    }

    #[cold]
    fn note_contention(&self) {
        if !grows_by(Reason::Contention) || self.grow.load(Ordering::Relaxed) {
            return;
        }
        // Figures that races may bend a little.
        let window = clock::now_ns() / sched::config::tick_ns();
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.contended.store(0, Ordering::Relaxed);
        }
        if self.contended.fetch_add(1, Ordering::Relaxed) + 1 >= u64::from(config::CONTENTION_LIM.get()) {
            self.ask_to_grow();
        }
    }

    /// Has the domain become big with its next grace period.
    pub(crate) fn ask_to_grow(&self) {
        self.grow.store(true, Ordering::Relaxed);
    }

    /// Makes the domain big if somebody asked for it. Context: the machine; allocates.
    pub(crate) fn grow_if_asked(&self) {
        if !(self.grow.load(Ordering::Relaxed) || grows_by(Reason::FirstUse)) || self.is_big() {
            return;
        }
        let shape = tree().shape;
        let mut below = Vec::new();
        if below.try_reserve_exact(nodes_below()).is_err() {
            return;
        }
        below.extend((1..shape.nodes()).map(|index| Node {
            asked: SpinLock::new(Asked::new(), &NODE_CLASS),
            parent: shape.place(index).parent.filter(|&parent| parent > 0),
        }));
        // Release: pairs with the Acquire in `below`. Nobody else writes it.
        self.below.store(Box::into_raw(below.into_boxed_slice()).cast(), Ordering::Release);
    }

    /// Whether a grace period beyond `now` is asked for, or `now` says that one runs.
    pub(crate) fn wants_more(&self, now: Seq) -> bool {
        now.is_running() || now.before(self.root.lock_irqsave(ATOMIC).any)
    }

    /// The machine is done with all grace periods up to `now`: false if it may rest, which it then does (FUN-1).
    pub(crate) fn goes_on(&self, now: Seq) -> bool {
        let mut root = self.root.lock_irqsave(ATOMIC);
        root.working = now.before(root.any);
        root.working
    }

    /// Whether the grace period that runs, or else the next one, or any after it, is to be expedited.
    pub(crate) fn is_expedited(&self, now: Seq) -> bool {
        now.before(self.root.lock_irqsave(ATOMIC).expedited)
    }

    /// Whether the machine runs, or has been told to.
    pub(crate) fn is_working(&self) -> bool {
        self.root.lock_irqsave(ATOMIC).working
    }
}

impl Drop for Funnel {
    fn drop(&mut self) {
        let first = self.below.load(Ordering::Relaxed);
        if !first.is_null() {
            // SAFETY: from a boxed slice of that length, and nobody else has the domain any more.
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(first, nodes_below())) });
        }
    }
}

/// Nodes of a big domain, without the root.
fn nodes_below() -> usize {
    tree().shape.nodes() - 1
}

/// Why a domain may become big.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Reason {
    FirstUse,
    Contention,
}

/// Whether the command line lets it become big for that reason.
fn grows_by(reason: Reason) -> bool {
    let many = tree().shape.cpus() >= config::BIG_CPU_LIM.get() as usize;
    match config::CONVERT_TO_BIG.get() {
        0 => false,
        1 => reason == Reason::FirstUse,
        2 => reason == Reason::Contention,
        _ => reason == if many { Reason::FirstUse } else { Reason::Contention },
    }
}
