//! RCU and `kfree_rcu` beside crossbeam-epoch and seize.
//!
//! What is freed has 64 bytes and is not written but for what the reclaimer keeps in it. Ours comes from the slab allocator,
//! the peers' are boxes.

use std::alloc::Layout;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicPtr, Ordering::Acquire};

use crossbeam_epoch::{self as epoch, Atomic, Owned};
use kfree_rcu::{RcuPtr, kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;
use rcu::{Rcu, RcuBox, call_rcu, rcu_barrier, read_lock};
use seize::{Collector, Guard, reclaim};
use sync::{CallbackHead, MaySleep};

use crate::load::{Clock, Load, in_all, median};
use crate::{OBJECT, cache};

/// Reads of one sample.
const READS: usize = 16 * 1024;
/// Objects that are given to a reclaimer one after the other: twice what the machine's memory holds.
const OBJECTS: usize = 2 << 20;

pub const LOADS: [Load; 5] = [
    Load { name: "read", goal: Some(0.1), ours: read, peers: [("crossbeam", read_epoch), ("seize", read_seize)] },
    Load {
        name: "defer_free",
        goal: Some(0.5),
        ours: |cx, threads| by_callback(cx, Clock::Wall, threads),
        peers: [("crossbeam", |n| free_epoch(Clock::Wall, n)), ("seize", |n| free_seize(Clock::Wall, n))],
    },
    Load {
        name: "defer_free_cpu",
        goal: None,
        ours: |cx, threads| by_callback(cx, Clock::Cpu, threads),
        peers: [("crossbeam", |n| free_epoch(Clock::Cpu, n)), ("seize", |n| free_seize(Clock::Cpu, n))],
    },
    Load {
        name: "kfree_rcu",
        goal: Some(0.3),
        ours: |cx, threads| by_head(cx, Clock::Wall, threads),
        peers: [("crossbeam", |n| free_epoch(Clock::Wall, n)), ("seize", |n| free_seize(Clock::Wall, n))],
    },
    Load {
        name: "kfree_rcu_cpu",
        goal: None,
        ours: |cx, threads| by_head(cx, Clock::Cpu, threads),
        peers: [("crossbeam", |n| free_epoch(Clock::Cpu, n)), ("seize", |n| free_seize(Clock::Cpu, n))],
    },
];

/// What is read.
static OURS: Rcu<u64> = Rcu::null();
static EPOCH: LazyLock<Atomic<u64>> = LazyLock::new(|| Atomic::new(1));
static SEIZE: LazyLock<AtomicPtr<u64>> = LazyLock::new(|| AtomicPtr::new(Box::into_raw(Box::new(1))));
static COLLECTOR: LazyLock<Collector> = LazyLock::new(Collector::new);

/// A 64-byte object of the peers.
type Object = MaybeUninit<[u64; 8]>;
const _: () = assert!(size_of::<Object>() == OBJECT.size() && Layout::new::<Object>().align() == OBJECT.align());

/// Gives readers something to read. Context: in the machine.
pub fn prepare() {
    OURS.publish(RcuBox::new(1));
}

fn read(cx: &mut MaySleep, _: usize) -> f64 {
    median(READS, || {
        for _ in 0..READS {
            let reader = read_lock(cx);
            black_box(OURS.read(&reader));
        }
    })
}

fn read_epoch(_: usize) -> f64 {
    let place = &*EPOCH;
    median(READS, || {
        for _ in 0..READS {
            let reader = epoch::pin();
            black_box(place.load(Acquire, &reader));
        }
    })
}

fn read_seize(_: usize) -> f64 {
    let (place, collector) = (&*SEIZE, &*COLLECTOR);
    median(READS, || {
        for _ in 0..READS {
            let reader = collector.enter();
            black_box(reader.protect(place, Acquire));
        }
    })
}

/// An object that nobody else knows. While there is no memory, because the host has kept a CPU from passing a quiescent
/// state, waits by `barrier`.
#[inline(always)]
fn object(cx: &mut MaySleep, barrier: fn(&mut MaySleep)) -> NonNull<u8> {
    loop {
        match cache().alloc(AllocFlags::NOWAIT) {
            Some(object) => return object,
            None => barrier(cx),
        }
    }
}

/// Allocates, and has a callback free it; until all are free.
fn by_callback(cx: &mut MaySleep, clock: Clock, threads: usize) -> f64 {
    in_all(clock, OBJECTS, threads, || {
        for _ in 0..OBJECTS {
            let object = object(cx, rcu_barrier);
            // SAFETY: memory of ours, large enough and aligned, until the callback frees it.
            unsafe {
                let head = object.as_ptr().cast::<CallbackHead>();
                head.write(CallbackHead::new());
                call_rcu(head, free_now);
            }
        }
        rcu_barrier(cx);
    })
}

/// Allocates and gives up to `kfree_rcu`; until all are free.
fn by_head(cx: &mut MaySleep, clock: Clock, threads: usize) -> f64 {
    in_all(clock, OBJECTS, threads, || {
        for _ in 0..OBJECTS {
            let head = object(cx, kvfree_rcu_barrier).cast::<RcuPtr>();
            // SAFETY: a fresh object with room for a head, which nobody else knows.
            unsafe {
                head.write(RcuPtr::new());
                kfree_rcu(head);
            }
        }
        kvfree_rcu_barrier(cx);
    })
}

unsafe fn free_now(head: *mut CallbackHead) {
    // SAFETY: `by_callback` allocated it there and queued it as what it is; nobody else has it.
    unsafe { cache().free(NonNull::new_unchecked(head.cast())) };
}

fn free_epoch(clock: Clock, threads: usize) -> f64 {
    in_all(clock, OBJECTS, threads, || {
        for _ in 0..OBJECTS {
            let reader = epoch::pin();
            let object = Owned::new(Object::uninit()).into_shared(&reader);
            // SAFETY: nobody else has it.
            unsafe { reader.defer_destroy(object) };
        }
    })
}

fn free_seize(clock: Clock, threads: usize) -> f64 {
    let collector = &*COLLECTOR;
    in_all(clock, OBJECTS, threads, || {
        for _ in 0..OBJECTS {
            let object = Box::into_raw(Box::new(Object::uninit()));
            // SAFETY: nobody else has it.
            unsafe { collector.retire(object, reclaim::boxed) };
        }
    })
}
