//! What users of the storey call beside plain allocations, on the hosted machine; each test in a process of its own.

#[path = "../../../sched/tests/machine/mod.rs"]
mod machine;

mod checked;
mod kbox;
mod merging;
mod resize;
mod typed;
mod typed_many;

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use sync::MaySleep;

extern crate sched;

/// A value that says when it is dropped.
#[derive(Debug)]
struct Dropped(Arc<AtomicUsize>, [u64; 20]);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Boots a machine of two CPUs with slab and RCU, and runs `body` as its boot thread.
fn boot(cmdline: &'static str, body: impl FnOnce(&mut MaySleep) + Send) {
    sync::param::parse(cmdline).expect("the tests' own command line");
    machine::machine_with(2, up, body);
}

fn up(cx: &mut MaySleep) {
    grange_slab::init();
    rcu::init(cx);
    rcu::boot_ended();
}
