//! Fault injection: object allocations that fail on purpose (failslab).
//!
//! A [`Selection`] of caches gives its sheaves up, so that each allocation of these caches comes to the slab layer, which asks
//! here. [`Selection::arm`] a [`Plan`], run the code under test, drop the [`Armed`]; [`Selection::release`] gives the caches
//! their sheaves back. The arithmetic is [`sync::fault`]'s. A cache that is not selected pays nothing on its fast path, and
//! one load for each visit to its slabs.
//!
//! ```ignore
//! // The third object that this thread asks for is not to be had.
//! let met = fail::with("dentry,kmalloc-*", cx, |selection, cx| {
//!     let armed = selection.arm(Plan::Nth(3), Some(sched::current().tid()));
//!     code_under_test(cx);
//!     armed.failed()
//! })?;
//! ```
//!
//! `failslab=<interval>,<probability>,<space>,<times>[,CACHES]` on the command line does the same from the end of the boot on,
//! for good; `grange.seed` decides what the probability leaves open. The numbers mean what they mean in Linux, `space` in
//! bytes of objects. CACHES are globs with commas between them. Without them it is the caches that `slab_debug=` marks with
//! `A`, and if there are none every cache but those of `kmalloc`: the kernel's own boxes and vectors come from there and end
//! in a panic where there is no memory.
//!
//! What is counted is calls: one object, one sheaf to be filled, or one bulk of objects is one. A cache that is made while
//! others are selected is not selected.
//!
//! Invariants:
//! - **FAIL-1** At most one selection lives at a time.
//! - **FAIL-2** With one CPU allocating, what fails is a function of plan and selection alone ([`sync::fault`], INJ-2).
//!
//! Linux: `mm/failslab.c`, `lib/fault-inject.c` (7.x); `fail-nth` of `/proc/<pid>`.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sched::Mutex;
use sync::fault::Injector;
pub use sync::fault::{Armed, Plan, Rule};
use sync::{LockClass, MaySleep, glob};

use crate::cache::{CacheFlags, RawCache};
use crate::debug::DebugFlags;
use crate::registry;

static OBJECTS: Injector = Injector::new();

/// A selection lives (FAIL-1).
static SELECTED: AtomicBool = AtomicBool::new(false);

/// The thread whose allocations are looked at, `EVERYBODY` for all. Written while no plan is armed.
static THREAD: AtomicU64 = AtomicU64::new(EVERYBODY);
const EVERYBODY: u64 = u64::MAX;

/// Why nothing was selected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailError {
    /// Another selection lives.
    Busy,
    /// No cache has such a name.
    NoCache,
}

impl fmt::Display for FailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "allocations fail on purpose already",
            Self::NoCache => "no cache has such a name",
        })
    }
}

impl core::error::Error for FailError {}

/// Caches whose allocations can be made to fail. They have no sheaves until [`release`](Self::release).
#[must_use = "the caches have no sheaves until it is released"]
#[derive(Debug)]
pub struct Selection(());

impl Selection {
    /// Takes the sheaves of all caches that match one of the globs in `caches`, with commas between them; empty for those
    /// marked `A`, or all but the `kmalloc` classes.
    ///
    /// Context: task, sleeps.
    ///
    /// # Errors
    /// [`FailError`]; nothing has changed.
    pub fn new(caches: &str, cx: &mut MaySleep) -> Result<Self, FailError> {
        // Acquire: pairs with the release in `release`, whose stores to the caches are over.
        if SELECTED.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(FailError::Busy);
        }
        let mut any = false;
        for_each_matching(caches, cx, |cache, cx| {
            let before = cache.sheaf_capacity();
            cache.set_capacity(0, cx).expect("any cache can do without sheaves");
            cache.fail.store(before as u32 + 1, Ordering::Relaxed);
            any = true;
        });
        if !any {
            SELECTED.store(false, Ordering::Release);
            return Err(FailError::NoCache);
        }
        Ok(Self(()))
    }

    /// Has allocations of the selected caches fail: those of thread `tid` outside of interrupts, or everybody's.
    ///
    /// Context: task.
    ///
    /// # Panics
    /// If a plan is armed.
    pub fn arm(&self, plan: Plan, tid: Option<u64>) -> Armed {
        assert!(!OBJECTS.is_armed(), "a plan of failing allocations is armed already");
        THREAD.store(tid.unwrap_or(EVERYBODY), Ordering::Relaxed);
        OBJECTS.arm(plan).expect("INJ-1: only the one selection arms")
    }

    /// Gives the caches the sheaf capacity back that they had, unless they were given another meanwhile.
    ///
    /// Context: task, sleeps.
    pub fn release(self, cx: &mut MaySleep) {
        registry::for_each_with(cx, |cache, cx| {
            let before = cache.fail.swap(0, Ordering::Relaxed);
            if before > 1 && cache.sheaf_capacity() == 0 {
                cache.set_capacity(before as usize - 1, cx).expect("it had this capacity");
            }
        });
        // Release: pairs with the acquire in `new`.
        SELECTED.store(false, Ordering::Release);
    }
}

/// Runs `f` with a selection that is released afterwards.
///
/// Context: task, sleeps.
///
/// # Errors
/// Those of [`Selection::new`]; `f` has not run.
pub fn with<R>(
    caches: &str,
    cx: &mut MaySleep,
    f: impl FnOnce(&Selection, &mut MaySleep) -> R,
) -> Result<R, FailError> {
    let selection = Selection::new(caches, cx)?;
    let result = f(&selection, cx);
    selection.release(cx);
    Ok(result)
}

