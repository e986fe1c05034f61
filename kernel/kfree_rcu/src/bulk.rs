//! The back end `bulk`: per CPU, pages of pointers to objects that wait for a grace period (K-1 to K-9).
//!
//! What sheaves cannot take comes here: large blocks, vmalloc areas, objects of remote nodes, of caches without sheaves,
//! and whatever found the sheaf busy. Where there is no page for a pointer, the object is linked through its own head.
//!
//! An object's way out:
//! 1. it is put into the youngest page of its channel, whose cookie then names the next grace period (K-2);
//! 2. the first object arms a drain 5 s ahead, a full page one at once (K-3);
//! 3. the drain frees the pages whose cookie has expired meanwhile, without a grace period of its own (K-4);
//! 4. the rest becomes a *batch*: one callback, then a work item that frees it. Two batches may be under way (K-5).
//!
//! | module | what it is |
//! |---|---|
//! | [`load`] | objects that wait: two queues of pages, and a list through heads |
//!
//! # Invariants
//! - **BULK-1** A channel's cookies never get older from its first page to its last, so the first that has not expired ends
//!   the search.
//! - **BULK-2** While a CPU holds objects, its drain is armed, or a batch is under way whose work will arm it. Arming
//!   happens after the insert, from an [`IrqWork`]: kfree_rcu is legal under locks that a wake-up or a timer needs (S0-25).
//! - **BULK-3** Objects are freed with no lock held.
//! - **BULK-4** A drain that is armed is only ever made to come sooner.
//!
//! Locks, all with interrupts off, never from NMI: each CPU's `kfree_rcu.bulk`, inside it `kfree_rcu.batch` and the page
//! allocator's try-locks; each CPU's `kfree_rcu.due`, inside it `kfree_rcu.bulk` and those of work queues and timers.
//!
//! Linux: `struct kfree_rcu_cpu` and what it is used by in `mm/slab_common.c` (7.x).

mod load;

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

use arch::{CpuId, clock};
use rcu::FullCookie;
use sched::{DelayedWork, Mutex, WorkItem};
use slab::waiting::{self, Stage as Waits};
use sync::{ATOMIC, CallbackHead, IrqWork, LockClass, MaySleep, PreemptGuard, SpinLock, bug, hook};

use self::load::Load;
use crate::backend::{self, BackEnd, Engine, Event, Head, Waiting};
use crate::bnode::{Bnode, RECORDS};
use crate::page_cache;

/// Objects of a CPU, waiting in whatever way, from which on grace periods are expedited: as many as make RCU hurry with
/// callbacks (`rcutree.qhimark`), rounded up to pages.
pub const FLOOD_OBJECTS: usize = 20 * RECORDS;

sync::param! {
    /// How long objects may wait for company before a grace period is asked for on their behalf.
    static DELAY_MS: u32 = "grange.kfree_rcu_drain_ms", default 5000, in 1..=100_000, unit "ms";
}

/// The same in nanoseconds (K-3). Set at boot and by [`set_drain_delay_ns`].
static DELAY_NS: AtomicU64 = AtomicU64::new(5_000_000_000);
/// Batches of a CPU that may wait for a grace period at once (K-1).
const BATCHES: usize = 2;

static CLASS: LockClass = LockClass::new("kfree_rcu.bulk");
static BATCH_CLASS: LockClass = LockClass::new("kfree_rcu.batch");
static DUE_CLASS: LockClass = LockClass::new("kfree_rcu.due");
static HURRIED_CLASS: LockClass = LockClass::new("kfree_rcu.hurried");
static FREEING_CLASS: LockClass = LockClass::new("kfree_rcu.freeing");

/// Where a batch is.
enum Stage {
    /// Nowhere: it may be filled.
    Free,
    /// Waiting for its grace period, or for a worker after it.
    Waiting(Load),
    /// A worker has the load and is not done with it.
    Freeing,
}

