//! Waking threads, and finding them a CPU.
//!
//! The protocol and the reason why no wake-up is lost stand in [`crate::state`]; this is its locked half.
//!
//! Contexts: [`wake`] from task, softirq and hardirq context, with interrupts on or off, under any lock but a run-queue
//! lock. It takes one run-queue lock at a time, never sleeps and never allocates. From NMI context it is a bug: an NMI handler
//! queues an `IrqWork` that wakes.
//!
//! Linux: `try_to_wake_up`, `select_task_rq`, in `kernel/sched/core.c`.

use core::sync::atomic::Ordering;

use arch::{CpuId, CpuMask, cpu, ipi, vector};
use sync::{ATOMIC, IrqGuard, PreemptGuard, SpinGuard, bug, context, events, explore};

use crate::affinity::{ACTIVE, place_elsewhere};
use crate::rq::{IDLE_CPUS, Inner, Place, RunQueue, kick, lock_of};
use crate::stop;
use crate::thread::Thread;

/// Wakes `thread` if it sleeps or is about to. True if this call did it.
///
/// A full barrier, whatever it returns: what the caller wrote before is seen by the thread when it looks at its
/// condition (`SCHED-1`). May be spurious for the thread, which looks at its condition in a loop.
///
/// Context: any but NMI; takes run-queue locks.
///
/// # Panics
///
/// In checking builds, when called from NMI context.
#[inline]
pub fn wake(thread: &'static Thread) -> bool {
    debug_assert!(!context::in_nmi(), "a wake-up in NMI context must go through irq_work");
    explore::point();
    thread.state.seen_sleeping() && wake_sleeping(thread)
}

fn wake_sleeping(thread: &'static Thread) -> bool {
    // In this order: the reschedule that `kick` may ask for is looked at when interrupts are on again.
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    let (rq, mut inner) = lock_of(thread);
    if bug!("sched.wake_up_lost", "a thread that is woken on its way to sleep sleeps", "sched_torture")
        && inner.place(thread) != Place::Off
    {
        return false;
    }
    if !thread.state.wake_under_lock() {
        return false;
    }
    events::event(events::Kind::WakeUp, core::ptr::from_ref(thread).addr());
    if inner.place(thread) != Place::Off {
        // It has not got round to giving up its CPU, or was preempted on the way, and may be on its way to another since: it
        // finds itself `Running`.
        return true;
    }
    // Acquire: pairs with the Release in `finish_switch` (SCHED-5). While its last CPU is still leaving its stack,
    // the thread stays there.
    if thread.on_cpu.load(Ordering::Acquire) {
        let misplaced = !inner.suits(thread);
        let home = thread.cpu();
        queue_on(rq, inner, thread, home);
        if misplaced {
            stop::ask_for_push(home);
        }
    } else {
        place(rq, inner, thread);
    }
    true
}

/// Queues an `Off`, runnable thread that belongs to `rq` where it should run next.
fn place(rq: &'static RunQueue, mut inner: SpinGuard<'static, Inner>, thread: &'static Thread) {
    let home = thread.cpu();
    let target = select_cpu(&mut inner, thread);
    if target == home {
        place_on(rq, inner, thread, home);
    } else {
        inner.send_to(thread, target);
        drop(inner);
        let rq = RunQueue::of(target);
        place_on(rq, rq.lock(), thread, target);
    }
}

/// Queues an `Off` or `Moving`, runnable thread that belongs to `rq` there, if it may run there, else elsewhere (`SCHED-23`).
#[inline]
fn place_on(rq: &'static RunQueue, mut inner: SpinGuard<'static, Inner>, thread: &'static Thread, cpu: CpuId) {
    if inner.suits(thread) {
        queue_on(rq, inner, thread, cpu);
    } else {
        // It may have been claimed for this thread: then it is to say again that it idles.
        kick(&inner, cpu);
        place_elsewhere(inner, thread);
    }
}

