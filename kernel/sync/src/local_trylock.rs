//! [`LocalTryLock`]: excludes the contexts of one CPU from each other, without an atomic instruction.
//!
//! Data that only its own CPU touches needs no lock against other CPUs, but an interrupt or NMI
//! may come in the middle of a change. This lock is a plain flag in the CPU's own area: whoever
//! finds it set goes another way. It answers to `local_trylock_t` (Linux 6.15,
//! include/linux/local_lock_internal.h); here try is all there is, so nothing ever waits.
//!
//! # Invariants
//!
//! - `LT-1` Only its own CPU touches the lock: preemption is off from before the flag is read to
//!   after it is cleared. Enforced by [`LocalGuard`], and by [`this`] choosing the copy after that.
//! - `LT-2` The flag is read and set by two plain instructions, in a dynamic variable by one. What
//!   comes in between is an interrupt or NMI on this CPU, which runs to its end, so it releases
//!   before it returns: the flag is again what was read. Nothing else can come in between (`LT-1`).
//! - `LT-3` Therefore no read-modify-write and no barrier is needed, only that the compiler keeps
//!   the protected accesses inside.
//!
//! Checked by calling a nested user at each step of both operations:
//! `a_nested_user_at_any_step_leaves_the_outer_one_right`.
//!
//! [`this`]: LocalTryLock::this

use core::{
    cell::UnsafeCell,
    mem::offset_of,
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU32, Ordering, compiler_fence},
};

use arch::percpu::{DynPlace, PerCpu, Symbol};

use crate::{context::PreemptGuard, cx::Cx, explore};

/// A value of one CPU that one of its contexts at a time may use; lives in per-CPU memory.
#[derive(Debug)]
#[repr(C)]
pub struct LocalTryLock<T> {
    // In front: [`FirstGuard`] finds it there.
    flag: Flag,
    value: UnsafeCell<T>,
}

impl<T> LocalTryLock<T> {
    /// Where in the lock its value lies.
    pub const VALUE: usize = offset_of!(Self, value);

    /// A free lock around `value`.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self { flag: Flag::new(), value: UnsafeCell::new(value) }
    }

    /// Takes this CPU's copy of `var`, unless a context that was interrupted has it.
    ///
    /// Context: any. Wait-free.
    #[inline(always)]
    #[track_caller]
    pub fn this<'a, S>(var: &'a PerCpu<S>, cx: &'a (impl Cx + ?Sized)) -> Option<LocalGuard<'a, T>>
    where
        S: Symbol<Value = Self>,
    {
        let pin = PreemptGuard::new(cx);
        let lock = var.this_ptr();
        // SAFETY: per-CPU variables do not lie at 0. The optimiser does not know that of an address
        // from `asm!`, and would test for the `None` of the result: two instructions a lock.
        unsafe { core::hint::assert_unchecked(!lock.is_null()) };
        // SAFETY: per-CPU areas are never freed, and all other contexts of this CPU reach the
        // copy through shared references only, too (`LT-1`: pinned before the copy is chosen).
        let lock = unsafe { &*lock };
        if lock.flag.try_set(|_| ()) { Some(LocalGuard { lock, _pin: pin }) } else { None }
    }

    /// Takes the lock, unless a context that was interrupted has it.
    ///
    /// The caller made sure, before it chose this copy, that it stays on its CPU (`LT-1`): the
    /// lock is not `Sync`, so another CPU's copy cannot be reached without `unsafe`.
    ///
    /// Context: any. Wait-free.
    #[inline(always)]
    #[track_caller]
    pub fn try_lock<'a>(&'a self, cx: &'a (impl Cx + ?Sized)) -> Option<LocalGuard<'a, T>> {
        let pin = PreemptGuard::new(cx);
        if self.flag.try_set(|_| ()) { Some(LocalGuard { lock: self, _pin: pin }) } else { None }
    }

    /// [`try_lock`](Self::try_lock) for a caller that is pinned already, as it has to be to choose
    /// this copy: the pin goes into the guard, or is dropped.
    ///
    /// Context: any. Wait-free.
    #[inline(always)]
    pub fn try_lock_pinned<'a>(&'a self, pin: PreemptGuard<'a>) -> Option<LocalGuard<'a, T>> {
        if self.flag.try_set(|_| ()) { Some(LocalGuard { lock: self, _pin: pin }) } else { None }
    }

    /// Whether a context of this CPU is inside.
    ///
    /// Context: any.
    #[inline]
    pub fn is_locked(&self) -> bool {
        self.flag.is_set()
    }

    /// The value, without taking the lock.
    pub fn as_ptr(&self) -> *mut T {
        self.value.get()
    }
}

/// The value is this context's, and preemption is off, until it is dropped.
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct LocalGuard<'a, T> {
    lock: &'a LocalTryLock<T>,
    // Dropped after the flag is cleared (`LT-1`).
    _pin: PreemptGuard<'a>,
}

impl<T> Cx for LocalGuard<'_, T> {}

impl<T> Deref for LocalGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the flag is set and ours: no other context of this CPU borrows the value, and
        // no other CPU does (`LT-1`).
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for LocalGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for LocalGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.flag.clear(|_| ());
    }
}

/// The [`LocalTryLock`] at the beginning of this CPU's copy of a dynamic variable is this context's until it is dropped.
///
/// The shortest way there is into such a variable: the copy's address is never worked out.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct FirstGuard<'c> {
    place: DynPlace,
    // Dropped after the flag is cleared (`LT-1`).
    _pin: PreemptGuard<'c>,
}

