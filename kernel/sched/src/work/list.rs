//! A doubly linked list threaded through what is in it.
//!
//! Key types: [`Links`], embedded in what is listed, and [`List`].
//!
//! Invariants:
//!
//! * `LIST-1`: what is listed is in one list only and stays in place until it has left it.
//! * `LIST-2`: one lock guards a list and the links of all that is in it: the pool's lock, in this module's neighbours.
//!
//! Context: any that may take that lock. Everything but walking takes constant time.

use core::cell::Cell;
use core::ptr;

/// Where a listed thing has its neighbours.
pub(super) struct Links<T> {
    next: Cell<*const T>,
    prev: Cell<*const T>,
}

impl<T> Links<T> {
    pub(super) const fn new() -> Links<T> {
        Links { next: Cell::new(ptr::null()), prev: Cell::new(ptr::null()) }
    }
}

/// What can be listed.
pub(super) trait Linked: Sized {
    fn links(&self) -> &Links<Self>;
}

/// First come first, unless pushed to the front.
pub(super) struct List<T> {
    first: Cell<*const T>,
    last: Cell<*const T>,
}

// SAFETY: LIST-2: whoever uses the list on another CPU has its lock.
unsafe impl<T: Sync> Send for List<T> {}

impl<T: Linked> List<T> {
    pub(super) const fn new() -> List<T> {
        List { first: Cell::new(ptr::null()), last: Cell::new(ptr::null()) }
    }

    /// Appends `new`.
    ///
    /// # Safety
    ///
    /// `LIST-1`: `new` is in no list, and stays in place while it is in this one.
    pub(super) unsafe fn push_back(&self, new: &T) {
        let prev = self.last.get();
        new.links().prev.set(prev);
        new.links().next.set(ptr::null());
        self.last.set(new);
        // SAFETY: LIST-1: null, or in the list and so in place.
        match unsafe { prev.as_ref() } {
            Some(prev) => prev.links().next.set(new),
            None => self.first.set(new),
        }
    }

    /// Puts `new` first.
    ///
    /// # Safety
    ///
    /// As [`List::push_back`].
    pub(super) unsafe fn push_front(&self, new: &T) {
        let next = self.first.get();
        new.links().next.set(next);
        new.links().prev.set(ptr::null());
        self.first.set(new);
        // SAFETY: LIST-1: null, or in the list and so in place.
        match unsafe { next.as_ref() } {
            Some(next) => next.links().prev.set(new),
            None => self.last.set(new),
        }
    }

    /// Takes `old` out.
    ///
    /// # Safety
    ///
    /// `old` is in this list.
    pub(super) unsafe fn remove(&self, old: &T) {
        let (next, prev) = (old.links().next.get(), old.links().prev.get());
        // SAFETY: LIST-1: null, or in the list and so in place.
        match unsafe { prev.as_ref() } {
            Some(prev) => prev.links().next.set(next),
            None => self.first.set(next),
        }
        // SAFETY: as above.
        match unsafe { next.as_ref() } {
            Some(next) => next.links().prev.set(prev),
            None => self.last.set(prev),
        }
    }

    /// The first, left where it is. It stays in place while the list's lock is held.
    pub(super) fn first(&self) -> Option<&T> {
        // SAFETY: LIST-1: null, or in the list and so in place.
        unsafe { self.first.get().as_ref() }
    }

    /// All in order. They stay in place while the list's lock is held.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let mut at = self.first();
        core::iter::from_fn(move || {
            let this = at?;
            // SAFETY: LIST-1: null, or in the list and so in place.
            at = unsafe { this.links().next.get().as_ref() };
            Some(this)
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    struct Number(u32, Links<Number>);

    impl Linked for Number {
        fn links(&self) -> &Links<Number> {
            &self.1
        }
    }

    fn numbers(list: &List<Number>) -> Vec<u32> {
        list.iter().map(|number| number.0).collect()
    }

    #[test]
    fn what_is_taken_out_leaves_the_others_in_order() {
        let all: Vec<_> = (0..4).map(|i| Number(i, Links::new())).collect();
        for out in 0..4 {
            let list = List::new();
            // SAFETY: in no list, in place until the end of the test.
            all.iter().for_each(|number| unsafe { list.push_back(number) });
            // SAFETY: it is in the list.
            unsafe { list.remove(&all[out]) };
            assert_eq!(numbers(&list), (0..4).filter(|&i| i != out as u32).collect::<Vec<_>>());
            // SAFETY: it is out.
            unsafe { list.push_front(&all[out]) };
            assert_eq!(list.first().map(|number| number.0), Some(out as u32));
            // SAFETY: all are in.
            all.iter().rev().for_each(|number| unsafe { list.remove(number) });
            assert!(numbers(&list).is_empty() && list.last.get().is_null());
        }
    }
}
