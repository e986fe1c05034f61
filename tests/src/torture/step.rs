//! An NMI at any instruction: single steps over every path of the allocator, over wake-ups, timers, work and the idle wait, again and
//! again, with visits at boundaries chosen at random.
//!
//! A visit allocates, frees and gives to `kfree_rcu` by the calls without locks. What a path was to do is done all the same, each
//! object keeps its content, and every object, slab and sheaf is back after each path. Beside other kinds a path may be led
//! elsewhere, by a flush or for want of memory; such a turn is not counted.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::irq;
use sched::wait::WaitQueue;
use sched::{Prio, Timer, WorkItem};
use sync::{IrqWork, MaySleep, Rng};

use super::{Ongoing, Stat, control};
use crate::nolock::{self, Kind, PATHS};
use crate::stepping::{self, Visit};
use crate::together::{MS, soon};
use crate::walk::{Plan, Walked, walk};
use crate::{Failure, ensure, ensure_eq, torture};

/// Boundaries of a path that are visited alone in a turn.
const ALONE: u64 = 3;
/// Every how many boundaries there is a visit; all the strides that a turn may have.
const STRIDES: [usize; 8] = [1, 2, 3, 5, 7, 17, 31, 61];

/// What is no path of the allocator: an operation, and how often what it brings about has come about.
struct Beat {
    name: &'static str,
    operation: fn(),
    came: fn() -> u64,
}

static SLEEPERS: WaitQueue = WaitQueue::new();
static CALLS: AtomicU64 = AtomicU64::new(0);
static WOKEN: AtomicU64 = AtomicU64::new(0);
static FIRED: AtomicU64 = AtomicU64::new(0);
static WORKED: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
static IDLED: AtomicU64 = AtomicU64::new(0);
static TIMER: Timer = Timer::new(|_| _ = FIRED.fetch_add(1, Relaxed));
static ITEM: WorkItem = WorkItem::new(|_, _| _ = WORKED.fetch_add(1, Relaxed));
static IRQ: IrqWork = IrqWork::new(|_| _ = INTERRUPTED.fetch_add(1, Relaxed));

const BEATS: [Beat; 5] = [
    Beat { name: "wake-up", operation: wake, came: || WOKEN.load(Relaxed) },
    Beat { name: "timer", operation: || _ = TIMER.arm_in(MS / 10), came: || FIRED.load(Relaxed) },
    Beat { name: "work", operation: || _ = sched::queue_work(&ITEM), came: || WORKED.load(Relaxed) },
    Beat { name: "irq_work", operation: || _ = IRQ.queue(), came: || INTERRUPTED.load(Relaxed) },
    Beat { name: "idle", operation: idle, came: || IDLED.load(Relaxed) },
];

fn wake() {
    CALLS.fetch_add(1, Relaxed);
    SLEEPERS.wake_all();
}

/// The last look of an idle CPU, and its wait, in this thread.
fn idle() {
    irq::disable();
    sched::idle::wait_for_interrupt(false);
    irq::enable();
    IDLED.fetch_add(1, Relaxed);
}

/// Steps in where no cache is set up for it.
struct StepIn;

/// Visits that are left: what pushes without locks begins anew after each.
static LEFT: AtomicUsize = AtomicUsize::new(0);

impl Visit for StepIn {
    fn visit() {
        if LEFT.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            nolock::visit();
        }
    }
}

struct Steps {
    alone: bool,
    paths: AtomicU64,
    astray: AtomicU64,
    beats: AtomicU64,
    /// Boundaries of each path and beat, as it was last.
    lengths: [AtomicU64; 64],
    visits: AtomicU64,
}

impl Steps {
    fn torture(&self, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        let mut at = rng.index(PATHS.len() + BEATS.len());
        while !control::stutter(cx) {
            match PATHS.get(at) {
                Some(_) => self.path(at, &mut rng, cx)?,
                None => self.beat(at, &mut rng, cx)?,
            }
            at = (at + 1) % (PATHS.len() + BEATS.len());
        }
        // The sleeper sees the end, too.
        wake();
        Ok(())
    }

