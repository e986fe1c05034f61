//! [`SpinLock`]: a test-and-set lock, with guards that say in what context it is held.
//!
//! | call | while held | from |
//! |---|---|---|
//! | [`lock`](SpinLock::lock) | preemption off | task, softirq, hardirq; not NMI |
//! | [`lock_irqsave`](SpinLock::lock_irqsave) | interrupts and preemption off | the same |
//! | [`try_lock`](SpinLock::try_lock), [`try_lock_irqsave`](SpinLock::try_lock_irqsave) | as above | any: never spins |
//!
//! A lock that is ever taken in a hard interrupt is taken with `lock_irqsave` wherever interrupts
//! can be on. Checking builds find out when it is not, and check lock order: see
//! [`lock_order`](crate::lock_order). It answers to Linux's spinlock_t (6.12, include/linux/spinlock.h).
//!
//! # Why it is not fair
//!
//! A fair lock (tickets, or a queue) hands itself to one certain waiter. If that waiter is a virtual
//! CPU that the host is not running at the moment, everybody waits until it does: with 4 CPUs on 2
//! host cores, 5,000 increments a CPU under a ticket lock were not done after 20 s. Whoever runs takes
//! this lock. Linux does the same on hypervisors that do not help it (`virt_spin_lock`,
//! arch/x86/include/asm/qspinlock.h). The price is that a CPU can be unlucky for a while; waiters
//! pause between looks, and sections are short.
//!
//! # Invariants
//!
//! - `SL-1` Who moves `locked` from false to true holds the lock, and alone moves it back.
//! - `SL-2` From before the first try to after the release this CPU does not switch threads:
//!   preemption goes off before and on after.
//! - `SL-3` The drop of a [`SpinIrqGuard`] releases the lock, then restores interrupts, then looks
//!   whether a reschedule is due, in that order: a reschedule with interrupts off would be lost.

use core::{
    cell::UnsafeCell,
    fmt,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    bug,
    context::{IrqGuard, PreemptGuard},
    cx::{ATOMIC, Cx},
    events, explore,
    lock_order::{LockClass, Tracked},
};

/// A value that one context at a time may use; see the [module](self).
pub struct SpinLock<T: ?Sized> {
    /// Whether somebody holds it (`SL-1`).
    locked: AtomicBool,
    tracked: Tracked,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one context at a time, on whichever CPU holds the lock, so it
// must be sendable; the lock's own words are atomics.
unsafe impl<T: ?Sized + Send> Sync for SpinLock<T> {}
// SAFETY: moving the lock moves the value.
unsafe impl<T: ?Sized + Send> Send for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock of class `class` around `value`.
    #[must_use]
    pub const fn new(value: T, class: &'static LockClass) -> Self {
        Self { locked: AtomicBool::new(false), tracked: Tracked::new(class), value: UnsafeCell::new(value) }
    }

    /// The value, of a lock that nobody else can reach any more.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> SpinLock<T> {
    /// Takes the lock; preemption is off until the guard goes.
    ///
    /// Context: task, softirq, hardirq. Spins, in no order.
    ///
    /// # Panics
    /// In checking builds: in NMI, if this CPU holds the lock already, against the lock order.
    #[inline]
    #[track_caller]
    pub fn lock<'a>(&'a self, cx: &'a (impl Cx + ?Sized)) -> SpinGuard<'a, T> {
        let pin = PreemptGuard::new(cx);
        self.acquire();
        SpinGuard { lock: self, _pin: pin }
    }

    /// Takes the lock; interrupts and preemption are off until the guard goes.
    ///
    /// Context: task, softirq, hardirq. Spins, in no order.
    ///
    /// # Panics
    /// As [`lock`](Self::lock).
    #[inline]
    #[track_caller]
    pub fn lock_irqsave<'a>(&'a self, cx: &'a (impl Cx + ?Sized)) -> SpinIrqGuard<'a, T> {
        let irq = IrqGuard::new(cx);
        let pin = PreemptGuard::new(cx);
        self.acquire();
        SpinIrqGuard { lock: self, _irq: irq, _pin: pin }
    }

    /// Takes the lock if it is free. Does not spin.
    ///
    /// Context: any, if whoever holds it in that context releases it before returning.
    #[inline]
    #[track_caller]
    pub fn try_lock<'a>(&'a self, cx: &'a (impl Cx + ?Sized)) -> Option<SpinGuard<'a, T>> {
        let pin = PreemptGuard::new(cx);
        self.try_acquire().then(|| SpinGuard { lock: self, _pin: pin })
    }

    /// Takes the lock if it is free, with interrupts off. Does not spin.
    ///
    /// Context: any.
    #[inline]
    #[track_caller]
    pub fn try_lock_irqsave<'a>(&'a self, cx: &'a (impl Cx + ?Sized)) -> Option<SpinIrqGuard<'a, T>> {
        let irq = IrqGuard::new(cx);
        let pin = PreemptGuard::new(cx);
        self.try_acquire().then(|| SpinIrqGuard { lock: self, _irq: irq, _pin: pin })
    }

