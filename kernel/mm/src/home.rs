//! Homes: the one question that a free asks about an object's page.
//!
//! A free wants to know, in as few instructions as can be, whether the object may go into this CPU's sheaf. The answer
//! is one comparison of two bytes:
//!
//! | byte | of | value |
//! |---|---|---|
//! | the page's [home](Page::home) | each frame, in one flat table | in a slab the node whose memory it is, or'ed with [`RESERVE`] if it must never go into a sheaf; else [`NO_HOME`] |
//! | [this CPU's](is_home) | each CPU | the nearest node with memory |
//!
//! The table is apart from the descriptors: one cache line of it answers for 256 KiB of memory, and nobody writes it while
//! a slab lives, whereas a slab's descriptor changes with every remote free. It costs a byte for each frame.
//!
//! # Invariants
//! - **HOME-1** A frame has a home only while it is part of a slab: all frames of one slab have the same, and descriptors
//!   that name the cache, written before the first object is given out and taken back when the last is back. So equal bytes say "a slab of my node".
//! - **HOME-2** A CPU's byte is written at boot, before a second CPU runs, and is that of a node with memory, or before
//!   that [`NOWHERE`], which no page's is.
//!
//! Linux compares `slab_nid()` with `numa_mem_id()` and tests the slab's pfmemalloc flag (`mm/slub.c`, 7.x). Rows: M-8,
//! S5-4, S5-5.

use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;

use arch::NodeId;

use crate::memmap::MAP;
use crate::page::Page;

/// Of a frame in no slab.
pub const NO_HOME: u8 = 0xff;
/// Bit of a slab whose objects never go into a sheaf: nobody is at home there.
pub const RESERVE: u8 = 0x80;
/// Of a CPU that does not know its node yet.
const NOWHERE: u8 = 0x7f;

const _: () = assert!(arch::MAX_NODES <= NOWHERE as usize);

arch::per_cpu! {
    /// The nearest node with memory (HOME-2).
    static HOME: u8 = NOWHERE;
}

/// Whether `home` is the byte of this CPU. A hint unless pinned.
///
/// Context: any. One gs-relative comparison.
#[inline(always)]
pub fn is_home(home: u8) -> bool {
    HOME.is(home)
}

/// The nearest node with memory, this CPU's own if that has any. A hint unless pinned.
///
/// Context: any, after [`init_percpu`](crate::init_percpu).
#[inline]
pub fn home_node() -> NodeId {
    NodeId::new(usize::from(HOME.get()))
}

/// The home of the page that `address` lies in; [`NO_HOME`] for what is no memory at all.
///
/// Context: any. O(1): two loads.
#[inline(always)]
pub fn home_of(address: NonNull<u8>) -> u8 {
    MAP.home_at(address.as_ptr().addr()).map_or(NO_HOME, |home| home.load(Relaxed))
}

/// [`home_of`] an address that is in memory.
///
/// Context: any. O(1): two loads, no test.
///
/// # Safety
/// `address` is an address of the direct map, of some frame that has a descriptor.
#[inline(always)]
pub unsafe fn home_of_unchecked(address: NonNull<u8>) -> u8 {
    // SAFETY: the caller's contract.
    unsafe { MAP.home_at_unchecked(address.as_ptr().addr()) }.load(Relaxed)
}

/// The descriptor of the page that `address` lies in, if that is part of a slab and its home is this CPU's.
///
/// Context: any; a hint unless pinned or the home does not matter. O(1): three loads.
#[inline(always)]
pub fn local_slab_page(address: NonNull<u8>) -> Option<&'static Page> {
    MAP.page_if(address.as_ptr().addr(), is_home)
}

impl Page {
    /// The byte for `self` alone.
    #[inline]
    pub fn home(&self) -> u8 {
        self.home_byte().load(Relaxed)
    }

    /// Makes the block that this is the head of a slab of `cache`: says so in every frame's descriptor, and gives all of
    /// them the home `home` (HOME-1).
    ///
    /// Context: any; the caller owns the block, and nobody has an object in it yet.
    pub fn enter_slab(&self, cache: *mut (), home: u8) {
        self.for_each_frame(|frame| {
            // Relaxed: who frees an object got it through a lock or a compare-exchange that came after.
            frame.slab().cache.store(cache, Relaxed);
            frame.home_byte().store(home, Relaxed);
        });
    }

    /// Takes back what [`enter_slab`](Self::enter_slab) said.
    ///
    /// Context: any; the caller owns the block, and nobody has an object in it any more.
    pub fn leave_slab(&self) {
        self.enter_slab(ptr::null_mut(), NO_HOME);
    }

    /// Gives all frames of the slab that this is the head of the home `home`.
    ///
    /// Context: any; frees that run meanwhile see the old one or the new one.
    pub fn set_home(&self, home: u8) {
        self.for_each_frame(|frame| frame.home_byte().store(home, Relaxed));
    }

    fn for_each_frame(&self, f: impl FnMut(&'static Page)) {
        let frames = self.pfn()..self.pfn() + (1 << self.order());
        frames.map(|pfn| MAP.page(pfn).expect("a block's frames have descriptors")).for_each(f);
    }

    fn home_byte(&self) -> &'static AtomicU8 {
        MAP.home(self.pfn())
    }
}

/// Tells every CPU the nearest node with memory.
pub(crate) fn init_percpu() {
    for cpu in arch::cpu::present().iter() {
        if let Some(nearest) = crate::init::nearest_with_memory(arch::cpu::node_of(cpu)) {
            // SAFETY: the areas are in place, and no other CPU runs yet (HOME-2).
            unsafe { HOME.ptr_on(cpu).write(nearest.index() as u8) };
        }
    }
}
