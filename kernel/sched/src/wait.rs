//! Waiting: wait queues, completions, sleeping for a time.
//!
//! Key types: [`WaitQueue`] (wait until a condition holds), [`Completion`] (wait until somebody says so), [`sleep_ns`].
//!
//! Every wait has the shape that [`crate::state`] proves right: be findable, announce the sleep, look at the condition,
//! only then give up the CPU; the waker makes the condition true, then wakes. Wake-ups may be spurious, so each wait is
//! a loop.
//!
//! Invariant `SCHED-48`: no `wake_one` is lost. Whoever one takes off a queue sleeps only after another look at its condition,
//! and if it leaves without having queued again, it passes the wake-up on to the next.
//!
//! Locks: a queue's lock may be taken in hardirq context, so it is always taken with interrupts off. It nests outside
//! the timer base and run-queue locks: wake-ups happen under it, which is what keeps a waiter's stack entry alive
//! while a waker looks at it.
//!
//! Contexts: waiting in task context with the token; waking from task, softirq and hardirq context. Nothing allocates.
//!
//! Linux: `kernel/sched/wait.c`, `kernel/sched/completion.c`.

use core::cell::Cell;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

use arch::{clock, irq};
use sync::{ATOMIC, LockClass, MaySleep, SpinLock, bug};

use crate::switch::schedule;
use crate::thread::{Thread, current};
use crate::timer::Timer;
use crate::wake::wake;

/// Protects the list of waiters of a [`WaitQueue`] or the whole of a [`Completion`]. Inside it: timer base, run queue.
static WAIT_CLASS: LockClass = LockClass::new("sched.wait");

/// A thread that waits; on its stack, in at most one list. All fields but `thread` are guarded by that list's lock.
pub(crate) struct Waiter {
    pub(crate) thread: &'static Thread,
    queued: Cell<bool>,
    next: Cell<*const Waiter>,
    prev: Cell<*const Waiter>,
}

impl Waiter {
    /// The running thread as a waiter, in no list.
    pub(crate) fn me() -> Waiter {
        Waiter {
            thread: current(),
            queued: Cell::new(false),
            next: Cell::new(ptr::null()),
            prev: Cell::new(ptr::null()),
        }
    }
}

/// Waiters, first come first.
pub(crate) struct WaiterList {
    first: *const Waiter,
    last: *const Waiter,
}

// SAFETY: the pointers are to waiters whose threads cannot leave their wait without taking the list's lock.
unsafe impl Send for WaiterList {}

impl WaiterList {
    pub(crate) const fn new() -> WaiterList {
        WaiterList { first: ptr::null(), last: ptr::null() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// Appends `waiter` unless it is in the list. True if it was not.
    ///
    /// # Safety
    ///
    /// `waiter` stays where it is until it has left the list, and is used with this list's lock only.
    pub(crate) unsafe fn push(&mut self, waiter: &Waiter) -> bool {
        if waiter.queued.replace(true) {
            return false;
        }
        waiter.prev.set(self.last);
        waiter.next.set(ptr::null());
        // SAFETY: null, or in the list and so in place.
        match unsafe { self.last.as_ref() } {
            Some(last) => last.next.set(waiter),
            None => self.first = waiter,
        }
        self.last = waiter;
        true
    }

    /// Takes `waiter` out if it is in. True if it was.
    pub(crate) fn remove(&mut self, waiter: &Waiter) -> bool {
        if !waiter.queued.replace(false) {
            return false;
        }
        let (next, prev) = (waiter.next.get(), waiter.prev.get());
        // SAFETY: null, or in the list and so in place.
        match unsafe { prev.as_ref() } {
            Some(prev) => prev.next.set(next),
            None => self.first = next,
        }
        // SAFETY: as above.
        match unsafe { next.as_ref() } {
            Some(next) => next.prev.set(prev),
            None => self.last = prev,
        }
        true
    }

    /// Takes the first waiter out. It stays in place while the list's lock is held.
    pub(crate) fn pop(&mut self) -> Option<&Waiter> {
        // SAFETY: null, or in the list and so in place.
        let waiter = unsafe { self.first.as_ref() }?;
        self.remove(waiter);
        Some(waiter)
    }

    /// The waiters in order. They stay in place while the list's lock is held.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Waiter> {
        // SAFETY: null, or in the list and so in place.
        let mut at = unsafe { self.first.as_ref() };
        core::iter::from_fn(move || {
            let waiter = at?;
            // SAFETY: as above.
            at = unsafe { waiter.next.get().as_ref() };
            Some(waiter)
        })
    }
}

/// Threads that wait until a condition of the caller's holds.
pub struct WaitQueue {
    list: SpinLock<WaiterList>,
    /// Length of the list, written under its lock; read without it by wakers that find nobody.
    waiters: AtomicUsize,
}

impl WaitQueue {
    /// A queue with nobody in it.
    pub const fn new() -> WaitQueue {
        WaitQueue { list: SpinLock::new(WaiterList::new(), &WAIT_CLASS), waiters: AtomicUsize::new(0) }
    }

