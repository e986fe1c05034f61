//! Work queues: functions that a thread runs later, on a given CPU, and that may sleep.
//!
//! Key types: [`WorkItem`], [`DelayedWork`]. Each CPU has one `kworker/N` thread, bound to it, which runs the CPU's
//! items one after another: an item that sleeps holds up those behind it, and an item must not wait for another
//! item of the same CPU.
//!
//! Invariants:
//!
//! * `SCHED-19`: only who sets `pending` may put the item on a list, and it is cleared when the item leaves the list, before its function
//!   runs: an item is on one list at most, and queueing it while it runs makes it run again.
//! * `SCHED-20`: an item's function never runs twice at the same time: an item that runs is queued where it runs.
//!
//! Contexts: queueing and arming from task, softirq and hardirq context, also with interrupts off, not from NMI (use an
//! `IrqWork` that queues); nothing allocates. [`WorkItem::flush`] and [`WorkItem::cancel_sync`] sleep.
//!
//! Locks: a pool's lock is taken with interrupts off; inside it: run queue.
//!
//! Linux: `kernel/workqueue.c`, without its concurrency management.

use core::cell::Cell;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use arch::{CpuId, cpu};
use sync::{ATOMIC, LockClass, MaySleep, SpinLock};

use crate::spawn::{SpawnError, spawn};
use crate::switch::cond_resched;
use crate::thread::{Prio, cpu_number};
use crate::timer::Timer;
use crate::wait::WaitQueue;

/// Protects a CPU's list of items and what its worker runs. Inside it: run queue.
static POOL_CLASS: LockClass = LockClass::new("sched.work");

/// `WorkItem::cpu` of an item that was never queued.
const NOWHERE: u16 = u16::MAX;

/// A function to be run by a worker thread. It belongs to whoever embeds it and stays in place while it is pending or
/// runs.
pub struct WorkItem {
    func: fn(&WorkItem, &mut MaySleep),
    /// `SCHED-19`. On a list, or on the way to one (a delayed item's timer runs).
    pending: AtomicBool,
    /// Where it was queued last. Written by who set `pending`.
    cpu: AtomicU16,
    /// Next on the list. Guarded by the pool's lock.
    next: Cell<*const WorkItem>,
}

// SAFETY: `next` is guarded by the lock of the pool that the item is queued on, the rest is constant or atomic.
unsafe impl Sync for WorkItem {}
// SAFETY: an item that is not pending has no tie to a CPU.
unsafe impl Send for WorkItem {}

/// What a pool's lock protects.
struct Items {
    first: *const WorkItem,
    last: *const WorkItem,
    /// What the worker runs now; only compared once the item's function has begun: it may free the item.
    running: *const WorkItem,
}

// SAFETY: items stay in place while they are on the list.
unsafe impl Send for Items {}

/// A CPU's items and the worker that waits for them.
struct Pool {
    items: SpinLock<Items>,
    /// The worker sleeps here when there are none.
    more: WaitQueue,
    /// Those who wait for an item to end sleep here.
    done: WaitQueue,
}

arch::per_cpu! {
    /// This CPU's pool; queued to from any CPU through `ptr_on`.
    static POOL: Pool = Pool {
        items: SpinLock::new(
            Items { first: ptr::null(), last: ptr::null(), running: ptr::null() },
            &POOL_CLASS,
        ),
        more: WaitQueue::new(),
        done: WaitQueue::new(),
    };
}

fn pool_of(cpu: u16) -> &'static Pool {
    // SAFETY: per-CPU areas of present CPUs live for ever; a Pool is shared by its locks.
    unsafe { &*POOL.ptr_on(CpuId::new(usize::from(cpu))) }
}

impl Items {
    fn push(&mut self, item: *const WorkItem) {
        // SAFETY: the items on the list are in place, so is the new one; the lock is held.
        unsafe {
            (*item).next.set(ptr::null());
            match self.last.as_ref() {
                Some(last) => last.next.set(item),
                None => self.first = item,
            }
        }
        self.last = item;
    }

    fn pop(&mut self) -> Option<*const WorkItem> {
        let item = self.first;
        // SAFETY: null, or on the list and so in place.
        self.first = unsafe { item.as_ref() }?.next.get();
        if self.first.is_null() {
            self.last = ptr::null();
        }
        Some(item)
    }

