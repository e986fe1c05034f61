//! Pointers that readers follow and updaters replace, typed so that misuse does not compile.
//!
//! ```no_run
//! use grange_rcu::{Rcu, RcuBox, read_lock, synchronize_rcu};
//! # fn thread(cx: &mut sync::MaySleep) {
//! let config: Rcu<u64> = Rcu::new(RcuBox::new(1));
//! {
//!     let guard = read_lock(cx);
//!     let value: &u64 = config.read(&guard).unwrap();   // borrows from the guard
//!     assert_eq!(*value, 1);
//! }
//! let old = config.replace(Some(RcuBox::new(2))).unwrap();
//! old.retire();                                         // freed after a grace period
//! # }
//! ```
//!
//! A reference cannot outlive its reader:
//!
//! ```compile_fail,E0505
//! # use grange_rcu::{Rcu, read_lock};
//! fn thread(cx: &sync::MaySleep, table: &Rcu<u64>) {
//!     let guard = read_lock(cx);
//!     let value = table.read(&guard);
//!     drop(guard);
//!     assert!(value.is_some());
//! }
//! ```
//!
//! Invariants
//! - PTR-1: the pointer in an [`Rcu`] is null or owns its box.
//! - PTR-2: a box that has been in an [`Rcu`] is dropped after a grace period only: what [`Rcu::replace`] hands back is a
//!   [`Retired`], whose only ways out wait for one.
//!
//! Contexts: reading any, NMI included; replacing any, wait-free; several updaters may replace at once, each gets
//! another old value. Answers to Linux include/linux/rcupdate.h (`rcu_dereference`, `rcu_assign_pointer`).

use alloc::boxed::Box;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use sync::MaySleep;
use sync::callback::CallbackHead;

use crate::call::call_rcu;
use crate::reader::RcuReadGuard;
use crate::sync_gp::synchronize_rcu;

/// A value on the heap with room for the callback that will free it, so that retiring it allocates nothing.
pub struct RcuBox<T>(Box<Inner<T>>);

#[repr(C)]
pub(crate) struct Inner<T> {
    /// First, so that a head is its box.
    head: CallbackHead,
    value: T,
}

impl<T> Inner<T> {
    /// The value.
    #[inline(always)]
    pub(crate) fn value(&self) -> &T {
        &self.value
    }
}

impl<T> RcuBox<T> {
    /// Allocates. Context: where the global allocator may be used.
    pub fn new(value: T) -> Self {
        RcuBox(Box::new(Inner { head: CallbackHead::new(), value }))
    }

    /// The memory, now the caller's.
    pub(crate) fn into_raw(self) -> ptr::NonNull<Inner<T>> {
        ptr::NonNull::from(Box::leak(self.0))
    }

    /// # Safety
    /// `inner` is from [`RcuBox::into_raw`], and the caller's alone.
    pub(crate) unsafe fn from_raw(inner: ptr::NonNull<Inner<T>>) -> Self {
        // SAFETY: by the caller: leaked from a box.
        RcuBox(unsafe { Box::from_raw(inner.as_ptr()) })
    }
}

impl<T> core::ops::Deref for RcuBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> core::ops::DerefMut for RcuBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.value
    }
}

/// A pointer to a value that readers may be using while updaters replace it.
pub struct Rcu<T: Send + Sync + 'static> {
    /// Null, or from `Box::into_raw` (PTR-1). Written by updaters, read by readers.
    ptr: AtomicPtr<Inner<T>>,
}

impl<T: Send + Sync + 'static> Rcu<T> {
    /// Points nowhere.
    pub const fn null() -> Self {
        Rcu { ptr: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Points to `value`.
    pub fn new(value: RcuBox<T>) -> Self {
        Rcu { ptr: AtomicPtr::new(Box::into_raw(value.0)) }
    }

    /// The value now, for as long as the reader lives. Context: any. One load.
    #[inline]
    pub fn read<'g>(&'g self, _reader: &'g RcuReadGuard<'_>) -> Option<&'g T> {
        // Acquire: pairs with the Release in `replace`: the value is seen as it was when it was put here. (An address
        // dependency would do; the language has none.)
        let inner = self.ptr.load(Ordering::Acquire);
        // SAFETY: null or a box that was put here (PTR-1); if it has been replaced since, it is not freed before this
        // reader has ended (PTR-2), and 'g ends before that.
        unsafe { inner.as_ref() }.map(|inner| &inner.value)
    }

    /// Puts `new` in the place of the old value, for readers that come from now on. Context: any. Wait-free.
    pub fn replace(&self, new: Option<RcuBox<T>>) -> Option<Retired<T>> {
        let new = new.map_or(ptr::null_mut(), |new| Box::into_raw(new.0));
        // Release: pairs with the Acquire in `read`. Acquire: the old value as whoever put it here left it.
        let old = self.ptr.swap(new, Ordering::AcqRel);
        // Null or a box that was put here; the swap gave it to us alone (PTR-1).
        ptr::NonNull::new(old).map(Retired)
    }
}

impl<T: Send + Sync + 'static> Drop for Rcu<T> {
    /// The value waits for a grace period: a reader that found this pointer through another one may still use it.
    fn drop(&mut self) {
        if let Some(last) = self.replace(None) {
            last.retire();
        }
    }
}

/// A value that has been replaced: readers may still be using it.
#[must_use = "retire it, or wait for its readers; dropping it leaks it"]
pub struct Retired<T: Send + Sync + 'static>(ptr::NonNull<Inner<T>>);

// SAFETY: it owns a `T` that may go to any thread.
unsafe impl<T: Send + Sync + 'static> Send for Retired<T> {}

impl<T: Send + Sync + 'static> Retired<T> {
    /// Drops the value after a grace period, by a callback. Context: any but NMI. Does not allocate or wait; the drop
    /// itself runs in softirq context.
    pub fn retire(self) {
        /// # Safety
        /// `head` is the first field of a leaked `Inner<T>` that nobody else uses any more.
        unsafe fn free<T>(head: *mut CallbackHead) {
            // SAFETY: by the caller; `Inner` is `repr(C)` with the head first.
            drop(unsafe { Box::from_raw(head.cast::<Inner<T>>()) });
        }
        // SAFETY: the box is ours alone until the callback has it (PTR-2), and `T` is `Send`.
        unsafe { call_rcu(self.0.as_ptr().cast(), free::<T>) };
    }

    /// Waits until no reader uses the value, and gives it back. Context: task, sleeps.
    pub fn synchronize(self, cx: &mut MaySleep) -> RcuBox<T> {
        synchronize_rcu(cx);
        // SAFETY: leaked from a box, ours alone since the swap, and all readers that could have seen it have ended.
        RcuBox(unsafe { Box::from_raw(self.0.as_ptr()) })
    }
}
