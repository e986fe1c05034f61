//! [`TypesafeCache<T>`]: objects that readers may look at even while they are freed and used again.
//!
//! An object of such a cache is freed without waiting for anybody, and the next allocation may have it at once. A reader
//! that found it before may therefore see it change under its eyes, into another *object*. But never into another *type*:
//! the pages of a slab go back only after a grace period. So a reader may take the object's lock or reference count,
//! and then look whether it is still the object that it was looking for. Compared with `kfree_rcu` this costs no grace
//! period for each object, and memory is used again while it is warm.
//!
//! # Finding and validating
//!
//! A [`TypesafeSlot`] is a pointer that readers follow. What it gives is valid memory of the right type for as long as
//! the reader lasts, and nothing more. The reader
//! 1. reads the slot, under [`rcu::read_lock`];
//! 2. pins the object by a lock or a count in it that says "free" when nobody owns it;
//! 3. looks whether the slot still [holds](TypesafeSlot::holds) it, or its key is still the right one; if not, unpins and
//!    begins anew.
//!
//! ```no_run
//! use core::sync::atomic::{AtomicU64, Ordering::{Acquire, Relaxed, Release}};
//! use grange_slab::constructed::Construct;
//! use grange_slab::typesafe::TypesafeSlot;
//! use sync::ATOMIC;
//!
//! /// One count for its owner, one for each reader that has pinned it; 0 while it is free.
//! struct Session { users: AtomicU64, id: AtomicU64 }
//!
//! impl Construct for Session {
//!     fn construct() -> Self { Session { users: AtomicU64::new(0), id: AtomicU64::new(0) } }
//! }
//!
//! impl Session {
//!     fn pin(&self) -> bool {
//!         // Acquire: pairs with the release by which its owner made the count 1, so that its key is seen.
//!         self.users.fetch_update(Acquire, Relaxed, |users| (users != 0).then_some(users + 1)).is_ok()
//!     }
//! }
//!
//! /// Pins the session `id`; whoever brings its count to 0 frees it.
//! fn find(slot: &TypesafeSlot<'_, Session>, id: u64) -> bool {
//!     let reader = rcu::read_lock(ATOMIC);
//!     while let Some(session) = slot.read(&reader) {
//!         if session.pin() {
//!             if session.id.load(Relaxed) == id {
//!                 return true;
//!             }
//!             // Another session by now.
//!             session.users.fetch_sub(1, Release);
//!         }
//!         if slot.holds(session) {
//!             return false;
//!         }
//!     }
//!     false
//! }
//! ```
//!
//! # Invariants
//! - **SAFE-1** Every object of the cache, free or not, is a valid `T` from when its slab is made until a grace period after
//!   the slab is given up. All of CTOR-1 to CTOR-3 holds, so nothing of a free object is overwritten, and no other
//!   cache has objects in these slabs. Of a debug cache an object is valid from its allocation until a grace period after
//!   its free, and poisoned between the two: by SAFE-3 no reader sees it then, and one that does is found (M-13).
//! - **SAFE-2** `T` is changed through `&T` only, by atomics and locks: there is no `&mut T` to an object that a reader may see,
//!   and for that reason `T` is `Sync`.
//! - **SAFE-3** A slot owns what it points to. So at the moment in which a reader follows it the object is not free, and the
//!   grace period that its slab waits for begins later than the reader.
//!
//! A reference does not outlive its reader:
//!
//! ```compile_fail,E0505
//! # use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
//! # use grange_slab::typesafe::TypesafeSlot;
//! fn f(slot: &TypesafeSlot<'static, AtomicU64>) -> u64 {
//!     let reader = rcu::read_lock(sync::ATOMIC);
//!     let found = slot.read(&reader);
//!     drop(reader);
//!     found.map_or(0, |object| object.load(Relaxed))
//! }
//! ```
//!
//! and nobody changes an object by a plain write:
//!
//! ```compile_fail,E0596
//! # use core::sync::atomic::AtomicU64;
//! # use grange_slab::typesafe::TypesafeBox;
//! fn f(mut object: TypesafeBox<'static, AtomicU64>) {
//!     *object.get_mut() = 1;
//! }
//! ```
//!
//! # Whose readers
//!
//! Those of RCU, or those of a domain of SRCU, which may sleep while they look: a parameter of the types, [`ByRcu`] or
//! [`BySrcu`]. A box of a cache for the ones does not go into a slot for the others:
//!
//! ```compile_fail,E0308
//! # use core::sync::atomic::AtomicU64;
//! # use grange_slab::typesafe::{BySrcu, TypesafeBox, TypesafeSlot};
//! # use rcu::srcu::Normal;
//! fn f(slot: &TypesafeSlot<'static, AtomicU64>, object: TypesafeBox<'static, AtomicU64, BySrcu<Normal>>) {
//!     slot.swap(Some(object));
//! }
//! ```
//!
//! Linux: `SLAB_TYPESAFE_BY_RCU`; for SRCU there is nothing like it (S3-32). There the constructor is optional, and where the link goes is the creator's choice
//! (`freeptr_offset`); here each object is constructed, and the link lies behind it. Rows M-13, G-7.

