//! Expedited grace periods: interrupt the CPUs that are not idle and wait for their answers.
//!
//! 1. **Funnel**: a request climbs from the CPU's leaf to the root and leaves its number at each node. One that finds its
//!    number or a later one there waits at that node for whoever left it, so at most one request a node competes for the
//!    root, and all that come while one runs are served by the next ([`climb`]).
//! 2. **Turn**: one expedited grace period at a time.
//! 3. **Select**: each leaf marks its blocked readers and the online CPUs that do not idle; those get one interrupt
//!    ([`select`]). An idle CPU is left alone, the requester's own CPU is quiescent by its request.
//! 4. **Answers**: a CPU that is in no reader and no preempt-off section answers from the interrupt; else at the outermost
//!    unlock or at its next pass through the scheduler. Answers climb the tree like quiescent states, in their own mask.
//! 5. **End**: step the counter, wake those that wait at nodes.
//!
//! Invariants
//! - EXP-1: [`SEQ`] and the set-up of `expmask` belong to whoever has the turn.
//! - EXP-2: an answer is given at a moment when the CPU is quiescent. So an answer that was owed to an earlier expedited
//!   grace period and comes in a later one is right for the later one too.
//!
//! Answers to Linux kernel/rcu/tree_exp.h; rows.

// Figures, which decide nothing and are no part of what models check.
use core::sync::atomic::AtomicU64 as Count;

use arch::{CpuMask, clock, cpu};
use sched::WaitQueue;
use sync::atomic::{AtomicBool, Ordering};
use sync::{
    ATOMIC, IrqGuard, IrqWork, LockClass, MaySleep, SpinIrqGuard, SpinLock, array_of, const_unless_loom, smp,
    static_or_lazy,
};

use crate::boost;
use crate::call;
use crate::cpu::{own, shared};
use crate::eqs::{Look, before_looks, look_at};
use crate::hist::Histogram;
use crate::mode::{self, Kind};
#[cfg(loom)]
use crate::model::{arch, sched, sync};
use crate::poll;
use crate::reader::{ask_special, interrupted_sections};
use crate::seq::{Seq, SeqCounter};
use crate::stall;
use crate::tree::{Node, NodeState, tree};

static_or_lazy! {
    /// The expedited grace period's counter (EXP-1).
    pub(crate) static SEQ: SeqCounter = SeqCounter::new();
    /// Somebody has the turn.
    static TURN: AtomicBool = AtomicBool::new(false);
    /// Where requests wait for the turn.
    static TURNS: WaitQueue = WaitQueue::new();
    /// The root has nothing left to wait for. Cleared by whoever has the turn.
    static CLEAR: AtomicBool = AtomicBool::new(false);
    /// Where whoever has the turn waits for `CLEAR`.
    static ANSWERS: WaitQueue = WaitQueue::new();
    /// Wakes it from places with interrupts off, where a run queue may be held (GP-3).
    static WAKE: IrqWork = IrqWork::new(|_| {
        ANSWERS.wake_all();
    });
}

/// Expedited grace periods so far.
pub(crate) static COUNT: Count = Count::new(0);
/// Interrupts sent for them.
pub(crate) static IPIS: Count = Count::new(0);
/// How long they took, in nanoseconds, from the set-up on.
pub(crate) static LENGTH_NS: Histogram = Histogram::new();

/// Requests with neighbouring numbers wait in different queues, so that the end of one does not wake the other's.
const QUEUES: usize = 4;

/// Protects the number left at a node by requests. Nothing is taken inside it.
static ASKED_CLASS: LockClass = LockClass::new("rcu.exp_asked").innermost();

/// What the funnel keeps at each node.
pub(crate) struct ExpNode {
    /// The furthest number that a request has carried through this node.
    asked: SpinLock<Seq>,
    /// Requests that wait for the one that carried their number on.
    waiting: [WaitQueue; QUEUES],
}

impl ExpNode {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            ExpNode { asked: SpinLock::new(Seq::INITIAL, &ASKED_CLASS), waiting: array_of!(WaitQueue::new(); QUEUES) }
        }
    }

    fn queue_for(&self, target: Seq) -> &WaitQueue {
        &self.waiting[target.count() as usize % QUEUES]
    }
}

/// Waits until every reader that was in its section at the call has left it, at the cost of interrupting busy CPUs.
///
/// Microseconds where [`synchronize_rcu`](crate::synchronize_rcu) takes ticks, unless readers are preempted.
///
/// Context: task, sleeps.
pub fn synchronize_rcu_expedited(cx: &mut MaySleep) {
    cx.assert_may_sleep();
    mode::wait(Kind::Expedited, cx);
}

/// Waits for an expedited grace period. Context: task, after [`crate::init`].
pub(crate) fn wait(cx: &mut MaySleep) {
    let target = SEQ.snap();
    if !climb(cx, target) {
        return;
    }
    start(&tree().root().lock(cx));
    let begin = clock::now_ns();
    select(cx);
    let mut stall = stall::Watch::new();
    loop {
        if ANSWERS.wait_timeout(cx, sched::config::tick_ns().min(stall.patience_ns()), is_clear) {
            break;
        }
        boost::look(Kind::Expedited, begin);
        stall.check_expedited(SEQ.current());
    }
    end(&tree().root().lock(cx));
    call::gp_ended();
    COUNT.fetch_add(1, Ordering::Relaxed);
    LENGTH_NS.record(clock::now_ns() - begin);
    // Release: pairs with the Acquire in `climb`; the next one finds this one's counter and masks.
    TURN.store(false, Ordering::Release);
    TURNS.wake_all();
    for node in tree().nodes() {
        node.exp.queue_for(target).wake_all();
    }
}

