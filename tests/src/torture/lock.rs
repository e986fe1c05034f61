//! Torture of locks: spin locks, also from interrupts, and mutexes, held for times long and short, waited for and tried. Who holds one
//! is alone, and sees what the holders before wrote.
//!
//! Linux: `kernel/locking/locktorture.c` (6.12). Row: C-13.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::{clock, cpu, irq};
use sched::{Mutex, Prio};
use sync::{ATOMIC, IrqWork, MaySleep, Rng, SpinLock, lock_class};

use super::{Ongoing, Stat, control};
use crate::{Failure, torture};

/// What a lock protects: written without any order or atomicity of its own.
#[derive(Default)]
struct Inside {
    /// Of the holder; 0 for nobody.
    holder: AtomicU64,
    /// Both count the holders so far, one at the beginning of each hold, one at its end.
    begun: AtomicU64,
    ended: AtomicU64,
}

#[derive(Default)]
struct Counts {
    spins: AtomicU64,
    tries: AtomicU64,
    busy: AtomicU64,
    mutexes: AtomicU64,
    interrupts: AtomicU64,
    /// Somebody else held it, too; or what the holder before wrote was not there.
    shared: AtomicU64,
}

impl Inside {
    /// Holds the lock that this is inside of: what is seen at the end is what was written at the beginning.
    fn hold(&self, me: u64, counts: &Counts, hold: impl FnOnce()) {
        let (holder, begun) = (self.holder.load(Relaxed), self.begun.load(Relaxed));
        let alone = holder == 0 && begun == self.ended.load(Relaxed);
        self.holder.store(me, Relaxed);
        self.begun.store(begun + 1, Relaxed);
        hold();
        let alone = alone && self.holder.load(Relaxed) == me && self.begun.load(Relaxed) == begun + 1;
        self.ended.store(begun + 1, Relaxed);
        self.holder.store(0, Relaxed);
        counts.shared.fetch_add(u64::from(!alone), Relaxed);
    }
}

/// In statics, since an interrupt wants it, too.
static SPIN: SpinLock<Option<Arc<Shared>>> = SpinLock::new(None, lock_class!("tests.torture_spin"));
static VISITOR: IrqWork = IrqWork::new(|_| visit());

struct Shared {
    counts: Counts,
    spin: Inside,
    mutex: Mutex<Inside>,
}

/// A number that no thread has, for the holder in an interrupt.
const INTERRUPT: u64 = u64::MAX;

fn visit() {
    let lock = SPIN.lock_irqsave(ATOMIC);
    if let Some(shared) = &*lock {
        shared.spin.hold(INTERRUPT, &shared.counts, || ());
        shared.counts.interrupts.fetch_add(1, Relaxed);
    }
}

fn spin_for(ns: u64) {
    let end = clock::now_ns() + ns;
    while clock::now_ns() < end {
        irq::relax();
    }
}

fn turn(shared: &Shared, rng: &mut Rng, cx: &mut MaySleep) {
    let me = sched::current().tid();
    let counts = &shared.counts;
    // Long now and then, so that others queue up.
    let ns = if rng.chance(1, 64) { rng.below(1_000_000) } else { rng.below(2_000) };
    match rng.index(8) {
        0 => _ = VISITOR.queue(),
        1 => {
            counts.tries.fetch_add(1, Relaxed);
            match SPIN.try_lock_irqsave(cx) {
                Some(_lock) => shared.spin.hold(me, counts, || spin_for(ns)),
                None => _ = counts.busy.fetch_add(1, Relaxed),
            }
        }
        2..5 => {
            let _lock = SPIN.lock_irqsave(cx);
            shared.spin.hold(me, counts, || spin_for(ns));
            counts.spins.fetch_add(1, Relaxed);
        }
        5 => {
            counts.tries.fetch_add(1, Relaxed);
            match shared.mutex.try_lock() {
                Some(inside) => inside.hold(me, counts, || spin_for(ns)),
                None => _ = counts.busy.fetch_add(1, Relaxed),
            }
        }
        _ => {
            let inside = shared.mutex.lock(cx);
            // Some sleep with it.
            inside.hold(me, counts, || if ns > 1_000 { sched::sleep_ns(cx, ns) } else { spin_for(ns) });
            counts.mutexes.fetch_add(1, Relaxed);
        }
    }
}

impl Ongoing for Arc<Shared> {
    fn stat(&self, out: &mut Stat) {
        let counts = &self.counts;
        out.work("spins", counts.spins.load(Relaxed));
        out.work("mutexes", counts.mutexes.load(Relaxed));
        out.work("tries", counts.tries.load(Relaxed));
        out.count("busy", counts.busy.load(Relaxed));
        out.work("interrupts", counts.interrupts.load(Relaxed));
        out.error("shared", counts.shared.load(Relaxed));
    }

    fn stop(&mut self, cx: &mut MaySleep) -> Result<(), Failure> {
        VISITOR.sync(cx);
        let shared = SPIN.lock_irqsave(ATOMIC).take();
        drop(shared);
        Ok(())
    }
}

torture! {
    /// Spin locks and mutexes, waited for and tried, from threads and interrupts: whoever holds one is alone
    fn lock(run: &mut Run) {
        let shared = Arc::new(Shared {
            counts: Counts::default(),
            spin: Inside::default(),
            mutex: Mutex::new(Inside::default(), lock_class!("tests.torture_mutex")),
        });
        *SPIN.lock_irqsave(ATOMIC) = Some(shared.clone());
        let mut rng = run.rng("threads");
        for n in 0..2 * cpu::online().count() {
            let (shared, mut rng) = (shared.clone(), Rng::new(rng.next_u64()));
            let prio = if n % 4 == 0 { Prio::HIGH } else { Prio::NORMAL };
            run.spawn("lock", prio, None, move |cx| {
                while !control::stutter(cx) {
                    turn(&shared, &mut rng, cx);
                    if rng.chance(1, 8) {
                        sched::sleep_ns(cx, rng.below(200_000));
                    }
                    sched::cond_resched(cx);
                }
                Ok(())
            })?;
        }
        Ok(shared)
    }
}
