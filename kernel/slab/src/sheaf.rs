//! Sheaves: arrays of free objects that move between CPUs, barns and RCU as one piece.
//!
//! A [`Sheaf`] is a 32-byte header followed by `capacity` object pointers. It always has exactly one
//! owner: a CPU (as `main`, `spare`, `rcu_free` or `remote`), a barn list, a caller that prefilled it, or an RCU
//! callback that waits for a grace period.
//!
//! # Invariants
//! - **SHEAF-1** Only the owner touches a sheaf. Ownership passes through a lock (the CPU's
//!   [`LocalTryLock`](sync::LocalTryLock), the barn lock) or through `call_rcu`.
//! - **SHEAF-2** `size <= capacity`, and `objects[..size]` are objects of `cache` that nobody else owns.
//!   They have passed the free hooks and not the alloc hooks (S4-12).
//! - **SHEAF-3** `cache`, `capacity` and the `oversize` flag are written once, when the sheaf is made, and
//!   lie outside the link union: whatever queue a sheaf was in, they still hold (S0-14, S4-5).
//! - **SHEAF-4** Capacity is the sheaf's own, never the cache's: the cache's may be changed at run time.
//! - **SHEAF-5** A sheaf becomes a CPU's only in a section of that CPU's sheaf lock in which it was found
//!   [current](RawCache::is_current), unless it came from the barn in that section; and a barn's as BARN-3 says. So when
//!   the capacity is changed, the one sweep over barns and CPUs is enough: whatever sheaf of the old one was in
//!   nobody's place meanwhile (being filled or flushed, waiting for a grace period, prefilled) finds none.
//!
//! Answers to `struct slab_sheaf` in Linux `mm/slub.c` (7.x); there capacity shares the link union.

use core::mem::{ManuallyDrop, MaybeUninit, size_of};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU16, Ordering::Relaxed};

use arch::NodeId;
use mm::AllocFlags;
use sync::CallbackHead;
use sync::llist::LlistNode;

use crate::cache::RawCache;
use crate::stats::Stat;
use crate::waiting::Stamp;
use crate::{Spin, slow};

/// Bytes before the object array.
pub(crate) const HEADER: usize = 32;
/// The most objects a sheaf can hold: `size` and `capacity` are 16 bits wide, and it fills a power of two.
pub(crate) const MAX_CAPACITY: usize =
    ((HEADER + u16::MAX as usize * size_of::<*mut u8>()).next_power_of_two() / 2 - HEADER) / size_of::<*mut u8>();
const _: () = assert!(round_capacity(MAX_CAPACITY) == MAX_CAPACITY && MAX_CAPACITY <= u16::MAX as usize);

/// What links a sheaf to the queue it is in. Which member is live follows from the owner (SHEAF-1).
#[repr(C)]
union Link {
    /// Owner is a barn list (or a private chain).
    next: *mut Sheaf,
    /// Owner is RCU.
    rcu: ManuallyDrop<CallbackHead>,
    /// Owner is a per-CPU list of what could not be submitted to RCU yet.
    llist: ManuallyDrop<LlistNode>,
}

/// Header of a sheaf; the objects follow.
#[repr(C)]
pub(crate) struct Sheaf {
    link: Link,
    cache: *const RawCache,
    size: u16,
    capacity: u16,
    /// Node whose barn gets the sheaf back after a grace period (S0-8). Written at detach.
    node: u8,
    flags: u8,
    /// When it was detached, as far as [`SECOND`] does not say. Written at detach.
    after: u16,
}

const _: () = assert!(size_of::<Sheaf>() == HEADER);

/// Flag: made for one caller with more than the cache's capacity; never goes to a barn (S4-4).
const OVERSIZE: u8 = 1 << 0;
/// Flag: may hold objects of the reserve or lie in it, so it is flushed when it comes back and nobody else gets it (S4-11, S5-4).
const RESERVE: u8 = 1 << 1;
/// Flag: of the second generation of those that wait for a grace period ([`Stamp`]).
const SECOND: u8 = 1 << 2;

/// A sheaf that its holder owns (SHEAF-1). Copying the reference does not copy the right: whoever gives a
/// sheaf away must not use it any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SheafRef(NonNull<Sheaf>);

