//! The other ways to give objects up: many in one call, by their owners, by the head of a callback, to readers of SRCU, and to a
//! tracker that gives them back early.

use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use kfree_rcu::pending::{Pending, TreeRcu};
use kfree_rcu::srcu::SrcuTracker;
use kfree_rcu::{
    RcuPtr, has_rcu_ptr, kfree_rcu_bulk, kfree_rcu_bulk_mightsleep, kfree_rcu_callback, kfree_rcu_owned,
    kfree_rcu_owned_mightsleep, kfree_srcu_owned, try_small_box,
};
use mm::AllocFlags;
use rcu::CallbackHead;
use rcu::srcu::{Normal, srcu_read_lock};
use slab::KBox;
use sync::{MaySleep, Rng};

use super::KfreeRcu;
use crate::Failure;
use crate::torture::{Stat, control};

rcu::srcu_domain! {
    /// Readers who sleep with an object in hand.
    static SLEEPERS: Normal;
}

const TAG: u64 = 0x1ea7_0000;
/// The most objects in one call.
const BULK: usize = 60;

/// An object with content and a head.
struct Leaf {
    tags: [u64; 6],
    rcu: RcuPtr,
    last: u64,
}

has_rcu_ptr!(Leaf, rcu);

impl Leaf {
    fn new() -> Self {
        Leaf { tags: [TAG; 6], rcu: RcuPtr::new(), last: TAG }
    }

    /// Whether the object is one, as far as its owner wrote it.
    ///
    /// # Safety
    /// The caller keeps it from being freed, or what it looks at is what it wants to know.
    unsafe fn is_whole(leaf: *const Leaf) -> bool {
        // SAFETY: by the caller.
        unsafe {
            (&raw const (*leaf).tags).read_volatile() == [TAG; 6] && (&raw const (*leaf).last).read_volatile() == TAG
        }
    }
}

/// An object with the head of a callback at its start.
#[repr(C)]
struct Called {
    head: CallbackHead,
    tags: [u64; 4],
}

/// One for readers of RCU, and one for those who sleep.
type Trackers = (Pending<KBox<Leaf>>, SrcuTracker<Normal>);

/// Trackers, a place that sleepers look at, and counts.
pub(super) struct Fronts {
    /// None when they have ended.
    trackers: sched::Mutex<Option<Trackers>>,
    published: AtomicPtr<Leaf>,
    given: AtomicU64,
    /// Sections of SRCU that found an object; objects that were not whole.
    naps: AtomicU64,
    broken: AtomicU64,
}

impl Fronts {
    pub(super) fn new() -> Result<Self, Failure> {
        let full = |error| crate::__failed!("{error}");
        let pending = Pending::new("torture", TreeRcu).map_err(full)?;
        let sleepers = SrcuTracker::new("torture-srcu", &SLEEPERS).map_err(full)?;
        Ok(Self {
            trackers: sched::Mutex::new(Some((pending, sleepers)), sync::lock_class!("tests.torture_trackers")),
            published: AtomicPtr::new(ptr::null_mut()),
            given: AtomicU64::new(0),
            naps: AtomicU64::new(0),
            broken: AtomicU64::new(0),
        })
    }

    pub(super) fn stat(&self, out: &mut Stat) {
        out.work("fronts", self.given.load(Relaxed));
        out.work("naps", self.naps.load(Relaxed));
        out.error("fronts-broken", self.broken.load(Relaxed));
    }

    /// Waits for all that was given up. Threads have ended.
    pub(super) fn end(&self, cx: &mut MaySleep) -> Result<(), Failure> {
        let Some((pending, sleepers)) = self.trackers.lock(cx).take() else { return Ok(()) };
        if let Some(leaf) = NonNull::new(self.published.swap(ptr::null_mut(), Acquire)) {
            // SAFETY: published from a box, and nobody's since the exchange.
            kfree_srcu_owned(&sleepers, unsafe { KBox::from_raw(leaf) });
        }
        pending.exit(cx);
        sleepers.exit(cx);
        Ok(())
    }
}

fn leaf() -> Option<KBox<Leaf>> {
    KBox::try_new(Leaf::new(), AllocFlags::NOWARN).ok()
}

