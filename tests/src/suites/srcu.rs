//! SRCU: sleeping readers delay grace periods of their domain and of no other, and every callback runs.
//!
//! Whether a reader ever outlasts a grace period under load is a matter for the pipe: see `srcu_torture`. Readers in interrupts
//! and NMIs, and those that are stopped at an instruction, are in `srcu_readers`. Waits end by counted work or by generous time.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use arch::{clock, cpu};
use rcu::CallbackHead;
use rcu::srcu::{
    self, Fast, FastUpDown, Flavour, NmiSafe, Normal, SrcuDomain, SrcuOwner, call_srcu, srcu_barrier, srcu_get_state,
    srcu_read_lock, srcu_start_poll, synchronize_srcu, synchronize_srcu_expedited,
};
use sync::{ATOMIC, IrqGuard, MaySleep, Rng};

use crate::toggle::{Load, MS, off, on, others, spawn, threads, toggle};
use crate::{Failure, Test, ensure, ensure_eq, ktest, skip};

rcu::srcu_domain! {
    static NORMAL: Normal;
    static OTHER: Normal;
    static NMI_SAFE: NmiSafe;
    static FAST: Fast;
    static FAST_UPDOWN: FastUpDown;
}

/// Sleeps until `cond`, at most 20 s; true if it came.
fn soon(cx: &mut MaySleep, cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS);
    }
    cond()
}

/// Callbacks queued and run.
#[derive(Default)]
struct Tally {
    queued: AtomicU64,
    ran: AtomicU64,
}

impl Tally {
    fn queue<F: Flavour>(self: &Arc<Tally>, domain: &SrcuDomain<F>) {
        #[repr(C)]
        struct Counted {
            head: CallbackHead,
            tally: Arc<Tally>,
        }
        /// # Safety
        /// `head` is that of a `Counted` that was leaked to the callback.
        unsafe fn count(head: *mut CallbackHead) {
            // SAFETY: by the caller; the head is the first field.
            let counted = unsafe { Box::from_raw(head.cast::<Counted>()) };
            counted.tally.ran.fetch_add(1, Relaxed);
        }
        self.queued.fetch_add(1, Relaxed);
        let counted = Box::new(Counted { head: CallbackHead::new(), tally: self.clone() });
        // SAFETY: leaked to the callback.
        unsafe { call_srcu(domain, Box::into_raw(counted).cast(), count) };
    }

    fn waiting(&self) -> u64 {
        // In this order: none is run that is not counted as queued.
        let ran = self.ran.load(SeqCst);
        self.queued.load(SeqCst) - ran
    }
}

/// Both ways to sleep for a grace period.
fn waits<F: Flavour>() -> [fn(&SrcuDomain<F>, &mut MaySleep); 2] {
    [synchronize_srcu, synchronize_srcu_expedited]
}

/// A reader that sleeps, on CPU after CPU, holds up what waits for its domain, and nothing else.
fn sleeping_reader<F: Flavour>(domain: &'static SrcuDomain<F>, t: &mut Test<'_>) -> Result<(), Failure> {
    let state = Arc::<(AtomicBool, AtomicBool, AtomicBool)>::default();
    let theirs = state.clone();
    let reader = spawn(t.cx, None, move |cx| {
        let guard = srcu_read_lock(domain);
        theirs.0.store(true, SeqCst);
        let me = sched::current();
        let mut moves = 0;
        while !theirs.1.load(SeqCst) {
            for cpu in cpu::online().iter() {
                moves += u64::from(sched::set_affinity(me, &arch::CpuMask::of(cpu), cx).is_ok());
                sched::sleep_ns(cx, MS / 2);
            }
        }
        theirs.2.store(true, SeqCst);
        drop(guard);
        moves
    })?;
    ensure!(soon(t.cx, || state.0.load(SeqCst)));
    let tally = Arc::<Tally>::default();
    tally.queue(domain);
    let cookie = srcu_start_poll(domain);
    let mut waiters = Vec::new();
    for wait in waits() {
        let theirs = state.clone();
        waiters.push(spawn(t.cx, None, move |cx| {
            wait(domain, cx);
            theirs.2.load(SeqCst)
        })?);
    }
    synchronize_srcu(&OTHER, t.cx);
    rcu::synchronize_rcu(t.cx);
    sched::sleep_ns(t.cx, 30 * MS);
    ensure!(tally.waiting() == 1 && !cookie.is_over(), "a grace period ended although a reader sleeps in its section");
    ensure_eq!(domain.stats().readers.iter().sum::<u64>(), 1);
    state.1.store(true, SeqCst);
    for waiter in waiters {
        ensure!(waiter.join(t.cx), "a grace period ended although a reader from before was in its section");
    }
    ensure!(reader.join(t.cx) > 0, "the reader did not move");
    cookie.cond_synchronize(t.cx);
    ensure!(cookie.is_over());
    srcu_barrier(domain, t.cx);
    ensure_eq!(tally.waiting(), 0);
    Ok(())
}