// SAFETY: a sheaf is plain memory; SHEAF-1 says that one owner at a time uses it, on whatever CPU.
unsafe impl Send for SheafRef {}

/// The main sheaf of a CPU that has none: full and empty at once, so that neither the allocation nor the
/// free fast path needs a null test (M-3). Nothing ever writes to it.
struct Bootstrap(Sheaf);
// SAFETY: never written (its capacity of 0 refuses push and pop), so sharing it between CPUs is sound.
unsafe impl Sync for Bootstrap {}

static BOOTSTRAP: Bootstrap = Bootstrap(Sheaf {
    link: Link { next: ptr::null_mut() },
    cache: ptr::null(),
    size: 0,
    capacity: 0,
    node: 0,
    flags: 0,
    after: 0,
});

impl SheafRef {
    /// The shared empty sheaf of capacity 0.
    pub(crate) fn bootstrap() -> Self {
        Self(NonNull::from(&BOOTSTRAP.0))
    }

    /// Whether this is the shared empty sheaf, which no barn may get.
    pub(crate) fn is_bootstrap(self) -> bool {
        self == Self::bootstrap()
    }

    /// From a raw pointer, or nothing for null.
    pub(crate) fn from_ptr(sheaf: *mut Sheaf) -> Option<Self> {
        NonNull::new(sheaf).map(Self)
    }

    /// From the pointer that a `SheafRef` is.
    ///
    /// # Safety
    /// It is one, and not null.
    #[inline(always)]
    pub(crate) unsafe fn from_ptr_unchecked(sheaf: *mut Sheaf) -> Self {
        // SAFETY: the caller's contract.
        Self(unsafe { NonNull::new_unchecked(sheaf) })
    }

    pub(crate) fn as_ptr(self) -> *mut Sheaf {
        self.0.as_ptr()
    }

    /// The sheaf whose RCU link is `head`.
    ///
    /// # Safety
    /// `head` came from [`SheafRef::rcu_head`].
    pub(crate) unsafe fn from_rcu_head(head: *mut CallbackHead) -> Self {
        const { assert!(core::mem::offset_of!(Sheaf, link) == 0) };
        // SAFETY: the link is the first field, and the caller vouches that `head` is not null.
        Self(unsafe { NonNull::new_unchecked(head.cast()) })
    }

    /// The sheaf whose lock-less link is `node`.
    ///
    /// # Safety
    /// `node` came from [`SheafRef::llist_node`].
    pub(crate) unsafe fn from_llist_node(node: NonNull<LlistNode>) -> Self {
        Self(node.cast())
    }

    /// Where RCU links the sheaf. The owner gives the sheaf away by handing this to `call_rcu`.
    pub(crate) fn rcu_head(self) -> *mut CallbackHead {
        self.as_ptr().cast()
    }

    /// Where a lock-less list links the sheaf, made ready to be linked.
    pub(crate) fn llist_node(self) -> NonNull<LlistNode> {
        let node = self.0.cast::<LlistNode>();
        // SAFETY: the owner writes its own sheaf (SHEAF-1); the union is at least as large as a node.
        unsafe { node.write(LlistNode::new()) };
        node
    }

    #[inline(always)]
    fn get(&self) -> &Sheaf {
        // SAFETY: the holder owns the sheaf (SHEAF-1), so nobody else writes it while this borrow lives.
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn cache(&self) -> &'static RawCache {
        // SAFETY: written at creation (SHEAF-3); a cache outlives its sheaves, because destroying it
        // first takes every one of them back. Only the bootstrap sheaf has none, and it is never asked.
        unsafe { &*self.get().cache }
    }

    #[inline(always)]
    pub(crate) fn size(&self) -> usize {
        usize::from(self.get().size)
    }

    #[inline(always)]
    pub(crate) fn capacity(&self) -> usize {
        usize::from(self.get().capacity)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.size() == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.get().size == self.get().capacity
    }

    pub(crate) fn room(&self) -> usize {
        self.capacity() - self.size()
    }

    pub(crate) fn is_oversize(&self) -> bool {
        self.get().flags & OVERSIZE != 0
    }

