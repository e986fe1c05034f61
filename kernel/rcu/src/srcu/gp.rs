//! The grace period of a domain: a machine of three states, turned by a work item.
//!
//! ```text
//!            start                flip                   end
//!   idle ───────────► first look ──────► second look ──────────► idle
//!   4k                4k + 1             4k + 2                  4k + 4        (the counter)
//!                     waits at the       waits at the index
//!                     idle index         that was current
//! ```
//!
//! A work item of a queue without CPUs calls [`run`], which goes on until there is a reader in the way. Then it looks again: an
//! expedited grace period some times at once, after that both kinds later and later, by a timer that queues the item, so
//! that a reader that sleeps for a minute costs neither a thread nor much time. A grace period that nobody wants expedited
//! begins a tick after it was asked for, so that others can join.
//!
//! Who asks first has the item queued. With interrupts off, where the caller may hold a run queue, that is left to an
//! `irq_work` (S3-18); before [`init`] to [`init`].
//!
//! Invariants
//! - SGP-1: only [`run`] steps the counter and flips the index, and a work item does not run twice at the same time
//!   (`SCHED-20`): it is the one writer of SEQ-1.
//! - SGP-2: the machine works (the root says so) as long as something will have [`run`] called: a kick on its way, the timer, or
//!   the item itself, which rests only under the root's lock. Calls too many are harmless: each looks at the state.
//!
//! Orderings: see [`super::order`] for what is within a grace period; begin and end are as for RCU (ORD-1, ORD-3).
//! Row R-21. Answers to Linux kernel/rcu/srcutree.c (`srcu_advance_state`, `process_srcu`).

use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::{clock, cpu, irq};
use sched::{Timer, WaitQueue, WorkItem, WorkQueue, work};
use sync::{ATOMIC, IrqGuard, IrqWork, LlistHead, LlistNode, MaySleep, Once, PreemptGuard, bug};

use super::callbacks;
use super::config;
use super::domain::{Core, Hold};
use super::funnel::Launch;
use super::order;
use super::registry;
use crate::mode;
use crate::seq::{Seq, SeqCounter};

/// State bits of the counter: looks at the index that was idle before.
const FIRST_LOOK: u64 = 1;
/// Looks at the index that was current before the flip.
const SECOND_LOOK: u64 = 2;

/// Items of grace periods that may be under way at once for each node. They sleep only in wait for RCU, not for each other.
const MAX_ACTIVE: u32 = 256;

/// The queue of the items.
static QUEUE: Once<WorkQueue> = Once::new();
/// Domains whose machines are to be started from an interrupt.
static KICKED: LlistHead = LlistHead::new();
/// That interrupt.
static KICK: IrqWork = IrqWork::new(|_| start_kicked());

/// What a domain keeps for its grace periods.
pub(crate) struct Gp {
    pub(crate) seq: SeqCounter,
    work: WorkItem,
    /// Queues `work`.
    timer: Timer,
    /// In [`KICKED`] while `kicked`.
    kick: LlistNode,
    kicked: AtomicBool,
    /// Those who wait for the end of a grace period, by the parity of its number: two ends at most are waited for at a time.
    waiting: [WaitQueue; 2],
    /// Looks in this state that found readers. Of the machine.
    in_vain: AtomicU32,
    /// When the last grace period ended.
    pub(crate) ended_ns: AtomicU64,
    /// Grace periods so far.
    pub(crate) count: AtomicU64,
    /// Those that were expedited, by whomever, when they ended.
    pub(crate) expedited: AtomicU64,
}

impl Gp {
    pub(crate) const fn new() -> Gp {
        Gp {
            seq: SeqCounter::new(),
            work: WorkItem::new(run),
            timer: Timer::new(time_is_over),
            kick: LlistNode::new(),
            kicked: AtomicBool::new(false),
            waiting: [const { WaitQueue::new() }; 2],
            in_vain: AtomicU32::new(0),
            ended_ns: AtomicU64::new(0),
            count: AtomicU64::new(0),
            expedited: AtomicU64::new(0),
        }
    }

    /// Where those wait for whom `target` is the end.
    pub(crate) fn waiting_for(&self, target: Seq) -> &WaitQueue {
        &self.waiting[target.count() as usize % 2]
    }
}