/// A load on its way through a grace period.
struct Batch {
    rcu: UnsafeCell<CallbackHead>,
    work: WorkItem,
    /// Whose batch it is. Written before the batch is submitted.
    home: AtomicPtr<Krc>,
    /// Inside the lock: `call_rcu`.
    stage: SpinLock<Stage>,
}

/// One CPU's objects.
struct Krc {
    load: SpinLock<Load>,
    batches: [Batch; BATCHES],
    /// Arms the drain.
    arm: IrqWork,
    drain: DelayedWork,
    /// When the drain is to come, by the monotonic clock, if it was armed and has not begun since.
    due_ns: SpinLock<Option<u64>>,
    /// The expedited grace period that was asked for last. Inside the lock: what `rcu::start_poll_expedited` takes.
    hurried: SpinLock<Option<rcu::Cookie>>,
    /// Held while expired objects are off the load, or off a batch, and not free yet. Nothing nests inside it but what freeing
    /// takes, and nobody who has it allocates: so a shrinker may wait for it.
    freeing: Mutex<()>,
    /// Batches sent so far. Written under the lock of `load`, which is empty then.
    sent: AtomicU64,
}

impl Batch {
    const fn new() -> Self {
        Self {
            rcu: UnsafeCell::new(CallbackHead::new()),
            work: WorkItem::new(free_batch),
            home: AtomicPtr::new(ptr::null_mut()),
            stage: SpinLock::new(Stage::Free, &BATCH_CLASS),
        }
    }
}

sync::per_cpu! {
    static KRC: Krc = Krc {
        load: SpinLock::new(Load::new(), &CLASS),
        batches: [const { Batch::new() }; BATCHES],
        arm: IrqWork::new(|work| container_of(work, offset_of!(Krc, arm)).arm()),
        drain: DelayedWork::new(|work, cx| container_of(work, offset_of!(Krc, drain)).drain_is_due(cx)),
        due_ns: SpinLock::new(None, &DUE_CLASS),
        hurried: SpinLock::new(None, &HURRIED_CLASS),
        freeing: Mutex::new((), &FREEING_CLASS),
        sent: AtomicU64::new(0),
    };
}

/// The Krc whose field at `offset` is `field`: the functions of the items above are called with those fields only.
fn container_of<T>(field: &T, offset: usize) -> &'static Krc {
    // SAFETY: `field` lies in a Krc in a per-CPU area, which is never freed; a DelayedWork begins with its item.
    unsafe { &*ptr::from_ref(field).byte_sub(offset).cast() }
}

fn krc_of(cpu: CpuId) -> &'static Krc {
    // SAFETY: per-CPU areas are never freed; a Krc is shared by its locks.
    unsafe { &*KRC.ptr_on(cpu) }
}

/// This CPU's, or one that was this CPU's a moment ago: any will do, because a Krc is locked.
fn this_krc() -> &'static Krc {
    krc_of(arch::cpu::current())
}

fn count(event: Event, n: usize) {
    backend::count(BackEnd::Bulk, event, n);
}

/// How long objects may wait for company from now on. A drain that is armed comes when it was to come.
///
/// Context: any.
pub fn set_drain_delay_ns(ns: u64) {
    DELAY_NS.store(ns, Relaxed);
}

/// How long objects may wait for company.
///
/// Context: any.
#[must_use]
pub fn drain_delay_ns() -> u64 {
    DELAY_NS.load(Relaxed)
}

/// When the drain of `cpu`, which is present, is to come, by the monotonic clock; nothing if none is armed.
///
/// Context: any but NMI.
#[must_use]
pub fn drain_due_ns(cpu: CpuId) -> Option<u64> {
    *krc_of(cpu).due_ns.lock_irqsave(ATOMIC)
}

/// Arms the drains of what was given before timers ran (S2-7).
pub(crate) fn init() {
    set_drain_delay_ns(u64::from(DELAY_MS.get()) * 1_000_000);
    for cpu in arch::cpu::online().iter() {
        krc_of(cpu).arm.queue_on(cpu);
    }
}

