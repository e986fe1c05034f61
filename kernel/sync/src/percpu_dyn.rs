//! [`DynPerCpu`]: per-CPU variables that are made and given back while the kernel runs.
//!
//! Each CPU's area ends in a dynamic part of [`DYNAMIC_SIZE`] bytes; a variable is the same offset
//! in all of them. Offsets are given out first-fit from a bitmap of 16-byte granules under a lock.
//! It answers to Linux's `alloc_percpu` (6.12, mm/percpu.c), which also grows; this one does not.
//!
//! # Invariants
//!
//! - `PD-1` A granule belongs to at most one variable: bits are set and cleared under the lock.
//! - `PD-2` A variable is initialised on every CPU that is present before it is handed out, and
//!   dropped on every one before its granules are.

use core::{alloc::Layout, marker::PhantomData};

use arch::{
    cpu::{self, CpuId},
    percpu::{self, DYNAMIC_SIZE, DynPlace},
};

use crate::{cx::ATOMIC, lock_order::LockClass, spinlock::SpinLock};

/// Bytes that one bit stands for.
const GRANULE: usize = 16;
const GRANULES: usize = DYNAMIC_SIZE / GRANULE;

static CLASS: LockClass = LockClass::new("sync.percpu_dyn");

/// Protects the bitmap; nothing is taken inside it.
static MAP: SpinLock<GranuleMap<{ GRANULES / 64 }>> = SpinLock::new(GranuleMap::new(), &CLASS);

/// The dynamic parts are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerCpuFull;

impl core::fmt::Display for PerCpuFull {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the dynamic part of the per-CPU areas is full")
    }
}

/// A variable with one copy on each CPU that is present, given back when dropped.
#[derive(Debug)]
pub struct DynPerCpu<T> {
    place: DynPlace,
    _owns: PhantomData<T>,
}

// SAFETY: the handle gives out raw pointers only; who follows one to another CPU's copy answers for it.
unsafe impl<T> Sync for DynPerCpu<T> {}
// SAFETY: the copies are not bound to the thread that made them, but are dropped by whoever drops
// the handle, so they must be sendable.
unsafe impl<T: Send> Send for DynPerCpu<T> {}

impl<T> DynPerCpu<T> {
    const LAYOUT: Layout = Layout::new::<T>();

    /// A variable that `init` fills in for each CPU that is present.
    ///
    /// Context: task, softirq, hardirq. Takes a lock.
    ///
    /// # Errors
    /// [`PerCpuFull`] if there is no room.
    pub fn new(mut init: impl FnMut(CpuId) -> T) -> Result<Self, PerCpuFull> {
        let offset = {
            let mut map = MAP.lock_irqsave(ATOMIC);
            map.allocate(Self::LAYOUT, dynamic_start()).ok_or(PerCpuFull)?
        };
        let this = Self { place: DynPlace::new(offset), _owns: PhantomData };
        for cpu in cpu::present().iter() {
            // SAFETY: the granules are ours (`PD-1`), as large and as aligned as a `T`.
            unsafe { this.ptr_on(cpu).write(init(cpu)) };
        }
        Ok(this)
    }

    /// Where the copies lie.
    ///
    /// Context: any.
    #[inline(always)]
    pub fn place(&self) -> DynPlace {
        self.place
    }

    /// The copy of this CPU. The caller is pinned, or can do with one it has just left.
    ///
    /// Context: any.
    #[inline(always)]
    pub fn this_ptr(&self) -> *mut T {
        self.place.this_ptr().cast()
    }

    /// The copy of `cpu`, which is present.
    ///
    /// Context: any. Following it is up to the caller.
    #[inline]
    pub fn ptr_on(&self, cpu: CpuId) -> *mut T {
        self.place.ptr_on(cpu).cast()
    }

    /// The copies of all CPUs that are present, whether online or not.
    ///
    /// Context: any.
    pub fn for_each_possible(&self, mut f: impl FnMut(CpuId, *mut T)) {
        for cpu in cpu::present().iter() {
            f(cpu, self.ptr_on(cpu));
        }
    }
}

impl<T> Drop for DynPerCpu<T> {
    fn drop(&mut self) {
        self.for_each_possible(|_, copy| {
            // SAFETY: initialised in `new`, and the handle was the only owner (`PD-2`).
            unsafe { copy.drop_in_place() };
        });
        MAP.lock_irqsave(ATOMIC).release(Self::LAYOUT, dynamic_start(), self.place.offset());
    }
}

/// Where the dynamic part begins in an area.
fn dynamic_start() -> usize {
    percpu::area_layout().size().next_multiple_of(GRANULE)
}

/// Which granules are taken; a bit each.
#[derive(Debug)]
struct GranuleMap<const WORDS: usize> {
    taken: [u64; WORDS],
}

impl<const WORDS: usize> GranuleMap<WORDS> {
    const fn new() -> Self {
        Self { taken: [0; WORDS] }
    }

    fn is_taken(&self, granule: usize) -> bool {
        self.taken[granule / 64] >> (granule % 64) & 1 != 0
    }

    fn flip(&mut self, granule: usize) {
        self.taken[granule / 64] ^= 1 << (granule % 64);
    }

    fn granules(layout: Layout) -> usize {
        layout.size().max(1).div_ceil(GRANULE)
    }

    /// The offset of the first fit for `layout`, in areas whose dynamic part begins at `start`.
    fn allocate(&mut self, layout: Layout, start: usize) -> Option<usize> {
        let count = Self::granules(layout);
        let mut first = 0;
        while first + count <= WORDS * 64 {
            let offset = start + first * GRANULE;
            if !offset.is_multiple_of(layout.align()) {
                first += 1;
                continue;
            }
            // The last one in the way, to look on behind it.
            if let Some(taken) = (first..first + count).rfind(|&granule| self.is_taken(granule)) {
                first = taken + 1;
                continue;
            }
            for granule in first..first + count {
                self.flip(granule);
            }
            return Some(offset);
        }
        None
    }

    fn release(&mut self, layout: Layout, start: usize, offset: usize) {
        let first = (offset - start) / GRANULE;
        for granule in first..first + Self::granules(layout) {
            assert!(self.is_taken(granule), "PD-1: granule {granule} is given back twice");
            self.flip(granule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: usize = 0x30;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn variables_do_not_overlap_and_are_aligned() {
        let mut map = GranuleMap::<4>::new();
        let a = map.allocate(layout(24, 8), START).unwrap();
        let b = map.allocate(layout(64, 64), START).unwrap();
        let c = map.allocate(layout(1, 1), START).unwrap();
        assert_eq!(a, START);
        assert!(b.is_multiple_of(64) && b >= a + 24);
        assert!(c >= a + 24 && (c < b || c >= b + 64));
    }

    #[test]
    fn what_was_given_back_is_found_again() {
        let mut map = GranuleMap::<1>::new();
        let whole = layout(64 * GRANULE, 8);
        let all = map.allocate(whole, START).unwrap();
        assert_eq!(map.allocate(layout(1, 1), START), None, "full is an answer, not a crash");
        map.release(whole, START, all);
        assert_eq!(map.allocate(whole, START), Some(all));
    }

    #[test]
    #[should_panic(expected = "PD-1")]
    fn giving_back_twice_is_noticed() {
        let mut map = GranuleMap::<1>::new();
        let offset = map.allocate(layout(8, 8), START).unwrap();
        map.release(layout(8, 8), START, offset);
        map.release(layout(8, 8), START, offset);
    }
}
