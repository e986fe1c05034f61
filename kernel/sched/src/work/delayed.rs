//! Work items that are queued after a time.
//!
//! Key type: [`DelayedWork`]: an item, and a timer that queues it. While the timer is armed the item is pending
//! (`SCHED-19`) and counts as delayed in its queue (`SCHED-46`).
//!
//! Contexts: as for items. The timer's function runs in hardirq context.
//!
//! Linux: `struct delayed_work`, `mod_delayed_work` in `kernel/workqueue.c` (6.12).

use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering};

use arch::{CpuId, cpu, irq};
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard};

use super::item::{Claim, WorkItem};
use super::queue::Queue;
use crate::thread::cpu_number;
use crate::timer::Timer;

/// A work item that is queued after a time.
#[repr(C)]
pub struct DelayedWork {
    /// First, so that the function can get from the item to this.
    item: WorkItem,
    timer: Timer,
    /// Where it shall run. Belongs to the item's owner.
    target: AtomicU16,
}

impl DelayedWork {
    /// An item that calls `func` with itself.
    pub const fn new(func: fn(&WorkItem, &mut MaySleep)) -> DelayedWork {
        DelayedWork { item: WorkItem::new(func), timer: Timer::new(delay_is_over), target: AtomicU16::new(0) }
    }

    /// Is it queued, or does its time run? False while it only runs.
    ///
    /// Context: any.
    pub fn is_pending(&self) -> bool {
        self.item.is_pending()
    }

    /// [`super::WorkQueue::queue_delayed`] of the system's queue for CPUs.
    pub fn queue(&'static self, ns: u64) -> bool {
        self.queue_on(cpu::current(), ns)
    }

    /// [`super::WorkQueue::queue_delayed_on`] of the system's queue for CPUs.
    pub fn queue_on(&'static self, cpu: CpuId, ns: u64) -> bool {
        super::system().queue_delayed_on(cpu, self, ns)
    }

    /// [`super::WorkQueue::modify_delayed`] of the system's queue for CPUs.
    pub fn modify(&'static self, ns: u64) -> bool {
        super::system().modify_delayed(self, ns)
    }

    /// Takes it back, whether its time runs or it is queued. True if it was. It may be running, also after this.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off; not NMI.
    pub fn cancel(&self) -> bool {
        self.item.cancel_with(Some(&self.timer))
    }

    /// As [`WorkItem::cancel_sync`]; its time is taken back too.
    ///
    /// Context: task, sleeps; not from its own function.
    pub fn cancel_sync(&self, cx: &mut MaySleep) -> bool {
        self.item.cancel_sync_with(cx, Some(&self.timer))
    }

    /// If its time still runs, has it queued at once. Then as [`WorkItem::flush`].
    ///
    /// Context: task, sleeps; not from its own function.
    pub fn flush(&self, cx: &mut MaySleep) {
        while self.item.is_delayed() {
            // In this order: the reschedule that a wake-up may ask for is looked at when interrupts are on again.
            let _pin = PreemptGuard::new(ATOMIC);
            let _irqs = IrqGuard::new(ATOMIC);
            if self.timer.cancel() {
                self.end_delay();
                break;
            }
            // The timer is armed just now, or its function is about to queue the item (SCHED-41).
            irq::relax();
        }
        self.item.flush(cx);
    }

    /// Arms the timer of an item that nobody owns. False if it is pending, cancelled just now, or refused.
    pub(super) fn start(&'static self, queue: &Queue, cpu: CpuId, ns: u64) -> bool {
        // In this order: the reschedule that a wake-up may ask for is looked at when interrupts are on again.
        let _pin = PreemptGuard::new(ATOMIC);
        let _irqs = IrqGuard::new(ATOMIC);
        self.item.claim(true) == Claim::Owned && self.arm(queue, cpu, ns)
    }

    /// The same for one that is perhaps pending. True if it was.
    pub(super) fn restart(&'static self, queue: &Queue, cpu: CpuId, ns: u64) -> bool {
        // In this order: the reschedule that a wake-up may ask for is looked at when interrupts are on again.
        let _pin = PreemptGuard::new(ATOMIC);
        let _irqs = IrqGuard::new(ATOMIC);
        loop {
            let was_pending = self.item.grab(Some(&self.timer));
            if was_pending {
                self.item.set_delayed(true);
            } else {
                match self.item.claim(true) {
                    Claim::Owned => {}
                    Claim::Pending => continue,
                    Claim::Blocked => return false,
                }
            }
            self.arm(queue, cpu, ns);
            return was_pending;
        }
    }

    /// The caller owns the item, has marked it as delayed, and has interrupts off.
    fn arm(&'static self, queue: &Queue, cpu: CpuId, ns: u64) -> bool {
        let accepted = queue.begin_delay(&self.item, cpu);
        if accepted {
            // Relaxed: who reads it has got the item from us through the timer's lock.
            self.target.store(cpu_number(cpu), Ordering::Relaxed);
            self.timer.arm_in(ns);
        } else {
            self.item.give_up();
        }
        accepted
    }

    /// Its time is over. The caller has taken the timer back, or runs its function; interrupts are off.
    fn end_delay(&self) {
        let lane = self.item.lane();
        let cpu = CpuId::new(usize::from(self.target.load(Ordering::Relaxed)));
        self.item.set_delayed(false);
        // It was accepted before; and after this it may run, and be gone.
        lane.queue().enqueue(&self.item, cpu, false);
        lane.end_delay();
    }
}

/// The timer of a [`DelayedWork`]. Hardirq context.
fn delay_is_over(timer: &Timer) {
    // SAFETY: only `DelayedWork::timer` has this function, and the whole stays in place while its timer is armed.
    let work: &DelayedWork = unsafe { &*ptr::from_ref(timer).byte_sub(offset_of!(DelayedWork, timer)).cast() };
    work.end_delay();
}
