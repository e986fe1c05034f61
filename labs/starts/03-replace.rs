//! Lab 3: a value that readers look at while it is replaced. The task is told in docs/labs/03-replace.md.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

use mm::AllocFlags;
use rcu::RcuReadGuard;
use slab::kbox::KBox;

/// A version of the value.
struct Version<T> {
    value: T,
}

/// The value: always there, replaced as a whole.
pub struct Shared<T> {
    /// The newest version, from `KBox::into_raw`. Followed by readers.
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
        // SAFETY: it is there for as long as the reader is. Is it?
        unsafe { &(*self.newest.load(Ordering::Acquire)).value }
    }

    /// Puts a new value in the place of the old one, which is dropped once nobody can be looking at it.
    ///
    /// Context: any but NMI; never waits. Without memory nothing happens, and the value comes back.
    pub fn replace(&self, value: T) -> Result<(), T> {
        let new = version(value)?;
        let old = self.newest.load(Ordering::Relaxed);
        self.newest.store(new.as_ptr(), Ordering::Release);
        // SAFETY: from `KBox::into_raw`. Is that all?
        drop(unsafe { KBox::from_raw(NonNull::new_unchecked(old)) });
        Ok(())
    }
}

fn version<T>(value: T) -> Result<NonNull<Version<T>>, T> {
    let version = KBox::try_new(Version { value }, AllocFlags::NOWAIT);
    version.map(KBox::into_raw).map_err(|no_memory| no_memory.0.value)
}
