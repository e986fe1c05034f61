//! The parameters `rcutorture.*`, named as Linux's, and what is made of them.
//!
//! Times are shorter than Linux's by default: a run here is a minute, not half an hour.

use sync::param;

use super::flavours::{BUSTED, RCU, SRCU, SRCU_FAST, SRCU_FAST_UPDOWN, SRCU_NMI_SAFE, TASKS, TASKS_RUDE, TASKS_TRACE};
use super::ops::{Ops, Update};

/// A millisecond and a second in nanoseconds.
const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

param! {
    /// What the kind `rcu` tortures: RCU, or readers of RCU with updaters that wait for nobody, which has to be caught.
    pub static TORTURE_TYPE: choice = "rcutorture.torture_type", default "rcu", one of ["rcu", "busted"];
}
param! {
    /// Reader threads of a kind; 0: one for each CPU, and two more.
    pub static NREADERS: u32 = "rcutorture.nreaders", default 0, in 0..=1024, unit "threads";
}
param! {
    /// Threads that wait like updaters and replace nothing.
    pub static NFAKEWRITERS: u32 = "rcutorture.nfakewriters", default 4, in 0..=64, unit "threads";
}
param! {
    /// The ways to wait that updaters choose from, of `gp_sync`, `gp_exp`, `gp_cond`, `gp_poll` … with `_full`, `_exp`, and
    /// `gp_normal`, `gp_async` for callbacks: globs, separated by commas; all if there is none.
    pub static UPDATES: str = "grange.torture_updates", default "";
}
param! {
    /// Whether timers, interrupts and NMIs read.
    pub static IRQREADER: bool = "rcutorture.irqreader", default true;
}
param! {
    /// Whether readers use what they found when their section is over. The run has to fail.
    pub static LEAKPOINTER: bool = "rcutorture.leakpointer", default false;
}
param! {
    /// Threads whose last deed is a section, in a burst.
    pub static READ_EXIT_BURST: u32 = "rcutorture.read_exit_burst", default 16, in 0..=1024, unit "threads";
}
param! {
    /// Milliseconds between bursts.
    pub static READ_EXIT_DELAY: u32 = "grange.torture_read_exit_delay", default 1_000, in 1..=3_600_000, unit "ms";
}
param! {
    /// Threads that each post a callback before a barrier; 0: no barriers are tested.
    pub static N_BARRIER_CBS: u32 = "rcutorture.n_barrier_cbs", default 4, in 0..=64, unit "threads";
}
param! {
    /// Seconds between tests of forward progress; 0 for none.
    pub static FWD_PROGRESS_HOLDOFF: u32 = "rcutorture.fwd_progress_holdoff", default 10, in 0..=3_600, unit "s";
}
param! {
    /// Seconds between tests of boosting; 0 for none.
    pub static TEST_BOOST_INTERVAL: u32 = "rcutorture.test_boost_interval", default 7, in 0..=3_600, unit "s";
}
param! {
    /// Milliseconds between two CPUs that are offloaded, or no more; 0 for never.
    pub static NOCBS_TOGGLE: u32 = "rcutorture.nocbs_toggle", default 0, in 0..=3_600_000, unit "ms";
}
param! {
    /// Milliseconds for which the grace-period thread is kept from its CPU, at most; 0 for never, as in runs with stalls.
    pub static GP_DELAY: u32 = "grange.torture_gp_delay", default 4, in 0..=1_000, unit "ms";
}
param! {
    /// Seconds for which a CPU is kept from its quiescent state; 0 for never. Half of it is the limit for reports then.
    pub static STALL_CPU: u32 = "rcutorture.stall_cpu", default 0, in 0..=60, unit "s";
}
param! {
    /// Seconds between stalls.
    pub static STALL_CPU_HOLDOFF: u32 = "rcutorture.stall_cpu_holdoff", default 10, in 1..=3_600, unit "s";
}
param! {
    /// Whether interrupts are off in a stall.
    pub static STALL_CPU_IRQSOFF: bool = "rcutorture.stall_cpu_irqsoff", default false;
}
param! {
    /// Whether the stall is a reader that has lost its CPU.
    pub static STALL_CPU_BLOCK: bool = "rcutorture.stall_cpu_block", default false;
}
param! {
    /// Seconds for which the grace-period thread is kept from its CPU; 0 for never. Wins over `rcutorture.stall_cpu`.
    pub static STALL_GP_KTHREAD: u32 = "rcutorture.stall_gp_kthread", default 0, in 0..=60, unit "s";
}

/// What the kinds torture.
static OF_RCU: [&Ops; 1] = [&RCU];
static OF_BUSTED: [&Ops; 1] = [&BUSTED];
static OF_SRCU: [&Ops; 4] = [&SRCU, &SRCU_NMI_SAFE, &SRCU_FAST, &SRCU_FAST_UPDOWN];
static OF_TASKS: [&Ops; 3] = [&TASKS, &TASKS_RUDE, &TASKS_TRACE];

