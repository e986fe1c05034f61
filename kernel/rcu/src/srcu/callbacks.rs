//! `call_srcu`: have a function called after a grace period of a domain.
//!
//! A callback goes onto the list of its CPU and domain ([`CbList`]), is tagged there and then, and its grace period asked for. The
//! end of a grace period looks at all CPUs' lists, and has a work item run what is done, on the CPU where it was queued,
//! or elsewhere if that is offline.
//!
//! A flood of them makes the grace period that the latest needs an expedited one: see [`super::flood`] (S3-29).
//!
//! Invariants
//! - SCB-1: no callback is without a tag outside of the list's lock. The tag is snapped *before* the list is advanced, so that two
//!   segments always have room for it; the other way round grace periods that end and begin in between make it one too
//!   many, and the callbacks stay behind until somebody queues another (S5-11). (Here the end of a grace period takes the
//!   lock of each list that is not empty before the next one begins, so only one can end in between, and there would
//!   be room either way. The order does not rely on it.)
//! - SCB-2: what is done is run: whatever makes a list's done segment not empty has the work item queued, or is it.
//!
//! Contexts: queueing any but NMI; functions run in a thread with softirqs off, so they may not sleep. Rows,
//! S3-29, S5-11. Answers to Linux kernel/rcu/srcutree.c (`__call_srcu`, `srcu_invoke_callbacks`).

use core::mem::offset_of;
use core::ptr;

use arch::{CpuId, clock, cpu, irq};
use sched::{WorkItem, WorkQueue, work};
use sync::atomic::Ordering;
use sync::callback::{CallbackFn, CallbackHead};
use sync::{ATOMIC, IrqGuard, MaySleep, Once, PreemptGuard, SoftirqGuard, bug, context};

use super::cpu::CpuData;
use super::domain::{Core, Hold, SrcuDomain};
use super::flavour::Flavour;
use super::gp;
use crate::cblist::{CbList, Tag};
use crate::seq::{Seq, SeqCounter};

/// Items that may be under way at once on each CPU: one a domain. They do not sleep.
const MAX_ACTIVE: u32 = 256;

/// The queue of the items.
static QUEUE: Once<WorkQueue> = Once::new();

/// Calls `func(head)` after a grace period of `domain`: when every reader that is in its section there now has left it.
///
/// `func` runs once, in a thread with softirqs off, on the CPU of the call unless that is offline; it may not sleep. It may free
/// the memory around `head` or queue it again.
///
/// Context: any but NMI, interrupts on or off, under any lock that `srcu.list` may be taken in, before threads exist. Takes that
/// lock, of this CPU, and perhaps those of nodes, one at a time. With interrupts off it wakes no thread. Never allocates.
///
/// # Safety
/// `head` is valid, and nobody else uses it, until `func` is called with it; `func` may be called with it on any CPU.
pub unsafe fn call_srcu<F: Flavour>(domain: &SrcuDomain<F>, head: *mut CallbackHead, func: CallbackFn) {
    // SAFETY: passed on from the caller.
    unsafe { domain.core().call(head, func) };
}

impl Core {
    /// [`call_srcu`] for who does not care for the flavour.
    ///
    /// # Safety
    /// As for [`call_srcu`].
    pub unsafe fn call(&self, head: *mut CallbackHead, func: CallbackFn) {
        debug_assert!(!context::in_nmi(), "SRCU: call_srcu in NMI context");
        debug_assert!(!head.is_null() && head.is_aligned(), "SRCU: no such callback {head:?}");
        let irqs_were_on = irq::enabled();
        // In this order: the reschedule that a wake-up may ask for is looked at when interrupts are on again.
        let _pin = PreemptGuard::new(ATOMIC);
        let irqs = IrqGuard::new(ATOMIC);
        // SAFETY: `head` is valid and ours by the caller.
        unsafe { (*head).func = Some(func) };
        // SAFETY: passed on from the caller; it leaves the list in `run`, before its function is called.
        let (target, expedited, is_news) = unsafe { enqueue(self, head) };
        if is_news {
            gp::request_from(self, target, expedited, irqs_were_on, &irqs);
        }
    }
}

/// Queues and tags; what to ask for, whether in a hurry, and whether this CPU has not asked for it before. Interrupts are off.
///
/// # Safety
/// As for [`call_srcu`]; the function is set.
unsafe fn enqueue(core: &Core, head: *mut CallbackHead) -> (Seq, bool, bool) {
    let here = core.on(cpu::current());
    let mut list = here.lock();
    // SAFETY: passed on from the caller.
    unsafe { list.cbs.enqueue(head) };
    // Before the snapshot: a grace period that begins after it sees that there are callbacks here when it ends.
    here.publish_len(&list);
    let target = tag(&mut list.cbs, &core.gp.seq);
    let waiting = list.cbs.len();
    let expedited = list.flood.queued(waiting, clock::now_ns());
    if expedited {
        here.floods.fetch_add(1, Ordering::Relaxed);
    }
    let is_news = list.asked.before(target) || expedited;
    list.asked = list.asked.later(target);
    (target, expedited, is_news)
}

/// Tags what has just been queued, by its grace period's counter, and advances the rest; where the grace period ends (SCB-1).
fn tag(cbs: &mut CbList, seq: &SeqCounter) -> Seq {
    // In this order: snap, advance, accelerate.
    let target = seq.snap();
    advance(cbs, seq);
    if bug!("srcu.stranded", "what comes while others wait gets no tag", "srcu.callbacks_are_*")
        && cbs.first_tag().is_some()
    {
        return target;
    }
    let tagged = cbs.accelerate(Tag::without_exp(target));
    debug_assert!(tagged, "S5-11: no segment has room for callbacks that wait for {target:?}");
    target
}

