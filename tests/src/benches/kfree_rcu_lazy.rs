//! Sheaves that wait with a CPU's lazy callbacks beside sheaves that hurry (S0-20, G-8): whether they come back in bursts that
//! overflow the barns, and what memory and grace periods that takes.
//!
//! All CPUs have their callbacks invoked by threads and may be lazy, as with `rcu_nocbs=all rcutree.enable_rcu_lazy=1`.

use alloc::vec::Vec;

use arch::cpu;
use rcu::nocb::{deoffload, offload, offloaded, set_lazy};
use slab::Stat;
use slab::rcu_free::{self, Policy};

use super::kfree_load::{Heads, Load, Way, run};
use crate::bench::Bencher;
use crate::together::MS;
use crate::{Failure, bench};

const ROUNDS: usize = 3;
/// For how long lazy callbacks may wait.
const LAZY_MS: u32 = 200;

/// Sheaves that barns took back from RCU, and those that they had no room for.
fn barns() -> [u64; 2] {
    let mut counts = [0; 2];
    slab::registry::for_each(|cache| {
        counts[0] += cache.stat(Stat::BarnPut);
        counts[1] += cache.stat(Stat::BarnPutFail);
    });
    counts
}

/// `burst` objects on each CPU every 4 ms, for a second, either way in turn. Sheaves that barns refused, the lazy way.
fn either_way(b: &mut Bencher<'_>, burst: u64) -> Result<Vec<u64>, Failure> {
    let (threads, pause_ns) = (cpu::online().iter().count(), 4 * MS);
    let load = Load { threads, loops: 250, objects: burst, size: 64, vmalloc: false, heads: Heads::All, pause_ns };
    let mut refused = Vec::new();
    for _ in 0..ROUNDS {
        for (name, policy) in [("lazy", Policy::Lazy), ("hurry", Policy::Hurry)] {
            rcu_free::set_policy(policy);
            let before = barns();
            let took = run(b.cx, load, Way::DEFAULT)?;
            let [put, put_fail] = core::array::from_fn(|i| barns()[i] - before[i]);
            let mut values = Vec::from(took.values());
            values.extend([("barn_put", put), ("barn_put_fail", put_fail)]);
            b.row(&alloc::format!("{name}, {burst} objects"), &values);
            if policy == Policy::Lazy {
                refused.push(put_fail);
            }
        }
    }
    Ok(refused)
}

bench! {
    /// Few objects and many: full sheaves that barns refused in the latter load, the lazy way.
    fn sheaves(b: &mut Bencher) {
        let policy = rcu_free::policy();
        let ours: Vec<_> = (cpu::online() - offloaded()).iter().collect();
        for &cpu in &ours {
            offload(cpu, b.cx).map_err(|error| crate::__failed!("CPU {cpu}: {error}"))?;
        }
        set_lazy(Some(LAZY_MS));
        let refused = either_way(b, 64).and_then(|_| either_way(b, 1_024));
        set_lazy(None);
        rcu_free::set_policy(policy);
        for cpu in ours {
            deoffload(cpu, b.cx).map_err(|error| crate::__failed!("CPU {cpu}: {error}"))?;
        }
        b.counts(refused?);
        Ok(())
    }
}
