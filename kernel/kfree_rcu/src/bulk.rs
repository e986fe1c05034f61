//! The back end: per CPU, pages of pointers to objects that wait for a grace period (K-1 to K-6).
//!
//! What sheaves cannot take comes here: large blocks, vmalloc areas, objects of remote nodes, of caches without sheaves,
//! and whatever found the sheaf busy. Where there is no page for a pointer, the object is linked through its own head.
//!
//! An object's way out:
//! 1. it is put into the youngest page of its channel, whose cookie then names the next grace period (K-2);
//! 2. the first object arms a drain 5 s ahead, a full page one at once (K-3);
//! 3. the drain frees the pages whose cookie has expired meanwhile, without a grace period of its own (K-4);
//! 4. the rest becomes a *batch*: one `call_rcu`, then a work item that frees it. Two batches may be under way (K-5).
//!
//! # Invariants
//! - **BULK-1** A channel's cookies never get older from its first page to its last, so the first that has not expired ends
//!   the search.
//! - **BULK-2** While a CPU holds objects, its drain is armed, or a batch is under way whose work will arm it. Arming
//!   happens after the insert, from an [`IrqWork`]: kfree_rcu is legal under locks that a wake-up or a timer needs (S0-25).
//! - **BULK-3** Objects are freed with no lock held.
//!
//! Lock: each CPU's `kfree_rcu.bulk`, interrupts off; inside it the page allocator's try-locks. Never from NMI.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arch::CpuId;
use rcu::FullCookie;
use sched::hotplug::{Notifier, Order};
use sched::{DelayedWork, WorkItem};
use slab::waiting::{self, Stage as Waits};
use sync::{ATOMIC, CallbackHead, IrqWork, LockClass, MaySleep, PreemptGuard, SpinLock, hook};

use crate::bnode::{Bnode, Pages, RECORDS};
use crate::free_now;
use crate::head::{RcuPtr, object_of};

/// How long objects may wait for company (K-3).
pub const DRAIN_DELAY_NS: u64 = 5_000_000_000;
/// Batches of a CPU that may wait for a grace period at once (K-1).
const BATCHES: usize = 2;

static CLASS: LockClass = LockClass::new("kfree_rcu.bulk");
static BATCH_CLASS: LockClass = LockClass::new("kfree_rcu.batch");

/// Objects that wait.
struct Load {
    /// Pointers into slabs and large blocks.
    slab: Pages,
    /// Pointers to vmalloc areas.
    vmalloc: Pages,
    /// Objects that found no page, linked through their heads, newest first.
    heads: Option<NonNull<RcuPtr>>,
    nr_heads: usize,
    /// The grace period that the newest of `heads` waits for.
    heads_cookie: Option<FullCookie>,
}

// SAFETY: names objects that were given up; they belong to no CPU.
unsafe impl Send for Load {}

impl Load {
    const fn new() -> Self {
        Self { slab: Pages::new(), vmalloc: Pages::new(), heads: None, nr_heads: 0, heads_cookie: None }
    }

    fn is_empty(&self) -> bool {
        self.slab.is_empty() && self.vmalloc.is_empty() && self.heads.is_none()
    }

    fn objects(&self) -> usize {
        self.slab.objects() + self.vmalloc.objects() + self.nr_heads
    }

    fn push_head(&mut self, head: NonNull<RcuPtr>, cookie: FullCookie) {
        // SAFETY: the object was given up, so its head is ours.
        unsafe { RcuPtr::set_next(head, self.heads) };
        self.heads = Some(head);
        self.nr_heads += 1;
        self.heads_cookie = Some(cookie);
    }

    /// Takes the whole list through the heads.
    fn take_heads(&mut self) -> Option<NonNull<RcuPtr>> {
        self.nr_heads = 0;
        self.heads_cookie = None;
        self.heads.take()
    }

    /// Frees everything; every grace period is over.
    fn free_all(mut self) {
        while let Some(page) = self.slab.pop().or_else(|| self.vmalloc.pop()) {
            page.free_all();
        }
        debug_assert!(
            self.heads_cookie.is_none_or(rcu::poll),
            "K-6: a list of objects is freed inside its grace period"
        );
        free_heads(self.take_heads());
    }
}

/// Frees the objects of a list through their heads.
fn free_heads(mut next: Option<NonNull<RcuPtr>>) {
    while let Some(head) = next {
        // SAFETY: the object is ours until it is freed below.
        next = unsafe { RcuPtr::next(head) };
        let object = object_of(head).expect("an object that was accepted");
        waiting::leave(Waits::Bulk, object);
        free_now(object);
    }
}

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
    /// Nothing nests inside the lock.
    stage: SpinLock<Stage>,
}

