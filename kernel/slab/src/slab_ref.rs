//! One slab: a block of pages cut into equal objects, described by its first page's descriptor.
//!
//! # Invariants
//! - **SLAB-1** `freelist` and the counters change together, by one 16-byte compare-exchange.
//! - **SLAB-2** `inuse` counts the objects that are not on `freelist`: with users, in sheaves, or on the way.
//! - **SLAB-3** Objects are *taken* from a slab only by whoever holds the node's list lock while the slab is on
//!   the partial list, or by the one CPU that took it off that list (or has just made it). Objects are *given
//!   back* by anybody, at any time, without a lock. So between reading the head of a freelist and replacing
//!   it the head may be pushed down but never be taken and put back: the compare-exchange needs no tag.
//! - **SLAB-4** The list links and the "on the partial list" mark change under the node's list lock.
//!
//! Answers to `struct slab` in Linux `mm/slab.h` and `mm/slub.c` (7.x; M-9).

use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;

use arch::NodeId;
use mm::home::RESERVE;
use mm::{AllocFlags, Page, PageKind, SlabView};
use sync::CallbackHead;

use crate::cache::RawCache;

/// The freelist and counters of a slab at one moment (SLAB-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State {
    /// First free object, or null.
    pub(crate) freelist: *mut u8,
    /// Objects that are not free (SLAB-2).
    pub(crate) inuse: u32,
    /// Objects in the slab.
    pub(crate) objects: u32,
}

impl State {
    pub(crate) fn free(&self) -> u32 {
        self.objects - self.inuse
    }

    fn pack(self) -> (u64, u64) {
        (self.freelist as u64, u64::from(self.inuse) | u64::from(self.objects) << 32)
    }

    fn unpack((freelist, counters): (u64, u64)) -> Self {
        Self { freelist: freelist as *mut u8, inuse: counters as u32, objects: (counters >> 32) as u32 }
    }
}

/// Mark in the descriptor's `aux`: quarantined.
const FROZEN: u32 = 1 << 0;

/// A slab, by its head page.
#[derive(Clone, Copy)]
pub(crate) struct SlabRef(&'static Page);

impl PartialEq for SlabRef {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self.0, other.0)
    }
}

impl SlabRef {
    /// The slab that `object` lies in, or nothing if it lies in no slab. O(1).
    #[inline]
    pub(crate) fn of(object: NonNull<u8>) -> Option<Self> {
        let head = mm::page_of(object.as_ptr())?.head();
        (head.kind() == PageKind::Slab).then_some(Self(head))
    }

    /// The slab that `page` is the head of, if it is one of `cache`, which stays meanwhile.
    pub(crate) fn of_cache(page: &'static Page, cache: &RawCache) -> Option<Self> {
        // Relaxed: as in `cache`; of a page that becomes or ceases to be a slab meanwhile the answer is one of the two.
        let owner = page.slab().cache.load(Relaxed);
        (page.kind() == PageKind::Slab && ptr::eq(owner.cast(), cache)).then_some(Self(page))
    }

