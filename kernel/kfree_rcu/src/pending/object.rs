//! What may wait: owners of objects that readers may still be looking at.

use core::ptr::NonNull;

use slab::KBox;
use slab::typesafe::TypesafeBox;

use crate::backend::BackEnd;
use crate::head::{HasRcuPtr, RcuPtr, object_of};

/// The owner of an object, which can be taken apart into the object's address and put together again.
///
/// # Safety
/// - `into_parts` gives the address of an object that stays valid until `from_object` or `finish` is called with it, and a
///   link that lies in this object and that nobody else writes meanwhile.
/// - `object_of` gives for that link that address.
/// - The address is not null, and belongs to this owner only.
pub unsafe trait Deferred: Send + Sized + 'static {
    /// The back end of `kfree_rcu` among whose events those of a tracker of these are counted.
    #[doc(hidden)]
    const COUNTED_AS: Option<BackEnd> = None;

    /// The object, and its own link if it has one: it is used where there is no memory to note the address.
    fn into_parts(self) -> (NonNull<u8>, Option<NonNull<RcuPtr>>);

    /// The owner again.
    ///
    /// # Safety
    /// `object` is from `into_parts`, once.
    unsafe fn from_object(object: NonNull<u8>) -> Self;

    /// The object that `link` lies in.
    ///
    /// # Safety
    /// `link` is from `into_parts`, and its object waits.
    unsafe fn object_of(link: NonNull<RcuPtr>) -> NonNull<u8>;

    /// Bytes that are given back with the object; the same each time.
    ///
    /// # Safety
    /// `object` is from `into_parts`, and waits.
    unsafe fn bytes(object: NonNull<u8>) -> usize {
        // SAFETY: the caller's object is one of the allocator's.
        unsafe { slab::ksize(object) }
    }

    /// Whether the object must not stand among those that are freed many at a time (S3-11).
    fn is_apart(object: NonNull<u8>) -> bool {
        let _ = object;
        false
    }

    /// Ends objects whose grace period is over: by itself it drops their owners.
    ///
    /// Called by a worker, by who calls a function of [`Pending`](super::Pending) that may sleep, and by
    /// [`enqueue`](super::Pending::enqueue) for its own object, if the grace period passed while that looked for memory (S3-9). So
    /// it must be legal wherever `enqueue` is called, and must not allocate with MAY_SLEEP.
    ///
    /// # Safety
    /// The objects are from `into_parts`, once each, and no reader is left.
    unsafe fn finish(objects: &mut [NonNull<u8>]) {
        for &mut object in objects {
            // SAFETY: by the caller.
            drop(unsafe { Self::from_object(object) });
        }
    }
}

/// Owners that may be had back *before* the grace period is over: of objects whose readers bear that they are used again as
/// another object of the same type (S3-14).
///
/// # Safety
/// Whatever safe code can do with the owner is sound while readers from before hold shared references to the object.
pub unsafe trait Reusable: Deferred {}

// SAFETY: a box's place is a block of its own, the link lies at `OFFSET` in it and is private to this storey; a value with a link
// has a size, so no two boxes have the same place.
unsafe impl<T: HasRcuPtr + Send + 'static> Deferred for KBox<T> {
    fn into_parts(self) -> (NonNull<u8>, Option<NonNull<RcuPtr>>) {
        let object = KBox::into_raw(self).cast::<u8>();
        // SAFETY: the trait says that the link lies at this offset of the value.
        (object, Some(unsafe { object.byte_add(T::OFFSET) }.cast()))
    }

    unsafe fn from_object(object: NonNull<u8>) -> Self {
        // SAFETY: by the caller, from `KBox::into_raw`.
        unsafe { KBox::from_raw(object.cast()) }
    }

    unsafe fn object_of(link: NonNull<RcuPtr>) -> NonNull<u8> {
        // SAFETY: as in `into_parts`.
        unsafe { link.byte_sub(T::OFFSET) }.cast()
    }
}

// SAFETY: as above; the object is one of a cache, and stays a valid `T` whether it is free or not (SAFE-1).
unsafe impl<T: HasRcuPtr + Send + Sync + 'static> Deferred for TypesafeBox<'static, T> {
    fn into_parts(self) -> (NonNull<u8>, Option<NonNull<RcuPtr>>) {
        let object = TypesafeBox::into_raw(self).cast::<u8>();
        // SAFETY: the trait says that the link lies at this offset of the value.
        (object, Some(unsafe { object.byte_add(T::OFFSET) }.cast()))
    }

    unsafe fn from_object(object: NonNull<u8>) -> Self {
        // SAFETY: by the caller, from `TypesafeBox::into_raw`.
        unsafe { TypesafeBox::from_raw(object.cast()) }
    }

    unsafe fn object_of(link: NonNull<RcuPtr>) -> NonNull<u8> {
        // SAFETY: as in `into_parts`.
        unsafe { link.byte_sub(T::OFFSET) }.cast()
    }
}

// SAFETY: such a box gives shared references only, to what readers may look at even when it is free (SAFE-2).
unsafe impl<T: HasRcuPtr + Send + Sync + 'static> Reusable for TypesafeBox<'static, T> {}

/// An object of `kmalloc`, a cache or `vmalloc` that was given up: by its address, as `kfree_rcu` takes it.
#[derive(Debug)]
pub struct GivenUp {
    object: NonNull<u8>,
    head: Option<NonNull<RcuPtr>>,
}

// SAFETY: it is the right to free the object, which any CPU may do.
unsafe impl Send for GivenUp {}

impl GivenUp {
    /// Takes an object over, with its head if it has one.
    ///
    /// # Safety
    /// `object` is the start of an object of `kmalloc`, a cache or `vmalloc`, and `head` lies in it, less than
    /// [`MAX_OFFSET`](crate::MAX_OFFSET) bytes from the start. No reader can find it any more, and the caller gives it up.
    pub unsafe fn new(object: NonNull<u8>, head: Option<NonNull<RcuPtr>>) -> Self {
        Self { object, head }
    }

    /// The object.
    pub fn object(&self) -> NonNull<u8> {
        self.object
    }
}

// SAFETY: the object stays until it is freed, by the promise of `new`; the head lies in it.
unsafe impl Deferred for GivenUp {
    fn into_parts(self) -> (NonNull<u8>, Option<NonNull<RcuPtr>>) {
        (self.object, self.head)
    }

    unsafe fn from_object(object: NonNull<u8>) -> Self {
        Self { object, head: None }
    }

    unsafe fn object_of(link: NonNull<RcuPtr>) -> NonNull<u8> {
        object_of(link).expect("a head that was accepted lies in an object")
    }

    unsafe fn bytes(object: NonNull<u8>) -> usize {
        if mm::is_vmalloc(object.as_ptr()) {
            return mm::vmalloc_size(object);
        }
        // SAFETY: an object of the allocator, by the promise of `new`.
        unsafe { slab::ksize(object) }
    }

    fn is_apart(object: NonNull<u8>) -> bool {
        mm::is_vmalloc(object.as_ptr())
    }

    unsafe fn finish(objects: &mut [NonNull<u8>]) {
        for &mut object in objects {
            crate::free_now(object);
        }
    }
}