/// Takes an object in by its head, which needs no memory.
///
/// Context: as for [`Engine::enqueue`].
pub(crate) fn enqueue_by_head(head: Head) {
    // The head lies in the object, and that is enough to count it.
    this_krc().enqueue(head.link().cast(), |load, cookie| {
        count(Event::ByHead, 1);
        load.heads.push(head.link(), cookie);
        true
    });
}

/// The engine.
pub(crate) enum Bulk {}

impl Engine for Bulk {
    fn enqueue(object: NonNull<u8>, head: Option<Head>) -> bool {
        this_krc().enqueue(object, |load, cookie| {
            let channel = load.channel(object);
            if channel.push(object, cookie) {
                return true;
            }
            if let Some(page) = page() {
                channel.add(page);
                return channel.push(object, cookie);
            }
            let Some(head) = head else { return false };
            count(Event::ByHead, 1);
            if !bug!("kfree_rcu.head_lost", "an object that finds no page is forgotten", "kfree_rcu_bulk.*no_memory*") {
                load.heads.push(head.link(), cookie);
            }
            true
        })
    }

    fn enqueue_headless(object: NonNull<u8>, _: &mut MaySleep) -> bool {
        let krc = {
            let _pin = PreemptGuard::new(ATOMIC);
            if Self::enqueue(object, None) {
                return true;
            }
            this_krc()
        };
        let mut page = Bnode::alloc_task();
        if page.is_none() {
            return false;
        }
        count(Event::Pages, 1);
        let _pin = PreemptGuard::new(ATOMIC);
        // Wherever this thread runs now: the CPU that gets a page is the one that had none (K-8).
        krc.enqueue(object, |load, cookie| {
            let channel = load.channel(object);
            if !channel.push(object, cookie) {
                page.take().into_iter().for_each(|page| channel.add(page));
                channel.push(object, cookie);
            }
            true
        });
        // Somebody else brought one meanwhile.
        page.into_iter().for_each(Bnode::retire);
        true
    }

    fn drain(cx: &mut MaySleep) {
        arch::cpu::present().iter().for_each(|cpu| krc_of(cpu).drain_all(cx));
    }

    /// What the CPU holds is sent through a grace period at once instead of waiting for company that will not come. Its
    /// batches need no CPU of their own: they come back where their callback runs.
    fn dead(cpu: CpuId, cx: &mut MaySleep) {
        krc_of(cpu).drain_is_due(cx);
        page_cache::empty(cpu);
    }

    fn reclaim(cx: &mut MaySleep) -> usize {
        let Some(queue) = backend::reclaim_queue() else { return 0 };
        let spare = page_cache::drain(queue);
        let expired = |cpu| {
            let krc = krc_of(cpu);
            let pages = krc.free_expired(cx);
            krc.send_batch();
            pages
        };
        spare + arch::cpu::present().iter().map(expired).sum::<usize>()
    }

    fn waiting() -> Waiting {
        arch::cpu::present().iter().map(|cpu| krc_of(cpu).waiting()).fold(Waiting::default(), Waiting::and)
    }
}

/// An empty page: a spare one, else one from the page allocator unless memory was short of late.
fn page() -> Option<Bnode> {
    page_cache::take().or_else(|| {
        let fresh = if page_cache::is_backing_off() { None } else { Bnode::alloc() };
        count(Event::Pages, usize::from(fresh.is_some()));
        fresh
    })
}

impl Krc {
    /// Has `take` put `object`, or what it lies in, into the load, given the cookie that it waits for; says whether it did.
    /// Preemption is off.
    fn enqueue(&'static self, object: NonNull<u8>, take: impl FnOnce(&mut Load, FullCookie) -> bool) -> bool {
        let kick = {
            let mut load = self.load.lock_irqsave(ATOMIC);
            hook!("kfree_rcu.bulk");
            let is_first = load.is_empty();
            // Under the lock, so that cookies enter a channel in order (BULK-1).
            if !take(&mut load, rcu::get_state_full()) {
                return false;
            }
            (is_first && !bug!("kfree_rcu.first_unarmed", "the first object arms no drain", "kfree_rcu_bulk.*sooner*"))
                || load.objects().is_multiple_of(RECORDS)
        };
        // Still there: its grace period waits for this CPU, too.
        waiting::enter(Waits::Bulk, object);
        count(Event::Enqueued, 1);
        sync::trace!("kfree_rcu.enqueue", object = object.as_ptr().addr());
        if kick {
            self.arm.queue_lazy();
        }
        true
    }

