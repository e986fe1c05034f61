//! Grace periods: asking for one, and the thread that runs them.
//!
//! The life of a grace period, in thread `rcu_preempt`:
//!
//! 1. somebody asks ([`request`]): the wish climbs from the CPU's leaf to the root and stops wherever another wish or a
//!    running grace period will carry it on;
//! 2. **start** ([`start`]): take the waiters of `synchronize_rcu`, step the counter;
//! 3. **set up** ([`set_up`]): from the root down, each node gets its mask and the new number. CPUs that idle are left out,
//!    blocked readers are marked;
//! 4. **wait** ([`wait_for_readers`]): CPUs report by themselves; after some ticks, and then again and again, those that
//!    have not are looked at, whether they idle or have idled since;
//! 5. **clean up** ([`clean_up`]): from the root down, each node gets the final number; wishes that were left at nodes
//!    meanwhile start the next grace period; the counter steps; waiters wake.
//!
//! Invariants
//! - GP-1: one thread writes `SEQ` and the nodes' numbers (SEQ-1, TREE-2).
//! - GP-2: no wish is lost. It is left either at a node that clean-up has yet to visit (the node's number says
//!   "running"), or at the root while `SEQ` runs, which the last step of clean-up looks at under the root's lock,
//!   or it sets `WANTED`. Set-up and clean-up go from the root down, so a node that says "idle" below one that says
//!   "running" exists only during set-up, and clean-up visits both.
//! - GP-3: nothing wakes a thread under a node lock, nor with interrupts off, where the caller may hold a run queue: then
//!   an `irq_work` does it (R-3, S3-18).
//! - GP-4: wishes that come while a grace period runs are all served by the next one (S3-30).
//!
//! Answers to Linux kernel/rcu/tree.c (`rcu_gp_kthread`, `rcu_start_this_gp`); rows, S3-30.

// Figures, which decide nothing and are no part of what models check.
use core::sync::atomic::AtomicU64 as Count;

use arch::{clock, cpu};
use sched::WaitQueue;
use sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sync::{ATOMIC, IrqGuard, IrqWork, LlistChain, MaySleep, bug, static_or_lazy};

use crate::config;
use crate::cpu::shared;
use crate::eqs::{Look, before_looks, look_at};
#[cfg(loom)]
use crate::model::{arch, sched, sync};
use crate::poll;
use crate::report::{report, report_unblocked};
use crate::seq::{Seq, SeqCounter};
use crate::stall;
use crate::sync_gp;
use crate::tree::{Node, NodeState, tree, tree_if_built};

static_or_lazy! {
    /// The normal grace period's counter (GP-1).
    pub(crate) static SEQ: SeqCounter = SeqCounter::new();
    /// A grace period is wished for. Set under the root's lock by wishers and by clean-up; cleared under it by [`start`].
    static WANTED: AtomicBool = AtomicBool::new(false);
    /// The number of the latest grace period whose root has nothing left to wait for, as raw [`Seq`].
    static CLEAR: AtomicU64 = AtomicU64::new(Seq::INITIAL.raw());
    /// Somebody has too many callbacks and wants the CPUs looked at now.
    static HURRY: AtomicBool = AtomicBool::new(false);
    /// Where the thread waits, for `WANTED` or for `CLEAR`.
    static THREAD: WaitQueue = WaitQueue::new();
    /// Wakes it from places that may not wake (GP-3).
    static WAKE: IrqWork = IrqWork::new(|_| {
        THREAD.wake_all();
    });
}

/// What the thread does, for reports: see [`Phase`].
static PHASE: Count = Count::new(Phase::Idle as u64);
/// When the running grace period started, in nanoseconds.
pub(crate) static STARTED_NS: Count = Count::new(0);
/// Grace periods so far.
pub(crate) static COUNT: Count = Count::new(0);
/// Scans for CPUs that have not reported.
pub(crate) static SCANS: Count = Count::new(0);
/// CPUs left alone at set-up because they idled.
pub(crate) static IDLE_AT_START: Count = Count::new(0);

