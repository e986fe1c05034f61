//! Giving the CPU to another thread.
//!
//! One way in, [`pass`], in three guises: [`schedule`] (a thread gives up the CPU), and the two preemption hooks that
//! `sync` calls at the end of a preempt-off section and on the way out of an interrupt.
//!
//! The steps of a pass, all with interrupts off and the preemption count at exactly 1:
//!
//! 1. under the run-queue lock: clear `need_resched`, put the leaving thread back on its list or leave it off, take
//!    the most urgent one;
//! 2. lock dropped: tell RCU. It may take its own locks, because the run-queue lock is not held;
//! 3. change [`CURRENT`], switch stacks;
//! 4. on the new stack: [`finish_switch`] lets go of the thread that left.
//!
//! Invariants:
//!
//! * `SCHED-9`: every thread leaves its CPU with preemption count 1 and interrupts off, so whoever comes next finds
//!   them so; nothing of the count is saved per thread.
//! * `SCHED-10`: between step 1 and step 4 the thread that left may be woken or queued again, on this CPU only,
//!   because its `on_cpu` is still set (`SCHED-5`). This CPU takes it off its own list at the earliest after step 4,
//!   because interrupts are off.
//!
//! Linux: `__schedule`, `finish_task_switch`, `preempt_schedule`, `preempt_schedule_irq` in `kernel/sched/core.c`; there
//! the run-queue lock is held across the switch, here it is not: `on_cpu` carries the whole burden.

use core::ptr;
use core::sync::atomic::Ordering;

use arch::{irq, task};
use sync::context::{self, PREEMPT_OFFSET};
use sync::{MaySleep, events, lock_order};

use crate::hooks::hooks;
use crate::rq::RunQueue;
use crate::spawn;
use crate::stack_depth;
use crate::state::State;
use crate::thread::{CURRENT, Thread, current};
use crate::work;

arch::per_cpu! {
    /// The thread that this CPU is leaving, from step 3 to step 4.
    static LEAVING: *mut Thread = ptr::null_mut();
}

arch::per_cpu! {
    /// This CPU's idle thread; null until the CPU has entered the scheduler.
    pub(crate) static IDLE_THREAD: *mut Thread = ptr::null_mut();
}

/// Why a pass happens.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The thread itself wants it: it sleeps if it has announced so.
    Voluntary,
    /// The thread gives up the rest of its slice to its equals.
    Yield,
    /// Something more urgent waits, or the slice is over; an announced sleep does not count.
    Preempted,
}

/// Steps 1 to 4. Interrupts are off, the preemption count is 1.
#[inline(always)]
pub(crate) fn pass(why: Pass) {
    // One copy of the steps for each reason, without the questions that it answers.
    match why {
        Pass::Voluntary => pass_voluntary(),
        Pass::Yield => pass_yield(),
        Pass::Preempted => pass_preempted(),
    }
}

#[inline(never)]
fn pass_voluntary() {
    steps(Pass::Voluntary);
}

#[inline(never)]
fn pass_yield() {
    steps(Pass::Yield);
}

#[inline(never)]
fn pass_preempted() {
    steps(Pass::Preempted);
}

#[inline(always)]
fn steps(why: Pass) {
    debug_assert!(!irq::enabled());
    context::assert_may_switch();
    let prev = current();
    let next = choose(prev, why);
    let preempted = why == Pass::Preempted;
    if let Some(hooks) = hooks() {
        (hooks.context_switch)(prev, next, preempted);
    }
    if ptr::eq(prev, next) {
        return;
    }
    let counter = if preempted { &prev.involuntary } else { &prev.voluntary };
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    events::event(events::Kind::Switch, ptr::from_ref(next).addr());
    sync::trace!(
        "sched.switch",
        next = next.tid(),
        state = prev.state() as u64,
        name0 = next.name_word(0),
        name1 = next.name_word(1)
    );
    LEAVING.set(ptr::from_ref(prev).cast_mut());
    CURRENT.set(ptr::from_ref(next).cast_mut());
    lock_order::set_thread(&next.locks);
    let (save, load) = (prev.context.get().cast(), next.context.get().cast());
    // SAFETY: interrupts are off on both sides (SCHED-9). `save` belongs to this CPU, which runs `prev`; `load` was
    // filled by `prepare` or by the switch that `next` left with, and nobody else runs it: its `on_cpu` was clear
    // when it came here from another CPU, or it last left this very CPU, which has finished that switch (SCHED-5).
    unsafe { task::switch(save, load) };
    finish_switch();
}

