//! Tasks RCU: threads that have not passed a voluntary switch delay a grace period, nothing else does.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::{CpuId, clock, cpu, irq};
use rcu::{
    CallbackHead, call_rcu_tasks, cond_resched_tasks, rcu_barrier_tasks, synchronize_rcu_tasks,
    synchronize_rcu_tasks_rude,
};
use sched::{JoinHandle, Prio};
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, Rng};

use crate::toggle::{MS, others, toggle};
use crate::{Failure, Test, ensure, ensure_eq, ktest, skip};

/// The bit of [`sched::ThreadRcu::holdout`] that says that a grace period waits for the thread.
const WANTED: u64 = 1 << 1;
/// How long a grace period is watched that must not end.
const WATCHED_NS: u64 = 60 * MS;

fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    on: Option<CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<JoinHandle<T>, Failure> {
    sched::spawn(cx, "tasks test", Prio::NORMAL, on, f).map_err(|error| crate::__failed!("{error}"))
}

/// Sleeps until `cond`, at most 20 s; true if it came.
fn soon(cx: &mut MaySleep, cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS);
    }
    cond()
}

/// The CPU of the busy threads: the last, which is not the runner's where there are two.
fn busy_cpu() -> Option<CpuId> {
    cpu::online().iter().last()
}

/// Has the thread on [`busy_cpu`] lose its CPU for a while, so long that somebody looks at it meanwhile.
fn preempt(cx: &mut MaySleep) -> Result<(), Failure> {
    let rival = sched::spawn(cx, "rival", Prio::HIGH, busy_cpu(), |_| clock::udelay(5_000));
    rival.map_err(|error| crate::__failed!("{error}"))?.join(cx);
    Ok(())
}

/// A thread that waits for a grace period, and whether it has come.
fn waiter(cx: &mut MaySleep, wait: fn(&mut MaySleep)) -> Result<(JoinHandle<()>, Arc<AtomicBool>), Failure> {
    let over = Arc::new(AtomicBool::new(false));
    let theirs = over.clone();
    let thread = spawn(cx, None, move |cx| {
        wait(cx);
        theirs.store(true, Ordering::Release);
    })?;
    Ok((thread, over))
}

