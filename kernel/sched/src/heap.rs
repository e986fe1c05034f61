//! A pairing heap threaded through the things that are in it: earliest key first, no allocation.
//!
//! Key types: [`Node`], embedded in what is queued, and [`Heap`].
//!
//! Cost: `push` and `first` constant, `pop` and `remove` logarithmic in the number of nodes, amortised.
//!
//! Invariants:
//!
//! * `HEAP-1`: a node's key is not below its parent's.
//! * `HEAP-2`: a node is in one heap at most; `queued` says whether it is in one.
//!
//! Context: any; the owner's lock guards the heap and all nodes in it.
//!
//! Fredman, Sedgewick, Sleator, Tarjan: "The pairing heap: a new form of self-adjusting heap" (1986).

use core::ptr;

/// Embedded in what is queued. Guarded by the heap's lock.
pub(crate) struct Node {
    key: u64,
    queued: bool,
    /// First child; its siblings follow by `next`.
    child: *mut Node,
    /// Next sibling.
    next: *mut Node,
    /// Previous sibling, for a first child the parent, for the root null.
    prev: *mut Node,
}

impl Node {
    /// A node that is in no heap.
    pub(crate) const fn new() -> Node {
        Node { key: 0, queued: false, child: ptr::null_mut(), next: ptr::null_mut(), prev: ptr::null_mut() }
    }

    /// Is it in a heap?
    pub(crate) fn is_queued(&self) -> bool {
        self.queued
    }
}

/// The heap: a pointer to the node with the least key.
pub(crate) struct Heap {
    root: *mut Node,
    len: usize,
}

// SAFETY: whoever has the heap has exclusive use of its nodes, by the contract of `push`.
unsafe impl Send for Heap {}

impl Heap {
    /// A heap with nothing in it.
    pub(crate) const fn new() -> Heap {
        Heap { root: ptr::null_mut(), len: 0 }
    }

    /// Number of nodes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The node with the least key and that key.
    pub(crate) fn first(&self) -> Option<(*mut Node, u64)> {
        // SAFETY: null, or a node in the heap, which stays in place by the contract of `push`.
        let root = unsafe { self.root.as_ref() }?;
        Some((self.root, root.key))
    }

    /// Queues `node` under `key`.
    ///
    /// # Safety
    ///
    /// `node` is valid, in no heap, and until it has left this one it stays in place and is touched by this heap only.
    pub(crate) unsafe fn push(&mut self, node: *mut Node, key: u64) {
        // SAFETY: the caller's promise.
        unsafe { *node = Node { key, queued: true, ..Node::new() } };
        // SAFETY: two trees that are whole, with their roots' `prev` and `next` null.
        self.root = unsafe { meld(self.root, node) };
        self.len += 1;
    }

    /// Takes the node with the least key out.
    pub(crate) fn pop(&mut self) -> Option<*mut Node> {
        let (node, _) = self.first()?;
        // SAFETY: it is in this heap.
        unsafe { self.remove(node) };
        Some(node)
    }

    /// Takes `node` out.
    ///
    /// # Safety
    ///
    /// `node` is in this heap.
    pub(crate) unsafe fn remove(&mut self, node: *mut Node) {
        // SAFETY: in this heap, so valid and ours; so are its neighbours and children.
        unsafe {
            let (child, next, prev) = ((*node).child, (*node).next, (*node).prev);
            if prev.is_null() {
                self.root = ptr::null_mut();
            } else {
                if (*prev).child == node {
                    (*prev).child = next;
                } else {
                    (*prev).next = next;
                }
                if !next.is_null() {
                    (*next).prev = prev;
                }
            }
            *node = Node::new();
            self.root = meld(self.root, meld_siblings(child));
            self.len -= 1;
        }
    }
}