    /// Sleeps until `cond` holds. Whoever makes it true calls [`WaitQueue::wake_one`] or [`WaitQueue::wake_all`] after
    /// that. `cond` is called without any lock, any number of times; it may take spin locks, and it may consume
    /// what it finds (it is not called again once it has returned true).
    ///
    /// Context: task, sleeps.
    pub fn wait_until(&self, cx: &mut MaySleep, mut cond: impl FnMut() -> bool) {
        cx.assert_may_sleep();
        if cond() {
            return;
        }
        let waiter = Waiter::me();
        let thread = waiter.thread;
        loop {
            self.enter(&waiter);
            if cond() {
                break;
            }
            schedule();
        }
        thread.state.set_running();
        self.leave(&waiter);
    }

    /// As [`WaitQueue::wait_until`], for `ns` nanoseconds at most. True if `cond` held, false if time ran out.
    ///
    /// Context: task, sleeps.
    #[must_use = "after a time-out the condition does not hold"]
    pub fn wait_timeout(&self, cx: &mut MaySleep, ns: u64, mut cond: impl FnMut() -> bool) -> bool {
        cx.assert_may_sleep();
        if cond() {
            return true;
        }
        let waiter = Waiter::me();
        let thread = waiter.thread;
        let alarm = Alarm::set(thread, clock::now_ns().saturating_add(ns));
        let held = loop {
            self.enter(&waiter);
            // In this order: false means that the condition did not hold when time was up.
            let rang = alarm.rang();
            if cond() {
                break true;
            }
            if rang {
                break false;
            }
            schedule();
        };
        thread.state.set_running();
        self.leave(&waiter);
        drop(alarm);
        held
    }

    /// Wakes the thread that has waited longest. False if nobody waited.
    ///
    /// Context: task, softirq, hardirq; not NMI, not under a run-queue lock.
    pub fn wake_one(&self) -> bool {
        self.wake_up_to(1) == 1
    }

    /// Wakes everybody; how many that was.
    ///
    /// Context: as [`WaitQueue::wake_one`].
    pub fn wake_all(&self) -> usize {
        self.wake_up_to(usize::MAX)
    }

    fn wake_up_to(&self, most: usize) -> usize {
        // SeqCst: pairs with the fence in `announce_sleep`, which follows the count's increase: either we see the waiter
        // or the waiter sees the condition that our caller has made true.
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.wake_listed(&mut self.list.lock_irqsave(ATOMIC), most)
    }

    /// Takes the first `most` off the list and wakes them; how many that was.
    fn wake_listed(&self, list: &mut WaiterList, most: usize) -> usize {
        let mut woken = 0;
        while woken < most {
            let Some(waiter) = list.pop() else { break };
            // It sleeps, or has announced that it will and looks at its condition, or passes this on when it leaves.
            wake(waiter.thread);
            woken += 1;
        }
        self.waiters.fetch_sub(woken, Ordering::Relaxed);
        woken
    }