/// A thread that computes until it is told to `end`, by sleeping or so, and then computes on until it is told to stop.
struct Busy {
    step: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Busy {
    fn start(cx: &mut MaySleep, end: fn(&mut MaySleep)) -> Result<Busy, Failure> {
        let step = Arc::new(AtomicUsize::new(0));
        let theirs = step.clone();
        let thread = spawn(cx, busy_cpu(), move |cx| {
            theirs.store(1, Ordering::SeqCst);
            let wait_for = |step| {
                while theirs.load(Ordering::SeqCst) < step {
                    irq::relax();
                }
            };
            wait_for(2);
            end(cx);
            wait_for(3);
        })?;
        soon(cx, || step.load(Ordering::SeqCst) == 1);
        Ok(Busy { step, thread })
    }

    fn reach(&self, step: usize) {
        self.step.store(step, Ordering::SeqCst);
    }
}

/// A thread that is preempted again and again, but does not switch voluntarily, holds up a grace period until it passes
/// `end`, though it goes on computing after.
fn held_up_until(t: &mut Test<'_>, end: fn(&mut MaySleep)) -> Result<(), Failure> {
    let busy = Busy::start(t.cx, end)?;
    preempt(t.cx)?;
    let (waiter, over) = waiter(t.cx, synchronize_rcu_tasks)?;
    // Else it would come to wait for what the thread does after its `end`.
    let holdout = &busy.thread.thread().rcu.holdout;
    soon(t.cx, || holdout.load(Ordering::Relaxed) & WANTED != 0 || over.load(Ordering::Acquire));
    let until = clock::now_ns() + WATCHED_NS;
    while clock::now_ns() < until {
        preempt(t.cx)?;
    }
    let early = over.load(Ordering::Acquire);
    let preempted = busy.thread.thread().involuntary_switches();
    busy.reach(2);
    let came = soon(t.cx, || over.load(Ordering::Acquire));
    busy.reach(3);
    busy.thread.join(t.cx);
    waiter.join(t.cx);
    ensure!(!early, "a thread that was only preempted was not waited for");
    ensure!(preempted > 0, "the thread kept its CPU");
    ensure!(came, "the grace period did not end");
    Ok(())
}

/// A callback that notes its number.
#[repr(C)]
struct Numbered {
    head: CallbackHead,
    number: usize,
    /// The number that is due.
    due: Arc<AtomicUsize>,
    /// Callbacks that came out of turn.
    wrong: Arc<AtomicUsize>,
}

/// # Safety
/// `head` is that of a leaked `Numbered`.
unsafe fn note(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head is the first field.
    let it = unsafe { Box::from_raw(head.cast::<Numbered>()) };
    if it.due.fetch_add(1, Ordering::Relaxed) != it.number {
        it.wrong.fetch_add(1, Ordering::Relaxed);
    }
}

/// Stages of the pipe's slots; see `rcu_torture`.
const SLOTS: usize = 64;
/// Sections that the readers come to at least.
const MIN_SECTIONS: u64 = 100;

/// The pipe: an element is a slot, which is used again when it is 10 grace periods old.
struct Pipe {
    current: AtomicUsize,
    /// Grace periods since each slot was replaced.
    ages: [AtomicUsize; SLOTS],
    stop: AtomicBool,
    sections: AtomicU64,
    too_old: AtomicU64,
}

impl Pipe {
    /// A section is what lies between two voluntary switches. Nothing marks it.
    fn read(&self, mut rng: Rng, cx: &mut MaySleep) {
        while !self.stop.load(Ordering::Relaxed) {
            let slot = self.current.load(Ordering::Acquire);
            let dice = rng.next_u64();
            let end = clock::now_ns() + if dice.is_multiple_of(64) { 12 * MS } else { dice >> 50 };
            while clock::now_ns() < end {
                irq::relax();
            }
            let too_old = self.ages[slot].load(Ordering::Relaxed) != 0;
            self.too_old.fetch_add(too_old.into(), Ordering::Relaxed);
            self.sections.fetch_add(1, Ordering::Relaxed);
            match dice >> 8 & 3 {
                0 => sched::yield_now(cx),
                1 => sched::sleep_ns(cx, 1_000),
                _ => cond_resched_tasks(cx),
            }
        }
    }

    /// Goes on for so many grace periods at least, and until the readers have done something. Returns how many it were.
    fn update(&self, turns: usize, cx: &mut MaySleep) -> usize {
        let mut turn = 0;
        while turn < turns || self.sections.load(Ordering::Relaxed) < MIN_SECTIONS {
            let next = (turn + 1) % SLOTS;
            self.ages[next].store(0, Ordering::Relaxed);
            self.current.store(next, Ordering::Release);
            synchronize_rcu_tasks(cx);
            for back in 0..10.min(turn + 1) {
                self.ages[(turn - back) % SLOTS].fetch_add(1, Ordering::Relaxed);
            }
            turn += 1;
        }
        turn
    }
}

/// Readers on every CPU, three for each, most of which are preempted most of the time.
fn torture(t: &mut Test<'_>, turns: usize) -> Result<(), Failure> {
    let pipe = Arc::new(Pipe {
        current: AtomicUsize::new(0),
        ages: [const { AtomicUsize::new(0) }; SLOTS],
        stop: AtomicBool::new(false),
        sections: AtomicU64::new(0),
        too_old: AtomicU64::new(0),
    });
    let mut readers = Vec::new();
    for (i, on) in cpu::online().iter().cycle().take(3 * cpu::online_count()).enumerate() {
        let (pipe, rng) = (pipe.clone(), Rng::new(t.seed ^ i as u64));
        let on = (i % 3 != 2).then_some(on);
        readers.push(spawn(t.cx, on, move |cx| pipe.read(rng, cx))?);
    }
    let turns = pipe.update(turns, t.cx);
    pipe.stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join(t.cx));
    let (sections, too_old) = (pipe.sections.load(Ordering::Relaxed), pipe.too_old.load(Ordering::Relaxed));
    t.note(format_args!("{turns} grace periods, {sections} sections"));
    ensure_eq!(too_old, 0);
    Ok(())
}

