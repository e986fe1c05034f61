//! Pointers that readers follow and updaters replace, typed so that misuse does not compile.
//!
//! ```no_run
//! use grange_rcu::{Rcu, RcuBox, read_lock};
//! # fn thread(cx: &mut sync::MaySleep) {
//! let config: Rcu<u64> = Rcu::new(RcuBox::new(1));
//! {
//!     let guard = read_lock(cx);
//!     let value: &u64 = config.read(&guard).unwrap();   // borrows from the guard
//!     assert_eq!(*value, 1);
//! }
//! config.publish(RcuBox::new(2));                       // the 1 is freed after a grace period
//! let old = config.replace(Some(RcuBox::new(3)));       // or is still to be looked at
//! assert_eq!(*old.unwrap().synchronize(cx), 2);         // or comes back after one
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
//! - PTR-1: the link in an [`Rcu`] is null or owns its box.
//! - PTR-2: a box that has been in an [`Rcu`] is given back or freed after a grace period ([`Retired`]), or through
//!   `&mut Rcu`: a reader borrows the [`Rcu`] as well as its guard, so there is none then.
//! - PTR-3: the link in an [`RcuCell`] is never null.
//!
//! Contexts: reading any, NMI included; replacing any but NMI, wait-free, [`Rcu::update`] lock-free; several updaters may
//! replace at once, each gets another old value. Answers to Linux include/linux/rcupdate.h (`rcu_dereference`,
//! `rcu_assign_pointer`, `rcu_replace_pointer`, `unrcu_pointer`).

use core::ptr::{self, NonNull};

use sync::ATOMIC;

use crate::boxed::{Inner, RcuBox, Retired};
use crate::link::Link;
use crate::reader::{RcuReadGuard, read_lock};

/// A pointer to a value that readers may be using while updaters replace it.
pub struct Rcu<T: Send + Sync + 'static>(Link<T>);

impl<T: Send + Sync + 'static> Rcu<T> {
    /// Points nowhere.
    pub const fn null() -> Self {
        Rcu(Link::null())
    }

    /// Points to `value`.
    pub fn new(value: RcuBox<T>) -> Self {
        Rcu(Link::new(value.into_raw()))
    }

    /// The value now, for as long as the reader lives. Context: any. One load.
    #[inline]
    pub fn read<'g>(&'g self, _reader: &'g RcuReadGuard<'_>) -> Option<&'g T> {
        // SAFETY: a box that was put here (PTR-1); if it has been replaced since, it is not freed before this reader
        // has ended (PTR-2), and 'g ends before that.
        unsafe { self.0.follow() }
    }

    /// A copy of the value now, by a reader of its own. Context: any; `clone` runs inside the reader.
    pub fn read_cloned(&self) -> Option<T>
    where
        T: Clone,
    {
        self.read(&read_lock(ATOMIC)).cloned()
    }

    /// Puts `new` in the place of the old value, for readers that come from now on. Context: any but NMI. Wait-free.
    pub fn replace(&self, new: Option<RcuBox<T>>) -> Option<Retired<T>> {
        let old = self.0.swap(raw(new));
        // SAFETY: null or a box that was put here (PTR-1); the swap took it out of reach and gave it to us alone.
        NonNull::new(old).map(|old| unsafe { Retired::new(old) })
    }

    /// Puts `new` in the place of the old value, which is freed after a grace period. Context: any but NMI. Wait-free.
    pub fn publish(&self, new: RcuBox<T>) {
        drop(self.replace(Some(new)));
    }

    /// [`replace`](Self::replace), if the value is still the one that `reader` has found, `current`. Context: any but NMI.
    ///
    /// That value cannot have been freed and its memory published again meanwhile: `reader` saw it, and still lasts.
    ///
    /// # Errors
    /// `new`: somebody else has been faster.
    pub fn replace_if<'g>(
        &self,
        current: Option<&'g T>,
        new: Option<RcuBox<T>>,
        _reader: &'g RcuReadGuard<'_>,
    ) -> Result<Option<Retired<T>>, Option<RcuBox<T>>> {
        let new = raw(new);
        match self.0.swap_if(current.map_or(ptr::null(), ptr::from_ref), new) {
            // SAFETY: as in `replace`.
            Ok(old) => Ok(NonNull::new(old).map(|old| unsafe { Retired::new(old) })),
            // SAFETY: null, or given away above and not published.
            Err(()) => Err((!new.is_null()).then(|| unsafe { RcuBox::from_raw(new) })),
        }
    }

    /// Replaces the value by what `f` makes of it. If somebody else replaces it meanwhile, `f` is called again.
    ///
    /// Returns the old value. Context: any but NMI, lock-free; `f` runs inside a reader, so it does not sleep.
    ///
    /// ```no_run
    /// # use grange_rcu::{Rcu, RcuBox};
    /// # fn count(total: &Rcu<(u64, u64)>) {
    /// let old = total.update(|now| {
    ///     let (count, sum) = now.copied().unwrap_or_default();
    ///     Some(RcuBox::new((count + 1, sum + 10)))
    /// });
    /// drop(old); // it is freed after a grace period
    /// # }
    /// ```
    pub fn update(&self, mut f: impl FnMut(Option<&T>) -> Option<RcuBox<T>>) -> Option<Retired<T>> {
        let reader = read_lock(ATOMIC);
        loop {
            let current = self.read(&reader);
            if let Ok(old) = self.replace_if(current, f(current), &reader) {
                return old;
            }
        }
    }

    /// The value, which no reader can be using: readers borrow `self`.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        // SAFETY: PTR-1, PTR-2: a box of ours that nobody else looks at while `self` is borrowed.
        NonNull::new(self.0.get()).map(|inner| unsafe { &mut (*inner.as_ptr()).value })
    }

    /// The value, out of a pointer that no reader can be using.
    pub fn into_inner(mut self) -> Option<RcuBox<T>> {
        self.take()
    }

    fn take(&mut self) -> Option<RcuBox<T>> {
        let inner = self.0.swap(ptr::null_mut());
        // SAFETY: as in `get_mut`, and the link lets go of it.
        NonNull::new(inner).map(|inner| unsafe { RcuBox::from_raw(inner.as_ptr()) })
    }
}