/// Joins two trees: the root with the greater key becomes the first child of the other.
///
/// # Safety
///
/// Each is null or the root of a whole tree whose `next` and `prev` are null.
unsafe fn meld(a: *mut Node, b: *mut Node) -> *mut Node {
    if a.is_null() {
        return b;
    }
    if b.is_null() {
        return a;
    }
    // SAFETY: both valid by the contract; the first child of the winner is valid or null.
    unsafe {
        let (top, below) = if (*b).key < (*a).key { (b, a) } else { (a, b) };
        let child = (*top).child;
        (*below).next = child;
        (*below).prev = top;
        if !child.is_null() {
            (*child).prev = below;
        }
        (*top).child = below;
        top
    }
}

/// Joins a list of siblings into one tree: neighbours in pairs from the left, then the pairs from the right. That
/// order is what makes the amortised cost logarithmic.
///
/// # Safety
///
/// `first` is null or a first child that has been cut from its parent.
unsafe fn meld_siblings(first: *mut Node) -> *mut Node {
    let mut rest = first;
    let mut pairs: *mut Node = ptr::null_mut();
    // SAFETY: siblings are valid roots of whole trees; each is cut from its neighbours before it is joined.
    unsafe {
        while !rest.is_null() {
            let a = rest;
            let b = (*a).next;
            rest = if b.is_null() { ptr::null_mut() } else { (*b).next };
            cut(a);
            if !b.is_null() {
                cut(b);
            }
            let pair = meld(a, b);
            (*pair).next = pairs;
            pairs = pair;
        }
        let mut tree = ptr::null_mut();
        while !pairs.is_null() {
            let pair = pairs;
            pairs = (*pair).next;
            cut(pair);
            tree = meld(tree, pair);
        }
        tree
    }
}

/// Makes a sibling a root.
///
/// # Safety
///
/// `node` is valid and whoever pointed to it no longer does.
unsafe fn cut(node: *mut Node) {
    // SAFETY: valid by the contract.
    unsafe {
        (*node).next = ptr::null_mut();
        (*node).prev = ptr::null_mut();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;

    fn nodes(n: usize) -> Vec<*mut Node> {
        (0..n).map(|_| Box::into_raw(Box::new(Node::new()))).collect()
    }

    fn free(nodes: Vec<*mut Node>) {
        for node in nodes {
            // SAFETY: from Box::into_raw in `nodes`, freed once.
            drop(unsafe { Box::from_raw(node) });
        }
    }

    /// Keys in no order, the same each time.
    fn key(i: usize) -> u64 {
        (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
    }

    #[test]
    fn keys_come_out_in_order() {
        let all = nodes(1000);
        let mut heap = Heap::new();
        for (i, node) in all.iter().enumerate() {
            // SAFETY: fresh and boxed.
            unsafe { heap.push(*node, key(i)) };
        }
        let mut expected: Vec<u64> = (0..1000).map(key).collect();
        expected.sort_unstable();
        for (taken, want) in expected.into_iter().enumerate() {
            assert_eq!(heap.len(), 1000 - taken);
            assert_eq!(heap.first().unwrap().1, want);
            let node = heap.pop().unwrap();
            // SAFETY: boxed, out of the heap.
            assert!(!unsafe { (*node).is_queued() });
        }
        assert!(heap.pop().is_none());
        free(all);
    }

    #[test]
    fn any_node_can_leave_and_the_others_stay_in_order() {
        let all = nodes(600);
        let mut heap = Heap::new();
        for (i, node) in all.iter().enumerate() {
            // SAFETY: fresh and boxed.
            unsafe { heap.push(*node, key(i)) };
            if i % 5 == 4 {
                heap.pop();
            }
        }
        let mut left = Vec::new();
        for (i, node) in all.iter().enumerate() {
            // SAFETY: boxed; touched under no other reference.
            if !unsafe { (**node).is_queued() } {
                continue;
            }
            if i % 3 == 0 {
                // SAFETY: queued in this heap.
                unsafe { heap.remove(*node) };
            } else {
                left.push(key(i));
            }
        }
        left.sort_unstable();
        for want in left {
            assert_eq!(heap.first().unwrap().1, want);
            heap.pop();
        }
        assert!(heap.first().is_none());
        free(all);
    }
}
