//! Forward progress: do grace periods pass, and callbacks run, while somebody does everything to keep them from it?
//!
//! Two ways in turn, in one thread bound to a CPU:
//!
//! - **Readers without a pause.** It reads and reads, never sleeps, and passes through the scheduler only where that is asked
//!   of it. Meanwhile a callback queues itself again and again. Grace periods must pass all the same.
//! - **A flood.** It queues callbacks as fast as it can: those that have run at once again (they are *laundered*), and a new one
//!   whenever none is back. That has to come to [`LAUNDERED`] callbacks that have been laundered [`TIMES`] times, before
//!   [`CAP_NS`] are over: if not, callbacks come in faster than they run, and memory would run out. Where it does run out, the
//!   flood stops: by what is free, by an allocation that fails, or by the shrinker that it registers, as others would ask it.
//!
//! Linux: `rcu_torture_fwd_prog` in kernel/rcu/rcutorture.c; row C-5.

use alloc::sync::Arc;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::clock;
use mm::AllocFlags;
use mm::shrinker::{self, Shrinker};
use sync::callback::CallbackHead;
use sync::{LlistHead, LlistNode, MaySleep, Once};

use super::Torture;
use super::ops::{Call, Way};
use crate::torture::control;
use crate::{Failure, ensure};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// A flood is over when so many callbacks have come back so often.
const LAUNDERED: u64 = 100;
const TIMES: u64 = 3;
/// A flood ends after so long at the latest.
const CAP_NS: u64 = 8_000 * MS;
/// Width of a step of the histogram: a tenth of a second.
const STEP_NS: u64 = 100 * MS;
/// Steps of the histogram.
pub(crate) const STEPS: usize = (CAP_NS / STEP_NS) as usize + 1;
/// The share of memory that a flood leaves free.
const LEAVES: usize = 4;
/// Grace periods that readers without a pause have to let pass; and for how long they read at least.
const PASSED: u64 = 2;
const READ_NS: u64 = 200 * MS;

/// A flood stops: memory is short.
static EMERGENCY: AtomicBool = AtomicBool::new(false);
/// Bytes that a flood holds.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// Floods that memory has stopped since boot.
static STOPPED: AtomicU64 = AtomicU64::new(0);
/// Asked by reclaim: the flood frees what it has by itself, when it sees that it is to stop.
static SHRINKER: Shrinker = Shrinker::new(
    "torture flood",
    || HELD.load(Ordering::Relaxed) / arch::PAGE_SIZE,
    |_, _| {
        EMERGENCY.store(true, Ordering::Relaxed);
        0
    },
);

/// Floods that memory has stopped since boot.
pub(crate) fn stopped_floods() -> u64 {
    STOPPED.load(Ordering::Relaxed)
}

/// What came of all floods and readers without a pause.
pub(crate) struct Progress {
    pub(crate) floods: AtomicU64,
    /// Floods that memory stopped.
    pub(crate) stopped: AtomicU64,
    /// Times that readers without a pause let grace periods pass.
    pub(crate) readers: AtomicU64,
    /// Callbacks run, by the time since the flood's begin; of the last flood.
    pub(crate) histogram: [AtomicU64; STEPS],
}

impl Progress {
    pub(super) fn new() -> Progress {
        static REGISTERED: Once<()> = Once::new();
        REGISTERED.call_once(|| shrinker::register(&SHRINKER));
        Progress {
            floods: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
            readers: AtomicU64::new(0),
            histogram: [const { AtomicU64::new(0) }; STEPS],
        }
    }
}

/// A callback of a flood.
#[repr(C)]
struct Washed {
    /// First, so that a head, and the node that it becomes when it has run, are their callback.
    head: CallbackHead,
    flood: Arc<Flood>,
    /// Times that it has run.
    times: u64,
}

/// One flood.
struct Flood {
    begun_ns: u64,
    /// Callbacks that have run.
    back: LlistHead,
    histogram: [AtomicU64; STEPS],
}

