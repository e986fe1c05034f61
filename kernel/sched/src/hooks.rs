//! The places where RCU plugs into the scheduler.
//!
//! One table of functions, set once at boot by the storey above and read with one load. Until it is set each
//! hook costs a load and a branch that is not taken.
//!
//! Contexts are fixed per hook and written at its field; a hook never sleeps, never allocates and never takes a
//! run-queue lock that the caller might hold: none of them is called with a run-queue lock held.
//!
//! Linux does this with direct calls from `kernel/sched/core.c` and `kernel/sched/idle.c` into `rcu_note_context_switch`,
//! `ct_idle_enter`, `rcu_sched_clock_irq` and `rcu_needs_cpu`.

use core::sync::atomic::{AtomicPtr, Ordering};

use arch::CpuId;

use crate::thread::Thread;

/// What a tick interrupted.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum TickFrom {
    /// A thread other than the idle thread, or a softirq that ran on its stack.
    Busy,
    /// The idle thread, whose CPU keeps its tick because something vetoed stopping it.
    Idle,
}

/// The functions that RCU gives to the scheduler.
///
/// All of them run on the CPU they speak about, except where their field says otherwise.
pub struct Hooks {
    /// A pass through `schedule()`: a quiescent state for readers that are not in a preemptible read-side section.
    ///
    /// Context: interrupts off, preemption count 1, no run-queue lock held. `prev == next` when the CPU goes on
    /// with the same thread. `preempted` tells an involuntary pass from a voluntary one; an involuntary pass may
    /// happen inside a preemptible reader, a voluntary one may not. `prev` may already be on its way through
    /// another CPU's wake-up, but it does not run anywhere until this CPU has left its stack.
    pub context_switch: fn(prev: &'static Thread, next: &'static Thread, preempted: bool),
    /// This CPU is about to halt or to poll. Context: idle thread, interrupts off.
    pub idle_enter: fn(),
    /// This CPU comes back from halting or polling. Context: idle thread, interrupts off.
    pub idle_exit: fn(),
    /// The periodic tick. Context: hardirq, interrupts off.
    pub tick: fn(from: TickFrom),
    /// Asked by an idle CPU before it stops its tick: does anything here still need it? Context: idle thread,
    /// interrupts off.
    pub needs_tick: fn() -> bool,
    /// A thread has run its last line. Context: that thread, preemption and interrupts on; it may not sleep.
    pub thread_exit: fn(thread: &'static Thread),
    /// This CPU has entered the scheduler. Context: its idle thread, interrupts off, preemption off.
    pub cpu_up: fn(cpu: CpuId),
    /// This CPU leaves the scheduler. Context: its idle thread, interrupts off, preemption off.
    pub cpu_down: fn(cpu: CpuId),
}

/// Null until [`set_hooks`]; then it never changes.
static HOOKS: AtomicPtr<Hooks> = AtomicPtr::new(core::ptr::null_mut());

/// Installs RCU's hooks.
///
/// CPUs that are already up are *not* told through `cpu_up` again: the caller sets its hooks before the other
/// CPUs start and accounts for the boot CPU itself.
///
/// Context: task, boot.
///
/// # Panics
///
/// When hooks were installed before.
pub fn set_hooks(hooks: &'static Hooks) {
    // Release: pairs with the Acquire in `hooks()`, so that whoever sees the table sees its contents and what
    // the caller set up before it.
    let old = HOOKS.compare_exchange(
        core::ptr::null_mut(),
        core::ptr::from_ref(hooks).cast_mut(),
        Ordering::Release,
        Ordering::Relaxed,
    );
    assert!(old.is_ok(), "the scheduler's hooks are set once");
}

/// The hooks, if RCU is there.
#[inline]
pub(crate) fn hooks() -> Option<&'static Hooks> {
    // Acquire: pairs with the Release in `set_hooks`.
    let hooks = HOOKS.load(Ordering::Acquire);
    // SAFETY: the pointer is null or came from a `&'static Hooks` in `set_hooks`.
    unsafe { hooks.as_ref() }
}
