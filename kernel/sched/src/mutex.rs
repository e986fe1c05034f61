//! A lock that is held across sleeps, handed over by priority.
//!
//! Key types: [`Mutex`], [`MutexGuard`].
//!
//! Taken and released by one compare-exchange each when nobody else wants it. When somebody waits, the release gives the
//! mutex to the most urgent waiter, the longest-waiting among equals, so nobody who comes later overtakes it: a waiter
//! that was chosen owns the mutex before it runs.
//!
//! Invariants:
//!
//! * `SCHED-17`: `word` is the owner's address, with [`WAITERS`] set exactly while the list of waiters is not empty;
//!   the bit changes under the list's lock only. 0 means free.
//! * `SCHED-18`: a waiter leaves its wait only as the owner.
//!
//! Contexts: [`Mutex::lock`] in task context with the token; unlocking in task context, by the thread that locked it. A
//! guard may be held across sleeps: it does not borrow the token. Nothing allocates.
//!
//! Linux: `kernel/locking/mutex.c`, with hand-over always and no optimistic spinning.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sync::lock_order::SleepTracked;
use sync::{ATOMIC, LockClass, MaySleep, SpinLock, bug};

use crate::rq::prio_of;
use crate::switch::schedule;
use crate::thread::{Thread, current};
use crate::wait::{Waiter, WaiterList};
use crate::wake::wake;

/// Low bit of [`Mutex::word`]: somebody waits.
const WAITERS: usize = 1;
const _: () = assert!(align_of::<Thread>() > WAITERS, "a thread's address has room for the bit");

/// Protects a mutex's list of waiters and the `WAITERS` bit. Inside it: run queue.
static MUTEX_CLASS: LockClass = LockClass::new("sched.mutex");

/// A thread that waits for a mutex.
#[repr(C)]
struct MutexWaiter {
    /// First, so that a list entry's address is its waiter's.
    waiter: Waiter,
    /// The mutex is its own. Written by the releaser (Release), read by the waiter (Acquire); after it the releaser
    /// does not touch the waiter again.
    granted: AtomicBool,
}

/// A value that one thread at a time may use, also across sleeps.
pub struct Mutex<T: ?Sized> {
    /// `SCHED-17`.
    word: AtomicUsize,
    tracked: SleepTracked,
    waiters: SpinLock<WaiterList>,
    value: UnsafeCell<T>,
}

// SAFETY: the mutex gives access to one thread at a time, so T need only be sendable.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}
// SAFETY: as T itself.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}

impl<T> Mutex<T> {
    /// A free mutex of class `class` around `value`. Checking builds keep the order of classes: see [`sync::lock_order`].
    pub const fn new(value: T, class: &'static LockClass) -> Mutex<T> {
        Mutex {
            word: AtomicUsize::new(0),
            tracked: SleepTracked::new(class),
            waiters: SpinLock::new(WaiterList::new(), &MUTEX_CLASS),
            value: UnsafeCell::new(value),
        }
    }
}

/// The owner that a mutex's `word` names, if it is taken.
pub(crate) fn owner_in(word: usize) -> Option<&'static Thread> {
    let owner = ptr::with_exposed_provenance::<Thread>(word & !WAITERS);
    // SAFETY: null, or a thread's address (SCHED-17), exposed by `me`; type-stable (SCHED-3).
    unsafe { owner.as_ref() }
}

