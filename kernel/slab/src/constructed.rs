//! [`CtorCache<T>`]: objects that are made once, with their slab, and keep their state while they are free.
//!
//! For what is dear to set up and cheap to put back: a lock, a list head, a table. [`Construct::construct`] runs once an object,
//! when its slab is made; an allocation hands the object out as it is, and its holder leaves it in a state that the
//! next one can begin with.
//!
//! # Invariants
//! - **CTOR-1** Every object of the cache, free or not, is a valid `T`: constructed before anybody gets it, and changed
//!   through references only. The freelist link lies behind it, and nothing is zeroed or poisoned.
//! - **CTOR-2** No destructor ever runs, because a slab goes without a look at its objects. So `T` must not need one; that
//!   is checked when the program is compiled:
//!
//! ```compile_fail,E0080
//! use grange_slab::constructed::{Construct, CtorCache};
//! use grange_slab::typed::TypedLayout;
//! struct Owner(grange_slab::KBox<u64>);
//! impl Construct for Owner {
//!     fn construct() -> Self { unimplemented!() }
//! }
//! let owners = CtorCache::<Owner>::create(TypedLayout::new("owner"));
//! ```
//!
//! - **CTOR-3** A cache with a constructor is merged with no other.
//!
//! An object cannot be moved out of its box, but its value may be replaced by another one.
//!
//! Context: any but NMI. The constructor runs in the context of the allocation that makes the slab.
//!
//! Linux: the `ctor` of `kmem_cache_create`.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use mm::AllocFlags;
use sync::MaySleep;

use crate::cache::{CacheFlags, CreateError, RawCache};
use crate::flush::{self, Leaked};
use crate::kmalloc::kfree;
use crate::typed::TypedLayout;

/// Objects with a first state. `Send`, because whoever allocates one may be another thread than the one that made its slab.
pub trait Construct: Sized + Send {
    /// The state in which a new object is handed out.
    fn construct() -> Self;
}

/// The constructor of `T` for an untyped cache.
pub(crate) fn ctor<T: Construct>(object: NonNull<u8>) {
    const {
        assert!(size_of::<T>() != 0, "an object without size has no state to keep");
        assert!(!core::mem::needs_drop::<T>(), "CTOR-2: nobody would ever drop this object");
    }
    // SAFETY: the cache's objects have `T`'s size and alignment, and this one is nobody's yet.
    unsafe { object.cast::<T>().write(T::construct()) };
}

/// A cache of objects that keep their state; see the [module](self). Dropping it leaks it, as with
/// [`Cache`](crate::typed::Cache).
#[must_use = "dropped, it stays for good; `destroy` ends it"]
pub struct CtorCache<T> {
    raw: &'static RawCache,
    of: PhantomData<fn() -> T>,
}

impl<T: Construct> CtorCache<T> {
    /// Makes a cache.
    ///
    /// # Errors
    /// As [`Cache::create`](crate::typed::Cache::create).
    pub fn create(layout: TypedLayout<T>) -> Result<Self, CreateError> {
        Ok(Self { raw: crate::create(layout.made_by(ctor::<T>, CacheFlags::empty()))?, of: PhantomData })
    }

    /// An object as its last holder left it, or as it was constructed. Nothing if there is no memory.
    ///
    /// Context: any but NMI; never sleeps.
    pub fn alloc(&self, flags: AllocFlags) -> Option<CtorBox<'_, T>> {
        let object = self.raw.alloc(flags - AllocFlags::ZERO)?.cast();
        Some(CtorBox { object, of: PhantomData })
    }

    /// The untyped cache, to look at and to tune.
    pub fn raw(&self) -> &'static RawCache {
        self.raw
    }

    /// Ends the cache. All boxes are gone.
    ///
    /// Context: task; sleeps: it waits for a grace period.
    ///
    /// # Errors
    /// As [`Cache::destroy`](crate::typed::Cache::destroy).
    pub fn destroy(self, cx: &mut MaySleep) -> Result<(), (Self, Leaked)> {
        // SAFETY: `self` was this user's right to the cache, and no box borrows it.
        unsafe { flush::destroy(self.raw, cx) }.map_err(|leaked| (self, leaked))
    }
}

/// Holds an object of a [`CtorCache`].
pub struct CtorBox<'c, T> {
    object: NonNull<T>,
    of: PhantomData<(&'c CtorCache<T>, T)>,
}

// SAFETY: a box is the right to its object, a `T` that may go to any thread; any CPU may free it.
unsafe impl<T: Send> Send for CtorBox<'_, T> {}
// SAFETY: a shared box gives shared references to its object and nothing else.
unsafe impl<T: Sync> Sync for CtorBox<'_, T> {}

impl<T> Drop for CtorBox<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the object is the box's own, and the box goes. Its state stays (CTOR-1).
        unsafe { kfree(self.object.cast()) };
    }
}

impl<T> Deref for CtorBox<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a valid object (CTOR-1), shared for as long as the box is.
        unsafe { self.object.as_ref() }
    }
}

impl<T> DerefMut for CtorBox<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: a valid object (CTOR-1) that only this box reaches.
        unsafe { self.object.as_mut() }
    }
}