impl Washed {
    /// Another one, or no memory.
    fn make(flood: &Arc<Flood>) -> Option<*mut CallbackHead> {
        let place = slab::kmalloc(size_of::<Washed>(), AllocFlags::NOWAIT)?.cast::<Washed>();
        HELD.fetch_add(size_of::<Washed>(), Ordering::Relaxed);
        // SAFETY: fresh memory of this size, aligned as all of `kmalloc`'s.
        unsafe { place.write(Washed { head: CallbackHead::new(), flood: flood.clone(), times: 0 }) };
        Some(place.as_ptr().cast())
    }

    /// # Safety
    /// `make` made it, and nobody uses it any more.
    unsafe fn free(washed: NonNull<Washed>) {
        // SAFETY: by the caller.
        unsafe { ptr::drop_in_place(washed.as_ptr()) };
        // SAFETY: by the caller.
        unsafe { slab::kfree(washed.cast()) };
        HELD.fetch_sub(size_of::<Washed>(), Ordering::Relaxed);
    }
}

/// # Safety
/// `head` is that of a `Washed` that was leaked to the callback.
unsafe fn washed(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head is the first field, and the callback's while this runs.
    let washed = unsafe { &mut *head.cast::<Washed>() };
    washed.times += 1;
    let flood = washed.flood.clone();
    let step = ((clock::now_ns() - flood.begun_ns) / STEP_NS) as usize;
    flood.histogram[step.min(STEPS - 1)].fetch_add(1, Ordering::Relaxed);
    // SAFETY: it is on no list any more, and its first word links a lock-less list (CB-2); whoever takes it owns it then.
    unsafe { flood.back.add(head.cast::<LlistNode>()) };
}

/// A callback that queues itself again until it is told not to.
#[repr(C)]
struct Again {
    head: CallbackHead,
    /// It goes on.
    on: AtomicBool,
    /// It has run for the last time.
    over: AtomicBool,
    runs: AtomicU64,
}

/// # Safety
/// `head` is that of an `Again` that stays until it is `over`.
unsafe fn again(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head is the first field, and only the callback writes it.
    let it = unsafe { &*head.cast::<Again>() };
    it.runs.fetch_add(1, Ordering::Relaxed);
    if it.on.load(Ordering::Relaxed) {
        // SAFETY: as above; it has run, so it is on no list.
        unsafe { rcu::call_rcu_hurry(head, again) };
    } else {
        // Release: pairs with the Acquire of whoever drops it.
        it.over.store(true, Ordering::Release);
    }
}

impl Torture {
    /// The thread of both ways.
    pub(super) fn press_forward(&self, cx: &mut MaySleep) -> Result<(), Failure> {
        let flavour = &self.flavours[0];
        let call = flavour.ops.updates.iter().find_map(|update| match &update.way {
            Way::Call(call) => Some(*call),
            _ => None,
        });
        while !control::rest(cx, self.setup.fwd_holdoff_ns) && !control::stutter(cx) {
            self.read_without_pause(cx)?;
            if control::rest(cx, MS) {
                break;
            }
            if let Some(call) = call {
                self.flood(call, cx)?;
                (flavour.ops.barrier)(cx);
            }
        }
        Ok(())
    }

