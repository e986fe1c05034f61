//! Threads that get on only if the storeys below RCU keep their word: a wake-up, a timer, an item of work, an interrupt for
//! another CPU or a turn that is lost leaves one of them standing, while the others go on.
//!
//! | threads | what each step needs |
//! |---|---|
//! | ball | a wake-up by the partner: on two CPUs, on one, anywhere |
//! | taker | that a wake-up reaches one of several waiters that has use for it |
//! | alarm | a sleep, and timers that are due together; none is early |
//! | work | items on several CPUs; none runs twice at once |
//! | call | calls to other CPUs with and without an answer, and an `irq_work` there |
//! | mutex | its turn, with nobody else inside |
//! | waker | that a more urgent thread of its CPU has run when the wake-up returns |
//!
//! [`Watch`] finds a thread that stands. It goes by its own looks, of which it gets none while the machine does not run.
//!
//! Linux: `kernel/locking/locktorture.c` and `kernel/scftorture.c` do this for locks and for calls.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::{CpuId, clock, cpu};
use sched::{Completion, MigrateGuard, Mutex, Prio, Timer, WaitQueue, WorkItem, queue_work_on};
use sync::{IrqWork, LockClass, MaySleep, Rng, smp};

use crate::torture::control::{should_stop, stutter};
use crate::{Failure, ensure, ensure_eq};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// From look to look of the [`Watch`].
const LOOK_NS: u64 = 50 * MS;
/// Looks without a step after which a thread counts as standing: three seconds of a machine that runs.
const PATIENCE: u32 = 60;

/// Protects a counter that its holders change. Outermost.
static TURN_CLASS: LockClass = LockClass::new("test.bustle");

/// Who makes steps.
pub(crate) const POSTS: [&str; 9] =
    ["ball_apart", "ball_here", "ball_anywhere", "takers", "alarms", "work", "calls", "mutex", "waker"];
/// Their places there; the balls come first.
const TAKERS: usize = 3;
const ALARMS: usize = 4;
const WORK: usize = 5;
const CALLS: usize = 6;
const MUTEX: usize = 7;
const WAKER: usize = 8;

/// What all threads share.
struct Shared {
    /// Steps at each of [`POSTS`].
    steps: [AtomicU64; POSTS.len()],
    balls: [Ball; 3],
    tokens: Tokens,
    turn: Mutex<u64>,
    /// Turns as those counted who had them.
    turns: AtomicU64,
    /// Tells the urgent thread to run, or to end; how often it ran, and where it did last.
    go: Completion,
    over: AtomicBool,
    ran: AtomicU64,
    ran_on: AtomicUsize,
    /// Sleeps and timers that ended too early.
    early: AtomicU64,
    /// Times that somebody was not alone where it has to be.
    not_alone: AtomicU64,
    /// Calls that had not run when a later one to the same CPU did.
    unanswered: AtomicU64,
    /// Wake-ups after which the more urgent thread had not run.
    behind: AtomicU64,
}

/// Whose turn it is, and who waits for it.
struct Ball {
    turn: AtomicU64,
    queues: [WaitQueue; 2],
}

/// Tokens, of which there are two a round; whoever takes one waits for the next round.
struct Tokens {
    round: AtomicU64,
    free: AtomicUsize,
    next: WaitQueue,
    wanted: WaitQueue,
    taken: WaitQueue,
}

/// A timer that says when it was due.
#[repr(C)]
struct Alarm {
    /// First, so that the timer's function can get from it to this.
    timer: Timer,
    due_ns: AtomicU64,
    early: AtomicU64,
    /// What is to be told; lives as long as this.
    rung: AtomicPtr<Completion>,
}

impl Alarm {
    const fn new() -> Alarm {
        let rung = AtomicPtr::new(ptr::null_mut());
        Alarm { timer: Timer::new(ring), due_ns: AtomicU64::new(0), early: AtomicU64::new(0), rung }
    }
}

fn ring(timer: &Timer) {
    // SAFETY: only `Alarm::timer` has this function; it is its first field.
    let alarm: &Alarm = unsafe { &*ptr::from_ref(timer).cast() };
    alarm.early.fetch_add(u64::from(clock::now_ns() < alarm.due_ns.load(Relaxed)), Relaxed);
    // SAFETY: set before the timer was armed, and waited for by the thread that it belongs to.
    unsafe { &*alarm.rung.load(Relaxed) }.complete();
}

