//! CPUs that go and come while something else is under way: what the suites `hotplug_*` share.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arch::{CpuId, CpuMask, cpu, irq};
use sched::{JoinHandle, Prio, cpu_off, cpu_on};
use sync::{MaySleep, Rng};

use crate::{Failure, skip};

/// A millisecond in nanoseconds.
pub(crate) const MS: u64 = 1_000_000;

/// How often each CPU goes and comes under load, where there are at most 3 that can.
const TIMES: usize = 50;

/// The CPUs that may go; skips the test on a machine with none. Brings back those that a test which failed has left offline.
pub(crate) fn others(cx: &mut MaySleep) -> Result<Vec<CpuId>, Failure> {
    for cpu in (cpu::present() - cpu::online()).iter().filter(|&cpu| cpu::has_started(cpu)) {
        on(cpu, cx)?;
    }
    let others: Vec<CpuId> = (cpu::online() - CpuMask::of(CpuId::BOOT)).iter().collect();
    if others.is_empty() {
        skip!("needs 2 CPUs");
    }
    Ok(others)
}

/// Takes `cpu` offline.
pub(crate) fn off(cpu: CpuId, cx: &mut MaySleep) -> Result<(), Failure> {
    cpu_off(cpu, cx).map_err(|error| crate::__failed!("CPU {cpu} off: {error}"))
}

/// Brings `cpu` back.
pub(crate) fn on(cpu: CpuId, cx: &mut MaySleep) -> Result<(), Failure> {
    cpu_on(cpu, cx).map_err(|error| crate::__failed!("CPU {cpu} on: {error}"))
}

/// Has each of `cpus` go and come 50 times; of more than 3 CPUs as often in all as 3 would.
pub(crate) fn toggle_all(cpus: &[CpuId], rng: &mut Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    toggle(cpus, TIMES * 3 / cpus.len().max(3), rng, cx)
}

/// Threads for a load: enough for every CPU to have one, and to be preempted, while one thread at a time gets somewhere.
pub(crate) fn threads() -> usize {
    cpu::present().count().min(4) + 1
}

/// Has each of `cpus` in turn go and come, `times` times, sometimes with a neighbour gone at the same time, and with time
/// for the others to work in between. The caller does not wait for its turn among them meanwhile.
pub(crate) fn toggle(cpus: &[CpuId], times: usize, rng: &mut Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    let me = sched::current();
    let prio = sched::prio_of(me);
    sched::set_prio(me, Prio::HIGH);
    let result = toggle_in_turn(cpus, times, rng, cx);
    sched::set_prio(me, prio);
    result
}

fn toggle_in_turn(cpus: &[CpuId], times: usize, rng: &mut Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    for _ in 0..times {
        for (at, &cpu) in cpus.iter().enumerate() {
            let neighbour = cpus[(at + 1) % cpus.len()];
            let both = neighbour != cpu && rng.chance(1, 4);
            off(cpu, cx)?;
            if both {
                off(neighbour, cx)?;
            }
            sched::sleep_ns(cx, rng.below(MS));
            on(cpu, cx)?;
            if both {
                on(neighbour, cx)?;
            }
            sched::sleep_ns(cx, rng.below(MS));
        }
    }
    Ok(())
}

/// Starts a thread of normal priority, or fails the test.
pub(crate) fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    on: Option<CpuId>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<JoinHandle<T>, Failure> {
    sched::spawn(cx, "hotplug load", Prio::NORMAL, on, f).map_err(|error| crate::__failed!("{error}"))
}

/// Threads that do the same again and again until they are told to end, each with its own random numbers.
pub(crate) struct Load {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64, Failure>>>,
}

impl Load {
    pub(crate) fn new() -> Load {
        Load { over: Arc::new(AtomicBool::new(false)), threads: Vec::new() }
    }

    /// Adds a thread, which may run anywhere, that calls `turn` until the end, or until it fails.
    pub(crate) fn add(
        &mut self,
        cx: &mut MaySleep,
        mut rng: Rng,
        mut turn: impl FnMut(&mut Rng, &mut MaySleep) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let over = self.over.clone();
        self.threads.push(spawn(cx, None, move |cx| {
            let mut turns = 0;
            while !over.load(Relaxed) {
                turn(&mut rng, cx)?;
                turns += 1;
                // Where one host thread runs all CPUs, this is where another one gets its turn.
                irq::relax();
                sched::cond_resched(cx);
            }
            Ok(turns)
        })?);
        Ok(())
    }

    /// Ends all; returns how many turns they had.
    pub(crate) fn end(self, cx: &mut MaySleep) -> Result<Vec<u64>, Failure> {
        self.over.store(true, Relaxed);
        let results: Vec<_> = self.threads.into_iter().map(|thread| thread.join(cx)).collect();
        results.into_iter().collect()
    }
}
