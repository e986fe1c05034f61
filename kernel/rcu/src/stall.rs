//! Stall warnings: who holds up a grace period that takes too long.
//!
//! The thread that waits for a grace period looks at the clock each time it wakes; past
//! [`config::STALL_TIMEOUT`](crate::config::STALL_TIMEOUT), and then at three times that again and again, it reports the CPUs that
//! have not reported and the threads that block it, by name. The report begins with Linux's own line, then says it
//! in plain sentences.
//!
//! Only waiting time counts, as the waiting thread sees it: a grace-period thread that does not get to run is seen
//! by its caller, not here.
//!
//! Answers to Linux kernel/rcu/tree_stall.h; row R-20.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::clock;
use sync::ATOMIC;

use crate::config::{PANIC_ON_STALL, STALL_TIMEOUT};
use crate::cpu::shared;
use crate::seq::Seq;
use crate::tree::tree;

/// Reports so far.
pub(crate) static COUNT: AtomicU64 = AtomicU64::new(0);

/// The patience of one wait for a grace period.
pub(crate) struct Watch {
    started_ns: u64,
    report_at_ns: u64,
}

/// Which grace period.
#[derive(Copy, Clone, Eq, PartialEq)]
enum Kind {
    Normal,
    Expedited,
}

impl Watch {
    /// Starts now.
    pub(crate) fn new() -> Watch {
        let now = clock::now_ns();
        Watch { started_ns: now, report_at_ns: now + timeout_ns() }
    }

    /// Nanoseconds until there may be something to report; for a waiter with nothing else to do meanwhile.
    pub(crate) fn patience_ns(&self) -> u64 {
        self.report_at_ns.saturating_sub(clock::now_ns()).max(1)
    }

    /// Reports if the normal grace period `gp` has taken too long. Context: task.
    pub(crate) fn check(&mut self, gp: Seq) {
        self.look(Kind::Normal, gp);
    }

    /// Reports if the expedited grace period `gp` has taken too long. Context: task.
    pub(crate) fn check_expedited(&mut self, gp: Seq) {
        self.look(Kind::Expedited, gp);
    }

    fn look(&mut self, kind: Kind, gp: Seq) {
        let now = clock::now_ns();
        if now >= self.report_at_ns {
            self.report_at_ns = now + 3 * timeout_ns();
            report(kind, gp, (now - self.started_ns) / 1_000_000);
        }
    }
}

fn timeout_ns() -> u64 {
    u64::from(STALL_TIMEOUT.get()) * 1_000_000_000
}

#[cold]
fn report(kind: Kind, gp: Seq, ms: u64) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    match kind {
        Kind::Normal => log::error!("INFO: rcu_preempt detected stalls on CPUs/tasks:"),
        Kind::Expedited => {
            log::error!("INFO: rcu_preempt detected expedited stalls on CPUs/tasks:")
        }
    }
    log::error!("grace period {gp:?} has been waiting for {ms} ms");
    for leaf in tree().leaves() {
        let (missing, blocked) = {
            let state = leaf.lock(ATOMIC);
            let mut blocked = Blocked::default();
            match kind {
                Kind::Normal => state.blkd.for_each_gp_blocker(|thread| blocked.add(thread)),
                Kind::Expedited => state.blkd.for_each_exp_blocker(|thread| blocked.add(thread)),
            }
            (if kind == Kind::Normal { state.qsmask } else { state.expmask }, blocked)
        };
        for (cpu, _) in leaf.cpus(missing) {
            let shared = shared(cpu);
            log::error!(
                "CPU {cpu}{} has not passed a quiescent state: watching counter {}, {} ticks, {} callbacks",
                if arch::cpu::is_online(cpu) { "" } else { ", which is offline," },
                shared.watching.load(Ordering::Relaxed),
                sched::tick::count_on(cpu),
                shared.cb_len.load(Ordering::Relaxed),
            );
        }
        for thread in blocked.threads.iter().flatten() {
            log::error!("thread {thread:?} was preempted inside a reader and has not left it");
        }
        if blocked.more > 0 {
            log::error!("and {} more threads", blocked.more);
        }
    }
    assert!(!PANIC_ON_STALL.get(), "RCU stall: grace period {gp:?} has been waiting for {ms} ms");
}

/// The first few blocked threads, copied out so that nothing is logged under a node lock.
#[derive(Default)]
struct Blocked {
    threads: [Option<&'static sched::Thread>; 4],
    more: usize,
}

impl Blocked {
    fn add(&mut self, thread: &'static sched::Thread) {
        match self.threads.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(thread),
            None => self.more += 1,
        }
    }
}