    pub(crate) fn is_reserve(&self) -> bool {
        self.get().flags & RESERVE != 0
    }

    pub(crate) fn set_reserve(self) {
        // SAFETY: the holder owns the sheaf (SHEAF-1).
        unsafe { (*self.as_ptr()).flags |= RESERVE };
    }

    pub(crate) fn node(&self) -> NodeId {
        NodeId::new(usize::from(self.get().node))
    }

    /// [`node`](Self::node) as a [home](mm::home) byte.
    #[inline]
    pub(crate) fn node_byte(&self) -> u8 {
        self.get().node
    }

    pub(crate) fn set_node(self, node: NodeId) {
        // SAFETY: the holder owns the sheaf (SHEAF-1).
        unsafe { (*self.as_ptr()).node = node.index() as u8 };
    }

    /// When the sheaf was detached, as [`Detached`](crate::waiting::Detached) told.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { second: self.get().flags & SECOND != 0, after: self.get().after }
    }

    pub(crate) fn set_stamp(self, stamp: Stamp) {
        // SAFETY: the holder owns the sheaf (SHEAF-1).
        let sheaf = unsafe { &mut *self.as_ptr() };
        sheaf.flags = sheaf.flags & !SECOND | if stamp.second { SECOND } else { 0 };
        sheaf.after = stamp.after;
    }

    /// Where the size of a sheaf is, for who does not own it (WAIT-2).
    pub(crate) fn size_place(sheaf: NonNull<Sheaf>) -> *mut u16 {
        sheaf.as_ptr().wrapping_byte_add(core::mem::offset_of!(Sheaf, size)).cast()
    }

    pub(crate) fn next(&self) -> *mut Sheaf {
        // SAFETY: only called on chains, where `next` is the live member.
        unsafe { self.get().link.next }
    }

    pub(crate) fn set_next(self, next: *mut Sheaf) {
        // SAFETY: the holder owns the sheaf (SHEAF-1).
        unsafe { (*self.as_ptr()).link.next = next };
    }

    #[inline(always)]
    fn slot(self, index: usize) -> *mut *mut u8 {
        // SAFETY: the array follows the header inside the same allocation, and callers keep
        // `index < capacity` (SHEAF-2).
        unsafe { self.as_ptr().cast::<u8>().add(HEADER).cast::<*mut u8>().add(index) }
    }

    /// The objects in the sheaf.
    pub(crate) fn objects(self) -> impl Iterator<Item = NonNull<u8>> {
        // SAFETY: the first `size` slots hold objects (SHEAF-2), and the holder owns the sheaf (SHEAF-1).
        (0..self.size()).map(move |index| unsafe { NonNull::new_unchecked(self.slot(index).read()) })
    }

    /// Takes the object put in last, or `None` when empty.
    #[inline(always)]
    pub(crate) fn pop(self) -> Option<NonNull<u8>> {
        let size = self.size();
        if size == 0 {
            return None;
        }
        // SAFETY: the holder owns the sheaf, and slot `size - 1` holds an object (SHEAF-2).
        let object = unsafe { NonNull::new_unchecked(self.slot(size - 1).read()) };
        self.resize(|size| size - 1);
        Some(object)
    }

    /// Takes the object put in last if `wanted` says so of it.
    pub(crate) fn pop_if(self, wanted: impl FnOnce(NonNull<u8>) -> bool) -> Option<NonNull<u8>> {
        let object = self.pop()?;
        if wanted(object) {
            return Some(object);
        }
        self.push(object);
        None
    }

    /// Puts `object` in. Returns false, and does nothing, when the sheaf is full.
    #[inline(always)]
    pub(crate) fn push(self, object: NonNull<u8>) -> bool {
        let size = self.size();
        if size == self.capacity() {
            return false;
        }
        // SAFETY: the holder owns the sheaf, and slot `size` is inside the array (SHEAF-2).
        unsafe { self.slot(size).write(object.as_ptr()) };
        self.resize(|size| size + 1);
        true
    }

    /// [`push`](Self::push) that never makes the sheaf full: false also for the last place.
    #[inline(always)]
    pub(crate) fn push_below_full(self, object: NonNull<u8>) -> bool {
        let size = self.size();
        if size + 1 >= self.capacity() {
            return false;
        }
        // SAFETY: as in `push`.
        unsafe { self.slot(size).write(object.as_ptr()) };
        self.resize(|size| size + 1);
        true
    }

    /// Changes the size by a constant, in one instruction, which works in memory: an atomic is loaded anew, where a plain
    /// `u16` would be worked out in a register that holds it already, and stored by a second instruction.
    #[inline(always)]
    fn resize(self, change: impl FnOnce(u16) -> u16) {
        // SAFETY: the holder owns the sheaf (SHEAF-1), so that nobody else touches the size while the reference lives.
        let size = unsafe { AtomicU16::from_ptr(&raw mut (*self.as_ptr()).size) };
        // Relaxed, in two steps: only the owner looks.
        size.store(change(size.load(Relaxed)), Relaxed);
    }

    /// Moves objects from the top of the sheaf to the front of `to`. Returns how many.
    pub(crate) fn take(self, to: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let count = self.size().min(to.len());
        if count == 0 {
            // It may be the bootstrap sheaf, which nobody may write to.
            return 0;
        }
        let size = self.size() - count;
        // SAFETY: the slots from `size` on hold `count` objects (SHEAF-2), and `to` has room for them; the two do not
        // overlap, because nobody else refers to the sheaf's array (SHEAF-1).
        unsafe {
            core::ptr::copy_nonoverlapping(self.slot(size).cast(), to.as_mut_ptr(), count);
            (*self.as_ptr()).size = size as u16;
        }
        count
    }

    /// Copies objects from the end of `from` into the sheaf, as many as there is room for. Returns how many.
    pub(crate) fn put(self, from: &[NonNull<u8>]) -> usize {
        let (size, count) = (self.size(), self.room().min(from.len()));
        if count == 0 {
            // As in `take`.
            return 0;
        }
        // SAFETY: `count` slots from `size` on are inside the array (SHEAF-2), which nobody else refers to (SHEAF-1).
        unsafe {
            core::ptr::copy_nonoverlapping(from[from.len() - count..].as_ptr(), self.slot(size).cast(), count);
            (*self.as_ptr()).size = (size + count) as u16;
        }
        count
    }

    /// Empties the sheaf and lets `f` do away with what was in it.
    pub(crate) fn with_objects<R>(self, f: impl FnOnce(&mut [NonNull<u8>]) -> R) -> R {
        let size = self.size();
        // SAFETY: the first `size` slots hold objects (SHEAF-2), and only we refer to them (SHEAF-1).
        let objects = unsafe { core::slice::from_raw_parts_mut(self.slot(0).cast(), size) };
        // SAFETY: as above.
        unsafe { (*self.as_ptr()).size = 0 };
        f(objects)
    }

    /// Allocates an empty sheaf of `capacity` for `cache`, or nothing when there is no memory.
    ///
    /// The memory comes from a cache without sheaves, so this cannot recurse into itself (S0-24, S5-3).
    /// Context: any, with `Spin::Never` in NMI.
    pub(crate) fn alloc(cache: &RawCache, capacity: usize, flags: AllocFlags, spin: Spin) -> Option<Self> {
        debug_assert!(capacity > 0 && capacity <= MAX_CAPACITY);
        let memory = slow::alloc_unsheaved(bytes(capacity), flags, spin)?;
        let sheaf = Sheaf {
            link: Link { next: ptr::null_mut() },
            cache,
            size: 0,
            capacity: capacity as u16,
            node: 0,
            flags: if capacity > cache.sheaf_capacity() { OVERSIZE } else { 0 },
            after: 0,
        };
        let memory = memory.cast::<Sheaf>();
        // SAFETY: `bytes(capacity)` fresh bytes, aligned for any header.
        unsafe { memory.write(sheaf) };
        cache.count(Stat::SheafAlloc);
        Some(Self(memory))
    }

    /// Gives the memory of an empty sheaf back; returns how many pages went back to the page allocator.
    ///
    /// Context: any, with `Spin::Never` in NMI.
    pub(crate) fn free(self, spin: Spin) -> usize {
        debug_assert!(self.is_empty() && !self.is_bootstrap());
        self.cache().count(Stat::SheafFree);
        slow::free_unsheaved(self.0.cast(), spin)
    }
}

