//! Pools: workers that share a list of items, and when one more of them is let run.
//!
//! Key types: [`Pool`], and [`Inner`], what its lock protects. Each CPU has a pool, whose workers are bound to it; each node
//! has one whose workers run anywhere.
//!
//! Invariants:
//!
//! * `SCHED-20`: an item's function never runs twice at the same time. An item that runs is queued in the pool where it
//!   runs ([`super::queue`]), and no worker of that pool takes it before it has ended.
//! * `SCHED-42`: `running` is the number of busy workers with `counted` set. In a CPU's pool these are the workers that run or
//!   wait for the CPU, and one that goes idle or to sleep is counted out first. In a node's pool nobody is counted.
//! * `SCHED-43`: whenever the lock is free and an item of the pool could run, a worker is on its way to it: one that is
//!   counted (a CPU's pool), one that was woken for it, one that is being made, or the rescuer.
//!
//! # How many workers run
//!
//! In a CPU's pool one is let run at a time, so that items do not fight for the CPU. When it goes to sleep in an item, the
//! next idle worker is woken if there is more to do ([`Inner::kick`]). When it wakes again, both run until one has ended
//! its item. In a node's pool each item that comes wakes a worker, if one idles.
//!
//! A worker that begins an item while no other idles asks for a new one, which the thread `kworkerd` makes. When there is no
//! memory for that, items still get on: workers that come back take them, and the pool's rescuer, a thread made at
//! boot, takes them one after another.
//!
//! # CPUs that go and come
//!
//! The workers of a CPU that goes offline run elsewhere until it is back ([`crate::affinity`]), and take with them what is
//! pending, still one at a time. Nothing new comes, because what is queued for a CPU that is offline goes to the CPU that
//! queues it.
//!
//! Linux: `struct worker_pool`, "Concurrency management", in `kernel/workqueue.c` (6.12).

use core::sync::atomic::Ordering;

use arch::{CpuId, MAX_CPUS, MAX_NODES, NodeId, clock, cpu};
use sync::{ATOMIC, LockClass, SpinIrqGuard, SpinLock, bug};

use super::item::WorkItem;
use super::list::List;
use super::queue::Lane;
use super::worker::{MAKER, Worker};
use crate::thread::cpu_number;
use crate::wait::WaitQueue;

/// Protects a pool's lists, what its workers do, and the lanes of queues that use it. Inside it: wait queue, run queue.
static POOL_CLASS: LockClass = LockClass::new("sched.work");

/// Number of the first node's pool; below are those of CPUs.
const FIRST_NODE: u16 = MAX_CPUS as u16;

/// What a pool's lock protects.
pub(super) struct Inner {
    number: u16,
    /// Items to be run, first come first. Those at `max_active` wait on their lane.
    pub(super) pending: List<WorkItem>,
    /// Workers without anything to do, the one that idles for the shortest time first.
    pub(super) idle: List<Worker>,
    /// How many.
    pub(super) idlers: usize,
    /// All others.
    pub(super) busy: List<Worker>,
    /// `SCHED-42`.
    pub(super) running: usize,
    /// A worker more is wanted; `kworkerd` has been told.
    pub(super) wants_worker: bool,
    /// Number of the next worker, for its name.
    pub(super) next_worker: u32,
    /// The last that was given out.
    tickets: u64,
    /// Items that have run to their end.
    pub(super) ended: u64,
}

/// Workers and their items.
pub(super) struct Pool {
    inner: SpinLock<Inner>,
    /// Those who wait for an item to end sleep here.
    pub(super) done: WaitQueue,
    /// The rescuer sleeps here.
    pub(super) rescue: WaitQueue,
}

impl Pool {
    const fn new() -> Pool {
        let inner = Inner {
            number: 0,
            pending: List::new(),
            idle: List::new(),
            idlers: 0,
            busy: List::new(),
            running: 0,
            wants_worker: false,
            next_worker: 0,
            tickets: 0,
            ended: 0,
        };
        Pool { inner: SpinLock::new(inner, &POOL_CLASS), done: WaitQueue::new(), rescue: WaitQueue::new() }
    }