fn me() -> usize {
    ptr::from_ref(current()).expose_provenance()
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the mutex, sleeping until it is free.
    ///
    /// Context: task, sleeps.
    ///
    /// # Panics
    ///
    /// In checking builds, when the thread has it already, and against the lock order.
    #[track_caller]
    pub fn lock(&self, cx: &mut MaySleep) -> MutexGuard<'_, T> {
        cx.assert_may_sleep();
        self.tracked.before_lock();
        if !self.try_take() {
            self.lock_slow();
        }
        self.tracked.locked();
        MutexGuard::new(self)
    }

    /// Takes the mutex if it is free.
    ///
    /// Context: task.
    #[track_caller]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let free = self.try_take();
        if free {
            self.tracked.locked();
        }
        free.then(|| MutexGuard::new(self))
    }

    /// Does somebody have it? May be out of date at once.
    ///
    /// Context: any.
    pub fn is_locked(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn try_take(&self) -> bool {
        // Acquire: pairs with the Release in `release`: what the last owner did is seen.
        self.word.compare_exchange(0, me(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn lock_slow(&self) {
        let me = MutexWaiter { waiter: Waiter::me(), granted: AtomicBool::new(false) };
        {
            let mut list = self.waiters.lock_irqsave(ATOMIC);
            // Relaxed: the compare-exchange in `release` fails once the bit is there; then the lock orders.
            let before = self.word.fetch_or(WAITERS, Ordering::Relaxed);
            if before == 0 && self.take_with_bit() {
                return;
            }
            // SAFETY: it stays here until it is granted, which takes it off the list.
            unsafe { list.push(&me.waiter) };
        }
        let thread = me.waiter.thread;
        thread.watch.set_waits_for(Some(&self.word));
        loop {
            thread.state.announce_sleep();
            // Acquire: pairs with the Release in `hand_over`: what the last owner did is seen, and the releaser is done
            // with the waiter.
            if me.granted.load(Ordering::Acquire) {
                break;
            }
            schedule();
        }
        thread.state.set_running();
        thread.watch.set_waits_for(None);
    }

    /// The mutex was free when the bit was set: it is ours, without waiters. The caller holds the list's lock.
    fn take_with_bit(&self) -> bool {
        // Acquire: pairs with the Release in `release`. It cannot fail: with the bit there no `try_take` succeeds, and
        // others who set it wait for the list's lock.
        self.word.compare_exchange(WAITERS, me(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn release(&self) {
        self.tracked.before_unlock();
        // Release: pairs with the Acquire in `try_take`.
        if self.word.compare_exchange(me(), 0, Ordering::Release, Ordering::Relaxed).is_err() {
            self.hand_over();
        }
    }

    #[cold]
    fn hand_over(&self) {
        let mut list = self.waiters.lock_irqsave(ATOMIC);
        let mut chosen: Option<(&Waiter, crate::Prio)> = None;
        for waiter in list.iter() {
            let prio = prio_of(waiter.thread);
            if chosen.is_none_or(|(_, best)| prio > best) {
                chosen = Some((waiter, prio));
            }
        }
        let chosen: *const Waiter = chosen.expect("SCHED-17: the bit says that somebody waits").0;
        // SAFETY: on the list, so in place; the list's lock is held.
        list.remove(unsafe { &*chosen });
        // SAFETY: each waiter on a mutex's list is the first field of a MutexWaiter.
        let chosen: &MutexWaiter = unsafe { &*chosen.cast() };
        let thread = chosen.waiter.thread;
        let bit = if list.is_empty() { 0 } else { WAITERS };
        // Relaxed: `granted` below carries what we did to the next owner.
        self.word.store(ptr::from_ref(thread).expose_provenance() | bit, Ordering::Relaxed);
        if bug!("sched.mutex_overtaken", "a mutex is free on its way to the next owner", "sched_mutex") && bit == 0 {
            self.word.store(0, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `lock_slow`. `chosen` is not touched after it.
        chosen.granted.store(true, Ordering::Release);
        wake(thread);
    }
}

/// The right to use what a [`Mutex`] protects, until it is dropped.
#[must_use = "the mutex is released as soon as the guard is dropped"]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// The thread that locked it unlocks it.
    _not_send: PhantomData<*mut ()>,
}

// SAFETY: a shared guard gives shared access to T.
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    fn new(mutex: &'a Mutex<T>) -> Self {
        MutexGuard { mutex, _not_send: PhantomData }
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard is the exclusive right.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.mutex.release();
    }
}
