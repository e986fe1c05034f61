//! A page of pointers to objects that wait, and the grace period that the last of them waits for (K-2).
//!
//! A page of pointers rather than a list through the objects: the objects' own cache lines stay cold until they are freed
//! (S3-20), and objects without a head fit too.

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use arch::{PAGE_SIZE, clock};
use mm::{AllocFlags, Page};
use rcu::FullCookie;
use slab::waiting::{self, Stage};
use sync::bug;

use crate::page_cache;

/// Pointers in a page: what the header leaves.
pub(crate) const RECORDS: usize = (PAGE_SIZE - 40) / size_of::<usize>();

/// How pages are allocated: objects are remembered in what memory there is, or through their heads.
const FLAGS: AllocFlags = AllocFlags::NO_RESERVE.union(AllocFlags::NOWARN);

/// One page of pointers, owned by whoever has the [`Bnode`].
#[repr(C)]
struct Raw {
    next: Option<Bnode>,
    /// Refreshed at each insert, so that it covers the last pointer.
    cookie: FullCookie,
    len: usize,
    /// When the first pointer came, by the monotonic clock.
    since_ns: u64,
    records: [MaybeUninit<NonNull<u8>>; RECORDS],
}

const _: () = assert!(size_of::<Raw>() == PAGE_SIZE && RECORDS == 507);

/// An owned page of pointers.
pub(crate) struct Bnode(NonNull<Raw>);

// SAFETY: a Bnode owns its page and names objects that were given up; neither belongs to a CPU.
unsafe impl Send for Bnode {}

impl Bnode {
    /// A fresh page, or nothing: without waiting, spinning or reserves.
    pub(crate) fn alloc() -> Option<Self> {
        Self::in_page(mm::alloc_pages_nolock(0, None, FLAGS)?)
    }

    /// The same, but it waits for locks; not for memory: to reclaim some may take a grace period. Context: task.
    pub(crate) fn alloc_task() -> Option<Self> {
        Self::in_page(mm::alloc_pages(0, None, FLAGS).ok()?)
    }

    fn in_page(page: &'static Page) -> Option<Self> {
        let raw = NonNull::new(page.virt())?.cast::<Raw>();
        // SAFETY: a fresh page, large enough and aligned for the header; the records are written before they are read.
        unsafe {
            (&raw mut (*raw.as_ptr()).next).write(None);
            (&raw mut (*raw.as_ptr()).cookie).write(FullCookie::completed());
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
        let is_first = raw.len == 0;
        if is_first {
            raw.since_ns = clock::now_ns();
        }
        raw.records[raw.len].write(object);
        raw.len += 1;
        if is_first
            || !bug!(
                "kfree_rcu.cookie_of_the_first",
                "a page of objects waits for the grace period of its first",
                "kfree_rcu_bulk.*last_object*"
            )
        {
            raw.cookie = cookie;
        }
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

    /// Frees every object, and the page or keeps it. Says how many objects they were.
    ///
    /// If the grace period is not over it says so in the log and leaks them instead (K-6): better no memory than an object
    /// freed under its reader.
    pub(crate) fn free_all(mut self) -> usize {
        if !self.expired() {
            return refuse(self.len());
        }
        let raw = self.raw_mut();
        // SAFETY: so many were written by `push`.
        let objects = unsafe { raw.records[..raw.len].assume_init_mut() };
        let freed = objects.len();
        if let Some(first) = objects.first() {
            waiting::record(Stage::Bulk, clock::now_ns().saturating_sub(raw.since_ns));
            for &object in &*objects {
                waiting::leave(Stage::Bulk, object);
                slab::debug::wait_over(object);
            }
            // A page's objects are of one channel.
            if mm::is_vmalloc(first.as_ptr()) {
                objects.iter().for_each(|&object| mm::vfree_deferred(object));
            } else {
                // SAFETY: they were given up, and all readers are gone.
                unsafe { slab::bulk::kfree_bulk(objects) };
            }
        }
        raw.len = 0;
        self.retire();
        freed
    }

    /// Keeps the page, which is empty, for the next object, or gives it back.
    pub(crate) fn retire(self) {
        if let Err(page) = page_cache::put(self) {
            page.free();
        }
    }

    /// Gives the page back, which is empty.
    pub(crate) fn free(self) {
        debug_assert_eq!(self.len(), 0, "a page of pointers is freed before its objects");
        mm::free_pages(mm::page_of(self.0.as_ptr().cast()).expect("a Bnode is a page"), 0);
    }
}

/// `len` objects would be freed inside their grace period, and are leaked instead (K-6). Says that none was freed.
#[cold]
pub(crate) fn refuse(len: usize) -> usize {
    log::error!("kfree_rcu: {len} objects are to be freed inside their grace period; they are leaked");
    0
}

/// Empty pages, any first.
#[derive(Default)]
pub(crate) struct Stack {
    first: Option<Bnode>,
    len: usize,
}

impl Stack {
    pub(crate) const fn new() -> Self {
        Self { first: None, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, mut page: Bnode) {
        page.raw_mut().next = self.first.take();
        self.first = Some(page);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<Bnode> {
        let mut page = self.first.take()?;
        self.first = page.raw_mut().next.take();
        self.len -= 1;
        Some(page)
    }
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
