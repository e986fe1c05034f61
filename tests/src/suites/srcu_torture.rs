//! The pipe of `rcu_torture` for SRCU: does a reader ever hold an element for longer than a grace period of its domain after it
//! was replaced?
//!
//! One flavour and one kind of wait at a time. Readers run two to a CPU; most sections are short, some sleep, some nest, and
//! some are ended by another thread, where the flavour has that. A stage is a whole grace period since the element was
//! replaced; a reader notes the stage of its element at the *end* of its section, and only 0 is right.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::{clock, cpu, irq};
use rcu::RcuBox;
use rcu::srcu::{
    Fast, FastUpDown, Flavour, HandsOver, NmiSafe, Normal, Srcu, SrcuDomain, SrcuDownGuard, SrcuRetired, call_srcu,
    srcu_barrier, srcu_down_read, srcu_read_lock, srcu_start_poll, srcu_up_read, synchronize_srcu,
    synchronize_srcu_expedited,
};
use sched::{Completion, Mutex, Prio};
use sync::callback::CallbackHead;
use sync::{MaySleep, Rng, lock_class};

use crate::toggle::{others, toggle};
use crate::{Failure, Test, ensure, ktest};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// Stages of the pipe.
const STAGES: usize = 10;
/// How long each kind of wait is tortured.
const EACH_NS: u64 = 100 * MS;
/// And longer, until it has come to this many grace periods: a host may be slow.
const MIN_TURNS: u64 = 8;

rcu::srcu_domain! {
    static NORMAL: Normal;
    static NMI_SAFE: NmiSafe;
    static FAST: Fast;
    static FAST_UPDOWN: FastUpDown;
}

/// An element: how many grace periods ago it was replaced.
type Stage = Arc<AtomicUsize>;
/// A way to wait for a grace period of a domain.
type Wait<F> = fn(&SrcuDomain<F>, &mut MaySleep);

/// A section on its way to whoever ends it, and what it found.
type Sent<G> = Mutex<Vec<(G, Stage)>>;

struct Pipe<F: Flavour> {
    domain: &'static SrcuDomain<F>,
    /// The element that readers find.
    current: Srcu<'static, Stage, F>,
    stop: AtomicBool,
    /// The updater goes on until this is set.
    may_end: AtomicBool,
    /// Sections by the stage of their element at their end.
    ages: [AtomicU64; STAGES + 1],
}

impl<F: Flavour> Pipe<F> {
    fn new(domain: &'static SrcuDomain<F>) -> Arc<Self> {
        Arc::new(Pipe {
            domain,
            current: Srcu::new(domain, RcuBox::new(Stage::default())),
            stop: AtomicBool::new(false),
            may_end: AtomicBool::new(false),
            ages: [const { AtomicU64::new(0) }; STAGES + 1],
        })
    }

    fn note(&self, stage: &Stage) {
        self.ages[stage.load(Ordering::Relaxed).min(STAGES)].fetch_add(1, Ordering::Relaxed);
    }

    /// What readers do inside.
    fn dwell(rng: &mut Rng, cx: &mut MaySleep) {
        if rng.chance(1, 16) {
            sched::sleep_ns(cx, rng.below(2 * MS));
        }
        let end = clock::now_ns() + rng.below(4_000);
        while clock::now_ns() < end {
            irq::relax();
        }
    }

    fn read(&self, mut rng: Rng, cx: &mut MaySleep) {
        while !self.stop.load(Ordering::Relaxed) {
            let guard = srcu_read_lock(self.domain);
            let nested = rng.chance(1, 4).then(|| srcu_read_lock(self.domain));
            let stage = self.current.read(&guard).expect("never null");
            Self::dwell(&mut rng, cx);
            self.note(stage);
            drop(nested);
            drop(guard);
        }
    }