/// What the grace-period thread does.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum Phase {
    /// Waits for a wish.
    Idle = 0,
    /// Sets the nodes up.
    SetUp = 1,
    /// Waits for readers.
    Wait = 2,
    /// Cleans the nodes up.
    CleanUp = 3,
}

impl Phase {
    /// The thread's phase now; a hint.
    pub fn now() -> Phase {
        match PHASE.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::SetUp,
            2 => Phase::Wait,
            _ => Phase::CleanUp,
        }
    }

    fn enter(self) {
        PHASE.store(self as u64, Ordering::Relaxed);
    }
}

/// Asks for the grace period that ends at `target`, unless it is under way or asked for.
///
/// Context: any but NMI, interrupts on or off; takes node locks one at a time; wakes no thread if interrupts are off.
/// Before [`crate::init`] it does nothing: the first tick after it asks again for whatever waits.
pub(crate) fn request(target: Seq) {
    if tree_if_built().is_none() {
        return;
    }
    let first_at_root = {
        let _pin = IrqGuard::new(ATOMIC);
        climb(tree().leaf_of(cpu::current()), target)
    };
    if first_at_root {
        wake();
    }
}

/// Carries a wish upwards; true if it reached the root of a tree without a running grace period. Interrupts are off, so a
/// wish that others rely on is carried on without delay.
fn climb(leaf: &'static Node, target: Seq) -> bool {
    let mut node = leaf;
    loop {
        let mut state = node.lock(ATOMIC);
        let now = node.gp_seq.current();
        if !state.gp_seq_needed.before(target) || now.started(target) {
            return false;
        }
        state.gp_seq_needed = target;
        if now.is_running() {
            return false; // clean-up has yet to come here (GP-2)
        }
        let Some(parent) = node.parent() else {
            if SEQ.current().is_running() {
                return false; // clean-up's last step looks here, under this lock (GP-2)
            }
            WANTED.store(true, Ordering::Relaxed);
            return true;
        };
        drop(state);
        node = parent;
    }
}

/// Has the CPUs that have not reported looked at soon. Context: any but NMI.
pub(crate) fn hurry() {
    HURRY.store(true, Ordering::Relaxed);
    wake();
}

/// The root has nothing left to wait for in grace period `gp`. No node lock is held.
pub(crate) fn root_is_clear(gp: Seq) {
    // Release: pairs with the Acquire in `is_clear`; what the root's lock carried here goes on to the thread (ORD-3).
    CLEAR.store(gp.raw(), Ordering::Release);
    wake();
}

fn is_clear(gp: Seq) -> bool {
    // Acquire: pairs with the Release in `root_is_clear`.
    CLEAR.load(Ordering::Acquire) == gp.raw()
}

/// Wakes the thread, now or, where that is not allowed (GP-3), by a self-interrupt.
fn wake() {
    if arch::irq::enabled() {
        THREAD.wake_all();
    } else {
        WAKE.queue();
    }
}

/// The life of thread `rcu_preempt`.
pub(crate) fn thread(cx: &mut MaySleep) {
    loop {
        serve_a_wish(cx);
    }
}

/// Waits for a wish and grants it.
pub(crate) fn serve_a_wish(cx: &mut MaySleep) {
    Phase::Idle.enter();
    let idling = sched::watchdog::idling();
    THREAD.wait_until(cx, || WANTED.load(Ordering::Relaxed));
    drop(idling);
    Phase::SetUp.enter();
    let (gp, waiters) = start();
    set_up(cx, gp);
    Phase::Wait.enter();
    wait_for_readers(cx, gp);
    Phase::CleanUp.enter();
    clean_up(cx, gp);
    sync_gp::wake(waiters);
}

/// Step 2.
fn start() -> (Seq, LlistChain) {
    STARTED_NS.store(clock::now_ns(), Ordering::Relaxed);
    // Before the counter steps: a waiter's own snapshot, taken before it queued, is then never later than the grace
    // period that wakes it (S5-12).
    let waiters = sync_gp::take_waiters();
    let root = tree().root().lock(ATOMIC);
    WANTED.store(false, Ordering::Relaxed);
    let gp = SEQ.start();
    poll::norm_started(&root);
    (gp, waiters)
}

