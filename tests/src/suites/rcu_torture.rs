//! The pipe: does a reader ever hold an element for longer than a grace period after it was replaced?
//!
//! One updater replaces the current element, waits for a grace period, and then makes every replaced element one stage
//! older: a stage is a whole grace period since the element was replaced. A reader notes the stage of its element at the
//! *end* of its section. 0 is right; 1 or more means that a grace period began and ended inside the section. The count
//! says how bad it is, and after ten stages an element is freed. (rcutorture makes the first step when it replaces,
//! so its 2 is the 1 here.)
//!
//! One kind of grace period at a time, because a good one of either kind hides a bad one of the other. Readers run
//! one to a CPU, and three to a CPU, where most of them are preempted inside their sections; sections are short, with
//! preemption or interrupts off at times, and every 64th is longer than a slice.
//!
//! Modelled on the idea of rcutorture (Linux kernel/rcu/rcutorture.c).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::{clock, cpu, irq};
use rcu::{Rcu, RcuBox, Retired, rcu_barrier, read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sched::{Completion, Prio};
use sync::callback::CallbackHead;
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, Rng};

use crate::toggle::{others, toggle_all};
use crate::{Failure, Test, ensure, ktest};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// Stages of the pipe.
const STAGES: usize = 10;
/// How long each kind of grace period is tortured with each number of readers.
const EACH_NS: u64 = 500 * MS;
/// And longer, until it has come to this many grace periods: a host may be slow.
const MIN_TURNS: u64 = 20;

