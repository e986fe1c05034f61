//! The page tables the kernel starts on.
//!
//! | virtual | what | flags |
//! |---|---|---|
//! | as linked, top 2 GiB | the kernel's segments | the segment's own, W^X |
//! | `physical_at` | all physical memory, at least 4 GiB (1 GiB pages, else 2 MiB) | RW, NX |
//! | `stack_at` | one unmapped guard page, then the boot stack | RW, NX |
//! | one to one | the loader itself: its code and stack are in use while it switches over | W^X |
//!
//! The tables are built while physical memory below 4 GiB is mapped one to one, so a frame's address
//! is also its pointer.

use x86_64::structures::paging::mapper::MapToError;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags as Flags, PhysFrame, Size1GiB,
    Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::error::LoadError;
use crate::image::{Image, Segment};
use crate::memory::{Frames, Span};

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// Memory below this is mapped one to one while the loader runs.
pub const LOADER_REACH: u64 = 1 << 32;

/// Where all physical memory is mapped unless the kernel says otherwise (Linux's place for it).
pub const DEFAULT_PHYSICAL_AT: u64 = 0xffff_8880_0000_0000;

/// Where the boot stack's guard page lies unless the kernel says otherwise.
pub const DEFAULT_STACK_AT: u64 = 0xffff_fe00_0000_0000;

/// The three parts of the loader's own image, each of whole pages.
#[derive(Clone, Copy, Debug)]
pub struct LoaderImage {
    /// Executable.
    pub text: Span,
    /// Constants.
    pub rodata: Span,
    /// Data, zeroed data and the stack.
    pub data: Span,
}

/// What the kernel needs to know about its address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// Physical address of the top table, for CR3.
    pub root: u64,
    /// Physical address `p` is mapped at `physical_at + p`.
    pub physical_at: u64,
    /// Lowest byte of the boot stack, just above the guard page.
    pub stack_bottom: u64,
    /// One past the highest byte of the boot stack.
    pub stack_top: u64,
}

/// Loads `image` into fresh frames and builds the tables it starts on. Physical memory is mapped up
/// to `memory_end`, with 1 GiB pages where `gib_pages` says that the CPU has them.
///
/// # Errors
///
/// [`LoadError::OutOfMemory`]; [`LoadError::MappingClash`] when the kernel's wishes overlap.
pub fn build(
    image: &Image<'_>,
    loader: LoaderImage,
    memory_end: u64,
    gib_pages: bool,
    frames: &mut Frames,
) -> Result<AddressSpace, LoadError> {
    let root = frames.take(1)?;
    // SAFETY: `take` gave a zeroed frame, reachable at its physical address; nobody else has it.
    let table = unsafe { &mut *(root as *mut PageTable) };
    // SAFETY: frames are reachable at their physical address, hence offset 0; the table is empty.
    let mut tables = unsafe { OffsetPageTable::new(table, VirtAddr::zero()) };

    for segment in image.segments() {
        load(segment, &mut tables, frames)?;
    }

    let wishes = image.wishes;
    let physical_at = wishes.physical_at.unwrap_or(DEFAULT_PHYSICAL_AT);
    let end = memory_end.max(LOADER_REACH);
    if gib_pages {
        map::<Size1GiB>(&mut tables, frames, physical_at, 0, end, Access::DATA)?;
    } else {
        map::<Size2MiB>(&mut tables, frames, physical_at, 0, end, Access::DATA)?;
    }

    let guard = wishes.stack_at.unwrap_or(DEFAULT_STACK_AT);
    let stack_bottom = guard + PAGE;
    let stack = frames.take(wishes.stack_size / PAGE)?;
    map::<Size4KiB>(&mut tables, frames, stack_bottom, stack, wishes.stack_size, Access::DATA)?;

    for (span, access) in [(loader.text, Access::TEXT), (loader.rodata, Access::CONSTANT), (loader.data, Access::DATA)]
    {
        let bytes = span.end - span.start;
        map::<Size4KiB>(&mut tables, frames, span.start, span.start, bytes, access)?;
    }

    Ok(AddressSpace { root, physical_at, stack_bottom, stack_top: stack_bottom + wishes.stack_size })
}

#[derive(Clone, Copy)]
struct Access {
    write: bool,
    execute: bool,
}

impl Access {
    const TEXT: Self = Self { write: false, execute: true };
    const CONSTANT: Self = Self { write: false, execute: false };
    const DATA: Self = Self { write: true, execute: false };

    fn flags(self) -> Flags {
        let mut flags = Flags::PRESENT;
        flags.set(Flags::WRITABLE, self.write);
        flags.set(Flags::NO_EXECUTE, !self.execute);
        flags
    }
}

/// Copies a segment into frames of its own and maps them where it is linked.
fn load(segment: &Segment<'_>, tables: &mut OffsetPageTable<'_>, frames: &mut Frames) -> Result<(), LoadError> {
    let at = frames.take(segment.pages())?;
    // SAFETY: `take` gave `pages()` whole zeroed frames, and the data is no longer than `mem_size`
    // (checked by `Image::parse`); the file lies in memory that `frames` does not hand out.
    unsafe {
        core::ptr::copy_nonoverlapping(segment.data.as_ptr(), at as *mut u8, segment.data.len());
    }
    let access = Access { write: segment.write, execute: segment.execute };
    map::<Size4KiB>(tables, frames, segment.vaddr, at, segment.pages() * PAGE, access)
}

/// Maps `bytes` (rounded up to whole pages of size `S`) of physical memory from `phys` at `virt`.
fn map<S: PageSize>(
    tables: &mut OffsetPageTable<'_>,
    frames: &mut impl FrameAllocator<Size4KiB>,
    virt: u64,
    phys: u64,
    bytes: u64,
    access: Access,
) -> Result<(), LoadError>
where
    for<'a> OffsetPageTable<'a>: Mapper<S>,
{
    for offset in (0..bytes).step_by(S::SIZE as usize) {
        let clash = LoadError::MappingClash(virt.wrapping_add(offset));
        let page = virt.checked_add(offset).and_then(|v| VirtAddr::try_new(v).ok());
        let Some(Ok(page)) = page.map(Page::<S>::from_start_address) else {
            return Err(clash);
        };
        let frame = PhysFrame::<S>::containing_address(PhysAddr::new(phys + offset));
        // SAFETY: these tables are not in use yet, so no live reference can be aliased by them.
        let mapped = unsafe { tables.map_to(page, frame, access.flags(), frames) };
        match mapped {
            // Not in use yet: nothing to flush.
            Ok(flush) => flush.ignore(),
            Err(MapToError::FrameAllocationFailed) => return Err(LoadError::OutOfMemory),
            Err(_) => return Err(clash),
        }
    }
    Ok(())
}