/// One CPU's objects.
struct Krc {
    load: SpinLock<Load>,
    batches: [Batch; BATCHES],
    arm: IrqWork,
    later: DelayedWork,
    now: WorkItem,
    /// Objects given to this CPU's back end, ever.
    enqueued: AtomicU64,
    /// Of these, how many found no page.
    by_head: AtomicU64,
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
        later: DelayedWork::new(|work, _| container_of(work, offset_of!(Krc, later)).drain_ready()),
        now: WorkItem::new(|work, _| container_of(work, offset_of!(Krc, now)).drain_ready()),
        enqueued: AtomicU64::new(0),
        by_head: AtomicU64::new(0),
    };
}

/// The Krc whose field at `offset` is `field`: the functions of the items above are called with those fields only.
fn container_of<T>(field: &T, offset: usize) -> &'static Krc {
    // SAFETY: `field` lies in a Krc in a per-CPU area, which is never freed; a DelayedWork begins with its item.
    unsafe { &*ptr::from_ref(field).byte_sub(offset).cast() }
}

/// Whether timers and work items may be used yet (S2-7).
static UP: AtomicBool = AtomicBool::new(false);

fn krc_of(cpu: CpuId) -> &'static Krc {
    // SAFETY: per-CPU areas are never freed; a Krc is shared by its locks.
    unsafe { &*KRC.ptr_on(cpu) }
}

/// This CPU's, or one that was this CPU's a moment ago: any will do, because a Krc is locked.
fn this_krc() -> &'static Krc {
    krc_of(arch::cpu::current())
}

/// Arms the drains of what was given before timers ran.
pub(crate) fn init() {
    // Release, with the acquire in `Krc::arm`: whoever sees it may use the scheduler.
    UP.store(true, Release);
    for cpu in arch::cpu::online().iter() {
        krc_of(cpu).arm.queue_on(cpu);
    }
}

/// Takes `object` in. False if it has no head and there is no page for its pointer.
///
/// Context: task, softirq, hardirq. Never waits for memory.
pub(crate) fn enqueue(object: NonNull<u8>, head: Option<NonNull<RcuPtr>>) -> bool {
    let _pin = PreemptGuard::new(ATOMIC);
    let krc = this_krc();
    let kick = {
        let mut load = krc.load.lock_irqsave(ATOMIC);
        hook!("kfree_rcu.bulk");
        let is_first = load.is_empty();
        // Under the lock, so that cookies enter a channel in order (BULK-1).
        let cookie = rcu::get_state_full();
        let channel = if mm::is_vmalloc(object.as_ptr()) { &mut load.vmalloc } else { &mut load.slab };
        let mut in_page = channel.push(object, cookie);
        if !in_page && let Some(page) = Bnode::alloc() {
            channel.add(page);
            in_page = channel.push(object, cookie);
        }
        if !in_page {
            let Some(head) = head else { return false };
            load.push_head(head, cookie);
            krc.by_head.fetch_add(1, Relaxed);
        }
        is_first || load.objects().is_multiple_of(RECORDS)
    };
    waiting::enter(Waits::Bulk, object);
    krc.enqueued.fetch_add(1, Relaxed);
    sync::trace!("kfree_rcu.enqueue", object = object.as_ptr().addr(), by_page = head.is_none());
    if kick {
        krc.arm.queue_lazy();
    }
    true
}

impl Krc {
    /// Sees to it that what is here gets drained (BULK-2). Context: hardirq.
    fn arm(&'static self) {
        // Acquire, with the release in `init`.
        if !UP.load(Acquire) {
            return;
        }
        let objects = self.load.lock_irqsave(ATOMIC).objects();
        if objects >= RECORDS {
            sched::queue_work(&self.now);
        } else if objects > 0 {
            self.later.queue(DRAIN_DELAY_NS);
        }
    }

    /// Frees what has expired, and sends the rest through a grace period. Context: task.
    fn drain_ready(&'static self) {
        loop {
            let mut load = self.load.lock_irqsave(ATOMIC);
            let page = load.slab.pop_expired().or_else(|| load.vmalloc.pop_expired());
            let Some(page) = page else { break };
            drop(load);
            page.free_all();
        }
        let mut load = self.load.lock_irqsave(ATOMIC);
        let heads = load.heads_cookie.is_some_and(rcu::poll).then(|| load.take_heads()).flatten();
        drop(load);
        free_heads(heads);
        if !self.send_batch() {
            // Both batches are under way; the first that comes back sends this one (BULK-2).
            self.later.queue(DRAIN_DELAY_NS);
        }
    }

