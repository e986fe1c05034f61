//! Shrinkers: who can give memory back when there is none, and reclaim, which asks them.
//!
//! A later storey makes a `static` [`Shrinker`] and [`register`]s it. Reclaim runs in the thread that wants the memory, in
//! growing effort ([`Effort`]); it holds no lock while it calls out.
//!
//! Invariants:
//! - **SHR-1** A shrinker is registered at most once and never goes away; so the list is walked without a lock.
//! - **SHR-2** `scan` and `settle` are called from a thread that may sleep, with no lock of this storey held. A `scan` may
//!   itself allocate without MAY_SLEEP: reclaim does not nest, because only calls with the token reclaim.
//!
//! Linux: `mm/shrinker.c` (6.18). Rows: K-7, S3-29.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use sync::MaySleep;

use crate::{alloc, vmalloc};

/// Who can give memory back.
pub struct Shrinker {
    name: &'static str,
    count: fn() -> usize,
    scan: fn(usize, &mut MaySleep) -> usize,
    settle: Option<fn(&mut MaySleep)>,
    registered: AtomicBool,
    /// The one registered before; SHR-1.
    next: AtomicPtr<Shrinker>,
    /// Pages that `scan` said it freed, for the report.
    freed: AtomicU64,
}

impl Shrinker {
    /// A shrinker: `count` says how many pages could be freed now (cheap, may be stale), `scan(n)` tries to free `n` pages
    /// and says how many it did.
    ///
    /// Context of `count`: any but NMI. Of `scan`: a thread that may sleep; it takes its own locks, mutexes among them, and
    /// must not allocate with MAY_SLEEP, nor may anybody who holds one of these.
    #[must_use]
    pub const fn new(name: &'static str, count: fn() -> usize, scan: fn(usize, &mut MaySleep) -> usize) -> Self {
        Self {
            name,
            count,
            scan,
            settle: None,
            registered: AtomicBool::new(false),
            next: AtomicPtr::new(ptr::null_mut()),
            freed: AtomicU64::new(0),
        }
    }

    /// The same, with a wait for what is freed only later, such as after a grace period. Called at the last effort only.
    #[must_use]
    pub const fn with_settle(mut self, settle: fn(&mut MaySleep)) -> Self {
        self.settle = Some(settle);
        self
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Pages it could free now, by its own word.
    pub fn count(&self) -> usize {
        (self.count)()
    }

    /// Pages it freed so far, by its own word.
    pub fn freed(&self) -> u64 {
        self.freed.load(Ordering::Relaxed)
    }
}

/// How hard reclaim tries, mildest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effort {
    /// What lies about: per-CPU lists, unmapped areas that wait for a flush.
    Collect,
    /// Ask each shrinker for what is missing.
    Ask,
    /// Ask for everything, and wait for what is freed later.
    Everything,
}

impl Effort {
    const ALL: [Self; 3] = [Self::Collect, Self::Ask, Self::Everything];
}

/// The last one registered, or null.
static FIRST: AtomicPtr<Shrinker> = AtomicPtr::new(ptr::null_mut());

/// Adds a shrinker, for good.
///
/// Context: any, at set-up. Lock-free.
///
/// # Panics
/// If it is registered already (SHR-1).
pub fn register(shrinker: &'static Shrinker) {
    assert!(!shrinker.registered.swap(true, Ordering::Relaxed), "SHR-1: {} registered twice", shrinker.name);
    let mut first = FIRST.load(Ordering::Relaxed);
    loop {
        shrinker.next.store(first, Ordering::Relaxed);
        // Release: pairs with the acquire in `all`: the link is there before the shrinker is.
        let new = ptr::from_ref(shrinker).cast_mut();
        match FIRST.compare_exchange_weak(first, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => first = now,
        }
    }
}

/// Every shrinker, last registered first.
///
/// Context: any.
pub fn all() -> impl Iterator<Item = &'static Shrinker> {
    // Acquire: pairs with the release in `register`, for this and all that were registered before it.
    let first = FIRST.load(Ordering::Acquire);
    // SAFETY: null or a `'static` shrinker (SHR-1).
    core::iter::successors(unsafe { first.as_ref() }, |at| unsafe {
        // SAFETY: as above.
        at.next.load(Ordering::Relaxed).as_ref()
    })
}

/// Reclaims with growing effort until `attempt`, called after each, gives something. `pages` is what it needs.
///
/// Context: thread that may sleep; no lock held that a shrinker takes.
pub fn reclaim_until<T>(pages: usize, cx: &mut MaySleep, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    cx.assert_may_sleep();
    Effort::ALL.into_iter().find_map(|effort| {
        reclaim(effort, pages, cx);
        attempt()
    })
}

/// Tries to make `pages` pages free; says how many were freed, as far as it knows.
///
/// Context: thread that may sleep.
pub(crate) fn reclaim(effort: Effort, pages: usize, cx: &mut MaySleep) -> usize {
    let mut freed = vmalloc::purge(cx);
    if effort != Effort::Collect {
        let target = if effort == Effort::Everything { usize::MAX } else { pages.max(32) };
        for shrinker in all() {
            if freed >= target {
                break;
            }
            let count = shrinker.count().min(target - freed);
            if count != 0 {
                let got = (shrinker.scan)(count, cx);
                shrinker.freed.fetch_add(got as u64, Ordering::Relaxed);
                freed = freed.saturating_add(got);
            }
        }
    }
    if effort == Effort::Everything {
        for settle in all().filter_map(|shrinker| shrinker.settle) {
            settle(cx);
        }
    }
    alloc::drain_all(cx);
    freed
}
