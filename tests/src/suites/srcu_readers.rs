//! Readers of SRCU where readers are hard to get right: in interrupts and NMIs, handed over, stopped at an instruction.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use alloc::sync::Arc;

use arch::trap::TrapFrame;
use arch::{clock, cpu, irq};
use rcu::srcu::{
    Fast, FastUpDown, Flavour, HandsOver, NmiSafe, Normal, SrcuDomain, srcu_down_read, srcu_read_lock, srcu_start_poll,
    srcu_up_read, synchronize_srcu_expedited,
};
use sync::nmi::NmiHandler;
use sync::{ATOMIC, IrqGuard, SoftirqGuard, smp};

use crate::stepping::{self, Visit};
use crate::storm::Storm;
use crate::toggle::{MS, spawn};
use crate::{Failure, Test, ensure, ensure_eq, ktest, skip};

rcu::srcu_domain! {
    static NORMAL: Normal;
    static NMI_SAFE: NmiSafe;
    static FAST: Fast;
    static FAST_UPDOWN: FastUpDown;
    /// For the NMI handler, which sees every NMI of the kernel.
    static STORMY: NmiSafe;
}

/// Readers that the domain counts now.
fn readers<F: Flavour>(domain: &SrcuDomain<F>) -> u64 {
    domain.stats().readers.iter().sum()
}

/// One reader in the context of the caller; how many were counted inside.
fn read_once<F: Flavour>(domain: &SrcuDomain<F>) -> u64 {
    let _guard = srcu_read_lock(domain);
    readers(domain)
}

/// One in each of softirq-like, interrupts-off and hardirq context, with the outer ones open.
fn nested<F: Flavour>(domain: &'static SrcuDomain<F>, t: &mut Test<'_>) -> Result<(), Failure> {
    for cpu in cpu::online().iter() {
        let outer = srcu_read_lock(domain);
        let softirq = SoftirqGuard::new(ATOMIC);
        ensure_eq!(read_once(domain), 2);
        let irqs = IrqGuard::new(ATOMIC);
        ensure_eq!(read_once(domain), 2);
        drop(irqs);
        drop(softirq);
        ensure_eq!(smp::run_on(cpu, || read_once(domain)), Some(2));
        drop(outer);
        ensure_eq!(readers(domain), 0);
    }
    synchronize_srcu_expedited(domain, t.cx);
    Ok(())
}

/// Sections that this thread begins and an interrupt on each CPU ends.
fn ended_by_interrupts<F: HandsOver>(domain: &'static SrcuDomain<F>, t: &mut Test<'_>) -> Result<(), Failure> {
    for cpu in cpu::online().iter() {
        let guard = srcu_down_read(domain);
        let cookie = srcu_start_poll(domain);
        sched::sleep_ns(t.cx, 5 * MS);
        ensure!(!cookie.is_over(), "a grace period ended although a section has not been ended");
        ensure_eq!(readers(domain), 1);
        ensure!(smp::run_on(cpu, || srcu_up_read(guard)).is_some());
        ensure_eq!(readers(domain), 0);
        cookie.cond_synchronize(t.cx);
    }
    Ok(())
}

/// The NMI handler reads.
static READS_IN_NMI: AtomicBool = AtomicBool::new(false);
/// Sections in NMI handlers.
static IN_NMI: AtomicU64 = AtomicU64::new(0);

static HANDLER: NmiHandler = NmiHandler::new("srcu_readers", |_: &mut TrapFrame| {
    let reads = READS_IN_NMI.load(Relaxed);
    if reads {
        let _guard = srcu_read_lock(&STORMY);
        IN_NMI.fetch_add(1, Relaxed);
    }
    reads
});

/// Grace periods that [`StopHere`] wants, and that there were.
static WANTED: AtomicU64 = AtomicU64::new(0);
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Has a grace period pass, unless the stopped reader is counted already and holds it up.
struct StopHere;

impl Visit for StopHere {
    fn visit() {
        let wanted = WANTED.fetch_add(1, SeqCst) + 1;
        let until = clock::now_ns() + 200 * MS;
        while PASSED.load(SeqCst) < wanted && readers(&NORMAL) == 0 && clock::now_ns() < until {
            irq::relax();
        }
    }
}