    /// Takes `item` off the list, if it is there. Linear in what is queued before it.
    fn remove(&mut self, item: *const WorkItem) -> bool {
        let mut prev: *const WorkItem = ptr::null();
        let mut at = self.first;
        // SAFETY: null, or on the list and so in place.
        while let Some(this) = unsafe { at.as_ref() } {
            let next = this.next.get();
            if ptr::eq(at, item) {
                // SAFETY: as above.
                match unsafe { prev.as_ref() } {
                    Some(prev) => prev.next.set(next),
                    None => self.first = next,
                }
                if next.is_null() {
                    self.last = prev;
                }
                return true;
            }
            prev = at;
            at = next;
        }
        false
    }
}

impl WorkItem {
    /// An item that calls `func` with itself, in a worker thread.
    pub const fn new(func: fn(&WorkItem, &mut MaySleep)) -> WorkItem {
        WorkItem { func, pending: AtomicBool::new(false), cpu: AtomicU16::new(NOWHERE), next: Cell::new(ptr::null()) }
    }

    /// Is it queued, or its timer armed? False while it only runs.
    ///
    /// Context: any.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// As [`queue_work_on`] for an item that does not live for ever.
    ///
    /// # Safety
    ///
    /// The item stays where it is until its function has begun to run for the last time, or [`WorkItem::cancel_sync`]
    /// or [`WorkItem::flush`] has returned with nobody queueing it again.
    pub unsafe fn queue_raw(&self, cpu: CpuId) -> bool {
        if !self.claim() {
            return false;
        }
        self.enqueue(cpu_number(cpu));
        true
    }

    /// True if the caller may put it on a list (`SCHED-19`).
    fn claim(&self) -> bool {
        // AcqRel: pairs with the Release in `worker`, so that the item's last time on a list is over, and with the worker's
        // Acquire, so that what our caller wrote is seen by the function, also when the item was pending already.
        !self.pending.swap(true, Ordering::AcqRel)
    }

    /// Puts the item, which the caller has claimed, on the list of `cpu`, or of the CPU where it runs (`SCHED-20`).
    fn enqueue(&self, cpu: u16) {
        debug_assert!(!sync::context::in_nmi(), "work cannot be queued in NMI context");
        let last = self.cpu.load(Ordering::Relaxed);
        if last != NOWHERE && last != cpu {
            let pool = pool_of(last);
            let mut items = pool.items.lock_irqsave(ATOMIC);
            // It cannot begin to run anywhere after this look: it is on no list, and only we may put it on one.
            if ptr::eq(items.running, self) {
                items.push(self);
                drop(items);
                pool.more.wake_one();
                return;
            }
        }
        self.cpu.store(cpu, Ordering::Relaxed);
        let pool = pool_of(cpu);
        pool.items.lock_irqsave(ATOMIC).push(self);
        pool.more.wake_one();
    }

    /// Waits until the item is neither pending nor running; if others keep queueing it, that may take for ever.
    ///
    /// Context: task, sleeps; not from an item of the same CPU.
    pub fn flush(&self, cx: &mut MaySleep) {
        loop {
            let cpu = self.cpu.load(Ordering::Relaxed);
            if cpu == NOWHERE {
                return;
            }
            pool_of(cpu).done.wait_until(cx, || self.cpu.load(Ordering::Relaxed) != cpu || !self.is_busy_on(cpu));
            if self.cpu.load(Ordering::Relaxed) == cpu {
                return;
            }
        }
    }

    /// Takes the item back if it waits, and waits until it does not run. True if it was pending.
    ///
    /// An item that queues itself must have been told by other means not to do so again.
    ///
    /// Context: task, sleeps; not from an item of the same CPU.
    pub fn cancel_sync(&self, cx: &mut MaySleep) -> bool {
        let cpu = self.cpu.load(Ordering::Relaxed);
        if cpu == NOWHERE {
            return false;
        }
        let removed = {
            let mut items = pool_of(cpu).items.lock_irqsave(cx);
            let removed = items.remove(self);
            if removed {
                // Release: pairs with the AcqRel in `claim`.
                self.pending.store(false, Ordering::Release);
            }
            removed
        };
        self.flush(cx);
        removed
    }

    fn is_busy_on(&self, cpu: u16) -> bool {
        let items = pool_of(cpu).items.lock_irqsave(ATOMIC);
        self.is_pending() || ptr::eq(items.running, self)
    }
}

/// Has `item` run by the worker of `cpu`. False if it is pending already.
///
/// Context: task, softirq, hardirq; interrupts on or off; not NMI, not under a run-queue lock. Does not allocate.
pub fn queue_work_on(cpu: CpuId, item: &'static WorkItem) -> bool {
    // SAFETY: 'static: it stays in place.
    unsafe { item.queue_raw(cpu) }
}

