//! `kfree_rcu_nolock`: where what an NMI left behind is noticed, and that it takes no interrupt; and every context.
//!
//! What happens at every instruction of the allocator's paths is in [`slab_nolock`](super::slab_nolock), which lets this call loose
//! on all of them; NMIs on all CPUs at once are in [`kfree_rcu_nolock_storm`](super::kfree_rcu_nolock_storm).

use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{CpuId, clock, cpu, ipi, irq, vector};
use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::{RcuPtr, kfree_rcu, kfree_rcu_nolock};
use mm::AllocFlags;
use sched::{MigrateGuard, tick};
use slab::deferred::counts_on;
use slab::waiting::Stage;
use slab::{CacheFlags, RawCache, Stat, kfree_nolock, kmalloc, rcu_bound};
use sync::nmi::{NmiHandler, as_nmi};
use sync::{ATOMIC, IrqGuard, IrqWork, MaySleep, Once, PreemptGuard, SoftirqGuard, SpinLock};

use super::rcu_sheaf::Bound;
use super::sched_softirq;
use super::slab_nolock::walk_some;
use crate::lock_paths::inside_of;
use crate::nolock::{self, ensure_all_back};
use crate::outcome::needs_sheaves;
use crate::run::Test;
use crate::together::soon;
use crate::toggle::{MS, spawn};
use crate::walk::Plan;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Whatever waits for something waits so long.
const PATIENCE_NS: u64 = 10_000 * MS;

/// As an NMI handler does things.
fn in_nmi<R>(f: impl FnOnce() -> R) -> R {
    let _off = IrqGuard::new(ATOMIC);
    as_nmi(f)
}

/// A cache without sheaves: the nolock calls defer all its objects.
fn bare() -> &'static RawCache {
    nolock::cache("test_krn_bare", 256, CacheFlags::NO_SHEAVES)
}

/// Objects of [`bare`] that went back to their slabs. Only loads: no guard ends by looking.
fn gone_back() -> u64 {
    bare().stat(Stat::FreeSlowpath)
}

