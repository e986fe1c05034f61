//! NMIs to random CPUs (`torture.nmi_interval`). Every registered handler sees each of them, so a kind that has one runs in
//! them, too.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use arch::trap::TrapFrame;
use arch::{clock, cpu, ipi};
use sched::Prio;
use sync::nmi::NmiHandler;
use sync::{MaySleep, Once, Rng};

use crate::torture::{Ongoing, Stat, config, control};
use crate::{Failure, skip, torture};

/// Up to this a sender spins from one to the next, since to sleep takes longer.
const SPIN_US: u32 = 200;

/// A storm blows, or its last NMIs are on their way. Written by the thread that runs the torture.
static BLOWS: AtomicBool = AtomicBool::new(false);
/// NMIs that came meanwhile; two at once are one.
static TAKEN: AtomicU64 = AtomicU64::new(0);
static HANDLER: NmiHandler = NmiHandler::new("torture", claim);

fn claim(_: &mut TrapFrame) -> bool {
    let ours = BLOWS.load(Relaxed);
    TAKEN.fetch_add(u64::from(ours), Relaxed);
    ours
}

#[derive(Default)]
struct Nmis {
    sent: AtomicU64,
}

impl Nmis {
    fn blow(&self, interval_us: u32, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        while !control::stutter(cx) {
            {
                let _stay = sched::keep_cpus(cx);
                let online = cpu::online();
                if let Some(target) = online.iter().nth(rng.index(online.count())) {
                    ipi::send_nmi(target);
                    self.sent.fetch_add(1, Relaxed);
                }
            }
            if interval_us > SPIN_US {
                control::rest(cx, u64::from(interval_us) * 1_000);
            } else {
                clock::udelay(u64::from(interval_us));
                sched::cond_resched(cx);
            }
        }
        Ok(())
    }
}

impl Ongoing for Arc<Nmis> {
    fn stat(&self, out: &mut Stat) {
        out.work("sent", self.sent.load(Relaxed));
        out.work("taken", TAKEN.load(Relaxed));
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        // What was sent came before this call does.
        sync::smp::call_all(|_| (), 0, true);
        BLOWS.store(false, Relaxed);
        Ok(())
    }
}

torture! {
    /// NMIs to random CPUs, one every torture.nmi_interval microseconds
    #[disturber]
    fn nmi(run: &mut Run) {
        let interval = config::NMI_INTERVAL.get();
        if interval == 0 {
            skip!("torture.nmi_interval=0");
        }
        static REGISTERED: Once<()> = Once::new();
        REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
        TAKEN.store(0, Relaxed);
        BLOWS.store(true, Relaxed);
        let nmis = Arc::new(Nmis::default());
        let (mine, rng) = (nmis.clone(), run.rng("nmi"));
        run.spawn("nmi", Prio::NORMAL, None, move |cx| mine.blow(interval, rng, cx))?;
        Ok(nmis)
    }
}
