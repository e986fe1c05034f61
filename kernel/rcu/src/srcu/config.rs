//! Constants and boot parameters of SRCU, each with its unit and its reason. Rows R-21, S3-29.

use sync::param;

param! {
    /// How long a domain must have been without a grace period for the next `synchronize_srcu` to be expedited by itself.
    pub static EXP_HOLDOFF: u32 = "srcutree.exp_holdoff", default 25000, in 0..=1000000000, unit "ns";
}

param! {
    /// When a domain gets a tree of nodes for requests: 0 never, 1 with its first grace period, 2 when its one node is
    /// contended, 3 as 1 on machines of `srcutree.big_cpu_lim` CPUs and as 2 on others.
    pub static CONVERT_TO_BIG: u32 = "srcutree.convert_to_big", default 3, in 0..=3;
}

param! {
    /// CPUs from which on a domain is big from its first grace period, where `srcutree.convert_to_big` is 3.
    pub static BIG_CPU_LIM: u32 = "srcutree.big_cpu_lim", default 128, in 1..=65536, unit "CPUs";
}

param! {
    /// Requests that find the node of a small domain locked, in one tick, that make the domain big.
    pub static CONTENTION_LIM: u32 = "srcutree.small_contention_lim", default 100, in 1..=1000000, unit "requests";
}

param! {
    /// Callbacks waiting on one CPU, and as many more each time, that expedite their domain.
    pub static FLOOD: u32 = "grange.srcu_flood", default 10000, in 1..=1000000, unit "callbacks";
}

param! {
    /// Callbacks queued on one CPU within a millisecond that expedite their domain.
    pub static FLOOD_RATE: u32 = "grange.srcu_flood_rate", default 250, in 1..=1000000, unit "callbacks";
}

/// Microseconds between two looks at the readers while an expedited grace period does not sleep.
pub(crate) const LOOK_EVERY_US: u64 = 5;

/// Looks of an expedited grace period before it sleeps between them.
pub(crate) const LOOKS: u32 = 4;

/// Nanoseconds that an expedited grace period sleeps first; then twice as long, and so on up to a tick.
pub(crate) const FIRST_SLEEP_NS: u64 = 20_000;

/// Ticks that a grace period sleeps at most between looks.
pub(crate) const MAX_SLEEP_TICKS: u64 = 10;