    /// Does anybody wait? May be out of date at once.
    ///
    /// Context: any.
    pub fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) != 0
    }

    /// Queues the running thread and announces its sleep, as one step for wakers: one that takes it off the list between the
    /// two would find it awake, and if it meant another's condition the thread would then sleep on no list.
    fn enter(&self, waiter: &Waiter) {
        let mut list = self.list.lock_irqsave(ATOMIC);
        // SAFETY: on the stack of a thread that calls `leave` before it goes on.
        if unsafe { list.push(waiter) } {
            self.waiters.fetch_add(1, Ordering::Relaxed);
        }
        waiter.thread.state.announce_sleep();
    }

    /// Takes the running thread, which sleeps no more, off the queue (`SCHED-48`).
    fn leave(&self, waiter: &Waiter) {
        let kept = bug!("sched.wake_one_kept", "who needs no wake-up does not pass it on", "sched_torture");
        if kept {
            (0..1_000).for_each(|_| irq::relax());
        }
        let mut list = self.list.lock_irqsave(ATOMIC);
        if list.remove(waiter) {
            self.waiters.fetch_sub(1, Ordering::Relaxed);
        } else if !kept {
            // Woken since its last `enter`, perhaps after its last look: it cannot know whether it has had what that was for.
            self.wake_listed(&mut list, 1);
        }
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        WaitQueue::new()
    }
}

/// What a [`Completion`]'s lock protects.
struct Completed {
    /// Completions that nobody has taken yet; `u32::MAX`: done for good.
    done: u32,
    waiters: WaiterList,
}

/// "It is done", said by one and waited for by others.
///
/// It may live on the stack of the one that waits: `complete` does not touch it after the waiter can know.
pub struct Completion {
    inner: SpinLock<Completed>,
}

impl Completion {
    /// Not done.
    pub const fn new() -> Completion {
        Completion { inner: SpinLock::new(Completed { done: 0, waiters: WaiterList::new() }, &WAIT_CLASS) }
    }

    /// Lets one waiter go on, now or when it comes.
    ///
    /// Context: task, softirq, hardirq; not NMI, not under a run-queue lock.
    pub fn complete(&self) {
        let mut inner = self.inner.lock_irqsave(ATOMIC);
        inner.done = inner.done.saturating_add(1);
        if let Some(waiter) = inner.waiters.pop() {
            wake(waiter.thread);
        }
    }

    /// Lets all waiters go on, those to come as well.
    ///
    /// Context: as [`Completion::complete`].
    pub fn complete_all(&self) {
        let mut inner = self.inner.lock_irqsave(ATOMIC);
        inner.done = u32::MAX;
        while let Some(waiter) = inner.waiters.pop() {
            wake(waiter.thread);
        }
    }

    /// Waits until it is done; takes one `complete` with it.
    ///
    /// Context: task, sleeps.
    pub fn wait(&self, cx: &mut MaySleep) {
        cx.assert_may_sleep();
        let waiter = Waiter::me();
        while !self.take_or_enter(&waiter) {
            schedule();
        }
        waiter.thread.state.set_running();
    }

    /// As [`Completion::wait`], for `ns` nanoseconds at most. True if it was done, false if time ran out.
    ///
    /// Context: task, sleeps.
    #[must_use = "after a time-out it is not done"]
    pub fn wait_timeout(&self, cx: &mut MaySleep, ns: u64) -> bool {
        cx.assert_may_sleep();
        let waiter = Waiter::me();
        let alarm = Alarm::set(waiter.thread, clock::now_ns().saturating_add(ns));
        let done = loop {
            // Read before the look at `done`, so that time-out means "not done when time was up".
            let rang = alarm.rang();
            if self.take_or_enter(&waiter) {
                break true;
            }
            if rang || alarm.rang() {
                // Under the lock once more: it may be done by now, and the waiter must leave the list.
                break self.take_or_leave(&waiter);
            }
            schedule();
        };
        waiter.thread.state.set_running();
        drop(alarm);
        done
    }

    /// Takes one `complete` if there is one. Does not wait.
    ///
    /// Context: task, softirq, hardirq.
    #[must_use]
    pub fn try_wait(&self) -> bool {
        self.inner.lock_irqsave(ATOMIC).take()
    }

