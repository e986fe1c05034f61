//! Where the addresses of waiting objects are kept: one interface, two structures.
//!
//! | store | nodes | an object is put in by | joining two |
//! |---|---|---|---|
//! | [`Radix`](super::Radix) | 512 bytes: a tree of arrays of 64 pointers | a kept cursor | the trees' roots are chained |
//! | [`Pages`](super::Pages) | a page: a doubly linked list of arrays of 509 pointers | the last page's length | the lists are spliced |
//!
//! A store never allocates: whoever puts an object in brings a [`Stash`] with as many nodes as [`Store::needs`] says, and gets
//! back there what is not needed any more. So nodes are looked for without the lock that the store lies under (S3-5).

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

/// A structure of addresses, of objects that wait for one grace period, or for none any more.
pub trait Store: Default + Send + 'static {
    /// For reports.
    const NAME: &'static str;
    /// Bytes of a node.
    const NODE: usize;

    /// A node, uninitialised, if there is memory.
    ///
    /// Context: any; it waits for nobody.
    fn alloc_node() -> Option<NonNull<u8>>;

    /// Gives a node back.
    ///
    /// Context: any.
    ///
    /// # Safety
    /// `node` is from `alloc_node`, and nobody uses it.
    unsafe fn free_node(node: NonNull<u8>);

    /// Nodes that the next [`push`](Self::push) needs.
    fn needs(&self) -> usize;

    /// Puts an address in.
    ///
    /// # Panics
    /// If `stash` has fewer nodes than it needs.
    fn push(&mut self, object: NonNull<u8>, stash: &mut Stash<Self>);

    /// Takes an address out, a young one if that is no more work; nodes that are empty after go to `stash`.
    fn pop(&mut self, stash: &mut Stash<Self>) -> Option<NonNull<u8>>;

    /// Moves all of `other` here, in constant time (S3-21).
    fn append(&mut self, other: &mut Self);

    /// Addresses in it.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nodes in it.
    fn nodes(&self) -> usize;

    /// Takes all addresses out, a node's worth at a time, and frees the nodes.
    fn drain(&mut self, each: &mut dyn FnMut(&mut [NonNull<u8>]));
}

/// Nodes of a store that nobody uses at the moment. Dropped, it frees them.
pub struct Stash<S: Store> {
    first: Option<NonNull<Unused>>,
    len: usize,
    of: PhantomData<fn() -> S>,
}

/// A node in a stash.
struct Unused {
    next: Option<NonNull<Unused>>,
}

// SAFETY: a stash owns its nodes, which are memory and belong to no CPU.
unsafe impl<S: Store> Send for Stash<S> {}

impl<S: Store> Stash<S> {
    /// An empty one.
    pub const fn new() -> Self {
        Self { first: None, len: 0, of: PhantomData }
    }

    /// Nodes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fetches nodes until there are `enough`; whether there are.
    pub(super) fn fill(&mut self, enough: usize) -> bool {
        while self.len < enough {
            let Some(node) = S::alloc_node() else { return false };
            // SAFETY: a node, and ours.
            unsafe { self.put(node) };
        }
        true
    }

    /// Puts a node in.
    ///
    /// # Safety
    /// `node` is from `S::alloc_node`, and nobody uses it.
    pub(super) unsafe fn put(&mut self, node: NonNull<u8>) {
        let node = node.cast::<Unused>();
        // SAFETY: a node is larger than a link and at least as aligned, and ours by the caller.
        unsafe { node.write(Unused { next: self.first }) };
        self.first = Some(node);
        self.len += 1;
    }

    /// Takes a node out.
    pub(super) fn take(&mut self) -> Option<NonNull<u8>> {
        let node = self.first?;
        // SAFETY: `put` wrote it.
        self.first = unsafe { node.read().next };
        self.len -= 1;
        Some(node.cast())
    }

    /// Moves nodes to `other` until `keep` are left.
    pub(super) fn spill(&mut self, keep: usize, other: &mut Self) {
        while self.len > keep
            && let Some(node) = self.take()
        {
            // SAFETY: taken out of here.
            unsafe { other.put(node) };
        }
    }
}

impl<S: Store> Default for Stash<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Store> Drop for Stash<S> {
    fn drop(&mut self) {
        while let Some(node) = self.take() {
            // SAFETY: it was in the stash, so nobody uses it.
            unsafe { S::free_node(node) };
        }
    }
}

impl<S: Store> fmt::Debug for Stash<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stash of {} nodes of {}", self.len, S::NAME)
    }
}
