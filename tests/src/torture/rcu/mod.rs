//! The kinds `rcu`, `srcu` and `tasks`: readers of every sort against updaters of every sort.
//!
//! | module | what | rows |
//! |---|---|---|
//! | [`ops`], [`flavours`] | what is tortured, as a table | C-3 |
//! | [`pipe`] | elements that age with each grace period | C-1 |
//! | [`reader`], [`segments`] | readers in threads, prolonged sections | C-1 to C-4 |
//! | [`interrupts`] | readers in timers, interrupts and NMIs | C-4, C-7 |
//! | [`updown`], [`read_exit`] | sections that end elsewhere; threads that end with one | C-4 |
//! | [`update`] | all ways to wait, all cookies | C-3 |
//! | [`mbcheck`] | order of memory between CPUs | C-2 |
//! | [`barrier`] | barriers | C-2, C-6 |
//! | [`fwd`] | floods, and readers without a pause | C-5 |
//! | [`boost`], [`stall`], [`nocb`] | boosting; stalls and delays; offloading | C-7 |
//! | [`stopped`] | readers of SRCU that are stopped before they count | C-4 |
//! | [`watch`] | whether the pipes flow | C-5 |
//! | [`setup`] | the parameters `rcutorture.*` | |
//! | [`report`] | the line of statistics | C-2 |
//!
//! Linux: kernel/rcu/rcutorture.c.

pub(crate) mod barrier;
pub(crate) mod boost;
pub(crate) mod flavours;
pub(crate) mod fwd;
pub(crate) mod interrupts;
pub(crate) mod mbcheck;
pub(crate) mod nocb;
pub(crate) mod ops;
pub(crate) mod pipe;
pub(crate) mod read_exit;
pub(crate) mod reader;
pub(crate) mod report;
pub(crate) mod segments;
pub(crate) mod setup;
pub(crate) mod stall;
pub(crate) mod stopped;
pub(crate) mod update;
pub(crate) mod updown;
pub(crate) mod watch;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use arch::{CpuId, CpuMask, cpu};
use sched::Prio;
use sync::{MaySleep, Rng};

use self::barrier::{Poster, Rounds};
use self::boost::Boosts;
use self::fwd::Progress;
use self::interrupts::SeenThere;
use self::ops::{Ops, Update, Way};
use self::pipe::{Pipe, STAGES};
use self::reader::Seen;
use self::segments::no_run_queue_inside;
use self::setup::Setup;
use self::stall::Stalls;
use self::update::UpdateErrors;
use self::updown::Handed;
use crate::torture::{Ongoing, Run, Stat};
use crate::{Failure, ensure, torture};

/// A flavour that is tortured, and what was seen of it.
pub(crate) struct Flavour {
    pub(crate) ops: &'static Ops,
    pub(crate) pipe: Arc<Pipe>,
    /// The ways to wait, and how often each was chosen.
    pub(crate) updates: Vec<(&'static Update, AtomicU64)>,
    /// By readers' threads.
    pub(crate) seen: Vec<Seen>,
    pub(crate) seen_there: SeenThere,
    pub(crate) seen_exiting: Seen,
    pub(crate) seen_handed: Seen,
    pub(crate) seen_stopped: Seen,
    /// Sections that wait for their end.
    pub(crate) handed: Handed,
    pub(crate) errors: UpdateErrors,
}

/// What a kind tortures, and what came of it.
pub(crate) struct Torture {
    pub(crate) setup: Setup,
    pub(crate) flavours: Vec<Flavour>,
    pub(crate) posters: Vec<Poster>,
    pub(crate) rounds: Rounds,
    pub(crate) progress: Progress,
    pub(crate) boosts: Boosts,
    /// Switches that readers did not want, of those that are at their end.
    pub(crate) preempted: AtomicU64,
    pub(crate) stalls: Stalls,
    pub(crate) read_exits: AtomicU64,
    pub(crate) toggles: AtomicU64,
    pub(crate) gp_delays: AtomicU64,
    /// CPUs that were offloaded when it began.
    offloaded: CpuMask,
    /// Whether readers are stopped: where they may sleep, and nobody else steps.
    stops_readers: bool,
}

impl Flavour {
    fn new(ops: &'static Ops, setup: &Setup) -> Flavour {
        Flavour {
            ops,
            pipe: Pipe::new(setup.readers),
            updates: ops.updates.iter().filter(|it| setup.wants(it)).map(|it| (it, AtomicU64::new(0))).collect(),
            seen: (0..setup.readers).map(|_| Seen::default()).collect(),
            seen_there: SeenThere::default(),
            seen_exiting: Seen::default(),
            seen_handed: Seen::default(),
            seen_stopped: Seen::default(),
            handed: Handed::new(),
            errors: UpdateErrors::default(),
        }
    }

