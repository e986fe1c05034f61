//! [`RcuList`]: a list whose readers take no lock.
//!
//! ```no_run
//! use grange_rcu::{ListNode, RcuBox, RcuList, read_lock};
//! use sync::LockClass;
//!
//! static CLASS: LockClass = LockClass::new("routes");
//! static ROUTES: RcuList<u32> = RcuList::new(&CLASS);
//!
//! fn known(route: u32, cx: &sync::MaySleep) -> bool {
//!     ROUTES.iter(&read_lock(cx)).any(|&known| known == route)
//! }
//!
//! fn change(from: u32, to: u32, cx: &sync::MaySleep) {
//!     let new = RcuBox::new(ListNode::new(to));
//!     let mut routes = ROUTES.lock(cx);
//!     let mut at = routes.cursor();
//!     if at.find(|&known| known == from) {
//!         drop(at.replace(new));      // the old one is freed after a grace period
//!     }
//! }
//! ```
//!
//! Singly linked: readers go forward, and an updater's [`ListCursor`] knows the link that it would change. Each step of an
//! updater is one store, before which a reader sees the old list and after which the new one.
//!
//! | a reader on its way sees | |
//! |---|---|
//! | what is on the list all the time | once, in the list's order |
//! | what is inserted or removed meanwhile | or not |
//! | what is replaced | the old one or the new one |
//!
//! A reader that stands on an entry which is removed goes on from there: the entry keeps its link, and what that leads to
//! is not freed before the reader ends, even if it is removed as well.
//!
//! The list's own lock is the right to change it. There is no other:
//!
//! ```compile_fail,E0599
//! # use grange_rcu::RcuList;
//! fn thread(list: &RcuList<u32>) {
//!     let first = list.cursor().remove();
//! }
//! ```
//!
//! Invariants
//! - LIST-1: links are written with the list's lock held, or through `&mut RcuList`.
//! - LIST-2: an entry is on one list at most; a removed one comes back only after a grace period, as an [`RcuBox`].
//!
//! Contexts: reading any, NMI included, wait-free; updating any but NMI, under a spin lock with interrupts off, in which
//! nothing is allocated, freed or called but the caller's predicate. Answers to Linux include/linux/rculist.h.

use core::iter::FusedIterator;
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};

use sync::{Cx, LockClass, SpinIrqGuard, SpinLock};

use crate::boxed::{Inner, RcuBox, Retired};
use crate::link::Link;
use crate::reader::RcuReadGuard;

/// An entry of a list.
pub struct ListNode<T> {
    /// The next entry's (LIST-1).
    next: Link<ListNode<T>>,
    value: T,
}

impl<T> ListNode<T> {
    /// An entry that is on no list.
    pub const fn new(value: T) -> Self {
        ListNode { next: Link::null(), value }
    }

    /// The value, without its entry.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for ListNode<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for ListNode<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// A list; see the [module](self).
pub struct RcuList<T: Send + Sync + 'static> {
    /// The first entry's (LIST-1). The list owns its entries.
    first: Link<ListNode<T>>,
    /// Of the class that the list was made with. Nothing is taken inside it but by the predicates of its holder.
    lock: SpinLock<()>,
}

impl<T: Send + Sync + 'static> RcuList<T> {
    /// An empty list whose lock is of `class`.
    pub const fn new(class: &'static LockClass) -> Self {
        RcuList { first: Link::null(), lock: SpinLock::new((), class) }
    }

    /// All entries, for as long as the reader lives. Context: any.
    #[inline]
    pub fn iter<'g>(&'g self, _reader: &'g RcuReadGuard<'_>) -> ListIter<'g, T> {
        ListIter { at: &self.first }
    }

    /// The right to change the list. Context: any but NMI; spins.
    pub fn lock<'a>(&'a self, cx: &'a (impl Cx + ?Sized)) -> ListUpdater<'a, T> {
        ListUpdater { list: self, _lock: Some(self.lock.lock_irqsave(cx)) }
    }

    /// The same, of a list that nobody else can be using.
    pub fn get_mut(&mut self) -> ListUpdater<'_, T> {
        ListUpdater { list: self, _lock: None }
    }
}

impl<T: Send + Sync + 'static> Drop for RcuList<T> {
    /// Frees what is left at once: readers borrow the list, so there are none.
    fn drop(&mut self) {
        let mut next = self.first.get();
        while !next.is_null() {
            // SAFETY: the list owned it (LIST-2), nobody reads, and the link to it is not used again.
            let node = unsafe { RcuBox::from_raw(next) };
            next = node.next.get();
        }
    }
}

