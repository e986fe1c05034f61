//! The threads that run items: workers, rescuers, and `kworkerd`, which makes workers.
//!
//! Key type: [`Worker`], on its thread's stack.
//!
//! A worker's life: made by `kworkerd` when none idles; runs items while there are any for it; idles. Of those that idle
//! [`SPARE_WORKERS`] stay; each further one ends when it has had nothing to do for [`WORKER_IDLE_NS`].
//!
//! `SCHED-44`: a worker is on the list of its pool's idle or busy workers from before its first look for an item until it
//! ends, and moves from one to the other under the pool's lock only; so whoever finds it there under the lock finds it alive.
//!
//! Contexts: [`about_to_sleep`] and [`runs_again`] are called by the scheduler in the worker itself, in task context with
//! preemption and interrupts on; the worker may have announced its sleep already.
//!
//! Linux: `worker_thread`, `rescuer_thread`, `wq_worker_sleeping`, `wq_worker_running` in `kernel/workqueue.c` (6.12). There
//! a worker makes the next, as its pool's manager; here one thread makes all, so that no item waits for that.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::Ordering;

use sync::{MaySleep, bug};

use super::item::{Func, WorkItem};
use super::list::{Linked, Links};
use super::pool::{self, Home, Pool, pool_of};
use super::queue::Lane;
use crate::NumberedName;
use crate::config::{RESCUE_AFTER_NS, SPARE_WORKERS, WORKER_IDLE_NS, WORKER_RETRY_NS};
use crate::spawn::{self, JoinHandle, SpawnError};
use crate::switch::cond_resched;
use crate::thread::{Prio, Thread, current};
use crate::wait::{WaitQueue, sleep_ns};
use crate::watchdog;

/// `kworkerd` sleeps here.
pub(super) static MAKER: WaitQueue = WaitQueue::new();

/// A thread that runs items. All but `thread` and `pool` is guarded by the pool's lock; what only the worker writes it
/// reads without.
pub(crate) struct Worker {
    pub(super) thread: &'static Thread,
    pool: &'static Pool,
    links: Links<Worker>,
    /// Among the idle ones.
    pub(super) idle: Cell<bool>,
    /// Counts as running (`SCHED-42`).
    pub(super) counted: Cell<bool>,
    /// What it runs, or null; only compared: the function may free it.
    item: Cell<*const WorkItem>,
    /// The item's function. An item with another function at the same place is another item.
    func: Cell<Option<Func>>,
    lane: Cell<*const Lane>,
    color: Cell<usize>,
    ticket: Cell<u64>,
    /// When the item began.
    pub(super) since_ns: Cell<u64>,
    /// It sleeps here while it idles.
    pub(super) wake: WaitQueue,
}

// SAFETY: the cells are guarded by the pool's lock.
unsafe impl Sync for Worker {}

impl Linked for Worker {
    fn links(&self) -> &Links<Worker> {
        &self.links
    }
}

impl Worker {
    fn new(pool: &'static Pool) -> Worker {
        Worker {
            thread: current(),
            pool,
            links: Links::new(),
            idle: Cell::new(false),
            counted: Cell::new(false),
            item: Cell::new(ptr::null()),
            func: Cell::new(None),
            lane: Cell::new(ptr::null()),
            color: Cell::new(0),
            ticket: Cell::new(0),
            since_ns: Cell::new(0),
            wake: WaitQueue::new(),
        }
    }

    pub(super) fn is_working(&self) -> bool {
        !self.item.get().is_null()
    }

    /// Does it run `item`?
    pub(super) fn runs(&self, item: &WorkItem) -> bool {
        ptr::eq(self.item.get(), item) && self.func.get().is_some_and(|func| ptr::fn_addr_eq(func, item.func))
    }

    /// The ticket of what it runs.
    pub(super) fn ticket(&self) -> u64 {
        self.ticket.get()
    }

    /// The function of what it runs.
    pub(super) fn func(&self) -> Option<Func> {
        self.func.get()
    }