/// What goes on beside readers and updater.
type Meanwhile = fn(&mut Test<'_>) -> Result<(), Failure>;

struct Pipe {
    /// The element that readers find: its stage.
    current: Rcu<Arc<AtomicUsize>>,
    stop: AtomicBool,
    /// The updater goes on until this is set.
    may_end: AtomicBool,
    /// Sections by the stage of their element at their end.
    ages: [AtomicU64; STAGES + 1],
}

impl Pipe {
    fn read(&self, mut rng: Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            let dice = rng.next_u64();
            let long = dice.is_multiple_of(64);
            let no_preemption = (!long && dice & 0x300 == 0).then(|| PreemptGuard::new(ATOMIC));
            let guard = read_lock(ATOMIC);
            let nested = (dice & 0x1000 == 0).then(|| read_lock(ATOMIC));
            let stage = self.current.read(&guard).expect("never null");
            let end = clock::now_ns() + if long { 20 * MS } else { dice >> 52 };
            while clock::now_ns() < end {
                irq::relax();
            }
            let age = stage.load(Ordering::Relaxed).min(STAGES);
            let no_interrupts = (dice & 0xe000 == 0).then(|| IrqGuard::new(ATOMIC));
            drop(nested);
            drop(guard);
            drop(no_interrupts);
            drop(no_preemption);
            self.ages[age].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the grace periods that it waited for.
    fn update(&self, cx: &mut MaySleep, wait: fn(&mut MaySleep)) -> u64 {
        let fresh = || Arc::new(AtomicUsize::new(0));
        let swap =
            |stage: &Arc<AtomicUsize>| self.current.replace(Some(RcuBox::new(stage.clone()))).expect("never null");
        let until = clock::now_ns() + EACH_NS;
        let mut current = fresh();
        swap(&current).retire();
        let mut replaced: Vec<(Retired<Arc<AtomicUsize>>, Arc<AtomicUsize>)> = Vec::new();
        let mut turns = 0;
        while clock::now_ns() < until || turns < MIN_TURNS || !self.may_end.load(Ordering::Relaxed) {
            let next = fresh();
            replaced.push((swap(&next), core::mem::replace(&mut current, next)));
            wait(cx);
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

fn torture(t: &mut Test<'_>, name: &str, wait: fn(&mut MaySleep)) -> Result<(), Failure> {
    // Above the readers, so that it gets its turns among many; but beside them where it would leave them no CPU.
    let prio = if cpu::online_count() > 1 { Prio::HIGH } else { Prio::NORMAL };
    [1, 3].into_iter().try_for_each(|per_cpu| torture_with(t, name, (per_cpu, prio), wait, |_| Ok(())))
}

/// While every CPU goes and comes.
fn torture_hotplug(t: &mut Test<'_>, name: &str, wait: fn(&mut MaySleep)) -> Result<(), Failure> {
    others(t.cx)?;
    torture_with(t, name, (1, Prio::NORMAL), wait, |t| toggle_all(&others(t.cx)?, &mut t.rng, t.cx))
}

fn torture_with(
    t: &mut Test<'_>,
    name: &str,
    (per_cpu, prio): (usize, Prio),
    wait: fn(&mut MaySleep),
    meanwhile: Meanwhile,
) -> Result<(), Failure> {
    let failed = |error| crate::__failed!("{error}");
    let pipe = Arc::new(Pipe {
        current: Rcu::new(RcuBox::new(Arc::new(AtomicUsize::new(0)))),
        stop: AtomicBool::new(false),
        may_end: AtomicBool::new(false),
        ages: [const { AtomicU64::new(0) }; STAGES + 1],
    });
    let mut readers = Vec::new();
    for (i, on) in cpu::online().iter().cycle().take(per_cpu * cpu::online_count()).enumerate() {
        let (pipe, rng) = (pipe.clone(), Rng::new(t.seed ^ i as u64));
        // Some may move from CPU to CPU.
        let on = (i % 4 != 3).then_some(on);
        readers.push(sched::spawn(t.cx, "pipe reader", Prio::NORMAL, on, move |_| pipe.read(rng)).map_err(failed)?);
    }
    let theirs = pipe.clone();
    let updater = sched::spawn(t.cx, "pipe updater", prio, None, move |cx| theirs.update(cx, wait));
    let result = meanwhile(t);
    pipe.may_end.store(true, Ordering::Relaxed);
    let turns = updater.map_err(failed)?.join(t.cx);
    pipe.stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join(t.cx));
    rcu_barrier(t.cx);
    result?;
    let ages: Vec<_> = pipe.ages.iter().map(|age| age.load(Ordering::Relaxed)).collect();
    t.note(format_args!("{name}, {per_cpu} readers a CPU: {turns} grace periods, sections by age {ages:?}"));
    ensure!(ages[0] >= 100, "too little happened: {turns} grace periods, {ages:?}");
    ensure!(ages[1..].iter().all(|&sections| sections == 0), "RCU is broken: sections by age {ages:?}");
    Ok(())
}

/// Waits by a callback.
fn wait_by_callback(cx: &mut MaySleep) {
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
    unsafe { rcu::call_rcu(it.cast(), wake) };
    // SAFETY: as above; the callback touches `head` before this and `done` only shared.
    unsafe { &(*it).done }.wait(cx);
}

/// Waits by asking.
fn wait_by_polling(cx: &mut MaySleep) {
    let cookie = rcu::start_poll();
    while !rcu::poll(cookie) {
        sched::sleep_ns(cx, MS / 2);
    }
}

ktest! {
    /// `synchronize_rcu`.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_reader_outlasts_a_grace_period(t: &mut Test) {
        torture(t, "synchronize_rcu", synchronize_rcu)
    }

    /// `synchronize_rcu_expedited`.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_reader_outlasts_an_expedited_grace_period(t: &mut Test) {
        torture(t, "synchronize_rcu_expedited", synchronize_rcu_expedited)
    }

    /// `call_rcu`.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_reader_outlasts_a_callback(t: &mut Test) {
        torture(t, "call_rcu", wait_by_callback)
    }

    /// `start_poll` and `poll`.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_reader_outlasts_a_polled_grace_period(t: &mut Test) {
        torture(t, "start_poll", wait_by_polling)
    }

    /// `synchronize_rcu`, while CPUs go and come.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn no_reader_outlasts_a_grace_period_while_cpus_go_and_come(t: &mut Test) {
        torture_hotplug(t, "synchronize_rcu", synchronize_rcu)
    }

    /// `synchronize_rcu_expedited`, while CPUs go and come.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn no_reader_outlasts_an_expedited_grace_period_while_cpus_go_and_come(t: &mut Test) {
        torture_hotplug(t, "synchronize_rcu_expedited", synchronize_rcu_expedited)
    }

    /// `call_rcu`, while CPUs go and come and the callbacks move.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn no_reader_outlasts_a_callback_while_cpus_go_and_come(t: &mut Test) {
        torture_hotplug(t, "call_rcu", wait_by_callback)
    }
}
