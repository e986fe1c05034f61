//! Kernel threads: run queues, waiting, timers, deferred work, idle.
//!
//! Uses `arch`, `sync` and `mm`; knows nothing of RCU but the hooks it offers ([`hooks::Hooks`]).
//!
//! | module | what it is |
//! |---|---|
//! | [`thread`], [`spawn`](mod@spawn) | threads, [`current`], making, ending and joining them |
//! | [`state`], [`wake`](mod@wake) | the wake-up protocol and why no wake-up is lost |
//! | `rq`, `switch`, [`idle`] | run queues, giving the CPU to another thread, what a CPU does without one |
//! | [`tick`], [`timer`] | the tick of busy CPUs, timers of any CPU |
//! | [`wait`], [`mutex`], [`semaphore`] | wait queues, completions, sleeping; the mutex; counting semaphores |
//! | [`work`], [`softirq`] | work queues; deferred work at interrupt exit |
//! | [`affinity`], [`stop`], [`park`] | where threads may run, stopping CPUs, parked threads |
//! | [`hotplug`] | CPUs that go and come, and who is told |
//! | [`watchdog`] | CPUs and threads that do not get on, found and reported |
//! | [`trace`], [`ask`] | backtraces of threads that do not run, and of CPUs |
//! | [`hooks`] | where RCU plugs in |
//!
//! # Contexts
//!
//! A function that may sleep takes `&mut MaySleep`. Waking, arming timers, queueing work and raising softirqs work from
//! any context but NMI, with interrupts on or off, and neither allocate nor sleep; [`softirq::raise`] works from NMI too.
//! Everything else that an NMI handler wants goes through an `IrqWork`.
//!
//! # Lock order
//!
//! Outermost first; a lock may be taken while any lock of a line above it is held.
//!
//! | lock | class | protects |
//! |---|---|---|
//! | stop of the machine | `sched.stop_turn` | a mutex: one stop at a time |
//! | flush of a queue | `sched.work.flush` | a mutex: one flush or drain of a work queue at a time |
//! | all queues | `sched.work.all` | a mutex: the list of all work queues |
//! | work pool | `sched.work` | the queued items of a CPU or node, its workers, and the lanes of queues that use it |
//! | mutex | `sched.mutex` | a mutex's waiters |
//! | semaphore | `sched.semaphore` | a semaphore's count and waiters |
//! | wait queue, completion | `sched.wait` | the waiters |
//! | timer base | `sched.timer` | a CPU's timers and its clock event |
//! | run queue | `sched.rq` | a CPU's queued threads, and the scheduling part of each thread that belongs to it |
//! | stopper | `sched.stop` | what a CPU's stopper has to run; nothing in it |
//! | CPUs kept | `sched.hotplug` | who keeps the CPUs from going and coming, and who has them go and come; nothing in it |
//! | notifiers | `sched.notifiers` | the list of notifiers; nests in nothing, and nothing in it |
//! | thread pool | `sched.pool` | dead threads; nests in nothing, and nothing in it |
//!
//! All but the mutexes are taken with interrupts off; mutexes are held across sleeps, and checking builds keep their order
//! thread by thread ([`sync::lock_order`]). Two locks of one class are never held together: a thread or a timer that moves
//! belongs to nobody in between.
//!
//! # Order of bring-up
//!
//! [`init`] on the boot CPU, after `sync::init`, per-CPU areas and `mm`; then RCU sets its hooks; then the other CPUs
//! come up through [`start_secondary`].
#![no_std]

#[cfg(not(loom))]
extern crate alloc;

pub mod state;

#[cfg(not(loom))]
pub mod affinity;
#[cfg(not(loom))]
pub mod ask;
#[cfg(not(loom))]
mod below;
#[cfg(not(loom))]
pub mod config;
#[cfg(not(loom))]
mod heap;
#[cfg(not(loom))]
pub mod hooks;
#[cfg(not(loom))]
pub mod hotplug;
#[cfg(not(loom))]
pub mod idle;
#[cfg(not(loom))]
mod init;
#[cfg(not(loom))]
pub mod mutex;
#[cfg(not(loom))]
mod notifier;
#[cfg(not(loom))]
pub mod park;
#[cfg(not(loom))]
mod rq;
#[cfg(not(loom))]
pub mod semaphore;
#[cfg(not(loom))]
pub mod softirq;
#[cfg(not(loom))]
pub mod spawn;
#[cfg(not(loom))]
mod stack_depth;
#[cfg(not(loom))]
pub mod stop;
#[cfg(not(loom))]
mod switch;
#[cfg(not(loom))]
pub mod thread;
#[cfg(not(loom))]
pub mod tick;
#[cfg(not(loom))]
pub mod timer;
#[cfg(not(loom))]
pub mod trace;
#[cfg(not(loom))]
pub mod wait;
#[cfg(not(loom))]
pub mod wake;
#[cfg(not(loom))]
pub mod watchdog;
#[cfg(not(loom))]
pub mod work;

#[cfg(not(loom))]
use self::init::NumberedName;
#[cfg(not(loom))]
pub use self::{
    affinity::{AffinityError, MigrateGuard, set_affinity},
    hooks::{Hooks, TickFrom, set_hooks},
    hotplug::{CpusGuard, HotplugError, cpu_off, cpu_on, keep_cpus},
    init::{init, start_secondary},
    mutex::{Mutex, MutexGuard},
    rq::{follow_boost, prio_of, resched_cpu, set_prio},
    semaphore::Semaphore,
    softirq::Softirq,
    spawn::{JoinHandle, SpawnError, spawn},
    state::State,
    stop::{stop_machine, stop_one_cpu},
    switch::{cond_resched, yield_now},
    thread::{Prio, Thread, ThreadRcu, current},
    timer::Timer,
    wait::{Completion, WaitQueue, sleep_ns, sleep_until},
    wake::wake,
    work::{DelayedWork, WorkItem, WorkQueue, queue_work, queue_work_on, queue_work_unbound},
};
