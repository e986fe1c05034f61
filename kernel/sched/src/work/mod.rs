//! Work queues: functions that a thread runs later, and that may sleep.
//!
//! | module | what it is |
//! |---|---|
//! | `item` | [`WorkItem`]: queued once at a time, taken back, waited for |
//! | `delayed` | [`DelayedWork`]: queued after a time |
//! | `queue` | [`WorkQueue`]: what is limited, flushed, drained and destroyed together |
//! | `pool` | which workers share what is to be done, and how many of them run at once |
//! | `worker` | the threads |
//! | `stat` | what a report shows of all that |
//! | `list` | the list that items and workers are on |
//!
//! A queue has a lane in each pool that it uses. An item that is queued goes to the lane of its CPU or node, and from there to
//! the pool's list, unless the lane has `max_active` items there already. The pool's workers take items from the list, first
//! come first. An item that sleeps holds up nobody: another worker goes on. An item that computes without sleeping holds up
//! those behind it on its CPU; it belongs in an unbound queue.
//!
//! Two queues are always there: [`queue_work`] and [`queue_work_on`] use one for CPUs, [`queue_work_unbound`] one for nodes.
//! Their items must not wait for each other in numbers that `max_active` cannot hold.
//!
//! Invariants: `SCHED-19`, `SCHED-20` and `SCHED-40` to `SCHED-46`, in the modules.
//!
//! Contexts: queueing and arming from task, softirq and hardirq context, also with interrupts off, not from NMI (use an
//! `IrqWork` that queues); nothing allocates.
//!
//! Locks: a pool's lock is taken with interrupts off; inside it: wait queue, run queue.
//!
//! Linux: `kernel/workqueue.c` (6.12).

mod delayed;
mod item;
mod list;
mod pool;
mod queue;
mod stat;
mod worker;

use arch::CpuId;
use sync::{MaySleep, Once};

pub use self::delayed::DelayedWork;
pub use self::item::WorkItem;
pub use self::pool::Home;
pub use self::queue::{Kind, WorkQueue};
pub use self::stat::{PoolStat, QueueStat, WorkerStat, pools, queues, worker_stat};
pub(crate) use self::worker::{Worker, about_to_sleep, runs_again};
use crate::config::SYSTEM_MAX_ACTIVE;
use crate::spawn::SpawnError;

static SYSTEM: Once<WorkQueue> = Once::new();
static SYSTEM_UNBOUND: Once<WorkQueue> = Once::new();

/// The queue for CPUs that is always there. It is not to be drained.
///
/// # Panics
///
/// Before [`crate::init`].
pub fn system() -> &'static WorkQueue {
    SYSTEM.get().expect("work is queued after sched::init")
}

/// The queue for nodes that is always there. As [`system`].
pub fn system_unbound() -> &'static WorkQueue {
    SYSTEM_UNBOUND.get().expect("work is queued after sched::init")
}

/// Has `item` run on this CPU: [`WorkQueue::queue`] of [`system`].
pub fn queue_work(item: &'static WorkItem) -> bool {
    system().queue(item)
}

/// Has `item` run on `cpu`: [`WorkQueue::queue_on`] of [`system`].
pub fn queue_work_on(cpu: CpuId, item: &'static WorkItem) -> bool {
    system().queue_on(cpu, item)
}

/// Has `item` run anywhere, near this CPU first: [`WorkQueue::queue`] of [`system_unbound`].
pub fn queue_work_unbound(item: &'static WorkItem) -> bool {
    system_unbound().queue(item)
}

/// Makes the pools' first workers and the system's queues. On the boot CPU.
pub(crate) fn init(cx: &mut MaySleep) -> Result<(), SpawnError> {
    worker::start_maker(cx)?;
    for number in pool::all() {
        pool::pool_of(number).set_number(number);
        worker::start(cx, number)?;
    }
    let limit = SYSTEM_MAX_ACTIVE;
    let queue = WorkQueue::create(cx, "system", Kind::PerCpu { max_active: limit }).map_err(|_| SpawnError)?;
    SYSTEM.call_once(|| queue);
    let queue = WorkQueue::create(cx, "unbound", Kind::Unbound { max_active: limit }).map_err(|_| SpawnError)?;
    SYSTEM_UNBOUND.call_once(|| queue);
    Ok(())
}
