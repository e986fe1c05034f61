//! Lab 3: a value that readers look at while it is replaced.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use mm::AllocFlags;
use rcu::{CallbackHead, RcuReadGuard, call_rcu};
use slab::kbox::KBox;

/// A version of the value. The head comes first, so that its address is the version's.
#[repr(C)]
struct Version<T> {
    head: CallbackHead,
    value: T,
}

/// The value: always there, replaced as a whole.
pub struct Shared<T> {
    /// The newest version, from `KBox::into_raw`. Written by `replace` with an exchange, followed by readers.
    newest: AtomicPtr<Version<T>>,
}

impl<T: Send + Sync + 'static> Shared<T> {
    /// One with a first value, which comes back if there is no memory.
    pub fn new(value: T) -> Result<Self, T> {
        Ok(Self { newest: AtomicPtr::new(version(value)?.as_ptr()) })
    }

    /// The newest value. It stays for as long as the reader does.
    ///
    /// Context: any.
    pub fn get<'g>(&'g self, _reader: &'g RcuReadGuard<'_>) -> &'g T {
        // Acquire: pairs with the Release in `replace`: the version is seen as it was made.
        // SAFETY: it was reachable in a section that has not ended, so no grace period has ended since it was replaced.
        unsafe { &(*self.newest.load(Ordering::Acquire)).value }
    }

    /// Puts a new value in the place of the old one, which is dropped once nobody can be looking at it.
    ///
    /// Context: any but NMI; never waits. Without memory nothing happens, and the value comes back.
    pub fn replace(&self, value: T) -> Result<(), T> {
        let new = version(value)?;
        // Release: pairs with the Acquire in `get`. Acquire: the old version may be another CPU's.
        let old = self.newest.swap(new.as_ptr(), Ordering::AcqRel);
        // SAFETY: exactly one exchange returns each version, and no reader finds it from here on.
        unsafe { call_rcu(old.cast(), drop_version::<T>) };
        Ok(())
    }
}

fn version<T>(value: T) -> Result<NonNull<Version<T>>, T> {
    let version = KBox::try_new(Version { head: CallbackHead::new(), value }, AllocFlags::NOWAIT);
    version.map(KBox::into_raw).map_err(|no_memory| no_memory.0.value)
}

/// # Safety
/// `head` is the first field of a version from `KBox::into_raw` that nobody can reach.
unsafe fn drop_version<T>(head: *mut CallbackHead) {
    // SAFETY: as the caller says; a callback's head is not null.
    drop(unsafe { KBox::from_raw(NonNull::new_unchecked(head.cast::<Version<T>>())) });
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let last = self.newest.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: from `KBox::into_raw`; nobody reads or replaces any more, for nobody borrows this.
        drop(unsafe { KBox::from_raw(NonNull::new_unchecked(last)) });
    }
}