    /// All that have seen something.
    fn all_seen(&self) -> impl Iterator<Item = &Seen> {
        let there = interrupts::Place::ALL.into_iter().map(|place| self.seen_there.at(place));
        self.seen.iter().chain(there).chain([&self.seen_exiting, &self.seen_handed, &self.seen_stopped])
    }

    /// Waits until no reader can hold what was replaced before.
    fn settle(&self, cx: &mut MaySleep) {
        let wait = self.ops.updates.iter().find_map(|update| match update.way {
            Way::Wait(wait) => Some(wait),
            _ => None,
        });
        wait.expect("each flavour can be waited for")(cx);
    }

    /// Lets callbacks that age elements come to their end, and looks for elements that are lost.
    fn finish(&self, cx: &mut MaySleep) -> Result<(), Failure> {
        for _ in 0..=STAGES {
            (self.ops.barrier)(cx);
        }
        let (name, left) = (self.ops.name, self.pipe.with_callbacks());
        ensure!(
            left == 0,
            "{name}: {left} elements are still with callbacks after as many barriers as there are stages"
        );
        ensure!(self.pipe.is_settled(), "{name}: elements are lost, {} are free", self.pipe.free_elements());
        Ok(())
    }
}

/// A thread of a kind, by what it does.
type Body = fn(&Arc<Torture>, usize, Rng, &mut MaySleep) -> Result<(), Failure>;

impl Torture {
    /// Starts a torture as `setup` says.
    ///
    /// # Errors
    /// There is no memory for its threads, or it updates nothing.
    pub(crate) fn start(run: &mut Run<'_>, setup: Setup) -> Result<Tortured, Failure> {
        let flavours: Vec<_> = setup.ops.iter().map(|ops| Flavour::new(ops, &setup)).collect();
        ensure!(flavours.iter().all(|it| !it.updates.is_empty()), "no way to wait is left by \"{}\"", setup.updates);
        let this = Arc::new(Torture {
            flavours,
            posters: (0..setup.barrier_callbacks).map(|_| Poster::new()).collect(),
            rounds: Rounds::default(),
            progress: Progress::new(),
            boosts: Boosts::default(),
            preempted: AtomicU64::new(0),
            stalls: Stalls::default(),
            read_exits: AtomicU64::new(0),
            toggles: AtomicU64::new(0),
            gp_delays: AtomicU64::new(0),
            offloaded: rcu::nocb::offloaded(),
            stops_readers: run.is_alone() && setup.ops.iter().all(|ops| ops.readers.sleep),
            setup,
        });
        interrupts::join(&this);
        this.spawn_all(run)?;
        Ok(Tortured(this))
    }