/// Bytes that a sheaf of `capacity` objects needs.
pub(crate) const fn bytes(capacity: usize) -> usize {
    HEADER + capacity * size_of::<*mut u8>()
}

/// The default capacity for objects of `size` bytes (M-1): large enough to matter, rounded so that the
/// sheaf fills the power of two it is allocated in.
pub(crate) const fn default_capacity(size: usize) -> usize {
    let wanted = if size >= arch::PAGE_SIZE {
        4
    } else if size >= 1024 {
        12
    } else if size >= 256 {
        26
    } else {
        60
    };
    round_capacity(wanted)
}

/// Rounds `wanted` up to what the power of two that holds it has room for.
pub(crate) const fn round_capacity(wanted: usize) -> usize {
    if wanted == 0 {
        return 0;
    }
    (bytes(wanted).next_power_of_two() - HEADER) / size_of::<*mut u8>()
}

/// A chain of sheaves that left a barn together.
pub(crate) struct Chain(pub(crate) *mut Sheaf);

impl Iterator for Chain {
    type Item = SheafRef;

    fn next(&mut self) -> Option<SheafRef> {
        let sheaf = SheafRef::from_ptr(self.0)?;
        self.0 = sheaf.next();
        Some(sheaf)
    }
}

#[cfg(test)]
mod tests {
    use arch::hosted::in_own_process;

