//! Calls from CPU to CPU.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arch::{CpuMask, MAX_CPUS, cpu};
use sync::smp;

use crate::{ensure_eq, ktest, skip};

/// Calls that each CPU makes to each other one in the storm.
const STORM: u64 = 50;

/// Times that each CPU was called.
static CALLED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn count_call(_: usize) {
    CALLED[cpu::current().index()].fetch_add(1, Ordering::Relaxed);
}

fn reset() {
    CALLED.iter().for_each(|count| count.store(0, Ordering::Relaxed));
}

fn called() -> Vec<u64> {
    let counts = cpu::present().iter().map(|id| CALLED[id.index()].load(Ordering::Relaxed));
    counts.collect()
}

ktest! {
    /// A call to a mask runs once on each of its CPUs, the caller's own among them, and nowhere else.
    #[tags(race)]
    fn a_call_runs_once_on_each_cpu_of_the_mask(t: &mut Test) {
        let online: Vec<_> = cpu::online().iter().collect();
        for _ in 0..20 {
            let mask: CpuMask = online.iter().copied().filter(|_| t.rng.next_u64() & 1 == 1).collect();
            reset();
            smp::call_mask(&mask, count_call, 0, true);
            let expected = cpu::present().iter().map(|id| u64::from(mask.contains(id)));
            ensure_eq!(called(), expected.collect::<Vec<_>>(), "mask {mask}");
        }
        Ok(())
    }

    /// A call that nobody waits for runs all the same.
    fn a_call_without_waiting_runs(_t: &mut Test) {
        reset();
        let online = cpu::online();
        smp::call_all(count_call, 0, false);
        // The next call waits for the one before it.
        smp::call_all(|_| {}, 0, true);
        ensure_eq!(called().iter().sum::<u64>(), online.count() as u64);
        Ok(())
    }

    /// All CPUs call all others at the same time: none waits for ever, and no call is lost.
    #[tags(race)]
    fn all_cpus_call_all_others_at_once(t: &mut Test) {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let online = cpu::online();
        let count = online.count();
        if count < 2 {
            skip!("needs 2 CPUs");
        }
        reset();
        STARTED.store(0, Ordering::Relaxed);
        let mut threads = Vec::new();
        for id in online.iter() {
            let thread = sched::spawn(t.cx, "caller", sched::Prio::NORMAL, Some(id), move |cx| {
                STARTED.fetch_add(1, Ordering::Relaxed);
                // Not a spin: on few host cores the others need this CPU's time to come here.
                while STARTED.load(Ordering::Relaxed) < count {
                    sched::yield_now(cx);
                    arch::irq::relax();
                }
                let others = cpu::online() - CpuMask::of(id);
                for _ in 0..STORM {
                    smp::call_mask(&others, count_call, 0, true);
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        ensure_eq!(called().iter().sum::<u64>(), STORM * (count * (count - 1)) as u64);
        Ok(())
    }

    /// A closure runs on the CPU that was named, and its result comes back.
    fn a_result_comes_back_from_another_cpu(_t: &mut Test) {
        for id in cpu::online().iter() {
            ensure_eq!(smp::run_on(id, || cpu::current().index() * 3), Some(id.index() * 3));
        }
        Ok(())
    }
}
