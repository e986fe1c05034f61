//! Whom a grace period waits for.

use arch::CpuMask;
use sched::Thread;
use sync::ATOMIC;

use crate::cpu::shared;
use crate::eqs::{Look, before_looks, look_at};
use crate::mode::Kind;
use crate::tree::tree;

/// Threads that are told of; more are only counted.
const THREADS: usize = 8;

/// Whom a grace period waits for, each leaf as it was at one moment.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// CPUs that have not passed a quiescent state, as far as can be seen from outside.
    pub cpus: CpuMask,
    threads: [Option<(&'static Thread, u64)>; THREADS],
    /// Preempted readers that there was no room for.
    pub more_threads: usize,
}

/// Whom the running grace period of this kind waits for; nobody, if none runs.
///
/// Context: any but NMI, after [`crate::init`]; takes node locks one at a time.
pub fn awaited(kind: Kind) -> Awaited {
    let mut found = Awaited { cpus: CpuMask::EMPTY, threads: [None; THREADS], more_threads: 0 };
    for leaf in tree().leaves() {
        let state = leaf.lock(ATOMIC);
        before_looks();
        let missing = if kind == Kind::Normal { state.qsmask } else { state.expmask };
        for (cpu, _) in leaf.cpus(missing) {
            let shared = shared(cpu);
            // Who idles has only not been looked at yet (STALL-2). An expedited one keeps no value to compare with.
            let seen = shared.gp_snap.load(core::sync::atomic::Ordering::Relaxed);
            let busy = match look_at(shared) {
                Look::Idle => false,
                Look::Watched(value) => kind == Kind::Expedited || value == seen,
            };
            if busy {
                found.cpus.insert(cpu);
            }
        }
        match kind {
            Kind::Normal => state.blkd.for_each_gp_blocker(|thread| found.add(thread)),
            Kind::Expedited => state.blkd.for_each_exp_blocker(|thread| found.add(thread)),
        }
    }
    found
}

impl Awaited {
    fn add(&mut self, thread: &'static Thread) {
        match self.threads.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some((thread, thread.tid())),
            None => self.more_threads += 1,
        }
    }

    /// Readers that were preempted and have not left their sections: the first few, each with its number.
    pub fn threads(&self) -> impl Iterator<Item = (&'static Thread, u64)> + '_ {
        self.threads.iter().flatten().copied()
    }

    /// Nobody.
    pub fn is_empty(&self) -> bool {
        self.cpus.is_empty() && self.threads[0].is_none()
    }
}