    fn spawn_all(self: &Arc<Self>, run: &mut Run<'_>) -> Result<(), Failure> {
        let (setup, normal) = (&self.setup, Prio::NORMAL);
        // Above the readers, so that updaters get their turns among many; beside them where that would leave them no CPU.
        let above = if cpu::online_count() > 1 { Prio::HIGH } else { normal };
        let times = |on: bool| usize::from(on);
        self.spawn(run, "rcu prodder", above, setup.prodders, bound, |t, _, rng, cx| {
            t.prod(rng, cx);
            Ok(())
        })?;
        self.spawn(run, "rcu reader", normal, setup.readers, some_bound, |t, me, rng, cx| {
            t.read(me, rng, cx);
            Ok(())
        })?;
        self.spawn(run, "rcu updater", above, self.flavours.len(), free, |t, me, rng, cx| {
            t.update(&t.flavours[me], rng, cx);
            Ok(())
        })?;
        self.spawn(run, "rcu faker", normal, setup.fake_updaters, free, |t, _, rng, cx| {
            t.fake_update(rng, cx);
            Ok(())
        })?;
        let hands_over = self.flavours.iter().any(|flavour| flavour.ops.down.is_some());
        self.spawn(run, "srcu updown", normal, 2 * times(hands_over), free, |t, _, rng, cx| {
            t.hand_over(rng, cx);
            Ok(())
        })?;
        self.spawn(run, "srcu stopped", normal, times(self.stops_readers), some_bound, |t, _, rng, cx| {
            t.read_after_a_stop(rng, cx);
            Ok(())
        })?;
        self.spawn(run, "rcu watch", Prio::CRITICAL, 1, free, |t, _, _, cx| t.watch(cx))?;
        self.spawn(run, "rcu poster", normal, self.posters.len(), some_bound, |t, me, rng, cx| {
            t.post_callbacks(me, rng, cx);
            Ok(())
        })?;
        self.spawn(run, "rcu barrier", above, times(!self.posters.is_empty()), free, |t, _, rng, cx| {
            t.lead_rounds(rng, cx);
            Ok(())
        })?;
        self.spawn(run, "rcu read-exit", normal, times(setup.read_exit_burst != 0), free, |t, _, rng, cx| {
            t.read_and_exit(rng, cx)
        })?;
        self.spawn(run, "rcu forward", normal, times(setup.fwd_holdoff_ns != 0), some_bound, |t, _, _, cx| {
            t.press_forward(cx)
        })?;
        self.spawn(run, "rcu boost", Prio::CRITICAL, times(setup.boost_interval_ns != 0), free, |t, _, rng, cx| {
            t.boost(rng, cx)
        })?;
        self.spawn(run, "rcu nocb", normal, times(setup.toggle_ns != 0), free, |t, _, rng, cx| {
            t.toggle_offloading(rng, cx)
        })?;
        self.spawn(run, "rcu delay", Prio::CRITICAL, times(setup.gp_delay_ns != 0), free, |t, _, rng, cx| {
            t.delay_grace_periods(rng, cx)
        })?;
        self.spawn(run, "rcu stall", Prio::CRITICAL, times(setup.stall.is_some()), free, |t, _, _, cx| {
            t.setup.stall.map_or(Ok(()), |way| t.stall(way, cx))
        })
    }

    /// Starts `count` threads, each where `place` says.
    fn spawn(
        self: &Arc<Self>,
        run: &mut Run<'_>,
        name: &str,
        prio: Prio,
        count: usize,
        place: fn(usize) -> Option<CpuId>,
        body: Body,
    ) -> Result<(), Failure> {
        let seed = run.rng(name).next_u64();
        for me in 0..count {
            let (this, rng) = (self.clone(), Rng::stream(seed, me as u64));
            run.spawn(name, prio, place(me), move |cx| body(&this, me, rng, cx))?;
        }
        Ok(())
    }
}

/// Anywhere.
fn free(_: usize) -> Option<CpuId> {
    None
}

/// On one CPU each, in turn.
fn bound(me: usize) -> Option<CpuId> {
    cpu::online().iter().cycle().nth(me)
}

/// As [`bound`], but every fourth may move.
fn some_bound(me: usize) -> Option<CpuId> {
    bound(me).filter(|_| me % 4 != 3)
}

/// A torture that has begun.
pub(crate) struct Tortured(Arc<Torture>);

impl Ongoing for Tortured {
    fn stat(&self, out: &mut Stat) {
        self.0.stat(out);
    }

    fn stop(&mut self, cx: &mut MaySleep) -> Result<(), Failure> {
        let torture = &self.0;
        interrupts::leave(torture);
        nocb::restore(torture.offloaded, cx)?;
        torture.flavours.iter().try_for_each(|flavour| flavour.finish(cx))?;
        no_run_queue_inside()
    }
}

torture! {
    /// RCU: readers in every context, updates and cookies of every kind, barriers, floods, boosting, offloading, stalls
    fn rcu(run: &mut Run) {
        Torture::start(run, Setup::rcu())
    }
}

torture! {
    /// SRCU in all its flavours: readers that sleep, in interrupts and NMIs, and sections that end elsewhere
    fn srcu(run: &mut Run) {
        Torture::start(run, Setup::srcu())
    }
}

torture! {
    /// Tasks RCU: threads between voluntary switches, CPUs without preemption, and readers that sleep
    fn tasks(run: &mut Run) {
        Torture::start(run, Setup::tasks())
    }
}