/// The box as a link has it.
fn raw<T>(boxed: Option<RcuBox<T>>) -> *mut Inner<T> {
    boxed.map_or(ptr::null_mut(), RcuBox::into_raw)
}

impl<T: Send + Sync + 'static> Drop for Rcu<T> {
    /// Frees the value at once: readers borrow `self`, so there are none. Where the pointer itself is part of something that
    /// readers find, that has waited for them.
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// An [`Rcu`] that always points to a value.
///
/// ```no_run
/// # use grange_rcu::{RcuBox, RcuCell, read_lock};
/// # fn thread(cx: &sync::MaySleep) {
/// let limit = RcuCell::new(RcuBox::new(10));
/// assert_eq!(*limit.read(&read_lock(cx)), 10);
/// limit.publish(RcuBox::new(20));
/// # }
/// ```
pub struct RcuCell<T: Send + Sync + 'static>(Rcu<T>);

impl<T: Send + Sync + 'static> RcuCell<T> {
    /// Points to `value`.
    pub fn new(value: RcuBox<T>) -> Self {
        RcuCell(Rcu::new(value))
    }

    /// [`Rcu::read`].
    #[inline]
    pub fn read<'g>(&'g self, reader: &'g RcuReadGuard<'_>) -> &'g T {
        let value = self.0.read(reader);
        // SAFETY: PTR-3.
        unsafe { value.unwrap_unchecked() }
    }

    /// [`Rcu::read_cloned`].
    pub fn read_cloned(&self) -> T
    where
        T: Clone,
    {
        self.read(&read_lock(ATOMIC)).clone()
    }

    /// [`Rcu::replace`].
    pub fn replace(&self, new: RcuBox<T>) -> Retired<T> {
        let old = self.0.replace(Some(new));
        old.expect("PTR-3: an RcuCell is never null")
    }

    /// [`Rcu::publish`].
    pub fn publish(&self, new: RcuBox<T>) {
        drop(self.replace(new));
    }

    /// [`Rcu::update`].
    pub fn update(&self, mut f: impl FnMut(&T) -> RcuBox<T>) -> Retired<T> {
        let old = self.0.update(|now| now.map(&mut f));
        old.expect("PTR-3: an RcuCell is never null")
    }

    /// [`Rcu::get_mut`].
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().expect("PTR-3: an RcuCell is never null")
    }

    /// [`Rcu::into_inner`].
    pub fn into_inner(self) -> RcuBox<T> {
        self.0.into_inner().expect("PTR-3: an RcuCell is never null")
    }
}
