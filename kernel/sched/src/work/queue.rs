//! Work queues as objects: what is counted, limited, flushed and destroyed together.
//!
//! Key types: [`WorkQueue`], the owner's handle; [`Kind`]; [`Lane`], a queue's share of one pool.
//!
//! # Flushing
//!
//! A lane counts its items in flight, from the queueing to the end, in one of two counts, its colours. A flush has each lane
//! change to the other colour and waits until the old one's count is zero in all. Items that come later count in the
//! new colour, so a flush ends under any load. One flush at a time: both colours are in use meanwhile.
//!
//! Invariants:
//!
//! * `SCHED-45`: while no flush is under way, the colour that a lane does not use counts zero.
//! * `SCHED-46`: an item, once on a list, ends in the lane that it counts in. One whose time runs counts in `delayed`; it counts
//!   in a lane before it ceases to count there.
//!
//! Contexts: creating, flushing, draining and destroying sleep. Queueing: task, softirq, hardirq, with interrupts on or off, not
//! NMI, not under a run-queue lock; it never allocates.
//!
//! Locks: a queue's flush mutex, and the mutex of the list of all; a lane's fields are guarded by its pool's lock.
//!
//! Linux: `struct workqueue_struct`, `struct pool_workqueue`, `__flush_workqueue`, `drain_workqueue` in
//! `kernel/workqueue.c` (6.12). There a flush has sixteen colours, so that flushes overlap, and items that run may queue to
//! a queue that drains.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch::{CpuId, NodeId, cpu};
use mm::AllocError;
use sync::{ATOMIC, IrqGuard, LockClass, MaySleep, PreemptGuard};

use super::delayed::DelayedWork;
use super::item::{Claim, WorkItem};
use super::list::List;
use super::pool::{Home, Pool, pool_of};
use super::worker::Worker;
use crate::mutex::Mutex;
use crate::spawn::try_box;
use crate::wait::WaitQueue;

/// Where a queue's items run, and how many of them at once.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// On the CPU that queues them or that is named, as long as it is online, by its workers, of which one is let run at
    /// a time. At most `max_active` items of the queue have begun and not ended on each CPU.
    PerCpu {
        /// At least 1.
        max_active: u32,
    },
    /// On any CPU, by workers of the node of the CPU that queues them. For items that compute for long. At most `max_active`
    /// items of the queue have begun and not ended for each node.
    Unbound {
        /// At least 1.
        max_active: u32,
    },
    /// On any CPU, one after another, in the order in which they were queued.
    Ordered,
}

/// A queue's share of one pool.
pub(super) struct Lane {
    pub(super) pool: &'static Pool,
    number: u16,
    queue: *const Queue,
    /// Which count new items are in.
    pub(super) color: Cell<usize>,
    /// Items queued and not ended, by colour.
    pub(super) in_flight: [Cell<usize>; 2],
    /// Items on the pool's list or running.
    pub(super) active: Cell<u32>,
    /// Items that wait for `active` to fall below `max_active`.
    pub(super) waiting: List<WorkItem>,
}

/// The queue itself, which its lanes point to.
pub(super) struct Queue {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The same as in `kind`.
    pub(super) max_active: u32,
    /// One for each CPU, or each node, or one alone, by number.
    pub(super) lanes: Vec<Lane>,
    /// It drains: new items are refused. Written under `flushing`, read under a pool's lock.
    refuses: AtomicBool,
    /// Items whose time runs. Changed under the lock of the pool of the lane that they shall run in.
    pub(super) delayed: AtomicUsize,
    /// Flushes and drains sleep here; woken, under a pool's lock, when a count becomes zero.
    pub(super) quiet: WaitQueue,
    /// One flush at a time.
    flushing: Mutex<()>,
    /// The queue made before this one. Guarded by `ALL`.
    next: Cell<*const Queue>,
}

// SAFETY: the lanes are guarded by their pools' locks, `next` by `ALL`, the rest is constant or shareable.
unsafe impl Sync for Queue {}