impl<'c> FirstGuard<'c> {
    /// Takes the lock, unless a context that was interrupted has it.
    ///
    /// Context: any. Wait-free.
    ///
    /// # Safety
    /// `place` is that of a dynamic variable that begins with a [`LocalTryLock`] and stays while the guard lives.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn try_lock(place: DynPlace, cx: &'c (impl Cx + ?Sized)) -> Option<Self> {
        // SAFETY: the caller's contract.
        unsafe { Self::try_lock_or_pin(place, cx) }.ok()
    }

    /// The same; who does not get the lock is pinned yet, and may leave the end of that to a cold function.
    ///
    /// Context: any. Wait-free.
    ///
    /// # Safety
    /// As for [`try_lock`](Self::try_lock).
    #[inline(always)]
    #[track_caller]
    pub unsafe fn try_lock_or_pin(place: DynPlace, cx: &'c (impl Cx + ?Sized)) -> Result<Self, PreemptGuard<'c>> {
        let pin = PreemptGuard::new(cx);
        // SAFETY: the flag is the first field of the lock; the caller vouches for the rest.
        if unsafe { place.test_and_set::<0>() } {
            return Err(pin);
        }
        explore::point();
        Ok(Self { place, _pin: pin })
    }

    /// The variable's place.
    #[inline(always)]
    pub fn place(&self) -> DynPlace {
        self.place
    }
}

impl Drop for FirstGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        explore::point();
        // SAFETY: as in `try_lock`. A compiler barrier (`LT-3`).
        unsafe { self.place.clear::<0>() };
    }
}

/// The flag by itself, with a place to stop after each of its steps.
///
/// An atomic for the language's sake: each access is one plain instruction (`LT-3`).
#[derive(Debug)]
struct Flag(AtomicU32);

/// The moments at which an interrupt can find the flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    BeforeLoad,
    AfterLoad,
    AfterSet,
    BeforeClear,
    AfterClear,
}

impl Flag {
    const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    #[inline(always)]
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// True if the flag was clear; it is set then. `at` is called between the steps.
    #[inline(always)]
    fn try_set(&self, mut at: impl FnMut(Step)) -> bool {
        at(Step::BeforeLoad);
        let was_set = self.is_set();
        explore::point();
        at(Step::AfterLoad);
        if was_set {
            return false;
        }
        self.0.store(1, Ordering::Relaxed);
        // Keeps the protected accesses after the store, for interrupts on this CPU (`LT-3`).
        compiler_fence(Ordering::SeqCst);
        explore::point();
        at(Step::AfterSet);
        true
    }

    /// Clears the flag, which the caller has set.
    #[inline(always)]
    fn clear(&self, mut at: impl FnMut(Step)) {
        at(Step::BeforeClear);
        explore::point();
        // Keeps the protected accesses before the store, for interrupts on this CPU (`LT-3`).
        compiler_fence(Ordering::SeqCst);
        self.0.store(0, Ordering::Relaxed);
        at(Step::AfterClear);
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use std::vec::Vec;

    use super::*;

    /// A whole user, as an interrupt would be: in, out again.
    fn nested_user(flag: &Flag) -> bool {
        let got_in = flag.try_set(|_| ());
        if got_in {
            flag.clear(|_| ());
        }
        got_in
    }

    #[test]
    fn a_nested_user_at_any_step_leaves_the_outer_one_right() {
        let flag = Flag::new();
        let inside = Cell::new(false);
        let seen = Cell::new(Vec::new());
        let probe = |step| {
            let got_in = nested_user(&flag);
            assert!(!(got_in && inside.get()), "two users at once after {step:?}");
            let mut list = seen.take();
            list.push((step, got_in));
            seen.set(list);
        };
        assert!(flag.try_set(|step| {
            if step == Step::AfterSet {
                inside.set(true);
            }
            probe(step);
        }));
        flag.clear(|step| {
            if step == Step::AfterClear {
                inside.set(false);
            }
            probe(step);
        });
        assert_eq!(
            seen.take(),
            [
                (Step::BeforeLoad, true),
                (Step::AfterLoad, true),
                (Step::AfterSet, false),
                (Step::BeforeClear, false),
                (Step::AfterClear, true),
            ]
        );
        assert!(!flag.is_set(), "the flag is clear at the end");
    }

    #[test]
    fn three_levels_at_every_pair_of_steps_never_share() {
        // Task, interrupt and NMI: the interrupt comes after each step of the task, the NMI after
        // each step of the interrupt. At most one is ever inside.
        fn user(flag: &Flag, inside: &Cell<u32>, entries: &Cell<u32>, depth: u32) {
            let below = |_| {
                if depth > 0 {
                    user(flag, inside, entries, depth - 1);
                }
            };
            if !flag.try_set(below) {
                return;
            }
            assert_eq!(inside.replace(1), 0, "somebody else is inside");
            entries.set(entries.get() + 1);
            below(Step::AfterSet);
            inside.set(0);
            flag.clear(below);
        }
        let (flag, inside, entries) = (Flag::new(), Cell::new(0), Cell::new(0));
        // The probe after the real set comes before `inside` is marked, so only depth 2 is told
        // apart by the flag itself; run all depths.
        for depth in 0..=2 {
            user(&flag, &inside, &entries, depth);
            assert!(!flag.is_set());
        }
        assert!(entries.get() > 3, "nested users did get in where the flag was clear");
    }
}