/// Step 1.
#[inline(always)]
fn choose(prev: &'static Thread, why: Pass) -> &'static Thread {
    let rq = RunQueue::this();
    let mut inner = rq.lock();
    context::clear_need_resched();
    let stays = why == Pass::Preempted || prev.state() == State::Running;
    if prev.is_idle() {
        inner.put_current(prev);
    } else if stays {
        let over = why == Pass::Yield || inner.slice_is_over(prev);
        let level = inner.prio(prev).level();
        match inner.best_level() {
            Some(best) if best > level => {
                inner.put_current(prev);
                inner.enqueue(rq, prev, !over);
            }
            Some(best) if best == level && over => {
                let next = inner.rotate(prev);
                inner.set_current(next);
                return next;
            }
            _ => return prev,
        }
    } else {
        inner.end_slice(prev);
        inner.put_current(prev);
    }
    let next = inner.pop_best(rq).unwrap_or_else(|| {
        // SAFETY: set when this CPU entered the scheduler, and type-stable (SCHED-3).
        unsafe { &*IDLE_THREAD.get() }
    });
    inner.set_current(next);
    next
}

/// Step 4: lets go of the thread that this CPU has left. Also the first thing a new thread does.
#[inline(always)]
pub(crate) fn finish_switch() {
    // SAFETY: `pass` set it on this CPU just before the switch; type-stable (SCHED-3).
    let prev: &'static Thread = unsafe { &*LEAVING.xchg(ptr::null_mut()) };
    stack_depth::check(prev);
    let dead = prev.state() == State::Dead;
    // Release: pairs with the Acquire in `wake` and `find_movable`: the saved context and all that the thread did
    // before are there before another CPU may run it.
    prev.on_cpu.store(false, Ordering::Release);
    if dead {
        spawn::bury(prev);
    }
}

/// Gives up the CPU; sleeps if the thread has announced it. Returns when it has the CPU again.
///
/// Context: task, preemption and interrupts on; that is what the caller's token stands for.
pub(crate) fn schedule() {
    let thread = current();
    if thread.state() == State::Sleeping {
        work::about_to_sleep(thread);
    }
    give_up(Pass::Voluntary);
    work::runs_again(thread);
}

#[inline(always)]
fn give_up(why: Pass) {
    give_up_once(why);
    while context::need_resched() {
        give_up_once(Pass::Voluntary);
    }
}

#[inline(always)]
fn give_up_once(why: Pass) {
    context::count_add(PREEMPT_OFFSET);
    // Interrupts are on, as the caller's token says.
    irq::disable();
    pass(why);
    irq::enable();
    context::count_sub(PREEMPT_OFFSET);
}

/// The running thread gives up its CPU for good. It must not be preempted once it is dead: whoever switches away from
/// a dead thread buries it.
///
/// Context: task, preemption and interrupts on, with nothing left to do.
pub(crate) fn leave_for_ever() -> ! {
    context::count_add(PREEMPT_OFFSET);
    irq::disable();
    current().state.set_dead();
    pass(Pass::Voluntary);
    unreachable!("a dead thread was given a CPU");
}

/// Hook: preemption has become possible and is wanted. Task context, interrupts on, count 0.
pub(crate) fn preempt_schedule() {
    while context::need_resched() {
        context::count_add(PREEMPT_OFFSET);
        irq::disable();
        pass(Pass::Preempted);
        irq::enable();
        context::count_sub(PREEMPT_OFFSET);
    }
}

/// Hook: an interrupt returns to preemptible code and a reschedule is wanted. Interrupts off before and after, count 0.
pub(crate) fn preempt_schedule_irq() {
    while context::need_resched() {
        context::count_add(PREEMPT_OFFSET);
        pass(Pass::Preempted);
        context::count_sub(PREEMPT_OFFSET);
    }
}

/// Lets other threads of the same or a higher priority run.
///
/// Context: task; may sleep only in the sense that others run.
pub fn yield_now(cx: &mut MaySleep) {
    cx.assert_may_sleep();
    give_up(Pass::Yield);
}

/// A place in a long loop where the thread offers the CPU, if somebody is due. Also a quiescent state for RCU.
///
/// Context: task.
pub fn cond_resched(cx: &mut MaySleep) {
    cx.assert_may_sleep();
    if context::need_resched() {
        schedule();
    }
}