/// Step 3.
fn set_up(cx: &mut MaySleep, gp: Seq) {
    let tree = tree();
    for node in tree.nodes() {
        let mut state = node.lock(cx);
        debug_assert!(state.qsmask == 0 && !state.blkd.blocks_gp(), "TREE-3: left over from the last grace period");
        node.gp_seq.store(gp);
        if tree.is_leaf(node) {
            set_up_leaf(node, state);
        } else {
            state.qsmaskinit = node.children();
            state.qsmask = node.children();
            drop(state);
        }
        sched::cond_resched(cx);
    }
}

fn set_up_leaf(leaf: &'static Node, mut state: sync::SpinIrqGuard<'_, NodeState>) {
    let here = cpu::current();
    state.qsmaskinit = state.online;
    before_looks();
    let mut busy = 0;
    for (cpu, bit) in leaf.cpus(state.online) {
        let shared = shared(cpu);
        match look_at(shared) {
            // This thread runs there, outside of readers, and whoever it took the CPU from is queued if it reads.
            _ if cpu == here => {}
            Look::Idle => {
                IDLE_AT_START.fetch_add(1, Ordering::Relaxed);
            }
            Look::Watched(value) => {
                shared.gp_snap.store(value, Ordering::Relaxed);
                busy |= bit;
            }
        }
    }
    if bug!(
        "rcu.gp_ends_early",
        "a grace period ends before the CPUs that were busy have reported",
        "rcu_torture.*a_grace_period"
    ) {
        busy = 0;
    }
    state.qsmask = busy;
    state.blkd.start_gp();
    report_unblocked(leaf, state);
}

/// Step 4.
fn wait_for_readers(cx: &mut MaySleep, gp: Seq) {
    let tick_ns = sched::config::tick_ns();
    let mut ticks = config::first_fqs_ticks();
    let mut stall = stall::Watch::new();
    loop {
        let looked_for = || is_clear(gp) || HURRY.load(Ordering::Relaxed);
        let _called = THREAD.wait_timeout(cx, ticks * tick_ns, looked_for);
        if is_clear(gp) {
            return;
        }
        HURRY.store(false, Ordering::Relaxed);
        scan(cx, gp);
        stall.check(gp);
        ticks = config::next_fqs_ticks();
    }
}

/// Looks at the CPUs that have not reported, and reports for those that idle or have idled since set-up.
fn scan(cx: &mut MaySleep, gp: Seq) {
    SCANS.fetch_add(1, Ordering::Relaxed);
    for leaf in tree().leaves() {
        let state = leaf.lock(cx);
        before_looks();
        let mut quiet = 0;
        for (cpu, bit) in leaf.cpus(state.qsmask) {
            let shared = shared(cpu);
            let seen = shared.gp_snap.load(Ordering::Relaxed);
            if look_at(shared) != Look::Watched(seen) {
                quiet |= bit;
            }
        }
        report(leaf, state, quiet, gp);
        sched::cond_resched(cx);
    }
}

/// Step 5.
fn clean_up(cx: &mut MaySleep, gp: Seq) {
    let ended = gp.ended();
    let mut wanted = false;
    for node in tree().nodes() {
        let state = node.lock(cx);
        debug_assert!(state.qsmask == 0 && !state.blkd.blocks_gp(), "TREE-3: a grace period ends too early");
        node.gp_seq.store(ended);
        wanted |= ended.before(state.gp_seq_needed);
        drop(state);
        sched::cond_resched(cx);
    }
    let root = tree().root().lock(cx);
    SEQ.end();
    poll::norm_ended(&root);
    // Wishes that climbed past nodes that were clean already; waiters that queued after `start` took the others and read
    // the counter before it stepped; cookies that an overlapping expedited grace period has kept from their end.
    wanted |= ended.before(root.gp_seq_needed) || sync_gp::has_waiters() || poll::still_wanted(&root);
    WANTED.store(wanted, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Relaxed);
}