/// An item that notices when it runs twice at once.
#[repr(C)]
struct Item {
    /// First, as above.
    work: WorkItem,
    inside: AtomicU32,
}

static ITEMS: [Item; 3] = [const { Item { work: WorkItem::new(run_item), inside: AtomicU32::new(0) } }; 3];
static TWICE: AtomicU64 = AtomicU64::new(0);
static DONE: Completion = Completion::new();

fn run_item(work: &WorkItem, cx: &mut MaySleep) {
    // SAFETY: only `Item::work` has this function; it is its first field.
    let item: &Item = unsafe { &*ptr::from_ref(work).cast() };
    TWICE.fetch_add(u64::from(item.inside.fetch_add(1, Relaxed)), Relaxed);
    DONE.complete();
    // Whoever waits may queue it again by now.
    sched::sleep_ns(cx, MS / 2);
    item.inside.fetch_sub(1, Relaxed);
}

static CALLED: AtomicU64 = AtomicU64::new(0);
static THERE: IrqWork = IrqWork::new(|_| WAS_THERE.complete());
static WAS_THERE: Completion = Completion::new();

fn any_cpu(rng: &mut Rng) -> CpuId {
    let online = cpu::online();
    online.iter().nth(rng.below(online.count() as u64) as usize).unwrap_or(CpuId::BOOT)
}

impl Shared {
    fn new() -> Shared {
        let ball = || Ball { turn: AtomicU64::new(0), queues: [WaitQueue::new(), WaitQueue::new()] };
        Shared {
            steps: [const { AtomicU64::new(0) }; POSTS.len()],
            balls: [ball(), ball(), ball()],
            tokens: Tokens {
                round: AtomicU64::new(0),
                free: AtomicUsize::new(0),
                next: WaitQueue::new(),
                wanted: WaitQueue::new(),
                taken: WaitQueue::new(),
            },
            turn: Mutex::new(0, &TURN_CLASS),
            turns: AtomicU64::new(0),
            go: Completion::new(),
            over: AtomicBool::new(false),
            ran: AtomicU64::new(0),
            ran_on: AtomicUsize::new(0),
            early: AtomicU64::new(0),
            not_alone: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            behind: AtomicU64::new(0),
        }
    }

    fn step(&self, post: usize) {
        self.steps[post].fetch_add(1, Relaxed);
    }

    fn play(&self, cx: &mut MaySleep, which: usize, me: usize) {
        let Ball { turn, queues } = &self.balls[which];
        for mine in (me as u64..).step_by(2) {
            queues[me].wait_until(cx, || turn.load(Relaxed) == mine || should_stop());
            turn.store(mine + 1, Relaxed);
            queues[1 - me].wake_one();
            self.step(which);
            if stutter(cx) {
                break;
            }
        }
        // The partner may wait for a turn that is not played any more.
        queues[1 - me].wake_one();
    }

    fn give(&self, cx: &mut MaySleep, mut rng: Rng) {
        let Tokens { round, free, next, wanted, taken } = &self.tokens;
        while !stutter(cx) {
            round.fetch_add(1, Relaxed);
            next.wake_all();
            for _ in 0..2 {
                free.fetch_add(1, Relaxed);
                wanted.wake_one();
                if rng.chance(1, 2) {
                    sched::yield_now(cx);
                }
            }
            taken.wait_until(cx, || free.load(Relaxed) == 0 || should_stop());
            self.step(TAKERS);
        }
        next.wake_all();
        wanted.wake_all();
    }

