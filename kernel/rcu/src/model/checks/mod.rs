//! The models.
//!
//! | model | the real code | checks |
//! |---|---|---|
//! | [`idle`] | `seq`, `eqs` | ORD-1 and ORD-2: snapshot against start, looks against steps into and out of idle |
//! | [`tree`] | `gp`, `report`, `tree`, `qs`, `poll`'s twin | reports up a tree of two leaves, and ORD-3, ORD-4 |
//! | [`blocked`] | `reader`, `blkd` too | ORD-5: a reader that is switched out; reports that are put off |
//! | [`wishes`] | `gp`, `sync_gp`, `poll` | GP-2: no wish, waiter or cookie is forgotten |
//! | [`expedited`] | `exp` | the funnel, the interrupts, the answers |
//!
//! What is checked everywhere is GP-GUARANTEE, by an [`Element`]: a version of it is written, as if it were freed, after a
//! grace period has passed since it was replaced, and loom tells if a reader's access is not ordered before.

use std::boxed::Box;
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::arch::cpu::{CPUS, run_as};
use super::sched::hooks::TickFrom;
use super::sched::{self, Thread};
use super::sync::atomic::{AtomicUsize, Ordering};
use super::sync::{ATOMIC, IrqGuard, MaySleep, context};
use crate::cpu::shared;
use crate::geometry::{Geometry, Spread};
use crate::{eqs, exp, gp, poll, qs, read_lock, reader, sync_gp, tree as nodes};

mod blocked;
mod expedited;
mod idle;
mod tree;
mod wishes;

/// What readers find: the old version until it is replaced.
struct Element {
    current: AtomicUsize,
    versions: [UnsafeCell<()>; 2],
}

// SAFETY: there is no data; loom watches who comes.
unsafe impl Sync for Element {}

impl Element {
    fn new() -> Arc<Element> {
        Arc::new(Element { current: AtomicUsize::new(0), versions: [UnsafeCell::new(()), UnsafeCell::new(())] })
    }

    /// In a section: finds a version and uses it.
    fn find(&self) -> Found<'_> {
        let found = Found(&self.versions[self.current.load(Ordering::Relaxed)]);
        found.use_it();
        found
    }

    /// `U`.
    fn replace(&self) {
        self.current.store(1, Ordering::Relaxed);
    }

    /// `F`.
    fn free(&self) {
        self.versions[0].with_mut(|_| ());
    }
}

/// A version that a reader has found.
struct Found<'a>(&'a UnsafeCell<()>);

impl Found<'_> {
    /// In the section that found it.
    fn use_it(&self) {
        self.0.with(|_| ());
    }
}

/// Goes through the orders in which the threads of `body` can run, with so many preemptions.
fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(body);
}

/// A machine of [`CPUS`] CPUs, two to a leaf and two leaves, of which those in `online` take part in grace periods; the
/// others are parked.
fn machine(online: &[usize]) {
    nodes::build(Geometry::new(CPUS, 2, 2, Spread::Exact).expect("two levels"));
    for leaf in nodes::tree().leaves() {
        let mut state = leaf.lock(ATOMIC);
        state.online =
            leaf.cpus(u64::MAX >> 62).filter(|(cpu, _)| online.contains(&cpu.index())).map(|(_, bit)| bit).sum();
    }
    for cpu in (0..CPUS).filter(|cpu| !online.contains(cpu)) {
        run_as(cpu);
        eqs::cpu_down();
    }
    run_as(0);
    sched::set_current(new_thread());
    // loom calls their making a synchronisation, so they are all made here.
    let (_, _) = (gp::SEQ.current(), exp::SEQ.current());
    let _ = (poll::get_state(), sync_gp::has_waiters(), eqs::watching_here());
}

fn new_thread() -> &'static Thread {
    Box::leak(Box::default())
}

/// The token of a model's thread.
fn token() -> MaySleep {
    // SAFETY: nothing here sleeps but by loom, which would tell.
    unsafe { MaySleep::new() }
}

/// Runs `body` as CPU `cpu`, with a thread of its own.
fn on_cpu<T: 'static>(cpu: usize, body: impl FnOnce(&mut MaySleep) -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::spawn(move || {
        run_as(cpu);
        sched::set_current(new_thread());
        body(&mut token())
    })
}

/// A section on this CPU.
fn section(element: &Element) {
    let _reading = read_lock(ATOMIC);
    element.find();
}

/// The tick of this CPU, in the code that calls it, and the softirq after it.
fn tick() {
    context::in_interrupt(|| qs::tick(TickFrom::Busy));
    qs::core();
}

/// Switches from `prev` to `next`.
fn switch(prev: &'static Thread, next: &'static Thread) {
    let _off = IrqGuard::new(ATOMIC);
    reader::context_switch(prev, next, true);
    sched::set_current(next);
}

/// This CPU idles for good. One that stepped into idle between set-up's look and its own report is found by a later look; as
/// there is no time here, it has the thread look.
fn retire() {
    qs::idle_enter();
    gp::hurry();
}

/// Replaces, waits and frees as the grace-period thread itself.
fn update(element: &Element) {
    element.replace();
    gp::request(gp::SEQ.snap());
    gp::serve_a_wish(&mut token());
    element.free();
}
