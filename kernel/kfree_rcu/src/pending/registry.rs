//! All trackers: for reports, and for the page allocator, which asks them for memory when it runs short.
//!
//! What has expired is finished first; only if that is not enough, grace periods are expedited, one a tracker (S3-17).
//!
//! Locks: the mutex `kfree_rcu.tracker_walk`, held while a tracker is asked, so that it stays, and the spin lock
//! `kfree_rcu.trackers` around the list, interrupts off, inside it and outside of the trackers' own. Reclaim only tries the
//! mutex, and so does not wait for who ends a tracker.

use core::cell::Cell;

use arch::PAGE_SIZE;
use mm::Shrinker;
use sched::Mutex;
use sync::{ATOMIC, LockClass, MaySleep, SpinLock};

use super::Waiting;

static WALK_CLASS: LockClass = LockClass::new("kfree_rcu.tracker_walk");
static LIST_CLASS: LockClass = LockClass::new("kfree_rcu.trackers");

/// Who has it keeps every tracker in the list: they come at its beginning, and go with the mutex only.
static WALK: Mutex<()> = Mutex::new((), &WALK_CLASS);
/// The last one that was made.
static LIST: SpinLock<Link> = SpinLock::new(Link(None), &LIST_CLASS);

/// A tracker, whatever it is of.
pub(super) trait Tracked: Sync {
    /// Its place in the list.
    fn next(&self) -> &Next;
    /// Its name.
    fn name(&self) -> &'static str;
    /// Bytes of a node of its store.
    fn node_bytes(&self) -> usize;
    /// What waits in it.
    fn waiting(&self) -> Waiting;
    /// [`Pending::reclaim`](super::Pending::reclaim).
    fn reclaim(&self, hurry: bool, cx: &mut MaySleep) -> usize;
}

/// The tracker made before, in the list.
#[derive(Clone, Copy)]
struct Link(Option<*const dyn Tracked>);

// SAFETY: a tracker is shared by its locks, and stays while it is in the list.
unsafe impl Send for Link {}

impl Link {
    /// The tracker.
    ///
    /// # Safety
    /// The caller has one of the two locks for as long as it uses it.
    unsafe fn get<'a>(self) -> Option<&'a dyn Tracked> {
        // SAFETY: in the list, by the caller.
        self.0.map(|tracker| unsafe { &*tracker })
    }
}

/// A tracker's place in the list.
pub(super) struct Next(Cell<Link>);

// SAFETY: the cell is written under `LIST`'s lock, after the tracker is made with `WALK` too, and read under either.
unsafe impl Sync for Next {}
// SAFETY: as above.
unsafe impl Send for Next {}

impl Next {
    pub(super) const fn new() -> Self {
        Self(Cell::new(Link(None)))
    }
}

/// A tracker has been made; it stays until [`remove`].
pub(super) fn add(tracker: &(dyn Tracked + 'static)) {
    let mut list = LIST.lock_irqsave(ATOMIC);
    tracker.next().0.set(*list);
    list.0 = Some(tracker);
}

/// A tracker is about to go.
pub(super) fn remove(tracker: &dyn Tracked, cx: &mut MaySleep) {
    let _walk = WALK.lock(cx);
    let mut list = LIST.lock_irqsave(ATOMIC);
    let after = tracker.next().0.get();
    let is_it = |link: Link| link.0.is_some_and(|at| core::ptr::addr_eq(at, tracker));
    if is_it(*list) {
        *list = after;
        return;
    }
    let mut at = *list;
    // SAFETY: under the list's lock.
    while let Some(before) = unsafe { at.get() } {
        at = before.next().0.get();
        if is_it(at) {
            before.next().0.set(after);
        }
    }
}

/// Calls `f` with the name of each tracker and what waits in it.
///
/// Context: any but NMI; `f` runs with the list locked.
pub fn for_each(mut f: impl FnMut(&'static str, Waiting)) {
    let list = LIST.lock_irqsave(ATOMIC);
    let mut at = *list;
    // SAFETY: under the list's lock.
    while let Some(tracker) = unsafe { at.get() } {
        f(tracker.name(), tracker.waiting());
        at = tracker.next().0.get();
    }
}

/// Registered at boot.
pub(crate) static SHRINKER: Shrinker = Shrinker::new("rcu_pending", count, scan);

/// At most so many pages could go back.
fn count() -> usize {
    let mut bytes = 0;
    for_each(|_, waiting| bytes += waiting.bytes);
    bytes.div_ceil(PAGE_SIZE)
}

/// Gives back `target` pages' worth of objects, if there are as many; returns how many.
fn scan(target: usize, cx: &mut MaySleep) -> usize {
    let Some(_walk) = WALK.try_lock() else { return 0 };
    let mut bytes = 0;
    for hurry in [false, true] {
        let mut at = *LIST.lock_irqsave(ATOMIC);
        // SAFETY: the list does not change while we have the mutex.
        while let Some(tracker) = unsafe { at.get() } {
            if bytes >= target.saturating_mul(PAGE_SIZE) {
                return bytes / PAGE_SIZE;
            }
            bytes += tracker.reclaim(hurry, cx);
            at = tracker.next().0.get();
        }
    }
    bytes / PAGE_SIZE
}