/// A reader's way through a list.
pub struct ListIter<'g, T> {
    /// The link that is followed next.
    at: &'g Link<ListNode<T>>,
}

impl<'g, T> Iterator for ListIter<'g, T> {
    type Item = &'g T;

    #[inline]
    fn next(&mut self) -> Option<&'g T> {
        // SAFETY: LINK-1: entries are published whole, and freed a grace period after they were removed. For 'g the
        // reader lasts by which this was made.
        let node = unsafe { self.at.follow() }?;
        self.at = &node.next;
        Some(&node.value)
    }
}

impl<T> FusedIterator for ListIter<'_, T> {}

/// The right to change a list.
pub struct ListUpdater<'a, T: Send + Sync + 'static> {
    list: &'a RcuList<T>,
    /// None if the list was borrowed for good.
    _lock: Option<SpinIrqGuard<'a, ()>>,
}

impl<T: Send + Sync + 'static> ListUpdater<'_, T> {
    /// A cursor at the first entry. Others wait until it is gone.
    pub fn cursor(&mut self) -> ListCursor<'_, T> {
        ListCursor { at: &self.list.first }
    }

    /// Puts an entry in front of all others.
    pub fn push_front(&mut self, node: RcuBox<ListNode<T>>) {
        self.cursor().insert(node);
    }
}

/// A place in a list where it can be changed: at an entry, or behind the last one.
pub struct ListCursor<'u, T: Send + Sync + 'static> {
    /// The link to that entry, in the one before, which stays on the list: nobody but this cursor could remove it.
    at: &'u Link<ListNode<T>>,
}

impl<'u, T: Send + Sync + 'static> ListCursor<'u, T> {
    fn node(&self) -> Option<&'u ListNode<T>> {
        // SAFETY: LINK-1; the updater, which this borrows, keeps others out (LIST-1).
        unsafe { self.at.follow() }
    }

    /// The entry that it is at; none behind the last one.
    pub fn current(&self) -> Option<&T> {
        self.node().map(|node| &node.value)
    }

    /// Goes to the next entry; false if it is behind the last one already.
    pub fn advance(&mut self) -> bool {
        let node = self.node();
        if let Some(node) = node {
            self.at = &node.next;
        }
        node.is_some()
    }

    /// Goes on to the first entry that `wanted` is true of, which may be the present one; false if there is none, and then it
    /// is behind the last one.
    pub fn find(&mut self, mut wanted: impl FnMut(&T) -> bool) -> bool {
        while let Some(node) = self.node() {
            if wanted(&node.value) {
                return true;
            }
            self.at = &node.next;
        }
        false
    }

    /// Puts `node` before the present entry, and is at `node` then.
    pub fn insert(&mut self, node: RcuBox<ListNode<T>>) {
        node.next.set(self.at.get());
        self.at.set(node.into_raw());
    }

    /// Takes the present entry off the list, and is at the next one then.
    pub fn remove(&mut self) -> Option<Retired<ListNode<T>>> {
        let next = self.node()?.next.get();
        Some(self.unlink(next))
    }

    /// Puts `node` in the place of the present entry.
    ///
    /// # Errors
    /// `node`: the cursor is behind the last entry.
    pub fn replace(&mut self, node: RcuBox<ListNode<T>>) -> Result<Retired<ListNode<T>>, RcuBox<ListNode<T>>> {
        let Some(current) = self.node() else { return Err(node) };
        node.next.set(current.next.get());
        Ok(self.unlink(node.into_raw()))
    }

    /// Points the link past the present entry, of which there is one, to `next`.
    fn unlink(&mut self, next: *mut Inner<ListNode<T>>) -> Retired<ListNode<T>> {
        let old = NonNull::new(self.at.get()).expect("the cursor is at an entry");
        self.at.set(next);
        // SAFETY: BOX-2: this link alone pointed to it (LIST-2), and the list gives it up.
        unsafe { Retired::new(old) }
    }

    /// Puts all entries of `other` before the present one, in their order, and is at the first of them then. Readers see
    /// all of them at once. Walks over `other`.
    pub fn splice(&mut self, other: &mut RcuList<T>) {
        let mut last = ListCursor { at: &other.first };
        while last.advance() {}
        last.at.set(self.at.get());
        // If `other` is empty its own first link is the last one, and this changes nothing.
        self.at.set(other.first.get());
        other.first.set(ptr::null_mut());
    }
}
