//! The half of `mutants` that only the build with that feature has.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::context::PreemptGuard;
use crate::cx::ATOMIC;

/// Every bug of the program, in the linker's order.
#[linkme::distributed_slice]
pub static BUGS: [Bug];

/// Every hook of the program, in the linker's order.
#[linkme::distributed_slice]
pub static SITES: [Site];

/// A bug that can be made on purpose. The layout is read from the ELF file by `xtask`: change both together.
#[repr(C)]
#[derive(Debug)]
pub struct Bug {
    /// What `grange.bug=` calls it.
    pub name: &'static str,
    /// What goes wrong.
    pub what: &'static str,
    /// The tests that must find it: globs over `suite.test`, with spaces between.
    pub found_by: &'static str,
}

/// The bug that is made, or null. Written by [`choose`].
static CHOSEN: AtomicPtr<Bug> = AtomicPtr::new(ptr::null_mut());

impl Bug {
    /// Whether it is the one that is made.
    #[inline(always)]
    pub fn is_on(&'static self) -> bool {
        ptr::eq(CHOSEN.load(Ordering::Relaxed), self)
    }
}

/// Makes the bug of that name; false if there is none.
///
/// # Panics
/// If two have the same name.
pub(super) fn choose(name: &str) -> bool {
    for (n, bug) in BUGS.iter().enumerate() {
        assert!(BUGS[..n].iter().all(|other| other.name != bug.name), "two bugs are called {}", bug.name);
    }
    let Some(bug) = BUGS.iter().find(|bug| bug.name == name) else { return false };
    CHOSEN.store(ptr::from_ref(bug).cast_mut(), Ordering::Relaxed);
    true
}

/// A hook.
#[derive(Debug)]
pub struct Site {
    /// What reports call it; several may have one name.
    pub name: &'static str,
    /// Source file.
    pub file: &'static str,
    /// Line.
    pub line: u32,
    /// Calls of a handler from here.
    calls: AtomicU64,
}

/// What is called at each hook, a `fn(&'static Site)`, or null. Written by [`attach`] and by the end of [`Attached`].
static HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

arch::per_cpu! {
    /// A handler runs on this CPU: what it calls passes hooks, too.
    static INSIDE: bool = false;
}

/// A handler is attached while this lives.
#[must_use = "the handler is detached as soon as this is dropped"]
#[derive(Debug)]
pub struct Attached(());

/// Has `handler` called at every hook, on every CPU, in the context of whoever comes there; not at hooks that the handler
/// itself comes to. There is one at a time.
///
/// Context: any. `None` if there is one already.
pub fn attach(handler: fn(&'static Site)) -> Option<Attached> {
    // Release: pairs with the acquire in `Site::reach`: what the handler uses is there.
    let set = HANDLER.compare_exchange(ptr::null_mut(), handler as *mut (), Ordering::Release, Ordering::Relaxed);
    set.is_ok().then_some(Attached(()))
}

impl Drop for Attached {
    fn drop(&mut self) {
        HANDLER.store(ptr::null_mut(), Ordering::Relaxed);
    }
}

impl Site {
    /// A hook; for [`hook!`](crate::hook).
    #[doc(hidden)]
    #[must_use]
    pub const fn new(name: &'static str, file: &'static str, line: u32) -> Self {
        Self { name, file, line, calls: AtomicU64::new(0) }
    }

    /// Handlers that were called from here, ever.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Somebody comes by.
    #[inline(always)]
    pub fn reach(&'static self) {
        // Acquire: pairs with the release in `attach`.
        let handler = HANDLER.load(Ordering::Acquire);
        if !handler.is_null() {
            self.call(handler);
        }
    }

    #[cold]
    #[inline(never)]
    fn call(&'static self, handler: *mut ()) {
        let _pin = PreemptGuard::new(ATOMIC);
        if INSIDE.get() {
            return;
        }
        INSIDE.set(true);
        self.calls.fetch_add(1, Ordering::Relaxed);
        // SAFETY: what is not null was a function of this type in `attach`.
        let handler: fn(&'static Site) = unsafe { core::mem::transmute(handler) };
        handler(self);
        INSIDE.set(false);
    }
}