    /// Whether somebody held the lock a moment ago.
    ///
    /// Context: any. For assertions and statistics only.
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }

    /// The value, by the right of an exclusive borrow.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// The value, without taking the lock.
    pub fn as_ptr(&self) -> *mut T {
        self.value.get()
    }

    /// Releases a lock whose guard was forgotten: the scheduler passes its run queue's lock from
    /// the thread that switches away to the one that is switched to. Ends neither "no preemption"
    /// nor "interrupts off".
    ///
    /// # Safety
    /// This CPU holds the lock, its guard was forgotten, and the value is not used after.
    #[inline]
    pub unsafe fn force_unlock(&self) {
        self.release();
    }

    #[inline]
    #[track_caller]
    fn acquire(&self) {
        self.tracked.before_lock();
        explore::point();
        if !self.test_and_set() {
            self.wait();
        }
        explore::point();
    }

    /// True if the lock was free; it is held then.
    #[inline]
    fn test_and_set(&self) -> bool {
        // Acquire: pairs with the release in `release`: what the last holder wrote is seen.
        !self.locked.swap(true, Ordering::Acquire)
    }

    #[cold]
    #[inline(never)]
    fn wait(&self) {
        events::event(events::Kind::LockWait, ptr::from_ref(&self.locked).addr());
        let mut stuck = self.tracked.stuck_watch();
        loop {
            // Look before each try: a try takes the cache line from the holder.
            while self.locked.load(Ordering::Relaxed) {
                arch::irq::relax();
                stuck.spun();
            }
            if self.test_and_set() {
                return;
            }
        }
    }

    #[inline]
    #[track_caller]
    fn try_acquire(&self) -> bool {
        let looks_free = !self.locked.load(Ordering::Relaxed);
        explore::point();
        let free = looks_free && self.test_and_set()
            || bug!("sync.try_blind", "a try for a lock that is held has it, too", "slab_nolock.stepped*path");
        if free {
            self.tracked.after_try_lock();
        }
        free
    }

    #[inline]
    fn release(&self) {
        self.tracked.before_unlock();
        // Release: pairs with the acquire in `test_and_set`.
        self.locked.store(false, Ordering::Release);
        explore::point();
    }
}

impl<T: ?Sized> fmt::Debug for SpinLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpinLock").field("locked", &self.is_locked()).finish_non_exhaustive()
    }
}

/// The lock is held, preemption is off.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct SpinGuard<'a, T: ?Sized> {
    lock: &'a SpinLock<T>,
    // Dropped after the release in `drop` (`SL-2`).
    _pin: PreemptGuard<'a>,
}

/// The lock is held, interrupts and preemption are off.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct SpinIrqGuard<'a, T: ?Sized> {
    lock: &'a SpinLock<T>,
    // Dropped after the release in `drop`, in this order (`SL-3`).
    _irq: IrqGuard<'a>,
    _pin: PreemptGuard<'a>,
}

impl<'a, T: ?Sized> SpinGuard<'a, T> {
    /// Forgets the guard with the lock held and returns the lock; see [`SpinLock::force_unlock`].
    /// One level of "no preemption" is left counted.
    pub fn leak(self) -> &'a SpinLock<T> {
        ManuallyDrop::new(self).lock
    }
}

macro_rules! spin_guard {
    ($guard:ident) => {
        impl<T: ?Sized> Cx for $guard<'_, T> {}

        impl<T: ?Sized> Deref for $guard<'_, T> {
            type Target = T;

            #[inline(always)]
            fn deref(&self) -> &T {
                // SAFETY: the lock is held until the guard is dropped, and only through it is the
                // value borrowed.
                unsafe { &*self.lock.value.get() }
            }
        }

        impl<T: ?Sized> DerefMut for $guard<'_, T> {
            #[inline(always)]
            fn deref_mut(&mut self) -> &mut T {
                // SAFETY: as in `deref`, and the guard is borrowed exclusively.
                unsafe { &mut *self.lock.value.get() }
            }
        }

        impl<T: ?Sized> Drop for $guard<'_, T> {
            #[inline]
            fn drop(&mut self) {
                self.lock.release();
            }
        }

        impl<T: ?Sized + fmt::Debug> fmt::Debug for $guard<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }
    };
}

spin_guard!(SpinGuard);
spin_guard!(SpinIrqGuard);

/// Runs `f` with the value of `lock`, from code that has no token.
///
/// Context: task, softirq, hardirq.
#[track_caller]
pub fn with<T, R>(lock: &SpinLock<T>, f: impl FnOnce(&mut T) -> R) -> R {
    f(&mut lock.lock_irqsave(ATOMIC))
}
