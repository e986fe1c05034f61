//! Pointers that readers of a domain follow and updaters replace.
//!
//! As [`Rcu`](crate::Rcu), with the sections of one domain in the place of RCU's: the pointer knows its domain, and a read
//! asks for a guard of that very domain (checked at each read, for two domains of one flavour have one type).
//!
//! ```no_run
//! use grange_rcu::RcuBox;
//! use grange_rcu::srcu::{Normal, Srcu, SrcuDomain, srcu_read_lock};
//!
//! fn thread(domain: &SrcuDomain<Normal>, cx: &mut sync::MaySleep) {
//!     let config = Srcu::new(domain, RcuBox::new(1));
//!     {
//!         let guard = srcu_read_lock(domain);
//!         let value: &u64 = config.read(&guard).unwrap();    // borrows from the guard
//!         sched::sleep_ns(cx, 1_000);                        // which may sleep
//!         assert_eq!(*value, 1);
//!     }
//!     config.replace(Some(RcuBox::new(2))).unwrap().retire();
//! }
//! ```
//!
//! ```compile_fail,E0505
//! use grange_rcu::srcu::{Normal, Srcu, SrcuDomain, srcu_read_lock};
//! fn thread(domain: &SrcuDomain<Normal>, config: &Srcu<'_, u64, Normal>) {
//!     let guard = srcu_read_lock(domain);
//!     let value = config.read(&guard);
//!     drop(guard);
//!     assert!(value.is_some());
//! }
//! ```
//!
//! Invariants: PTR-1 and PTR-2 of `crate::ptr`, with a grace period of the domain. Row R-21. Answers to Linux
//! `srcu_dereference`.

use core::ptr::{self, NonNull};

use sync::MaySleep;
use sync::atomic::{AtomicPtr, Ordering};

use super::callbacks::call_srcu;
use super::domain::SrcuDomain;
use super::flavour::Flavour;
use super::reader::InSection;
use super::wait::synchronize_srcu;
use crate::boxed::{Inner, RcuBox, drop_box, head_of};

/// A pointer to a value that readers of a domain may be using while updaters replace it.
pub struct Srcu<'d, T: Send + Sync + 'static, F: Flavour> {
    domain: &'d SrcuDomain<F>,
    /// Null, or from an `RcuBox` (PTR-1). Written by updaters, read by readers.
    ptr: AtomicPtr<Inner<T>>,
}

impl<'d, T: Send + Sync + 'static, F: Flavour> Srcu<'d, T, F> {
    /// Points nowhere.
    pub const fn null(domain: &'d SrcuDomain<F>) -> Self {
        Srcu { domain, ptr: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Points to `value`.
    ///
    /// # Panics
    /// If the value's box has no callback's head ([`RcuBox::try_new_in`]): it could not wait for the domain.
    pub fn new(domain: &'d SrcuDomain<F>, value: RcuBox<T>) -> Self {
        Srcu { domain, ptr: AtomicPtr::new(raw(value)) }
    }

    /// The value now, for as long as the section lasts. Context: that of the section. One load and a comparison.
    ///
    /// # Panics
    /// If the section is one of another domain.
    #[inline]
    pub fn read<'g>(&'g self, section: &'g impl InSection<F>) -> Option<&'g T> {
        assert!(ptr::eq(section.domain(), self.domain), "SRCU: a pointer is read in a section of another domain");
        // Acquire: pairs with the Release in `replace`: the value is seen as it was when it was put here.
        let inner = self.ptr.load(Ordering::Acquire);
        // SAFETY: null or a box that was put here (PTR-1); if it has been replaced since, it is not freed before this
        // section has ended (PTR-2), and 'g ends before that. Of the box only the value (BOX-3).
        (!inner.is_null()).then(|| unsafe { &(*inner).value })
    }

    /// Puts `new` in the place of the old value, for sections that begin from now on. Context: any. Wait-free.
    ///
    /// # Panics
    /// As for [`new`](Self::new).
    pub fn replace(&self, new: Option<RcuBox<T>>) -> Option<SrcuRetired<'d, T, F>> {
        let new = new.map_or(ptr::null_mut(), raw);
        // Release: pairs with the Acquire in `read`. Acquire: the old value as whoever put it here left it.
        let old = self.ptr.swap(new, Ordering::AcqRel);
        // Null or a box that was put here; the swap gave it to us alone (PTR-1).
        NonNull::new(old).map(|inner| SrcuRetired { domain: self.domain, inner })
    }
}

/// The box as a pointer has it.
fn raw<T>(value: RcuBox<T>) -> *mut Inner<T> {
    assert!(value.has_callback(), "SRCU: a box without a callback's head cannot wait for a domain");
    value.into_raw()
}

impl<T: Send + Sync + 'static, F: Flavour> Drop for Srcu<'_, T, F> {
    /// The value waits for a grace period: a reader that found this pointer through another one may still use it.
    fn drop(&mut self) {
        if let Some(last) = self.replace(None) {
            last.retire();
        }
    }
}

/// A value that has been replaced: readers of the domain may still be using it.
#[must_use = "retire it, or wait for its readers; dropping it leaks it"]
pub struct SrcuRetired<'d, T: Send + Sync + 'static, F: Flavour> {
    domain: &'d SrcuDomain<F>,
    inner: NonNull<Inner<T>>,
}

// SAFETY: it owns a `T` that may go to any thread.
unsafe impl<T: Send + Sync + 'static, F: Flavour> Send for SrcuRetired<'_, T, F> {}

impl<T: Send + Sync + 'static, F: Flavour> SrcuRetired<'_, T, F> {
    /// Drops the value after a grace period, by a callback. Context: any but NMI. Does not allocate or wait.
    pub fn retire(self) {
        // SAFETY: the box is ours alone until the callback has it (PTR-2), and `T` is `Send`.
        unsafe { call_srcu(self.domain, head_of(self.inner), drop_box::<T>) };
    }

    /// Waits until no reader uses the value, and gives it back. Context: task, sleeps; not in a section of the domain.
    pub fn synchronize(self, cx: &mut MaySleep) -> RcuBox<T> {
        synchronize_srcu(self.domain, cx);
        // SAFETY: ours alone since the swap, and all readers that could have seen it have ended.
        unsafe { RcuBox::from_raw(self.inner.as_ptr()) }
    }
}
