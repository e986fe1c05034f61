//! Counting semaphores.
//!
//! Key type: [`Semaphore`].
//!
//! First come, first served: while somebody waits, each `up` is given to the thread that has waited longest, before it runs,
//! so nobody who comes later overtakes it. For exclusion use a [`Mutex`](crate::Mutex), which knows its owner and its
//! waiters' priorities.
//!
//! Invariant `SCHED-47`: while somebody waits, `count` is zero; a waiter is off the list exactly when a unit is its own or it
//! has given up.
//!
//! Contexts: [`Semaphore::down`] and [`Semaphore::down_timeout`] in task context with the token; the others in task, softirq
//! and hardirq context, also with interrupts off. Nothing allocates.
//!
//! Linux: `kernel/locking/semaphore.c` (6.12).

use core::cell::Cell;

use arch::clock;
use sync::{ATOMIC, LockClass, MaySleep, SpinLock};

use crate::switch::schedule;
use crate::wait::{Alarm, Waiter, WaiterList};
use crate::wake::wake;

/// Protects a semaphore's count and waiters. Inside it: run queue. As the mutex's in the lock order.
static SEMAPHORE_CLASS: LockClass = LockClass::new("sched.semaphore");

/// A thread that waits for a unit.
#[repr(C)]
struct SemaphoreWaiter {
    /// First, so that a list entry's address is its waiter's.
    waiter: Waiter,
    /// A unit is its own. Guarded by the semaphore's lock.
    granted: Cell<bool>,
}

/// What a semaphore's lock protects.
struct Inner {
    count: u32,
    waiters: WaiterList,
}

/// A number of units that threads take and give back; who takes need not be who gives.
pub struct Semaphore {
    inner: SpinLock<Inner>,
}

impl Semaphore {
    /// A semaphore with `count` units.
    pub const fn new(count: u32) -> Semaphore {
        Semaphore { inner: SpinLock::new(Inner { count, waiters: WaiterList::new() }, &SEMAPHORE_CLASS) }
    }

    /// Takes a unit; sleeps until there is one.
    ///
    /// Context: task, sleeps.
    pub fn down(&self, cx: &mut MaySleep) {
        cx.assert_may_sleep();
        let me = SemaphoreWaiter::me();
        while !self.take_or_enter(&me) {
            schedule();
        }
        me.waiter.thread.state.set_running();
    }

    /// Takes a unit if there is one.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off; not NMI.
    #[must_use = "the unit is to be given back"]
    pub fn try_down(&self) -> bool {
        self.inner.lock_irqsave(ATOMIC).take()
    }

    /// Takes a unit; sleeps until there is one, for `ns` nanoseconds at most. True if it got one, false if time ran out.
    ///
    /// Context: task, sleeps.
    #[must_use = "after a time-out there is no unit to be given back"]
    pub fn down_timeout(&self, cx: &mut MaySleep, ns: u64) -> bool {
        cx.assert_may_sleep();
        let me = SemaphoreWaiter::me();
        let alarm = Alarm::set(me.waiter.thread, clock::now_ns().saturating_add(ns));
        let taken = loop {
            if self.take_or_enter(&me) {
                break true;
            }
            if alarm.rang() {
                // Under the lock once more: a unit may be its own by now, and it must leave the list.
                break self.take_or_leave(&me);
            }
            schedule();
        };
        me.waiter.thread.state.set_running();
        drop(alarm);
        taken
    }

    /// Gives a unit, to the thread that has waited longest if one waits.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off; not NMI, not under a run-queue lock.
    ///
    /// # Panics
    ///
    /// If there are more than `u32::MAX` units.
    pub fn up(&self) {
        let mut inner = self.inner.lock_irqsave(ATOMIC);
        let Some(waiter) = inner.waiters.pop() else {
            inner.count = inner.count.checked_add(1).expect("too many units of a semaphore");
            return;
        };
        let thread = waiter.thread;
        // SAFETY: each waiter on a semaphore's list is the first field of a SemaphoreWaiter, in place while the lock is held.
        let waiter: &SemaphoreWaiter = unsafe { &*core::ptr::from_ref(waiter).cast() };
        waiter.granted.set(true);
        wake(thread);
    }

    /// Units that are there; may be out of date at once.
    ///
    /// Context: as [`Semaphore::try_down`].
    pub fn count(&self) -> u32 {
        self.inner.lock_irqsave(ATOMIC).count
    }

    /// True: a unit was there, or has become the waiter's. Else the waiter is on the list and about to sleep.
    fn take_or_enter(&self, me: &SemaphoreWaiter) -> bool {
        let mut inner = self.inner.lock_irqsave(ATOMIC);
        if me.granted.get() || inner.take() {
            return true;
        }
        // SAFETY: on the stack of a thread that leaves its wait with a unit, which takes it off the list, or by
        // `take_or_leave`.
        unsafe { inner.waiters.push(&me.waiter) };
        // Under the lock, which `up` needs: it finds the waiter in the list and `Sleeping`.
        me.waiter.thread.state.announce_sleep();
        false
    }

    fn take_or_leave(&self, me: &SemaphoreWaiter) -> bool {
        let mut inner = self.inner.lock_irqsave(ATOMIC);
        inner.waiters.remove(&me.waiter);
        me.granted.get()
    }
}

impl SemaphoreWaiter {
    fn me() -> SemaphoreWaiter {
        SemaphoreWaiter { waiter: Waiter::me(), granted: Cell::new(false) }
    }
}

impl Inner {
    /// Takes a unit that is nobody's. Somebody waits only while there is none (`SCHED-47`).
    fn take(&mut self) -> bool {
        let there = self.count > 0;
        self.count -= u32::from(there);
        there
    }
}
