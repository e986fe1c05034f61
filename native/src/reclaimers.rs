//! RCU beside crossbeam-epoch and seize.
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

pub const LOADS: [Load; 3] = [
    Load { name: "read", goal: Some(0.1), ours: read, peers: [("crossbeam", read_epoch), ("seize", read_seize)] },
    Load {
        name: "defer_free",
        goal: Some(0.5),
        ours: |cx, threads| free(cx, Clock::Wall, threads),
        peers: [("crossbeam", |n| free_epoch(Clock::Wall, n)), ("seize", |n| free_seize(Clock::Wall, n))],
    },
    Load {
        name: "defer_free_cpu",
        goal: None,
        ours: |cx, threads| free(cx, Clock::Cpu, threads),
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

/// Allocates, and has a callback free it; until all are free.
fn free(cx: &mut MaySleep, clock: Clock, threads: usize) -> f64 {
    in_all(clock, OBJECTS, threads, || {
        for _ in 0..OBJECTS {
            let object = loop {
                match cache().alloc(AllocFlags::NOWAIT) {
                    Some(object) => break object,
                    // The host has kept a CPU from passing a quiescent state.
                    None => rcu_barrier(cx),
                }
            };
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

unsafe fn free_now(head: *mut CallbackHead) {
    // SAFETY: `free` allocated it there and queued it as what it is; nobody else has it.
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
