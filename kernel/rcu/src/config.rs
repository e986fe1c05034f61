//! Constants and boot parameters of RCU, each with its unit and its reason. Rows.

use sync::param;

use crate::geometry::{Geometry, GeometryError, Spread};
#[cfg(loom)]
use crate::model::{arch, sched, sync};

param! {
    /// Children of an inner node of the combining tree.
    pub static FANOUT: u32 = "grange.rcu_fanout", default 64, in 2..=64, unit "nodes";
}

param! {
    /// CPUs of a leaf of the combining tree.
    pub static FANOUT_LEAF: u32 = "rcutree.rcu_fanout_leaf", default 16, in 2..=64, unit "CPUs";
}

param! {
    /// Whether nodes of the combining tree are filled up one after another, and not evenly.
    pub static FANOUT_EXACT: bool = "rcutree.rcu_fanout_exact", default false;
}

param! {
    /// Ticks from the start of a grace period to the first forced look at the CPUs that have not reported, a second at most;
    /// computed unless set.
    pub static FIRST_FQS: u32 = "rcutree.jiffies_till_first_fqs", default 0, in 0..=10000, unit "ticks";
}

param! {
    /// Ticks between later looks, 1 to a second; computed unless set.
    pub static NEXT_FQS: u32 = "rcutree.jiffies_till_next_fqs", default 0, in 0..=10000, unit "ticks";
}

param! {
    /// Whether `synchronize_rcu` is always expedited, and not only while the kernel boots.
    pub static EXPEDITED: bool = "rcupdate.rcu_expedited", default false;
}

param! {
    /// Whether no grace period is expedited, whoever asks for it.
    pub static NORMAL: bool = "rcupdate.rcu_normal", default false;
}

param! {
    /// Whether no grace period is expedited once the kernel has booted.
    pub static NORMAL_AFTER_BOOT: bool = "rcupdate.rcu_normal_after_boot", default false;
}

param! {
    /// Callbacks that one softirq run invokes when few are waiting.
    pub static BLIMIT: u32 = "rcutree.blimit", default 10, in 1..=10000, unit "callbacks";
}

param! {
    /// Callbacks on one CPU above which it hurries: no invocation limit, grace periods forced.
    pub static QHIMARK: u32 = "rcutree.qhimark", default 10000, in 1..=1000000, unit "callbacks";
}

param! {
    /// Callbacks on one CPU below which it stops hurrying.
    pub static QLOWMARK: u32 = "rcutree.qlowmark", default 100, in 0..=1000000, unit "callbacks";
}

param! {
    /// Callbacks on one CPU from which on it counts as overloaded; 0: twice `rcutree.qhimark`.
    pub static QOVLD: u32 = "rcutree.qovld", default 0, in 0..=10000000, unit "callbacks";
}

param! {
    /// Whether callbacks run in a softirq, and not in a thread for each CPU.
    pub static USE_SOFTIRQ: bool = "rcutree.use_softirq", default true;
}

param! {
    /// CPUs for which one thread waits for grace periods of offloaded callbacks; 0: the square root of their number.
    pub static NOCB_GP_STRIDE: u32 = "rcutree.rcu_nocb_gp_stride", default 0, in 0..=4096, unit "CPUs";
}

param! {
    /// Callbacks that an offloaded CPU may queue in a tick before it leaves the next ones till the tick's end.
    pub static NOCB_BURST: u32 = "rcutree.nocb_nobypass_lim_per_jiffy", default 16, in 0..=1000000, unit "callbacks";
}

param! {
    /// Whether callbacks of offloaded CPUs are lazy: nobody asks for a grace period for their sake at once.
    pub static LAZY: bool = "rcutree.enable_rcu_lazy", default false;
}

param! {
    /// How long lazy callbacks may wait before somebody asks.
    pub static LAZY_FLUSH_MS: u32 = "grange.rcu_lazy_flush_ms", default 10000, in 1..=600000, unit "ms";
}

param! {
    /// Seconds that a grace period may take before a report says who holds it up; five more in builds that check locks.
    pub static STALL_TIMEOUT: u32 = "rcupdate.rcu_cpu_stall_timeout", default 21, in 3..=300, unit "s";
}

param! {
    /// The same for expedited grace periods, in milliseconds; 0: as for others.
    pub static EXP_STALL_TIMEOUT: u32 = "rcupdate.rcu_exp_cpu_stall_timeout", default 0, in 0..=300000, unit "ms";
}

param! {
    /// Whether grace periods that take too long are not reported.
    pub static STALL_SUPPRESS: bool = "rcupdate.rcu_cpu_stall_suppress", default false;
}

param! {
    /// Whether a report of a stalled grace period is a panic.
    pub static PANIC_ON_STALL: bool = "grange.panic_on_rcu_stall", default false;
}

param! {
    /// Milliseconds for which a preempted reader may hold a normal grace period up before it is boosted, and ten times those
    /// for which it may hold up an expedited one; 0: none is boosted.
    pub static BOOST_DELAY: u32 = "grange.rcu_boost_delay", default 500, in 0..=100000, unit "ms";
}

