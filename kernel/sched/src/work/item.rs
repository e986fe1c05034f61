//! The work item: who may put it on a list, and how it is taken back and waited for.
//!
//! Key type: [`WorkItem`].
//!
//! Invariants:
//!
//! * `SCHED-19`: only who sets [`PENDING`] owns the item until it is on a list or given up, and the bit is cleared when the
//!   item leaves the list, before its function runs: an item is on one list at most, and queueing it while it runs makes
//!   it run again.
//! * `SCHED-40`: `place` names the pool whose lock guards the item's links, lane, colour and ticket while [`LISTED`] is
//!   set; it changes under that lock only. Not listed, these belong to the owner.
//! * `SCHED-41`: between the claim and the list (or the armed timer) the owner has interrupts off, so who waits for that to
//!   pass waits for a moment only; the same between taking it back and giving it up.
//!
//! Contexts: queueing and [`WorkItem::cancel`] from task, softirq and hardirq context, also with interrupts off, not from
//! NMI. [`WorkItem::flush`] and [`WorkItem::cancel_sync`] sleep.
//!
//! Linux: `try_to_grab_pending`, `__flush_work`, `disable_work` in `kernel/workqueue.c` (6.12).

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::irq;
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard};

use super::list::{Linked, Links};
use super::pool::{Inner, Pool, pool_of};
use super::queue::Lane;
use super::worker::Worker;
use crate::timer::Timer;

/// In `state`: somebody owns the item, a list has it, or its timer is armed (`SCHED-19`).
const PENDING: u32 = 1;
/// In `state`, with `PENDING`: on its way to its timer, or its timer is armed.
const DELAYED: u32 = 1 << 1;
/// In `state`: one more `cancel_sync` is under way; nobody can claim the item meanwhile.
const BLOCK: u32 = 1 << 2;

/// In `place`: on a list of the pool that the low bits name (`SCHED-40`).
const LISTED: u32 = 1 << 16;
/// `place` of an item that was never queued.
const NOWHERE: u32 = LISTED - 1;

/// What an item runs.
pub(super) type Func = fn(&WorkItem, &mut MaySleep);

/// A function to be run by a worker thread. It belongs to whoever embeds it and stays in place while it is pending or
/// runs.
pub struct WorkItem {
    pub(super) func: Func,
    /// `PENDING`, `DELAYED`, and the number of `cancel_sync`s times `BLOCK`.
    state: AtomicU32,
    /// `SCHED-40`. The pool it was on a list of last.
    place: AtomicU32,
    links: Links<WorkItem>,
    /// Where it counts. Set while it is pending.
    pub(super) lane: Cell<*const Lane>,
    /// Which of the lane's two counts of items in flight it is in.
    pub(super) color: Cell<usize>,
    /// It waits for `max_active`, on the lane's list, not on the pool's.
    pub(super) waits: Cell<bool>,
    /// Tells this time on a list from all others of the pool.
    pub(super) ticket: Cell<u64>,
}

// SAFETY: the cells are guarded by SCHED-19 and SCHED-40, the rest is constant or atomic.
unsafe impl Sync for WorkItem {}
// SAFETY: an item that is not pending has no tie to a CPU.
unsafe impl Send for WorkItem {}

impl Linked for WorkItem {
    fn links(&self) -> &Links<WorkItem> {
        &self.links
    }
}

/// What became of an attempt to own an item.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// The caller owns it.
    Owned,
    /// It is pending already.
    Pending,
    /// A `cancel_sync` is under way.
    Blocked,
}

impl WorkItem {
    /// An item that calls `func` with itself, in a worker thread.
    pub const fn new(func: fn(&WorkItem, &mut MaySleep)) -> WorkItem {
        WorkItem {
            func,
            state: AtomicU32::new(0),
            place: AtomicU32::new(NOWHERE),
            links: Links::new(),
            lane: Cell::new(ptr::null()),
            color: Cell::new(0),
            waits: Cell::new(false),
            ticket: Cell::new(0),
        }
    }

