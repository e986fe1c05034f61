//! The memory map: from a page frame number or an address to its descriptor, in O(1).
//!
//! Physical memory is cut into *sections* of 4 MiB, the size of the largest block. For each section that holds any
//! memory there are 1,024 descriptors in one piece, in memory of the node that the section begins on; a table with one
//! pointer a section finds them. A flat table of one byte a frame holds their [homes](crate::home). A section is never shared by two descriptor arrays, so a block of the largest order
//! has its descriptors side by side.
//!
//! Invariants:
//! - **MAP-1** The table and the descriptors are in place before a second CPU runs or the first interrupt comes, and
//!   never change after; so readers need no ordering.
//! - **MAP-2** A table entry is null or points to [`SECTION_PAGES`] descriptors that live for ever.
//!
//! Linux: `SPARSEMEM` without the virtual memory map (`mm/sparse.c`, 6.18), with smaller sections because our nodes may be.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering::Relaxed};

use arch::{PAGE_SHIFT, PAGE_SIZE};

use crate::buddy::MAX_ORDER;
use crate::page::Page;

/// Frames in a section.
pub(crate) const SECTION_PAGES: usize = 1 << MAX_ORDER;
/// Bytes of memory in a section.
pub(crate) const SECTION_SIZE: usize = SECTION_PAGES * PAGE_SIZE;
const SECTION_SHIFT: u32 = SECTION_SIZE.trailing_zeros();

/// One entry of the table: the descriptors of a section, or null (MAP-2).
pub(crate) type Section = AtomicPtr<Page>;

/// A memory map. The machine has one, [`MAP`]; tests make their own.
pub(crate) struct MemMap {
    table: AtomicPtr<Section>,
    sections: AtomicUsize,
    /// Frames in all sections.
    frames: AtomicUsize,
    /// The home of the frame at address 0, if the table went that far: indexed by address, not by frame.
    homes: AtomicPtr<AtomicU8>,
    /// Address of physical address 0 in the direct map.
    base: AtomicUsize,
}

/// The machine's memory map.
pub(crate) static MAP: MemMap = MemMap::new();

impl MemMap {
    pub(crate) const fn new() -> Self {
        Self {
            table: AtomicPtr::new(ptr::null_mut()),
            sections: AtomicUsize::new(0),
            frames: AtomicUsize::new(0),
            homes: AtomicPtr::new(ptr::null_mut()),
            base: AtomicUsize::new(0),
        }
    }

    /// Puts a table in place (MAP-1). Its entries may be filled after, with [`set_section`](Self::set_section).
    pub(crate) fn install(&self, table: &'static [Section], base: usize) {
        self.base.store(base, Relaxed);
        self.table.store(table.as_ptr().cast_mut(), Relaxed);
        self.sections.store(table.len(), Relaxed);
    }

    /// Puts the homes in place, after the table (MAP-1).
    ///
    /// # Panics
    /// If there are not as many as frames, or the mapping wraps round the end of the address space.
    pub(crate) fn install_homes(&self, homes: &'static [AtomicU8]) {
        let (sections, base) = (self.sections.load(Relaxed), self.base.load(Relaxed));
        assert!(homes.len() == sections * SECTION_PAGES, "a home for each frame");
        assert!(base.is_multiple_of(PAGE_SIZE) && base.checked_add(sections * SECTION_SIZE).is_some());
        self.frames.store(homes.len(), Relaxed);
        self.homes.store(homes.as_ptr().cast_mut().wrapping_sub(base >> PAGE_SHIFT), Relaxed);
    }

    pub(crate) fn is_installed(&self) -> bool {
        self.sections.load(Relaxed) != 0
    }