    fn take(&self, cx: &mut MaySleep) {
        let Tokens { round, free, next, wanted, taken } = &self.tokens;
        while !stutter(cx) {
            let mut now = 0;
            wanted.wait_until(cx, || {
                now = round.load(Relaxed);
                free.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(1)).is_ok() || should_stop()
            });
            taken.wake_one();
            next.wait_until(cx, || round.load(Relaxed) != now || should_stop());
        }
        taken.wake_one();
    }

    fn ring(&self, cx: &mut MaySleep, mut rng: Rng) {
        let rung = Completion::new();
        let alarms = [const { Alarm::new() }; 4];
        while !stutter(cx) {
            let until = clock::now_ns() + rng.below(MS);
            sched::sleep_until(cx, until);
            self.early.fetch_add(u64::from(clock::now_ns() < until), Relaxed);
            let at = clock::now_ns() + rng.below(MS);
            for alarm in &alarms {
                alarm.due_ns.store(at, Relaxed);
                alarm.rung.store(ptr::from_ref(&rung).cast_mut(), Relaxed);
                // SAFETY: it stays in this frame, which ends after `cancel_sync`.
                unsafe { alarm.timer.arm_at_raw(at) };
            }
            alarms.iter().for_each(|_| rung.wait(cx));
            self.early.fetch_add(alarms.iter().map(|alarm| alarm.early.swap(0, Relaxed)).sum(), Relaxed);
            self.step(ALARMS);
        }
        // The last function may not have returned.
        alarms.iter().for_each(|alarm| _ = alarm.timer.cancel_sync());
    }

    fn work(&self, cx: &mut MaySleep, mut rng: Rng) {
        while !stutter(cx) {
            let queued = ITEMS.iter().filter(|item| queue_work_on(any_cpu(&mut rng), &item.work)).count();
            (0..queued).for_each(|_| DONE.wait(cx));
            self.not_alone.fetch_add(TWICE.swap(0, Relaxed), Relaxed);
            self.step(WORK);
        }
        ITEMS.iter().for_each(|item| item.work.flush(cx));
    }

    fn call(&self, cx: &mut MaySleep, mut rng: Rng) {
        while !stutter(cx) {
            let keeps = sched::keep_cpus(cx);
            let target = any_cpu(&mut rng);
            {
                // Calls of one CPU are answered in their order.
                let _here = MigrateGuard::new(&*cx);
                let before = CALLED.load(Relaxed);
                smp::call_on(target, |_| _ = CALLED.fetch_add(1, Relaxed), 0, false);
                let answer = smp::run_on(target, || CALLED.load(Relaxed));
                self.unanswered.fetch_add(u64::from(answer != Some(before + 1)), Relaxed);
            }
            if THERE.queue_on(target) {
                WAS_THERE.wait(cx);
            }
            drop(keeps);
            self.step(CALLS);
            sched::sleep_ns(cx, rng.below(MS / 2));
        }
    }

    fn take_turns(&self, cx: &mut MaySleep, mut rng: Rng) {
        while !stutter(cx) {
            {
                let mut turn = self.turn.lock(cx);
                let before = *turn;
                match rng.below(16) {
                    0 => sched::sleep_ns(cx, MS / 10),
                    1..4 => sched::yield_now(cx),
                    _ => {}
                }
                self.not_alone.fetch_add(u64::from(*turn != before), Relaxed);
                *turn = before + 1;
            }
            self.turns.fetch_add(1, Relaxed);
            self.step(MUTEX);
            if rng.chance(1, 8) {
                sched::sleep_ns(cx, rng.below(MS / 4));
            }
        }
    }

    fn be_urgent(&self, cx: &mut MaySleep) {
        while !self.over.load(Relaxed) {
            self.go.wait(cx);
            self.ran_on.store(cpu::current().index(), Relaxed);
            self.ran.fetch_add(1, Relaxed);
        }
    }

    fn wake_urgent(&self, cx: &mut MaySleep, mut rng: Rng) {
        for ran in 1.. {
            let (at_once, here) = {
                let _here = MigrateGuard::new(&*cx);
                self.go.complete();
                (self.ran.load(Relaxed) == ran, cpu::current().index())
            };
            while self.ran.load(Relaxed) < ran {
                sched::sleep_ns(cx, MS / 4);
            }
            // Elsewhere it owes nothing to this CPU: one of the two was moved.
            self.behind.fetch_add(u64::from(!at_once && self.ran_on.load(Relaxed) == here), Relaxed);
            self.step(WAKER);
            // A pause is for this one alone: the other has to be there whenever it is woken.
            if stutter(cx) {
                break;
            }
            sched::sleep_ns(cx, rng.below(MS / 4));
        }
        self.over.store(true, Relaxed);
        self.go.complete();
    }
}

/// The life of a thread.
pub(crate) type Life = Box<dyn FnOnce(&mut MaySleep) + Send>;

