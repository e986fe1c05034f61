//! Checks the kernel's ELF file and says what to load where. Reads only; copies nothing.
//!
//! Invariants of an [`Image`] (enforced by [`Image::parse`], relied on by [`crate::paging`]):
//!
//! - BOOT-1: every segment lies in the top 2 GiB and starts on a page.
//! - BOOT-2: segments ascend and share no page, so each page has one set of permissions.
//! - BOOT-3: no segment is both writable and executable (W^X).
//! - BOOT-4: the entry point lies in an executable segment.

use bootloader_api::BootloaderConfig;
use bootloader_api::config::Mapping;
use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD};
use elf::endian::AnyEndian;
use elf::file::Class;

use crate::error::LoadError;
use crate::paging::PAGE;

/// Where kernel images may lie: the top 2 GiB, less the last page so that ends do not wrap.
pub const IMAGE_SPACE: core::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_ffff_f000;

/// Text, constants, data, and room for a few more.
pub const MAX_SEGMENTS: usize = 8;

/// The version bytes within a serialized configuration: after the 16 bytes of its UUID.
const VERSION_BYTES: core::ops::Range<usize> = 16..23;

/// One loadable segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Virtual address of its first byte, on a page.
    pub vaddr: u64,
    /// What the file holds of it; the rest up to `mem_size` is zero.
    pub data: &'a [u8],
    /// Size in memory, in bytes.
    pub mem_size: u64,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

impl Segment<'_> {
    /// The number of pages the segment covers.
    pub fn pages(&self) -> u64 {
        self.mem_size.div_ceil(PAGE)
    }

    fn end(&self) -> u64 {
        self.vaddr + self.pages() * PAGE
    }
}

/// Where the kernel wants the mappings it can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Size of the boot stack, in bytes, whole pages.
    pub stack_size: u64,
    /// Address of the stack's guard page, if the kernel cares.
    pub stack_at: Option<u64>,
    /// Address of the map of all physical memory, if the kernel cares.
    pub physical_at: Option<u64>,
}

/// A kernel that can be started.
#[derive(Debug)]
pub struct Image<'a> {
    segments: [Option<Segment<'a>>; MAX_SEGMENTS],
    /// Virtual address of the first instruction.
    pub entry: u64,
    /// What it wants of the loader.
    pub wishes: Wishes,
}

impl<'a> Image<'a> {
    /// Checks `file` and finds its segments.
    ///
    /// # Errors
    ///
    /// Everything in [`LoadError`] that speaks of the ELF file or its configuration.
    pub fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        if !file.starts_with(b"\x7fELF") {
            return Err(LoadError::NotElf);
        }
        let elf = ElfBytes::<AnyEndian>::minimal_parse(file)?;
        check_header(&elf)?;
        let segments = find_segments(&elf)?;
        let entry = elf.ehdr.e_entry;
        let executable = |s: &&Segment<'_>| s.execute && (s.vaddr..s.end()).contains(&entry);
        if segments.iter().flatten().find(executable).is_none() {
            return Err(LoadError::Entry(entry));
        }
        Ok(Self { segments, entry, wishes: read_config(&elf)? })
    }

    /// The segments, in ascending order.
    pub fn segments(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.segments.iter().flatten()
    }

    /// The lowest address of the image.
    pub fn base(&self) -> u64 {
        self.segments().map(|s| s.vaddr).min().unwrap_or(IMAGE_SPACE.start)
    }
}

fn check_header(elf: &ElfBytes<'_, AnyEndian>) -> Result<(), LoadError> {
    if elf.ehdr.class != Class::ELF64 {
        return Err(LoadError::Foreign("a 32-bit one"));
    }
    if elf.ehdr.endianness != AnyEndian::Little {
        return Err(LoadError::Foreign("a big-endian one"));
    }
    if elf.ehdr.e_machine != EM_X86_64 {
        return Err(LoadError::Foreign("for another processor"));
    }
    if elf.ehdr.e_type != ET_EXEC {
        return Err(LoadError::NotExecutable(elf.ehdr.e_type));
    }
    Ok(())
}