    /// The lane that what it runs counts in. It runs something, or ends it just now.
    pub(super) fn lane(&self) -> &'static Lane {
        // SAFETY: a lane's queue waits for each item that counts in it.
        unsafe { &*self.lane.get() }
    }

    pub(super) fn begin(&self, item: &WorkItem, now_ns: u64) {
        self.item.set(item);
        self.func.set(Some(item.func));
        self.lane.set(item.lane.get());
        self.color.set(item.color.get());
        self.ticket.set(item.ticket.get());
        self.since_ns.set(now_ns);
    }

    /// Nothing is run any more; where the item counted.
    pub(super) fn end(&self) -> (&'static Lane, usize) {
        self.item.set(ptr::null());
        self.func.set(None);
        (self.lane(), self.color.get())
    }

    /// Is the running thread a worker that runs `item`?
    pub(super) fn current_runs(item: &WorkItem) -> bool {
        // SAFETY: a thread's own Worker is on its stack.
        unsafe { current().worker.load(Ordering::Relaxed).as_ref() }.is_some_and(|worker| worker.runs(item))
    }

    /// Is the running thread a worker that runs an item of the queue that `lanes` are of?
    pub(super) fn current_works_for(lanes: &[Lane]) -> bool {
        // SAFETY: as above.
        let worker = unsafe { current().worker.load(Ordering::Relaxed).as_ref() };
        worker.is_some_and(|worker| worker.is_working() && lanes.as_ptr_range().contains(&worker.lane.get()))
    }

    /// Runs items while there are any for it. It is busy.
    fn work_on(&self, cx: &mut MaySleep, go_on: impl Fn(&pool::Inner) -> bool) {
        let mut inner = self.pool.lock();
        while go_on(&inner)
            && let Some(item) = inner.begin(self.pool, self)
        {
            drop(inner);
            // SAFETY: an item stays in place until its function has begun.
            let item = unsafe { &*item };
            (item.func)(item, cx);
            cx.assert_may_sleep();
            inner = self.pool.lock();
            inner.end(self.pool, self);
            drop(inner);
            cond_resched(cx);
            inner = self.pool.lock();
        }
    }

    /// Idles until there is something to do. False if that took so long that the worker shall end, and is on no list.
    fn idle(&self, cx: &mut MaySleep) -> bool {
        let stranded = bug!("sched.work_stranded", "a worker that goes idle does not look once more", "sched_torture");
        if stranded {
            (0..1_000).for_each(|_| arch::irq::relax());
        }
        let surplus = {
            let mut inner = self.pool.lock();
            inner.go_idle(self);
            // What came since the last look.
            if !stranded {
                inner.kick(self.pool);
            }
            inner.idlers > SPARE_WORKERS
        };
        let is_woken = || {
            let _inner = self.pool.lock();
            !self.idle.get()
        };
        if !surplus {
            let idling = watchdog::idling();
            self.wake.wait_until(cx, is_woken);
            drop(idling);
            return true;
        }
        while !self.wake.wait_timeout(cx, WORKER_IDLE_NS, is_woken) {
            let mut inner = self.pool.lock();
            if !self.idle.get() {
                break;
            }
            if inner.idlers > SPARE_WORKERS {
                inner.end_idling(self);
                // SAFETY: it is busy now.
                unsafe { inner.busy.remove(self) };
                return false;
            }
        }
        true
    }
}

/// The life of a worker of pool `number`.
fn worker(cx: &mut MaySleep, number: u16) {
    as_worker(number, |worker| {
        worker.work_on(cx, |_| true);
        while worker.idle(cx) {
            worker.work_on(cx, |_| true);
        }
    });
}

/// The life of a pool's rescuer.
fn rescuer(cx: &mut MaySleep, number: u16) {
    let pool = pool_of(number);
    loop {
        let idling = watchdog::idling();
        pool.rescue.wait_until(cx, || pool.lock().starves());
        drop(idling);
        // Mostly a worker is there by then.
        sleep_ns(cx, RESCUE_AFTER_NS);
        as_worker(number, |worker| {
            worker.work_on(cx, |inner| inner.starves());
            // SAFETY: it is busy.
            unsafe { pool.lock().leave(pool, worker) };
        });
    }
}

/// Makes the running thread a busy worker of a pool while `f` runs, which takes it off the pool's lists again.
fn as_worker(number: u16, f: impl FnOnce(&Worker)) {
    let pool = pool_of(number);
    let worker = Worker::new(pool);
    // SAFETY: new, so in no list; it stays here until `f` has taken it off.
    unsafe { pool.lock().busy.push_back(&worker) };
    let me = &worker.thread.worker;
    me.store(ptr::from_ref(&worker).cast_mut(), Ordering::Relaxed);
    f(&worker);
    me.store(ptr::null_mut(), Ordering::Relaxed);
}

