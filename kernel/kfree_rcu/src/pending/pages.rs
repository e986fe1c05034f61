//! [`Pages`]: a doubly linked list of pages of pointers.
//!
//! Paul McKenney's question to the tree: "why not a doubly linked list of pages of pointers?" Two lists join in constant time,
//! whatever is in them; there is no node to look for, only the last page. What it costs is memory where few objects wait for
//! a cookie: a page is the least, and joined lists keep their half-full pages.
//!
//! # Invariants
//! - **PG-1** Every page has an address in it; `len` of them, from the first on.
//! - **PG-2** `first` to `last` by `next` is `last` to `first` by `prev`; both are there or neither.

use core::ptr::NonNull;

use arch::PAGE_SIZE;
use mm::AllocFlags;

use super::store::{Stash, Store};

/// Pointers in a page: what the header leaves.
const RECORDS: usize = (PAGE_SIZE - 24) / size_of::<usize>();

#[repr(C)]
struct Page {
    prev: Option<NonNull<Page>>,
    next: Option<NonNull<Page>>,
    len: usize,
    records: [NonNull<u8>; RECORDS],
}

const _: () = assert!(size_of::<Page>() <= PAGE_SIZE);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Pages {
    first: Option<NonNull<Page>>,
    last: Option<NonNull<Page>>,
    len: usize,
    pages: usize,
}

// SAFETY: the pages belong to the list, and it names objects that were given up; neither belongs to a CPU.
unsafe impl Send for Pages {}

impl Pages {
    /// The last page, if it has room.
    #[inline]
    fn with_room(&self) -> Option<NonNull<Page>> {
        // SAFETY: a page of ours (PG-2).
        self.last.filter(|last| unsafe { (*last.as_ptr()).len } < RECORDS)
    }

    /// Adds an empty page at the end; the caller puts something in.
    fn add(&mut self, node: NonNull<u8>) -> NonNull<Page> {
        let page = node.cast::<Page>();
        let raw = page.as_ptr();
        // SAFETY: a node, uninitialised and ours; it is as large as a page and aligned to one. The records are written before they
        // are read.
        unsafe {
            (&raw mut (*raw).prev).write(self.last);
            (&raw mut (*raw).next).write(None);
            (&raw mut (*raw).len).write(0);
        }
        match self.last {
            // SAFETY: a page of ours (PG-2).
            Some(last) => unsafe { (*last.as_ptr()).next = Some(page) },
            None => self.first = Some(page),
        }
        self.last = Some(page);
        self.pages += 1;
        page
    }
}

impl Store for Pages {
    const NAME: &'static str = "pages";
    const NODE: usize = PAGE_SIZE;

    fn alloc_node() -> Option<NonNull<u8>> {
        let page = mm::alloc_pages_nolock(0, None, AllocFlags::NO_RESERVE | AllocFlags::NOWARN)?;
        NonNull::new(page.virt())
    }

    unsafe fn free_node(node: NonNull<u8>) {
        let page = mm::page_of(node.as_ptr()).expect("a node is a page");
        mm::free_pages_nolock(page, 0);
    }

    #[inline]
    fn needs(&self) -> usize {
        usize::from(self.with_room().is_none())
    }

    #[inline]
    fn push(&mut self, object: NonNull<u8>, stash: &mut Stash<Self>) {
        let page = self.with_room().unwrap_or_else(|| self.add(stash.take().expect("as many nodes as it needs")));
        // SAFETY: a page of ours with room for one more.
        unsafe {
            let at = (*page.as_ptr()).len;
            (&raw mut (*page.as_ptr()).records[at]).write(object);
            (*page.as_ptr()).len = at + 1;
        }
        self.len += 1;
    }

    fn pop(&mut self, stash: &mut Stash<Self>) -> Option<NonNull<u8>> {
        let page = self.last?;
        // SAFETY: a page of ours, in which there is an address (PG-1).
        let (object, is_empty) = unsafe {
            let page = &mut *page.as_ptr();
            page.len -= 1;
            (page.records[page.len], page.len == 0)
        };
        self.len -= 1;
        if is_empty {
            // SAFETY: as above.
            self.last = unsafe { (*page.as_ptr()).prev };
            match self.last {
                // SAFETY: a page of ours (PG-2).
                Some(last) => unsafe { (*last.as_ptr()).next = None },
                None => self.first = None,
            }
            self.pages -= 1;
            // SAFETY: off the list, so nobody's.
            unsafe { stash.put(page.cast()) };
        }
        Some(object)
    }

    fn append(&mut self, other: &mut Self) {
        let other = core::mem::take(other);
        let Some(theirs) = other.first else { return };
        match self.last {
            // SAFETY: pages of the two lists, both ours now (PG-2).
            Some(last) => unsafe {
                (*last.as_ptr()).next = Some(theirs);
                (*theirs.as_ptr()).prev = Some(last);
            },
            None => self.first = Some(theirs),
        }
        self.last = other.last;
        self.len += other.len;
        self.pages += other.pages;
    }

    fn len(&self) -> usize {
        self.len
    }

    fn nodes(&self) -> usize {
        self.pages
    }

    fn drain(&mut self, each: &mut dyn FnMut(&mut [NonNull<u8>])) {
        let mut next = core::mem::take(self).first;
        while let Some(page) = next {
            // SAFETY: a page of a list that was ours alone, and on no list any more.
            let contents = unsafe { &mut *page.as_ptr() };
            next = contents.next;
            each(&mut contents.records[..contents.len]);
            // SAFETY: as above; it is not used again.
            unsafe { Self::free_node(page.cast()) };
        }
    }
}