/// Asks for the grace period that ends at `target`, unless it is under way or asked for.
///
/// Context: any but NMI, interrupts on or off; no thread is woken if they are off.
pub(crate) fn request(core: &Core, target: Seq, expedited: bool) {
    let irqs_were_on = irq::enabled();
    // In this order: the reschedule that a wake-up may ask for is looked at when interrupts are on again.
    let _pin = PreemptGuard::new(ATOMIC);
    let irqs = IrqGuard::new(ATOMIC);
    request_from(core, target, expedited, irqs_were_on, &irqs);
}

/// As [`request`], from a stretch with interrupts off that began with them on or off. A wish is carried on and the machine
/// started before it ends: others rely on it.
pub(crate) fn request_from(core: &Core, target: Seq, expedited: bool, irqs_were_on: bool, irqs: &IrqGuard<'_>) {
    let Some(launch) = core.funnel.climb(target, expedited, irqs) else { return };
    match launch {
        // Before `init` nobody can; it looks for itself.
        _ if !is_ready() => {}
        _ if !irqs_were_on => kick(core),
        Launch::Start { at_once: false } => run_in(core, sched::config::tick_ns()),
        Launch::Start { at_once: true } | Launch::Hurry => run_soon(core),
    }
}

/// Whether there is somebody to run grace periods.
pub(crate) fn is_ready() -> bool {
    QUEUE.get().is_some()
}

/// Has the machine started by an interrupt.
fn kick(core: &Core) {
    // AcqRel: pairs with the Release in `start_kicked`; the node has left the list.
    if !core.gp.kicked.swap(true, Ordering::AcqRel) {
        let core = core.hold().into_raw();
        // SAFETY: the hold goes with it; ours to add since the swap.
        unsafe { KICKED.add((&raw const (*core).gp.kick).cast_mut()) };
        KICK.queue();
    }
}

/// Context: hardirq.
fn start_kicked() {
    for node in KICKED.take_all() {
        // SAFETY: only kicks of domains are on the list, each with a hold.
        let core = unsafe { Hold::from_raw(node.byte_sub(offset_of!(Core, gp) + offset_of!(Gp, kick)).cast()) };
        // Release: pairs with the AcqRel in `kick`.
        core.gp.kicked.store(false, Ordering::Release);
        run_soon(&core);
    }
}

/// Has [`run`] called soon. Context: task, softirq, hardirq, not under a run queue's lock.
fn run_soon(core: &Core) {
    let queue = QUEUE.get().expect("asked before: is_ready");
    let hold = core.hold();
    // SAFETY: it stays in place while it is held, which the run takes over.
    if unsafe { queue.queue_raw(cpu::current(), &core.gp.work) } {
        hold.into_raw();
    }
}

/// Has [`run`] called in `ns`, if it is not called before. Context: as [`run_soon`].
fn run_in(core: &Core, ns: u64) {
    let hold = core.hold();
    // SAFETY: it stays in place while it is held, which the timer's function takes over.
    if !unsafe { core.gp.timer.arm_at_raw(clock::now_ns() + ns) } {
        hold.into_raw();
    }
}

/// The timer's function. Context: hardirq.
fn time_is_over(timer: &Timer) {
    let core = core::ptr::from_ref(timer);
    // SAFETY: only `Gp::timer` has this function, and it was armed with a hold.
    let core = unsafe { Hold::from_raw(core.byte_sub(offset_of!(Core, gp) + offset_of!(Gp, timer)).cast()) };
    run_soon(&core);
}

/// The work item's function.
fn run(item: &WorkItem, cx: &mut MaySleep) {
    let core = core::ptr::from_ref(item);
    // SAFETY: only `Gp::work` has this function, and it was queued with a hold.
    let core = unsafe { Hold::from_raw(core.byte_sub(offset_of!(Core, gp) + offset_of!(Gp, work)).cast()) };
    if core.gp.timer.cancel() {
        // SAFETY: the hold that the timer was armed with.
        drop(unsafe { Hold::from_raw(&raw const *core) });
    }
    core.funnel.grow_if_asked();
    if let Some(ns) = advance(&core, cx) {
        run_in(&core, ns);
    }
}

