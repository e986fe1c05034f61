//! [`FreeLists`]: the binary buddy system over page descriptors. Pure: no lock, no CPU, no memory but descriptors.
//!
//! A free block of order `n` is `2^n` frames, aligned to its size. Two neighbours that are both free and whose union
//! is aligned to *its* size are *buddies* and merge. Free blocks hang on one list an order, linked through their
//! first descriptors.
//!
//! Invariants:
//! - **BUDDY-1** A block is on list `n` iff the kind of its first descriptor is [`PageKind::Buddy`] and its order `n`.
//! - **BUDDY-2** No two free buddies of the same order below [`MAX_ORDER`] exist: they merge as the second is freed.
//!   So when everything is free again the lists hold the same blocks as in the beginning.
//! - **BUDDY-3** All blocks of one `FreeLists` are of one node.
//!
//! Linux: `mm/page_alloc.c` (`__free_one_page`, `__rmqueue_smallest`, 6.18), without migrate types.

use arch::NodeId;

use crate::memmap::MemMap;
use crate::page::{Page, PageKind};

/// The order of the largest block: 4 MiB.
pub const MAX_ORDER: usize = 10;

/// The free blocks of one order.
#[derive(Clone, Copy)]
struct List {
    first: Option<&'static Page>,
    len: usize,
}

impl List {
    fn push(&mut self, page: &'static Page) {
        page.set_prev(None);
        page.set_next(self.first);
        if let Some(first) = self.first {
            first.set_prev(Some(page));
        }
        self.first = Some(page);
        self.len += 1;
    }

    fn remove(&mut self, page: &'static Page) {
        let (next, prev) = page.link();
        match prev {
            Some(prev) => prev.set_next(next),
            None => self.first = next,
        }
        if let Some(next) = next {
            next.set_prev(prev);
        }
        self.len -= 1;
    }
}

/// The free blocks of one node.
pub(crate) struct FreeLists {
    node: Option<NodeId>,
    lists: [List; MAX_ORDER + 1],
    pages: usize,
}

impl FreeLists {
    /// Nothing free.
    pub(crate) const fn new() -> Self {
        Self { node: None, lists: [List { first: None, len: 0 }; MAX_ORDER + 1], pages: 0 }
    }

    /// Frames on all lists.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Blocks on each list.
    pub(crate) fn blocks(&self) -> [usize; MAX_ORDER + 1] {
        self.lists.map(|list| list.len)
    }

    /// Takes a block of `order`, splitting a larger one if need be. Its head has kind `Free` then.
    ///
    /// At most `MAX_ORDER` splits.
    pub(crate) fn take(&mut self, map: &MemMap, order: usize) -> Option<&'static Page> {
        let found = (order..=MAX_ORDER).find(|&order| self.lists[order].first.is_some())?;
        let page = self.lists[found].first?;
        self.detach(page, found);
        for half in (order..found).rev() {
            // The upper half goes back; the lower one is split further.
            let upper = map.page(page.pfn() + (1 << half)).expect("BUDDY-1: a block with no second half");
            self.attach(upper, half);
        }
        page.set_order(order);
        Some(page)
    }

    /// Puts a block back and merges it as far as it goes (BUDDY-2).
    ///
    /// At most `MAX_ORDER` merges.
    pub(crate) fn put(&mut self, map: &MemMap, page: &'static Page, mut order: usize) {
        debug_assert!(page.pfn().is_multiple_of(1 << order), "{page:?} is not aligned to order {order}");
        debug_assert!(self.node.is_none_or(|node| node == page.node()), "BUDDY-3: {page:?} is of another node");
        self.node = Some(page.node());
        let mut page = page;
        while order < MAX_ORDER {
            let Some(buddy) = map.page(page.pfn() ^ (1 << order)) else { break };
            // The node first: of another node's descriptors nothing else may be relied on (PAGE-2).
            if buddy.node() != page.node() || buddy.kind() != PageKind::Buddy || buddy.order() != order {
                break;
            }
            self.detach(buddy, order);
            page.set_kind(PageKind::Free);
            if buddy.pfn() < page.pfn() {
                page = buddy;
            }
            order += 1;
        }
        self.attach(page, order);
    }

    fn attach(&mut self, page: &'static Page, order: usize) {
        page.set_order(order);
        page.set_kind(PageKind::Buddy);
        self.lists[order].push(page);
        self.pages += 1 << order;
    }

    fn detach(&mut self, page: &'static Page, order: usize) {
        assert!(
            page.kind() == PageKind::Buddy && page.order() == order,
            "BUDDY-1: {page:?} on the list of order {order}"
        );
        self.lists[order].remove(page);
        page.set_kind(PageKind::Free);
        self.pages -= 1 << order;
    }

    /// Checks every list against its descriptors and counts.
    ///
    /// Linear in the free blocks.
    ///
    /// # Panics
    /// If an invariant is broken.
    pub(crate) fn check(&self, map: &MemMap) {
        let mut pages = 0;
        for (order, list) in self.lists.iter().enumerate() {
            let mut prev: Option<&'static Page> = None;
            let mut len = 0;
            let mut at = list.first;
            while let Some(page) = at {
                assert!(page.kind() == PageKind::Buddy && page.order() == order, "BUDDY-1: {page:?} on list {order}");
                assert!(page.link().1.map(Page::pfn) == prev.map(Page::pfn), "BUDDY-1: broken link at {page:?}");
                assert!(self.node == Some(page.node()), "BUDDY-3: {page:?}");
                let buddy = map.page(page.pfn() ^ (1 << order)).filter(|buddy| buddy.node() == page.node());
                assert!(
                    order == MAX_ORDER || !buddy.is_some_and(|b| b.kind() == PageKind::Buddy && b.order() == order),
                    "BUDDY-2: {page:?} and its buddy are both free"
                );
                pages += 1 << order;
                len += 1;
                prev = at;
                at = page.next();
            }
            assert!(len == list.len, "BUDDY-1: list {order} counts {} blocks and has {len}", list.len);
        }
        assert!(pages == self.pages, "BUDDY-1: {} pages counted, {pages} found", self.pages);
    }
}

#[cfg(test)]
#[path = "buddy_tests.rs"]
mod tests;
