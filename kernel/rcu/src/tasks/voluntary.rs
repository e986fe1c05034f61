//! Tasks: wait until each thread has passed a voluntary switch.
//!
//! A grace period, in the thread `rcu_tasks`:
//!
//! 1. An ordinary grace period. Every switch that was under way at the call is complete as far as others can see, and
//!    every switch from here on sees what was done before the call.
//! 2. Each thread that may be in the midst of something becomes a *holdout*: its word gets [`WANTED`]. Left alone are idle
//!    threads, this one, and those that are off their CPU by a voluntary switch ([`has_left`]).
//! 3. The holdouts are looked at again, after longer and longer pauses, until none is left: a voluntary switch clears the
//!    word; and one that was in the midst of its switch in step 2 is seen to have left.
//! 4. An ordinary grace period, so that what the holdouts did before their switch is before what follows; and for code
//!    that cannot be preempted: interrupts on idle CPUs, and the last steps of threads that end.
//!
//! Nothing of this interrupts or wakes a thread or a CPU. Threads that start after step 1 start outside of everything.
//!
//! Each [`ThreadRcu::holdout`](sched::ThreadRcu) is two bits:
//!
//! | bit | set by | cleared by |
//! |---|---|---|
//! | [`PREEMPTED`] | the thread's CPU, when it switches away from it involuntarily | its next voluntary switch |
//! | [`WANTED`] | `rcu_tasks`, step 2 | its next voluntary switch; `rcu_tasks`, when it sees it gone |
//!
//! Invariants
//! - TASK-1: a thread that is off its CPU without `PREEMPTED` has left it by a voluntary switch and not run since, or passed
//!   one after it was seen off: `PREEMPTED` is set before `on_cpu` is cleared, and cleared by voluntary switches only.
//! - TASK-2: callbacks run in the order in which they were queued, in one thread. So one that has run says that all before
//!   it have: the barrier is no more than that.
//!
//! A bit that a thread's end leaves behind delays a grace period until the next tenant's first voluntary switch at most.
//!
//! Contexts: queueing any, NMI included; waiting in tasks.

use core::ptr;
use core::sync::atomic::{Ordering, fence};

use sched::{Completion, Prio, Thread, WaitQueue, thread, watchdog};
use sync::callback::{CallbackFn, CallbackHead};
use sync::{IrqWork, LlistHead, LlistNode, MaySleep, SoftirqGuard};

use crate::sync_gp::synchronize_rcu;

/// The thread has lost its CPU since its last voluntary switch.
const PREEMPTED: u64 = 1 << 0;
/// The grace period waits for its next one.
const WANTED: u64 = 1 << 1;

/// Pause before the second look at the holdouts. Most threads switch within a slice.
const FIRST_PAUSE_NS: u64 = 1_000_000;
/// Pauses double up to this.
const LAST_PAUSE_NS: u64 = 100_000_000;

/// Callbacks that no grace period has taken yet, newest first.
static QUEUED: LlistHead = LlistHead::new();
/// Where `rcu_tasks` sleeps while nothing is queued.
static NEWS: WaitQueue = WaitQueue::new();
/// Wakes it from wherever something was queued: under a run-queue lock, or in an NMI.
static WAKE: IrqWork = IrqWork::new(|_| {
    NEWS.wake_one();
});

/// Calls `func(head)` after a Tasks grace period: when each thread has passed a voluntary switch since now.
///
/// `func` runs once, in the thread `rcu_tasks` with softirqs off, and may free the memory around `head` or queue it again.
///
/// Context: any, NMI included. Lock-free; never allocates.
///
/// # Safety
/// `head` is valid, and nobody else uses it, until `func` is called with it; `func` may be called with it on any CPU.
pub unsafe fn call_rcu_tasks(head: *mut CallbackHead, func: CallbackFn) {
    debug_assert!(!head.is_null() && head.is_aligned(), "RCU: no such callback {head:?}");
    // SAFETY: `head` is valid and ours by the caller.
    unsafe { (*head).func = Some(func) };
    // SAFETY: as above, until it is taken off; its first word is the link of a lock-less list (CB-2).
    let first = unsafe { QUEUED.add(head.cast::<LlistNode>()) };
    if first {
        WAKE.queue();
    }
}

/// Waits until each thread has passed a voluntary switch since the call, or is off its CPU by one.
///
/// Context: task, sleeps; for long if a thread computes without sleeping.
pub fn synchronize_rcu_tasks(cx: &mut MaySleep) {
    #[repr(C)]
    struct Waiter {
        /// First, so that a head is its waiter.
        head: CallbackHead,
        done: Completion,
    }
    /// # Safety
    /// `head` is that of a `Waiter` whose thread waits.
    unsafe fn wake(head: *mut CallbackHead) {
        // SAFETY: by the caller; the head is the first field, and nobody writes `done` otherwise than by its methods.
        unsafe { &(*head.cast::<Waiter>()).done }.complete();
    }
    cx.assert_may_sleep();
    let mut waiter = Waiter { head: CallbackHead::new(), done: Completion::new() };
    let waiter = &raw mut waiter;
    // SAFETY: the waiter stays on this stack until `done`, which is the last that the callback touches.
    unsafe { call_rcu_tasks(waiter.cast(), wake) };
    // SAFETY: as above; the callback uses `head` and `done` only.
    unsafe { &(*waiter).done }.wait(cx);
}

