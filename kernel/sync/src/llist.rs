//! The lock-less list: many producers in any context push, a consumer takes everything.
//!
//! Intrusive: an object embeds a [`LlistNode`], or is free memory that is used as one. This is how
//! NMI handlers hand objects to code that can take locks: `irq_work`, the log, deferred frees.
//! It answers to Linux's llist (6.12, include/linux/llist.h, lib/llist.c).
//!
//! | | `add` | `take_all` | `is_empty` |
//! |---|---|---|---|
//! | `add` | lock-free together | lock-free together | may be stale |
//! | `take_all` | lock-free together | lock-free together, each gets a disjoint chain | may be stale |
//!
//! There is no "take one": that would need ABA protection, and no user has asked for it.
//!
//! # Invariants
//!
//! - `LL-1` A node is on at most one list, and its owner does not touch it from `add` until a
//!   chain yields it. Enforced by the contract of [`LlistHead::add`].
//! - `LL-2` Everything written before `add` is visible to whoever gets the node from `take_all`:
//!   the push is a release, the take an acquire, and pushes in between are read-modify-writes that
//!   continue the release sequence. Checked by `loom_what_was_written_before_add_is_seen_after_take_all`.
//! - `LL-3` Exactly one `add` between two `take_all`s reports that the list was empty, so exactly
//!   one producer kicks the consumer. Checked by `loom_one_producer_a_batch_finds_the_list_empty`.
//! - `LL-4` A chain yields a node only after it has read the node's link: the object may be freed
//!   or pushed again at once.
//!
//! Context: any, NMI included: a producer that is interrupted between its load and its exchange
//! fails the exchange and tries again; nobody waits for anybody.

use core::ptr;

use crate::atomic::{AtomicPtr, Ordering, point};

/// A link, embedded in an object or written over free memory.
#[repr(C)]
#[derive(Debug)]
pub struct LlistNode {
    next: AtomicPtr<LlistNode>,
}

impl LlistNode {
    crate::const_unless_loom! {
        /// A node that is on no list.
        #[must_use]
        pub fn new() -> Self {
            Self { next: AtomicPtr::new(ptr::null_mut()) }
        }
    }
}

impl Default for LlistNode {
    fn default() -> Self {
        Self::new()
    }
}

/// The head of a lock-less list.
#[repr(C)]
#[derive(Debug)]
pub struct LlistHead {
    first: AtomicPtr<LlistNode>,
}

impl LlistHead {
    crate::const_unless_loom! {
        /// An empty list.
        #[must_use]
        pub fn new() -> Self {
            Self { first: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Pushes `node`; true if the list was empty before.
    ///
    /// Context: any. Lock-free.
    ///
    /// # Safety
    /// `node` points to an initialised [`LlistNode`] that stays valid, is on no list, and is left
    /// alone until a chain yields it (`LL-1`).
    pub unsafe fn add(&self, node: *mut LlistNode) -> bool {
        // SAFETY: the caller's contract is the contract of a batch of one.
        unsafe { self.add_batch(node, node) }
    }

    /// Pushes the nodes from `first` to `last`, linked already; true if the list was empty before.
    ///
    /// Context: any. Lock-free.
    ///
    /// # Safety
    /// As for [`add`](Self::add), for each node; the links lead from `first` to `last`.
    pub unsafe fn add_batch(&self, first: *mut LlistNode, last: *mut LlistNode) -> bool {
        let mut head = self.first.load(Ordering::Relaxed);
        loop {
            // SAFETY: `last` is valid and ours until the exchange below succeeds (`LL-1`).
            unsafe { (*last).next.store(head, Ordering::Relaxed) };
            point();
            if crate::bug!("sync.list_torn", "a push to a lock-less list is a load and a store", "sync.a_list_takes*") {
                self.first.store(first, Ordering::Release);
                return head.is_null();
            }
            // Release: pairs with the acquire in `take_all`, so that the nodes' contents and links
            // are there before the nodes are (`LL-2`).
            match self.first.compare_exchange_weak(head, first, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return head.is_null(),
                Err(now) => head = now,
            }
        }
    }

    /// Takes everything, newest first; see [`LlistChain::reversed`] for oldest first.
    ///
    /// Context: any. Wait-free.
    #[must_use = "the nodes are off the list: dropping the chain leaks them"]
    pub fn take_all(&self) -> LlistChain {
        if self.is_empty() {
            return LlistChain { first: ptr::null_mut() };
        }
        point();
        // Acquire: pairs with the release in `add_batch` (`LL-2`).
        LlistChain { first: self.first.swap(ptr::null_mut(), Ordering::Acquire) }
    }

    /// Whether the list was empty a moment ago; a hint unless producers are kept out.
    ///
    /// Context: any. Wait-free.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed).is_null()
    }
}

impl Default for LlistHead {
    fn default() -> Self {
        Self::new()
    }
}

/// Nodes taken off a list; yields each once and owns nothing after.
///
/// Each yielded node belongs to the caller alone (`LL-1`, `LL-4`).
#[derive(Debug)]
pub struct LlistChain {
    first: *mut LlistNode,
}

// SAFETY: a chain is the exclusive right to its nodes; no thread-bound state is in it.
unsafe impl Send for LlistChain {}

impl LlistChain {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// The same nodes, oldest first. Linear in their number.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        let mut first = ptr::null_mut();
        for node in &mut self {
            // SAFETY: the chain owned the node and has just given it to us (`LL-4`).
            unsafe { (*node).next.store(first, Ordering::Relaxed) };
            first = node;
        }
        Self { first }
    }
}

impl Iterator for LlistChain {
    type Item = *mut LlistNode;

    fn next(&mut self) -> Option<*mut LlistNode> {
        if self.first.is_null() {
            return None;
        }
        let node = self.first;
        // SAFETY: the chain owns its nodes from `take_all` on, which made their links visible (`LL-2`).
        self.first = unsafe { (*node).next.load(Ordering::Relaxed) };
        Some(node)
    }
}

#[cfg(test)]
#[path = "llist_tests.rs"]
mod tests;
