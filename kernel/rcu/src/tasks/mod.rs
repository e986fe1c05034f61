//! Tasks RCU: grace periods for code that has no read-side markers at all.
//!
//! Somebody takes a piece of code out of use (a trampoline, a patched function) and wants to know when no thread can be in
//! it any more. Such code says nothing when it is entered, and may be preempted at any instruction; what it does not do is
//! sleep. So the question is asked of the scheduler instead:
//!
//! | flavour | reader | grace period | calls |
//! |---|---|---|---|
//! | Tasks | whatever a thread does between two voluntary switches | each thread has passed one, or was off its CPU by one | [`synchronize_rcu_tasks`], [`call_rcu_tasks`], [`rcu_barrier_tasks`] |
//! | Rude | whatever a CPU does with preemption off, watched by RCU or not | each CPU has passed through the scheduler | [`synchronize_rcu_tasks_rude`] |
//! | Trace | a section of [`read_lock_tasks_trace`], which may sleep | those sections and all of RCU's are over | [`synchronize_rcu_tasks_trace`], [`call_rcu_tasks_trace`], [`rcu_barrier_tasks_trace`] |
//!
//! **Idle.** An idle thread does not count for Tasks: in the loop it is in nobody's code, and what interrupts it cannot be
//! preempted, so the ordinary grace periods at both ends of a Tasks one wait for it. No idle CPU is woken. For Rude idle
//! CPUs do count, for that is what it is for, and each is woken.
//!
//! **Preemption.** An involuntary switch proves nothing for Tasks, so a thread that only computes holds it up for ever,
//! unless it calls [`cond_resched_tasks`] now and then.
//!
//! Answers to Linux kernel/rcu/tasks.h; row R-22.

mod rude;
mod trace;
mod voluntary;

pub use rude::synchronize_rcu_tasks_rude;
pub use trace::{call_rcu_tasks_trace, rcu_barrier_tasks_trace, read_lock_tasks_trace, synchronize_rcu_tasks_trace};
pub use voluntary::{call_rcu_tasks, cond_resched_tasks, rcu_barrier_tasks, synchronize_rcu_tasks};
pub(crate) use voluntary::{init, switched};
