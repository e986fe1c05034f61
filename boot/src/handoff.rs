//! Writes down, in frames of its own, what the kernel is told: `BootInfo`, the memory regions and
//! the command line, all at their addresses in the map of physical memory.
//!
//! Two steps, because they hang on each other: the frames must be taken before it is known which
//! memory is taken, and the text is written once the kernel's tables are in use, so that every
//! address in it is valid when it is written.

use bootloader_api::BootInfo;
use bootloader_api::info::{MemoryRegion, MemoryRegions, Optional};
use grange_boot::error::LoadError;
use grange_boot::image::Image;
use grange_boot::memory::{Frames, MAX_REGIONS, Span};
use grange_boot::paging::{AddressSpace, PAGE};

use crate::pvh::Given;

/// Room for regions: each entry of the firmware's map can be cut, though few are.
const REGION_ROOM: usize = 2 * MAX_REGIONS;

/// Reserved frames, by physical address.
pub(crate) struct Notes {
    boot_info: u64,
    regions: u64,
    command_line: u64,
}

impl Notes {
    /// Takes the frames.
    pub(crate) fn reserve(command_line: &[u8], frames: &mut Frames) -> Result<Self, LoadError> {
        let mut take = |bytes: usize| frames.take((bytes as u64).div_ceil(PAGE).max(1));
        Ok(Self {
            boot_info: take(size_of::<BootInfo>())?,
            regions: take(REGION_ROOM * size_of::<MemoryRegion>())?,
            command_line: take(command_line.len())?,
        })
    }

    /// Fills them and returns the structure for the kernel's entry point.
    ///
    /// # Safety
    ///
    /// The tables of `space` are in use.
    pub(crate) unsafe fn write(
        self,
        given: &Given,
        taken: &[Span],
        image: &Image<'_>,
        space: &AddressSpace,
    ) -> Result<&'static mut BootInfo, LoadError> {
        let at = |phys: u64| space.physical_at + phys;

        // SAFETY: `reserve` took enough whole frames for this many regions, `at` is where they are
        // mapped, and an all-zero or fresh region is plain data: each is written before it is read.
        let regions = unsafe {
            let first = at(self.regions) as *mut MemoryRegion;
            for index in 0..REGION_ROOM {
                first.add(index).write(MemoryRegion::empty());
            }
            core::slice::from_raw_parts_mut(first, REGION_ROOM)
        };
        let count = given.memory.hand_over(taken, regions)?;

        let line = given.command_line;
        // SAFETY: `reserve` took at least this many bytes; source and frames are apart.
        unsafe {
            let to = at(self.command_line) as *mut u8;
            core::ptr::copy_nonoverlapping(line.as_ptr(), to, line.len());
        }

        let mut info = BootInfo::new(MemoryRegions::from(&mut regions[..count]));
        info.physical_memory_offset = Optional::Some(space.physical_at);
        info.rsdp_addr = Optional::from(given.rsdp);
        info.ramdisk_addr = Optional::Some(at(self.command_line));
        info.ramdisk_len = line.len() as u64;
        info.kernel_addr = given.kernel.as_ptr() as u64;
        info.kernel_len = given.kernel.len() as u64;
        info.kernel_image_offset = image.base();
        info.kernel_stack_bottom = space.stack_bottom;
        info.kernel_stack_len = space.stack_top - space.stack_bottom;

        let place = at(self.boot_info) as *mut BootInfo;
        // SAFETY: a whole frame of our own, mapped writable at `place`, kept back from the kernel's
        // allocator because it is in `taken`; this is the only reference to it.
        unsafe {
            place.write(info);
            Ok(&mut *place)
        }
    }
}