fn find_segments<'a>(elf: &ElfBytes<'a, AnyEndian>) -> Result<[Option<Segment<'a>>; MAX_SEGMENTS], LoadError> {
    let mut segments = [None; MAX_SEGMENTS];
    let mut count = 0;
    let mut floor = IMAGE_SPACE.start;
    for header in elf.segments().ok_or(LoadError::Empty)? {
        let vaddr = header.p_vaddr;
        let fault = |problem| LoadError::Segment { vaddr, problem };
        match header.p_type {
            PT_LOAD if header.p_memsz > 0 => {}
            PT_INTERP | PT_DYNAMIC => return Err(fault("asks for a dynamic linker")),
            _ => continue,
        }
        let data = elf.segment_data(&header)?;
        if data.len() as u64 > header.p_memsz {
            return Err(fault("is larger in the file than in memory"));
        }
        if vaddr % PAGE != 0 {
            return Err(fault("does not start on a page"));
        }
        let end = vaddr.checked_add(header.p_memsz).ok_or(fault("wraps around"))?;
        if vaddr < IMAGE_SPACE.start || end > IMAGE_SPACE.end {
            return Err(fault("is not in the top 2 GiB"));
        }
        if vaddr < floor {
            return Err(fault("shares a page with the segment before it"));
        }
        let write = header.p_flags & PF_W != 0;
        let execute = header.p_flags & PF_X != 0;
        if write && execute {
            return Err(fault("is both writable and executable"));
        }
        let segment = Segment { vaddr, data, mem_size: header.p_memsz, write, execute };
        floor = segment.end();
        *segments.get_mut(count).ok_or(LoadError::TooManySegments)? = Some(segment);
        count += 1;
    }
    if count == 0 { Err(LoadError::Empty) } else { Ok(segments) }
}

fn read_config(elf: &ElfBytes<'_, AnyEndian>) -> Result<Wishes, LoadError> {
    let section = elf.section_header_by_name(".bootloader-config")?.ok_or(LoadError::NoConfig)?;
    let (bytes, _) = elf.section_data(&section)?;
    // The version first: another version may well have another layout.
    check_version(bytes)?;
    let config = BootloaderConfig::deserialize(bytes).map_err(LoadError::BadConfig)?;

    let mappings = &config.mappings;
    for (asked, what) in [
        (mappings.aslr, "a randomized address"),
        (mappings.page_table_recursive.is_some(), "a recursive page table"),
        (fixed(mappings.kernel_base).is_some(), "another load address"),
        (fixed(mappings.boot_info).is_some(), "a fixed BootInfo address"),
        (fixed(mappings.ramdisk_memory).is_some(), "a fixed ramdisk address"),
        (mappings.physical_memory.is_none(), "no map of physical memory"),
    ] {
        if asked {
            return Err(LoadError::Unsupported(what));
        }
    }
    let wishes = Wishes {
        stack_size: config.kernel_stack_size.next_multiple_of(PAGE),
        stack_at: fixed(mappings.kernel_stack),
        physical_at: mappings.physical_memory.and_then(fixed),
    };
    if wishes.stack_size == 0 || wishes.stack_at.is_some_and(|at| at % PAGE != 0) {
        return Err(LoadError::BadConfig("the stack is empty or not on a page"));
    }
    Ok(wishes)
}

/// Compares the version bytes by hand, which `deserialize` does not. Below 1.0 a new minor version
/// is a new layout; patches are compatible.
fn check_version(config: &[u8]) -> Result<(), LoadError> {
    let ours = BootloaderConfig::new_default().serialize();
    if config.len() < VERSION_BYTES.end || config[..16] != ours[..16] {
        return Err(LoadError::BadConfig("it is too short or lacks the UUID"));
    }
    let version = |bytes: &[u8]| {
        let field = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let start = VERSION_BYTES.start;
        ((field(start), field(start + 2), field(start + 4)), bytes[VERSION_BYTES.end - 1])
    };
    let ((kernel, kernel_pre), (loader, loader_pre)) = (version(config), version(&ours));
    if (kernel.0, kernel.1, kernel_pre) == (loader.0, loader.1, loader_pre) {
        Ok(())
    } else {
        Err(LoadError::ApiVersion { kernel, loader })
    }
}

fn fixed(mapping: Mapping) -> Option<u64> {
    match mapping {
        Mapping::FixedAddress(at) => Some(at),
        Mapping::Dynamic => None,
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