ktest! {
    /// A thread that sleeps and moves from CPU to CPU inside a section.
    fn a_sleeping_normal_reader_delays_its_domain_and_no_other(t: &mut Test) {
        sleeping_reader(&NORMAL, t)
    }

    /// The same, NMI-safe.
    fn a_sleeping_nmi_safe_reader_delays_its_domain_and_no_other(t: &mut Test) {
        sleeping_reader(&NMI_SAFE, t)
    }

    /// The same, fast.
    fn a_sleeping_fast_reader_delays_its_domain_and_no_other(t: &mut Test) {
        sleeping_reader(&FAST, t)?;
        sleeping_reader(&FAST_UPDOWN, t)
    }

    /// 400 grace periods: the counter of a new domain starts 300 before its wrap.
    fn grace_periods_pass_through_the_wrap_of_the_counter(t: &mut Test) {
        let domain = SrcuOwner::<Normal>::new("wraps").map_err(|error| crate::__failed!("{error}"))?;
        ensure!(domain.stats().seq.raw() > u64::MAX - 2_000);
        let before = srcu_get_state(&domain);
        for _ in 0..400 {
            synchronize_srcu_expedited(&domain, t.cx);
            ensure!(before.is_over());
        }
        ensure!(domain.stats().seq.raw() < 2_000);
        let tally = Arc::<Tally>::default();
        tally.queue(&domain);
        srcu_barrier(&domain, t.cx);
        ensure_eq!(tally.waiting(), 0);
        Ok(())
    }

    /// Each CPU queues, with interrupts on and off, and waits for its own and all others' by a barrier.
    #[tags(race)]
    fn callbacks_of_all_cpus_run_and_barriers_wait_for_them(t: &mut Test) {
        let domains: [&'static SrcuDomain<Normal>; 2] = [&NORMAL, &OTHER];
        OTHER.make_big();
        for domain in domains {
            let mut threads = Vec::new();
            for cpu in cpu::online().iter() {
                threads.push(spawn(t.cx, Some(cpu), move |cx| {
                    for _ in 0..5 {
                        let tally = Arc::<Tally>::default();
                        for i in 0..60 {
                            let _off = (i % 2 == 0).then(|| IrqGuard::new(ATOMIC));
                            tally.queue(domain);
                        }
                        srcu_barrier(domain, cx);
                        ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
                    }
                    Ok(())
                })?);
            }
            threads.into_iter().try_for_each(|thread| thread.join(t.cx))?;
            ensure_eq!(domain.stats().callbacks_waiting, 0);
        }
        ensure!(OTHER.stats().big);
        Ok(())
    }

    /// S5-11. Callbacks that come one at a time, while grace periods of others begin and end: each runs, though nobody
    /// queues another or waits.
    #[tags(race)]
    fn callbacks_are_not_stranded_while_grace_periods_pass(t: &mut Test) {
        if cpu::online_count() < 2 {
            skip!("needs two CPUs");
        }
        let mut load = Load::new();
        // Several, so that the next grace period is wanted when one ends.
        for _ in 0..3 {
            load.add(t.cx, Rng::new(t.rng.next_u64()), |_, cx| {
                synchronize_srcu_expedited(&NORMAL, cx);
                Ok(())
            })?;
        }
        // And each lasts long enough for some callbacks to come.
        load.add(t.cx, Rng::new(t.rng.next_u64()), |rng, cx| {
            let guard = srcu_read_lock(&NORMAL);
            sched::sleep_ns(cx, rng.below(MS / 2));
            drop(guard);
            Ok(())
        })?;
        let tally = Arc::<Tally>::default();
        for round in 0..20 {
            let mut queuers = Vec::new();
            // On every second CPU, so that the others can get on with grace periods.
            for cpu in cpu::online().iter().skip(1).step_by(2) {
                let (tally, mut rng) = (tally.clone(), Rng::new(t.rng.next_u64()));
                queuers.push(spawn(t.cx, Some(cpu), move |_| {
                    for _ in 0..8 {
                        tally.queue(&NORMAL);
                        clock::udelay(rng.below(100));
                    }
                })?);
            }
            queuers.into_iter().for_each(|queuer| queuer.join(t.cx));
            if round % 4 == 0 {
                ensure!(soon(t.cx, || tally.waiting() == 0), "{} callbacks are left behind", tally.waiting());
            }
        }
        let turns = load.end(t.cx)?;
        t.note(format_args!("{} callbacks; grace periods, and sections of the reader: {turns:?}", tally.queued.load(Relaxed)));
        ensure!(soon(t.cx, || tally.waiting() == 0), "{} callbacks are left behind", tally.waiting());
        Ok(())
    }

    /// S3-18 for SRCU: with interrupts off a cookie can be made and a callback queued. Nobody is woken for them before interrupts
    /// are on again, else the grace period would begin on another CPU; then both are served.
    fn callbacks_and_cookies_work_with_interrupts_off(t: &mut Test) {
        let tally = Arc::<Tally>::default();
        for _ in 0..20 {
            // So that nothing is under way.
            srcu_barrier(&NORMAL, t.cx);
            synchronize_srcu(&NORMAL, t.cx);
            let irqs = IrqGuard::new(ATOMIC);
            tally.queue(&NORMAL);
            let cookie = srcu_start_poll(&NORMAL);
            clock::udelay(1_000);
            let seq = NORMAL.stats().seq;
            drop(irqs);
            ensure!(!seq.is_running(), "a thread was woken with interrupts off");
            ensure!(soon(t.cx, || cookie.is_over() && tally.waiting() == 0));
            ensure!(srcu_get_state(&NORMAL) != cookie);
        }
        Ok(())
    }

    /// S3-29: by their number, as a reader keeps them from being run, and by their rate.
    fn a_flood_of_callbacks_expedites_its_domain(t: &mut Test) {
        let (number, rate) = (u64::from(srcu::config::FLOOD.get()), u64::from(srcu::config::FLOOD_RATE.get()));
        let domain = SrcuOwner::<Normal>::new("flooded").map_err(|error| crate::__failed!("{error}"))?;
        let tally = Arc::<Tally>::default();
        let guard = srcu_read_lock(&domain);
        synchronize_nothing(&domain, t.cx);
        let pin = IrqGuard::new(ATOMIC);
        (0..number).for_each(|_| tally.queue(&domain));
        drop(pin);
        let flooded = domain.stats();
        drop(guard);
        srcu_barrier(&domain, t.cx);
        let after = domain.stats();
        ensure_eq!(tally.waiting(), 0);
        ensure!(flooded.floods >= 1, "the flood went by unnoticed: {flooded:?}");
        ensure!(after.expedited > 0, "it did not expedite: {after:?}");

        // Slow enough for the rate to be no flood.
        let slow = SrcuOwner::<Normal>::new("trickle").map_err(|error| crate::__failed!("{error}"))?;
        for _ in 0..20 {
            (0..rate / 10).for_each(|_| tally.queue(&slow));
            sched::sleep_ns(t.cx, 2 * MS);
        }
        srcu_barrier(&slow, t.cx);
        ensure_eq!(slow.stats().floods, 0);
        ensure_eq!(slow.stats().expedited, 0);
        Ok(())
    }

    /// The first `synchronize_srcu` after a while is expedited by itself; one that meets others is not.
    fn the_first_grace_period_after_a_while_is_expedited(t: &mut Test) {
        let domain = SrcuOwner::<Normal>::new("holdoff").map_err(|error| crate::__failed!("{error}"))?;
        let waited = |cx: &mut MaySleep| {
            let before = domain.stats().expedited;
            synchronize_srcu(&domain, cx);
            domain.stats().expedited - before
        };
        sched::sleep_ns(t.cx, MS);
        ensure_eq!(waited(t.cx), 1);
        // Somebody else has asked already.
        let cookie = srcu_start_poll(&domain);
        ensure_eq!(waited(t.cx), 0);
        cookie.cond_synchronize(t.cx);
        Ok(())
    }

    /// With readers, callbacks and waiters, in threads that are not there for long.
    #[tags(race)]
    fn domains_are_made_and_dropped_under_load(t: &mut Test) {
        let leaked = srcu::leaked();
        let mut load = Load::new();
        for _ in 0..threads() {
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                let domain = SrcuOwner::<Normal>::new("passing").map_err(|error| crate::__failed!("{error}"))?;
                if rng.chance(1, 4) {
                    domain.make_big();
                }
                let tally = Arc::<Tally>::default();
                (0..rng.below(16)).for_each(|_| tally.queue(&domain));
                let guard = srcu_read_lock(&domain);
                sched::sleep_ns(cx, rng.below(MS / 4));
                drop(guard);
                if rng.chance(1, 2) {
                    synchronize_srcu(&domain, cx);
                } else {
                    srcu_start_poll(&domain).cond_synchronize(cx);
                }
                srcu_barrier(&domain, cx);
                drop(domain);
                ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
                Ok(())
            })?;
        }
        sched::sleep_ns(t.cx, 200 * MS);
        let turns = load.end(t.cx)?;
        t.note(format_args!("domains by thread: {turns:?}"));
        ensure!(turns.iter().all(|&turns| turns > 0), "too little happened: {turns:?}");
        ensure_eq!(srcu::leaked(), leaked, "a domain was not quiescent when it was dropped");
        Ok(())
    }

    /// In each segment of its lists; and a barrier that is under way waits for them.
    fn callbacks_of_a_cpu_that_goes_run_elsewhere(t: &mut Test) {
        for cpu in others(t.cx)? {
            for waits in [false, true] {
                let tally = Arc::<Tally>::default();
                let theirs = tally.clone();
                spawn(t.cx, Some(cpu), move |cx| {
                    (0..50).for_each(|_| theirs.queue(&NORMAL));
                    sched::sleep_ns(cx, 5 * MS);
                    let _irqs = IrqGuard::new(cx);
                    (0..50).for_each(|_| theirs.queue(&NORMAL));
                })?
                .join(t.cx);
                let theirs = tally.clone();
                let waiter = spawn(t.cx, None, move |cx| {
                    if waits {
                        srcu_barrier(&NORMAL, cx);
                    }
                    theirs.waiting()
                })?;
                off(cpu, t.cx)?;
                let missing = waiter.join(t.cx);
                ensure!(!waits || missing == 0, "a barrier returned before {missing} callbacks ran");
                ensure!(soon(t.cx, || tally.waiting() == 0), "callbacks were left behind");
                on(cpu, t.cx)?;
            }
        }
        Ok(())
    }

    /// One that was in its section when its CPU went ends on another, and is waited for.
    fn a_reader_from_a_cpu_that_went_holds_its_domain_up(t: &mut Test) {
        for cpu in others(t.cx)? {
            let state = Arc::<(AtomicBool, AtomicBool)>::default();
            let theirs = state.clone();
            let reader = spawn(t.cx, Some(cpu), move |cx| {
                let guard = srcu_read_lock(&NORMAL);
                theirs.0.store(true, SeqCst);
                while !theirs.1.load(SeqCst) {
                    sched::sleep_ns(cx, MS);
                }
                drop(guard);
            })?;
            ensure!(soon(t.cx, || state.0.load(SeqCst)));
            off(cpu, t.cx)?;
            let cookie = srcu_start_poll(&NORMAL);
            sched::sleep_ns(t.cx, 20 * MS);
            ensure!(!cookie.is_over(), "a grace period ended although a reader from before was in its section");
            state.1.store(true, SeqCst);
            cookie.cond_synchronize(t.cx);
            reader.join(t.cx);
            on(cpu, t.cx)?;
        }
        Ok(())
    }

    /// Callbacks, barriers and waiters, while CPUs go and come.
    #[tags(race, slow)]
    #[budget_ms(120_000)]
    fn domains_survive_cpus_that_go_and_come(t: &mut Test) {
        let cpus = others(t.cx)?;
        let mut load = Load::new();
        for _ in 0..threads() {
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                let tally = Arc::<Tally>::default();
                let _off = rng.chance(1, 2).then(|| IrqGuard::new(ATOMIC));
                (0..rng.below(32)).for_each(|_| tally.queue(&NORMAL));
                drop(_off);
                if rng.chance(1, 2) {
                    synchronize_srcu(&NORMAL, cx);
                }
                srcu_barrier(&NORMAL, cx);
                ensure_eq!(tally.waiting(), 0, "a barrier returned before callbacks ran");
                Ok(())
            })?;
        }
        let result = toggle(&cpus, 10, &mut t.rng, t.cx);
        let turns = load.end(t.cx)?;
        result?;
        ensure!(turns.iter().all(|&turns| turns > 0), "too little happened: {turns:?}");
        Ok(())
    }
}

/// Lets the grace period that is asked for first begin and find a reader, so that what comes next is not the first after a while.
fn synchronize_nothing(domain: &SrcuDomain<Normal>, cx: &mut MaySleep) {
    let _ = srcu_start_poll(domain);
    sched::sleep_ns(cx, 10 * MS);
}
