//! [`Link`]: the pointer that readers follow, in [`Rcu`](crate::Rcu), in lists and in hash tables.
//!
//! Invariant LINK-1: a link that readers can reach is null or points to a published box, which is not freed before a grace
//! period that began after no such link pointed to it any more.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::boxed::Inner;

/// A pointer to a box, owned or not by what it is part of.
pub(crate) struct Link<T>(AtomicPtr<Inner<T>>);

impl<T> Link<T> {
    pub(crate) const fn null() -> Self {
        Link(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn new(to: *mut Inner<T>) -> Self {
        Link(AtomicPtr::new(to))
    }

    /// The value that a reader finds. One load.
    ///
    /// # Safety
    /// LINK-1 holds, and for `'g` the caller is in a reader, or keeps updaters out.
    #[inline]
    pub(crate) unsafe fn follow<'g>(&self) -> Option<&'g T> {
        // Acquire: pairs with the Release in `set` and `swap`: the value is seen as it was when it was published. (An
        // address dependency would do; the language has none.)
        let inner = self.0.load(Ordering::Acquire);
        // SAFETY: not null, so a box that is not freed while 'g lasts (LINK-1). Of the box only the value (BOX-3).
        (!inner.is_null()).then(|| unsafe { &(*inner).value })
    }

    /// Where it points to, for updaters, who keep one another out.
    pub(crate) fn get(&self) -> *mut Inner<T> {
        self.0.load(Ordering::Relaxed)
    }

    /// Points it to `to`, for readers that come from now on.
    pub(crate) fn set(&self, to: *mut Inner<T>) {
        // Release: pairs with the Acquire in `follow`. Also when `to` was published before: by another CPU, perhaps, and
        // this link's readers synchronise with this store only.
        self.0.store(to, Ordering::Release);
    }

    /// Points it to `to`, and returns where it pointed, for updaters that do not keep one another out.
    pub(crate) fn swap(&self, to: *mut Inner<T>) -> *mut Inner<T> {
        // Release: pairs with the Acquire in `follow`. Acquire: the old value as whoever published it left it.
        self.0.swap(to, Ordering::AcqRel)
    }

    /// [`Link::swap`], if it points to the value at `current` (to nothing, if that is null).
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn swap_if(&self, current: *const T, to: *mut Inner<T>) -> Result<*mut Inner<T>, ()> {
        let found = self.0.load(Ordering::Relaxed);
        let its_value = match found.is_null() {
            true => ptr::null(),
            // Computed, not looked at: the box may be gone.
            false => found.wrapping_byte_add(core::mem::offset_of!(Inner<T>, value)).cast::<T>().cast_const(),
        };
        if !ptr::eq(its_value, current) {
            return Err(());
        }
        // As in `swap`. If it fails nothing was read that anybody uses.
        self.0.compare_exchange(found, to, Ordering::AcqRel, Ordering::Relaxed).map_err(|_| ())
    }
}
