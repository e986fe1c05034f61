//! The pipe: does a reader ever hold an element for longer than a grace period after it was replaced?
//!
//! One updater replaces the current element, waits for a grace period, and then makes every replaced element one stage
//! older: a stage is a whole grace period since the element was replaced. A reader notes the stage of its element at the
//! *end* of its section. 0 is right; 1 or more means that a grace period began and ended inside the section. The count
//! says how bad it is, and after ten stages an element is freed. (rcutorture makes the first step when it replaces,
//! so its 2 is the 1 here.)
//!
//! One kind of grace period at a time, because a good one of either kind hides a bad one of the other. Readers run
//! one to a CPU, and three to a CPU; sections are short, with preemption or interrupts off at times, and every 64th is
//! longer than a slice. Where there are three, a thread of higher priority wakes on each CPU again and again, and preempts
//! readers inside their sections, at times for longer than a grace period; where there is one, it is mostly the tick that
//! finds them there. One such thread, or all, also have CPUs read in hard interrupts, soft interrupts and NMIs.
//!
//! A grace period that does not end is a failure of its own: readers get on, and the updater does not ([`STUCK_NS`]). A reader
//! that has put its report off waits at times for the grace period that is under way, so that a lost one stays lost.
//!
//! Modelled on the idea of rcutorture (Linux kernel/rcu/rcutorture.c).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use arch::{clock, cpu, ipi, irq};
use rcu::{Rcu, RcuBox, Retired, rcu_barrier, read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sched::softirq::{self, Softirq};
use sched::{Completion, Prio};
use sync::callback::CallbackHead;
use sync::nmi::NmiHandler;
use sync::{ATOMIC, IrqGuard, MaySleep, Once, PreemptGuard, Rng};

use crate::suites::sched_softirq::call_in_handler;
use crate::toggle::{others, toggle_all};
use crate::{Failure, Test, ensure, ktest};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// Stages of the pipe.
const STAGES: usize = 10;
/// How long each kind of grace period is tortured with each number of readers.
const EACH_NS: u64 = 150 * MS;
/// The same where there is time.
const LONG_NS: u64 = 3_000 * MS;
/// And longer, until it has come to this many grace periods and sections of threads, and a hard interrupt: a host may be slow.
const MIN_TURNS: u64 = 12;
const MIN_SECTIONS: u64 = 100;
/// A grace period that has not ended after so long never will, if readers have taken [`STUCK_STEPS`] steps meanwhile.
const STUCK_NS: u64 = 4_000 * MS;
/// Sections of threads and sleeps between them; a host that is busy elsewhere lets readers get on no more than updaters.
const STUCK_STEPS: u64 = 2_000;

/// What goes on beside readers and updater.
type Meanwhile = fn(&mut Test<'_>) -> Result<(), Failure>;

/// Where a section runs.
#[derive(Copy, Clone)]
enum Place {
    Thread = 0,
    Softirq = 1,
    Hardirq = 2,
    Nmi = 3,
}

struct Pipe {
    /// The element that readers find: its stage.
    current: Rcu<Arc<AtomicUsize>>,
    stop: AtomicBool,
    /// The updater goes on until this is set.
    may_end: AtomicBool,
    /// Grace periods that the updater has waited for.
    turns: AtomicU64,
    /// Times that a reader found its grace period not over and slept on.
    rests: AtomicU64,
    /// The updater is at its end.
    updated: Completion,
    begun_ns: u64,
    /// How long the updater goes on at least.
    lasts_ns: u64,
    /// When the first reader held an element for too long, after the begin, in nanoseconds.
    broken_ns: AtomicU64,
    /// Sections by their place and by the stage of their element at their end.
    ages: [[AtomicU64; STAGES + 1]; 4],
}

impl Pipe {
    fn new(lasts_ns: u64) -> Pipe {
        Pipe {
            current: Rcu::new(RcuBox::new(Arc::new(AtomicUsize::new(0)))),
            stop: AtomicBool::new(false),
            may_end: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            rests: AtomicU64::new(0),
            updated: Completion::new(),
            begun_ns: clock::now_ns(),
            lasts_ns,
            broken_ns: AtomicU64::new(0),
            ages: [const { [const { AtomicU64::new(0) }; STAGES + 1] }; 4],
        }
    }

    /// A section of `ns`; `at_end` goes on until the caller drops it.
    fn section<T>(&self, place: Place, ns: u64, at_end: impl FnOnce() -> T) -> T {
        let guard = read_lock(ATOMIC);
        let stage = self.current.read(&guard).expect("never null");
        let end = clock::now_ns() + ns;
        while clock::now_ns() < end {
            irq::relax();
        }
        let age = stage.load(Ordering::Relaxed).min(STAGES);
        let goes_on = at_end();
        drop(guard);
        self.ages[place as usize][age].fetch_add(1, Ordering::Relaxed);
        if age != 0 {
            let after = (clock::now_ns() - self.begun_ns).max(1);
            let _first = self.broken_ns.compare_exchange(0, after, Ordering::Relaxed, Ordering::Relaxed);
        }
        goes_on
    }

    fn read(&self, mut rng: Rng, cx: &mut MaySleep) {
        while !self.stop.load(Ordering::Relaxed) {
            let dice = rng.next_u64();
            let long = dice.is_multiple_of(64);
            let no_preemption = (!long && dice & 0x300 == 0).then(|| PreemptGuard::new(ATOMIC));
            let nested = (dice & 0x1000 == 0).then(|| read_lock(ATOMIC));
            let no_interrupts = self.section(Place::Thread, if long { 20 * MS } else { dice >> 52 }, || {
                drop(nested);
                (dice & 0xe000 == 0).then(|| IrqGuard::new(ATOMIC))
            });
            let put_off = no_interrupts.is_some();
            drop(no_interrupts);
            drop(no_preemption);
            if put_off && dice & 0x7_0000 == 0 {
                self.outlast_a_grace_period(cx);
            }
        }
    }

    /// Waits, outside of sections, until the grace period that is under way is over.
    fn outlast_a_grace_period(&self, cx: &mut MaySleep) {
        let now = self.turns.load(Ordering::Relaxed);
        while self.turns.load(Ordering::Relaxed) < now + 2 && !self.stop.load(Ordering::Relaxed) {
            sched::sleep_ns(cx, MS / 4);
            self.rests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Preempts the readers of this CPU, and has others read in interrupts.
    fn prod(&self, mut rng: Rng, cx: &mut MaySleep) {
        while !self.stop.load(Ordering::Relaxed) {
            sched::sleep_ns(cx, 50_000 + rng.below(MS));
            if rng.chance(1, 4) {
                // So long that a grace period could be over before the reader goes on.
                let end = clock::now_ns() + rng.below(12 * MS);
                while clock::now_ns() < end {
                    irq::relax();
                    sched::cond_resched(cx);
                }
            }
            let _stay = sched::keep_cpus(cx);
            let online = cpu::online();
            let target = online.iter().nth(rng.below(online.count() as u64) as usize);
            if let Some(target) = target.filter(|_| rng.chance(1, 2)) {
                sync::smp::call_on(target, in_hardirq, 0, false);
                ipi::send_nmi(target);
            }
        }
    }

    /// Returns once the updater may stop.
    fn update(&self, cx: &mut MaySleep, wait: fn(&mut MaySleep)) {
        let fresh = || Arc::new(AtomicUsize::new(0));
        let swap =
            |stage: &Arc<AtomicUsize>| self.current.replace(Some(RcuBox::new(stage.clone()))).expect("never null");
        let mut current = fresh();
        swap(&current).retire();
        let mut replaced: Vec<(Retired<Arc<AtomicUsize>>, Arc<AtomicUsize>)> = Vec::new();
        while self.goes_on() {
            let next = fresh();
            replaced.push((swap(&next), core::mem::replace(&mut current, next)));
            wait(cx);
            self.turns.fetch_add(1, Ordering::Relaxed);
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
        self.updated.complete();
    }

    fn goes_on(&self) -> bool {
        let enough = clock::now_ns() - self.begun_ns >= self.lasts_ns
            && self.turns.load(Ordering::Relaxed) >= MIN_TURNS
            && self.sections(Place::Thread) >= MIN_SECTIONS
            && self.sections(Place::Hardirq) > 0;
        self.broken_ns.load(Ordering::Relaxed) == 0 && !(enough && self.may_end.load(Ordering::Relaxed))
    }

    fn by_age(&self, place: Place) -> impl Iterator<Item = u64> {
        self.ages[place as usize].iter().map(|age| age.load(Ordering::Relaxed))
    }

    fn sections(&self, place: Place) -> u64 {
        self.by_age(place).sum()
    }

    /// Waits for the updater; false if a grace period does not end.
    fn watch(&self, cx: &mut MaySleep) -> bool {
        let steps = || self.sections(Place::Thread) + self.rests.load(Ordering::Relaxed);
        let (mut turns, mut since) = (0, (clock::now_ns(), steps()));
        while !self.updated.wait_timeout(cx, 50 * MS) {
            let now = (self.turns.load(Ordering::Relaxed), clock::now_ns(), steps());
            if now.0 != turns {
                (turns, since) = (now.0, (now.1, now.2));
            } else if now.1 - since.0 > STUCK_NS && now.2 - since.1 > STUCK_STEPS {
                return false;
            }
        }
        true
    }
}

/// The pipe that interrupts read, or null. Who clears it waits for them.
static INTERRUPTED: AtomicPtr<Pipe> = AtomicPtr::new(ptr::null_mut());
static NMI_HANDLER: NmiHandler = NmiHandler::new("rcu-torture", in_nmi);

fn read_here(place: Place) -> bool {
    // SAFETY: null, or the pipe of a test that ends only after all interrupts that may have found it here.
    let pipe = unsafe { INTERRUPTED.load(Ordering::Acquire).as_ref() };
    if let Some(pipe) = pipe {
        pipe.section(place, 2_000, || ());
    }
    pipe.is_some()
}

fn in_hardirq(_: usize) {
    read_here(Place::Hardirq);
    softirq::raise(Softirq::Test);
}

fn in_softirq() {
    read_here(Place::Softirq);
}

fn in_nmi(_: &mut arch::trap::TrapFrame) -> bool {
    read_here(Place::Nmi)
}

/// Has interrupts read `pipe` while `body` runs.
fn with_interrupts<T>(pipe: &Arc<Pipe>, cx: &mut MaySleep, body: impl FnOnce(&mut MaySleep) -> T) -> T {
    static REGISTERED: Once<()> = Once::new();
    REGISTERED.call_once(|| sync::nmi::register(&NMI_HANDLER));
    call_in_handler(Some(in_softirq));
    INTERRUPTED.store(Arc::as_ptr(pipe).cast_mut(), Ordering::Release);
    let result = body(cx);
    INTERRUPTED.store(ptr::null_mut(), Ordering::Release);
    call_in_handler(None);
    // Whoever found the pipe did so with interrupts off, in a softirq or in an NMI on top; each CPU has been through that.
    sync::smp::call_all(|_| (), 0, true);
    result
}

fn torture(t: &mut Test<'_>, name: &str, lasts_ns: u64, wait: fn(&mut MaySleep)) -> Result<(), Failure> {
    // Above the readers, so that it gets its turns among many; but beside them where it would leave them no CPU.
    let prio = if cpu::online_count() > 1 { Prio::HIGH } else { Prio::NORMAL };
    [1, 3].into_iter().try_for_each(|per_cpu| torture_with(t, name, (per_cpu, prio, lasts_ns), wait, |_| Ok(())))
}

/// While every CPU goes and comes.
fn torture_hotplug(t: &mut Test<'_>, name: &str, wait: fn(&mut MaySleep)) -> Result<(), Failure> {
    others(t.cx)?;
    torture_with(t, name, (1, Prio::NORMAL, EACH_NS), wait, |t| toggle_all(&others(t.cx)?, &mut t.rng, t.cx))
}

fn torture_with(
    t: &mut Test<'_>,
    name: &str,
    (per_cpu, prio, lasts_ns): (usize, Prio, u64),
    wait: fn(&mut MaySleep),
    meanwhile: Meanwhile,
) -> Result<(), Failure> {
    let failed = |error| crate::__failed!("{error}");
    let pipe = Arc::new(Pipe::new(lasts_ns));
    let seed = t.seed;
    let mut threads = Vec::new();
    for (i, on) in cpu::online().iter().cycle().take(per_cpu * cpu::online_count()).enumerate() {
        let (pipe, rng) = (pipe.clone(), Rng::new(seed ^ i as u64));
        // Some may move from CPU to CPU.
        let on = (i % 4 != 3).then_some(on);
        threads
            .push(sched::spawn(t.cx, "pipe reader", Prio::NORMAL, on, move |cx| pipe.read(rng, cx)).map_err(failed)?);
    }
    let prodders = if per_cpu == 1 { 1 } else { cpu::online_count() };
    for (i, on) in cpu::online().iter().take(prodders).enumerate() {
        let (pipe, rng) = (pipe.clone(), Rng::new(!seed ^ i as u64));
        threads.push(
            sched::spawn(t.cx, "pipe prodder", Prio::HIGH, Some(on), move |cx| pipe.prod(rng, cx)).map_err(failed)?,
        );
    }
    let theirs = pipe.clone();
    let updater = sched::spawn(t.cx, "pipe updater", prio, None, move |cx| theirs.update(cx, wait)).map_err(failed)?;
    let result = meanwhile(t);
    pipe.may_end.store(true, Ordering::Relaxed);
    let ends = with_interrupts(&pipe, t.cx, |cx| {
        let ends = pipe.watch(cx);
        pipe.stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join(cx));
        ends
    });
    let turns = pipe.turns.load(Ordering::Relaxed);
    // The updater, and what it waits for, are left as they are.
    ensure!(ends, "RCU is broken: after {turns} grace periods one does not end, and readers get on");
    updater.join(t.cx);
    rcu_barrier(t.cx);
    result?;
    let [threads, softirqs, hardirqs, nmis] =
        [Place::Thread, Place::Softirq, Place::Hardirq, Place::Nmi].map(|place| pipe.by_age(place).collect::<Vec<_>>());
    t.note(format_args!(
        "{name}, {per_cpu} readers a CPU: {turns} grace periods, sections by age {threads:?}, {} in softirqs, {} in hard \
         interrupts, {} in NMIs",
        softirqs[0], hardirqs[0], nmis[0]
    ));
    let broken_ms = pipe.broken_ns.load(Ordering::Relaxed) / MS;
    let all = [&threads, &softirqs, &hardirqs, &nmis];
    ensure!(
        all.iter().all(|ages| ages[1..].iter().all(|&sections| sections == 0)),
        "RCU is broken, as seen after {broken_ms} ms: sections by age in threads, softirqs, hard interrupts, NMIs {all:?}"
    );
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
        torture(t, "synchronize_rcu", 2 * EACH_NS, synchronize_rcu)
    }

    /// `synchronize_rcu_expedited`.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_reader_outlasts_an_expedited_grace_period(t: &mut Test) {
        torture(t, "synchronize_rcu_expedited", EACH_NS, synchronize_rcu_expedited)
    }

    /// `call_rcu`.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_reader_outlasts_a_callback(t: &mut Test) {
        torture(t, "call_rcu", EACH_NS, wait_by_callback)
    }

    /// `start_poll` and `poll`.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_reader_outlasts_a_polled_grace_period(t: &mut Test) {
        torture(t, "start_poll", EACH_NS, wait_by_polling)
    }

    /// Each of them for longer.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn no_reader_outlasts_grace_periods_of_any_kind_in_the_long_run(t: &mut Test) {
        torture(t, "synchronize_rcu", LONG_NS, synchronize_rcu)?;
        torture(t, "synchronize_rcu_expedited", LONG_NS, synchronize_rcu_expedited)?;
        torture(t, "call_rcu", LONG_NS, wait_by_callback)?;
        torture(t, "start_poll", LONG_NS, wait_by_polling)
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
