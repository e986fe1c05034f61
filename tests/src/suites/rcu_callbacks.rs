//! Callbacks: how many run at a time, what happens when there are too many, and what is wrong with some.
//!
//! Offloaded ones are in `rcu_nocb`, those of CPUs that go in `hotplug_rcu`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use arch::{CpuId, CpuMask, clock, cpu, irq};
use rcu::{CallbackHead, call_rcu, callback_stats, rcu_barrier, synchronize_rcu_expedited};
use sched::Prio;
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, context};

use crate::callbacks::{Tally, node_locks, on_cpu, soon, start};
use crate::toggle::MS;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// The sizes of runs, told apart by what the callbacks see: callbacks are accounted when their run is over.
struct Runs {
    on: CpuId,
    spin_ns: u64,
    seen: UnsafeCell<Vec<(u64, usize)>>,
    left: AtomicUsize,
}

// SAFETY: the vector is used by callbacks of one CPU, one after another, and by the test when they are over (`left`).
unsafe impl Sync for Runs {}
// SAFETY: as above.
unsafe impl Send for Runs {}

impl Runs {
    /// Of `count` callbacks on CPU `on` that take `spin_ns` nanoseconds each.
    fn new(on: CpuId, count: usize, spin_ns: u64) -> Runs {
        let seen = UnsafeCell::new(Vec::with_capacity(count));
        Runs { on, spin_ns, seen, left: AtomicUsize::new(count) }
    }

    /// Queues them, on that CPU.
    fn queue_all(self: &Arc<Runs>) {
        let watchers: Vec<_> = (0..self.left.load(SeqCst))
            .map(|_| Box::into_raw(Box::new(Watcher { head: CallbackHead::new(), runs: self.clone() })))
            .collect();
        let _pin = PreemptGuard::new(ATOMIC);
        for watcher in watchers {
            // SAFETY: leaked to the callback.
            unsafe { call_rcu(watcher.cast(), watch) };
        }
    }
}

#[repr(C)]
struct Watcher {
    head: CallbackHead,
    runs: Arc<Runs>,
}

/// # Safety
/// `head` is that of a `Watcher` that was leaked to the callback.
unsafe fn watch(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head is the first field.
    let watcher = unsafe { Box::from_raw(head.cast::<Watcher>()) };
    let runs = &watcher.runs;
    let until = clock::now_ns() + runs.spin_ns;
    while clock::now_ns() < until {
        irq::relax();
    }
    let accounted = rcu::callbacks_run_on(runs.on);
    // SAFETY: see `Runs`.
    let seen = unsafe { &mut *runs.seen.get() };
    match seen.last_mut() {
        Some((run, size)) if *run == accounted => *size += 1,
        _ => seen.push((accounted, 1)),
    }
    // Release half: pairs with the load in `runs_of`.
    runs.left.fetch_sub(1, SeqCst);
}

/// Queues `count` callbacks at once on a CPU where none waits, and returns the sizes of the runs that they are called in.
fn runs_of(count: usize, spin_ns: u64, cx: &mut MaySleep) -> Result<Vec<usize>, Failure> {
    let on = cpu::online().iter().last().expect("a CPU is online");
    rcu_barrier(cx);
    let runs = Arc::new(Runs::new(on, count, spin_ns));
    let theirs = runs.clone();
    on_cpu(cx, on, move |_| theirs.queue_all())?;
    ensure!(soon(cx, || runs.left.load(SeqCst) == 0), "callbacks do not run");
    // SAFETY: see `Runs`.
    Ok(unsafe { &*runs.seen.get() }.iter().map(|&(_, size)| size).collect())
}

/// A callback that queues two more of half its worth.
#[repr(C)]
struct Splitter {
    head: CallbackHead,
    worth: usize,
    sum: Arc<AtomicUsize>,
}

/// # Safety
/// `head` is that of a `Splitter` that was leaked to the callback.
unsafe fn split(head: *mut CallbackHead) {
    // SAFETY: by the caller; the head is the first field.
    let it = unsafe { Box::from_raw(head.cast::<Splitter>()) };
    if it.worth == 1 {
        it.sum.fetch_add(1, Relaxed);
        return;
    }
    for worth in [it.worth / 2, it.worth - it.worth / 2] {
        let half = Splitter { head: CallbackHead::new(), worth, sum: it.sum.clone() };
        // SAFETY: leaked to the callback.
        unsafe { call_rcu(Box::into_raw(Box::new(half)).cast(), split) };
    }
}

