//! Constants and boot parameters of RCU, each with its unit and its reason. Rows.

use sync::param;

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
    /// Ticks from the start of a grace period to the first forced look at the CPUs that have not reported; 0: computed.
    pub static FIRST_FQS: u32 = "rcutree.jiffies_till_first_fqs", default 0, in 0..=10000, unit "ticks";
}

param! {
    /// Ticks between later looks; 0: computed.
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
    /// Seconds that a grace period may take before a report says who holds it up.
    pub static STALL_TIMEOUT: u32 = "rcupdate.rcu_cpu_stall_timeout", default 21, in 1..=300, unit "s";
}

param! {
    /// Whether a report of a stalled grace period is a panic.
    pub static PANIC_ON_STALL: bool = "grange.panic_on_rcu_stall", default false;
}

/// Callbacks that one softirq run invokes while the CPU hurries. Bounds the time away from other softirqs together with
/// [`BATCH_MAX_NS`].
pub(crate) const BLIMIT_HURRY: usize = 10_000;

/// A run invokes at least `waiting >> BATCH_DIVISOR` callbacks, so that a backlog shrinks by a fixed share each time.
pub(crate) const BATCH_DIVISOR: u32 = 7;

/// Nanoseconds after which a run of callbacks stops. The clock is read every [`CLOCK_EVERY`] callbacks.
pub(crate) const BATCH_MAX_NS: u64 = 3_000_000;

/// Callbacks between two looks at the clock: a look costs as much as some callbacks do.
pub(crate) const CLOCK_EVERY: usize = 32;
const _: () = assert!(CLOCK_EVERY.is_power_of_two(), "a mask picks every CLOCK_EVERY-th callback");

/// Ticks that a CPU may owe a quiescent state before its tick asks for a reschedule: a section with preemption off that
/// spans this many is ended by a pass through the scheduler as soon as it allows one.
pub(crate) const TICKS_TILL_RESCHED: u32 = 2;

/// Ticks till the first look, as R-4 has it: one, and one more for high tick rates, and one for every 256 CPUs.
pub(crate) fn first_fqs_ticks() -> u64 {
    pick(FIRST_FQS.get())
}

/// Ticks between later looks.
pub(crate) fn next_fqs_ticks() -> u64 {
    pick(NEXT_FQS.get())
}

fn pick(set: u32) -> u64 {
    if set != 0 {
        return u64::from(set);
    }
    let hz = sched::config::HZ.get();
    1 + u64::from(hz > 250) + u64::from(hz > 500) + arch::cpu::present().count() as u64 / 256
}