/// All queues, newest first.
pub(super) struct All(*const Queue);

// SAFETY: queues are on the list until they are destroyed, under the mutex around it.
unsafe impl Send for All {}

/// Held while a queue is flushed or drained. Inside it: work pool.
static FLUSH_CLASS: LockClass = LockClass::new("sched.work.flush");
/// Protects the list of all queues. Inside it: work pool.
static ALL_CLASS: LockClass = LockClass::new("sched.work.all");
/// All queues.
static ALL: Mutex<All> = Mutex::new(All(ptr::null()), &ALL_CLASS);

impl Lane {
    /// The queue.
    pub(super) fn queue(&self) -> &Queue {
        // SAFETY: the queue owns its lanes and stays in place.
        unsafe { &*self.queue }
    }
}

impl Queue {
    /// The lane for what is queued for `cpu`; for what is queued for an offline CPU, this CPU's.
    fn lane_for(&self, cpu: CpuId) -> &Lane {
        let at = match self.kind {
            Kind::PerCpu { .. } if cpu::is_online(cpu) => cpu.index(),
            Kind::PerCpu { .. } => cpu::current().index(),
            Kind::Unbound { .. } => cpu::node_of(cpu).index(),
            Kind::Ordered => 0,
        };
        &self.lanes[at]
    }

    /// Puts an item, which the caller owns, on a list. False if the queue takes no new ones: then the caller still owns
    /// it. Interrupts are off.
    pub(super) fn enqueue(&self, item: &WorkItem, cpu: CpuId, is_new: bool) -> bool {
        let mut lane = self.lane_for(cpu);
        let mut inner = None;
        if let Some(last) = item.last_pool().filter(|last| *last != lane.number) {
            let other = pool_of(last).lock();
            // It cannot begin to run anywhere after this look: it is on no list, and only we may put it on one.
            if let Some(runner) = other.runner(item) {
                let theirs = runner.lane();
                debug_assert!(
                    ptr::eq(theirs.queue, self),
                    "SCHED-20: an item that runs for queue {} is queued to {}",
                    theirs.queue().name,
                    self.name
                );
                lane = theirs;
                inner = Some(other);
            }
        }
        let mut inner = inner.unwrap_or_else(|| lane.pool.lock());
        // Relaxed: the drainer takes the pool's lock after it has written it.
        if is_new && lane.queue().refuses.load(Ordering::Relaxed) {
            return false;
        }
        lane.insert(&mut inner, item);
        true
    }

    /// Counts an item, which the caller owns, as one whose time runs. False if the queue takes no new ones.
    pub(super) fn begin_delay(&self, item: &WorkItem, cpu: CpuId) -> bool {
        let lane = self.lane_for(cpu);
        let _inner = lane.pool.lock();
        // Relaxed, both: the lock orders them against the drainer, which takes it after it has written `refuses`.
        if self.refuses.load(Ordering::Relaxed) {
            return false;
        }
        self.delayed.fetch_add(1, Ordering::Relaxed);
        item.lane.set(lane);
        true
    }

    /// Waits until all items that count in a lane have ended. The caller has `flushing`.
    fn flush(&self, cx: &mut MaySleep) {
        debug_assert!(!Worker::current_works_for(&self.lanes), "queue {}: an item waits for its own end", self.name);
        let mut old = 0;
        for lane in &self.lanes {
            let _inner = lane.pool.lock();
            // The same in all lanes: they change together.
            old = lane.color.get();
            lane.color.set(1 - old);
        }
        self.quiet.wait_until(cx, || {
            self.lanes.iter().all(|lane| {
                let _inner = lane.pool.lock();
                lane.in_flight[old].get() == 0
            })
        });
    }

    fn drain(&self, cx: &mut MaySleep) {
        // Relaxed: the pools' locks, which `flush` takes, carry it to those who queue.
        self.refuses.store(true, Ordering::Relaxed);
        self.flush(cx);
        // Relaxed: who makes it zero wakes us, and what it put on a list before is found under the lanes' locks.
        self.quiet.wait_until(cx, || self.delayed.load(Ordering::Relaxed) == 0);
        self.flush(cx);
        for lane in &self.lanes {
            // Whoever woke us, or ended a delay, is done with the queue.
            drop(lane.pool.lock());
        }
    }
}

