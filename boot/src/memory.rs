//! The memory map: as the firmware gave it, the frames the loader takes from it, and the map the
//! kernel gets.
//!
//! - BOOT-5: no frame below [`LOW_MEMORY`] is taken or handed over as usable. Firmware tables, the
//!   boot data and, later, the trampoline of the other CPUs live there.
//! - BOOT-6: what the loader took (its own image, frames, the kernel file) is never handed over as
//!   usable. Enforced by [`MemoryMap::hand_over`], which cuts all of it out.

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use x86_64::PhysAddr;
use x86_64::structures::paging::{FrameAllocator, PhysFrame, Size4KiB};

use crate::error::LoadError;
use crate::paging::PAGE;

/// The first MiB: real-mode memory, never given to an allocator.
pub const LOW_MEMORY: u64 = 1 << 20;

/// Entries of the firmware's map that are looked at; QEMU gives about ten.
pub const MAX_REGIONS: usize = 128;

/// Ranges the loader keeps back: low memory, its image, its frames, the kernel file.
const MAX_TAKEN: usize = 4;

/// E820's number for memory that is free to use.
const E820_USABLE: u32 = 1;

/// E820's number for addresses that are not memory.
const E820_RESERVED: u32 = 2;

/// Bytes from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Span {
    /// The span of `len` bytes from `start`.
    pub fn new(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The largest span of whole pages within this one.
    fn whole_pages(self) -> Self {
        Self { start: self.start.next_multiple_of(PAGE), end: self.end / PAGE * PAGE }
    }
}

/// The firmware's memory map.
#[derive(Debug)]
pub struct MemoryMap {
    entries: [(Span, u32); MAX_REGIONS],
    count: usize,
}

impl MemoryMap {
    /// An empty map.
    pub const fn new() -> Self {
        Self { entries: [(Span { start: 0, end: 0 }, 0); MAX_REGIONS], count: 0 }
    }

    /// Adds one E820 entry: `kind` 1 is usable, everything else is not. Empty ones are dropped.
    ///
    /// # Errors
    ///
    /// [`LoadError::TooManyRegions`] when the map is full.
    pub fn push(&mut self, span: Span, kind: u32) -> Result<(), LoadError> {
        if span.len() == 0 {
            return Ok(());
        }
        *self.entries.get_mut(self.count).ok_or(LoadError::TooManyRegions)? = (span, kind);
        self.count += 1;
        self.entries[..self.count].sort_unstable_by_key(|(span, _)| span.start);
        Ok(())
    }

    /// One past the last byte that is memory: reserved address space does not count, of which QEMU
    /// has a piece just below 1 TiB.
    pub fn end(&self) -> u64 {
        let memory = self.entries().filter(|&(_, kind)| kind != E820_RESERVED);
        memory.map(|(span, _)| span.end).max().unwrap_or(0)
    }

    /// The largest free span of whole pages between `LOW_MEMORY` and `ceiling` outside of `taken`.
    ///
    /// # Errors
    ///
    /// [`LoadError::OutOfMemory`] when there is none.
    pub fn largest_free(&self, ceiling: u64, taken: &[Span]) -> Result<Span, LoadError> {
        let mut best = Span { start: 0, end: 0 };
        self.for_each_free(taken, |free| {
            let free = Span { end: free.end.min(ceiling), ..free };
            if free.len() > best.len() {
                best = free;
            }
        });
        if best.len() == 0 { Err(LoadError::OutOfMemory) } else { Ok(best) }
    }

