//! rcuscale's test of `kfree_rcu`, with its parameters and its line.
//!
//! `rcuscale.kfree_nthreads` threads each allocate `rcuscale.kfree_alloc_num` objects of 24 bytes and give them up, and do so
//! `rcuscale.kfree_loops` times. What is taken is the time until the last thread has given up its last object, the grace
//! periods until then, and the memory in use by four looks (C-11). Ours says besides when all objects were free, and the
//! peak; each way is taken in turn, several times.
//!
//! Linux 6.12: kernel/rcu/rcuscale.c.

use alloc::vec::Vec;

use super::kfree_load::{Heads, Load, Took, Way, run};
use crate::bench;

sync::param! {
    /// Threads that allocate and give up objects; 0 for one a CPU.
    pub(super) static KFREE_NTHREADS: u32 = "rcuscale.kfree_nthreads", default 0, in 0..=1_024, unit "threads";
}
sync::param! {
    /// Objects that a thread allocates and gives up each time.
    pub(super) static KFREE_ALLOC_NUM: u32 = "rcuscale.kfree_alloc_num", default 8_000, in 1..=100_000_000, unit "objects";
}
sync::param! {
    /// Times that a thread allocates and gives up its objects.
    pub(super) static KFREE_LOOPS: u32 = "rcuscale.kfree_loops", default 10, in 1..=100_000_000, unit "times";
}
sync::param! {
    /// Size of the objects, by 24 bytes.
    pub(super) static KFREE_MULT: u32 = "rcuscale.kfree_mult", default 1, in 1..=1_000, unit "times 24 bytes";
}
sync::param! {
    /// Give objects up without a head; with rcuscale.kfree_rcu_test_double, every other one.
    pub(super) static KFREE_SINGLE: bool = "rcuscale.kfree_rcu_test_single", default false;
}
sync::param! {
    /// Give objects up with a head, which is what is done if neither is set.
    pub(super) static KFREE_DOUBLE: bool = "rcuscale.kfree_rcu_test_double", default false;
}

/// Bytes of rcuscale's object.
const OBJECT: usize = 24;
/// Times that each way is taken.
const ROUNDS: usize = 3;

fn load() -> Load {
    let threads = match KFREE_NTHREADS.get() {
        0 => arch::cpu::online().iter().count(),
        threads => threads as usize,
    };
    let heads = match (KFREE_SINGLE.get(), KFREE_DOUBLE.get()) {
        (true, true) => Heads::Half,
        (true, false) => Heads::None,
        (false, _) => Heads::All,
    };
    Load {
        threads,
        loops: KFREE_LOOPS.get().into(),
        objects: KFREE_ALLOC_NUM.get().into(),
        size: OBJECT * KFREE_MULT.get() as usize,
        vmalloc: false,
        heads,
        pause_ns: 0,
    }
}

/// rcuscale's line.
fn say(way: Way, load: &Load, took: &Took) {
    log::info!(
        "rcu-scale: {}: Total time taken by all kfree'ers: {} ns, loops: {}, batches: {}, memory footprint: {}MB",
        way.name(),
        took.ns,
        load.loops,
        took.gps,
        took.footprint >> 20
    );
}

bench! {
    /// The time of one object, allocated and given up, over all threads together, the default way.
    fn kfree_rcu_test(b: &mut Bencher) {
        let load = load();
        let (mut times, mut objects) = (Vec::new(), 0);
        for _ in 0..ROUNDS {
            for way in Way::all() {
                let took = run(b.cx, load, way)?;
                say(way, &load, &took);
                b.row(way.name(), &took.values());
                if way == Way::DEFAULT {
                    times.push(took.ns);
                    objects = took.objects;
                }
            }
        }
        Way::DEFAULT.choose(b.cx);
        b.took(objects, times);
        Ok(())
    }
}