use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering::AcqRel, Ordering::Acquire};

use mm::AllocFlags;
use rcu::RcuReadGuard;
use rcu::srcu::{Flavour, InSection, SrcuDomain};
use sync::callback::{CallbackFn, CallbackHead};
use sync::{MaySleep, bug};

use crate::cache::{CacheFlags, CreateError, RawCache};
use crate::constructed::{Construct, ctor};
use crate::flush::{self, Leaked};
use crate::kmalloc::kfree;
use crate::slab_ref::SlabRef;
use crate::typed::TypedLayout;

/// Whose readers may look at objects of a type-safe cache. Sealed: [`ByRcu`] and [`BySrcu`].
pub trait ReadSide: sealed::Holds + Copy + Send + Sync + 'static {}

mod sealed {
    /// What a slot asks of the readers it is for.
    pub trait Holds {
        /// Whether slabs of the cache that `object` is of wait for these readers.
        #[doc(hidden)]
        fn waits_for(&self, object: core::ptr::NonNull<u8>) -> bool;
    }
}

/// Readers of RCU: [`rcu::read_lock`].
#[derive(Clone, Copy, Debug)]
pub struct ByRcu;

impl ReadSide for ByRcu {}

impl sealed::Holds for ByRcu {
    /// By their type.
    #[inline(always)]
    fn waits_for(&self, _: NonNull<u8>) -> bool {
        true
    }
}