impl pool::Inner {
    /// A busy worker stops being one of the pool.
    ///
    /// # Safety
    ///
    /// It is among the busy ones.
    unsafe fn leave(&mut self, pool: &Pool, worker: &Worker) {
        self.count_out(worker);
        // SAFETY: says the caller.
        unsafe { self.busy.remove(worker) };
        // It may have kept others from being woken.
        self.kick(pool);
    }
}

/// Before the running thread gives up the CPU: if it is a worker that will sleep, another may run (`SCHED-42`).
#[inline]
pub(crate) fn about_to_sleep(thread: &Thread) {
    let worker = thread.worker.load(Ordering::Relaxed);
    if !worker.is_null() {
        // SAFETY: a thread's own Worker is on its stack.
        unsafe { &*worker }.count(false);
    }
}

/// The running thread has the CPU again.
#[inline]
pub(crate) fn runs_again(thread: &Thread) {
    let worker = thread.worker.load(Ordering::Relaxed);
    if !worker.is_null() {
        // SAFETY: as above.
        unsafe { &*worker }.count(true);
    }
}

impl Worker {
    #[cold]
    fn count(&self, runs: bool) {
        // The worker's own fields. One that is about to idle is counted out already, and in by who wakes it.
        if !self.is_working() || self.counted.get() == runs {
            return;
        }
        let mut inner = self.pool.lock();
        if runs {
            inner.count_in(self);
        } else {
            inner.count_out(self);
            inner.kick(self.pool);
        }
    }
}

/// The life of `kworkerd`.
fn make_workers(cx: &mut MaySleep) {
    loop {
        let mut wanted = None;
        let idling = watchdog::idling();
        MAKER.wait_until(cx, || {
            wanted = pool::all().find(|number| core::mem::take(&mut pool_of(*number).lock().wants_worker));
            wanted.is_some()
        });
        drop(idling);
        let Some(number) = wanted else { continue };
        if make_worker(cx, number).is_err() {
            pool_of(number).lock().wants_worker = true;
            sleep_ns(cx, WORKER_RETRY_NS);
        }
    }
}

/// Makes a worker more.
fn make_worker(cx: &mut MaySleep, number: u16) -> Result<(), SpawnError> {
    let serial = {
        let mut inner = pool_of(number).lock();
        inner.next_worker += 1;
        inner.next_worker
    };
    let name = match Home::of(number) {
        Home::Cpu(cpu) => NumberedName::new("kworker/", format_args!("{cpu}:{serial}")),
        Home::Node(node) => NumberedName::new("kworker/u", format_args!("{node}:{serial}")),
    };
    start_thread(cx, name.as_str(), number, worker)
}

/// The first worker and the rescuer of pool `number`. At boot.
pub(super) fn start(cx: &mut MaySleep, number: u16) -> Result<(), SpawnError> {
    make_worker(cx, number)?;
    let name = match Home::of(number) {
        Home::Cpu(cpu) => NumberedName::new("krescue/", cpu),
        Home::Node(node) => NumberedName::new("krescue/u", node),
    };
    start_thread(cx, name.as_str(), number, rescuer)
}

/// Starts a thread of pool `number`: one that belongs to the CPU, or one that runs anywhere.
fn start_thread(cx: &mut MaySleep, name: &str, number: u16, f: fn(&mut MaySleep, u16)) -> Result<(), SpawnError> {
    let body = move |cx: &mut MaySleep| f(cx, number);
    match Home::of(number) {
        Home::Cpu(cpu) => spawn::per_cpu(cx, name, Prio::NORMAL, cpu, body).map(|_| ()),
        Home::Node(_) => spawn::spawn(cx, name, Prio::NORMAL, None, body).map(JoinHandle::detach),
    }
}

/// Starts `kworkerd`. At boot.
pub(super) fn start_maker(cx: &mut MaySleep) -> Result<(), SpawnError> {
    spawn::spawn(cx, "kworkerd", Prio::HIGH, None, make_workers)?.detach();
    Ok(())
}