    /// Sends everything here through a grace period as one batch. False if no batch is free.
    fn send_batch(&'static self) -> bool {
        let mut load = self.load.lock_irqsave(ATOMIC);
        if load.is_empty() {
            return true;
        }
        for batch in &self.batches {
            let mut stage = batch.stage.lock_irqsave(ATOMIC);
            if let Stage::Free = *stage {
                sync::trace!("kfree_rcu.batch_submit", batch = ptr::from_ref(batch).addr(), objects = load.objects());
                *stage = Stage::Waiting(core::mem::replace(&mut *load, Load::new()));
                batch.home.store(ptr::from_ref(self).cast_mut(), Relaxed);
                drop(stage);
                drop(load);
                // SAFETY: the batch was free, so its last callback has run; nobody else submits this head.
                unsafe { rcu::call_rcu(batch.rcu.get(), grace_period_over) };
                return true;
            }
        }
        false
    }

    fn is_idle(&self) -> bool {
        self.load.lock_irqsave(ATOMIC).is_empty()
            && self.batches.iter().all(|batch| matches!(*batch.stage.lock_irqsave(ATOMIC), Stage::Free))
    }
}

/// The grace period of a batch is over: its objects are freed in a thread.
unsafe fn grace_period_over(head: *mut CallbackHead) {
    // SAFETY: RCU hands back what `send_batch` handed over, a field of a Batch in a per-CPU area.
    let batch: &'static Batch = unsafe { &*head.byte_sub(offset_of!(Batch, rcu)).cast() };
    sched::queue_work(&batch.work);
}

/// Frees a batch, and sends what has come together meanwhile.
fn free_batch(work: &WorkItem, _: &mut MaySleep) {
    // SAFETY: only `Batch::work` has this function.
    let batch: &'static Batch = unsafe { &*core::ptr::from_ref(work).byte_sub(offset_of!(Batch, work)).cast() };
    let stage = core::mem::replace(&mut *batch.stage.lock_irqsave(ATOMIC), Stage::Freeing);
    let Stage::Waiting(load) = stage else { unreachable!("BULK: a batch without a load came back") };
    sync::trace!("kfree_rcu.batch_free", batch = ptr::from_ref(batch).addr(), objects = load.objects());
    load.free_all();
    *batch.stage.lock_irqsave(ATOMIC) = Stage::Free;
    // SAFETY: set before the batch was submitted, to a Krc, which lives for ever.
    unsafe { &*batch.home.load(Relaxed) }.arm.queue();
}

/// Tells this storey when a CPU is gone.
pub(crate) static NOTIFIER: Notifier = Notifier::new("kfree_rcu", Order::KFREE_RCU).dead(dead);

/// Notifier: the CPU is parked. What it holds is sent through a grace period at once instead of waiting for company that will not
/// come. Its batches need no CPU of their own: they come back where their callback runs.
fn dead(cpu: CpuId, _: &mut MaySleep) {
    krc_of(cpu).drain_ready();
}

/// Waits until every object that the back end holds now is free.
///
/// Context: task; sleeps.
pub(crate) fn drain(cx: &mut MaySleep) {
    for cpu in arch::cpu::present().iter() {
        let krc = krc_of(cpu);
        krc.drain_ready();
        while !krc.is_idle() {
            // The callbacks of the batches have run after this, and so their work is queued.
            rcu::rcu_barrier(cx);
            krc.batches.iter().for_each(|batch| batch.work.flush(cx));
            krc.drain_ready();
        }
        // A drain that began before may hold pages that it took off.
        krc.now.flush(cx);
        krc.later.flush(cx);
    }
}

/// Objects that wait in the back end, over all CPUs: a sum of moments.
pub fn pending() -> usize {
    let waiting = |krc: &Krc| {
        let batches = krc.batches.iter();
        let under_way = batches.map(|batch| match &*batch.stage.lock_irqsave(ATOMIC) {
            Stage::Waiting(load) => load.objects(),
            Stage::Free | Stage::Freeing => 0,
        });
        krc.load.lock_irqsave(ATOMIC).objects() + under_way.sum::<usize>()
    };
    arch::cpu::present().iter().map(|cpu| waiting(krc_of(cpu))).sum()
}

/// (objects given to the back end, of these linked through their heads), since boot.
pub fn totals() -> (u64, u64) {
    arch::cpu::present()
        .iter()
        .map(krc_of)
        .fold((0, 0), |(all, heads), krc| (all + krc.enqueued.load(Relaxed), heads + krc.by_head.load(Relaxed)))
}