/// Queues `total` objects from one CPU as fast as it can; returns the most that waited at any time.
fn most_waiting(total: usize, cx: &mut MaySleep) -> Result<usize, Failure> {
    let tally = Tally::new();
    let theirs = tally.clone();
    let on = cpu::online().iter().last().expect("a CPU is online");
    let most = on_cpu(cx, on, move |cx| {
        let mut most = 0;
        for i in 0..total {
            theirs.queue();
            if i % 64 == 0 {
                most = most.max(theirs.waiting());
                sched::cond_resched(cx);
            }
        }
        most
    })?;
    rcu_barrier(cx);
    ensure_eq!(tally.ran.load(SeqCst), total);
    Ok(most)
}

ktest! {
    /// ten callbacks a run, or a 128th of those that wait.
    fn a_run_calls_ten_callbacks_or_a_share_of_those_that_wait(t: &mut Test) {
        // Few enough for the rate, too, to be no reason to hurry.
        for (count, share) in [(300, 10), (1_900, 14)] {
            let runs = runs_of(count, 0, t.cx)?;
            let most = runs.iter().copied().max().unwrap_or(0);
            // A few of others may wait there, too.
            ensure!((10..=share + 1).contains(&most), "{count} callbacks: runs of up to {most}");
        }
        Ok(())
    }

    /// the limit by number is off above the high mark, the one by time is not; and it is on again below the low mark.
    #[budget_ms(60_000)]
    fn a_run_of_a_cpu_that_hurries_is_limited_by_time(t: &mut Test) {
        const SPIN_NS: u64 = 20_000;
        let before = callback_stats();
        let runs = runs_of(10_100, SPIN_NS, t.cx)?;
        let most = runs.iter().copied().max().unwrap_or(0);
        t.note(format_args!("{} runs of up to {most} callbacks", runs.len()));
        ensure!(callback_stats().floods > before.floods);
        ensure!(most > 79, "runs of up to {most}: a 128th is the limit still");
        // The clock is looked at after each 32nd.
        ensure!(most <= (3 * MS / SPIN_NS) as usize + 32, "a run of {most} callbacks of 20 us each");
        let calm = runs_of(300, 0, t.cx)?;
        ensure!(calm.iter().all(|&size| size <= 11), "still in a hurry: {calm:?}");
        Ok(())
    }

    /// R-6, S3-29: twice the high mark is overload, until it has drained.
    #[budget_ms(60_000)]
    fn twice_the_high_mark_is_overload(t: &mut Test) {
        let (before, tally) = (callback_stats(), Tally::new());
        let theirs = tally.clone();
        on_cpu(t.cx, CpuId::BOOT, move |cx| {
            let _irqs = IrqGuard::new(&*cx);
            (0..20_100).for_each(|_| theirs.queue());
        })?;
        ensure!(soon(t.cx, || callback_stats().overloads > before.overloads), "went by unnoticed");
        rcu_barrier(t.cx);
        ensure_eq!(tally.waiting(), 0);
        ensure!(soon(t.cx, || callback_stats().overloaded == 0), "no end of it is seen");
        Ok(())
    }

    /// S3-29: the rate calls for hurry before the number does.
    fn a_rate_that_leads_to_a_flood_is_noticed_before_it(t: &mut Test) {
        rcu_barrier(t.cx);
        let (before, tally) = (callback_stats(), Tally::new());
        let theirs = tally.clone();
        on_cpu(t.cx, CpuId::BOOT, move |_| {
            let _irqs = IrqGuard::new(ATOMIC);
            (0..4_000).for_each(|_| theirs.queue());
        })?;
        ensure!(soon(t.cx, || callback_stats().floods_foreseen > before.floods_foreseen), "{before:?}");
        rcu_barrier(t.cx);
        ensure_eq!(tally.waiting(), 0);
        ensure_eq!(callback_stats().floods, before.floods);
        Ok(())
    }

    /// S3-29: `call_rcu` runs some of those that wait to be run, when it is called where they may run.
    #[budget_ms(60_000)]
    fn whoever_floods_a_cpu_helps_to_drain_it(t: &mut Test) {
        let on = cpu::online().iter().last().expect("a CPU is online");
        let (before, tally) = (callback_stats().helped, Tally::new());
        let theirs = tally.clone();
        let helped = on_cpu(t.cx, on, move |cx| {
            // Slow ones, so that a run does not get to the end of those that are done.
            let runs = Arc::new(Runs::new(on, 3_000, 20_000));
            runs.queue_all();
            let helped = || callback_stats().helped - before;
            while helped() == 0 && runs.left.load(SeqCst) > 0 {
                theirs.queue();
                sched::cond_resched(cx);
            }
            helped()
        })?;
        rcu_barrier(t.cx);
        ensure!(helped > 0, "call_rcu never helped");
        ensure_eq!(tally.waiting(), 0);
        Ok(())
    }

    /// 100,000 from one CPU as fast as it can: those that wait take a small part of the smallest test machine's memory.
    #[budget_ms(60_000)]
    fn a_flood_of_100000_waits_in_bounded_memory(t: &mut Test) {
        let most = most_waiting(100_000, t.cx)?;
        t.note(format_args!("{most} waited at most"));
        ensure!(most < 80_000, "{most} of 100000 callbacks waited at once");
        Ok(())
    }

    /// The same with 1,000,000: it is a bound, and no share.
    #[tags(slow)]
    #[budget_ms(300_000)]
    fn a_flood_of_1000000_waits_in_bounded_memory(t: &mut Test) {
        let begin = clock::now_ns();
        let most = most_waiting(1_000_000, t.cx)?;
        t.note(format_args!("{most} waited at most; {} ms", (clock::now_ns() - begin) / MS));
        ensure!(most < 200_000, "{most} of 1000000 callbacks waited at once");
        Ok(())
    }

    /// 511 callbacks that queue two each, and 512 that do not.
    fn callbacks_may_queue_callbacks(t: &mut Test) {
        let sum = Arc::new(AtomicUsize::new(0));
        let first = Splitter { head: CallbackHead::new(), worth: 512, sum: sum.clone() };
        // SAFETY: leaked to the callback.
        unsafe { call_rcu(Box::into_raw(Box::new(first)).cast(), split) };
        ensure!(soon(t.cx, || sum.load(Relaxed) == 512), "{} of 512 ends", sum.load(Relaxed));
        Ok(())
    }

    /// barriers that begin at the same time, on all CPUs, each after callbacks of its own.
    #[tags(race)]
    fn a_barrier_from_every_cpu_at_once_waits_for_its_own_callbacks(t: &mut Test) {
        for _ in 0..10 {
            let mut threads = Vec::new();
            for cpu in cpu::online().iter() {
                threads.push(start(t.cx, Prio::NORMAL, Some(cpu), |cx| {
                    let tally = Tally::new();
                    (0..20).for_each(|_| tally.queue());
                    rcu_barrier(cx);
                    tally.waiting()
                })?);
            }
            for thread in threads {
                ensure_eq!(thread.join(t.cx), 0, "a barrier returned before callbacks ran");
            }
        }
        Ok(())
    }

    /// With the whole machine stopped, interrupts off on each CPU: no node lock is taken, and nobody is woken, however many
    /// are queued.
    fn queueing_with_interrupts_off_only_enqueues(t: &mut Test) {
        let tally = Tally::new();
        let locks = AtomicUsize::new(0);
        let me = sched::current();
        sched::stop_machine(t.cx, &CpuMask::of(CpuId::BOOT), |_| {
            let before = node_locks();
            (0..11_000).for_each(|_| tally.queue());
            locks.store((node_locks() - before) as usize, Relaxed);
        });
        ensure_eq!(locks.load(Relaxed), 0, "node locks");
        ensure!(core::ptr::eq(me, sched::current()));
        rcu_barrier(t.cx);
        ensure_eq!(tally.waiting(), 0);
        Ok(())
    }

    /// softirqs are off and interrupts on, and sleeping would be noticed.
    fn callbacks_run_with_softirqs_off_and_interrupts_on(t: &mut Test) {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        /// # Safety
        /// As for all callbacks.
        unsafe fn look(head: *mut CallbackHead) {
            // SAFETY: a leaked box, see below.
            drop(unsafe { Box::from_raw(head) });
            let ok = context::softirq_count() != 0 && irq::enabled() && !context::preemptible() && !context::in_hardirq();
            SEEN.fetch_add(if ok { 1 } else { 1_000 }, Relaxed);
        }
        SEEN.store(0, Relaxed);
        for _ in 0..500 {
            // SAFETY: leaked to the callback.
            unsafe { call_rcu(Box::into_raw(Box::new(CallbackHead::new())), look) };
        }
        rcu_barrier(t.cx);
        ensure_eq!(SEEN.load(Relaxed), 500);
        Ok(())
    }

    /// The figures: each run that called any has its number counted, and waits are sampled.
    fn runs_and_waits_are_recorded(t: &mut Test) {
        let (batches, waits) = (rcu::callback_batches(), rcu::callback_waits());
        for _ in 0..4 {
            let tally = Tally::new();
            (0..30).for_each(|_| tally.queue());
            rcu_barrier(t.cx);
            ensure_eq!(tally.waiting(), 0);
        }
        let (batches_now, waits_now) = (rcu::callback_batches(), rcu::callback_waits());
        ensure!(batches_now.sum - batches.sum >= 120 && batches_now.count >= batches.count + 4, "{batches_now:?}");
        // Each of them waits for a grace period, so over a tick.
        ensure!(waits_now.count >= waits.count + 2 && waits_now.max > 0, "{waits_now:?}");
        Ok(())
    }

    /// R-9, S3-24: with the grace-period thread kept from its CPU no normal grace period ends; an expedited one, which a
    /// shrinker would ask for, has the callbacks run all the same.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn callbacks_profit_from_an_expedited_grace_period(t: &mut Test) {
        let mut cpus = cpu::online().iter();
        let (Some(here), Some(there)) = (cpus.next(), cpus.next()) else { skip!("needs two CPUs") };
        let mut thread = None;
        sched::thread::for_each(|other| {
            if other.name().as_str() == "rcu_preempt" {
                thread = Some(other);
            }
        });
        let thread = thread.ok_or_else(|| crate::__failed!("no grace-period thread"))?;
        rcu_barrier(t.cx);
        sched::set_affinity(thread, &CpuMask::of(there), t.cx).map_err(|error| crate::__failed!("{error}"))?;
        let state = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
        let theirs = state.clone();
        let blocker = start(t.cx, Prio::CRITICAL, Some(there), move |_| {
            theirs.0.store(true, SeqCst);
            while !theirs.1.load(SeqCst) {
                irq::relax();
            }
        })?;
        ensure!(soon(t.cx, || state.0.load(SeqCst)));
        let theirs = state.clone();
        let (ran, held, gps) = on_cpu(t.cx, here, move |cx| {
            let tally = Tally::new();
            let gps = rcu::stats().gps;
            (0..100).for_each(|_| tally.queue());
            // Till a tick has tagged them: a few.
            sched::sleep_ns(cx, 30 * MS);
            let held = tally.waiting() == 100;
            synchronize_rcu_expedited(cx);
            let ran = soon(cx, || tally.waiting() == 0);
            theirs.1.store(true, SeqCst);
            (ran, held, rcu::stats().gps - gps)
        })?;
        blocker.join(t.cx);
        let anywhere = sched::set_affinity(thread, &cpu::present(), t.cx);
        ensure!(anywhere.is_ok());
        // The grace period that ran when the thread lost its CPU may have ended before.
        ensure!(held && gps <= 1, "normal grace periods were not held up: {gps} ended, held {held}");
        ensure!(ran, "an expedited grace period did not release callbacks");
        Ok(())
    }

    /// the second `call_rcu` of a head that waits is reported and refused; the lists stay whole.
    fn a_callback_queued_twice_is_found_and_refused(t: &mut Test) {
        static RAN: AtomicUsize = AtomicUsize::new(0);
        /// # Safety
        /// As for all callbacks.
        unsafe fn ran(_: *mut CallbackHead) {
            RAN.fetch_add(1, Relaxed);
        }
        if !cfg!(debug_assertions) {
            skip!("needs a build with assertions");
        }
        RAN.store(0, Relaxed);
        rcu_barrier(t.cx);
        let before = callback_stats().queued_twice;
        let heads: Vec<_> = (0..3).map(|_| Box::into_raw(Box::new(CallbackHead::new()))).collect();
        {
            let _pin = PreemptGuard::new(&*t.cx);
            for at in [0, 1, 2, 2, 1, 0] {
                // SAFETY: they live till the end of the test. Queueing them twice is what is tested: it is refused.
                unsafe { call_rcu(heads[at], ran) };
            }
        }
        rcu_barrier(t.cx);
        ensure_eq!(callback_stats().queued_twice - before, 3);
        ensure_eq!(RAN.load(Relaxed), 3);
        // One that has run may be queued again.
        // SAFETY: as above.
        unsafe { call_rcu(heads[0], ran) };
        rcu_barrier(t.cx);
        ensure_eq!(RAN.load(Relaxed), 4);
        ensure_eq!(callback_stats().queued_twice - before, 3);
        for head in heads {
            // SAFETY: leaked above; no callback of it waits.
            drop(unsafe { Box::from_raw(head) });
        }
        Ok(())
    }

    /// a callback whose function was overwritten is reported and not called; those behind it are.
    fn a_callback_that_lost_its_function_is_found(t: &mut Test) {
        /// # Safety
        /// As for all callbacks.
        unsafe fn never(_: *mut CallbackHead) {}
        let before = callback_stats().no_function;
        let tally = Tally::new();
        let head = Box::into_raw(Box::new(CallbackHead::new()));
        {
            let _irqs = IrqGuard::new(&*t.cx);
            tally.queue();
            // SAFETY: it lives till the end of the test.
            unsafe { call_rcu(head, never) };
            tally.queue();
            // SAFETY: not called before interrupts are on. That is what must not be done.
            unsafe { (*head).func = None };
        }
        rcu_barrier(t.cx);
        ensure_eq!(callback_stats().no_function - before, 1);
        ensure_eq!(tally.waiting(), 0);
        // SAFETY: leaked above; it waits no more.
        drop(unsafe { Box::from_raw(head) });
        Ok(())
    }
}