/// Waits until all callbacks that [`call_rcu_tasks`] has queued before have run.
///
/// Context: task, sleeps.
pub fn rcu_barrier_tasks(cx: &mut MaySleep) {
    // TASK-2.
    synchronize_rcu_tasks(cx);
}

/// [`sched::cond_resched`], and a voluntary switch as far as Tasks RCU is concerned, also if nobody wants the CPU. For
/// loops that compute for long.
///
/// Context: task.
pub fn cond_resched_tasks(cx: &mut MaySleep) {
    clear(sched::current());
    sched::cond_resched(cx);
}

/// The CPU passes through the scheduler. Context: the scheduler's hook, interrupts off.
#[inline(always)]
pub(crate) fn switched(prev: &Thread, next: &Thread, preempted: bool) {
    if !preempted {
        clear(prev);
    } else if !ptr::eq(prev, next) {
        // Before `on_cpu` is cleared (TASK-1), whose Release orders it.
        prev.rcu.holdout.fetch_or(PREEMPTED, Ordering::Relaxed);
    }
}

/// A voluntary switch. (A `WANTED` that comes between the two steps is cleared by a switch that is after it all the same.)
#[inline(always)]
fn clear(thread: &Thread) {
    let word = &thread.rcu.holdout;
    if word.load(Ordering::Relaxed) != 0 {
        // Release: pairs with the Acquire in `is_held_up`: what the thread did before is before the grace period's end.
        word.store(0, Ordering::Release);
    }
}

/// Starts the thread. Context: [`crate::init`].
pub(crate) fn init(cx: &mut MaySleep) {
    let spawned = sched::spawn(cx, "rcu_tasks", Prio::NORMAL, None, run);
    spawned.expect("RCU: no memory for the thread rcu_tasks").detach();
}

/// The thread `rcu_tasks`.
fn run(cx: &mut MaySleep) {
    loop {
        {
            let _idling = watchdog::idling();
            NEWS.wait_until(cx, || !QUEUED.is_empty());
        }
        let batch = QUEUED.take_all().reversed();
        grace_period(cx);
        for node in batch {
            invoke(node.cast(), cx);
            sched::cond_resched(cx);
        }
    }
}

/// Calls a callback that is on no list any more.
fn invoke(head: *mut CallbackHead, cx: &MaySleep) {
    let _softirqs_off = SoftirqGuard::new(cx);
    // SAFETY: it was queued, so it is valid and its function was set.
    let func = unsafe { (*head).func }.expect("RCU: a callback lost its function");
    // SAFETY: `call_rcu_tasks`'s caller promised that the function may be called with its head on any CPU.
    unsafe { func(head) };
}

/// Steps 1 to 4.
fn grace_period(cx: &mut MaySleep) {
    synchronize_rcu(cx);
    thread::for_each(|thread| {
        if may_be_inside(thread) {
            thread.rcu.holdout.fetch_or(WANTED, Ordering::Relaxed);
        }
    });
    let mut pause = FIRST_PAUSE_NS;
    while is_held_up() {
        sched::sleep_ns(cx, pause);
        pause = (2 * pause).min(LAST_PAUSE_NS);
    }
    synchronize_rcu(cx);
}

/// Whether step 2 has to wait for a thread.
fn may_be_inside(thread: &'static Thread) -> bool {
    if sync::bug!("rcu.tasks_running", "Tasks RCU does not wait for threads that run", "rcu_tasks.*") && thread.on_cpu()
    {
        return false;
    }
    !thread.is_idle() && !ptr::eq(thread, sched::current()) && !has_left(thread)
}

/// Whether a holdout is left.
fn is_held_up() -> bool {
    let mut held_up = false;
    thread::for_each(|thread| {
        // Acquire: pairs with the Release in `clear`.
        if thread.rcu.holdout.load(Ordering::Acquire) & WANTED == 0 {
            return;
        }
        if has_left(thread) {
            thread.rcu.holdout.fetch_and(!WANTED, Ordering::Relaxed);
        } else {
            held_up = true;
        }
    });
    held_up
}

/// Whether a thread is off its CPU by a voluntary switch, or has passed one since the call.
fn has_left(thread: &Thread) -> bool {
    if thread.on_cpu() {
        return false;
    }
    // Acquire: pairs with the Release with which `on_cpu` is cleared: PREEMPTED is seen if it was set before (TASK-1).
    fence(Ordering::Acquire);
    thread.rcu.holdout.load(Ordering::Relaxed) & PREEMPTED == 0
        || sync::bug!("rcu.tasks_preempted", "Tasks RCU takes a preempted thread for one that sleeps", "rcu_tasks.*")
}
