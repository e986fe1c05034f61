//! What a CPU leaves behind when it goes offline.
//!
//! | of the CPU | goes |
//! |---|---|
//! | deferred lists | where their entries were going: slabs, `kfree_rcu`, `call_rcu`, now on this CPU |
//! | main, spare and remote, of every cache | their objects to slabs |
//! | rcu_free | to RCU; to slabs after the grace period, like every sheaf that was not full (RCUF-3) |
//! | counters | stay, and stay in the sums |
//!
//! All of it by the thread that took the CPU offline, while the CPU is parked. A CPU that comes back begins without
//! sheaves, as at boot. Both ways the barns' limits follow the number of CPUs, unless they were set (S5-15).
//!
//! The per-CPU parts of caches exist for every CPU of the machine, so a cache may be made while a CPU is offline or goes; one
//! that is destroyed keeps CPUs from going meanwhile ([`crate::flush::destroy`]).
//!
//! An NMI handler on a parked CPU must not allocate or free: nobody would notice until the CPU is back.
//!
//! Linux: `slub_cpu_dead`, `__pcs_flush_all_cpu` (`mm/slub.c`, 7.x). Rows: S0-12, S5-2.

use arch::CpuId;
use sched::hotplug::{Notifier, Order};
use sync::{MaySleep, bug};

use crate::cache::RawCache;
use crate::{deferred, registry};

/// Tells this storey when a CPU is gone.
pub(crate) static NOTIFIER: Notifier = Notifier::new("slab", Order::SLAB).online(online).dead(dead);

fn online(_: CpuId, cx: &mut MaySleep) {
    registry::for_each_unlocked(cx, RawCache::follow_cpus);
}

fn dead(cpu: CpuId, cx: &mut MaySleep) {
    // SAFETY: this is called while the CPU is parked, by the one thread that could wake it.
    unsafe { deferred::drain_parked(cpu) };
    if bug!(
        "kfree_rcu.offline_sheaves",
        "the sheaves of a CPU that goes are not flushed",
        "hotplug_kfree_rcu kfree_rcu_barrier.*nothing_but*"
    ) {
        return;
    }
    registry::for_each_unlocked(cx, |cache| {
        // SAFETY: as above.
        unsafe { cache.flush_parked(cpu) };
        cache.follow_cpus();
    });
}