    fn path(&self, at: usize, rng: &mut Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        let plan = Plan { alone: ALONE, dense: &[any_run(rng)], strict: false };
        let walked = walk(&PATHS[at], plan, rng, cx);
        let walked = walked.map_err(|failure| crate::__failed!("{}: {failure:?}", PATHS[at].name))?;
        let Some(Walked { length, visits, .. }) = walked else {
            self.astray.fetch_add(1, Relaxed);
            return Ok(());
        };
        self.lengths[at].store(length, Relaxed);
        self.visits.fetch_add(visits, Relaxed);
        self.paths.fetch_add(1, Relaxed);
        Ok(())
    }

    fn beat(&self, at: usize, rng: &mut Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        let Beat { name, operation, came } = &BEATS[at - PATHS.len()];
        let cache = Kind::Small.cache();
        nolock::use_cache(cache);
        for run in [stepping::NOWHERE, any_run(rng)] {
            // As many as a run of some length may have; each allocates once at the most.
            LEFT.store(1_000, Relaxed);
            let before = came();
            let length = stepping::step::<StepIn>(run, operation);
            ensure!(soon(cx, || came() != before), "{name}: what was asked for at {run:?} does not come");
            if run == stepping::NOWHERE {
                self.lengths[at].store(length, Relaxed);
            } else {
                self.visits.fetch_add((1_000 - LEFT.load(Relaxed)) as u64, Relaxed);
            }
        }
        self.beats.fetch_add(1, Relaxed);
        nolock::ensure_all_back(cache, cx)
    }
}

/// Visits at every so many boundaries, from any of the first ones on.
fn any_run(rng: &mut Rng) -> (usize, usize) {
    let stride = STRIDES[rng.index(STRIDES.len())];
    (stride, rng.index(stride))
}

/// Is woken, again and again.
fn sleep(cx: &mut MaySleep) -> Result<(), Failure> {
    let mut seen = CALLS.load(Relaxed);
    while !control::stutter(cx) {
        // Without a time-out, which would make up for a wake-up that is lost.
        SLEEPERS.wait_until(cx, || CALLS.load(Relaxed) != seen);
        seen = CALLS.load(Relaxed);
        WOKEN.fetch_add(1, Relaxed);
    }
    Ok(())
}

impl Ongoing for Arc<Steps> {
    fn stat(&self, out: &mut Stat) {
        // All of them once, or where others want the CPU as well some.
        let (paths, beats) = if self.alone { (PATHS.len(), BEATS.len()) } else { (1, 0) };
        out.work_of("paths", self.paths.load(Relaxed), paths as u64);
        out.count("astray", self.astray.load(Relaxed));
        out.work_of("beats", self.beats.load(Relaxed), beats as u64);
        out.work("boundaries", self.lengths.iter().map(|length| length.load(Relaxed)).sum());
        out.work("visits", self.visits.load(Relaxed));
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        TIMER.cancel_sync();
        let (_, damaged) = nolock::counts();
        ensure_eq!(damaged, 0, "objects with two holders");
        Ok(())
    }
}

torture! {
    /// An NMI at any instruction of the allocator's paths, of wake-ups, timers, work and the idle wait
    fn step(run: &mut Run) {
        const { assert!(PATHS.len() + BEATS.len() <= 64) };
        let steps = Arc::new(Steps {
            alone: run.is_alone(),
            paths: AtomicU64::new(0),
            astray: AtomicU64::new(0),
            beats: AtomicU64::new(0),
            lengths: [const { AtomicU64::new(0) }; 64],
            visits: AtomicU64::new(0),
        });
        let (shared, rng) = (steps.clone(), run.rng("steps"));
        run.spawn("step", Prio::NORMAL, None, move |cx| shared.torture(rng, cx))?;
        run.spawn("step sleeper", Prio::NORMAL, None, sleep)?;
        Ok(steps)
    }
}