/// Queues an `Off` or `Moving` thread that belongs to `rq` and has the CPU look at it if it is more urgent.
#[inline]
pub(crate) fn queue_on(rq: &'static RunQueue, mut inner: SpinGuard<'_, Inner>, thread: &'static Thread, cpu: CpuId) {
    inner.enqueue(rq, thread, false);
    if inner.should_preempt(thread) {
        kick(&inner, cpu);
    }
}

/// Puts a thread that has never run on a CPU's queue. The caller owns the thread and has set its identity and priority.
pub(crate) fn place_new(thread: &'static Thread) {
    // In this order: the reschedule that `kick` may ask for is looked at when interrupts are on again.
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    let (rq, inner) = lock_of(thread);
    place(rq, inner, thread);
}

/// Where a thread should run next: where it must stay or is bound; where it was, if that CPU idles; an idle CPU, one of
/// the same node first; else where it was, or on the first CPU where it may.
fn select_cpu(inner: &mut Inner, thread: &Thread) -> CpuId {
    let home = thread.cpu();
    if thread.stays() {
        return home;
    }
    if let Some(bound) = thread.bound_to() {
        return bound;
    }
    let mut idle = IDLE_CPUS.load();
    if !thread.is_unbound() {
        let allowed = inner.allowed(thread);
        idle = idle & allowed;
        if idle.is_empty() && !allowed.contains(home) {
            return (allowed & ACTIVE.load()).first().unwrap_or(home);
        }
    }
    if idle.is_empty() || (idle.contains(home) && IDLE_CPUS.clear(home)) {
        return home;
    }
    claim_idle(idle, home).unwrap_or(home)
}

/// Claims one of the CPUs `idle`, which idled a moment ago, unless others have claimed them all; one of `near`'s node first.
fn claim_idle(idle: CpuMask, near: CpuId) -> Option<CpuId> {
    let is_near = |cpu: &CpuId| cpu::node_of(*cpu) == cpu::node_of(near);
    let claim = |cpu: &CpuId| IDLE_CPUS.clear(*cpu);
    idle.iter().filter(is_near).find(claim).or_else(|| idle.iter().find(claim))
}

/// Has an idle CPU come and fetch a thread that waits on this CPU's queue, if there are both.
///
/// Context: the tick, under this CPU's run-queue lock.
pub(crate) fn call_idle(inner: &mut Inner, here: CpuId) {
    let idle = IDLE_CPUS.load();
    if idle.is_empty() {
        return;
    }
    if let Some(thread) = inner.find_movable(idle)
        && let Some(cpu) = claim_idle(idle & inner.allowed(thread), here)
    {
        // Its idle loop starts over: it says again that it idles, and pulls.
        ipi::send(cpu, vector::RESCHEDULE);
    }
}

/// Fetches a thread that waits on another CPU's queue to this one, which is idle. True if one came.
///
/// Context: idle thread, interrupts off.
pub(crate) fn pull_to_idle(here: CpuId) -> bool {
    if !ACTIVE.test(here) {
        return false;
    }
    let mut others = cpu::online() - CpuMask::of(here);
    // The busiest first; what waits there may all have to stay there.
    while let Some(busiest) = others.iter().max_by_key(|cpu| RunQueue::of(*cpu).queued()) {
        let from = RunQueue::of(busiest);
        if from.queued() == 0 {
            return false;
        }
        if let Some(thread) = take_movable(from, here) {
            let rq = RunQueue::this();
            place_on(rq, rq.lock(), thread, here);
            return true;
        }
        others.remove(busiest);
    }
    false
}

/// Sends a thread that waits on `from` to the CPU `here`.
fn take_movable(from: &RunQueue, here: CpuId) -> Option<&'static Thread> {
    let mut inner = from.lock();
    let thread = inner.find_movable(CpuMask::of(here))?;
    if bug!("sched.rq_let_go", "a run queue is unlocked between the look for a thread and its removal", "sched_torture")
    {
        drop(inner);
        (0..1_000).for_each(|_| arch::irq::relax());
        inner = from.lock();
    }
    inner.dequeue(from, thread);
    inner.send_to(thread, here);
    Some(thread)
}
