//! Grace periods: asking for one, and the thread that runs them.
//!
//! The life of a grace period, in thread `rcu_preempt`:
//!
//! 1. somebody asks ([`request`]): the wish climbs from the CPU's leaf to the root and stops wherever another wish or a
//!    running grace period will carry it on;
//! 2. **start** ([`start`]): take the waiters of `synchronize_rcu`, step the counter;
//! 3. **set up** ([`set_up`]): from the root down, each node gets its mask and the new number. CPUs that idle are left out,
//!    blocked readers are marked;
//! 4. **wait** ([`crate::fqs`]): CPUs report by themselves; after some ticks, and then again and again, those that have not
//!    are looked at, whether they idle or have idled since;
//! 5. **clean up** ([`clean_up`]): each node gets the final number, the root last; wishes that were left at nodes meanwhile
//!    start the next grace period; the counter steps; waiters wake.
//!
//! Invariants
//! - GP-1: one thread writes `SEQ` and the nodes' numbers (SEQ-1, TREE-2).
//! - GP-2: no wish is lost. It is left at a node that clean-up has yet to visit (the node's number says "running"), or it
//!   climbs to a root that says "idle" and sets `WANTED`. Clean-up visits the root last, and the others from above, so
//!   a wish that finds its node clean climbs to the root past clean nodes only. During set-up a node that says "idle" may
//!   be below one that says "running": clean-up has yet to visit both.
//! - GP-3: nothing wakes a thread under a node lock, nor with interrupts off, where the caller may hold a run queue: then
//!   an `irq_work` does it (R-3, S3-18).
//! - GP-4: wishes that come while a grace period runs are all served by the next one (S3-30).
//!
//! Answers to Linux kernel/rcu/tree.c (`rcu_gp_kthread`, `rcu_start_this_gp`); rows, S3-30.

use core::fmt;
// Figures, which decide nothing and are no part of what models check.
use core::sync::atomic::AtomicU64 as Count;

use arch::{clock, cpu};
use sched::WaitQueue;
use sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sync::{ATOMIC, IrqGuard, IrqWork, LlistChain, MaySleep, bug, static_or_lazy};

use crate::call;
use crate::cpu::shared;
use crate::eqs::{Look, before_looks, look_at};
use crate::fqs;
use crate::hist::Histogram;
#[cfg(loom)]
use crate::model::{arch, sched, sync};
use crate::poll;
use crate::report::report_unblocked;
use crate::seq::{Seq, SeqCounter};
use crate::stall;
use crate::sync_gp;
use crate::tree::{Node, NodeGuard, NodeState, tree, tree_if_built};

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
/// How long grace periods take, in nanoseconds.
pub(crate) static LENGTH_NS: Histogram = Histogram::new();
/// How long the thread has been at work, in nanoseconds: from each wake-up to the next wait.
pub(crate) static ACTIVE_NS: Count = Count::new(0);
/// When it woke up last.
static AT_WORK_SINCE_NS: Count = Count::new(0);
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

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Idle => "idle",
            Phase::SetUp => "sets up",
            Phase::Wait => "waits for readers",
            Phase::CleanUp => "cleans up",
        })
    }
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
        stall::thread_lives();
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
        stall::begins();
        wake();
    }
}

/// Whether a grace period runs or is wished for. Context: any; a hint.
pub(crate) fn has_work() -> bool {
    SEQ.current().is_running() || WANTED.load(Ordering::Relaxed)
}