    /// Returns the grace periods that it waited for.
    fn update(&self, cx: &mut MaySleep, wait: Wait<F>) -> u64 {
        let swap = |stage: &Stage| self.current.replace(Some(RcuBox::new(stage.clone()))).expect("never null");
        let until = clock::now_ns() + EACH_NS;
        let mut current = Stage::default();
        swap(&current).retire();
        let mut replaced: Vec<(SrcuRetired<'static, _, F>, Stage)> = Vec::new();
        let mut turns = 0;
        while clock::now_ns() < until || turns < MIN_TURNS || !self.may_end.load(Ordering::Relaxed) {
            let next = Stage::default();
            replaced.push((swap(&next), core::mem::replace(&mut current, next)));
            wait(self.domain, cx);
            turns += 1;
            let mut kept = Vec::new();
            for (retired, stage) in replaced {
                match stage.fetch_add(1, Ordering::Relaxed) + 1 < STAGES {
                    true => kept.push((retired, stage)),
                    false => retired.retire(),
                }
            }
            replaced = kept;
        }
        replaced.into_iter().for_each(|(retired, _)| retired.retire());
        turns
    }
}

impl<F: HandsOver> Pipe<F> {
    /// Begins sections, and ends those that others began.
    fn read_handed_over(&self, sent: &Sent<SrcuDownGuard<'static, F>>, mut rng: Rng, cx: &mut MaySleep) {
        while !self.stop.load(Ordering::Relaxed) {
            let guard = srcu_down_read(self.domain);
            let stage = self.current.read(&guard).expect("never null").clone();
            let others = {
                let mut sent = sent.lock(cx);
                sent.push((guard, stage));
                let oldest = sent.len() > 4;
                oldest.then(|| sent.remove(0))
            };
            Self::dwell(&mut rng, cx);
            if let Some((guard, stage)) = others {
                self.note(&stage);
                srcu_up_read(guard);
            }
        }
        for (guard, stage) in core::mem::take(&mut *sent.lock(cx)) {
            self.note(&stage);
            srcu_up_read(guard);
        }
    }
}

/// What a reader's thread does.
type Reader<F> = Arc<dyn Fn(&Pipe<F>, Rng, &mut MaySleep) + Send + Sync>;

fn torture_with<F: Flavour>(
    t: &mut Test<'_>,
    (name, wait): (&str, Wait<F>),
    domain: &'static SrcuDomain<F>,
    reader: &Reader<F>,
    meanwhile: fn(&mut Test<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |error| crate::__failed!("{error}");
    let pipe = Pipe::new(domain);
    let mut readers = Vec::new();
    for (i, on) in cpu::online().iter().cycle().take(2 * cpu::online_count()).enumerate() {
        let (pipe, reader, rng) = (pipe.clone(), reader.clone(), Rng::new(t.seed ^ i as u64));
        // Some may move from CPU to CPU.
        let on = (i % 4 != 3).then_some(on);
        let thread = sched::spawn(t.cx, "pipe reader", Prio::NORMAL, on, move |cx| reader(&pipe, rng, cx));
        readers.push(thread.map_err(failed)?);
    }
    let theirs = pipe.clone();
    let updater = sched::spawn(t.cx, "pipe updater", Prio::HIGH, None, move |cx| theirs.update(cx, wait));
    let result = meanwhile(t);
    pipe.may_end.store(true, Ordering::Relaxed);
    let turns = updater.map_err(failed)?.join(t.cx);
    pipe.stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join(t.cx));
    let ages: Vec<_> = pipe.ages.iter().map(|age| age.load(Ordering::Relaxed)).collect();
    drop(pipe);
    srcu_barrier(domain, t.cx);
    result?;
    let flavour = domain.stats().flavour;
    t.note(format_args!("{flavour}, {name}: {turns} grace periods, sections by age {ages:?}"));
    ensure!(ages[0] >= 50, "too little happened: {turns} grace periods, {ages:?}");
    ensure!(ages[1..].iter().all(|&sections| sections == 0), "SRCU is broken: sections by age {ages:?}");
    let readers = domain.stats().readers;
    ensure!(readers == [0, 0], "readers are counted though none is left: {readers:?}");
    Ok(())
}

/// All kinds of wait.
fn waits<F: Flavour>() -> [(&'static str, Wait<F>); 4] {
    [
        ("synchronize_srcu", synchronize_srcu),
        ("synchronize_srcu_expedited", synchronize_srcu_expedited),
        ("call_srcu", wait_by_callback),
        ("srcu_start_poll", wait_by_polling),
    ]
}

fn torture<F: Flavour>(t: &mut Test<'_>, domain: &'static SrcuDomain<F>) -> Result<(), Failure> {
    let reader: Reader<F> = Arc::new(|pipe, rng, cx| pipe.read(rng, cx));
    waits().into_iter().try_for_each(|wait| torture_with(t, wait, domain, &reader, |_| Ok(())))
}

fn torture_handed_over<F: HandsOver>(t: &mut Test<'_>, domain: &'static SrcuDomain<F>) -> Result<(), Failure> {
    let sent: Sent<SrcuDownGuard<'static, F>> = Mutex::new(Vec::new(), lock_class!("test.srcu_sent"));
    let reader: Reader<F> = Arc::new(move |pipe, rng, cx| pipe.read_handed_over(&sent, rng, cx));
    waits().into_iter().take(2).try_for_each(|wait| torture_with(t, wait, domain, &reader, |_| Ok(())))
}

/// While every CPU goes and comes.
fn torture_hotplug<F: Flavour>(t: &mut Test<'_>, domain: &'static SrcuDomain<F>) -> Result<(), Failure> {
    others(t.cx)?;
    let reader: Reader<F> = Arc::new(|pipe, rng, cx| pipe.read(rng, cx));
    let meanwhile = |t: &mut Test<'_>| toggle(&others(t.cx)?, 10, &mut t.rng, t.cx);
    waits().into_iter().try_for_each(|wait| torture_with(t, wait, domain, &reader, meanwhile))
}

/// Waits by a callback.
fn wait_by_callback<F: Flavour>(domain: &SrcuDomain<F>, cx: &mut MaySleep) {
    #[repr(C)]
    struct Wake {
        head: CallbackHead,
        done: Completion,
    }
    /// # Safety
    /// `head` is that of the `Wake` below, whose thread waits.
    unsafe fn wake(head: *mut CallbackHead) {
        // SAFETY: by the caller; the head is the first field.
        unsafe { &*head.cast::<Wake>() }.done.complete();
    }
    let mut it = Wake { head: CallbackHead::new(), done: Completion::new() };
    let it = &raw mut it;
    // SAFETY: it stays on this stack until its function has completed it.
    unsafe { call_srcu(domain, it.cast(), wake) };
    // SAFETY: as above; the callback touches `head` before this and `done` only shared.
    unsafe { &(*it).done }.wait(cx);
}

/// Waits by asking.
fn wait_by_polling<F: Flavour>(domain: &SrcuDomain<F>, cx: &mut MaySleep) {
    let cookie = srcu_start_poll(domain);
    while !cookie.is_over() {
        sched::sleep_ns(cx, MS / 2);
    }
}

ktest! {
    /// Normal readers.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_normal_reader_outlasts_a_grace_period(t: &mut Test) {
        torture(t, &NORMAL)
    }

    /// NMI-safe readers.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_nmi_safe_reader_outlasts_a_grace_period(t: &mut Test) {
        torture(t, &NMI_SAFE)
    }

    /// Fast readers, for whom a grace period of RCU stands in for barriers.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_fast_reader_outlasts_a_grace_period(t: &mut Test) {
        torture(t, &FAST)
    }

    /// Readers whose sections are ended by other threads.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_handed_over_reader_outlasts_a_grace_period(t: &mut Test) {
        torture_handed_over(t, &NORMAL)?;
        torture_handed_over(t, &FAST_UPDOWN)
    }

    /// All flavours, in a domain with a tree, while CPUs go and come.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn no_reader_outlasts_a_grace_period_while_cpus_go_and_come(t: &mut Test) {
        NORMAL.make_big();
        torture_hotplug(t, &NORMAL)?;
        torture_hotplug(t, &NMI_SAFE)?;
        torture_hotplug(t, &FAST)?;
        torture_hotplug(t, &FAST_UPDOWN)
    }
}
