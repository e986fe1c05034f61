//! Single steps over the allocator's [paths](crate::nolock::PATHS), with visits at boundaries.
//!
//! A visit changes what the path finds after it: an NMI may refill the sheaf that was about to run dry. So a boundary is visited
//! *alone*, with everything set up anew; visits at every boundary of one run, at every second and so on come on top.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use sync::{ATOMIC, MaySleep, PreemptGuard, Rng};

use crate::nolock::{self, Bed, Path, ensure_all_back};
use crate::stepping::{self, Visit};
use crate::{Failure, ensure};

/// Steps in at boundaries.
struct Visitor;

/// Visits that are left in a run. A lock-less push begins anew when a visit pushed in between: were there one at every boundary
/// without end, it would never get done.
static LEFT: AtomicUsize = AtomicUsize::new(0);

impl Visit for Visitor {
    fn visit() {
        if LEFT.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            nolock::visit();
        }
    }
}

/// At which boundaries of a path there are visits.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// Boundaries that are visited alone: so many, evenly spread.
    pub(crate) alone: u64,
    /// Runs with a visit at every so many boundaries, beginning at the one behind.
    pub(crate) dense: &'a [(usize, usize)],
    /// An operation that is not on its path is a failure; else somebody else may have led it elsewhere, and it is no path.
    pub(crate) strict: bool,
}

/// What was done on a path, or on several.
#[derive(Default)]
pub(crate) struct Walked {
    /// Boundaries of the path when nobody visits.
    pub(crate) length: u64,
    /// Of these visited alone.
    pub(crate) alone: u64,
    /// Visits in all.
    pub(crate) visits: u64,
}

/// Steps over `path`, with visits as planned; nothing if there is no such path on this machine.
pub(crate) fn walk(path: &Path, plan: Plan<'_>, rng: &mut Rng, cx: &mut MaySleep) -> Result<Option<Walked>, Failure> {
    let cache = path.kind.cache();
    nolock::use_cache(cache);
    let mut bed = Bed::new(cache);
    let lead = nolock::operations_before(path, &mut bed);
    let first = lead.and_then(|before| match before {
        Some(before) => Ok(run(path, before, &mut bed, stepping::NOWHERE)?.map(|length| (before, length))),
        None => Ok(None),
    });
    let (before, length) = match first {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(failure) if plan.strict => return Err(failure),
        Err(_) => return Ok(None),
    };
    let mut walked = Walked { length, ..Walked::default() };
    let spacing = length.div_ceil(plan.alone).max(1);
    let first = rng.below(spacing);
    for at in (first..length).step_by(spacing as usize) {
        nolock::begin_with(at as usize);
        LEFT.store(1, Relaxed);
        run(path, before, &mut bed, stepping::only(at as usize))?;
        walked.visits += 1;
        walked.alone += 1;
        if at % 64 == 0 {
            // What was given to kfree_rcu waits for a grace period, which stepping holds up: memory is finite.
            kfree_rcu::kvfree_rcu_barrier(cx);
        }
    }
    for &at in plan.dense {
        let most = 2 * length as usize;
        LEFT.store(most, Relaxed);
        run(path, before, &mut bed, at)?;
        walked.visits += (most - LEFT.load(Relaxed)) as u64;
        kfree_rcu::kvfree_rcu_barrier(cx);
    }
    drop(bed);
    ensure_all_back(cache, cx)?;
    Ok(Some(walked))
}

/// Sets the path up, does `before` operations and steps over the one after, with visits at the boundaries that `at` says.
/// Returns how many boundaries there were.
fn run(path: &Path, before: usize, bed: &mut Bed, at: (usize, usize)) -> Result<Option<u64>, Failure> {
    bed.begin();
    // From here on nothing comes in between on this CPU but interrupts.
    let _pin = PreemptGuard::new(ATOMIC);
    if !(path.set_up)(bed) {
        return Ok(None);
    }
    (0..before).for_each(|_| (path.operation)(bed));
    let counted = |bed: &Bed| path.counts.map_or(1, |stat| bed.cache.stat(stat));
    let old = counted(bed);
    let boundaries = bed.with_stamps_left_alone(|bed| stepping::step::<Visitor>(at, || (path.operation)(bed)));
    ensure!(at != stepping::NOWHERE || path.counts.is_none() || counted(bed) != old, "{}: not on it", path.name);
    Ok(Some(boundaries))
}
