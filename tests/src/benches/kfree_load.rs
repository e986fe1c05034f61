//! Objects that threads on all CPUs allocate and give up as fast as they can, and what that takes: time, grace periods,
//! callbacks, memory. What the benches of `kfree_rcu` have in common.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::{CpuId, PAGE_SIZE, clock, cpu};
use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::pending::{Keep, set_store};
use kfree_rcu::{RcuPtr, kfree_rcu, kfree_rcu_mightsleep, kvfree_rcu_barrier};
use mm::AllocFlags;
use rcu::{call_rcu, rcu_barrier};
use slab::Stat;
use sync::{CallbackHead, MaySleep};

use crate::Failure;
use crate::together::{MS, spawn};

/// How objects are given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// To `kfree_rcu` with that back end.
    To(BackEnd),
    /// To `kfree_rcu` with the back end `pending`, which keeps objects so.
    Pending(Keep),
    /// To `call_rcu`, each with a callback of its own that frees it: what a user does who has no `kfree_rcu`.
    Callback,
}

impl Way {
    /// What a kernel does if nothing is said.
    pub(super) const DEFAULT: Way = Way::To(BackEnd::Sheaf);

    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Way> {
        use BackEnd::{Bulk, CallRcu, Sheaf};
        let pending = [Way::Pending(Keep::Trees), Way::Pending(Keep::Lists)];
        [Way::To(Sheaf), Way::To(Bulk)].into_iter().chain(pending).chain([Way::To(CallRcu), Way::Callback])
    }

    /// As it stands in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::To(back_end) => back_end.name(),
            Way::Pending(Keep::Trees) => "pending, radix",
            Way::Pending(Keep::Lists) => "pending, pages",
            Way::Callback => "callback",
        }
    }

    /// Has everything that is given up from now on go this way; what was given up before is free.
    pub(super) fn choose(self, cx: &mut MaySleep) {
        match self {
            Way::To(to) => backend::switch(to, cx),
            Way::Pending(keep) => {
                set_store(keep);
                backend::switch(BackEnd::Pending, cx);
            }
            Way::Callback => {}
        }
    }

    /// Waits until everything given up so far is free.
    pub(super) fn barrier(self, cx: &mut MaySleep) {
        match self {
            Way::To(_) | Way::Pending(_) => kvfree_rcu_barrier(cx),
            Way::Callback => rcu_barrier(cx),
        }
    }

    /// Gives up an object of kmalloc or vmalloc.
    ///
    /// # Safety
    /// It has room for a head of 16 bytes, nobody else knows it, and it is not used after.
    #[inline(always)]
    pub(super) unsafe fn give(self, object: NonNull<u8>) {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Way::Callback => {
                    let head = object.as_ptr().cast::<CallbackHead>();
                    head.write(CallbackHead::new());
                    call_rcu(head, free_head);
                }
                Way::To(_) | Way::Pending(_) => {
                    let head = object.cast::<RcuPtr>();
                    head.write(RcuPtr::new());
                    kfree_rcu(head);
                }
            }
        }
    }
}

/// Frees the object that its head begins.
unsafe fn free_head(head: *mut CallbackHead) {
    if let Some(object) = NonNull::new(head.cast()) {
        // SAFETY: `give` queued the start of an object of kmalloc or vmalloc, whose readers are gone.
        unsafe { slab::kvfree(object) };
    }
}

/// With which head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heads {
    All,
    None,
    /// Every other object has one.
    Half,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Threads, dealt out to the CPUs in turn.
    pub threads: usize,
    /// Times that each of them allocates and gives up its objects.
    pub loops: u64,
    /// Objects of one time.
    pub objects: u64,
    /// Bytes of an object.
    pub size: usize,
    /// Objects are areas of vmalloc.
    pub vmalloc: bool,
    pub heads: Heads,
    /// How long a thread sleeps after each time.
    pub pause_ns: u64,
}

/// What it took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// Objects given up.
    pub objects: u64,
    /// Until the last thread was done.
    pub ns: u64,
    /// Until all objects were free.
    pub free_ns: u64,
    /// Grace periods until the last thread was done.
    pub gps: u64,
    /// Expedited ones until all objects were free.
    pub exp_gps: u64,
    /// Callbacks that ran until all objects were free.
    pub callbacks: u64,
    /// Bytes in use more than before: the mean that rcuscale gives, of four looks weighed as they are there.
    pub footprint: u64,
    /// The most bytes in use more than before that a thread has seen, at the start of one of its times.
    pub peak: u64,
    /// Allocations that failed, and were tried again after a barrier.
    pub failed: u64,
    /// Full sheaves that barns had for CPUs that ran dry, and those that they had not.
    pub barn: [u64; 2],
}