    /// Would [`Completion::wait`] return at once?
    ///
    /// Context: task, softirq, hardirq.
    pub fn is_done(&self) -> bool {
        self.inner.lock_irqsave(ATOMIC).done > 0
    }

    /// Forgets all `complete`s.
    ///
    /// Context: task, softirq, hardirq; with nobody waiting.
    pub fn reset(&self) {
        self.inner.lock_irqsave(ATOMIC).done = 0;
    }

    fn take_or_enter(&self, waiter: &Waiter) -> bool {
        let mut inner = self.inner.lock_irqsave(ATOMIC);
        if inner.take() {
            inner.waiters.remove(waiter);
            return true;
        }
        // SAFETY: on the stack of a thread that leaves its wait by `take_or_enter` or `take_or_leave` only, with the
        // waiter out of the list.
        unsafe { inner.waiters.push(waiter) };
        // Under the lock, which `complete` needs: it finds the waiter in the list and `Sleeping`.
        waiter.thread.state.announce_sleep();
        false
    }

    fn take_or_leave(&self, waiter: &Waiter) -> bool {
        let mut inner = self.inner.lock_irqsave(ATOMIC);
        inner.waiters.remove(waiter);
        inner.take()
    }
}

impl Default for Completion {
    fn default() -> Self {
        Completion::new()
    }
}

impl Completed {
    fn take(&mut self) -> bool {
        match self.done {
            0 => false,
            u32::MAX => true,
            _ => {
                self.done -= 1;
                true
            }
        }
    }
}

/// The running thread's alarm clock, set for the life of the value.
pub(crate) struct Alarm {
    thread: &'static Thread,
}

impl Alarm {
    /// `thread` is the running one.
    pub(crate) fn set(thread: &'static Thread, at_ns: u64) -> Alarm {
        // The timer is not armed and its function does not run: the last Alarm saw to it.
        thread.alarm_rang.store(false, Ordering::Relaxed);
        thread.alarm.arm_at(at_ns);
        Alarm { thread }
    }

    /// Has it gone off?
    pub(crate) fn rang(&self) -> bool {
        self.thread.alarm_rang.load(Ordering::Relaxed)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.thread.alarm.cancel_sync();
    }
}

/// What a thread's alarm does. Hardirq context.
pub(crate) fn alarm_rings(timer: &Timer) {
    // SAFETY: only `Thread::alarm` has this function, and threads are type-stable (SCHED-3).
    let thread: &'static Thread = unsafe { &*ptr::from_ref(timer).byte_sub(offset_of!(Thread, alarm)).cast() };
    // Relaxed: the wake-up is a full barrier and makes it seen.
    thread.alarm_rang.store(true, Ordering::Relaxed);
    wake(thread);
}

/// Sleeps until somebody calls [`crate::wake`] for this thread, unless `cond` holds; returns at the first wake-up, whatever
/// the reason. The bare form of all waits: the caller loops, and whoever wakes knows the thread.
///
/// Context: task, sleeps.
pub fn sleep_until_woken(cx: &mut MaySleep, cond: impl FnOnce() -> bool) {
    cx.assert_may_sleep();
    let thread = current();
    thread.state.announce_sleep();
    if !cond() {
        schedule();
    }
    thread.state.set_running();
}

/// Sleeps until the clock reaches `at_ns`; never shorter.
///
/// Context: task, sleeps.
pub fn sleep_until(cx: &mut MaySleep, at_ns: u64) {
    cx.assert_may_sleep();
    let thread = current();
    let alarm = Alarm::set(thread, at_ns);
    loop {
        thread.state.announce_sleep();
        if alarm.rang() {
            break;
        }
        schedule();
    }
    thread.state.set_running();
}

/// Sleeps for `ns` nanoseconds; never shorter.
///
/// Context: task, sleeps.
pub fn sleep_ns(cx: &mut MaySleep, ns: u64) {
    sleep_until(cx, clock::now_ns().saturating_add(ns));
}