    /// The cache of `object` if that lies in a slab whose home is this CPU's: by one look-up, whichever of the slab's pages
    /// it is in.
    #[inline(always)]
    pub(crate) fn local_cache_of(object: NonNull<u8>) -> Option<&'static RawCache> {
        mm::local_slab_page(object).map(cache_named_by)
    }

    /// The same for an address anywhere in an object, with the object's start (S1-2): for most sizes, too, by one look-up.
    #[inline(always)]
    pub(crate) fn local_object_at(address: NonNull<u8>) -> Option<(&'static RawCache, NonNull<u8>)> {
        let page = mm::local_slab_page(address)?;
        let cache = cache_named_by(page);
        let object = match cache.start_mask() {
            // SAFETY: an object in memory does not begin at 0.
            Some(mask) => unsafe { NonNull::new_unchecked(address.as_ptr().map_addr(|at| at & mask)) },
            None => Self(page.head()).object_at(address.as_ptr()),
        };
        Some((cache, object))
    }

    /// Whether the slab that `object` lies in is one of `cache`: by one look-up, as in `local_cache_of`.
    #[inline]
    pub(crate) fn holds(cache: &RawCache, object: NonNull<u8>) -> bool {
        mm::page_of(object.as_ptr()).is_some_and(|page| ptr::eq(page.slab().cache.load(Relaxed).cast(), cache))
    }

    /// Makes a slab of freshly allocated pages, all objects in use.
    pub(crate) fn make(page: &'static Page, cache: &RawCache, objects: u32) -> Self {
        let slab = Self(page);
        let view = page.slab();
        // Relaxed: the page is not a slab yet for anybody else; set_kind below publishes.
        view.on_partial.store(false, Relaxed);
        view.aux.store(0, Relaxed);
        view.pair.store(State { freelist: ptr::null_mut(), inuse: objects, objects }.pack());
        let reserve = if page.is_reserve() { RESERVE } else { 0 };
        page.enter_slab(ptr::from_ref(cache).cast_mut().cast(), page.node().index() as u8 | reserve);
        page.set_kind(PageKind::Slab);
        slab
    }

    /// Turns the slab, which nobody refers to any more, back into plain pages.
    pub(crate) fn unmake(self) -> &'static Page {
        self.0.leave_slab();
        self.0.set_kind(PageKind::Allocated);
        self.0
    }

    /// The cache the slab belongs to.
    #[inline]
    pub(crate) fn cache(self) -> &'static RawCache {
        // SAFETY: set in `make` before the page became a slab, and a cache outlives its slabs: destroying
        // it first gives every slab back. Relaxed is enough: whoever holds an object of this slab got it
        // through a lock or a compare-exchange that came after `make`.
        unsafe { &*self.0.slab().cache.load(Relaxed).cast::<RawCache>() }
    }

    /// The node whose memory the slab is.
    #[inline]
    pub(crate) fn node(self) -> NodeId {
        self.0.node()
    }

    /// Whether objects of the slab may go into a sheaf of this CPU (M-8). A hint unless pinned.
    #[inline]
    pub(crate) fn is_home(self) -> bool {
        mm::is_home(self.0.home())
    }

    /// Whether the slab is of the memory reserve: only for who may use that, and never in a sheaf (NUMA-2).
    pub(crate) fn is_reserve(self) -> bool {
        self.0.is_reserve()
    }

    /// Whether a caller with `flags` may have objects of the slab. Takes the mark of the reserve off where memory is back
    /// (NUMA-3). Under the list lock, for a slab on the list: nobody else can change the mark.
    pub(crate) fn may_serve(self, flags: AllocFlags) -> bool {
        if !self.is_reserve() || flags.may_dip() {
            return true;
        }
        if mm::stats::is_low(self.node()) {
            return false;
        }
        self.0.set_reserve(false);
        self.0.set_home(self.node().index() as u8);
        true
    }

    pub(crate) fn order(self) -> usize {
        self.0.order()
    }

    pub(crate) fn base(self) -> *mut u8 {
        self.0.virt()
    }

    /// Freelist and counters, read one after the other: `swap` tells whether they belonged together.
    pub(crate) fn state(self) -> State {
        State::unpack(self.0.slab().pair.load())
    }

    /// Replaces `old` by `new`; on failure returns what is there instead.
    ///
    /// A full barrier: the link word that a free wrote into the object before is seen by whoever takes the object
    /// off the freelist after.
    pub(crate) fn swap(self, old: State, new: State) -> Result<(), State> {
        self.0.slab().pair.compare_exchange(old.pack(), new.pack()).map_err(State::unpack)
    }

    /// Where RCU links the slab while its pages wait for a grace period; in place of the list links.
    pub(crate) fn rcu_head(self) -> *mut CallbackHead {
        const {
            assert!(offset_of!(SlabView, prev) == offset_of!(SlabView, next) + size_of::<usize>());
            assert!(size_of::<CallbackHead>() == 2 * size_of::<usize>());
        }
        ptr::from_ref(self.0.slab()).cast_mut().wrapping_byte_add(offset_of!(SlabView, next)).cast()
    }

    /// The slab whose [`rcu_head`](Self::rcu_head) is `head`.
    ///
    /// # Safety
    /// It came from there.
    pub(crate) unsafe fn from_rcu_head(head: *mut CallbackHead) -> Self {
        // SAFETY: the caller's contract: inside a descriptor, which lives for ever, and whose view is its first field.
        Self(unsafe { &*head.byte_sub(offset_of!(SlabView, next)).cast::<Page>() })
    }

    /// Whether the slab is on its node's partial list. Under the list lock.
    pub(crate) fn is_on_partial(self) -> bool {
        self.0.slab().on_partial.load(Relaxed)
    }

    pub(crate) fn set_on_partial(self, yes: bool) {
        self.0.slab().on_partial.store(yes, Relaxed);
    }

    /// Whether the slab was taken out of use because it is damaged. Under the list lock.
    pub(crate) fn is_frozen(self) -> bool {
        self.0.slab().aux.load(Relaxed) & FROZEN != 0
    }

    /// Takes the slab, which is on no list, out of use; all its objects count as in use from now on.
    pub(crate) fn freeze(self) {
        let state = self.state();
        self.0.slab().aux.fetch_or(FROZEN, Relaxed);
        self.0.slab().pair.store(State { freelist: ptr::null_mut(), inuse: state.objects, ..state }.pack());
    }

    pub(crate) fn next(self) -> Option<SlabRef> {
        // SAFETY: links point to descriptors, which are never freed, or are null (SLAB-4).
        unsafe { self.0.slab().next.load(Relaxed).as_ref() }.map(SlabRef)
    }

    pub(crate) fn prev(self) -> Option<SlabRef> {
        // SAFETY: as in `next`.
        unsafe { self.0.slab().prev.load(Relaxed).as_ref() }.map(SlabRef)
    }

    pub(crate) fn set_next(self, next: Option<SlabRef>) {
        self.0.slab().next.store(link(next), Relaxed);
    }

    pub(crate) fn set_prev(self, prev: Option<SlabRef>) {
        self.0.slab().prev.store(link(prev), Relaxed);
    }

    /// The `index`-th object.
    pub(crate) fn object(self, index: usize) -> NonNull<u8> {
        let cache = self.cache();
        // SAFETY: callers keep `index < objects`, so the result lies in the slab's pages.
        unsafe { NonNull::new_unchecked(self.base().add(index * cache.size() + cache.left())) }
    }

    /// The object that `address` points into, wherever in it (S1-2).
    pub(crate) fn object_at(self, address: *const u8) -> NonNull<u8> {
        let offset = address as usize - self.base() as usize;
        self.object(self.cache().index_at(offset))
    }

    /// Whether `object` is the start of one of the slab's objects.
    pub(crate) fn is_object(self, object: NonNull<u8>) -> bool {
        let cache = self.cache();
        // What lies in front of the first object wraps to an offset behind the last.
        let offset = object.as_ptr().addr().wrapping_sub(self.base().addr() + cache.left());
        offset.is_multiple_of(cache.size()) && offset / cache.size() < self.state().objects as usize
    }
}

/// The cache of the slab that `page` is one of.
#[inline(always)]
fn cache_named_by(page: &'static Page) -> &'static RawCache {
    let cache = page.slab().cache.load(Relaxed).cast::<RawCache>();
    // SAFETY: each page of a slab names the cache, as in `SlabRef::cache`.
    unsafe {
        // The optimiser would test for the `None` of what becomes of it.
        core::hint::assert_unchecked(!cache.is_null());
        &*cache
    }
}

fn link(slab: Option<SlabRef>) -> *mut Page {
    slab.map_or(ptr::null_mut(), |slab| ptr::from_ref(slab.0).cast_mut())
}

/// The start of the object that `address` points into, if it lies in a slab or a large `kmalloc` block (S1-2).
///
/// Context: any. O(1).
pub fn object_of(address: NonNull<u8>) -> Option<NonNull<u8>> {
    if let Some(slab) = SlabRef::of(address) {
        return Some(slab.object_at(address.as_ptr()));
    }
    let head = mm::page_of(address.as_ptr())?.head();
    (head.kind() == PageKind::Large).then(|| NonNull::new(head.virt())).flatten()
}
