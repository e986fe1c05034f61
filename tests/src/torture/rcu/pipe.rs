//! The pipe: elements that go round, each a stage older with every grace period since it was replaced.
//!
//! ```text
//!   free ──take──► current ──replace──► stage 1 ──grace period──► 2 ──► … ──► 10 ──► free
//!                  stage 0              may still be read         may not
//! ```
//!
//! A reader looks at the stage of its element at the *end* of its section. 0 is right, and so is 1: the element was replaced
//! meanwhile. From 2 on a whole grace period went by inside the section, and the number says by how much it was too short.
//! Elements come from a fixed pool and are never given back to the allocator, so a reader that is too late reads a number that
//! says so instead of what somebody else has put there.
//!
//! Invariants
//! - PIPE-1: whoever holds an element that was replaced (the updater, or the callback that it is queued with) is the only one
//!   who writes its stage, and takes it to the free list once, at stage [`STAGES`].
//! - PIPE-2: `live` is 1 from before an element is published until it is freed; a reader that finds 0 has read what its
//!   publisher had not written yet, or an element that was freed long ago.
//!
//! Contexts: reading any, NMI included; the rest any but NMI. Linux: `struct rcu_torture`, `rcu_torture_pipe_update` in
//! kernel/rcu/rcutorture.c; rows C-1, C-3.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use sync::callback::CallbackHead;
use sync::{ATOMIC, LockClass, SpinLock};

use super::mbcheck::{Check, Checks};
use super::ops::{AnyCookie, Call};

/// Stages of the pipe.
pub(crate) const STAGES: usize = 10;
/// The last stage that a reader may find.
pub(crate) const LAST_GOOD: usize = 1;
/// Elements of a pipe.
const ELEMENTS: usize = 10 * STAGES;

/// Protects the list of free elements. Nothing is taken inside it.
static FREE_CLASS: LockClass = LockClass::new("torture.pipe").innermost();

/// What readers find.
#[repr(C)]
pub(crate) struct Element {
    /// First, so that a head is its element. Belongs to whoever the element belongs to (PIPE-1).
    head: UnsafeCell<CallbackHead>,
    /// 0 while it can be found, 1 when it was replaced, and one more for each grace period since.
    stage: AtomicUsize,
    /// PIPE-2.
    live: AtomicUsize,
    /// What a reader wants to be told once the element is too old for readers; null if nothing.
    pub(super) check: AtomicPtr<Check>,
    /// What has to be over when the callback runs. Belongs to whoever the element belongs to.
    cookie: UnsafeCell<Option<AnyCookie>>,
    /// Where it lives, while it is queued with a callback. Belongs to whoever the element belongs to.
    pipe: UnsafeCell<*const Pipe>,
}

// SAFETY: the cells belong to one thread or callback at a time (PIPE-1); the hand-over is by the free list's lock, by
// publishing, or by `call_rcu`.
unsafe impl Send for Element {}
// SAFETY: as above.
unsafe impl Sync for Element {}

impl Element {
    fn new() -> Element {
        Element {
            head: UnsafeCell::new(CallbackHead::new()),
            stage: AtomicUsize::new(STAGES),
            live: AtomicUsize::new(0),
            check: AtomicPtr::new(ptr::null_mut()),
            cookie: UnsafeCell::new(None),
            pipe: UnsafeCell::new(ptr::null()),
        }
    }

    /// Its stage now, at most [`STAGES`].
    pub(crate) fn stage(&self) -> usize {
        self.stage.load(Ordering::Relaxed).min(STAGES)
    }

    /// PIPE-2.
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed) != 0
    }
}

/// Figures of a pipe.
#[derive(Default)]
pub(crate) struct Figures {
    /// Elements taken, times there was none to take, elements freed: Linux's `rta`, `rtaf`, `rtf`.
    pub(crate) taken: AtomicU64,
    pub(crate) none_to_take: AtomicU64,
    pub(crate) freed: AtomicU64,
    /// Elements by the stage that they left.
    pub(crate) circulation: [AtomicU64; STAGES + 1],
    /// Elements replaced: Linux's `ver`.
    pub(crate) replaced: AtomicU64,
    /// Elements on their way by callbacks.
    with_callbacks: AtomicUsize,
    /// Cookies that were not over when a callback was called.
    pub(crate) early_callbacks: AtomicU64,
}

/// A pool of elements, and the one that readers find.
pub(crate) struct Pipe {
    elements: Box<[Element]>,
    /// Indices, the one that has been free for longest first.
    free: SpinLock<VecDeque<usize>>,
    current: AtomicPtr<Element>,
    /// One for each reader.
    pub(super) checks: Checks,
    pub(crate) figures: Figures,
}

impl Pipe {
    /// For so many readers, who check each other's order of memory.
    pub(crate) fn new(readers: usize) -> Arc<Pipe> {
        Arc::new(Pipe {
            elements: (0..ELEMENTS).map(|_| Element::new()).collect(),
            free: SpinLock::new((0..ELEMENTS).collect(), &FREE_CLASS),
            current: AtomicPtr::new(ptr::null_mut()),
            checks: Checks::new(readers),
            figures: Figures::default(),
        })
    }