param! {
    /// Priority level of the grace-period thread, of `rcuc/N`, and of boosted readers.
    pub static KTHREAD_PRIO: u32 = "rcutree.kthread_prio", default 6, in 1..=7, unit "level";
}

/// [`KTHREAD_PRIO`] as the scheduler has it.
#[cfg(not(loom))]
pub(crate) fn kthread_prio() -> sched::Prio {
    sched::Prio::from_level(KTHREAD_PRIO.get() as usize)
}

/// Callbacks that one softirq run invokes while the CPU hurries. Bounds the time away from other softirqs together with
/// [`BATCH_MAX_NS`].
pub(crate) const BLIMIT_HURRY: usize = 10_000;

/// A run invokes at least `waiting >> BATCH_DIVISOR` callbacks, so that a backlog shrinks by a fixed share each time.
pub(crate) const BATCH_DIVISOR: u32 = 7;

/// Ticks that a callback waits for its grace period if nobody hurries, roughly: till the running one is over, and one more.
/// What comes in during as many is what there will be to wait.
pub(crate) const RATE_HORIZON_TICKS: usize = 4;

/// Callbacks that could run but do not get to, from which on `call_rcu` itself runs [`HELP`] of them.
pub(crate) const HELP_AT: usize = 100;

/// Callbacks that one `call_rcu` runs then. More than one, so that a backlog shrinks while it is added to.
pub(crate) const HELP: usize = 4;

/// The number from which on a CPU is overloaded.
pub(crate) fn overload_mark() -> usize {
    match QOVLD.get() {
        0 => 2 * QHIMARK.get() as usize,
        set => set as usize,
    }
}

/// Nanoseconds after which a run of callbacks stops. The clock is read every [`CLOCK_EVERY`] callbacks.
pub(crate) const BATCH_MAX_NS: u64 = 3_000_000;

/// Callbacks between two looks at the clock: a look costs as much as some callbacks do.
pub(crate) const CLOCK_EVERY: usize = 32;
const _: () = assert!(CLOCK_EVERY.is_power_of_two(), "a mask picks every CLOCK_EVERY-th callback");

/// Ticks that a CPU may owe a quiescent state before its tick asks for a reschedule: a section with preemption off that
/// spans this many is ended by a pass through the scheduler as soon as it allows one.
pub(crate) const TICKS_TILL_RESCHED: u32 = 2;

/// The tree that the parameters ask for.
pub(crate) fn shape(cpus: usize) -> Result<Geometry, GeometryError> {
    let spread = if FANOUT_EXACT.get() { Spread::Exact } else { Spread::Even };
    Geometry::new(cpus, FANOUT.get(), FANOUT_LEAF.get(), spread)
}

/// When the grace-period thread acts while it waits for readers, in ticks.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pace {
    /// From the start of a grace period to the first look at the CPUs that have not reported.
    pub(crate) first: u64,
    /// Between later looks.
    pub(crate) next: u64,
    /// From the start to the first time that the scheduler is asked for help with such CPUs, and between later times.
    pub(crate) help: u64,
}

impl Pace {
    /// What is computed where nothing is set: a tick, and one more for high tick rates, and one for every 256 CPUs. What is
    /// set is clamped: the first look comes within a second, and so do the later ones, but not all at once.
    fn new(first: Option<u32>, next: Option<u32>, hz: u32, cpus: usize) -> Pace {
        let (hz, share) = (u64::from(hz), cpus as u64 / 256);
        let computed = 1 + u64::from(hz > 250) + u64::from(hz > 500) + share;
        let first = first.map_or(computed, |ticks| u64::from(ticks).min(hz));
        let next = next.map_or(computed, |ticks| u64::from(ticks).clamp(1, hz));
        Pace { first, next, help: (first + 2 * next).max(hz / 10 + share) }
    }

    /// That of the parameters and of this machine.
    pub(crate) fn get() -> Pace {
        let first = FIRST_FQS.is_set().then(|| FIRST_FQS.get());
        let next = NEXT_FQS.is_set().then(|| NEXT_FQS.get());
        Pace::new(first, next, sched::config::HZ.get(), arch::cpu::present().count())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn looks_come_after_a_tick_and_later_at_high_rates_and_on_many_cpus() {
        let pace = |hz, cpus| Pace::new(None, None, hz, cpus);
        assert_eq!(pace(250, 64), Pace { first: 1, next: 1, help: 25 });
        assert_eq!(pace(251, 64), Pace { first: 2, next: 2, help: 25 });
        assert_eq!(pace(1000, 64), Pace { first: 3, next: 3, help: 100 });
        assert_eq!(pace(250, 256), Pace { first: 2, next: 2, help: 26 });
        assert_eq!(pace(10, 1), Pace { first: 1, next: 1, help: 3 });
    }

    #[test]
    fn looks_that_are_set_are_clamped_to_a_second() {
        assert_eq!(Pace::new(Some(0), Some(0), 250, 1), Pace { first: 0, next: 1, help: 25 });
        assert_eq!(Pace::new(Some(251), Some(10_000), 250, 1), Pace { first: 250, next: 250, help: 750 });
        assert_eq!(Pace::new(Some(250), Some(7), 250, 1), Pace { first: 250, next: 7, help: 264 });
    }
}