impl Took {
    /// For a row.
    pub(super) fn values(&self) -> [(&'static str, u64); 11] {
        [
            ("objects", self.objects),
            ("ns", self.ns),
            ("free_ns", self.free_ns),
            ("gps", self.gps),
            ("exp_gps", self.exp_gps),
            ("callbacks", self.callbacks),
            ("footprint", self.footprint),
            ("peak", self.peak),
            ("failed", self.failed),
            ("barn_get", self.barn[0]),
            ("barn_get_fail", self.barn[1]),
        ]
    }
}

/// What the threads share.
struct Shared {
    ready: AtomicUsize,
    go: AtomicBool,
    /// When the last was done.
    done_ns: AtomicU64,
    failed: AtomicU64,
    /// The most bytes in use that any of them has seen.
    most: AtomicU64,
}

/// Bytes that somebody has.
pub(super) fn in_use() -> u64 {
    mm::stats::nodes().map(|node| node.in_use() * PAGE_SIZE).sum::<usize>() as u64
}

/// How often barns had a full sheaf, and how often they had none, of all caches.
fn barns() -> [u64; 2] {
    let mut counts = [0; 2];
    slab::registry::for_each(|cache| {
        counts[0] += cache.stat(Stat::BarnGet);
        counts[1] += cache.stat(Stat::BarnGetFail);
    });
    counts
}

/// Gives back all pages that can be, so that what comes next begins where everybody began.
pub(super) fn settle(cx: &mut MaySleep) {
    kvfree_rcu_barrier(cx);
    rcu_barrier(cx);
    slab::registry::for_each_unlocked(cx, |cache| {
        cache.shrink();
    });
    mm::drain_all(cx);
}

/// Performs `load`.
pub(super) fn run(cx: &mut MaySleep, load: Load, way: Way) -> Result<Took, Failure> {
    way.choose(cx);
    settle(cx);
    let shared = Arc::new(Shared {
        ready: AtomicUsize::new(0),
        go: AtomicBool::new(false),
        done_ns: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        most: AtomicU64::new(0),
    });
    let cpus: Vec<CpuId> = cpu::online().iter().collect();
    let mut threads = Vec::new();
    for number in 0..load.threads {
        let shared = shared.clone();
        threads.push(spawn(cx, Some(cpus[number % cpus.len()]), move |cx| {
            shared.ready.fetch_add(1, Relaxed);
            while !shared.go.load(Relaxed) {
                sched::sleep_ns(cx, MS);
            }
            let memory = give_up(cx, load, way, &shared);
            shared.done_ns.fetch_max(clock::now_ns(), Relaxed);
            shared.most.fetch_max(memory.most, Relaxed);
            memory
        })?);
    }
    while shared.ready.load(Relaxed) < load.threads {
        sched::sleep_ns(cx, MS);
    }
    let (before, barns_before, in_use_before) = (rcu::stats(), barns(), in_use());
    let begin = clock::now_ns();
    shared.go.store(true, Relaxed);
    let memory: Vec<Memory> = threads.into_iter().map(|thread| thread.join(cx)).collect();
    let done = rcu::stats();
    way.barrier(cx);
    let (free_ns, free) = (clock::now_ns() - begin, rcu::stats());
    Ok(Took {
        objects: load.threads as u64 * load.loops * load.objects,
        ns: shared.done_ns.load(Relaxed) - begin,
        free_ns,
        gps: done.gps - before.gps,
        exp_gps: free.exp_gps - before.exp_gps,
        callbacks: free.callbacks_run - before.callbacks_run,
        footprint: memory[0].footprint(),
        peak: shared.most.load(Relaxed).saturating_sub(in_use_before),
        failed: shared.failed.load(Relaxed),
        barn: core::array::from_fn(|i| barns()[i] - barns_before[i]),
    })
}

/// What a thread sees of the memory in use.
#[derive(Clone, Copy, Default)]
struct Memory {
    begin: u64,
    during: u64,
    most: u64,
}

impl Memory {
    fn footprint(&self) -> u64 {
        self.during.saturating_sub(self.begin)
    }

    /// A look at the start of time `turn` of `loops`.
    fn look(&mut self, turn: u64, loops: u64) {
        let now = in_use();
        if turn == 0 {
            *self = Memory { begin: now, during: now, most: now };
        } else if turn.is_multiple_of((loops / 4).max(1)) {
            self.during = u64::midpoint(self.during, now);
        }
        self.most = self.most.max(now);
    }
}

fn allocate(cx: &mut MaySleep, load: Load) -> Option<NonNull<u8>> {
    if load.vmalloc {
        return mm::vmalloc(load.size, cx).ok();
    }
    slab::kmalloc(load.size, AllocFlags::NOWAIT | AllocFlags::NOWARN)
}

/// What one thread does.
fn give_up(cx: &mut MaySleep, load: Load, way: Way, shared: &Shared) -> Memory {
    let mut memory = Memory::default();
    for turn in 0..load.loops {
        memory.look(turn, load.loops);
        for number in 0..load.objects {
            let object = loop {
                match allocate(cx, load) {
                    Some(object) => break object,
                    None => {
                        shared.failed.fetch_add(1, Relaxed);
                        way.barrier(cx);
                    }
                }
            };
            // SAFETY: a fresh object of at least 24 bytes, which nobody else knows.
            unsafe {
                match load.heads {
                    Heads::None => kfree_rcu_mightsleep(object, cx),
                    Heads::Half if number % 2 == 1 => kfree_rcu_mightsleep(object, cx),
                    _ => way.give(object),
                }
            }
        }
        if load.pause_ns != 0 {
            sched::sleep_ns(cx, load.pause_ns);
        }
    }
    memory
}
