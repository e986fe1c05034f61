//! What the tests on a machine share: one to run on, and ways to wait and to read a report.
//!
//! Statics of this crate outlive a machine, and a failed check switches the checks off: what sets
//! hooks or a console, or is meant to panic, runs in a process of its own.
// Each program of tests uses some of it.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::sync::atomic::{AtomicUsize, Ordering};

use arch::{
    cpu::CpuId,
    hosted::{self, HostAlloc, Stopped},
    irq,
};
use grange_sync::{self as sync, MaySleep, context::preempt_count};

#[global_allocator]
static ALLOC: HostAlloc = HostAlloc;

/// Runs `f` on CPU 0 of a machine, with handlers installed and interrupts on everywhere.
pub fn on_machine<R: Send>(cpus: usize, f: impl FnOnce(&mut MaySleep) -> R + Send) -> Result<R, Stopped> {
    hosted::boot(
        cpus,
        1,
        16 << 20,
        |_| (),
        || {
            sync::init();
            irq::enable();
            // SAFETY: the one token of this thread.
            let mut cx = unsafe { MaySleep::new() };
            let result = f(&mut cx);
            assert_eq!(preempt_count(), 0, "a test leaves nothing counted");
            irq::disable();
            result
        },
    )
}

pub fn machine<R: Send>(cpus: usize, f: impl FnOnce(&mut MaySleep) -> R + Send) -> R {
    on_machine(cpus, f).unwrap()
}

/// The message of the panic that `f` ends in.
pub fn panics(f: impl FnOnce(&mut MaySleep) + Send) -> String {
    match on_machine(1, f) {
        Err(Stopped::Panicked { message, .. }) => message,
        other => panic!("expected a panic, got {other:?}"),
    }
}

/// Spins, as an idle CPU would, until `done`.
pub fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        irq::relax();
    }
}

pub fn bump(counter: &AtomicUsize, by: usize) {
    counter.fetch_add(by, Ordering::Relaxed);
}

pub fn cpu(index: usize) -> CpuId {
    CpuId::new(index)
}

/// How many different places of the test's own file a report names.
#[track_caller]
pub fn places(message: &str) -> usize {
    let file = format!("{}:", std::panic::Location::caller().file());
    let is_place = |c: char| c == ':' || c.is_ascii_digit();
    let mut places: Vec<_> =
        message.split(&file).skip(1).filter_map(|rest| rest.split(|c| !is_place(c)).next()).collect();
    places.sort_unstable();
    places.dedup();
    places.len()
}