/// Moves what is over to where it can be run.
fn advance(cbs: &mut CbList, seq: &SeqCounter) {
    cbs.advance(|tag| tag.is_over(|end| seq.done(end), |_| false));
}

/// A grace period has ended: has callbacks run, on all CPUs that have any that are done. Context: the machine.
pub(super) fn release(core: &Core) {
    for (cpu, data) in core.cpus().filter(|(_, data)| data.len() != 0) {
        let is_done = {
            let mut list = data.lock();
            advance(&mut list.cbs, &core.gp.seq);
            if bug!("srcu.lost_callback", "the first of several is forgotten", "srcu.callbacks_of_all_cpus_*") {
                let mut done = list.cbs.take_done();
                if done.len() > 1 {
                    done.pop();
                    list.cbs.ran(1);
                }
                list.cbs.put_back(done);
            }
            list.cbs.has_done()
        };
        if is_done {
            run_on(core, cpu);
        }
    }
}

/// Has the callbacks of `cpu` run that are done.
pub(super) fn run_on(core: &Core, cpu: CpuId) {
    let data = core.on(cpu);
    data.domain.store(ptr::from_ref(core).cast_mut(), Ordering::Relaxed);
    let queue = QUEUE.get().expect("grace periods end after init");
    let hold = core.hold();
    // SAFETY: it stays in place while the domain is held, which the run takes over.
    if unsafe { queue.queue_raw(cpu, &data.work) } {
        hold.into_raw();
    }
}

/// The work item's function.
pub(super) fn run(item: &WorkItem, cx: &mut MaySleep) {
    // SAFETY: only `CpuData::work` has this function.
    let data = unsafe { &*ptr::from_ref(item).byte_sub(offset_of!(CpuData, work)).cast::<CpuData>() };
    // SAFETY: `run_on` has written it before it queued the item with a hold.
    let core = unsafe { Hold::from_raw(data.domain.load(Ordering::Relaxed)) };
    loop {
        let mut taken = data.lock().cbs.take_done();
        if taken.is_empty() {
            return;
        }
        let ran = taken.len();
        while let Some(head) = taken.pop() {
            let no_softirqs = SoftirqGuard::new(cx);
            // SAFETY: it was queued, so it is valid and its function was set; it is off every list and goes to it now.
            let func = unsafe { (*head).func };
            let func = func.expect("SRCU: a callback lost its function (queued twice, or written after call_srcu?)");
            // SAFETY: `call_srcu`'s caller promised that the function may be called with its head on any CPU.
            unsafe { func(head) };
            drop(no_softirqs);
            sched::cond_resched(cx);
        }
        data.ran.fetch_add(ran as u64, Ordering::Relaxed);
        {
            let mut list = data.lock();
            list.cbs.ran(ran);
            data.publish_len(&list);
        }
        // Relaxed: this item set it, if it was set.
        if data.barrier_ran.swap(false, Ordering::Relaxed) {
            core.barrier.one_less();
        }
    }
}

/// From here on callbacks can be run. Before grace periods can end.
pub(super) fn init(cx: &mut MaySleep) {
    let queue = WorkQueue::create(cx, "srcu", work::Kind::PerCpu { max_active: MAX_ACTIVE });
    QUEUE.call_once(|| queue.expect("SRCU: no memory for a work queue"));
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[derive(Copy, Clone, Debug)]
    enum Op {
        /// So many callbacks are queued, one at a time.
        Queue(usize),
        /// The machine takes its next step.
        Step,
        /// The machine has what is done run, as at the end of a grace period.
        Release,
    }

    proptest! {
        /// S5-11: whatever the machine does in between, each callback is tagged at once, and done when its grace period is.
        #[test]
        fn every_callback_is_tagged_when_it_is_queued(
            ops in prop::collection::vec(
                prop_oneof![(1..4_usize).prop_map(Op::Queue), Just(Op::Step), Just(Op::Release)], 0..200))
        {
            let (mut cbs, seq) = (CbList::new(), SeqCounter::new());
            let mut heads: Vec<_> = (0..800).map(|_| CallbackHead::new()).collect();
            let mut unused = heads.iter_mut();
            let (mut targets, mut ran) = (Vec::new(), 0);
            for op in ops {
                match op {
                    Op::Queue(n) => for _ in 0..n {
                        // SAFETY: it stays until the list is gone, and is queued once.
                        unsafe { cbs.enqueue(unused.next().expect("enough for all")) };
                        targets.push(tag(&mut cbs, &seq));
                        prop_assert!(!cbs.has_untagged());
                    },
                    Op::Step if seq.current().is_running() => _ = seq.end(),
                    Op::Step => _ = seq.start(),
                    Op::Release => {
                        advance(&mut cbs, &seq);
                        let mut taken = cbs.take_done();
                        while taken.pop().is_some() {
                            prop_assert!(seq.done(targets[ran]), "callback {ran} is run before its grace period is over");
                            ran += 1;
                            cbs.ran(1);
                        }
                        // Two targets at most are to come, and each segment takes one.
                        let over = targets[ran..].iter().filter(|&&target| seq.done(target)).count();
                        prop_assert_eq!(over, 0, "done, and left behind");
                    }
                }
            }
        }
    }
}
