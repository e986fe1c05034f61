//! A page of pointers to objects that wait, and the grace period that the last of them waits for (K-2).
//!
//! A page of pointers rather than a list through the objects: the objects' own cache lines stay cold until they are freed
//! (S3-20), and objects without a head fit too.

use core::ptr::NonNull;

use arch::{PAGE_SIZE, clock};
use mm::AllocFlags;
use rcu::FullCookie;
use slab::waiting::{self, Stage};
use sync::bug;

/// Pointers in a page: what the header leaves.
pub(crate) const RECORDS: usize = (PAGE_SIZE - 40) / size_of::<usize>();

/// One page of pointers, owned by whoever has the [`Bnode`].
#[repr(C)]
struct Raw {
    next: Option<Bnode>,
    /// Refreshed at each insert, so that it covers the last pointer.
    cookie: FullCookie,
    len: usize,
    /// When the first pointer came, by the monotonic clock.
    since_ns: u64,
    records: [*mut u8; RECORDS],
}

const _: () = assert!(size_of::<Raw>() == PAGE_SIZE && RECORDS == 507);

/// An owned page of pointers.
pub(crate) struct Bnode(NonNull<Raw>);

// SAFETY: a Bnode owns its page and names objects that were given up; neither belongs to a CPU.
unsafe impl Send for Bnode {}

impl Bnode {
    /// A fresh page, or nothing: without waiting, spinning or reserves.
    pub(crate) fn alloc() -> Option<Self> {
        let page = mm::alloc_pages_nolock(0, None, AllocFlags::NO_RESERVE | AllocFlags::NOWARN)?;
        let raw = NonNull::new(page.virt())?.cast::<Raw>();
        // SAFETY: a fresh page, large enough and aligned for the header; the records are written before they are read.
        unsafe {
            (&raw mut (*raw.as_ptr()).next).write(None);
            (&raw mut (*raw.as_ptr()).cookie).write(rcu::get_state_full());
            (&raw mut (*raw.as_ptr()).len).write(0);
            (&raw mut (*raw.as_ptr()).since_ns).write(0);
        }
        Some(Self(raw))
    }

    fn raw(&self) -> &Raw {
        // SAFETY: owned; header initialised in `alloc`, records up to `len`.
        unsafe { self.0.as_ref() }
    }

    fn raw_mut(&mut self) -> &mut Raw {
        // SAFETY: as in `raw`, and borrowed exclusively.
        unsafe { self.0.as_mut() }
    }

    pub(crate) fn len(&self) -> usize {
        self.raw().len
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == RECORDS
    }

    /// Adds an object that waits for the grace period `cookie`, which is no earlier than any before.
    pub(crate) fn push(&mut self, object: NonNull<u8>, cookie: FullCookie) {
        let raw = self.raw_mut();
        if raw.len == 0 {
            raw.since_ns = clock::now_ns();
        }
        raw.records[raw.len] = object.as_ptr();
        raw.len += 1;
        raw.cookie = cookie;
    }

    /// Whether the last object's grace period is over.
    pub(crate) fn expired(&self) -> bool {
        rcu::poll(self.raw().cookie)
            || bug!(
                "kfree_rcu.bulk_early",
                "a page of objects is taken for expired when it is not",
                "kfree_rcu_torture.*pages_of_pointers"
            )
    }

    /// Frees every object and the page. Says how many objects they were.
    ///
    /// If the grace period is not over it says so in the log and leaks them instead (K-6): better no memory than an object
    /// freed under its reader.
    pub(crate) fn free_all(self) -> usize {
        let len = self.len();
        if !self.expired() {
            return refuse(len);
        }
        waiting::record(Stage::Bulk, clock::now_ns().saturating_sub(self.raw().since_ns));
        for &object in &self.raw().records[..len] {
            let object = NonNull::new(object).expect("a record is an object");
            waiting::leave(Stage::Bulk, object);
            crate::free_now(object);
        }
        let page = mm::page_of(self.0.as_ptr().cast()).expect("a Bnode is a page");
        mm::free_pages(page, 0);
        len
    }
}

/// `len` objects would be freed inside their grace period, and are leaked instead (K-6). Says that none was freed.
#[cold]
pub(crate) fn refuse(len: usize) -> usize {
    log::error!("kfree_rcu: {len} objects are to be freed inside their grace period; they are leaked");
    0
}

/// A queue of pages, oldest first.
#[derive(Default)]
pub(crate) struct Pages {
    first: Option<Bnode>,
    last: Option<NonNull<Raw>>,
    objects: usize,
}

// SAFETY: `last` points into the chain that `first` owns.
unsafe impl Send for Pages {}

impl Pages {
    pub(crate) const fn new() -> Self {
        Self { first: None, last: None, objects: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// When the oldest object came.
    pub(crate) fn since_ns(&self) -> Option<u64> {
        self.first.as_ref().map(|page| page.raw().since_ns)
    }

    /// Objects in all pages.
    pub(crate) fn objects(&self) -> usize {
        self.objects
    }

    /// Adds an object to the youngest page. False if that is full, or there is none.
    pub(crate) fn push(&mut self, object: NonNull<u8>, cookie: FullCookie) -> bool {
        let Some(last) = self.last else { return false };
        let mut page = core::mem::ManuallyDrop::new(Bnode(last));
        if page.is_full() {
            return false;
        }
        page.push(object, cookie);
        self.objects += 1;
        true
    }

    /// Adds an empty page at the young end.
    pub(crate) fn add(&mut self, page: Bnode) {
        let raw = page.0;
        match self.last {
            // SAFETY: the last page of the chain that we own and have borrowed exclusively.
            Some(mut last) => unsafe { last.as_mut().next = Some(page) },
            None => self.first = Some(page),
        }
        self.last = Some(raw);
    }

    /// Takes the oldest page if its grace period is over (K-4).
    pub(crate) fn pop_expired(&mut self) -> Option<Bnode> {
        if !self.first.as_ref()?.expired() {
            return None;
        }
        self.pop()
    }

    /// Takes the oldest page.
    pub(crate) fn pop(&mut self) -> Option<Bnode> {
        let mut page = self.first.take()?;
        self.first = page.raw_mut().next.take();
        if self.first.is_none() {
            self.last = None;
        }
        self.objects -= page.len();
        Some(page)
    }
}
