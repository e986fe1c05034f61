//! What lab 9 is given: objects, and a stand-in for the allocator that notices what is freed twice.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Objects that there are.
pub const OBJECTS: usize = 4_096;

/// An object.
#[repr(C)]
#[derive(Debug)]
pub struct Object {
    /// The only part that a back end may use, from when the object is given to it: readers may still look at the rest.
    pub next: AtomicPtr<Object>,
    is_used: AtomicBool,
}

impl Object {
    /// Whether it was allocated and is not freed.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Acquire)
    }
}

static ALL: [Object; OBJECTS] =
    [const { Object { next: AtomicPtr::new(ptr::null_mut()), is_used: AtomicBool::new(false) } }; OBJECTS];
/// Where the next one is looked for.
static AT: AtomicUsize = AtomicUsize::new(0);
/// Objects freed, and frees of what was free.
static FREED: AtomicU64 = AtomicU64::new(0);
static FREED_TWICE: AtomicU64 = AtomicU64::new(0);

/// An object.
///
/// Context: any.
///
/// # Panics
/// If all are used: somebody does not free them.
pub fn alloc() -> &'static Object {
    let mut tries = (0..OBJECTS).map(|_| &ALL[AT.fetch_add(1, Ordering::Relaxed) % OBJECTS]);
    // Acquire: pairs with the Release in `free`.
    let taken = tries.find(|object| !object.is_used.swap(true, Ordering::Acquire));
    taken.expect("all objects are in use: those that were given up are not freed")
}

/// Frees an object.
///
/// Context: any.
pub fn free(object: &'static Object) {
    // Release: pairs with the Acquire in `alloc`.
    let counter = if object.is_used.swap(false, Ordering::Release) { &FREED } else { &FREED_TWICE };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Objects that were freed since boot, and frees of what was free already.
#[must_use]
pub fn freed() -> (u64, u64) {
    (FREED.load(Ordering::Relaxed), FREED_TWICE.load(Ordering::Relaxed))
}

/// Objects that are in use.
#[must_use]
pub fn used() -> usize {
    ALL.iter().filter(|object| object.is_used()).count()
}