    fn table(&self) -> &'static [Section] {
        let sections = self.sections.load(Relaxed);
        if sections == 0 {
            return &[];
        }
        // SAFETY: a length other than 0 is that of the `'static` slice given to `install`, and so is the pointer.
        unsafe { core::slice::from_raw_parts(self.table.load(Relaxed), sections) }
    }

    /// Fills an entry of the table (MAP-1).
    pub(crate) fn set_section(&self, section: usize, pages: &'static [Page]) {
        assert!(pages.len() == SECTION_PAGES, "MAP-2: a section has {SECTION_PAGES} descriptors");
        self.table()[section].store(pages.as_ptr().cast_mut(), Relaxed);
    }

    #[inline]
    fn at_offset(&self, offset: usize) -> Option<&'static Page> {
        let pages = self.table().get(offset >> SECTION_SHIFT)?.load(Relaxed);
        if pages.is_null() {
            return None;
        }
        // SAFETY: the entry points to `SECTION_PAGES` descriptors (MAP-2) and the index is below that.
        Some(unsafe { &*pages.add(offset >> PAGE_SHIFT & (SECTION_PAGES - 1)) })
    }

    /// The descriptor of a frame.
    #[inline]
    pub(crate) fn page(&self, pfn: usize) -> Option<&'static Page> {
        self.at_offset(pfn << PAGE_SHIFT)
    }

    /// Every descriptor, in the order of addresses.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &'static Page> {
        (0..self.table().len() * SECTION_PAGES).filter_map(|pfn| self.page(pfn))
    }

    /// The descriptor of an address in the direct map.
    #[inline]
    pub(crate) fn page_at(&self, addr: usize) -> Option<&'static Page> {
        // An address below the direct map wraps to an offset behind the end of the table.
        self.at_offset(addr.wrapping_sub(self.base.load(Relaxed)))
    }

    /// The descriptor and the home of the frame at an address of the direct map, if its home is to the liking of `is_home`.
    #[inline(always)]
    pub(crate) fn page_if(&self, addr: usize, is_home: impl FnOnce(u8) -> bool) -> Option<&'static Page> {
        let frame = addr.wrapping_sub(self.base.load(Relaxed)) >> PAGE_SHIFT;
        if frame >= self.frames.load(Relaxed) {
            return None;
        }
        // SAFETY: there is a home for each frame.
        if !is_home(unsafe { self.home_at_unchecked(addr) }.load(Relaxed)) {
            return None;
        }
        // SAFETY: a frame with a home has a descriptor, as HOME-1 says, and the table an entry for its section (MAP-2).
        unsafe {
            let pages = (*self.table.load(Relaxed).add(frame / SECTION_PAGES)).load(Relaxed);
            // The optimiser would test for the `None` of the result.
            core::hint::assert_unchecked(!pages.is_null());
            Some(&*pages.add(frame % SECTION_PAGES))
        }
    }

    /// The home of a frame.
    ///
    /// # Panics
    /// If there is no such frame.
    pub(crate) fn home(&self, pfn: usize) -> &'static AtomicU8 {
        self.home_at(self.base.load(Relaxed) + (pfn << PAGE_SHIFT)).expect("a frame of the memory map")
    }

    /// The home of the frame at an address of the direct map.
    #[inline(always)]
    pub(crate) fn home_at(&self, addr: usize) -> Option<&'static AtomicU8> {
        if addr.wrapping_sub(self.base.load(Relaxed)) >> PAGE_SHIFT >= self.frames.load(Relaxed) {
            return None;
        }
        // SAFETY: the direct map has this address.
        Some(unsafe { self.home_at_unchecked(addr) })
    }

    /// The same without a test.
    ///
    /// # Safety
    /// `addr` lies in the direct map, below the end of the last section.
    #[inline(always)]
    pub(crate) unsafe fn home_at_unchecked(&self, addr: usize) -> &'static AtomicU8 {
        // SAFETY: `install` was given one for each frame.
        unsafe { &*self.homes.load(Relaxed).wrapping_add(addr >> PAGE_SHIFT) }
    }

    /// Where a frame is in the direct map.
    #[inline]
    pub(crate) fn direct_map(&self, pfn: usize) -> *mut u8 {
        // The direct map is not an object of the language; its provenance is exposed by whoever mapped it.
        ptr::with_exposed_provenance_mut(self.base.load(Relaxed).wrapping_add(pfn << PAGE_SHIFT))
    }
}

/// Where a frame is in the direct map of the machine.
#[inline]
pub(crate) fn direct_map(pfn: usize) -> *mut u8 {
    MAP.direct_map(pfn)
}
