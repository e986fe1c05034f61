//! Values on the heap that readers may be using, by what may be done with them.
//!
//! | type | the value is | ways out |
//! |---|---|---|
//! | [`RcuBox`] | not published: the owner's alone | published, by [`Rcu`](crate::Rcu), [`RcuList`](crate::RcuList), [`RcuHashMap`](crate::RcuHashMap) |
//! | [`Retired`] | out of reach; readers from before may be using it | a grace period by callback, by waiting, or polled |
//! | [`Polled`] | the same, and a grace period was asked for | the box again once that is over |
//!
//! Each is moved into the next, so a value cannot be freed, changed or published again while a reader may look at it.
//! None of the steps allocates: the callback's head lies beside the value.
//!
//! Invariants
//! - BOX-1: a published box is reachable through [`Link`](crate::link::Link)s alone, and `value` is not written.
//! - BOX-2: whoever makes a [`Retired`] has put the box out of reach of new readers, and gives it away.
//!   [`Retired::give_back`] is called after a grace period that began later.
//! - BOX-3: readers hold references to `value`, never to the whole [`Inner`], whose head `call_rcu` writes meanwhile.

use alloc::alloc::{Layout, alloc};
use alloc::boxed::Box;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use sync::MaySleep;
use sync::callback::CallbackHead;

use crate::call::call_rcu;
use crate::poll::{Cookie, Pollable, cond_synchronize, start_poll};
use crate::sync_gp::synchronize_rcu;

/// A value with room for the callback that will free it.
#[repr(C)]
pub(crate) struct Inner<T> {
    /// First, so that a head is its box.
    head: CallbackHead,
    pub(crate) value: T,
}

/// A value on the heap with room for the callback that will free it, so that retiring it allocates nothing.
pub struct RcuBox<T>(Box<Inner<T>>);

impl<T> RcuBox<T> {
    /// Allocates. Context: where the global allocator may be used.
    pub fn new(value: T) -> Self {
        RcuBox(Box::new(Inner { head: CallbackHead::new(), value }))
    }

    /// Allocates, if there is memory. Context: where the global allocator may be used.
    ///
    /// # Errors
    /// The value, when there is no memory.
    pub fn try_new(value: T) -> Result<Self, T> {
        // SAFETY: the layout's size is not zero, it has a head in it.
        let place: *mut Inner<T> = unsafe { alloc(Layout::new::<Inner<T>>()) }.cast();
        if place.is_null() {
            return Err(value);
        }
        // SAFETY: fresh memory of that layout.
        unsafe { place.write(Inner { head: CallbackHead::new(), value }) };
        // SAFETY: from the global allocator with that layout, and it holds a value.
        Ok(unsafe { Self::from_raw(place) })
    }

    /// The value, without its box.
    pub fn into_inner(this: Self) -> T {
        this.0.value
    }

    /// Gives the box away, to be had again by [`RcuBox::from_raw`].
    pub(crate) fn into_raw(self) -> *mut Inner<T> {
        Box::into_raw(self.0)
    }

    /// The box that was given away.
    ///
    /// # Safety
    /// `inner` is from [`RcuBox::into_raw`]; nobody else uses it.
    pub(crate) unsafe fn from_raw(inner: *mut Inner<T>) -> Self {
        // SAFETY: by the caller; `into_raw` got it from a box.
        RcuBox(unsafe { Box::from_raw(inner) })
    }
}

impl<T> Deref for RcuBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> DerefMut for RcuBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.value
    }
}

/// A value that is out of reach of new readers, while older ones may still be using it; its holder may look at it, too.
///
/// Dropped, it is retired: freed after a grace period.
#[must_use = "say what becomes of the old value: `retire`, `synchronize` or `into_polled`"]
pub struct Retired<T: Send + Sync + 'static>(NonNull<Inner<T>>);

// SAFETY: it owns a `T` that may go to any thread, and gives shared references to it.
unsafe impl<T: Send + Sync + 'static> Send for Retired<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync + 'static> Sync for Retired<T> {}