    /// Sees to it that what is here gets drained (BULK-2), and in time, and that there are spare pages. Context: task,
    /// hardirq.
    fn arm(&'static self) {
        let Some(queue) = backend::reclaim_queue() else { return };
        page_cache::arm(arch::cpu::current(), queue);
        let objects = self.waiting().objects;
        if objects >= FLOOD_OBJECTS {
            self.hurry();
        }
        let mut due_ns = self.due_ns.lock_irqsave(ATOMIC);
        let delay_ns = match self.load.lock_irqsave(ATOMIC).objects() {
            0 => return,
            1..RECORDS => DELAY_NS.load(Relaxed),
            RECORDS.. => 0,
        };
        let wish_ns = clock::now_ns() + delay_ns;
        let sooner = due_ns.is_none_or(|due_ns| wish_ns < due_ns);
        // BULK-4.
        if sooner || bug!("kfree_rcu.put_off", "each object puts the drain off", "kfree_rcu_bulk.*sooner*") {
            *due_ns = Some(wish_ns);
            queue.modify_delayed(&self.drain, delay_ns);
        }
    }

    /// Objects come faster than grace periods end: has one expedited, unless the last that was asked for here is still under way
    /// (S3-29).
    fn hurry(&self) {
        let mut hurried = self.hurried.lock_irqsave(ATOMIC);
        if hurried.is_none_or(rcu::poll) {
            count(Event::GracePeriods, 1);
            *hurried = Some(rcu::start_poll_expedited());
        }
    }

    /// Frees what has expired, and sends the rest through a grace period. Context: task.
    fn drain_is_due(&'static self, cx: &mut MaySleep) {
        // Before the look at the load: what comes after it arms again.
        *self.due_ns.lock_irqsave(ATOMIC) = None;
        self.free_expired(cx);
        self.send_batch();
    }

    /// Frees what has expired without a grace period of its own, and waits for who is freeing a batch. Says how many pages that
    /// gave back. Context: task.
    fn free_expired(&'static self, cx: &mut MaySleep) -> usize {
        // So that who finds an object gone, and then gets this, knows that it is free.
        let _one = self.freeing.lock(cx);
        let mut pages = 0;
        loop {
            let page = self.load.lock_irqsave(ATOMIC).pop_expired();
            let Some(page) = page.or_else(|| self.pop_expired_of_batches()) else { break };
            count(Event::Freed, page.free_all());
            pages += 1;
        }
        let heads = self.load.lock_irqsave(ATOMIC).heads.take_expired();
        count(Event::Freed, heads.free_all());
        for batch in &self.batches {
            let heads = match &mut *batch.stage.lock_irqsave(ATOMIC) {
                Stage::Waiting(load) => load.heads.take_expired(),
                Stage::Free | Stage::Freeing => continue,
            };
            count(Event::Freed, heads.free_all());
        }
        pages
    }

    /// A page whose batch has not been told yet that its grace period is over.
    fn pop_expired_of_batches(&self) -> Option<Bnode> {
        self.batches.iter().find_map(|batch| match &mut *batch.stage.lock_irqsave(ATOMIC) {
            Stage::Waiting(load) => load.pop_expired(),
            Stage::Free | Stage::Freeing => None,
        })
    }

