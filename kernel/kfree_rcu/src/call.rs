//! The back end `call_rcu`: a callback for each object, as it would be without batching.
//!
//! The callback needs 16 bytes. An object with a [`CallbackHead`] brings them along. For any other a *tracker* is
//! allocated, without waiting for anybody; where there is no memory for it, or trackers are switched off
//! ([`set_trackers`]), an object with a link goes to the head list of [`crate::bulk`], which needs none (S3-23), and one
//! without any head is refused.
//!
//! It is here to be compared with: a callback touches its object, and a grace period's end calls them one after the other
//! (S3-31).
//!
//! Context: as for every [`Engine`]. No lock. Linux: `call_rcu(&head, kfree_rcu_func)` of builds without
//! `CONFIG_KVFREE_RCU_BATCHED`. Rows: S0-16, S3-22, S3-23, S3-31.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

use arch::{CpuId, clock};
use mm::AllocFlags;
use slab::waiting::{self, Stage};
use sync::{CallbackHead, MaySleep, bug};

use crate::backend::{self, BackEnd, Engine, Event, Head, Waiting};
use crate::{bulk, free_now, head};

sync::param! {
    /// Whether the back end call_rcu allocates a callback's head for an object that has room for a link only.
    static TRACKERS: bool = "grange.kfree_rcu_trackers", default true;
}

/// Whether trackers are allocated. Set at boot and by [`set_trackers`].
static ALLOCATE: AtomicBool = AtomicBool::new(true);

/// A callback's head for an object that has none.
#[repr(C)]
struct Tracker {
    rcu: CallbackHead,
    object: NonNull<u8>,
    /// When it was made, by the monotonic clock; wraps after 71 minutes.
    since_us: u32,
    /// The CPU where.
    home: u32,
}

/// What is known of one CPU's trackers. Statistics only.
struct Tracked {
    /// How many wait that were made there.
    waiting: AtomicUsize,
    /// When the one was made that was freed last, or the first of those that wait: no other that waits is older.
    since_us: AtomicU32,
}

sync::per_cpu! {
    static TRACKED: Tracked = Tracked { waiting: AtomicUsize::new(0), since_us: AtomicU32::new(0) };
}

fn tracked_on(cpu: CpuId) -> &'static Tracked {
    // SAFETY: per-CPU areas are never freed; its fields are atomic.
    unsafe { &*TRACKED.ptr_on(cpu) }
}

fn now_us() -> u32 {
    (clock::now_ns() / 1_000) as u32
}

/// Whether trackers are allocated from now on (S3-22).
///
/// Context: any.
pub fn set_trackers(on: bool) {
    ALLOCATE.store(on, Relaxed);
}

/// Whether trackers are allocated.
///
/// Context: any.
#[must_use]
pub fn trackers() -> bool {
    ALLOCATE.load(Relaxed)
}

pub(crate) fn init() {
    set_trackers(TRACKERS.get());
}

/// The engine.
pub(crate) enum CallRcu {}

impl Engine for CallRcu {
    fn enqueue(object: NonNull<u8>, head: Option<Head>) -> bool {
        if let Some(Head::Callback(head)) = head {
            enter(object);
            // SAFETY: the object was given up, and its head with it.
            unsafe { rcu::call_rcu(head.as_ptr(), free_by_own_head) };
            return true;
        }
        if let Some(tracker) = Tracker::alloc(object) {
            enter(object);
            if bug!(
                "kfree_rcu.call_early",
                "an object's callback is called without a grace period",
                "kfree_rcu_torture.*callbacks"
            ) {
                // SAFETY: none; that is the bug.
                unsafe { free_by_tracker(tracker.cast().as_ptr()) };
                return true;
            }
            // SAFETY: fresh, and nobody else's until the callback.
            unsafe { rcu::call_rcu(tracker.cast().as_ptr(), free_by_tracker) };
            return true;
        }
        let Some(head) = head else { return false };
        // Counted there (BE-3).
        bulk::enqueue_by_head(head);
        true
    }