    use super::*;
    use crate::test_machine::{cache, machine};

    #[test]
    fn default_capacities_are_those_of_the_state_of_the_art() {
        assert_eq!(default_capacity(4096), 4);
        assert_eq!(default_capacity(8192), 4);
        assert_eq!(default_capacity(1024), 12);
        assert_eq!(default_capacity(256), 28);
        assert_eq!(default_capacity(255), 60);
        assert_eq!(default_capacity(8), 60);
    }

    #[test]
    fn a_rounded_capacity_fills_its_power_of_two() {
        for wanted in 1..2000 {
            let rounded = round_capacity(wanted);
            assert!(rounded >= wanted);
            assert!(bytes(rounded).is_power_of_two());
        }
        assert_eq!(round_capacity(0), 0);
    }

    #[test]
    fn the_bootstrap_sheaf_refuses_both_push_and_pop() {
        let sheaf = SheafRef::bootstrap();
        assert!(sheaf.pop().is_none());
        assert!(!sheaf.push(NonNull::dangling()));
        assert!(sheaf.is_empty() && sheaf.is_full());
    }

    #[test]
    fn whatever_links_a_sheaf_leaves_what_it_is_alone() {
        in_own_process(|| {
            machine(1, 1, |_| {
                let cache = cache("linked");
                let sheaf = SheafRef::alloc(cache, 12, AllocFlags::NOWARN, Spin::May).expect("memory");
                sheaf.set_node(NodeId::new(5));
                assert!(sheaf.push(NonNull::dangling()));
                let is_whole = || {
                    ptr::eq(sheaf.cache(), cache)
                        && (sheaf.capacity(), sheaf.size(), sheaf.node()) == (12, 1, NodeId::new(5))
                        && !sheaf.is_reserve()
                };
                sheaf.set_next(sheaf.as_ptr());
                assert!(is_whole(), "a barn");
                // SAFETY: the sheaf is ours, and has room for a callback's head there.
                unsafe { sheaf.rcu_head().write(CallbackHead::new()) };
                // SAFETY: as above; it came from there.
                assert_eq!(unsafe { SheafRef::from_rcu_head(sheaf.rcu_head()) }, sheaf);
                assert!(is_whole(), "RCU");
                let node = sheaf.llist_node();
                // SAFETY: it came from there.
                assert_eq!(unsafe { SheafRef::from_llist_node(node) }, sheaf);
                assert!(is_whole(), "a lock-less list");
                assert_eq!(sheaf.pop(), Some(NonNull::dangling()));
                sheaf.free(Spin::May);
            });
        });
    }
}
