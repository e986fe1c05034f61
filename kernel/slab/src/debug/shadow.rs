//! Which addresses are objects in use: a bit for each 8 bytes of memory, in builds with assertions.
//!
//! It finds, with sheaves on and in any context, NMI included, what only the slab would know: an object that is freed
//! twice, or that was never allocated, and one that is handed out while it is in use. What is given to `kfree_rcu` is in use no more.
//! Debug caches look at their slabs instead, and sheaves are in nobody's use. What waits for a
//! grace period has another bit ([`waits`](super::waits)).
//!
//! # Invariants
//! - **SHADOW-1** The bit of an object is set by the allocation that hands it out, and cleared by the first free. One atomic
//!   operation each, so of two frees at the same time one finds it clear, whatever they interrupt.
//! - **SHADOW-2** The bits of a slab's objects are clear when it is made: those of free memory are, since a slab goes back only
//!   after a free of each of its objects.
//! - **SHADOW-3** The table and the bits behind it are made at boot, for all memory, and stay.
//!
//! One part in 64 of the memory goes into it. In builds without assertions nothing here is called.
//!
//! In Linux this is KASAN's work (`mm/kasan/quarantine.c`, 7.x), for more than objects.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

use arch::PAGE_SIZE;
use mm::{AllocFlags, Page};
use sync::Once;

use super::report::{Cure, Fault, Kind, report};
use super::waits::waits;
use crate::cache::RawCache;
use crate::order::order_for;

/// Pages whose bits lie in one piece: a block of the largest order, which the memory map describes in one piece, too.
const SECTION: usize = 1 << mm::MAX_ORDER;
/// Words of 64 bits for a page.
const PAGE_WORDS: usize = PAGE_SIZE / 8 / 64;

/// The bits of each section; null where there is no memory (SHADOW-3).
static TABLE: Once<&'static [AtomicPtr<AtomicU64>]> = Once::new();

/// Makes room for the bits of all memory, in builds with assertions.
///
/// # Panics
/// Without memory for it.
pub(crate) fn init() {
    if !cfg!(debug_assertions) {
        return;
    }
    let sections = || mm::page::all().step_by(SECTION);
    let count = sections().last().map_or(0, |page| page.pfn() / SECTION + 1);
    let table = zeroed::<AtomicPtr<AtomicU64>>(count, None);
    for page in sections() {
        let bits = zeroed::<AtomicU64>(SECTION * PAGE_WORDS, Some(page));
        table[page.pfn() / SECTION].store(bits.as_ptr().cast_mut(), Relaxed);
    }
    TABLE.call_once(|| table);
}

/// Zeroed memory for good, near `near`. `T` is one whose zero bytes are a value: an atomic.
fn zeroed<T>(count: usize, near: Option<&Page>) -> &'static [T] {
    let order = order_for(count * size_of::<T>());
    let page =
        mm::alloc_pages(order, near.map(Page::node), AllocFlags::ZERO).expect("memory for the shadow of all memory");
    // SAFETY: fresh pages that never go back, as many as hold `count` of `T`, and zero is a value of it.
    unsafe { core::slice::from_raw_parts(page.virt().cast(), count) }
}

/// The word and the bit of an object.
fn bit(object: NonNull<u8>) -> Option<(&'static AtomicU64, u64)> {
    let pfn = mm::page_of(object.as_ptr())?.pfn();
    let bits = TABLE.get()?[pfn / SECTION].load(Relaxed);
    let index = object.addr().get() % PAGE_SIZE / 8;
    // SAFETY: a page with a descriptor lies in a section with bits (SHADOW-3), PAGE_WORDS for each of its pages.
    let word = unsafe { bits.add(pfn % SECTION * PAGE_WORDS + index / 64).as_ref() }?;
    Some((word, 1 << (index % 64)))
}

/// Sets or clears the bit of the word at `address`; whether it was set. False where there are no bits.
pub(super) fn set(address: NonNull<u8>, yes: bool) -> bool {
    bit(address).is_some_and(|(word, bit)| {
        let old = if yes { word.fetch_or(bit, Relaxed) } else { word.fetch_and(!bit, Relaxed) };
        old & bit != 0
    })
}

/// Whether the bit of the word at `address` is set.
pub(super) fn is_set(address: NonNull<u8>) -> bool {
    bit(address).is_some_and(|(word, bit)| word.load(Relaxed) & bit != 0)
}

impl RawCache {
    /// Whether `object` may be handed out to a user, which it then is; reports one that is in use.
    ///
    /// Context: any.
    #[inline(always)]
    pub(crate) fn may_hand_out(&self, object: NonNull<u8>) -> bool {
        !cfg!(debug_assertions) || self.is_checked() || self.mark_used(object)
    }

    fn mark_used(&self, object: NonNull<u8>) -> bool {
        let Some((word, bit)) = bit(object) else { return true };
        // Relaxed: the object itself is passed on by locks (SHADOW-1).
        if word.fetch_or(bit, Relaxed) & bit != 0 {
            report(Some(self), Fault::of_call(Kind::HandedOutTwice, object), Cure::Withheld);
            return false;
        }
        if waits(object) {
            word.fetch_and(!bit, Relaxed);
            report(Some(self), Fault::of_call(Kind::TooEarly, object), Cure::Withheld);
            return false;
        }
        true
    }

    /// Whether `object` of an ordinary cache is in use, which it then is no more; reports one that is not.
    ///
    /// Context: any.
    pub(super) fn mark_free(&self, object: NonNull<u8>) -> bool {
        let Some((word, bit)) = bit(object) else { return true };
        let was_used = word.fetch_and(!bit, Relaxed) & bit != 0;
        if !was_used {
            let kind = if waits(object) { Kind::FreedWaiting } else { Kind::DoubleFree };
            report(Some(self), Fault::of_call(kind, object), Cure::NotFreed);
        }
        was_used
    }
}