/// Steps the counter at the start, in the order of TWIN-1.
pub(crate) fn start(root: &SpinIrqGuard<'_, NodeState>) {
    poll::exp_starts(root);
    let gp = SEQ.start();
    sync::trace!("rcu.exp_start", gp = gp.raw());
}

/// Steps it at the end.
pub(crate) fn end(root: &SpinIrqGuard<'_, NodeState>) {
    sync::trace!("rcu.exp_end", gp = SEQ.current().raw());
    SEQ.end();
    poll::exp_ended(root);
}

/// Step 1 and 2. True with the turn; false if somebody else's expedited grace period has served `target`.
fn climb(cx: &mut MaySleep, target: Seq) -> bool {
    let here = {
        let _pin = IrqGuard::new(ATOMIC);
        cpu::current()
    };
    let mut at = Some(tree().leaf_of(here));
    while let Some(node) = at {
        if SEQ.done(target) {
            return false;
        }
        let carried = {
            let mut asked = node.exp.asked.lock_irqsave(cx);
            let first = asked.before(target);
            if first {
                *asked = target;
            }
            !first
        };
        if carried {
            node.exp.queue_for(target).wait_until(cx, || SEQ.done(target));
            return false;
        }
        at = node.parent();
    }
    // Acquire: pairs with the Release at the end of the last turn.
    let mine = || TURN.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
    let mut served = false;
    TURNS.wait_until(cx, || {
        served = SEQ.done(target);
        served || mine()
    });
    !served
}

fn is_clear() -> bool {
    // Acquire: pairs with the Release in `root_is_clear`.
    CLEAR.load(Ordering::Acquire)
}

/// Step 3.
fn select(cx: &mut MaySleep) {
    CLEAR.store(false, Ordering::Relaxed);
    let tree = tree();
    let mut busy = CpuMask::EMPTY;
    for node in tree.nodes() {
        let mut state = node.lock(cx);
        if !tree.is_leaf(node) {
            state.expmask = node.children();
            continue;
        }
        let here = cpu::current();
        before_looks();
        let mut mask = 0;
        for (cpu, bit) in node.cpus(state.online) {
            // The requester runs here, outside of readers; whoever it took the CPU from is queued if it reads.
            if cpu != here && look_at(shared(cpu)) != Look::Idle {
                mask |= bit;
                busy.insert(cpu);
            }
        }
        state.expmask = mask;
        state.blkd.start_exp();
        go_up_if_clear(node, state);
    }
    if !busy.is_empty() {
        IPIS.fetch_add(busy.count() as u64, Ordering::Relaxed);
        sync::trace!("rcu.exp_select", gp = SEQ.current().raw(), ipis = busy.count());
        // The thread may have moved, so this CPU may be among them: then it is asked like the others.
        smp::call_mask(&busy, asked, 0, false);
    }
    sched::cond_resched(cx);
}

/// The interrupt of step 4. Context: hardirq; or the requester's own call with interrupts off.
fn asked(_: usize) {
    let irqs = IrqGuard::new(ATOMIC);
    if ask_special(&irqs) {
        own(&irqs).owes_exp.set(true);
    } else if interrupted_sections() != 0 {
        own(&irqs).owes_exp.set(true);
        sync::context::set_need_resched();
    } else {
        report_this_cpu(&irqs);
    }
}

/// Answers for this CPU, which is quiescent (EXP-2). Interrupts are off.
pub(crate) fn report_this_cpu(_irqs: &IrqGuard<'_>) {
    let here = cpu::current();
    let leaf = tree().leaf_of(here);
    report_cpu(leaf, leaf.bit_of(here));
}

/// Answers for the CPUs `mask` of `leaf`, if an answer is wanted.
pub(crate) fn report_cpu(leaf: &'static Node, mask: u64) {
    let mut state = leaf.lock(ATOMIC);
    if state.expmask & mask != 0 {
        state.expmask &= !mask;
        sync::trace!("rcu.exp_answer", node = leaf.trace_id(), mask = mask, left = state.expmask);
        go_up_if_clear(leaf, state);
    }
}

/// The last blocked reader of an expedited grace period has left `leaf`.
pub(crate) fn report_unblocked(leaf: &'static Node) {
    go_up_if_clear(leaf, leaf.lock(ATOMIC));
}

/// If nothing below `node`, whose lock is held, has an answer outstanding, goes on to the parent, and so on.
fn go_up_if_clear(node: &'static Node, state: SpinIrqGuard<'_, NodeState>) {
    let (mut node, mut state) = (node, state);
    while state.expmask == 0 && !state.blkd.blocks_exp() {
        drop(state);
        let Some(parent) = node.parent() else {
            root_is_clear();
            return;
        };
        let bit = node.place.grpmask;
        node = parent;
        state = node.lock(ATOMIC);
        if state.expmask & bit == 0 {
            return; // somebody else has been here
        }
        state.expmask &= !bit;
    }
}

fn root_is_clear() {
    // Release: pairs with the Acquire in `is_clear`; carries what the root's lock carried (ORD-3).
    CLEAR.store(true, Ordering::Release);
    if arch::irq::enabled() {
        ANSWERS.wake_all();
    } else {
        WAKE.queue();
    }
}