/// Readers of one domain of SRCU: [`srcu_read_lock`](rcu::srcu::srcu_read_lock), [`srcu_down_read`](rcu::srcu::srcu_down_read).
pub struct BySrcu<F: Flavour>(&'static SrcuDomain<F>);

impl<F: Flavour> Clone for BySrcu<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Flavour> Copy for BySrcu<F> {}

impl<F: Flavour> ReadSide for BySrcu<F> {}

impl<F: Flavour> sealed::Holds for BySrcu<F> {
    /// The type tells flavours apart, but not the domains of one.
    fn waits_for(&self, object: NonNull<u8>) -> bool {
        let domain = SlabRef::of(object).and_then(|slab| slab.cache().srcu());
        domain.is_some_and(|domain| ptr::eq(domain, self.0.core()))
    }
}

impl RawCache {
    /// Calls `func(head)` when nobody looks any more at what is free now.
    ///
    /// # Safety
    /// As for [`rcu::call_rcu`].
    pub(crate) unsafe fn call_after_readers(&self, head: *mut CallbackHead, func: CallbackFn) {
        let domain = self.srcu();
        match domain.filter(|_| !bug!("typesafe.by_rcu", "what waits for SRCU's readers waits for RCU's", "slab_srcu"))
        {
            // SAFETY: passed on from the caller.
            None => unsafe { rcu::call_rcu(head, func) },
            // SAFETY: passed on from the caller.
            Some(domain) => unsafe { domain.call(head, func) },
        }
    }

    /// Waits until all such calls have been made. Context: task; sleeps.
    pub(crate) fn barrier_of_readers(&self, cx: &mut MaySleep) {
        match self.srcu() {
            None => rcu::rcu_barrier(cx),
            Some(domain) => domain.barrier(cx),
        }
    }
}

/// A cache of objects that readers may look at while they change hands; see the [module](self). Dropping it leaks it, as
/// with [`Cache`](crate::typed::Cache).
#[must_use = "dropped, it stays for good; `destroy` ends it"]
pub struct TypesafeCache<T, R: ReadSide = ByRcu> {
    raw: &'static RawCache,
    of: PhantomData<fn() -> (T, R)>,
}

impl<T: Construct + Sync> TypesafeCache<T> {
    /// Makes a cache for readers of RCU.
    ///
    /// # Errors
    /// As [`Cache::create`](crate::typed::Cache::create).
    pub fn create(layout: TypedLayout<T>) -> Result<Self, CreateError> {
        let layout = layout.made_by(ctor::<T>, CacheFlags::TYPESAFE_BY_RCU);
        Ok(Self { raw: crate::create(layout)?, of: PhantomData })
    }
}

impl<T: Construct + Sync, F: Flavour> TypesafeCache<T, BySrcu<F>> {
    /// Makes a cache for readers of `domain`, which its slabs name from then on: nobody else need know it (S3-32).
    ///
    /// # Errors
    /// As [`Cache::create`](crate::typed::Cache::create).
    pub fn create_in(layout: TypedLayout<T>, domain: &'static SrcuDomain<F>) -> Result<Self, CreateError> {
        let layout = layout.made_by(ctor::<T>, CacheFlags::empty()).typesafe_by_srcu(domain);
        Ok(Self { raw: crate::create(layout)?, of: PhantomData })
    }
}

impl<T: Construct + Sync, R: ReadSide> TypesafeCache<T, R> {
    /// An object as its last holder left it, or as it was constructed. Readers may still be looking at it. Nothing if there
    /// is no memory.
    ///
    /// Context: any but NMI; never sleeps.
    pub fn alloc(&self, flags: AllocFlags) -> Option<TypesafeBox<'_, T, R>> {
        let object = self.raw.alloc(flags - AllocFlags::ZERO)?.cast();
        Some(TypesafeBox { object, of: PhantomData })
    }

    /// The untyped cache, to look at and to tune.
    pub fn raw(&self) -> &'static RawCache {
        self.raw
    }

    /// Ends the cache. All boxes and slots are gone, and so are their readers; it waits for the pages' grace period.
    ///
    /// Context: task; sleeps.
    ///
    /// # Errors
    /// As [`Cache::destroy`](crate::typed::Cache::destroy).
    pub fn destroy(self, cx: &mut MaySleep) -> Result<(), (Self, Leaked)> {
        // SAFETY: `self` was this user's right to the cache, and no box or slot borrows it.
        unsafe { flush::destroy(self.raw, cx) }.map_err(|leaked| (self, leaked))
    }
}

/// Owns an object of a [`TypesafeCache`]. Dropped, it frees the object at once.
pub struct TypesafeBox<'c, T, R: ReadSide = ByRcu> {
    object: NonNull<T>,
    of: PhantomData<(&'c TypesafeCache<T, R>, T)>,
}

// SAFETY: it gives shared references only (SAFE-2), and any CPU may free the object.
unsafe impl<T: Send + Sync, R: ReadSide> Send for TypesafeBox<'_, T, R> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, R: ReadSide> Sync for TypesafeBox<'_, T, R> {}

impl<T, R: ReadSide> TypesafeBox<'_, T, R> {
    /// Gives up the box but not the object. Not a method, so that it hides none of the object's.
    #[must_use = "nobody else will free the object"]
    pub fn into_raw(this: Self) -> NonNull<T> {
        core::mem::ManuallyDrop::new(this).object
    }

    /// Takes an object back into a box.
    ///
    /// # Safety
    /// `object` came from [`TypesafeBox::into_raw`] of a box of the same type, lifetime included, and nobody else owns it.
    pub unsafe fn from_raw(object: NonNull<T>) -> Self {
        Self { object, of: PhantomData }
    }
}

impl<T, R: ReadSide> Drop for TypesafeBox<'_, T, R> {
    fn drop(&mut self) {
        // SAFETY: the object is the box's own, and the box goes; readers may go on looking (SAFE-1).
        unsafe { kfree(self.object.cast()) };
    }
}

impl<T, R: ReadSide> Deref for TypesafeBox<'_, T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a valid object (SAFE-1), to which there are shared references only (SAFE-2).
        unsafe { self.object.as_ref() }
    }
}

/// A lifetime that passes for no other.
type Exactly<'c> = fn(&'c ()) -> &'c ();