/// Carries a wish upwards; true if it reached the root of a tree without a running grace period. Interrupts are off, so a
/// wish that others rely on is carried on without delay.
fn climb(leaf: &'static Node, target: Seq) -> bool {
    let mut node = leaf;
    loop {
        // A wish that is at the node already is carried on by whoever left it, so most wishes take no lock at all.
        let others = || !node.gp_seq_needed.current().before(target);
        if others() {
            return false;
        }
        let state = node.lock(ATOMIC);
        let now = node.gp_seq.current();
        if others() || now.started(target) {
            return false;
        }
        node.gp_seq_needed.store(target);
        sync::trace!("rcu.wish", target = target.raw(), node = node.trace_id(), running = now.is_running());
        if now.is_running() {
            return false; // clean-up has yet to come here (GP-2)
        }
        let Some(parent) = node.parent() else {
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
    sync::trace!("rcu.gp_clear", gp = gp.raw());
    wake();
}

/// Waits until grace period `gp` has nothing left to wait for, for `ns` at most, or until somebody is in a hurry; true if it
/// has nothing left. Context: the thread.
pub(crate) fn wait_until_clear(cx: &mut MaySleep, gp: Seq, ns: u64) -> bool {
    let _called = THREAD.wait_timeout(cx, ns, || is_clear(gp) || HURRY.load(Ordering::Relaxed));
    let clear = is_clear(gp);
    if !clear {
        HURRY.store(false, Ordering::Relaxed);
    }
    clear
}

/// Whether `gp` is the latest grace period whose root has nothing left to wait for.
pub(crate) fn is_clear(gp: Seq) -> bool {
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

/// Waits by `wait`, and counts what the thread has been at work until then. Context: the thread.
pub(crate) fn rest<T>(wait: impl FnOnce() -> T) -> T {
    let since = AT_WORK_SINCE_NS.load(Ordering::Relaxed);
    ACTIVE_NS.fetch_add(clock::now_ns() - since, Ordering::Relaxed);
    let result = wait();
    AT_WORK_SINCE_NS.store(clock::now_ns(), Ordering::Relaxed);
    result
}

/// The life of thread `rcu_preempt`.
pub(crate) fn thread(cx: &mut MaySleep) {
    AT_WORK_SINCE_NS.store(clock::now_ns(), Ordering::Relaxed);
    stall::thread_runs();
    loop {
        serve_a_wish(cx);
    }
}

/// Waits for a wish and grants it.
pub(crate) fn serve_a_wish(cx: &mut MaySleep) {
    Phase::Idle.enter();
    let idling = sched::watchdog::idling();
    rest(|| THREAD.wait_until(cx, || WANTED.load(Ordering::Relaxed)));
    drop(idling);
    Phase::SetUp.enter();
    let (gp, waiters) = start();
    set_up(cx, gp);
    sync::trace!("rcu.gp_wait", gp = gp.raw());
    Phase::Wait.enter();
    fqs::wait(cx, gp);
    Phase::CleanUp.enter();
    sync::trace!("rcu.gp_cleanup", gp = gp.raw());
    clean_up(cx, gp);
    call::gp_ended();
    sync_gp::wake(waiters);
}

/// Step 2, and the root's part of step 3, under one hold of its lock.
fn start() -> (Seq, LlistChain) {
    STARTED_NS.store(clock::now_ns(), Ordering::Relaxed);
    stall::begins();
    // Before the counter steps: a waiter's own snapshot, taken before it queued, is then never later than the grace
    // period that wakes it (S5-12).
    let waiters = sync_gp::take_waiters();
    let root = tree().root();
    let state = root.lock(ATOMIC);
    WANTED.store(false, Ordering::Relaxed);
    // TWIN-1.
    poll::norm_starts(&state);
    let gp = SEQ.start();
    sync::trace!("rcu.gp_start", gp = gp.raw());
    set_up_node(root, state, gp);
    (gp, waiters)
}

/// Step 3.
fn set_up(cx: &mut MaySleep, gp: Seq) {
    for node in &tree().nodes()[1..] {
        set_up_node(node, node.lock(cx), gp);
        sched::cond_resched(cx);
    }
}

fn set_up_node(node: &'static Node, state: NodeGuard<'_>, gp: Seq) {
    debug_assert!(state.qsmask == 0 && !state.blkd.blocks_gp(), "TREE-3: left over from the last grace period");
    if tree().is_leaf(node) {
        let busy = busy_cpus(node, state.online, gp);
        set_up_leaf(node, state, gp, busy);
    } else {
        set_up_inner(node, state, gp);
    }
}

/// The grace period `gp` waits for the CPUs `busy` of `leaf`, and for the readers on its list.
pub(crate) fn set_up_leaf(leaf: &'static Node, mut state: NodeGuard<'_>, gp: Seq, busy: u64) {
    state.qsmaskinit = state.online;
    state.qsmask = busy;
    sync::trace!("rcu.gp_leaf", gp = gp.raw(), node = leaf.trace_id(), busy = busy, online = state.online);
    state.blkd.start_gp();
    leaf.gp_seq.store(gp);
    report_unblocked(leaf, state);
}

/// The grace period `gp` waits for all below `node`.
pub(crate) fn set_up_inner(node: &Node, mut state: NodeGuard<'_>, gp: Seq) {
    state.qsmaskinit = node.children();
    state.qsmask = node.children();
    node.gp_seq.store(gp);
}

/// Which of the CPUs `online` of `leaf` the grace period `gp` has to wait for; they are told when they see its number.
fn busy_cpus(leaf: &Node, online: u64, gp: Seq) -> u64 {
    let here = cpu::current();
    before_looks();
    let mut busy = 0;
    for (cpu, bit) in leaf.cpus(online) {
        let shared = shared(cpu);
        match look_at(shared) {
            // This thread runs there, outside of readers, and whoever it took the CPU from is queued if it reads.
            _ if cpu == here => {}
            Look::Idle => {
                IDLE_AT_START.fetch_add(1, Ordering::Relaxed);
            }
            Look::Watched(value) => {
                shared.gp_snap.store(value, Ordering::Relaxed);
                // Relaxed: read by whoever has read the leaf's number, which is stored after this.
                shared.gp_asked.store(gp.raw(), Ordering::Relaxed);
                busy |= bit;
            }
        }
    }
    if bug!(
        "rcu.gp_ends_early",
        "a grace period ends before the CPUs that were busy have reported",
        "rcu_torture.*a_grace_period"
    ) {
        return 0;
    }
    busy
}

/// Step 5. The root comes last, so that its lock is taken once: a wish that climbs to it meanwhile stays there (GP-2).
fn clean_up(cx: &mut MaySleep, gp: Seq) {
    let ended = gp.ended();
    let mut wanted = false;
    let mut clean = |node: &Node, state: &NodeState| {
        debug_assert!(state.qsmask == 0 && !state.blkd.blocks_gp(), "TREE-3: a grace period ends too early");
        node.gp_seq.store(ended);
        wanted |= ended.before(node.gp_seq_needed.current());
    };
    for node in &tree().nodes()[1..] {
        clean(node, &node.lock(cx));
        sched::cond_resched(cx);
    }
    let root = tree().root();
    let state = root.lock(cx);
    clean(root, &state);
    SEQ.end();
    sync::trace!("rcu.gp_end", gp = gp.raw(), wanted = wanted);
    // TWIN-1.
    poll::norm_ended(&state);
    // Waiters that queued after `start` took the others and read the counter before it stepped; cookies that an
    // overlapping expedited grace period has kept from their end.
    wanted |= sync_gp::has_waiters() || poll::still_wanted(&state);
    WANTED.store(wanted, Ordering::Relaxed);
    drop(state);
    COUNT.fetch_add(1, Ordering::Relaxed);
    LENGTH_NS.record(clock::now_ns() - STARTED_NS.load(Ordering::Relaxed));
}