    /// Is it queued, or does its time run? False while it only runs.
    ///
    /// Context: any.
    pub fn is_pending(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PENDING != 0
    }

    /// Is its timer armed, or is it on the way there?
    pub(super) fn is_delayed(&self) -> bool {
        self.state.load(Ordering::Relaxed) & DELAYED != 0
    }

    /// Tries to become the owner. Interrupts are off (`SCHED-41`).
    pub(super) fn claim(&self, delayed: bool) -> Claim {
        debug_assert!(!irq::enabled() && !sync::context::in_nmi(), "work cannot be queued in NMI context");
        let new = if delayed { PENDING | DELAYED } else { PENDING };
        let claim = |state: u32| match state {
            BLOCK.. => None,
            _ if state & PENDING != 0 => Some(state),
            _ => Some(new),
        };
        // AcqRel: pairs with the AcqRel in `taken` and `give_up`: the item's last time on a list is over; and what our
        // caller wrote is seen by the function, for which the word is written also when the item is pending already.
        match self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, claim) {
            Ok(old) if old & PENDING == 0 => Claim::Owned,
            Ok(_) => Claim::Pending,
            Err(_) => Claim::Blocked,
        }
    }

    /// The owner gives the item up: it is not pending any more.
    pub(super) fn give_up(&self) {
        // Release: pairs with the AcqRel in `claim`.
        self.state.fetch_and(!(PENDING | DELAYED), Ordering::Release);
    }

    /// The owner says whether the item is on its way to its timer or to a list.
    pub(super) fn set_delayed(&self, delayed: bool) {
        if delayed {
            self.state.fetch_or(DELAYED, Ordering::Relaxed);
        } else {
            self.state.fetch_and(!DELAYED, Ordering::Relaxed);
        }
    }

    /// The item is on a list of pool `number`. Under that pool's lock.
    pub(super) fn listed(&self, number: u16) {
        self.place.store(LISTED | u32::from(number), Ordering::Relaxed);
    }

    /// The item has left its list. Under the pool's lock.
    fn unlisted(&self) {
        self.place.store(self.place.load(Ordering::Relaxed) & !LISTED, Ordering::Relaxed);
    }

    /// A worker has taken the item off its list to run it. Under the pool's lock.
    pub(super) fn taken(&self) {
        self.unlisted();
        // AcqRel. Release: pairs with the AcqRel in `claim`, the item is off the list. Acquire: pairs with it too, what was
        // written before any `queue` up to here is seen by the function.
        self.state.fetch_and(!PENDING, Ordering::AcqRel);
    }

    /// The pool that it was on a list of last.
    pub(super) fn last_pool(&self) -> Option<u16> {
        match self.place.load(Ordering::Relaxed) & !LISTED {
            NOWHERE => None,
            number => Some(number as u16),
        }
    }

    /// The lane that it counts in. For the owner of the item, or under its pool's lock while it is listed.
    pub(super) fn lane(&self) -> &'static Lane {
        // SAFETY: a lane lives until its queue is destroyed, which waits for all items that count in it.
        unsafe { &*self.lane.get() }
    }

    /// Becomes the owner of an item that is pending, by taking it off its list or its timer back. False if it is not
    /// pending, or only by a timer that the caller does not give. Interrupts are off, and stay so while the caller owns it.
    pub(super) fn grab(&self, timer: Option<&Timer>) -> bool {
        debug_assert!(!irq::enabled(), "SCHED-41");
        loop {
            if timer.is_some_and(Timer::cancel) {
                self.lane().end_delay();
                return true;
            }
            let place = self.place.load(Ordering::Relaxed);
            if place & LISTED != 0 {
                let pool = pool_of((place & !LISTED) as u16);
                let mut inner = pool.lock();
                if self.place.load(Ordering::Relaxed) == place {
                    self.unlisted();
                    self.lane().take_back(pool, &mut inner, self);
                    return true;
                }
                continue;
            }
            // Acquire: pairs with the AcqRel in `taken`: then `place` names the pool where it runs.
            let state = self.state.load(Ordering::Acquire);
            if state & PENDING == 0 || (timer.is_none() && state & DELAYED != 0) {
                return false;
            }
            // Its owner is on the way to a list or to the timer, or the timer's function to a list (SCHED-41).
            irq::relax();
        }
    }

    /// Takes the item back if it is queued. True if it was. It may be running, also after this.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off; not NMI.
    pub fn cancel(&self) -> bool {
        self.cancel_with(None)
    }

    pub(super) fn cancel_with(&self, timer: Option<&Timer>) -> bool {
        // SCHED-41: until it is given up.
        // In this order: the reschedule that a wake-up may ask for is looked at when interrupts are on again.
        let _pin = PreemptGuard::new(ATOMIC);
        let _irqs = IrqGuard::new(ATOMIC);
        let grabbed = self.grab(timer);
        if grabbed {
            self.give_up();
        }
        grabbed
    }

    /// Takes the item back if it is queued, and waits until it does not run. True if it was queued.
    ///
    /// Nobody can queue it before this returns, its own function included: they are told that it is not queued. So the
    /// item is neither pending nor running afterwards, unless somebody queues it anew.
    ///
    /// Context: task, sleeps; not from the item's own function.
    pub fn cancel_sync(&self, cx: &mut MaySleep) -> bool {
        self.cancel_sync_with(cx, None)
    }

    pub(super) fn cancel_sync_with(&self, cx: &mut MaySleep, timer: Option<&Timer>) -> bool {
        // Relaxed: `grab` deals with whoever claimed it before; after it nobody claims.
        self.state.fetch_add(BLOCK, Ordering::Relaxed);
        let grabbed = self.cancel_with(timer);
        self.wait_while_it_runs(cx);
        self.state.fetch_sub(BLOCK, Ordering::Relaxed);
        grabbed
    }

    /// Waits until the item, if it was queued or ran when this was called, has run to its end. Others may queue it again
    /// meanwhile: that is not waited for. An item whose time still runs is not waited for either.
    ///
    /// Context: task, sleeps; not from the item's own function, nor from one that must end before this item can begin (another
    /// item of an ordered queue).
    pub fn flush(&self, cx: &mut MaySleep) {
        loop {
            let place = self.place.load(Ordering::Relaxed);
            if place & LISTED == 0 {
                // Acquire: pairs with the AcqRel in `taken`: then `place` names the pool where it runs.
                let state = self.state.load(Ordering::Acquire);
                if state & PENDING == 0 || state & DELAYED != 0 {
                    return self.wait_while_it_runs(cx);
                }
                // SCHED-41.
                irq::relax();
                continue;
            }
            let pool = pool_of((place & !LISTED) as u16);
            let inner = pool.lock();
            if self.place.load(Ordering::Relaxed) == place {
                let ticket = self.ticket.get();
                drop(inner);
                return self.wait_for_end(cx, pool, ticket);
            }
        }
    }

    fn wait_while_it_runs(&self, cx: &mut MaySleep) {
        let Some(number) = self.last_pool() else { return };
        let pool = pool_of(number);
        let ticket = pool.lock().runner(self).map(Worker::ticket);
        if let Some(ticket) = ticket {
            self.wait_for_end(cx, pool, ticket);
        }
    }

    /// Waits until the time that `ticket` stands for is over, by its end or because it was taken back.
    fn wait_for_end(&self, cx: &mut MaySleep, pool: &'static Pool, ticket: u64) {
        debug_assert!(!Worker::current_runs(self), "a work item waits for itself");
        pool.done.wait_until(cx, || {
            let inner = pool.lock();
            !inner.runs_ticket(ticket) && !self.is_listed_with(&inner, ticket)
        });
    }

    fn is_listed_with(&self, inner: &Inner, ticket: u64) -> bool {
        self.place.load(Ordering::Relaxed) == LISTED | u32::from(inner.number()) && self.ticket.get() == ticket
    }
}