    fn drain(cx: &mut MaySleep) {
        if Self::waiting().objects != 0 {
            rcu::rcu_barrier(cx);
        }
    }

    /// Nothing: RCU moves the callbacks of a CPU that goes.
    fn dead(_: CpuId, _: &mut MaySleep) {}

    /// Nothing: RCU calls what has expired.
    fn reclaim(_: &mut MaySleep) -> usize {
        0
    }

    fn waiting() -> Waiting {
        // In this order, so that the difference is not negative.
        let freed = backend::total(BackEnd::CallRcu, Event::Freed);
        let objects = backend::total(BackEnd::CallRcu, Event::Enqueued) - freed;
        let now = now_us();
        let age = |cpu| {
            let tracked = tracked_on(cpu);
            let waits = tracked.waiting.load(Relaxed) != 0;
            if waits { now.wrapping_sub(tracked.since_us.load(Relaxed)) } else { 0 }
        };
        let oldest_us = arch::cpu::present().iter().map(age).max().unwrap_or(0);
        Waiting { objects: objects as usize, oldest_ns: u64::from(oldest_us) * 1_000 }
    }
}

impl Tracker {
    /// A tracker for `object`, or nothing: without waiting, spinning or reserves. Preemption is off.
    fn alloc(object: NonNull<u8>) -> Option<NonNull<Tracker>> {
        if !trackers() {
            return None;
        }
        let tracker = slab::kmalloc_nolock(size_of::<Tracker>(), AllocFlags::NOWARN)?.cast::<Tracker>();
        let (cpu, since_us) = (arch::cpu::current(), now_us());
        let home = cpu.index() as u32;
        // SAFETY: fresh memory of that size, aligned to 8.
        unsafe { tracker.write(Tracker { rcu: CallbackHead::new(), object, since_us, home }) };
        count(Event::Pages);
        let tracked = tracked_on(cpu);
        if tracked.waiting.fetch_add(1, Relaxed) == 0 {
            tracked.since_us.store(since_us, Relaxed);
        }
        Some(tracker)
    }
}

/// The callback of an object with a tracker.
unsafe fn free_by_tracker(rcu: *mut CallbackHead) {
    let tracker = NonNull::new(rcu).expect("RCU calls with a head").cast::<Tracker>();
    // SAFETY: RCU hands back what `enqueue` handed over, a field at the start of a Tracker, which is ours now.
    let Tracker { object, since_us, home, .. } = unsafe { tracker.read() };
    // SAFETY: from kmalloc_nolock, and nobody else's.
    unsafe { slab::kfree(tracker.cast()) };
    let tracked = tracked_on(CpuId::new(home as usize));
    tracked.since_us.store(since_us, Relaxed);
    tracked.waiting.fetch_sub(1, Relaxed);
    waiting::record(Stage::CallRcu, u64::from(now_us().wrapping_sub(since_us)) * 1_000);
    free(object);
}

/// The callback of an object that brought its head along. How long it waited is not known: there is no room to note when it came.
unsafe fn free_by_own_head(rcu: *mut CallbackHead) {
    let head = Head::Callback(NonNull::new(rcu).expect("RCU calls with a head"));
    free(head::object_of(head.link()).expect("an object that was accepted"));
}

/// `object` is about to be given to RCU.
fn enter(object: NonNull<u8>) {
    waiting::enter(Stage::CallRcu, object);
    count(Event::Enqueued);
    count(Event::Callbacks);
}

/// Its grace period is over.
fn free(object: NonNull<u8>) {
    waiting::leave(Stage::CallRcu, object);
    free_now(object);
    count(Event::Freed);
}

fn count(event: Event) {
    backend::count(BackEnd::CallRcu, event, 1);
}

const _: () = assert!(core::mem::offset_of!(Tracker, rcu) == 0);