/// A queue of work items. It lives until [`WorkQueue::destroy`]; one that is dropped stays for ever.
#[must_use = "a queue that is dropped stays for ever"]
pub struct WorkQueue {
    queue: NonNull<Queue>,
}

// SAFETY: the handle gives shared access to a Queue, which is Sync.
unsafe impl Sync for WorkQueue {}
// SAFETY: nothing ties a queue to a thread.
unsafe impl Send for WorkQueue {}

impl WorkQueue {
    /// A queue without items. The name is for reports.
    ///
    /// Context: task, allocates, sleeps; after [`crate::init`].
    ///
    /// # Errors
    ///
    /// No memory.
    ///
    /// # Panics
    ///
    /// If `max_active` is 0.
    pub fn create(cx: &mut MaySleep, name: &'static str, kind: Kind) -> Result<WorkQueue, AllocError> {
        let (max_active, count) = match kind {
            Kind::PerCpu { max_active } => (max_active, cpu::present().count()),
            Kind::Unbound { max_active } => (max_active, 64 - cpu::nodes_online().leading_zeros() as usize),
            Kind::Ordered => (1, 1),
        };
        assert!(max_active > 0, "a work queue that may run nothing");
        let mut lanes = Vec::new();
        lanes.try_reserve_exact(count).map_err(|_| AllocError)?;
        let queue = Queue {
            name,
            kind,
            max_active,
            lanes,
            refuses: AtomicBool::new(false),
            delayed: AtomicUsize::new(0),
            quiet: WaitQueue::new(),
            flushing: Mutex::new((), &FLUSH_CLASS),
            next: Cell::new(ptr::null()),
        };
        let queue = NonNull::from(Box::leak(try_box(queue).map_err(|_| AllocError)?));
        for at in 0..count {
            let home = match kind {
                Kind::PerCpu { .. } => Home::Cpu(CpuId::new(at)),
                Kind::Unbound { .. } => Home::Node(NodeId::new(at)),
                Kind::Ordered => Home::Node(cpu::node_of(CpuId::BOOT)),
            };
            let number = home.number();
            let lane = Lane {
                pool: pool_of(number),
                number,
                queue: queue.as_ptr(),
                color: Cell::new(0),
                in_flight: [const { Cell::new(0) }; 2],
                active: Cell::new(0),
                waiting: List::new(),
            };
            // SAFETY: nobody else knows the queue yet. There is room: this does not allocate.
            unsafe { (*queue.as_ptr()).lanes.push(lane) };
        }
        let work_queue = WorkQueue { queue };
        let mut all = ALL.lock(cx);
        work_queue.get().next.set(all.0);
        all.0 = queue.as_ptr();
        drop(all);
        Ok(work_queue)
    }

    pub(super) fn get(&self) -> &Queue {
        // SAFETY: it lives until `destroy`, which takes the handle.
        unsafe { self.queue.as_ref() }
    }

    /// Has `item` run, for this CPU. False if it is pending already, or if the queue drains or somebody cancels the item.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off; not NMI, not under a run-queue lock. Does not allocate.
    pub fn queue(&self, item: &'static WorkItem) -> bool {
        self.queue_on(cpu::current(), item)
    }

    /// As [`WorkQueue::queue`], for `cpu`: on that CPU, or in its node, if the queue is of that kind. What is queued for a
    /// CPU that is not online goes to this CPU; what is pending for a CPU that goes offline runs elsewhere.
    pub fn queue_on(&self, cpu: CpuId, item: &'static WorkItem) -> bool {
        // SAFETY: 'static: it stays in place.
        unsafe { self.queue_raw(cpu, item) }
    }

