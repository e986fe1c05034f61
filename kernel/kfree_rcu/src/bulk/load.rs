//! Objects that wait: two queues of pages of pointers, and a list through heads (K-1).
//!
//! A [`Load`] has one owner at a time: a CPU that collects, or a batch that waits for its grace period. Nothing here locks,
//! allocates or frees objects.

use core::ptr::NonNull;

use arch::clock;
use rcu::FullCookie;
use slab::waiting::{self, Stage};

use crate::backend::Waiting;
use crate::bnode::{Bnode, Pages};
use crate::free_now;
use crate::head::{RcuPtr, object_of};

/// Objects that wait.
#[derive(Default)]
pub(super) struct Load {
    /// Pointers into slabs and large blocks.
    pub(super) slab: Pages,
    /// Pointers to vmalloc areas.
    pub(super) vmalloc: Pages,
    pub(super) heads: Heads,
}

impl Load {
    pub(super) const fn new() -> Self {
        Self { slab: Pages::new(), vmalloc: Pages::new(), heads: Heads::new() }
    }

    /// The pages that a pointer to `object` belongs in.
    pub(super) fn channel(&mut self, object: NonNull<u8>) -> &mut Pages {
        if mm::is_vmalloc(object.as_ptr()) { &mut self.vmalloc } else { &mut self.slab }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slab.is_empty() && self.vmalloc.is_empty() && self.heads.is_empty()
    }

    pub(super) fn objects(&self) -> usize {
        self.slab.objects() + self.vmalloc.objects() + self.heads.len
    }

    /// Takes one page that has expired (K-4).
    pub(super) fn pop_expired(&mut self) -> Option<Bnode> {
        self.slab.pop_expired().or_else(|| self.vmalloc.pop_expired())
    }

    /// Takes one page.
    pub(super) fn pop(&mut self) -> Option<Bnode> {
        self.slab.pop().or_else(|| self.vmalloc.pop())
    }

    pub(super) fn waiting(&self) -> Waiting {
        let starts = [self.slab.since_ns(), self.vmalloc.since_ns(), self.heads.since_ns()];
        let since = starts.into_iter().flatten().min();
        let oldest_ns = since.map_or(0, |since| clock::now_ns().saturating_sub(since));
        Waiting { objects: self.objects(), oldest_ns }
    }
}

/// A list of objects through their heads, newest first.
#[derive(Default)]
pub(super) struct Heads {
    first: Option<NonNull<RcuPtr>>,
    len: usize,
    /// The grace period that the newest waits for, and when the oldest came.
    wait: Option<(FullCookie, u64)>,
}

// SAFETY: names objects that were given up; they belong to no CPU.
unsafe impl Send for Heads {}

impl Heads {
    const fn new() -> Self {
        Self { first: None, len: 0, wait: None }
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn since_ns(&self) -> Option<u64> {
        self.wait.map(|(_, since_ns)| since_ns)
    }

    /// Adds an object that was given up, by its head. It waits for `cookie`, which is no earlier than any before.
    pub(super) fn push(&mut self, head: NonNull<RcuPtr>, cookie: FullCookie) {
        // SAFETY: the object was given up, so its head is ours.
        unsafe { RcuPtr::set_next(head, self.first) };
        self.first = Some(head);
        self.len += 1;
        self.wait = Some((cookie, self.since_ns().unwrap_or_else(clock::now_ns)));
    }

    /// Whether the last object's grace period is over. True of an empty list.
    pub(super) fn expired(&self) -> bool {
        self.wait.is_none_or(|(cookie, _)| rcu::poll(cookie))
    }

    /// Takes the whole list, if it has expired.
    pub(super) fn take_expired(&mut self) -> Heads {
        if self.expired() { core::mem::take(self) } else { Heads::new() }
    }

    /// Frees the objects, whose grace period is over. Says how many they were.
    pub(super) fn free_all(self) -> usize {
        if !self.expired() {
            return crate::bnode::refuse(self.len);
        }
        if let Some(since_ns) = self.since_ns() {
            waiting::record(Stage::Bulk, clock::now_ns().saturating_sub(since_ns));
        }
        let mut next = self.first;
        while let Some(head) = next {
            // SAFETY: the object is ours until it is freed below.
            next = unsafe { RcuPtr::next(head) };
            let object = object_of(head).expect("an object that was accepted");
            waiting::leave(Stage::Bulk, object);
            free_now(object);
        }
        self.len
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