    /// The element that can be found now; none before the first [`replace`](Self::replace).
    ///
    /// Context: a section of the reader that the pipe's updater waits for.
    #[inline(always)]
    pub(crate) fn read(&self) -> Option<&Element> {
        // Acquire: pairs with the Release in `replace`; the element is seen as it was published (PIPE-2).
        // SAFETY: null, or one of `elements`, which stay as long as the pipe does.
        unsafe { self.current.load(Ordering::Acquire).as_ref() }
    }

    /// Where the current element is, for people.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed).addr()
    }

    /// Puts a fresh element in the place of the current one. Returns that, at stage 1; `None` if no element is free, or for
    /// the first one.
    ///
    /// One updater at a time.
    pub(crate) fn replace(&self) -> Option<&Element> {
        let Some(index) = self.free.lock_irqsave(ATOMIC).pop_front() else {
            self.figures.none_to_take.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        self.figures.taken.fetch_add(1, Ordering::Relaxed);
        let fresh = &self.elements[index];
        fresh.stage.store(0, Ordering::Relaxed);
        fresh.live.store(1, Ordering::Relaxed);
        // Release: pairs with the Acquire in `read`. Relaxed towards what it replaces: one updater.
        let old = self.current.swap(ptr::from_ref(fresh).cast_mut(), Ordering::Release);
        self.figures.replaced.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `read`.
        let old = unsafe { old.as_ref() }?;
        self.step(old);
        Some(old)
    }

    /// A grace period is over for an element that was replaced before it began. Frees it after the last one; true then.
    pub(crate) fn age(&self, element: &Element) -> bool {
        self.step(element);
        let freed = element.stage() == STAGES;
        if freed {
            self.free(element);
        }
        freed
    }

    fn step(&self, element: &Element) {
        let stage = element.stage();
        self.figures.circulation[stage].fetch_add(1, Ordering::Relaxed);
        element.stage.store(stage + 1, Ordering::Relaxed);
        if stage >= LAST_GOOD {
            Check::make_ready(element);
        }
    }

    fn free(&self, element: &Element) {
        element.live.store(0, Ordering::Relaxed);
        self.figures.freed.fetch_add(1, Ordering::Relaxed);
        self.free.lock_irqsave(ATOMIC).push_back(self.index_of(element));
    }

    fn index_of(&self, element: &Element) -> usize {
        (ptr::from_ref(element).addr() - self.elements.as_ptr().addr()) / size_of::<Element>()
    }

    /// Elements that are free.
    pub(crate) fn free_elements(&self) -> usize {
        self.free.lock_irqsave(ATOMIC).len()
    }

    /// Whether each element is free or current: none is lost, none is on its way. Only while nobody replaces any.
    pub(crate) fn is_settled(&self) -> bool {
        self.free_elements() + usize::from(self.current() != 0) == ELEMENTS
    }

    /// Ages `element`, which was replaced, by callbacks until it is freed: each queues the next one. `get` makes a cookie that
    /// has to be over when the next callback runs.
    pub(crate) fn age_by_callbacks(self: &Arc<Pipe>, element: &Element, call: &'static Call) {
        self.figures.with_callbacks.fetch_add(1, Ordering::Relaxed);
        // SAFETY: PIPE-1: the caller has replaced it, so it is ours. The callback that frees it drops the reference.
        unsafe { *element.pipe.get() = Arc::into_raw(self.clone()) };
        queue(element, call);
    }

    /// Steps of all elements so far.
    pub(crate) fn steps(&self) -> u64 {
        self.figures.circulation.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Elements that callbacks have in hand.
    pub(crate) fn with_callbacks(&self) -> usize {
        // Acquire: pairs with the Release in `aged`: what the callbacks did is done.
        self.figures.with_callbacks.load(Ordering::Acquire)
    }
}

/// Queues the callback of an element that belongs to the caller.
fn queue(element: &Element, call: &'static Call) {
    // SAFETY: PIPE-1.
    unsafe { *element.cookie.get() = call.exact.map(|get| get()) };
    // SAFETY: the element stays as long as its pipe, which the callback has a reference to; it is queued once, because it
    // belongs to the caller and now to the callback.
    unsafe { (call.queue)(element.head.get(), call.aged) };
}

/// What the callback of an element does; `call` is what queued it.
///
/// # Safety
/// `head` is that of an element that [`queue`] queued.
pub(crate) unsafe fn aged(head: *mut CallbackHead, call: &'static Call) {
    // SAFETY: by the caller; the head is the first field.
    let element = unsafe { &*head.cast::<Element>() };
    // SAFETY: the element belongs to its callback now (PIPE-1).
    let (pipe, cookie) = unsafe { (*element.pipe.get(), (*element.cookie.get()).take()) };
    // SAFETY: `age_by_callbacks` has made the reference, and the last callback drops it.
    let pipe = unsafe { &*pipe };
    if cookie.is_some_and(|cookie| !cookie.is_over()) {
        pipe.figures.early_callbacks.fetch_add(1, Ordering::Relaxed);
    }
    if !pipe.age(element) {
        return queue(element, call);
    }
    // Release: pairs with the Acquire in `with_callbacks`.
    pipe.figures.with_callbacks.fetch_sub(1, Ordering::Release);
    // SAFETY: made by `age_by_callbacks`, and given back once.
    drop(unsafe { Arc::from_raw(ptr::from_ref(pipe)) });
}
