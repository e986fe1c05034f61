//! Hands out the newest first.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// What is pushed. It is on one stack at a time.
pub struct Node {
    /// The node that was pushed before it. Its owner's while it is on no stack.
    next: AtomicPtr<Node>,
    /// Whatever the owner likes.
    pub value: u64,
}

impl Node {
    /// A node on no stack.
    pub const fn new(value: u64) -> Self {
        Self { next: AtomicPtr::new(ptr::null_mut()), value }
    }
}

/// A stack that is pushed to one by one, and emptied as a whole.
pub struct Stack {
    /// The node that was pushed last.
    first: AtomicPtr<Node>,
}

impl Stack {
    /// An empty one.
    pub const fn new() -> Self {
        Self { first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Pushes a node that is on no stack; true if this one was empty.
    ///
    /// Context: any, NMI included.
    pub fn push(&self, node: &'static Node) -> bool {
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            node.next.store(first, Ordering::Relaxed);
            // Release: pairs with the Acquire in `take_all`: the link, and what the node is about, before the node.
            match self.first.compare_exchange(first, ptr::from_ref(node).cast_mut(), Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return first.is_null(),
                Err(now) => first = now,
            }
        }
    }

    /// Takes all nodes, oldest first. Each is on no stack any more when the chain hands it out.
    ///
    /// Context: any, NMI included.
    pub fn take_all(&self) -> Chain {
        // Acquire: pairs with the Release in `push`.
        let newest = self.first.swap(ptr::null_mut(), Ordering::Acquire);
        Chain { first: newest }
    }
}

/// Nodes that were taken off a stack.
pub struct Chain {
    first: *mut Node,
}

impl Iterator for Chain {
    type Item = &'static Node;

    fn next(&mut self) -> Option<&'static Node> {
        // SAFETY: nodes are statics.
        let node = unsafe { self.first.as_ref() }?;
        // Before anybody has the node, who may push it again.
        self.first = node.next.load(Ordering::Relaxed);
        Some(node)
    }
}