/// Has `item` run by the worker of this CPU. As [`queue_work_on`].
pub fn queue_work(item: &'static WorkItem) -> bool {
    queue_work_on(cpu::current(), item)
}

/// A work item that is queued after a time.
#[repr(C)]
pub struct DelayedWork {
    /// First, so that the function can get from the item to this.
    item: WorkItem,
    timer: Timer,
    /// Where it shall run. Written by who claimed the item.
    target: AtomicU16,
}

impl DelayedWork {
    /// An item that calls `func` with itself.
    pub const fn new(func: fn(&WorkItem, &mut MaySleep)) -> DelayedWork {
        DelayedWork { item: WorkItem::new(func), timer: Timer::new(delay_is_over), target: AtomicU16::new(NOWHERE) }
    }

    /// The item itself, to be queued without delay, or looked at.
    pub fn item(&self) -> &WorkItem {
        &self.item
    }

    /// The delayed work that `item` belongs to.
    ///
    /// # Safety
    ///
    /// `item` is the item of a `DelayedWork`: it is what that one's function was called with.
    pub unsafe fn from_item(item: &WorkItem) -> &DelayedWork {
        // SAFETY: the item is the first field of a DelayedWork, says the caller.
        unsafe { &*ptr::from_ref(item).cast() }
    }

    /// Queues the item for `cpu` in `ns` nanoseconds. False if it is pending or its time already runs.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off; not NMI. Does not allocate.
    pub fn queue_on(&'static self, cpu: CpuId, ns: u64) -> bool {
        if !self.item.claim() {
            return false;
        }
        self.target.store(cpu_number(cpu), Ordering::Relaxed);
        self.timer.arm_in(ns);
        true
    }

    /// As [`DelayedWork::queue_on`], for this CPU.
    pub fn queue(&'static self, ns: u64) -> bool {
        self.queue_on(cpu::current(), ns)
    }

    /// If its time still runs: queues it at once. Then waits until it is neither pending nor running.
    ///
    /// Context: task, sleeps; not from an item of the same CPU.
    pub fn flush(&self, cx: &mut MaySleep) {
        if self.timer.cancel_sync() {
            self.item.enqueue(self.target.load(Ordering::Relaxed));
        }
        self.item.flush(cx);
    }

    /// Takes it back, whether its time runs or it waits, and waits until it does not run. True if it was pending.
    ///
    /// Context: task, sleeps; not from an item of the same CPU.
    pub fn cancel_sync(&self, cx: &mut MaySleep) -> bool {
        let armed = self.timer.cancel_sync();
        if armed {
            // Release: pairs with the AcqRel in `claim`.
            self.item.pending.store(false, Ordering::Release);
        }
        self.item.cancel_sync(cx) || armed
    }
}

/// The timer of a [`DelayedWork`]. Hardirq context.
fn delay_is_over(timer: &Timer) {
    // SAFETY: only `DelayedWork::timer` has this function, and the whole stays in place while its timer is armed.
    let work: &DelayedWork = unsafe { &*ptr::from_ref(timer).byte_sub(offset_of!(DelayedWork, timer)).cast() };
    work.item.enqueue(work.target.load(Ordering::Relaxed));
}

/// The life of `kworker/N`.
fn worker(cx: &mut MaySleep) {
    let pool = pool_of(cpu_number(cpu::current()));
    loop {
        let mut next = None;
        pool.more.wait_until(cx, || {
            let mut items = pool.items.lock_irqsave(ATOMIC);
            next = items.pop();
            if let Some(item) = next {
                items.running = item;
                // Release: pairs with the AcqRel in `claim`: the item is off the list. Acquire: what was written before any
                // `queue` up to here is seen by the function.
                // SAFETY: an item stays in place until its function has begun to run.
                unsafe { &*item }.pending.swap(false, Ordering::AcqRel);
            }
            next.is_some()
        });
        let item = next.expect("the wait ends with an item");
        // SAFETY: as above.
        let item: &WorkItem = unsafe { &*item };
        (item.func)(item, cx);
        pool.items.lock_irqsave(cx).running = ptr::null();
        pool.done.wake_all();
        cond_resched(cx);
    }
}

/// Makes the worker of a CPU.
pub(crate) fn start_worker(cx: &mut MaySleep, cpu: CpuId) -> Result<(), SpawnError> {
    let name = crate::NumberedName::new("kworker/", cpu);
    spawn(cx, name.as_str(), Prio::NORMAL, Some(cpu), worker)?.detach();
    Ok(())
}