/// A place where readers find an object, and updaters put another; see the [module](self).
///
/// It takes objects of a cache that lives as long as the slot's own, and does not pass for a slot of a shorter-lived one:
///
/// ```compile_fail
/// # use core::sync::atomic::AtomicU64;
/// # use grange_slab::typesafe::TypesafeSlot;
/// fn f<'a>(slot: &'a TypesafeSlot<'static, AtomicU64>) -> &'a TypesafeSlot<'a, AtomicU64> {
///     slot
/// }
/// ```
pub struct TypesafeSlot<'c, T, R: ReadSide = ByRcu> {
    /// Null, or the object of a box (SAFE-3). Written by updaters, read by readers.
    object: AtomicPtr<T>,
    readers: R,
    of: PhantomData<TypesafeBox<'c, T, R>>,
    exactly: PhantomData<Exactly<'c>>,
}

impl<T: Send + Sync> TypesafeSlot<'_, T> {
    /// An empty slot.
    #[must_use]
    pub const fn new() -> Self {
        Self::empty(ByRcu)
    }

    /// The object that is here now, for as long as the reader lasts: valid, of this type, but perhaps soon another one.
    ///
    /// Context: any. One load.
    #[inline]
    pub fn read<'g>(&'g self, _reader: &'g RcuReadGuard<'_>) -> Option<&'g T> {
        // SAFETY: in a section of RCU, which lasts for 'g.
        unsafe { self.follow() }
    }
}

impl<T: Send + Sync, F: Flavour> TypesafeSlot<'_, T, BySrcu<F>> {
    /// An empty slot for readers of `domain`.
    #[must_use]
    pub const fn new_in(domain: &'static SrcuDomain<F>) -> Self {
        Self::empty(BySrcu(domain))
    }

    /// The object that is here now, for as long as the section lasts; the reader may sleep meanwhile.
    ///
    /// Context: that of the section. One load and a comparison.
    ///
    /// # Panics
    /// If the section is one of another domain.
    #[inline]
    pub fn read<'g>(&'g self, section: &'g impl InSection<F>) -> Option<&'g T> {
        assert!(ptr::eq(section.domain(), self.readers.0), "SRCU: a slot is read in a section of another domain");
        // SAFETY: in a section of the slot's domain, which lasts for 'g.
        unsafe { self.follow() }
    }
}

impl<'c, T: Send + Sync, R: ReadSide> TypesafeSlot<'c, T, R> {
    const fn empty(readers: R) -> Self {
        Self { object: AtomicPtr::new(ptr::null_mut()), readers, of: PhantomData, exactly: PhantomData }
    }

    /// # Safety
    /// The reference is used in a section of the slot's readers only.
    #[inline(always)]
    unsafe fn follow(&self) -> Option<&T> {
        // Acquire: pairs with the release in `swap`: the object as it was when it was put here.
        let object = self.object.load(Acquire);
        // SAFETY: null, or an object that was owned by the slot after the reader had begun (SAFE-3): valid until a grace
        // period later (SAFE-1), and 'g ends before that.
        unsafe { object.as_ref() }
    }

    /// Whether `object` is here now. To be asked by who has pinned it: else the answer is old at once.
    ///
    /// Context: any. One load.
    #[inline]
    pub fn holds(&self, object: &T) -> bool {
        // Acquire: as in `read`.
        ptr::eq(self.object.load(Acquire), object)
    }

    /// Puts `new` here, for readers that come from now on, and gives back what was here.
    ///
    /// Context: any. Wait-free.
    ///
    /// # Panics
    /// If the new object's cache is for readers of another domain than the slot.
    pub fn swap(&self, new: Option<TypesafeBox<'c, T, R>>) -> Option<TypesafeBox<'c, T, R>> {
        let new = new.map_or(ptr::null_mut(), |new| {
            assert!(self.readers.waits_for(new.object.cast()), "SRCU: an object of another domain comes into a slot");
            core::mem::ManuallyDrop::new(new).object.as_ptr()
        });
        // Release: pairs with the acquire in `read`. Acquire: the old object as whoever put it here left it.
        let old = self.object.swap(new, AcqRel);
        // The swap gave the object to us alone (SAFE-3).
        NonNull::new(old).map(|object| TypesafeBox { object, of: PhantomData })
    }
}

impl<T: Send + Sync> Default for TypesafeSlot<'_, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, R: ReadSide> Drop for TypesafeSlot<'_, T, R> {
    fn drop(&mut self) {
        if let Some(object) = NonNull::new(*self.object.get_mut()) {
            drop(TypesafeBox::<'_, T, R> { object, of: PhantomData });
        }
    }
}