    /// Writes the map for the kernel into `out` and returns how many entries it has: what is free is
    /// usable, what is `taken` (and the first MiB) belongs to the loader, the rest keeps its E820
    /// number.
    ///
    /// # Errors
    ///
    /// [`LoadError::TooManyRegions`] when `out` is too small.
    pub fn hand_over(&self, taken: &[Span], out: &mut [MemoryRegion]) -> Result<usize, LoadError> {
        let mut count = 0;
        let mut overflow = false;
        let mut put = |span: Span, kind| match out.get_mut(count) {
            _ if span.len() == 0 => {}
            Some(slot) => {
                *slot = MemoryRegion { start: span.start, end: span.end, kind };
                count += 1;
            }
            None => overflow = true,
        };
        for (span, kind) in self.entries() {
            if kind != E820_USABLE {
                put(span, MemoryRegionKind::UnknownBios(kind));
                continue;
            }
            let mut at = span.start;
            Self::cut(span, taken, |free| {
                put(Span { start: at, end: free.start }, MemoryRegionKind::Bootloader);
                put(free, MemoryRegionKind::Usable);
                at = free.end;
            });
            put(Span { start: at, end: span.end }, MemoryRegionKind::Bootloader);
        }
        if overflow { Err(LoadError::TooManyRegions) } else { Ok(count) }
    }

    fn entries(&self) -> impl Iterator<Item = (Span, u32)> {
        self.entries[..self.count].iter().copied()
    }

    fn for_each_free(&self, taken: &[Span], mut visit: impl FnMut(Span)) {
        for (span, kind) in self.entries() {
            if kind == E820_USABLE {
                Self::cut(span, taken, &mut visit);
            }
        }
    }

    /// Visits, in ascending order, what is left of `span` without low memory and without `taken`.
    fn cut(span: Span, taken: &[Span], mut visit: impl FnMut(Span)) {
        let mut sorted = [Span { start: 0, end: LOW_MEMORY }; MAX_TAKEN];
        assert!(taken.len() < MAX_TAKEN, "the loader keeps back at most {MAX_TAKEN} spans");
        sorted[1..=taken.len()].copy_from_slice(taken);
        let sorted = &mut sorted[..=taken.len()];
        sorted.sort_unstable_by_key(|span| span.start);
        let mut at = span.start;
        for hole in sorted.iter().filter(|hole| hole.start < span.end && hole.end > span.start) {
            let free = Span { start: at, end: hole.start }.whole_pages();
            if free.len() > 0 {
                visit(free);
            }
            at = at.max(hole.end);
        }
        let free = Span { start: at, end: span.end }.whole_pages();
        if free.len() > 0 {
            visit(free);
        }
    }
}

impl Default for MemoryMap {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes frames, upwards, from one span. Never gives one back.
#[derive(Debug)]
pub struct Frames {
    start: u64,
    next: u64,
    end: u64,
}

impl Frames {
    /// Takes from `span`, which holds whole pages.
    ///
    /// # Safety
    ///
    /// `span` is free memory, mapped one to one, and nobody else takes from it.
    pub unsafe fn new(span: Span) -> Self {
        Self { start: span.start, next: span.start, end: span.end }
    }

    /// Takes `count` frames in a row, zeroed.
    ///
    /// # Errors
    ///
    /// [`LoadError::OutOfMemory`] when the span has no more.
    pub fn take(&mut self, count: u64) -> Result<u64, LoadError> {
        let at = self.next;
        let bytes = count.checked_mul(PAGE).ok_or(LoadError::OutOfMemory)?;
        if bytes > self.end - at {
            return Err(LoadError::OutOfMemory);
        }
        self.next += bytes;
        // SAFETY: `new`'s caller vouches that the span is free and mapped one to one; `next` has
        // just moved past these bytes, so they are handed out once.
        unsafe { core::ptr::write_bytes(at as *mut u8, 0, bytes as usize) };
        Ok(at)
    }