    pub(super) fn lock(&self) -> SpinIrqGuard<'_, Inner> {
        self.inner.lock_irqsave(ATOMIC)
    }

    /// Tells the pool which one it is. At boot.
    pub(super) fn set_number(&self, number: u16) {
        self.lock().number = number;
    }
}

arch::per_cpu! {
    /// This CPU's pool; queued to from any CPU through `ptr_on`.
    static CPU_POOL: Pool = Pool::new();
}

/// The pools of nodes.
static NODE_POOLS: [Pool; MAX_NODES] = [const { Pool::new() }; MAX_NODES];

/// Whose a pool is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Home {
    /// Its workers belong to this CPU.
    Cpu(CpuId),
    /// Its workers run anywhere; items that are queued in this node come here.
    Node(NodeId),
}

impl Home {
    /// Whose pool `number` is.
    pub(super) fn of(number: u16) -> Home {
        match number.checked_sub(FIRST_NODE) {
            None => Home::Cpu(CpuId::new(usize::from(number))),
            Some(node) => Home::Node(NodeId::new(usize::from(node))),
        }
    }

    /// The pool's number.
    pub(super) fn number(self) -> u16 {
        match self {
            Home::Cpu(cpu) => cpu_number(cpu),
            Home::Node(node) => FIRST_NODE + node.index() as u16,
        }
    }
}

pub(super) fn pool_of(number: u16) -> &'static Pool {
    match Home::of(number) {
        // SAFETY: per-CPU areas of present CPUs live for ever; a Pool is shared by its locks.
        Home::Cpu(cpu) => unsafe { &*CPU_POOL.ptr_on(cpu) },
        Home::Node(node) => &NODE_POOLS[node.index()],
    }
}

/// The numbers of all pools: of each present CPU, and of each node that has a present CPU.
pub(super) fn all() -> impl Iterator<Item = u16> {
    let nodes = (0..MAX_NODES).map(NodeId::new).filter(|node| !cpu::cpus_of(*node).is_empty());
    cpu::present().iter().map(Home::Cpu).chain(nodes.map(Home::Node)).map(Home::number)
}

impl Inner {
    /// Which pool this is.
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// The worker that runs `item`.
    pub(super) fn runner(&self, item: &WorkItem) -> Option<&Worker> {
        self.busy.iter().find(|worker| worker.runs(item))
    }

    /// Does an item that was queued with `ticket` run?
    pub(super) fn runs_ticket(&self, ticket: u64) -> bool {
        self.busy.iter().any(|worker| worker.is_working() && worker.ticket() == ticket)
    }

    /// The first item that does not run already (`SCHED-20`). The others are taken by those who run them.
    fn runnable(&self) -> Option<&WorkItem> {
        let twice =
            bug!("sched.work_twice", "an item that runs may run a second time meanwhile", "work.an_item_runs_once*");
        self.pending.iter().find(|item| twice || self.runner(item).is_none())
    }

    /// Sees to `SCHED-43`: if there is an item to be run and nobody to run it, wakes an idle worker or has one made.
    pub(super) fn kick(&mut self, pool: &Pool) {
        if self.running > 0 || self.runnable().is_none() {
            return;
        }
        let Some(worker) = self.idle.first().map(core::ptr::from_ref) else {
            self.want_worker();
            pool.rescue.wake_one();
            return;
        };
        // SAFETY: on the list of idle workers, so in place; it leaves its loop under the lock only.
        let worker = unsafe { &*worker };
        self.end_idling(worker);
        self.count_in(worker);
        // Under the lock, without which the worker cannot end.
        worker.wake.wake_one();
    }

    /// Has a worker made, soon.
    pub(super) fn want_worker(&mut self) {
        self.wants_worker = true;
        MAKER.wake_one();
    }

    /// Should the rescuer take an item?
    pub(super) fn starves(&self) -> bool {
        self.idlers == 0 && self.running == 0 && self.runnable().is_some()
    }

    /// A worker, busy and without an item, begins what it should do next, if anything.
    pub(super) fn begin(&mut self, pool: &Pool, worker: &Worker) -> Option<*const WorkItem> {
        if self.running > usize::from(worker.counted.get()) {
            return None;
        }
        let item: *const WorkItem = self.runnable()?;
        // SAFETY: on the list, so in place until its function has begun.
        let item = unsafe { &*item };
        self.count_in(worker);
        // SAFETY: it is on that list.
        unsafe { self.pending.remove(item) };
        worker.begin(item, clock::now_ns());
        item.taken();
        self.kick(pool);
        if self.idlers == 0 {
            self.want_worker();
        }
        Some(item)
    }