fn an_object(cache: &RawCache) -> Result<NonNull<u8>, Failure> {
    cache.alloc(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory"))
}

/// Waits, with no guard of any kind that could end, until [`gone_back`] is more than `before`.
fn spin_until_gone_back(before: u64) -> bool {
    let end = clock::now_ns() + PATIENCE_NS;
    while gone_back() == before && clock::now_ns() < end {
        irq::relax();
    }
    gone_back() != before
}

/// NMIs are ours: they free [`VICTIM`].
static ANSWERING: AtomicBool = AtomicBool::new(false);
static VICTIM: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
/// The next victim goes to `kfree_rcu_nolock` instead; the head lies at its start.
static BY_RCU: AtomicBool = AtomicBool::new(false);
static HANDLER: NmiHandler = NmiHandler::new("kfree-rcu-nolock", on_nmi);
static REGISTERED: Once<()> = Once::new();

fn on_nmi(_: &mut TrapFrame) -> bool {
    let ours = ANSWERING.load(SeqCst);
    if ours {
        free_victim();
    }
    ours
}

fn free_victim() {
    if let Some(object) = NonNull::new(VICTIM.swap(ptr::null_mut(), Relaxed)) {
        match BY_RCU.swap(false, Relaxed) {
            // SAFETY: whoever put the object there gave it up.
            true => unsafe { kfree_rcu_nolock(object.cast()) },
            // SAFETY: as above.
            false => unsafe { kfree_nolock(object) },
        }
    }
}

/// NMIs are ours while it lives.
struct Answering;

impl Answering {
    fn begin() -> Self {
        REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
        ANSWERING.store(true, SeqCst);
        Answering
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.store(false, SeqCst);
    }
}

ktest! {
    /// What an NMI defers under a guard is done when the outermost guard ends: at once, and without an interrupt (S1-11).
    fn the_end_of_a_guard_drains_what_an_nmi_deferred(t: &mut Test) {
        const TRIES: usize = 100;
        let cache = bare();
        nolock::settle(cache, t.cx);
        let stay = MigrateGuard::new(&*t.cx);
        let here = cpu::current();
        let interrupts = || [vector::IRQ_WORK, vector::TIMER].map(|vector| sync::irq::count(here, vector));
        let (told, mut quiet) = (counts_on(here), 0);
        for _ in 0..TRIES {
            let object = an_object(cache)?;
            let before = gone_back();
            let outer = PreemptGuard::new(&*t.cx);
            let none = interrupts();
            {
                let _inner = PreemptGuard::new(&outer);
                // SAFETY: allocated above, given up here.
                in_nmi(|| unsafe { kfree_nolock(object) });
            }
            let inside = gone_back();
            drop(outer);
            ensure_eq!(gone_back(), before + 1, "after the guard's end");
            quiet += usize::from(inside == before && interrupts() == none);
        }
        let now = counts_on(here);
        ensure_eq!(now.interrupts, told.interrupts, "interrupts that this CPU sent to itself");
        ensure_eq!(now.raises - told.raises, TRIES as u64);
        ensure!(quiet > TRIES / 2, "no interrupt came in between in {quiet} of {TRIES} tries only");
        drop(stay);
        ensure_all_back(cache, t.cx)
    }

    /// What is deferred in an interrupt, or in an NMI inside it, is done at its exit, while the thread has preemption off.
    fn the_exit_of_an_interrupt_drains_what_was_deferred_in_it(t: &mut Test) {
        static WORK: IrqWork = IrqWork::new(|_| as_nmi(free_victim));
        static PLAIN: IrqWork = IrqWork::new(|_| free_victim());
        let cache = bare();
        nolock::settle(cache, t.cx);
        for work in [&WORK, &PLAIN] {
            let object = an_object(cache)?;
            let pin = PreemptGuard::new(&*t.cx);
            let (before, told) = (gone_back(), counts_on(cpu::current()));
            VICTIM.store(object.as_ptr(), Relaxed);
            work.queue();
            let done = spin_until_gone_back(before);
            let took = counts_on(cpu::current()).interrupts - told.interrupts;
            drop(pin);
            ensure!(done, "it still waits");
            ensure_eq!(took, 0, "interrupts that this CPU sent to itself");
        }
        ensure_all_back(cache, t.cx)
    }

    /// A thread that computes, without a guard that could end, has it done by the tick.
    fn the_tick_drains_what_an_nmi_deferred(t: &mut Test) {
        let cache = bare();
        nolock::settle(cache, t.cx);
        let answering = Answering::begin();
        for _ in 0..3 {
            let object = an_object(cache)?;
            let _stay = MigrateGuard::new(&*t.cx);
            let here = cpu::current();
            let (before, told, ticks) = (gone_back(), counts_on(here), tick::count_on(here));
            VICTIM.store(object.as_ptr(), Relaxed);
            ipi::send_nmi(here);
            ensure!(spin_until_gone_back(before), "it still waits after {} ticks", tick::count_on(here) - ticks);
            ensure_eq!(counts_on(here).interrupts - told.interrupts, 0, "interrupts that this CPU sent to itself");
        }
        drop(answering);
        ensure_all_back(cache, t.cx)
    }

    /// A CPU that idles has no tick: an NMI there, and only there, interrupts its own CPU.
    fn an_nmi_on_an_idle_cpu_interrupts_it(t: &mut Test) {
        let here = cpu::current();
        let Some(there) = cpu::online().iter().find(|&other| other != here) else { skip!("needs 2 CPUs") };
        let cache = bare();
        nolock::settle(cache, t.cx);
        let stay = MigrateGuard::new(&*t.cx);
        let answering = Answering::begin();
        let (mut idle, mut took) = (0, 0);
        for _ in 0..20 {
            // Whatever is left to do there ends first.
            let end = clock::now_ns() + 200 * MS;
            while tick::runs_on(there) && clock::now_ns() < end {
                sched::sleep_ns(t.cx, 2 * MS);
            }
            let object = an_object(cache)?;
            let (before, told, was_idle) = (gone_back(), counts_on(there), !tick::runs_on(there));
            VICTIM.store(object.as_ptr(), Relaxed);
            ipi::send_nmi(there);
            ensure!(spin_until_gone_back(before), "CPU {there} sleeps over it");
            idle += u64::from(was_idle);
            took += counts_on(there).interrupts - told.interrupts;
        }
        drop(answering);
        drop(stay);
        t.note(format_args!("{took} interrupts in {idle} NMIs on an idle CPU"));
        ensure!(idle == 0 || took > 0, "CPU {there} was idle {idle} times and was never interrupted");
        ensure_all_back(cache, t.cx)
    }

    /// The same where all that an NMI there does is to begin a sheaf, which somebody has to look at in time: that is counted, too.
    fn an_nmi_that_begins_a_sheaf_on_an_idle_cpu_is_counted(t: &mut Test) {
        let here = cpu::current();
        let is_near = |other: &CpuId| *other != here && cpu::node_of(*other) == cpu::node_of(here);
        let Some(there) = cpu::online().iter().find(is_near) else { skip!("needs 2 CPUs of a node") };
        let cache = nolock::cache("test_krn_begun", 256, CacheFlags::empty());
        needs_sheaves(cache)?;
        nolock::settle(cache, t.cx);
        let _bound = Bound::new(Some(5));
        let stay = MigrateGuard::new(&*t.cx);
        let answering = Answering::begin();
        let (mut idle, mut took) = (0, 0);
        for _ in 0..20 {
            let object = an_object(cache)?;
            ensure!(soon(t.cx, || !rcu_bound::is_armed_on(there)), "CPU {there} still looks");
            let end = clock::now_ns() + 200 * MS;
            while tick::runs_on(there) && clock::now_ns() < end {
                sched::sleep_ns(t.cx, 2 * MS);
            }
            let (told, was_idle) = (counts_on(there), !tick::runs_on(there));
            BY_RCU.store(true, Relaxed);
            VICTIM.store(object.as_ptr(), Relaxed);
            ipi::send_nmi(there);
            ensure!(soon(t.cx, || rcu_bound::is_armed_on(there)), "no sheaf was begun on CPU {there}");
            let now = counts_on(there);
            ensure_eq!(now.rcu_objects, told.rcu_objects, "the object was deferred");
            idle += u64::from(was_idle);
            took += now.interrupts - told.interrupts;
        }
        drop(answering);
        drop(stay);
        t.note(format_args!("{took} interrupts in {idle} NMIs on an idle CPU"));
        ensure!(idle == 0 || took > 0, "CPU {there} was idle {idle} times and was never interrupted");
        ensure_all_back(cache, t.cx)
    }

    /// A barrier does not return while a drain is under way that it has interrupted, or that has taken the list (DEFER-3).
    #[tags(race)]
    fn a_barrier_waits_for_a_drain_that_is_under_way(t: &mut Test) {
        const ROUNDS: usize = 60;
        let here = cpu::current();
        let Some(there) = cpu::online().iter().find(|&other| other != here) else { skip!("needs 2 CPUs") };
        let cache = bare();
        nolock::settle(cache, t.cx);
        static GO: AtomicBool = AtomicBool::new(false);
        static ASKED: AtomicBool = AtomicBool::new(false);
        for _ in 0..ROUNDS {
            let mut objects = Vec::with_capacity(200);
            objects.extend((0..200).map_while(|_| cache.alloc(AllocFlags::NOWAIT)).map(|object| object.as_ptr().expose_provenance()));
            GO.store(false, SeqCst);
            ASKED.store(false, SeqCst);
            let thread = spawn(t.cx, Some(there), move |cx| {
                let pin = PreemptGuard::new(&*cx);
                for object in objects {
                    let object = NonNull::new(ptr::with_exposed_provenance_mut(object)).expect("an object");
                    // SAFETY: allocated above, given up here.
                    in_nmi(|| unsafe { kfree_nolock(object) });
                }
                ASKED.store(true, SeqCst);
                while !GO.load(SeqCst) {
                    irq::relax();
                }
                // Its end begins the drain, which the barrier meets.
                drop(pin);
            })?;
            while !ASKED.load(SeqCst) {
                sched::yield_now(t.cx);
            }
            let cpus = sched::keep_cpus(t.cx);
            GO.store(true, SeqCst);
            clock::udelay(t.rng.below(40));
            slab::deferred::flush(&cpus, t.cx);
            let left = cache.info().active_objs;
            drop(cpus);
            thread.join(t.cx);
            ensure_eq!(left, 0, "objects that the barrier did not wait for");
        }
        ensure_all_back(cache, t.cx)
    }

    /// Each kind of object, in each context that there is; nothing of it is left afterwards (K-11, S0-25, S1-14).
    fn every_context_may_give_up_every_kind_of_object(t: &mut Test) {
        let pages = |cx: &mut MaySleep| {
            kfree_rcu::kvfree_rcu_barrier(cx);
            mm::vmalloc::purge(cx);
            mm::drain_all(cx);
            mm::stats::nodes().map(|node| node.in_use()).sum::<usize>()
        };
        let before = pages(t.cx);
        for (context, enter) in CONTEXTS {
            for kind in KINDS {
                for nolock in [false, true] {
                    let nmi = *context == "NMI";
                    if nmi && !nolock {
                        continue;
                    }
                    for _ in 0..6 {
                        GIVEN_UP.store(false, Relaxed);
                        NOLOCK.store(nolock, Relaxed);
                        VICTIM.store(kind(t.cx)?.as_ptr(), Relaxed);
                        enter(give_up_victim);
                        let end = clock::now_ns() + PATIENCE_NS;
                        while !GIVEN_UP.load(Relaxed) && clock::now_ns() < end {
                            irq::relax();
                        }
                        ensure!(GIVEN_UP.load(Relaxed), "{context} never came");
                    }
                }
            }
        }
        let after = pages(t.cx);
        // Six objects of a kind in a context are more than 48 pages; caches and stacks come and go meanwhile.
        ensure!(after < before + 200, "{before} pages in use before, {after} after");
        for (stage, waiting) in Stage::ALL.map(|stage| (stage, slab::waiting::snapshot().at(stage))) {
            ensure!(waiting.bytes < 65_536, "{} bytes wait at {} after the barrier", waiting.bytes, stage.name());
        }
        Ok(())
    }

    /// Whatever `kfree_rcu` locks inside a lock, none of it is ever held around a run queue's: so it may be called under one
    /// (S0-25, S5-8).
    fn no_lock_inside_leads_to_a_run_queue(t: &mut Test) {
        if cfg!(not(debug_assertions)) {
            skip!("this build does not watch its locks");
        }
        const MINE: &str = "test.krn_outer";
        static LOCK: SpinLock<()> = SpinLock::new((), sync::lock_class!("test.krn_outer"));
        for kind in KINDS {
            for _ in 0..200 {
                let object = kind(t.cx)?;
                let _held = LOCK.lock_irqsave(&*t.cx);
                // SAFETY: allocated above, given up here; the head lies at its start.
                unsafe { kfree_rcu(object.cast()) };
            }
        }
        kfree_rcu::kvfree_rcu_barrier(t.cx);
        let inside = inside_of(MINE);
        let list = inside[1..].iter().fold(String::new(), |line, name| line + " " + name);
        t.note(format_args!("inside:{list}"));
        ensure!(inside.len() > 1, "the checker sees nothing");
        ensure!(!inside.contains(&"sched.rq"), "a run queue is locked inside of:{list}");
        Ok(())
    }

    /// An "NMI" that allocates and frees, on the paths into every back end and off the deferred list. Those of sheaves, and all
    /// others, are in `slab_nolock`.
    #[budget_ms(60_000)]
    fn stepped_nolock_calls_lose_nothing_under_any_back_end(t: &mut Test) {
        const PATHS: [&str; 4] = [
            "kfree_rcu into the sheaf",
            "kfree_rcu of a large object",
            "nolock, kfree_rcu",
            "nolock, drain of what was deferred",
        ];
        under_each_back_end(t, |t| match backend::current() {
            BackEnd::Sheaf => Ok(()),
            _ => stepped(t, Plan { alone: 4, dense: &[(3, 1)], strict: true }, |path| PATHS.contains(&path)),
        })
    }

    /// The same alone at every single boundary, and on every path that has to do with it.
    #[tags(slow)]
    #[budget_ms(1_200_000)]
    fn stepped_nolock_calls_lose_nothing_at_any_boundary_under_any_back_end(t: &mut Test) {
        let dense = &[(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (17, 5)];
        let plan = Plan { alone: u64::MAX, dense, strict: true };
        under_each_back_end(t, |t| stepped(t, plan, |path| path.contains("kfree_rcu") || path.starts_with("nolock")))
    }
}

fn stepped(t: &mut Test<'_>, plan: Plan, which: fn(&str) -> bool) -> Result<(), Failure> {
    let (walked, _) = walk_some(t, plan, which)?;
    ensure!(walked.length > 300 && walked.visits > 50, "only {} boundaries, {} visits", walked.length, walked.visits);
    Ok(())
}

/// Has each back end take its turn, and the one that was there again afterwards.
pub(super) fn under_each_back_end(
    t: &mut Test<'_>,
    mut f: impl FnMut(&mut Test<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let before = backend::current();
    let mut result = Ok(());
    for back_end in BackEnd::ALL {
        backend::switch(back_end, t.cx);
        t.note(format_args!("under {}:", back_end.name()));
        result = f(t).inspect_err(|_| log::error!("under {}", back_end.name()));
        if result.is_err() {
            break;
        }
    }
    backend::switch(before, t.cx);
    result
}

/// A kind of object: how to get one.
type Kind = fn(&mut MaySleep) -> Result<NonNull<u8>, Failure>;

const KINDS: [Kind; 4] = [
    |_| kmalloc(100, AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory")),
    |_| an_object(bare()),
    |_| kmalloc(50_000, AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory")),
    |cx| mm::vmalloc(20_000, cx).map_err(|error| crate::__failed!("{error}")),
];

/// Whether the victim is given up by the nolock call, and whether it has been.
static NOLOCK: AtomicBool = AtomicBool::new(false);
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

fn give_up_victim() {
    let Some(object) = NonNull::new(VICTIM.swap(ptr::null_mut(), Relaxed)) else { return };
    let head = object.cast::<RcuPtr>();
    let give_up = if NOLOCK.load(Relaxed) { kfree_rcu_nolock } else { kfree_rcu };
    // SAFETY: whoever put the object there gave it up; it has room for a head at its start.
    unsafe { give_up(head) };
    GIVEN_UP.store(true, Relaxed);
}

/// A context: its name, and how to have something done in it.
type Context = (&'static str, fn(fn()));

const CONTEXTS: &[Context] = &[
    ("thread", |f| f()),
    ("preemption off", |f| {
        let _pin = PreemptGuard::new(ATOMIC);
        f();
    }),
    ("interrupts off", |f| {
        let _off = IrqGuard::new(ATOMIC);
        f();
    }),
    ("spin lock", |f| {
        static LOCK: SpinLock<()> = SpinLock::new((), sync::lock_class!("test.krn_context"));
        let _held = LOCK.lock_irqsave(ATOMIC);
        f();
    }),
    ("soft interrupts off", |f| {
        let _off = SoftirqGuard::new(ATOMIC);
        f();
    }),
    ("soft interrupt", |f| {
        sched_softirq::call_in_handler(Some(f));
        sched::softirq::raise(sched::Softirq::Test);
        let end = clock::now_ns() + PATIENCE_NS;
        while !GIVEN_UP.load(Relaxed) && clock::now_ns() < end {
            irq::relax();
        }
        sched_softirq::call_in_handler(None);
    }),
    ("interrupt", |_| {
        static WORK: IrqWork = IrqWork::new(|_| give_up_victim());
        WORK.queue();
    }),
    ("NMI", |f| in_nmi(f)),
];
