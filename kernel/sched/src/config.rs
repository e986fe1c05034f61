//! Constants of the scheduler, each with its unit and its reason, and the boot parameters it reads.

use sync::param;

/// Nanoseconds a thread may run before an equal of its priority gets its turn. Longer than a tick at the default
/// rate, short enough that a test sees preemption within a few ticks.
pub const SLICE_NS: u64 = 8_000_000;

/// Rounds of pending softirqs that one interrupt exit runs before it leaves the rest to `ksoftirqd`. Linux uses 10.
pub const SOFTIRQ_MAX_ROUNDS: u32 = 10;

/// Nanoseconds that one interrupt exit spends in softirqs before it leaves the rest to `ksoftirqd`. Linux: 2 ms.
pub const SOFTIRQ_MAX_NS: u64 = 2_000_000;

/// Dead threads whose stacks are kept for the next `spawn`; more are unmapped when a new thread is made.
pub const STACKS_KEPT: usize = 32;

/// Items of each of the system's work queues that may have begun and not ended, for each CPU or node. Linux allows 256 (later
/// 1024); a worker here has a stack of at least 16 KiB.
pub const SYSTEM_MAX_ACTIVE: u32 = 64;

/// Workers of a pool that idle for ever; the further ones end. One is there for the next item, one for when that sleeps.
pub const SPARE_WORKERS: usize = 2;

/// Nanoseconds after which a worker that nobody needs ends. Linux waits for 300 s; making a thread is cheap here.
pub const WORKER_IDLE_NS: u64 = 1_000_000_000;

/// Nanoseconds that items without a worker wait for one to be made before the rescuer takes them. Linux: 10 ms.
pub const RESCUE_AFTER_NS: u64 = 10_000_000;

/// Nanoseconds until the next attempt to make a worker, when there was no memory for one.
pub const WORKER_RETRY_NS: u64 = 100_000_000;

param! {
    /// Ticks a second on a CPU that is busy.
    pub static HZ: u32 = "grange.hz", default 250, in 1..=10000, unit "ticks a second";
}

param! {
    /// What an idle CPU does: `halt` until an interrupt, or `poll` (PAUSE in a loop, for runs that must repeat).
    pub static IDLE: choice = "idle", default "halt", one of ["halt", "poll"];
}

param! {
    /// Where a thread is switched away from: wherever preemption is on (`full`), or only where it sleeps, yields or calls
    /// `cond_resched` (`none`), so that no section of an RCU reader outlasts a context switch.
    pub static PREEMPT: choice = "preempt", default "full", one of ["full", "none"];
}

/// Nanoseconds from tick to tick.
pub fn tick_ns() -> u64 {
    1_000_000_000 / u64::from(HZ.get())
}

/// Ticks in a slice, at least one.
pub(crate) fn slice_ticks() -> u32 {
    u32::try_from(SLICE_NS.div_ceil(tick_ns())).unwrap_or(u32::MAX)
}