    /// Sends everything here through a grace period as one batch. False if no batch is free; then the one that comes back
    /// first arms the drain.
    fn send_batch(&'static self) -> bool {
        let mut load = self.load.lock_irqsave(ATOMIC);
        if load.is_empty() {
            return true;
        }
        for batch in &self.batches {
            let mut stage = batch.stage.lock_irqsave(ATOMIC);
            if let Stage::Free = *stage {
                sync::trace!("kfree_rcu.batch_submit", batch = ptr::from_ref(batch).addr(), objects = load.objects());
                *stage = Stage::Waiting(core::mem::take(&mut *load));
                batch.home.store(ptr::from_ref(self).cast_mut(), Relaxed);
                self.sent.fetch_add(1, Relaxed);
                count(Event::Callbacks, 1);
                // Under the lock: who finds the batch not free, and waits for callbacks, waits for this one.
                // SAFETY: the batch was free, so its last callback has run; nobody else submits this head.
                unsafe { rcu::call_rcu_hurry(batch.rcu.get(), grace_period_over) };
                return true;
            }
        }
        false
    }

    /// Waits until every object that is here now is free. What comes meanwhile holds nobody up.
    fn drain_all(&'static self, cx: &mut MaySleep) {
        let sent = self.sent.load(Relaxed);
        self.free_expired(cx);
        // If not we, somebody else sends what was here.
        while !self.send_batch() && self.sent.load(Relaxed) == sent {
            self.wait_for_batches(cx);
        }
        self.wait_for_batches(cx);
        // What expired meanwhile may have been taken by somebody else, who frees it.
        drop(self.freeing.lock(cx));
    }

    /// Waits until the batches that are under way now have been freed.
    fn wait_for_batches(&'static self, cx: &mut MaySleep) {
        let is_free = |batch: &Batch| matches!(*batch.stage.lock_irqsave(ATOMIC), Stage::Free);
        if !self.batches.iter().all(is_free) {
            // Their callbacks have run after this, and so their work is queued.
            rcu::rcu_barrier(cx);
            self.batches.iter().for_each(|batch| batch.work.flush(cx));
        }
    }

    fn waiting(&self) -> Waiting {
        let batches = self.batches.iter().map(|batch| match &*batch.stage.lock_irqsave(ATOMIC) {
            Stage::Waiting(load) => load.waiting(),
            Stage::Free | Stage::Freeing => Waiting::default(),
        });
        batches.fold(self.load.lock_irqsave(ATOMIC).waiting(), Waiting::and)
    }
}

/// The grace period of a batch is over: its objects are freed in a thread.
unsafe fn grace_period_over(head: *mut CallbackHead) {
    // SAFETY: RCU hands back what `send_batch` handed over, a field of a Batch in a per-CPU area.
    let batch: &'static Batch = unsafe { &*head.byte_sub(offset_of!(Batch, rcu)).cast() };
    let queue = backend::reclaim_queue().expect("a batch is sent by an item of the queue, or later");
    queue.queue(&batch.work);
}

/// Frees a batch, and sends what has come together meanwhile.
fn free_batch(work: &WorkItem, cx: &mut MaySleep) {
    // SAFETY: only `Batch::work` has this function.
    let batch: &'static Batch = unsafe { &*ptr::from_ref(work).byte_sub(offset_of!(Batch, work)).cast() };
    // SAFETY: set before the batch was submitted, to a Krc, which lives for ever.
    let home = unsafe { &*batch.home.load(Relaxed) };
    let one = home.freeing.lock(cx);
    let stage = core::mem::replace(&mut *batch.stage.lock_irqsave(ATOMIC), Stage::Freeing);
    let Stage::Waiting(mut load) = stage else { unreachable!("BULK: a batch without a load came back") };
    sync::trace!("kfree_rcu.batch_free", batch = ptr::from_ref(batch).addr(), objects = load.objects());
    while let Some(page) = load.pop() {
        count(Event::Freed, page.free_all());
    }
    count(Event::Freed, load.heads.free_all());
    *batch.stage.lock_irqsave(ATOMIC) = Stage::Free;
    drop(one);
    home.arm.queue();
}
