//! Many values of a [`Cache<T>`] at once: [arrays](Cache::alloc_array), and [promises](Cache::prefill).
//!
//! Thin on top of [`bulk`](crate::bulk) and [`prefill`](crate::prefill); what is said there holds here.
//!
//! Context: any but NMI.

use core::array;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use mm::AllocFlags;
use sync::MaySleep;

use crate::kbox::OutOfMemory;
use crate::prefill::Prefilled;
use crate::typed::{Cache, CacheBox};

/// So many allocations that cannot fail; what is left of them goes back when it is dropped.
///
/// ```no_run
/// # use grange_slab::typed::Cache;
/// # use mm::AllocFlags;
/// fn f(nodes: &Cache<u64>) -> Option<()> {
///     let mut promised = nodes.prefill(2, AllocFlags::NOWAIT)?;
///     // From here on nothing can fail.
///     let [_left, _right] = [1, 2].map(|key| promised.alloc(key).expect("two were promised"));
///     Some(())
/// }
/// ```
#[must_use = "what it holds goes back when it is dropped"]
pub struct CachePrefilled<'c, T> {
    /// None for values of size 0, of which there are always enough.
    sheaf: Option<Prefilled>,
    cache: &'c Cache<T>,
}

impl<'c, T> CachePrefilled<'c, T> {
    /// Moves `value` into one of the promised objects. Wait-free.
    ///
    /// # Errors
    /// All that were promised have been used: `value` comes back.
    pub fn alloc(&mut self, value: T) -> Result<CacheBox<'c, T>, OutOfMemory<T>> {
        let sheaf = &mut self.sheaf;
        self.cache.alloc_by(value, |_| sheaf.as_mut()?.alloc(AllocFlags::NOWAIT))
    }

    /// Sees to it that `n` more allocations cannot fail; see [`Prefilled::refill`].
    ///
    /// # Errors
    /// The promise as it was, or with more in it, but with less than `n`: there is no memory.
    pub fn refill(self, n: usize, flags: AllocFlags) -> Result<Self, Self> {
        let cache = self.cache;
        let with = |sheaf| Self { sheaf: Some(sheaf), cache };
        match self.sheaf {
            Some(sheaf) => sheaf.refill(n, flags).map(with).map_err(with),
            None => Ok(self),
        }
    }
}

impl<T> fmt::Debug for CachePrefilled<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sheaf.fmt(f)
    }
}

impl<T> Cache<T> {
    /// Sees to it that `n` allocations cannot fail. Nothing if `n` is 0, or too many, or there is no memory; see
    /// [`RawCache::prefill`](crate::RawCache::prefill).
    pub fn prefill(&self, n: usize, flags: AllocFlags) -> Option<CachePrefilled<'_, T>> {
        let sheaf = match self.raw() {
            None => None,
            Some(raw) => Some(raw.prefill(n, flags)?),
        };
        Some(CachePrefilled { sheaf, cache: self })
    }

    /// The same for a thread that may sleep.
    pub fn prefill_sleep(&self, n: usize, flags: AllocFlags, cx: &mut MaySleep) -> Option<CachePrefilled<'_, T>> {
        let sheaf = match self.raw() {
            None => None,
            Some(raw) => Some(raw.prefill_sleep(n, flags, cx)?),
        };
        Some(CachePrefilled { sheaf, cache: self })
    }

    /// Moves each of `values` into an object of its own, or none of them.
    ///
    /// # Errors
    /// [`OutOfMemory`] gives all of them back.
    pub fn alloc_array<const N: usize>(
        &self,
        values: [T; N],
        flags: AllocFlags,
    ) -> Result<[CacheBox<'_, T>; N], OutOfMemory<[T; N]>> {
        let mut places = [const { MaybeUninit::<NonNull<u8>>::uninit() }; N];
        let objects = match self.raw() {
            None => places.each_mut().map(|place| *place.write(NonNull::<T>::dangling().cast())),
            Some(raw) => match raw.alloc_bulk(&mut places, flags - AllocFlags::ZERO) {
                Some(objects) => array::from_fn(|index| objects[index]),
                None => return Err(OutOfMemory(values)),
            },
        };
        let mut objects = objects.into_iter();
        Ok(values.map(|value| {
            let object = objects.next().expect("as many as values").cast::<T>();
            // SAFETY: a fresh object of this cache, or no bytes at an aligned address.
            unsafe {
                object.write(value);
                CacheBox::from_raw(object, self)
            }
        }))
    }

    /// Drops values of this cache, and gives their objects back in one call.
    ///
    /// # Panics
    /// If one is of another cache.
    pub fn free_array<const N: usize>(&self, boxes: [CacheBox<'_, T>; N]) {
        assert!(boxes.iter().all(|owner| core::ptr::eq(owner.cache(), self)), "a box of another cache");
        let mut objects = boxes.map(|owner| {
            let object = CacheBox::into_raw(owner);
            // SAFETY: the box owned a valid value (TYPED-1), and is gone.
            unsafe { object.drop_in_place() };
            object.cast()
        });
        if let Some(raw) = self.raw() {
            // SAFETY: objects of this cache, each of a box of its own, and their values are gone.
            unsafe { raw.free_bulk(&mut objects) };
        }
    }
}