    /// As [`WorkQueue::queue_on`] for an item that does not live for ever.
    ///
    /// # Safety
    ///
    /// The item stays where it is until its function has begun to run for the last time, or [`WorkItem::cancel_sync`]
    /// or [`WorkItem::flush`] has returned with nobody queueing it again.
    pub unsafe fn queue_raw(&self, cpu: CpuId, item: &WorkItem) -> bool {
        // In this order: the reschedule that a wake-up may ask for is looked at when interrupts are on again.
        let _pin = PreemptGuard::new(ATOMIC);
        let _irqs = IrqGuard::new(ATOMIC);
        if item.claim(false) != Claim::Owned {
            return false;
        }
        let queued = self.get().enqueue(item, cpu, true);
        if !queued {
            item.give_up();
        }
        queued
    }

    /// Has the item of `work` queued, for this CPU, in `ns` nanoseconds. False as in [`WorkQueue::queue`].
    ///
    /// Context: as [`WorkQueue::queue`].
    pub fn queue_delayed(&self, work: &'static DelayedWork, ns: u64) -> bool {
        self.queue_delayed_on(cpu::current(), work, ns)
    }

    /// As [`WorkQueue::queue_delayed`], for `cpu`.
    pub fn queue_delayed_on(&self, cpu: CpuId, work: &'static DelayedWork, ns: u64) -> bool {
        work.start(self.get(), cpu, ns)
    }

    /// As [`WorkQueue::queue_delayed`], also if `work` is pending, in whatever queue: then it is taken back and gets the new
    /// time. True if it was pending. If the queue drains or somebody cancels it, it is not pending afterwards.
    ///
    /// Context: as [`WorkQueue::queue`].
    pub fn modify_delayed(&self, work: &'static DelayedWork, ns: u64) -> bool {
        work.restart(self.get(), cpu::current(), ns)
    }

    /// Waits until all items that were queued before the call have ended. Items whose time still runs are not waited for,
    /// nor is what comes later; so this ends under any load.
    ///
    /// Context: task, sleeps; not from an item of this queue.
    pub fn flush(&self, cx: &mut MaySleep) {
        let queue = self.get();
        let _one = queue.flushing.lock(cx);
        queue.flush(cx);
    }

    /// Waits until the queue is empty; those whose time runs are waited for to the end, so whoever wants to be quick
    /// cancels them before. New items are refused until this returns, those that items queue themselves included.
    ///
    /// Context: task, sleeps; not from an item of this queue.
    pub fn drain(&self, cx: &mut MaySleep) {
        let queue = self.get();
        let _one = queue.flushing.lock(cx);
        queue.drain(cx);
        queue.refuses.store(false, Ordering::Relaxed);
    }

    /// Drains the queue and frees it.
    ///
    /// Context: as [`WorkQueue::drain`].
    pub fn destroy(self, cx: &mut MaySleep) {
        let queue = self.get();
        queue.drain(cx);
        let all = ALL.lock(cx);
        let mut all = all;
        let next = queue.next.get();
        if ptr::eq(all.0, queue) {
            all.0 = next;
        } else {
            // SAFETY: queues on the list are alive, the mutex is held.
            let mut before = unsafe { &*all.0 };
            while !ptr::eq(before.next.get(), queue) {
                // SAFETY: as above; this queue is on the list, so it is found before the end.
                before = unsafe { &*before.next.get() };
            }
            before.next.set(next);
        }
        drop(all);
        // SAFETY: from `try_box` in `create`. Nobody has a handle any more, no item counts in it, no list knows it.
        drop(unsafe { Box::from_raw(self.queue.as_ptr()) });
    }
}

/// Calls `f` for each queue. No queue is made or freed meanwhile.
pub(super) fn for_each(cx: &mut MaySleep, mut f: impl FnMut(&Queue)) {
    let all = ALL.lock(cx);
    // SAFETY: queues on the list are alive, the mutex is held.
    let mut next = unsafe { all.0.as_ref() };
    while let Some(queue) = next {
        f(queue);
        // SAFETY: as above.
        next = unsafe { queue.next.get().as_ref() };
    }
}