    /// What has been taken so far.
    pub fn taken(&self) -> Span {
        Span { start: self.start, end: self.next }
    }
}

// SAFETY: `take` hands out each frame once and only from free memory (`new`).
unsafe impl FrameAllocator<Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        self.take(1).ok().map(|at| PhysFrame::containing_address(PhysAddr::new(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(u64, u64, u32)]) -> MemoryMap {
        let mut map = MemoryMap::new();
        for &(start, end, kind) in entries {
            map.push(Span { start, end }, kind).unwrap();
        }
        map
    }

    fn handed(map: &MemoryMap, taken: &[Span]) -> Vec<(u64, u64, MemoryRegionKind)> {
        let mut out = [MemoryRegion::empty(); 16];
        let count = map.hand_over(taken, &mut out).unwrap();
        out[..count].iter().map(|r| (r.start, r.end, r.kind)).collect()
    }

    #[test]
    fn the_first_mib_is_never_usable() {
        let map = map(&[(0, 0x9fc00, 1), (0x10_0000, 0x40_0000, 1)]);
        assert_eq!(
            handed(&map, &[]),
            [(0, 0x9fc00, MemoryRegionKind::Bootloader), (0x10_0000, 0x40_0000, MemoryRegionKind::Usable)]
        );
    }

    #[test]
    fn what_the_loader_took_is_cut_out_of_the_usable_memory() {
        let map = map(&[(0x10_0000, 0x100_0000, 1), (0x100_0000, 0x101_0000, 2)]);
        let taken = [
            Span { start: 0xf0_0000, end: 0xf8_0123 },
            Span { start: 0x20_0000, end: 0x30_0000 },
            Span { start: 0x30_0000, end: 0x40_0000 },
        ];
        assert_eq!(
            handed(&map, &taken),
            [
                (0x10_0000, 0x20_0000, MemoryRegionKind::Usable),
                (0x20_0000, 0x40_0000, MemoryRegionKind::Bootloader),
                (0x40_0000, 0xf0_0000, MemoryRegionKind::Usable),
                (0xf0_0000, 0xf8_1000, MemoryRegionKind::Bootloader),
                (0xf8_1000, 0x100_0000, MemoryRegionKind::Usable),
                (0x100_0000, 0x101_0000, MemoryRegionKind::UnknownBios(2)),
            ]
        );
    }

    #[test]
    fn the_largest_free_span_avoids_what_is_taken_and_what_lies_too_high() {
        let map = map(&[(0x1_0000_0000, 0x9_0000_0000, 1), (0, 0x4000_0000, 1)]);
        let module = Span { start: 0x3f00_0000, end: 0x4000_0000 };
        let loader = Span { start: 0x20_0000, end: 0x24_0000 };
        assert_eq!(map.largest_free(1 << 32, &[module, loader]).unwrap(), Span { start: 0x24_0000, end: 0x3f00_0000 });
    }

    #[test]
    fn a_machine_without_memory_above_one_mib_is_refused() {
        let map = map(&[(0, 0xa_0000, 1)]);
        assert!(matches!(map.largest_free(1 << 32, &[]), Err(LoadError::OutOfMemory)));
    }

    #[test]
    fn reserved_address_space_is_not_the_end_of_memory() {
        let map = map(&[(0, 0x4000_0000, 1), (0xfd_0000_0000, 0x100_0000_0000, 2)]);
        assert_eq!(map.end(), 0x4000_0000);
    }

    #[test]
    fn odd_ends_are_rounded_inwards_to_whole_pages() {
        let map = map(&[(0x10_0123, 0x10_3456, 1)]);
        assert_eq!(map.largest_free(1 << 32, &[]).unwrap(), Span { start: 0x10_1000, end: 0x10_3000 });
    }

    #[test]
    fn frames_run_out_instead_of_leaving_their_span() {
        let mut backing = vec![0xffu8; 4 * PAGE as usize];
        let start = (backing.as_mut_ptr() as u64).next_multiple_of(PAGE);
        // SAFETY: the vector owns these bytes; "physical" and virtual are one on the host.
        let mut frames = unsafe { Frames::new(Span::new(start, 3 * PAGE)) };
        assert_eq!(frames.take(2).unwrap(), start);
        assert!(frames.take(2).is_err());
        assert_eq!(frames.take(1).unwrap(), start + 2 * PAGE);
        assert_eq!(frames.taken(), Span::new(start, 3 * PAGE));
        let used = (start - backing.as_ptr() as u64) as usize;
        assert!(backing[used..used + 3 * PAGE as usize].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn too_many_regions_are_an_error_not_a_loss() {
        let mut map = MemoryMap::new();
        for i in 0..MAX_REGIONS as u64 {
            map.push(Span::new(i * PAGE, PAGE), 2).unwrap();
        }
        assert!(matches!(map.push(Span::new(0, PAGE), 1), Err(LoadError::TooManyRegions)));
    }
}