ktest! {
    /// Until it sleeps.
    #[tags(race)]
    fn a_thread_that_is_only_preempted_holds_it_up_until_it_sleeps(t: &mut Test) {
        held_up_until(t, |cx| sched::sleep_ns(cx, MS))
    }

    /// Until it yields, though nobody else may want its CPU.
    #[tags(race)]
    fn a_thread_that_is_only_preempted_holds_it_up_until_it_yields(t: &mut Test) {
        held_up_until(t, sched::yield_now)
    }

    /// Until it says so.
    #[tags(race)]
    fn a_thread_that_is_only_preempted_holds_it_up_until_it_says_so(t: &mut Test) {
        held_up_until(t, cond_resched_tasks)
    }

    /// Until it switches at all: one that keeps its CPU all the time is not mistaken for one that sleeps.
    #[tags(race)]
    fn a_thread_that_was_never_preempted_holds_it_up(t: &mut Test) {
        if cpu::online_count() < 2 {
            skip!("needs two CPUs");
        }
        let busy = Busy::start(t.cx, |cx| sched::sleep_ns(cx, MS))?;
        let (waiter, over) = waiter(t.cx, synchronize_rcu_tasks)?;
        sched::sleep_ns(t.cx, WATCHED_NS);
        let early = over.load(Ordering::Acquire);
        busy.reach(3);
        busy.thread.join(t.cx);
        waiter.join(t.cx);
        ensure!(!early);
        Ok(())
    }

    /// Callbacks run in the order in which they were queued, from whatever context, and the barrier waits for them.
    fn callbacks_run_in_order_and_the_barrier_waits_for_them(t: &mut Test) {
        const COUNT: usize = 300;
        let (due, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for number in 0..COUNT {
            let it = Numbered { head: CallbackHead::new(), number, due: due.clone(), wrong: wrong.clone() };
            let head = Box::into_raw(Box::new(it)).cast();
            // SAFETY: leaked to the callback.
            let queue = || unsafe { call_rcu_tasks(head, note) };
            match number % 3 {
                0 => queue(),
                1 => {
                    let _off = IrqGuard::new(ATOMIC);
                    queue();
                }
                _ => {
                    let _off = IrqGuard::new(ATOMIC);
                    sync::nmi::as_nmi(queue);
                }
            }
            if number == COUNT / 2 {
                sched::sleep_ns(t.cx, 5 * MS);
            }
        }
        rcu_barrier_tasks(t.cx);
        ensure_eq!((due.load(Ordering::Relaxed), wrong.load(Ordering::Relaxed)), (COUNT, 0));
        Ok(())
    }

    /// Threads that come and end all the while neither hold it up nor are lost from sight.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn grace_periods_end_while_threads_come_and_go(t: &mut Test) {
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let theirs = (stop.clone(), ended.clone());
        let spawner = spawn(t.cx, None, move |cx| {
            while !theirs.0.load(Ordering::Relaxed) {
                let child = sched::spawn(cx, "child", Prio::NORMAL, None, |_| clock::udelay(50));
                theirs.1.fetch_add(child.map(|child| child.join(cx)).is_ok().into(), Ordering::Relaxed);
            }
        })?;
        for turn in 1.. {
            synchronize_rcu_tasks(t.cx);
            if turn >= 4 && ended.load(Ordering::Relaxed) >= 4 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        spawner.join(t.cx);
        Ok(())
    }

    /// The pipe.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_thread_outlasts_a_grace_period_without_a_voluntary_switch(t: &mut Test) {
        torture(t, 4)
    }

    /// The pipe, for longer.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn no_thread_outlasts_many_grace_periods_without_a_voluntary_switch(t: &mut Test) {
        torture(t, 100)
    }

    /// While CPUs go and come, and preempted threads move.
    #[tags(race, slow)]
    #[budget_ms(120_000)]
    fn grace_periods_end_while_cpus_go_and_come(t: &mut Test) {
        let cpus = others(t.cx)?;
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = stop.clone();
        let waiter = spawn(t.cx, None, move |cx| {
            let mut ended = 0_u64;
            while !theirs.load(Ordering::Relaxed) {
                synchronize_rcu_tasks(cx);
                synchronize_rcu_tasks_rude(cx);
                ended += 1;
            }
            ended
        })?;
        let toggled = toggle(&cpus, 10, &mut t.rng, t.cx);
        stop.store(true, Ordering::Relaxed);
        ensure!(waiter.join(t.cx) > 0);
        toggled
    }

    /// A Tasks grace period interrupts no CPU because it idles.
    #[budget_ms(60_000)]
    fn idle_cpus_are_left_alone(t: &mut Test) {
        if cpu::online_count() < 7 {
            skip!("needs seven CPUs: one asks, three run threads, the others idle");
        }
        synchronize_rcu_tasks(t.cx);
        sched::sleep_ns(t.cx, 200 * MS);
        let of_cpu = |cpu| (0..=255).map(|vector| sync::irq::count(cpu, vector)).sum::<u64>();
        let before: Vec<_> = cpu::online().iter().map(of_cpu).collect();
        for _ in 0..5 {
            synchronize_rcu_tasks(t.cx);
        }
        let disturbed = cpu::online().iter().map(of_cpu).zip(before).filter(|(now, before)| now - before >= 8).count();
        ensure!(disturbed <= 4, "{disturbed} CPUs took part");
        Ok(())
    }

    /// Rude waits for sections with preemption off, and for nothing else: not for a thread that is preempted.
    #[tags(race)]
    fn rude_waits_for_sections_with_preemption_off_alone(t: &mut Test) {
        if cpu::online_count() < 2 {
            skip!("needs two CPUs");
        }
        let busy = Busy::start(t.cx, |_| ())?;
        preempt(t.cx)?;
        synchronize_rcu_tasks_rude(t.cx);
        busy.reach(3);
        busy.thread.join(t.cx);
        let step = Arc::new(AtomicUsize::new(0));
        let theirs = step.clone();
        let section = spawn(t.cx, busy_cpu(), move |_| {
            let _off = PreemptGuard::new(ATOMIC);
            theirs.store(1, Ordering::SeqCst);
            while theirs.load(Ordering::SeqCst) < 2 {
                irq::relax();
            }
        })?;
        ensure!(soon(t.cx, || step.load(Ordering::SeqCst) == 1));
        let (waiter, over) = waiter(t.cx, synchronize_rcu_tasks_rude)?;
        sched::sleep_ns(t.cx, WATCHED_NS);
        let early = over.load(Ordering::Acquire);
        step.store(2, Ordering::SeqCst);
        section.join(t.cx);
        waiter.join(t.cx);
        ensure!(!early, "a section with preemption off was not waited for");
        Ok(())
    }

    /// Trace waits for its own readers, though they sleep, and for those of RCU; and so do its callbacks.
    #[tags(race)]
    fn trace_waits_for_its_readers_and_for_those_of_rcu(t: &mut Test) {
        for sleeps in [true, false] {
            let (inside, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let theirs = (inside.clone(), last.clone());
            let reader = spawn(t.cx, busy_cpu(), move |cx| {
                let until = clock::now_ns() + WATCHED_NS;
                let trace = sleeps.then(rcu::read_lock_tasks_trace);
                let plain = (!sleeps).then(|| rcu::read_lock(ATOMIC));
                theirs.0.store(true, Ordering::Release);
                while clock::now_ns() < until {
                    match sleeps {
                        true => sched::sleep_ns(cx, 10 * MS),
                        false => irq::relax(),
                    }
                }
                theirs.1.store(true, Ordering::Release);
                drop((trace, plain));
            })?;
            ensure!(soon(t.cx, || inside.load(Ordering::Acquire)));
            rcu::synchronize_rcu_tasks_trace(t.cx);
            let waited = last.load(Ordering::Acquire);
            reader.join(t.cx);
            ensure!(waited, "a reader was not waited for; it sleeps: {sleeps}");
        }
        let (due, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let it = Numbered { head: CallbackHead::new(), number: 0, due: due.clone(), wrong };
        // SAFETY: leaked to the callback.
        unsafe { rcu::call_rcu_tasks_trace(Box::into_raw(Box::new(it)).cast(), note) };
        rcu::rcu_barrier_tasks_trace(t.cx);
        ensure_eq!(due.load(Ordering::Relaxed), 1);
        Ok(())
    }
}