fn for_each_matching(caches: &str, cx: &mut MaySleep, mut f: impl FnMut(&'static RawCache, &mut MaySleep)) {
    let is_marked = |cache: &RawCache| cache.debug().contains(DebugFlags::FAILSLAB);
    let mut any_marked = false;
    registry::for_each(|cache| any_marked |= is_marked(cache));
    registry::for_each_with(cx, |cache, cx| {
        let matches = match caches {
            "" if any_marked => is_marked(cache),
            "" => !cache.flags().contains(CacheFlags::KMALLOC),
            _ => caches.split(',').any(|pattern| glob(pattern, cache.name())),
        };
        if matches {
            f(cache, cx);
        }
    });
}

impl RawCache {
    /// Whether this call to the slab layer is to fail.
    ///
    /// Context: any.
    #[inline]
    pub(crate) fn is_to_fail(&self) -> bool {
        self.is_selected() && fails(self.object_size())
    }

    /// Whether the cache's allocations can be made to fail (M-17).
    pub fn is_selected(&self) -> bool {
        self.fail.load(Ordering::Relaxed) != 0
    }
}

#[cold]
fn fails(size: usize) -> bool {
    let tid = THREAD.load(Ordering::Relaxed);
    let here = tid == EVERYBODY || (sync::context::in_task() && sched::current().tid() == tid);
    here && OBJECTS.should_fail(size as u64)
}

/// A plan that stands until somebody takes it back: the command line's, or the shell's.
struct Standing {
    selection: Selection,
    armed: Armed,
}

/// Outside CPU hotplug and all locks of this storey (M-10).
static CLASS: LockClass = LockClass::new("slab.fail");
static STANDING: Mutex<Option<Standing>> = Mutex::new(None, &CLASS);

/// What became of a plan so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Allocations that the plan was asked about.
    pub seen: u64,
    /// Those of them that failed.
    pub failed: u64,
}

impl Standing {
    fn report(&self) -> Report {
        Report { seen: self.armed.seen(), failed: self.armed.failed() }
    }
}

/// Has allocations fail until [`stop`].
///
/// Context: task, sleeps.
///
/// # Errors
/// Those of [`Selection::new`].
pub fn start(plan: Plan, caches: &str, tid: Option<u64>, cx: &mut MaySleep) -> Result<(), FailError> {
    let mut standing = STANDING.lock(cx);
    let selection = Selection::new(caches, cx)?;
    let armed = selection.arm(plan, tid);
    *standing = Some(Standing { selection, armed });
    Ok(())
}

/// Ends what [`start`] began.
///
/// Context: task, sleeps.
pub fn stop(cx: &mut MaySleep) -> Option<Report> {
    let mut standing = STANDING.lock(cx);
    let ended = standing.take()?;
    let report = ended.report();
    drop(ended.armed);
    ended.selection.release(cx);
    Some(report)
}

/// How it goes with what [`start`] began.
///
/// Context: task, sleeps.
pub fn status(cx: &mut MaySleep) -> Option<Report> {
    STANDING.lock(cx).as_ref().map(Standing::report)
}

/// What [`parse`] takes.
pub const FORM: &str = "<interval>,<probability>,<space>,<times>[,CACHES]: one allocation in <interval> (from 1) fails with \
                        <probability> (0 to 100) percent, after <space> bytes, <times> times (-1 without end); CACHES are \
                        globs with commas between them; without, those marked A by slab_debug=, or all but kmalloc";

/// Reads a rule and the caches it is for.
#[must_use]
pub fn parse(text: &str) -> Option<(Rule, &str)> {
    let end = text.match_indices(',').nth(3).map_or(text.len(), |(at, _)| at);
    let (rule, caches) = text.split_at(end);
    let caches = match caches.strip_prefix(',') {
        Some(caches) => Some(caches).filter(|caches| caches.split(',').all(|pattern| !pattern.is_empty()))?,
        None => "",
    };
    Some((Rule::parse(rule)?, caches))
}

sync::param! {
    /// Object allocations that fail on purpose once the boot is over; which ones also depends on grange.seed.
    static FAILSLAB: str = "failslab", default "", if |text| parse(text).is_some(), form FORM;
}

/// Does what the command line says; nothing if it says nothing.
///
/// Context: task, once, at the end of the boot; sleeps.
pub fn init(seed: u64, cx: &mut MaySleep) {
    let Some((rule, caches)) = parse(FAILSLAB.get()) else { return };
    match start(Plan::Rule { rule, seed }, caches, None, cx) {
        Ok(()) => log::warn!("object allocations fail on purpose: failslab={}, seed {seed}", FAILSLAB.get()),
        Err(error) => log::error!("failslab={}: {error}", FAILSLAB.get()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_may_name_the_caches_it_is_for() {
        let rule = Rule { interval: 10, probability: 50, space: 0, times: None };
        assert_eq!(parse("10,50,0,-1"), Some((rule, "")));
        assert_eq!(parse("10,50,0,-1,dentry"), Some((rule, "dentry")));
        assert_eq!(parse("10,50,0,-1,kmalloc-*,inode"), Some((rule, "kmalloc-*,inode")));
        for bad in ["", "10,50,0", "10,50,0,-1,", "10,50,0,-1,a,,b", "0,50,0,-1,a", "a,10,50,0,-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
