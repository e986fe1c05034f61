//! Objects that wait without a place in a [`Store`](super::store::Store): linked through their own heads, or through one that was
//! allocated for them (S3-7, S3-8, S3-11).
//!
//! # Invariants
//! - **LNK-1** A link with the low bit set is that of a [`Tracker`], which is freed when its object leaves the list; any other
//!   lies in its object. Links are aligned to 8.

use core::ptr::NonNull;

use mm::AllocFlags;

use super::object::Deferred;
use crate::head::RcuPtr;

/// LNK-1.
const ALLOCATED: usize = 1;

/// A head for an object that has none.
#[repr(C)]
struct Tracker {
    link: RcuPtr,
    object: NonNull<u8>,
}

/// A link that an object can be put on a list by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link(NonNull<RcuPtr>);

impl Link {
    /// The object's own.
    pub(super) fn own(head: NonNull<RcuPtr>) -> Self {
        Self(head)
    }

    /// One that is allocated for `object`, if there is memory. Context: any but NMI; takes no lock that it has to wait for.
    pub(super) fn allocated(object: NonNull<u8>) -> Option<Self> {
        let place = slab::kmalloc_nolock(size_of::<Tracker>(), AllocFlags::NOWARN)?.cast::<Tracker>();
        // SAFETY: a fresh block of that size, aligned to 8.
        unsafe { place.write(Tracker { link: RcuPtr::new(), object }) };
        Some(Self(place.cast().map_addr(|at| at | ALLOCATED)))
    }

    /// The head, and whether it was allocated.
    fn head(self) -> (NonNull<RcuPtr>, bool) {
        let head = self.0.as_ptr().map_addr(|at| at & !ALLOCATED);
        (NonNull::new(head).expect("LNK-1: the bit is not all of a link"), self.0.addr().get() & ALLOCATED != 0)
    }

    /// Gives an allocated one back that was not needed.
    pub(super) fn discard(self) {
        if let (head, true) = self.head() {
            // SAFETY: a tracker of ours that is on no list.
            unsafe { slab::kfree_nolock(head.cast()) };
        }
    }
}

/// A list of such objects, newest first.
#[derive(Debug, Default)]
pub(super) struct Links {
    first: Option<NonNull<RcuPtr>>,
    last: Option<NonNull<RcuPtr>>,
    len: usize,
}

// SAFETY: a list is the exclusive right to the objects on it, which any CPU may free.
unsafe impl Send for Links {}

impl Links {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts an object in front.
    ///
    /// # Safety
    /// The object and its link are given up to the list.
    pub(super) unsafe fn push(&mut self, link: Link) {
        let (head, _) = link.head();
        // SAFETY: the link is ours, by the caller.
        unsafe { RcuPtr::set_next(head, self.first) };
        self.first = Some(link.0);
        self.last.get_or_insert(link.0);
        self.len += 1;
    }

    /// Takes the newest object off, and frees its tracker if it had one.
    ///
    /// # Safety
    /// The links that are not allocated are those of objects of a `T`.
    pub(super) unsafe fn pop<T: Deferred>(&mut self) -> Option<NonNull<u8>> {
        let link = Link(self.first?);
        let (head, is_allocated) = link.head();
        // SAFETY: it was pushed, so the link is ours until the object is gone.
        self.first = unsafe { RcuPtr::next(head) };
        if self.first.is_none() {
            self.last = None;
        }
        self.len -= 1;
        if !is_allocated {
            // SAFETY: by the caller.
            return Some(unsafe { T::object_of(head) });
        }
        // SAFETY: a tracker, by LNK-1, and off the list.
        let object = unsafe { head.cast::<Tracker>().read().object };
        link.discard();
        Some(object)
    }

    /// Moves all of `other` behind what is here. In constant time.
    pub(super) fn append(&mut self, other: &mut Self) {
        let other = core::mem::take(other);
        match self.last {
            // SAFETY: the last link of a list that we own.
            Some(last) => unsafe { RcuPtr::set_next(Link(last).head().0, other.first) },
            None => self.first = other.first,
        }
        self.last = other.last.or(self.last);
        self.len += other.len;
    }
}
