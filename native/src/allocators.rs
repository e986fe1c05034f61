//! The slab allocator beside mimalloc and snmalloc.
//!
//! The peers are called directly, with the layout known at compile time, so nothing but the allocator is between them and the
//! loop.

use std::alloc::GlobalAlloc;
use std::hint::black_box;
use std::ptr::{self, NonNull};

use mm::AllocFlags;
use slab::RawCache;

use crate::load::{Load, median};
use crate::{OBJECT, cache};

/// Objects held at once in the second load.
const BURST: usize = 128;
/// Allocations, and as many frees, of one sample: few, so that a busy host spoils few samples.
const OPERATIONS: usize = 16 * 1024;

pub const LOADS: [Load; 2] = [
    Load {
        name: "pair",
        goal: None,
        ours: |_, _| pair(cache()),
        peers: [
            ("mimalloc", |_| pair(Peer(&mimalloc::MiMalloc))),
            ("snmalloc", |_| pair(Peer(&snmalloc_rs::SnMalloc))),
        ],
    },
    Load {
        name: "burst_of_128",
        goal: None,
        ours: |_, _| burst(cache()),
        peers: [
            ("mimalloc", |_| burst(Peer(&mimalloc::MiMalloc))),
            ("snmalloc", |_| burst(Peer(&snmalloc_rs::SnMalloc))),
        ],
    },
];

/// Something that objects come from.
trait Source: Copy {
    fn take(self) -> *mut u8;
    /// # Safety
    /// `object` came from [`take`](Self::take), and nobody uses it any more.
    unsafe fn give(self, object: *mut u8);
}

impl Source for &'static RawCache {
    #[inline(always)]
    fn take(self) -> *mut u8 {
        self.alloc(AllocFlags::NOWAIT).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline(always)]
    unsafe fn give(self, object: *mut u8) {
        if let Some(object) = NonNull::new(object) {
            // SAFETY: the caller's contract.
            unsafe { self.free(object) };
        }
    }
}

/// A peer, by its allocator, a type without size: nothing is passed along.
struct Peer<A: 'static>(&'static A);

impl<A> Clone for Peer<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for Peer<A> {}

impl<A: GlobalAlloc> Source for Peer<A> {
    #[inline(always)]
    fn take(self) -> *mut u8 {
        // SAFETY: the size is not 0.
        unsafe { self.0.alloc(OBJECT) }
    }

    #[inline(always)]
    unsafe fn give(self, object: *mut u8) {
        // SAFETY: the caller's contract.
        unsafe { self.0.dealloc(object, OBJECT) };
    }
}

/// One object, and back at once.
fn pair(source: impl Source) -> f64 {
    median(OPERATIONS, || {
        for _ in 0..OPERATIONS {
            let object = black_box(source.take());
            // SAFETY: just taken.
            unsafe { source.give(object) };
        }
    })
}

/// 128 objects, and back.
fn burst(source: impl Source) -> f64 {
    let mut held = [ptr::null_mut(); BURST];
    median(OPERATIONS, || {
        for _ in 0..OPERATIONS / BURST {
            for place in &mut held {
                *place = source.take();
            }
            black_box(&mut held);
            for object in held {
                // SAFETY: taken above, given back once.
                unsafe { source.give(object) };
            }
        }
    })
}