/// Goes on as far as it can be gone. In how many nanoseconds to go on; `None` if there is nothing to do.
fn advance(core: &Core, cx: &mut MaySleep) -> Option<u64> {
    loop {
        let now = core.gp.seq.current();
        match now.state() {
            FIRST_LOOK | SECOND_LOOK if !readers_are_gone(core, now, cx) => return Some(pause_ns(core, now)),
            FIRST_LOOK => {
                if !bug!("srcu.no_flip", "both looks are at the same index", "srcu.a_sleeping_* srcu_torture.*") {
                    order::flip::<order::All>(|| core.use_other_index());
                }
                core.gp.seq.store(Seq::from_raw(now.raw() - FIRST_LOOK + SECOND_LOOK));
            }
            SECOND_LOOK => {
                end(core, now);
                let ended = core.gp.seq.current();
                if core.funnel.wants_more(ended) && !core.funnel.is_expedited(ended) {
                    return Some(sched::config::tick_ns());
                }
            }
            _ if !core.funnel.goes_on(now) => return None,
            _ => {
                core.gp.seq.start();
            }
        }
        core.gp.in_vain.store(0, Ordering::Relaxed);
        sched::cond_resched(cx);
    }
}

/// Whether nobody is left at the index that is idle in this state; an expedited grace period looks more than once.
fn readers_are_gone(core: &Core, now: Seq, cx: &mut MaySleep) -> bool {
    let skipped = match now.state() {
        FIRST_LOOK => {
            bug!("srcu.one_index", "the idle index is not looked at", "srcu_readers.a_reader_that_was_stopped_*")
        }
        _ => bug!("srcu.no_second_look", "nobody looks after the flip", "srcu.a_sleeping_* srcu_torture.*"),
    };
    if skipped {
        return true;
    }
    let expedited = core.funnel.is_expedited(now);
    let looks = if expedited { config::LOOKS } else { 1 };
    (0..looks).any(|nth| {
        if nth > 0 {
            clock::udelay(config::LOOK_EVERY_US);
        }
        look(core, expedited, cx)
    })
}

/// One look at the idle index.
fn look(core: &Core, expedited: bool, cx: &mut MaySleep) -> bool {
    let idle = 1 - core.current_index();
    if !core.waits_for_rcu {
        return order::all_gone(|| core.unlocks(idle), <order::All as order::Barriers>::a, || core.locks(idle));
    }
    // To see that there is a reader costs no grace period of RCU.
    core.readers(idle) == 0
        && order::all_gone(
            || core.unlocks(idle),
            || mode::wait(if expedited { mode::Kind::Expedited } else { mode::Kind::Normal }, cx),
            || core.locks(idle),
        )
}

/// How long to leave the readers that were seen alone.
fn pause_ns(core: &Core, now: Seq) -> u64 {
    let in_vain = core.gp.in_vain.fetch_add(1, Ordering::Relaxed);
    let tick_ns = sched::config::tick_ns();
    pause(in_vain, core.funnel.is_expedited(now), tick_ns)
}

/// The pause after `in_vain` earlier looks of this state.
fn pause(in_vain: u32, expedited: bool, tick_ns: u64) -> u64 {
    if expedited {
        let doubled = config::FIRST_SLEEP_NS.checked_shl(in_vain).unwrap_or(u64::MAX);
        return if in_vain < 32 { doubled.min(tick_ns) } else { tick_ns };
    }
    tick_ns * u64::from(in_vain + 1).min(config::MAX_SLEEP_TICKS)
}

/// Ends the grace period that runs, as `now` says.
fn end(core: &Core, now: Seq) {
    if core.funnel.is_expedited(now) {
        core.gp.expedited.fetch_add(1, Ordering::Relaxed);
    }
    core.gp.count.fetch_add(1, Ordering::Relaxed);
    core.gp.ended_ns.store(clock::now_ns(), Ordering::Relaxed);
    let ended = core.gp.seq.end();
    callbacks::release(core);
    core.gp.waiting_for(ended).wake_all();
}

/// From here on grace periods run. Those that were asked for before begin.
pub(crate) fn init(cx: &mut MaySleep) {
    let queue = WorkQueue::create(cx, "srcu_gp", work::Kind::Unbound { max_active: MAX_ACTIVE });
    QUEUE.call_once(|| queue.expect("SRCU: no memory for a work queue"));
    registry::for_each(|core| {
        // What waits for a grace period that was an instant: the machine may have nothing left to do, and would not look.
        callbacks::release(core);
        if core.funnel.is_working() {
            run_soon(core);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 4_000_000;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        assert_eq!(pause(0, true, TICK), config::FIRST_SLEEP_NS);
        assert_eq!(pause(1, true, TICK), 2 * config::FIRST_SLEEP_NS);
        assert_eq!([20, 63, 64, u32::MAX - 1].map(|n| pause(n, true, TICK)), [TICK; 4]);
        assert_eq!([0, 1, 9, 10, u32::MAX - 1].map(|n| pause(n, false, TICK) / TICK), [1, 2, 10, 10, 10]);
    }
}