/// The threads, as seen by who has started them and joins them.
#[derive(Clone)]
pub(crate) struct Bustle(Arc<Shared>);

impl Bustle {
    /// Starts them by `spawn`. They end when [`control`](crate::torture::control) says so. One at a time.
    ///
    /// # Errors
    /// Those of `spawn`.
    pub(crate) fn start(
        seed: u64,
        mut spawn: impl FnMut(Prio, Option<CpuId>, Life) -> Result<(), Failure>,
    ) -> Result<Bustle, Failure> {
        let shared = Arc::new(Shared::new());
        let [a, b] = [0, 1].map(|n| cpu::online().iter().nth(n % cpu::online_count()));
        for (which, pair) in [[a, b], [b, b], [None, None]].into_iter().enumerate() {
            for (me, on) in pair.into_iter().enumerate() {
                let shared = shared.clone();
                spawn(Prio::NORMAL, on, Box::new(move |cx| shared.play(cx, which, me)))?;
            }
        }
        for _ in 0..3 {
            let shared = shared.clone();
            spawn(Prio::NORMAL, None, Box::new(move |cx| shared.take(cx)))?;
        }
        let urgent = shared.clone();
        spawn(Prio::HIGH, a, Box::new(move |cx| urgent.be_urgent(cx)))?;
        let turns = [Shared::take_turns as fn(&Shared, &mut MaySleep, Rng); 3];
        let others = [Shared::give, Shared::ring, Shared::ring, Shared::work, Shared::call];
        let lives = [(a, Shared::wake_urgent as fn(&Shared, &mut MaySleep, Rng))].into_iter();
        for (n, (on, life)) in
            lives.chain(turns.map(|life| (None, life))).chain(others.map(|life| (None, life as _))).enumerate()
        {
            let (shared, rng) = (shared.clone(), Rng::stream(seed, n as u64));
            spawn(Prio::NORMAL, on, Box::new(move |cx| life(&shared, cx, rng)))?;
        }
        Ok(Bustle(shared))
    }

    /// What has gone wrong without anybody standing: each has to be 0.
    pub(crate) fn errors(&self) -> [(&'static str, u64); 4] {
        let Shared { early, not_alone, unanswered, behind, .. } = &*self.0;
        [("early", early), ("not_alone", not_alone), ("unanswered", unanswered), ("behind", behind)]
            .map(|(name, count)| (name, count.load(Relaxed)))
    }

    /// Steps at each of [`POSTS`].
    pub(crate) fn steps(&self) -> impl Iterator<Item = u64> {
        self.0.steps.iter().map(|steps| steps.load(Relaxed))
    }

    /// The last look, when all threads have been joined.
    ///
    /// # Errors
    /// Somebody's turn in the mutex was lost, or what [`Bustle::errors`] counts.
    pub(crate) fn finish(&self, cx: &mut MaySleep) -> Result<(), Failure> {
        let turns = self.0.turns.load(Relaxed);
        ensure_eq!(*self.0.turn.lock(cx), turns, "what the mutex protects, and those who had it");
        self.check()
    }

    fn check(&self) -> Result<(), Failure> {
        let errors = self.errors();
        ensure!(errors.iter().all(|(_, count)| *count == 0), "{errors:?}");
        Ok(())
    }
}

/// Looks whether everybody gets on.
pub(crate) struct Watch {
    /// Steps at each of [`POSTS`], and looks since they were other.
    seen: [(u64, u32); POSTS.len()],
}

impl Watch {
    pub(crate) fn new() -> Watch {
        Watch { seen: [(0, 0); POSTS.len()] }
    }

    /// Waits for the next look, and looks.
    ///
    /// Context: thread that may sleep.
    pub(crate) fn look(&mut self, bustle: &Bustle, cx: &mut MaySleep) -> Result<(), Failure> {
        sched::sleep_ns(cx, LOOK_NS);
        for (seen, steps) in self.seen.iter_mut().zip(bustle.steps()) {
            *seen = if steps == seen.0 { (steps, seen.1 + 1) } else { (steps, 0) };
        }
        for (post, &(steps, looks)) in POSTS.iter().zip(&self.seen) {
            ensure!(looks < PATIENCE, "{post} made {steps} steps and then none for {looks} looks: {:?}", self.seen);
        }
        bustle.check()
    }
}
