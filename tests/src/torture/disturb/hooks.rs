//! Somebody comes in between where it is worst (`torture.hooks`): at one in so many of the places that the sources mark as hooks,
//! inside locked sections and where a lock has been let go for a moment, comes an NMI, in which kinds with a handler act, or
//! a pause, in which other CPUs do. In kernels of the profile `mutants` alone: the others have no hooks.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use arch::trap::TrapFrame;
use arch::{clock, cpu, ipi};
use sync::mutants::{Attached, Site, attach};
use sync::nmi::NmiHandler;
use sync::{MaySleep, Once, Rng, param};

use crate::torture::{Ongoing, Stat};
use crate::{Failure, ensure, skip, torture};

param! {
    /// At one in so many hooks comes an NMI or a pause; 0 for none.
    static HOOKS: u32 = "torture.hooks", default 0, in 0..=1_000_000;
}

/// The longest pause, and of the few that are long.
const SHORT_NS: u64 = 20_000;
const LONG_NS: u64 = 4_000_000;

/// Hooks that were reached: with the seed, where random numbers come from. All written in any context.
static REACHED: AtomicU64 = AtomicU64::new(0);
static STRUCK: AtomicU64 = AtomicU64::new(0);
static PAUSED: AtomicU64 = AtomicU64::new(0);
/// Written by the thread of the run while nobody is attached.
static SEED: AtomicU64 = AtomicU64::new(0);
/// NMIs are sent, or the last ones are on their way. Written by the thread of the run.
static ON: AtomicBool = AtomicBool::new(false);
static HANDLER: NmiHandler = NmiHandler::new("torture-hooks", claim);

fn claim(_: &mut TrapFrame) -> bool {
    ON.load(Relaxed)
}

fn come_in(_: &'static Site) {
    let mut rng = Rng::stream(SEED.load(Relaxed), REACHED.fetch_add(1, Relaxed));
    if sync::context::in_nmi() || !rng.chance(1, u64::from(HOOKS.get())) {
        return;
    }
    if rng.chance(3, 4) {
        STRUCK.fetch_add(1, Relaxed);
        ipi::send_nmi(cpu::current());
        // Here it comes.
        arch::irq::relax();
        return;
    }
    PAUSED.fetch_add(1, Relaxed);
    let longest = if rng.chance(1, 32) { LONG_NS } else { SHORT_NS };
    let end = clock::now_ns() + rng.below(longest);
    while clock::now_ns() < end {
        arch::irq::relax();
    }
}

struct Visits {
    attached: Option<Attached>,
}

impl Ongoing for Visits {
    fn stat(&self, out: &mut Stat) {
        out.count("reached", REACHED.load(Relaxed));
        out.work("struck", STRUCK.load(Relaxed));
        out.work("paused", PAUSED.load(Relaxed));
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        self.attached = None;
        // What was sent came before this call does.
        sync::smp::call_all(|_| (), 0, true);
        ON.store(false, Relaxed);
        Ok(())
    }
}

torture! {
    /// At one in torture.hooks of the places that the sources mark comes an NMI or a pause
    #[disturber]
    fn hooks(run: &mut Run) {
        if HOOKS.get() == 0 {
            skip!("torture.hooks=0");
        }
        static REGISTERED: Once<()> = Once::new();
        REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
        [&REACHED, &STRUCK, &PAUSED].into_iter().for_each(|count| count.store(0, Relaxed));
        SEED.store(run.rng("hooks").next_u64(), Relaxed);
        ON.store(true, Relaxed);
        let attached = attach(come_in);
        ensure!(attached.is_some(), "somebody else is attached");
        Ok(Visits { attached })
    }
}