fn leaves(n: usize) -> Vec<NonNull<Leaf>> {
    (0..n).filter_map(|_| leaf().map(KBox::into_raw)).collect()
}

/// Gives objects up in one of these ways, again and again.
pub(super) fn give_up(shared: &KfreeRcu, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    let fronts = &shared.fronts;
    while !control::stutter(cx) {
        match rng.index(7) {
            // SAFETY: from boxes that nobody has any more, each once; as below.
            0 => unsafe { kfree_rcu_bulk(&leaves(rng.index(BULK))) },
            1 => {
                let all: Vec<_> = leaves(rng.index(BULK)).into_iter().map(NonNull::cast).collect();
                // SAFETY: as above.
                unsafe { kfree_rcu_bulk_mightsleep(&all, cx) };
            }
            2 => leaf().into_iter().for_each(kfree_rcu_owned),
            3 => leaf().into_iter().for_each(|leaf| kfree_rcu_owned_mightsleep(leaf, cx)),
            4 => {
                drop(try_small_box([TAG; 5]));
                by_callback_head();
            }
            5 => fronts.track(&mut rng, cx),
            _ => fronts.publish(cx),
        }
        fronts.given.fetch_add(1, Relaxed);
        if rng.chance(1, 4) {
            sched::sleep_ns(cx, rng.below(400_000));
        }
        sched::cond_resched(cx);
    }
    Ok(())
}

fn by_callback_head() {
    let called = Called { head: CallbackHead::new(), tags: [TAG; 4] };
    let Ok(called) = KBox::try_new(called, AllocFlags::NOWARN) else { return };
    core::hint::black_box(called.tags);
    // SAFETY: from a box that nobody has any more; the head lies at its start.
    unsafe { kfree_rcu_callback(KBox::into_raw(called).cast()) };
}

impl Fronts {
    /// Lets some wait in a tracker, and waits for them at times.
    fn track(&self, rng: &mut Rng, cx: &mut MaySleep) {
        let trackers = self.trackers.lock(cx);
        let Some((pending, _)) = &*trackers else { return };
        for _ in 0..rng.index(BULK) {
            let Some(leaf) = leaf() else { break };
            // A leaf has a link, so it is always taken.
            let refused = pending.enqueue(leaf).is_err();
            self.broken.fetch_add(u64::from(refused), Relaxed);
        }
        if rng.chance(1, 8) {
            pending.flush(cx);
        }
    }

    /// Exchanges the leaf that sleepers look at.
    fn publish(&self, cx: &mut MaySleep) {
        let trackers = self.trackers.lock(cx);
        let Some((_, sleepers)) = &*trackers else { return };
        let Some(new) = leaf() else { return };
        // Release: pairs with the acquire of sleepers. Acquire: with the release of who put the old one there.
        let old = self.published.swap(KBox::into_raw(new).as_ptr(), AcqRel);
        let Some(mut old) = NonNull::new(old) else { return };
        // SAFETY: published from a box, and nobody's but readers' since the exchange.
        let whole = unsafe { Leaf::is_whole(old.as_mut()) };
        self.broken.fetch_add(u64::from(!whole), Relaxed);
        // SAFETY: as above.
        kfree_srcu_owned(sleepers, unsafe { KBox::from_raw(old) });
    }
}

/// Looks at the published leaf before and after a nap.
pub(super) fn read_and_sleep(shared: &KfreeRcu, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    let fronts = &shared.fronts;
    while !control::stutter(cx) {
        let section = srcu_read_lock(&SLEEPERS);
        // Acquire: pairs with the release in `publish`: the content is there.
        let leaf = fronts.published.load(Acquire);
        if !leaf.is_null() {
            // SAFETY: found in the section, which lasts; as below.
            let before = unsafe { Leaf::is_whole(leaf) };
            sched::sleep_ns(cx, rng.below(2_000_000));
            // SAFETY: as above.
            let after = unsafe { Leaf::is_whole(leaf) };
            fronts.broken.fetch_add(u64::from(!before || !after), Relaxed);
            fronts.naps.fetch_add(1, Relaxed);
        }
        drop(section);
        sched::sleep_ns(cx, rng.below(200_000));
    }
    Ok(())
}