    fn read_without_pause(&self, cx: &mut MaySleep) -> Result<(), Failure> {
        let before = rcu::stats();
        let mut it = Again {
            head: CallbackHead::new(),
            on: AtomicBool::new(true),
            over: AtomicBool::new(false),
            runs: AtomicU64::new(0),
        };
        let it = &raw mut it;
        // SAFETY: it stays on this stack until it is over.
        unsafe { rcu::call_rcu_hurry(it.cast(), again) };
        // SAFETY: as above; the callback uses it only shared, but for its head.
        let (on, over, runs) = unsafe { (&(*it).on, &(*it).over, &(*it).runs) };
        let passed = || {
            let now = rcu::stats();
            now.gps + now.exp_gps - before.gps - before.exp_gps >= PASSED && runs.load(Ordering::Relaxed) >= PASSED
        };
        let (begun_ns, mut sections) = (clock::now_ns(), 0_u64);
        let lasted = || clock::now_ns() - begun_ns;
        while !control::should_stop() && lasted() < CAP_NS && (lasted() < READ_NS || !passed()) {
            for _ in 0..64 {
                let section = rcu::read_lock(cx);
                clock::udelay(10);
                drop(section);
                sections += 1;
                if sync::context::need_resched() {
                    sched::cond_resched(cx);
                }
            }
        }
        let (ran, good) = (runs.load(Ordering::Relaxed), passed());
        on.store(false, Ordering::Relaxed);
        // Acquire: pairs with the Release in `again`.
        while !over.load(Ordering::Acquire) {
            sched::sleep_ns(cx, MS / 4);
        }
        ensure!(
            good || control::should_stop(),
            "no progress beside a thread that reads: {sections} sections, and callbacks that follow one another ran {ran} times"
        );
        self.progress.readers.fetch_add(u64::from(good), Ordering::Relaxed);
        Ok(())
    }

    fn flood(&self, call: &'static Call, cx: &mut MaySleep) -> Result<(), Failure> {
        EMERGENCY.store(false, Ordering::Relaxed);
        let flood = Arc::new(Flood {
            begun_ns: clock::now_ns(),
            back: LlistHead::new(),
            histogram: [const { AtomicU64::new(0) }; STEPS],
        });
        let (mut made, mut launders, mut laundered) = (0_u64, 0_u64, 0_u64);
        let mut back = flood.back.take_all();
        let memory_is_short = || mm::stats::free_pages() < mm::stats::managed_pages() / LEAVES;
        let mut short = false;
        while laundered < LAUNDERED && !control::should_stop() && clock::now_ns() - flood.begun_ns < CAP_NS {
            if back.is_empty() {
                back = flood.back.take_all();
            }
            let head: *mut CallbackHead = match back.next() {
                Some(node) => {
                    launders += 1;
                    // SAFETY: it has run and was taken off the list, so it is ours.
                    laundered += u64::from(unsafe { (*node.cast::<Washed>()).times } >= TIMES);
                    node.cast()
                }
                None => {
                    short = EMERGENCY.load(Ordering::Relaxed) || (made.is_multiple_of(64) && memory_is_short());
                    let fresh = if short { None } else { Washed::make(&flood) };
                    let Some(head) = fresh else {
                        short = true;
                        break;
                    };
                    made += 1;
                    head
                }
            };
            // SAFETY: ours, on no list, leaked to the callback.
            unsafe { (call.queue)(head, washed) };
            if (made + launders).is_multiple_of(64) {
                drop(rcu::read_lock(cx));
                sched::cond_resched(cx);
            }
        }
        let lasted_ns = clock::now_ns() - flood.begun_ns;
        (self.flavours[0].ops.barrier)(cx);
        for node in back.chain(flood.back.take_all()) {
            let washed = NonNull::new(node.cast::<Washed>()).expect("nodes are somewhere");
            // SAFETY: made above, has run, and is on no list.
            unsafe { Washed::free(washed) };
        }
        for (to, from) in self.progress.histogram.iter().zip(&flood.histogram) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        if short {
            self.progress.stopped.fetch_add(1, Ordering::Relaxed);
            STOPPED.fetch_add(1, Ordering::Relaxed);
        } else if !control::should_stop() {
            ensure!(
                laundered >= LAUNDERED,
                "a flood of {made} callbacks, {launders} of them again, in {} ms: only {laundered} came back {TIMES} times",
                lasted_ns / MS
            );
            self.progress.floods.fetch_add(1, Ordering::Relaxed);
        }
        log::info!(
            "rcu-torture: flood of {made} callbacks, {launders} laundered, {laundered} of them {TIMES} times, {} ms{}",
            lasted_ns / MS,
            if short { ", stopped because memory is short" } else { "" }
        );
        Ok(())
    }
}