/// How a stall is made.
#[derive(Copy, Clone)]
pub(crate) enum StallWay {
    NoPreemption,
    NoInterrupts,
    LostCpu,
    GpThread,
}

/// What a kind does. Times are in nanoseconds, and 0 for never.
#[derive(Clone)]
pub(crate) struct Setup {
    /// The flavours, each with a pipe of its own.
    pub(crate) ops: &'static [&'static Ops],
    /// Globs of ways to wait.
    pub(crate) updates: &'static str,
    pub(crate) readers: usize,
    pub(crate) fake_updaters: usize,
    pub(crate) prodders: usize,
    pub(crate) interrupts: bool,
    pub(crate) leak_pointers: bool,
    pub(crate) read_exit_burst: usize,
    pub(crate) read_exit_delay_ns: u64,
    pub(crate) barrier_callbacks: usize,
    pub(crate) fwd_holdoff_ns: u64,
    pub(crate) boost_interval_ns: u64,
    pub(crate) toggle_ns: u64,
    pub(crate) gp_delay_ns: u64,
    pub(crate) stall: Option<StallWay>,
    pub(crate) stall_ns: u64,
    pub(crate) stall_holdoff_ns: u64,
}

impl Setup {
    /// What the parameters say for any flavours: readers, updaters, barriers.
    fn plain(ops: &'static [&'static Ops]) -> Setup {
        let readers = match NREADERS.get() as usize {
            0 => arch::cpu::online_count() + 2,
            n => n,
        };
        Setup {
            ops,
            updates: UPDATES.get(),
            readers,
            fake_updaters: NFAKEWRITERS.get() as usize,
            prodders: 1,
            interrupts: IRQREADER.get(),
            leak_pointers: LEAKPOINTER.get(),
            read_exit_burst: READ_EXIT_BURST.get() as usize,
            read_exit_delay_ns: u64::from(READ_EXIT_DELAY.get()) * MS,
            barrier_callbacks: N_BARRIER_CBS.get() as usize,
            fwd_holdoff_ns: 0,
            boost_interval_ns: 0,
            toggle_ns: 0,
            gp_delay_ns: 0,
            stall: None,
            stall_ns: 0,
            stall_holdoff_ns: u64::from(STALL_CPU_HOLDOFF.get()) * S,
        }
    }

    /// RCU, or what `rcutorture.torture_type` says, and all that belongs to its machinery.
    pub(crate) fn rcu() -> Setup {
        let ops = if TORTURE_TYPE.get() == "busted" { &OF_BUSTED } else { &OF_RCU };
        let stall = match (STALL_GP_KTHREAD.get(), STALL_CPU.get()) {
            (0, 0) => None,
            (0, _) if STALL_CPU_IRQSOFF.get() => Some(StallWay::NoInterrupts),
            (0, _) if STALL_CPU_BLOCK.get() => Some(StallWay::LostCpu),
            (0, _) => Some(StallWay::NoPreemption),
            _ => Some(StallWay::GpThread),
        };
        // Where nobody is preempted, no reader loses its CPU to be boosted for.
        let boosts = sched::config::PREEMPT.get() == "full";
        let stall_s = if STALL_GP_KTHREAD.get() != 0 { STALL_GP_KTHREAD.get() } else { STALL_CPU.get() };
        Setup {
            prodders: arch::cpu::online_count(),
            fwd_holdoff_ns: u64::from(FWD_PROGRESS_HOLDOFF.get()) * S,
            boost_interval_ns: if boosts { u64::from(TEST_BOOST_INTERVAL.get()) * S } else { 0 },
            toggle_ns: u64::from(NOCBS_TOGGLE.get()) * MS,
            // Its end would end a stall, too.
            gp_delay_ns: if stall.is_some() { 0 } else { u64::from(GP_DELAY.get()) * MS },
            stall,
            stall_ns: u64::from(stall_s) * S,
            ..Setup::plain(ops)
        }
    }

    /// All kinds of SRCU.
    pub(crate) fn srcu() -> Setup {
        Setup::plain(&OF_SRCU)
    }

    /// All of Tasks RCU.
    pub(crate) fn tasks() -> Setup {
        Setup::plain(&OF_TASKS)
    }

    /// Whether `update` is among those to choose from.
    pub(crate) fn wants(&self, update: &Update) -> bool {
        let mut patterns = self.updates.split(',').map(str::trim).filter(|pattern| !pattern.is_empty()).peekable();
        patterns.peek().is_none() || patterns.any(|pattern| sync::glob(pattern, update.name))
    }
}
