//! What the slab allocator and RCU cost as a host program, beside what host programs use, in one run.
//!
//! | load | one operation |
//! |---|---|
//! | `pair` | a 64-byte object, and back at once |
//! | `burst_of_128` | the same, with 128 objects taken before they go back |
//! | `read` | a read-side section around the load of a pointer |
//! | `defer_free` | a 64-byte object that is taken and freed after a grace period, with all that takes |
//! | `defer_free_cpu` | the same by the CPU time of all threads, to be had on a busy host too |
//! | `kfree_rcu`, `kfree_rcu_cpu` | the same two, ours by `kfree_rcu` |
//!
//! Each is run by one thread and by two at once; ours on the hosted machine, whose CPUs are threads, the peers in threads of
//! the host.
//!
//! `cargo xtask bench native` builds and runs this. It prints a JSON line for each figure, then a table: nanoseconds of one
//! operation, the best of three times.

use std::alloc::Layout;
use std::sync::OnceLock;

use slab::{CacheFlags, RawCache};
use sync::MaySleep;

use crate::load::{CPUS, Column, Load, ROUNDS};

mod allocators;
mod load;
mod reclaimers;

extern crate sched;

// The scheduler's tests have the machine that is needed here.
#[path = "../../kernel/sched/tests/machine/mod.rs"]
mod machine;

/// All objects are such.
const OBJECT: Layout = match Layout::from_size_align(64, 8) {
    Ok(layout) => layout,
    Err(_) => panic!("a size and an alignment"),
};

/// Where ours come from.
static CACHE: OnceLock<&'static RawCache> = OnceLock::new();

/// Where ours come from. Context: in the machine.
#[inline(always)]
fn cache() -> &'static RawCache {
    CACHE.get().expect("made when the machine came up")
}

fn main() {
    let loads: Vec<Load> = allocators::LOADS.into_iter().chain(reclaimers::LOADS).collect();
    let mut figures: Vec<_> = loads.iter().map(|load| (load, Column::NONE, [Column::NONE; 2])).collect();
    for _ in 0..ROUNDS {
        for (load, _, peers) in &mut figures {
            for (column, (_, peer)) in peers.iter_mut().zip(load.peers) {
                *column = column.or(Column::on_host(peer));
            }
        }
    }
    let up = |cx: &mut MaySleep| {
        slab::init();
        rcu::init(cx);
        kfree_rcu::init(cx);
        rcu::boot_ended();
        let layout = slab::Layout::new("native", OBJECT.size()).flags(CacheFlags::NO_MERGE);
        CACHE.get_or_init(|| slab::create(layout).expect("memory for a cache"));
        reclaimers::prepare();
    };
    machine::machine_with(CPUS, up, |cx| {
        for _ in 0..ROUNDS {
            for (load, ours, _) in &mut figures {
                *ours = ours.or(Column::on_machine(cx, load.ours));
            }
        }
    });
    load::print(&figures);
}