    /// The worker's item has ended. It may be gone.
    pub(super) fn end(&mut self, pool: &Pool, worker: &Worker) {
        let (lane, color) = worker.end();
        self.ended += 1;
        lane.leave(self, color, true);
        pool.done.wake_all();
    }

    /// A busy worker has nothing to do any more.
    pub(super) fn go_idle(&mut self, worker: &Worker) {
        self.count_out(worker);
        // SAFETY: it is among the busy ones.
        unsafe { self.busy.remove(worker) };
        // SAFETY: out of the other list; in place until it has left this one.
        unsafe { self.idle.push_front(worker) };
        worker.idle.set(true);
        self.idlers += 1;
    }

    /// An idle worker becomes busy.
    pub(super) fn end_idling(&mut self, worker: &Worker) {
        worker.idle.set(false);
        self.idlers -= 1;
        // SAFETY: it is among the idle ones.
        unsafe { self.idle.remove(worker) };
        // SAFETY: out of the other list; in place until it has left this one.
        unsafe { self.busy.push_back(worker) };
    }

    /// Counts a busy worker as one that runs, where that counts (`SCHED-42`).
    pub(super) fn count_in(&mut self, worker: &Worker) {
        if self.number < FIRST_NODE && !worker.counted.replace(true) {
            self.running += 1;
        }
    }

    /// It goes to sleep.
    pub(super) fn count_out(&mut self, worker: &Worker) {
        if worker.counted.replace(false) {
            self.running -= 1;
        }
    }
}

impl Lane {
    /// Puts an item, which the caller owns, on the list of the lane's pool, or makes it wait for `max_active`.
    pub(super) fn insert(&self, inner: &mut Inner, item: &WorkItem) {
        let color = self.color.get();
        item.lane.set(self);
        item.color.set(color);
        item.ticket.set(inner.next_ticket());
        self.in_flight[color].set(self.in_flight[color].get() + 1);
        item.listed(inner.number);
        let waits = self.active.get() >= self.queue().max_active;
        item.waits.set(waits);
        if waits {
            // SAFETY: its owner says that it is in no list; it stays in place while it is pending.
            unsafe { self.waiting.push_back(item) };
        } else {
            self.activate(inner, item);
            inner.kick(self.pool);
        }
    }

    fn activate(&self, inner: &Inner, item: &WorkItem) {
        self.active.set(self.active.get() + 1);
        // SAFETY: in no list; it stays in place while it is pending.
        unsafe { inner.pending.push_back(item) };
    }

    /// An item that counted here is gone; the next that waits for it may run.
    pub(super) fn leave(&self, inner: &mut Inner, color: usize, was_active: bool) {
        if was_active {
            self.active.set(self.active.get() - 1);
            if let Some(next) = self.waiting.first() {
                // SAFETY: it is on that list.
                unsafe { self.waiting.remove(next) };
                next.waits.set(false);
                self.activate(inner, next);
            }
        }
        let left = self.in_flight[color].get() - 1;
        self.in_flight[color].set(left);
        if left == 0 {
            self.queue().quiet.wake_all();
        }
    }

    /// An item is taken off its list, and belongs to the caller.
    pub(super) fn take_back(&self, pool: &Pool, inner: &mut Inner, item: &WorkItem) {
        let waits = item.waits.get();
        let list = if waits { &self.waiting } else { &inner.pending };
        // SAFETY: it is on that list, says `waits`.
        unsafe { list.remove(item) };
        self.leave(inner, item.color.get(), !waits);
        inner.kick(pool);
        pool.done.wake_all();
    }

    /// A delay that counted here is over, or was taken back. The queue may be gone when this returns.
    pub(super) fn end_delay(&self) {
        let _inner = self.pool.lock();
        let queue = self.queue();
        // Relaxed: the lock orders it.
        if queue.delayed.fetch_sub(1, Ordering::Relaxed) == 1 {
            queue.quiet.wake_all();
        }
    }
}