ktest! {
    /// All contexts but NMI, each flavour.
    fn readers_nest_in_softirqs_and_hard_interrupts(t: &mut Test) {
        nested(&NORMAL, t)?;
        nested(&NMI_SAFE, t)?;
        nested(&FAST, t)?;
        nested(&FAST_UPDOWN, t)
    }

    /// By an interrupt, on the CPU where they began and on others.
    fn handed_over_readers_are_ended_by_interrupts(t: &mut Test) {
        ended_by_interrupts(&NORMAL, t)?;
        ended_by_interrupts(&FAST_UPDOWN, t)
    }

    /// NMI-safe readers in a storm of NMIs, whose handler reads as well: no count is lost, and grace periods pass.
    #[tags(race)]
    fn nmi_safe_readers_are_counted_exactly_in_a_storm_of_nmis(t: &mut Test) {
        let mut cpus = cpu::online().iter();
        let (Some(sender), Some(target)) = (cpus.next(), cpus.next()) else { skip!("needs two CPUs") };
        static REGISTERED: AtomicBool = AtomicBool::new(false);
        if !REGISTERED.swap(true, Relaxed) {
            sync::nmi::register(&HANDLER);
        }
        READS_IN_NMI.store(true, Relaxed);
        let storm = Storm::start(t.cx, sender, target)?;
        let reader = spawn(t.cx, Some(target), |cx| {
            let until = clock::now_ns() + 100 * MS;
            let mut sections = 0_u64;
            while clock::now_ns() < until || IN_NMI.load(Relaxed) < 100 {
                (0..100).for_each(|_| drop(srcu_read_lock(&STORMY)));
                sections += 100;
                sched::cond_resched(cx);
            }
            sections
        })?;
        for _ in 0..5 {
            synchronize_srcu_expedited(&STORMY, t.cx);
        }
        let sections = reader.join(t.cx);
        let sent = storm.stop(t.cx);
        // An NMI on its way is none of the storm's any more.
        sched::sleep_ns(t.cx, MS);
        READS_IN_NMI.store(false, Relaxed);
        t.note(format_args!("{sections} sections, {} in {sent} NMIs", IN_NMI.load(Relaxed)));
        ensure_eq!(STORMY.stats().readers, [0, 0]);
        synchronize_srcu_expedited(&STORMY, t.cx);
        Ok(())
    }

    /// A whole grace period passes while a reader stands between any two instructions of its beginning, so that the index it
    /// has may be an old one: the next grace period waits for it all the same.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_reader_that_was_stopped_at_any_instruction_is_waited_for(t: &mut Test) {
        let mut cpus = cpu::online().iter();
        let (Some(here), Some(there)) = (cpus.next(), cpus.next()) else { skip!("needs two CPUs") };
        WANTED.store(0, SeqCst);
        PASSED.store(0, SeqCst);
        let stop = Arc::<AtomicBool>::default();
        let theirs = stop.clone();
        let updater = spawn(t.cx, Some(here), move |cx| {
            while !theirs.load(SeqCst) {
                if PASSED.load(SeqCst) < WANTED.load(SeqCst) {
                    synchronize_srcu_expedited(&NORMAL, cx);
                    PASSED.fetch_add(1, SeqCst);
                }
                sched::yield_now(cx);
            }
        })?;
        let reader = spawn(t.cx, Some(there), |cx| {
            let mut boundary = 0;
            loop {
                let mut guard = None;
                let boundaries =
                    stepping::step::<StopHere>(stepping::only(boundary), || guard = Some(srcu_read_lock(&NORMAL)));
                let cookie = srcu_start_poll(&NORMAL);
                sched::sleep_ns(cx, 10 * MS);
                ensure!(!cookie.is_over(), "a grace period did not wait for a reader stopped at boundary {boundary}");
                drop(guard);
                cookie.cond_synchronize(cx);
                boundary += 1;
                if boundary as u64 > boundaries {
                    return Ok(boundary);
                }
            }
        })?;
        let boundaries = reader.join(t.cx);
        stop.store(true, SeqCst);
        updater.join(t.cx);
        t.note(format_args!("{} boundaries, {} grace periods in between", boundaries?, PASSED.load(SeqCst)));
        Ok(())
    }
}
