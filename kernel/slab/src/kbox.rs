//! [`KBox`]: an owner of one value in `kmalloc` memory, whose allocation may fail.
//!
//! What `alloc::boxed::Box` is to the global allocator, but with the allocation's flags in the caller's hand and failure as
//! a value that gives the argument back.
//!
//! # Invariants
//! - **KBOX-1** A box owns a valid value and, unless that has size 0, the `kmalloc` block that it lies in; the block is at
//!   least as large and as aligned as the value.
//!
//! A box of a trait object or slice cannot be made by coercion: `CoerceUnsized` is not stable. The raw pointer coerces,
//! so this does it:
//!
//! ```no_run
//! use core::fmt::Debug;
//! use core::ptr::NonNull;
//! use grange_slab::KBox;
//! use mm::AllocFlags;
//!
//! # fn f() -> Option<()> {
//! let number = KBox::try_new(5_u32, AllocFlags::NOWAIT).ok()?;
//! let raw: NonNull<u32> = KBox::into_raw(number);
//! // SAFETY: from `into_raw`, once.
//! let any = unsafe { KBox::<dyn Debug>::from_raw(raw) };
//! # Some(()) }
//! ```
//!
//! A reference into a box does not outlive it:
//!
//! ```compile_fail,E0505
//! # use grange_slab::KBox;
//! fn f(number: KBox<u32>) -> u32 {
//!     let inside: &u32 = &number;
//!     drop(number);
//!     *inside
//! }
//! ```
//!
//! Context: any but NMI, for making and for dropping.
//!
//! Answers to `KBox` in Linux `rust/kernel/alloc/kbox.rs` (6.18).

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use core::ptr::NonNull;

use mm::AllocFlags;

use crate::kmalloc::{kfree, kmalloc_aligned};

/// There was no memory for a value; here it is back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory<T>(pub T);

impl<T> fmt::Debug for OutOfMemory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OutOfMemory")
    }
}

impl<T> fmt::Display for OutOfMemory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory for {} bytes", size_of::<T>())
    }
}

impl<T> core::error::Error for OutOfMemory<T> {}

/// A value in `kmalloc` memory; see the [module](self).
pub struct KBox<T: ?Sized> {
    place: NonNull<T>,
    /// It drops a `T`.
    owns: PhantomData<T>,
}

// SAFETY: a box is its value (KBOX-1): it may go where that may go. `kfree` takes blocks of any CPU.
unsafe impl<T: ?Sized + Send> Send for KBox<T> {}
// SAFETY: a shared box gives shared references to its value and nothing else.
unsafe impl<T: ?Sized + Sync> Sync for KBox<T> {}

/// A box may move: its value does not move with it.
impl<T: ?Sized> Unpin for KBox<T> {}

impl<T> KBox<T> {
    /// Moves `value` into memory of its own. Of size 0 it needs none.
    ///
    /// # Errors
    /// [`OutOfMemory`] gives `value` back.
    pub fn try_new(value: T, flags: AllocFlags) -> Result<Self, OutOfMemory<T>> {
        let place = match size_of::<T>() {
            0 => NonNull::dangling(),
            size => match kmalloc_aligned(size, align_of::<T>(), flags - AllocFlags::ZERO) {
                Some(block) => block.cast(),
                None => return Err(OutOfMemory(value)),
            },
        };
        // SAFETY: a fresh block of that size and alignment, or no bytes at an aligned address.
        unsafe { place.write(value) };
        Ok(Self { place, owns: PhantomData })
    }

    /// The same, for a value that must not move any more.
    ///
    /// # Errors
    /// As [`KBox::try_new`].
    pub fn try_pin(value: T, flags: AllocFlags) -> Result<Pin<Self>, OutOfMemory<T>> {
        Self::try_new(value, flags).map(Self::into_pin)
    }

    /// Moves the value out and frees its memory.
    pub fn into_inner(this: Self) -> T {
        let place = Self::into_raw(this);
        // SAFETY: the box owned a valid value (KBOX-1); it is read once, and the block is no longer its place.
        unsafe {
            let value = place.read();
            free(place, size_of::<T>());
            value
        }
    }
}

impl<T: ?Sized> KBox<T> {
    /// Gives up the box but not the value. Not a method, so that it hides none of the value's.
    #[must_use = "nobody else will drop the value"]
    pub fn into_raw(this: Self) -> NonNull<T> {
        core::mem::ManuallyDrop::new(this).place
    }

    /// Takes a value back into a box.
    ///
    /// # Safety
    /// `place` came from [`KBox::into_raw`], at most unsized since, and nobody else owns it.
    pub unsafe fn from_raw(place: NonNull<T>) -> Self {
        Self { place, owns: PhantomData }
    }

    /// Fixes the value at its place.
    pub fn into_pin(this: Self) -> Pin<Self> {
        // SAFETY: the value lies in a block of its own and moves only by `into_inner`, which wants an unpinned box.
        unsafe { Pin::new_unchecked(this) }
    }
}

/// Frees the block of a value of `size` bytes, if it had one.
///
/// # Safety
/// `place` is the place of a box that is gone, and so is the value.
unsafe fn free<T: ?Sized>(place: NonNull<T>, size: usize) {
    if size != 0 {
        // SAFETY: the block came from `kmalloc_aligned` (KBOX-1), and by the caller it is ours to free.
        unsafe { kfree(place.cast()) };
    }
}

impl<T: ?Sized> Drop for KBox<T> {
    fn drop(&mut self) {
        let size = size_of_val::<T>(self);
        // SAFETY: the box owns value and block (KBOX-1), and goes.
        unsafe {
            self.place.drop_in_place();
            free(self.place, size);
        }
    }
}

impl<T: ?Sized> Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a valid value (KBOX-1), shared for as long as the box is.
        unsafe { self.place.as_ref() }
    }
}

impl<T: ?Sized> DerefMut for KBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: a valid value that only this box reaches (KBOX-1).
        unsafe { self.place.as_mut() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for KBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for KBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
