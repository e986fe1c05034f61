//! Grace periods on trees of every shape: idle, busy and offline CPUs, switches of kind, the wrap of the counters.
//!
//! The shapes come from the machines that the suite runs on, see `xtask/src/test/matrix.rs`.

use rcu::{synchronize_rcu, synchronize_rcu_expedited};

use crate::{ensure_eq, ktest};

/// How many normal and expedited grace periods pass in `f`.
fn passed(f: impl FnOnce()) -> (u64, u64) {
    let before = rcu::stats();
    f();
    let after = rcu::stats();
    (after.gps - before.gps, after.exp_gps - before.exp_gps)
}

ktest! {
    /// what is asked for at run time, with wishes inside wishes; normal wins.
    fn wishes_for_a_kind_of_grace_period_nest_and_normal_wins(t: &mut Test) {
        ensure_eq!(passed(|| synchronize_rcu(t.cx)).1, 0);
        let outer = rcu::expedite();
        drop(rcu::expedite());
        ensure_eq!(passed(|| synchronize_rcu(t.cx)).1, 1);
        let normal = rcu::only_normal();
        drop(rcu::only_normal());
        ensure_eq!(passed(|| synchronize_rcu(t.cx)).1, 0);
        ensure_eq!(passed(|| synchronize_rcu_expedited(t.cx)).1, 0);
        drop(outer);
        ensure_eq!(passed(|| synchronize_rcu_expedited(t.cx)).1, 0);
        drop(normal);
        ensure_eq!(passed(|| synchronize_rcu_expedited(t.cx)).1, 1);
        ensure_eq!(passed(|| synchronize_rcu(t.cx)).1, 0);
        Ok(())
    }
}