impl<T: Send + Sync + 'static> Retired<T> {
    /// What was just taken out of reach.
    ///
    /// # Safety
    /// BOX-2: `inner` is a box that was published, readers cannot find it any more, and it is given away here.
    pub(crate) unsafe fn new(inner: NonNull<Inner<T>>) -> Self {
        Retired(inner)
    }

    /// Drops the value after a grace period, by a callback. Context: any but NMI. Does not allocate or wait; the drop
    /// itself runs where callbacks run, in softirq context.
    pub fn retire(self) {
        drop(self);
    }

    /// Waits until no reader uses the value, and gives it back. Context: task, sleeps.
    pub fn synchronize(self, cx: &mut MaySleep) -> RcuBox<T> {
        synchronize_rcu(cx);
        // SAFETY: BOX-2: a grace period has passed since it was taken out of reach.
        unsafe { self.give_back() }
    }

    /// Asks for a grace period, to take the value back once that is over. Context: any but NMI.
    ///
    /// ```no_run
    /// # use grange_rcu::{Polled, Rcu, RcuBox};
    /// # fn make(_: Option<RcuBox<[u8; 512]>>) -> RcuBox<[u8; 512]> { unimplemented!() }
    /// /// Writes each table into the memory of the one before the last, if its readers have gone by now.
    /// fn update(table: &Rcu<[u8; 512]>, spare: &mut Option<Polled<[u8; 512]>>) {
    ///     let reused = spare.take().and_then(|old| old.try_take().ok());
    ///     *spare = table.replace(Some(make(reused))).map(|old| old.into_polled());
    /// }
    /// ```
    pub fn into_polled(self) -> Polled<T> {
        Polled { cookie: start_poll(), value: self }
    }

    /// The box, to be used as before.
    ///
    /// # Safety
    /// BOX-2: a grace period has passed since `self` was made.
    unsafe fn give_back(self) -> RcuBox<T> {
        let this = ManuallyDrop::new(self);
        // SAFETY: it was given away to this type alone, and who could have found it before has ended, says the caller.
        unsafe { RcuBox::from_raw(this.0.as_ptr()) }
    }
}

impl<T: Send + Sync + 'static> Deref for Retired<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: not freed before `self` is given up; references to the value are shared (BOX-1, BOX-3).
        unsafe { &(*self.0.as_ptr()).value }
    }
}

impl<T: Send + Sync + 'static> Drop for Retired<T> {
    fn drop(&mut self) {
        /// # Safety
        /// `head` is the first field of an `Inner<T>` that was given away, and nobody else uses it any more.
        unsafe fn free<T>(head: *mut CallbackHead) {
            // SAFETY: by the caller; `Inner` is `repr(C)` with the head first.
            drop(unsafe { RcuBox::from_raw(head.cast::<Inner<T>>()) });
        }
        // SAFETY: the box is ours alone until the callback has it (BOX-2), and `T` is `Send`.
        unsafe { call_rcu(self.0.as_ptr().cast(), free::<T>) };
    }
}

/// A value that waits for a grace period which was asked for; see [`Retired::into_polled`]. Dropped, it is retired.
#[must_use = "dropped, it waits for a second grace period"]
pub struct Polled<T: Send + Sync + 'static> {
    /// Made after the value was taken out of reach.
    cookie: Cookie,
    value: Retired<T>,
}

impl<T: Send + Sync + 'static> Polled<T> {
    /// Whether no reader uses the value any more. Context: any.
    pub fn is_over(&self) -> bool {
        self.cookie.is_over()
    }

    /// The value, if no reader uses it any more. Context: any but NMI.
    ///
    /// # Errors
    /// `self`, to be asked again.
    pub fn try_take(self) -> Result<RcuBox<T>, Self> {
        if !self.is_over() {
            return Err(self);
        }
        // SAFETY: BOX-2: the cookie was made after the value was taken out of reach, and it is over.
        Ok(unsafe { self.value.give_back() })
    }

    /// Waits for what is left of the grace period. Context: task, sleeps.
    pub fn synchronize(self, cx: &mut MaySleep) -> RcuBox<T> {
        cond_synchronize(self.cookie, cx);
        // SAFETY: as in `try_take`.
        unsafe { self.value.give_back() }
    }
}

impl<T: Send + Sync + 'static> Deref for Polled<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}
