//! [`SpinLock`]: a fair ticket lock, with guards that say in what context it is held.
//!
//! | call | while held | from |
//! |---|---|---|
//! | [`lock`](SpinLock::lock) | preemption off | task, softirq, hardirq; not NMI |
//! | [`lock_irqsave`](SpinLock::lock_irqsave) | interrupts and preemption off | the same |
//! | [`try_lock`](SpinLock::try_lock), [`try_lock_irqsave`](SpinLock::try_lock_irqsave) | as above | any: never spins |
//!
//! A lock that is ever taken in a hard interrupt is taken with `lock_irqsave` wherever interrupts
//! can be on. Checking builds find out when it is not, and check lock order: see [`lock_order`].
//! It answers to Linux's spinlock_t (6.12, include/linux/spinlock.h); Linux queues waiters with an
//! MCS list (kernel/locking/qspinlock.c), a ticket is enough for the CPU counts here and half the code.
//!
//! # Invariants
//!
//! - `SL-1` `serving` is written only by the holder; the lock is free iff `serving == next`.
//! - `SL-2` Between taking a ticket and the lock, and while holding it, this CPU does not switch
//!   threads: preemption goes off before the ticket and on after the release.
//! - `SL-3` The drop of a [`SpinIrqGuard`] releases the lock, then restores interrupts, then looks
//!   whether a reschedule is due, in that order: a reschedule with interrupts off would be lost.
//! - `SL-4` At most 65,535 CPUs wait at once: tickets are 16 bits and wrap.

use core::{
    cell::UnsafeCell,
    fmt,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU16, Ordering},
};

use crate::{
    context::{IrqGuard, PreemptGuard},
    cx::{ATOMIC, Cx},
    lock_order::{LockClass, Tracked},
};

const _: () = assert!(arch::MAX_CPUS <= u16::MAX as usize, "SL-4");

/// A value that one context at a time may use; see the [module](self).
pub struct SpinLock<T: ?Sized> {
    /// The next ticket to be handed out.
    next: AtomicU16,
    /// The ticket whose holder has the lock (`SL-1`).
    serving: AtomicU16,
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
        Self {
            next: AtomicU16::new(0),
            serving: AtomicU16::new(0),
            tracked: Tracked::new(class),
            value: UnsafeCell::new(value),
        }
    }

    /// The value, of a lock that nobody else can reach any more.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> SpinLock<T> {
    /// Takes the lock; preemption is off until the guard goes.
    ///
    /// Context: task, softirq, hardirq. Spins, in the order of arrival.
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
    /// Context: task, softirq, hardirq. Spins, in the order of arrival.
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

    /// Takes the lock if it is free. Does not spin and does not queue.
    ///
    /// Context: any, if whoever holds it in that context releases it before returning.
    #[inline]
    #[track_caller]
    pub fn try_lock<'a>(&'a self, cx: &'a (impl Cx + ?Sized)) -> Option<SpinGuard<'a, T>> {
        let pin = PreemptGuard::new(cx);
        self.try_acquire().then(|| SpinGuard { lock: self, _pin: pin })
    }

    /// Takes the lock if it is free, with interrupts off. Does not spin and does not queue.
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
        self.serving.load(Ordering::Relaxed) != self.next.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for the lock besides the holder, a moment ago.
    ///
    /// Context: any.
    pub fn is_contended(&self) -> bool {
        self.next.load(Ordering::Relaxed).wrapping_sub(self.serving.load(Ordering::Relaxed)) > 1
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
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        // Acquire: pairs with the release in `release`: what the last holder wrote is seen.
        if self.serving.load(Ordering::Acquire) != ticket {
            self.wait(ticket);
        }
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, ticket: u16) {
        let mut stuck = self.tracked.stuck_watch();
        // Acquire: as in `acquire`.
        while self.serving.load(Ordering::Acquire) != ticket {
            arch::irq::relax();
            stuck.spun();
        }
    }

    #[inline]
    #[track_caller]
    fn try_acquire(&self) -> bool {
        // Acquire: pairs with the release in `release`. If `next` still equals it below, nobody
        // has taken a ticket since, so `serving` still has this value (`SL-1`).
        let serving = self.serving.load(Ordering::Acquire);
        let free =
            self.next.compare_exchange(serving, serving.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if free {
            self.tracked.after_try_lock();
        }
        free
    }

    #[inline]
    fn release(&self) {
        self.tracked.before_unlock();
        // Ours alone to write while we hold the lock (`SL-1`), so no read-modify-write is needed.
        let serving = self.serving.load(Ordering::Relaxed);
        // Release: pairs with the acquire loads in `acquire`, `wait` and `try_acquire`.
        self.serving.store(serving.wrapping_add(1), Ordering::Release);
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
