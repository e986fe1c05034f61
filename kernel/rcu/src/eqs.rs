//! Extended quiescent states: from when to when RCU does not watch a CPU because it idles or is parked.
//!
//! [`Shared::watching`](crate::cpu::Shared::watching) is odd while RCU watches the CPU and even while it does not. The
//! CPU itself steps it on the way into and out of idle, and around every interrupt and NMI that comes in idle. A
//! grace-period thread that finds it even, or changed since it last looked, has a quiescent state of that CPU without
//! waking it.
//!
//! ```text
//!   idle loop    ──odd─┐even             even              ┌odd──
//!   interrupt          │      ┌odd────────────┐            │
//!   NMI in it          │      │   (odd, +2)   │            │
//!                  idle_enter irq_enter  irq_exit       idle_exit
//! ```
//!
//! `NESTING` counts interrupts and NMIs by two, except that the one that found the CPU not watched counts one: so the value
//! is 1 exactly when the outermost of those ends. It is only used between entry and exit, and each leaves it as it
//! found it, so an NMI may come at any instruction of this file:
//!
//! | NMI comes | sees | does |
//! |---|---|---|
//! | before the step out of idle | even | steps, and steps back at its end: the value moves by two, still even |
//! | between step and nesting update | odd | counts by two and back |
//! | between the nesting reset and the step into idle | odd | the same |
//!
//! Invariants
//! - EQS-1: only its own CPU writes `watching`; every step is by one and a full barrier.
//! - EQS-2: no reader runs while the value is even (checked at `read_lock` in checking builds).
//! - EQS-3: the value of a CPU that is offline is even, but for NMIs: what runs in those on a parked CPU is no reader that
//!   anybody waits for ([`crate::hotplug`]).
//!
//! Ordering: ORD-2 in docs/rcu-ordering.md. Answers to Linux kernel/context_tracking.c; row R-15.

use sync::atomic::{AtomicU64, Ordering, fence};
use sync::{ATOMIC, IrqGuard};

use crate::cpu::{Shared, shared_here};
#[cfg(loom)]
use crate::model::{arch, sync};

/// Whether RCU watches a CPU whose counter has this value.
fn watches(value: u64) -> bool {
    value & 1 != 0
}

arch::per_cpu! {
    /// See the module documentation.
    static NESTING: u32 = 0;
}

/// Steps the counter of this CPU; the caller cannot migrate.
fn step(watching: &AtomicU64) -> u64 {
    // Full barriers on both sides, pairing with the fence in `look_at`: what this CPU read or wrote as a reader comes
    // before a step into the quiescent state; what it reads after a step out of it comes after (ORD-2). On x86 the
    // read-modify-write alone is one; the fences say it in terms of the language. Model of the second:
    // loom_a_cpu_reports_what_came_after_…; the first is kept for the language.
    fence(Ordering::SeqCst);
    let new = watching.fetch_add(1, Ordering::Relaxed) + 1;
    fence(Ordering::SeqCst);
    new
}

/// The idle loop is about to halt or to poll. Context: idle thread, interrupts off.
pub(crate) fn idle_enter() {
    let new = step(&shared_here().watching);
    debug_assert!(!watches(new), "EQS-1: idle entered twice");
    sync::trace!("rcu.idle_enter", watching = new);
}

/// The idle loop goes on. Context: idle thread, interrupts off.
pub(crate) fn idle_exit() {
    let new = step(&shared_here().watching);
    debug_assert!(watches(new), "EQS-1: idle left twice");
    sync::trace!("rcu.idle_exit", watching = new);
}

/// This CPU parks: RCU does not watch it until [`cpu_up`]. An NMI meanwhile steps up and down as in idle.
///
/// Context: its last act, interrupts off.
pub(crate) fn cpu_down() {
    let new = step(&shared_here().watching);
    debug_assert!(!watches(new), "EQS-1: parked from idle");
}

/// This CPU comes back; or up for the first time, when the counter's first value says that it is watched.
///
/// Context: interrupts off, before it takes part in grace periods.
pub(crate) fn cpu_up() {
    let watching = &shared_here().watching;
    if !watches(watching.load(Ordering::Relaxed)) {
        step(watching);
    }
}

/// An interrupt or NMI begins. Context: its first instructions, any nesting.
pub(crate) fn irq_enter() {
    let watching = &shared_here().watching;
    let mut count = 2;
    if !watches(watching.load(Ordering::Relaxed)) {
        step(watching);
        count = 1;
    }
    NESTING.add(count);
}

/// An interrupt or NMI ends. Context: its last instructions.
pub(crate) fn irq_exit() {
    if NESTING.get() != 1 {
        NESTING.sub(2);
        return;
    }
    NESTING.set(0);
    step(&shared_here().watching);
}

/// Whether RCU watches this CPU: whether readers are legal here. Context: any.
pub(crate) fn watching_here() -> bool {
    let here = || watches(shared_here().watching.load(Ordering::Relaxed));
    // A thread that is moved in the middle of a look sees the CPU that it has left, which may idle by now.
    here() || {
        let _stays = IrqGuard::new(ATOMIC);
        here()
    }
}

/// What a look at a CPU's counter from another CPU found.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Look {
    /// Not watched: a quiescent state.
    Idle,
    /// Watched, with this counter value: a quiescent state once it has changed.
    Watched(u64),
}

/// Looks at a CPU's counter. The fence is once for several looks: [`before_looks`] comes first.
pub(crate) fn look_at(of: &Shared) -> Look {
    // Acquire: pairs with the fence before the step in `step`; every access of a reader that ended before the CPU went
    // idle comes before what the grace period does next (ORD-2, first half).
    let value = of.watching.load(Ordering::Acquire);
    if watches(value) { Look::Watched(value) } else { Look::Idle }
}

/// Full barrier between the update that a grace period waits for and the looks at idle CPUs.
///
/// Pairs with the fence after the step in `step`: if a look finds a CPU idle that then wakes and reads, the read comes
/// after the update and cannot find the old version (ORD-2, second half). Without it the look could be done early,
/// before the update is visible, and the reader that wakes in between would be missed.
///
/// Model: `loom_a_cpu_reports_what_came_after_it_learned_of_the_grace_period`.
pub(crate) fn before_looks() {
    fence(Ordering::SeqCst);
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use arch::hosted::in_own_process;
    use sync::ATOMIC;

    use super::*;
    use crate::reader::read_lock;

    fn read() {
        drop(read_lock(ATOMIC));
    }

    /// What is said to a reader here.
    fn error() -> &'static str {
        *std::panic::catch_unwind(read).expect_err("a reader is legal").downcast().expect("a message")
    }

    #[test]
    fn a_reader_in_idle_is_an_error_but_not_in_its_interrupts() {
        in_own_process(|| {
            idle_enter();
            assert!(error().contains("EQS-2"));
            irq_enter();
            irq_enter();
            read();
            irq_exit();
            read();
            irq_exit();
            assert!(error().contains("EQS-2"));
            idle_exit();
            read();
        });
    }

    #[test]
    fn a_reader_on_a_parked_cpu_is_an_error() {
        in_own_process(|| {
            cpu_down();
            assert!(error().contains("EQS-2"));
            cpu_up();
            read();
        });
    }
}
