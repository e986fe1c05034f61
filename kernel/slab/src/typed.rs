//! [`Cache<T>`]: a cache of values, and [`CacheBox`], which owns one.
//!
//! ```no_run
//! use grange_slab::typed::{Cache, TypedLayout};
//! use mm::AllocFlags;
//!
//! struct Node { key: u64, name: [u8; 40] }
//!
//! # fn f(cx: &mut sync::MaySleep) -> Option<()> {
//! let nodes: Cache<Node> = Cache::create(TypedLayout::new("node").capacity(60)).ok()?;
//! let mut node = nodes.alloc(Node { key: 1, name: [0; 40] }, AllocFlags::NOWAIT).ok()?;
//! node.key += 1;
//! drop(node);                     // drops the value, then gives its memory back to the cache
//! nodes.destroy(cx).ok()?;
//! # Some(()) }
//! ```
//!
//! Two neighbours are for objects that are made once and used again and again:
//!
//! | | an object is | its holder has | when it is freed |
//! |---|---|---|---|
//! | [`Cache<T>`] | a value that comes and goes | the value | the value is dropped |
//! | [`CtorCache<T>`](crate::constructed::CtorCache) | made with its slab | `&mut T` | it keeps its state |
//! | [`TypesafeCache<T>`](crate::typesafe::TypesafeCache) | made with its slab | `&T`, beside RCU readers | it keeps its state, and readers may go on looking at it |
//!
//! # Invariants
//! - **TYPED-1** A box owns a valid value and, unless that has size 0, the object of the cache that it lies in.
//! - **TYPED-2** A box borrows its cache. So no cache is destroyed from under a box; only a box that was forgotten, or turned
//!   into a raw pointer, can be left, and [`Cache::destroy`] finds its object in use and leaves the cache alone.
//!
//! ```compile_fail,E0505
//! # use grange_slab::typed::Cache;
//! # use mm::AllocFlags;
//! fn f(nodes: Cache<u64>, cx: &mut sync::MaySleep) {
//!     let node = nodes.alloc(1, AllocFlags::NOWAIT).unwrap();
//!     let _ = nodes.destroy(cx);
//!     drop(node);
//! }
//! ```
//!
//! Values of size 0 need neither slab nor cache: they cost nothing and never fail. An alignment may be up to a page.
//!
//! Context: any but NMI, for allocating and for dropping; the value's own destructor may want more.

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use core::ptr::NonNull;

use arch::NodeId;
use mm::AllocFlags;
use sync::MaySleep;

use crate::cache::{CacheFlags, CreateError, Ctor, Layout, RawCache};
use crate::flush::{self, Leaked};
use crate::kbox::OutOfMemory;

/// What a typed cache is made of; see [`Layout`].
#[must_use = "a layout is nothing until `create` makes a cache of it"]
pub struct TypedLayout<T> {
    layout: Layout,
    of: PhantomData<fn() -> T>,
}

impl<T> TypedLayout<T> {
    /// Objects of `T`'s size and alignment, shown as `name` in `slabinfo`.
    pub const fn new(name: &'static str) -> Self {
        Self { layout: Layout::new(name, size_of::<T>()).align(align_of::<T>()), of: PhantomData }
    }

    /// Alignment of every object, if more than `T` wants: a power of two up to a page.
    pub const fn align(self, align: usize) -> Self {
        let align = if align > align_of::<T>() { align } else { align_of::<T>() };
        Self { layout: self.layout.align(align), of: PhantomData }
    }

    /// What is special about the cache; replaces what was said before.
    pub const fn flags(self, flags: CacheFlags) -> Self {
        Self { layout: self.layout.flags(flags), of: PhantomData }
    }

    /// Sheaf capacity, if more than the default.
    pub const fn capacity(self, capacity: usize) -> Self {
        Self { layout: self.layout.capacity(capacity), of: PhantomData }
    }

    /// With a constructor and more flags: for the caches whose objects keep their state.
    pub(crate) fn made_by(self, ctor: Ctor, flags: CacheFlags) -> Layout {
        self.layout.flags(self.layout.flags | flags).ctor(ctor)
    }
}

/// A cache of values; see the [module](self).
///
/// Dropping it leaks it: the cache stays for good, because to destroy one means to wait, and a destructor cannot. A
/// cache that lives as long as the kernel goes into a static, and its boxes are `CacheBox<'static, T>`.
#[must_use = "dropped, it stays for good; `destroy` ends it"]
pub struct Cache<T> {
    /// None for values of size 0.
    raw: Option<&'static RawCache>,
    /// It takes and gives values but holds none.
    of: PhantomData<fn(T) -> T>,
}

impl<T> Cache<T> {
    /// Makes a cache, or becomes a user of one just like it ([`merge`](crate::merge)).
    ///
    /// Context: any but NMI; not under a lock that the allocator may need.
    ///
    /// # Errors
    /// A size or alignment that no slab can hold, or no memory.
    ///
    /// # Panics
    /// Where it would return an error, if the flags have [`CacheFlags::PANIC`].
    pub fn create(layout: TypedLayout<T>) -> Result<Self, CreateError> {
        let raw = match size_of::<T>() {
            0 => None,
            _ => Some(crate::create(layout.layout)?),
        };
        Ok(Self { raw, of: PhantomData })
    }

