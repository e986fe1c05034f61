//! Counters per cache and CPU, under the names that slab statistics have in Linux (M-18).
//!
//! A count is one gs-relative add into the CPU's own counter: right against interrupts, NMIs and migration
//! without a lock. A sum over CPUs is therefore not a snapshot, but it never loses an event.
//!
//! A CPU's counters are set back by that CPU, in a call-function interrupt, with one plain store each: an add is one
//! instruction, so on its own CPU the store comes before or after it and never into it. Nothing on the way of an
//! allocation knows that counters can be set back.
//!
//! The names answer to `enum stat_item` in Linux `mm/slub.c` (7.x), but for those said to be ours. There the counters are a debug
//! option; here they are always compiled in, and every figure we print includes their cost.

use arch::CpuId;
use sched::hotplug::CpusGuard;
use sync::smp;

use crate::cache::RawCache;
use crate::cpu::CacheCpu;

macro_rules! stats {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted per cache and CPU.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Stat { $($(#[$doc])* $variant,)* }

        impl Stat {
            /// All counters, in the order in which they are shown.
            pub const ALL: &[Stat] = &[$(Stat::$variant,)*];

            /// The name users know the counter by.
            pub const fn name(self) -> &'static str {
                match self { $(Stat::$variant => $name,)* }
            }
        }
    };
}

stats! {
    /// Object taken from a sheaf.
    AllocFastpath = "alloc_fastpath",
    /// Object taken from a slab.
    AllocSlowpath = "alloc_slowpath",
    /// Object put into an rcu_free sheaf.
    FreeRcuSheaf = "free_rcu_sheaf",
    /// Object that `kfree_rcu` could not put into an rcu_free sheaf.
    FreeRcuSheafFail = "free_rcu_sheaf_fail",
    /// Object put into a sheaf.
    FreeFastpath = "free_fastpath",
    /// Object put back into its slab.
    FreeSlowpath = "free_slowpath",
    /// Slab put on a partial list by a free.
    FreeAddPartial = "free_add_partial",
    /// Slab taken off a partial list because its last object was freed.
    FreeRemovePartial = "free_remove_partial",
    /// New slab from the page allocator.
    AllocSlab = "alloc_slab",
    /// Object wanted from a node that the sheaf could not serve.
    AllocNodeMismatch = "alloc_node_mismatch",
    /// Slab given back to the page allocator.
    FreeSlab = "free_slab",
    /// Slab of a smaller order than wanted.
    OrderFallback = "order_fallback",
    /// A 16-byte compare-exchange on a slab that had to be tried again.
    CmpxchgDoubleFail = "cmpxchg_double_fail",
    /// Object flushed from a sheaf to its slab.
    SheafFlush = "sheaf_flush",
    /// Object brought into a sheaf from slabs.
    SheafRefill = "sheaf_refill",
    /// Sheaf allocated.
    SheafAlloc = "sheaf_alloc",
    /// Sheaf freed.
    SheafFree = "sheaf_free",
    /// Full sheaf taken from a barn.
    BarnGet = "barn_get",
    /// Full sheaf wanted from a barn that had none.
    BarnGetFail = "barn_get_fail",
    /// Full sheaf put into a barn.
    BarnPut = "barn_put",
    /// Full sheaf that the barn had no room for.
    BarnPutFail = "barn_put_fail",
    /// Prefill served by the spare sheaf.
    SheafPrefillFast = "sheaf_prefill_fast",
    /// Prefill that went to the barn, or had to allocate a sheaf.
    SheafPrefillSlow = "sheaf_prefill_slow",
    /// Prefill of more objects than the cache's capacity.
    SheafPrefillOversize = "sheaf_prefill_oversize",
    /// Prefilled sheaf that became a CPU's spare when it came back.
    SheafReturnFast = "sheaf_return_fast",
    /// Prefilled sheaf that was filled up for the barn, or flushed, when it came back.
    SheafReturnSlow = "sheaf_return_slow",
    /// Ours: object of another node put into a remote sheaf; not counted as any other kind of free.
    FreeRemote = "free_remote",
    /// Ours: 16-byte compare-exchange on a slab that was right at once or in the end.
    CmpxchgDouble = "cmpxchg_double",
}

impl RawCache {
    /// The sum of a counter over all CPUs.
    ///
    /// Context: any.
    pub fn stat(&self, stat: Stat) -> u64 {
        arch::cpu::present().iter().map(|cpu| self.stat_on(cpu, stat)).sum()
    }

    /// A counter of one CPU, which is present.
    ///
    /// Context: any.
    pub fn stat_on(&self, cpu: CpuId, stat: Stat) -> u64 {
        // SAFETY: every present CPU's copy was made with the cache; a u64 load is one instruction.
        unsafe { CacheCpu::stat_ptr(self.cpu().ptr_on(cpu), stat).read_volatile() }
    }

    /// Sets all counters of all CPUs back to zero. What is counted meanwhile is counted before or after it.
    ///
    /// Context: task, interrupts on, no lock held.
    pub fn clear_stats(&self, _cpus: &CpusGuard) {
        for cpu in arch::cpu::present().iter() {
            if smp::run_on(cpu, || self.clear_stats_of(cpu)).is_none() {
                // It is offline, and by the guard stays so.
                self.clear_stats_of(cpu);
            }
        }
    }

    /// On `cpu`, or for it while it is parked.
    fn clear_stats_of(&self, cpu: CpuId) {
        for &stat in Stat::ALL {
            // SAFETY: as in `stat_on`; the only other writers are adds of one instruction on that CPU, which we are or which
            // is parked.
            unsafe { CacheCpu::stat_ptr(self.cpu().ptr_on(cpu), stat).write_volatile(0) };
        }
    }
}

/// How many counters there are.
pub(crate) const COUNT: usize = Stat::ALL.len();

/// How often the locks of a cache were taken, over all nodes. Ours: Linux has lock statistics for this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockCounts {
    /// Barn locks.
    pub barn: u64,
    /// List locks.
    pub list: u64,
}

impl RawCache {
    /// How often the cache's locks were taken so far.
    ///
    /// Context: any but NMI.
    pub fn lock_counts(&self) -> LockCounts {
        LockCounts {
            barn: self.nodes().map(|node| node.barn.locks()).sum(),
            list: self.nodes().map(|node| node.locks()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_slot_and_name() {
        for (index, stat) in Stat::ALL.iter().enumerate() {
            assert_eq!(*stat as usize, index);
            assert_eq!(Stat::ALL.iter().filter(|other| other.name() == stat.name()).count(), 1);
        }
    }
}