    /// Moves `value` into an object of its own.
    ///
    /// Context: any but NMI; never sleeps.
    ///
    /// # Errors
    /// [`OutOfMemory`] gives `value` back.
    pub fn alloc(&self, value: T, flags: AllocFlags) -> Result<CacheBox<'_, T>, OutOfMemory<T>> {
        self.alloc_by(value, |raw| raw.alloc(flags - AllocFlags::ZERO))
    }

    /// The same from a node; see [`RawCache::alloc_node`].
    ///
    /// # Errors
    /// As [`Cache::alloc`].
    pub fn alloc_node(
        &self,
        value: T,
        node: Option<NodeId>,
        flags: AllocFlags,
    ) -> Result<CacheBox<'_, T>, OutOfMemory<T>> {
        self.alloc_by(value, |raw| raw.alloc_node(node, flags - AllocFlags::ZERO))
    }

    /// The same for a thread that may sleep; see [`RawCache::alloc_sleep`].
    ///
    /// # Errors
    /// As [`Cache::alloc`].
    pub fn alloc_sleep(
        &self,
        value: T,
        flags: AllocFlags,
        cx: &mut MaySleep,
    ) -> Result<CacheBox<'_, T>, OutOfMemory<T>> {
        self.alloc_by(value, |raw| raw.alloc_sleep(flags - AllocFlags::ZERO, cx))
    }

    #[inline(always)]
    pub(crate) fn alloc_by(
        &self,
        value: T,
        alloc: impl FnOnce(&'static RawCache) -> Option<NonNull<u8>>,
    ) -> Result<CacheBox<'_, T>, OutOfMemory<T>> {
        let object = match self.raw {
            None => NonNull::dangling(),
            Some(raw) => match alloc(raw) {
                Some(object) => object.cast::<T>(),
                None => return Err(OutOfMemory(value)),
            },
        };
        // SAFETY: a fresh object of `T`'s size and alignment, or no bytes at an aligned address.
        unsafe { object.write(value) };
        Ok(CacheBox { object, cache: self })
    }

    /// The untyped cache, to look at and to tune; none for values of size 0.
    pub fn raw(&self) -> Option<&'static RawCache> {
        self.raw
    }

    /// Ends the cache. All boxes are gone (TYPED-2).
    ///
    /// Context: task; sleeps: it waits for a grace period.
    ///
    /// # Errors
    /// Objects of boxes that were forgotten keep the cache alive: it comes back, and they are listed in the log.
    pub fn destroy(self, cx: &mut MaySleep) -> Result<(), (Self, Leaked)> {
        let Some(raw) = self.raw else { return Ok(()) };
        // SAFETY: `self` was this user's right to the cache, and no box borrows it.
        unsafe { flush::destroy(raw, cx) }.map_err(|leaked| (self, leaked))
    }
}

/// Owns a value in an object of a cache.
pub struct CacheBox<'c, T> {
    object: NonNull<T>,
    cache: &'c Cache<T>,
}

// SAFETY: a box is its value (TYPED-1); any CPU may free an object of any other.
unsafe impl<T: Send> Send for CacheBox<'_, T> {}
// SAFETY: a shared box gives shared references to its value and nothing else.
unsafe impl<T: Sync> Sync for CacheBox<'_, T> {}

/// A box may move: its value does not move with it.
impl<T> Unpin for CacheBox<'_, T> {}

impl<'c, T> CacheBox<'c, T> {
    /// Moves the value out and gives its memory back. Not a method, so that it hides none of the value's.
    pub fn into_inner(this: Self) -> T {
        let this = core::mem::ManuallyDrop::new(this);
        // SAFETY: a valid value (TYPED-1), read once: the box does not drop it any more.
        let value = unsafe { this.object.read() };
        this.free();
        value
    }

    /// Gives up the box but not the value.
    #[must_use = "nobody else will drop the value"]
    pub fn into_raw(this: Self) -> NonNull<T> {
        core::mem::ManuallyDrop::new(this).object
    }

    /// Takes a value back into a box.
    ///
    /// # Safety
    /// `object` came from [`CacheBox::into_raw`] of a box of `cache`, and nobody else owns it.
    pub unsafe fn from_raw(object: NonNull<T>, cache: &'c Cache<T>) -> Self {
        Self { object, cache }
    }

    /// Fixes the value at its place.
    pub fn into_pin(this: Self) -> Pin<Self> {
        // SAFETY: the value moves only by `into_inner`, which wants an unpinned box.
        unsafe { Pin::new_unchecked(this) }
    }

    pub(crate) fn cache(&self) -> &'c Cache<T> {
        self.cache
    }

    /// Gives the object back to its cache. Called once, when the value is gone.
    fn free(&self) {
        if let Some(raw) = self.cache.raw {
            // SAFETY: the object is of this cache and the box's own (TYPED-1), and the box is on its way out.
            unsafe { raw.free(self.object.cast()) };
        }
    }
}

impl<T> Drop for CacheBox<'_, T> {
    fn drop(&mut self) {
        // SAFETY: a valid value (TYPED-1), dropped once: the box goes.
        unsafe { self.object.drop_in_place() };
        self.free();
    }
}

impl<T> Deref for CacheBox<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a valid value (TYPED-1), shared for as long as the box is.
        unsafe { self.object.as_ref() }
    }
}

impl<T> DerefMut for CacheBox<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: a valid value that only this box reaches (TYPED-1).
        unsafe { self.object.as_mut() }
    }
}

impl<T: fmt::Debug> fmt::Debug for CacheBox<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
