//! Reads `hvm_start_info`: the memory map, the ACPI root pointer, the command line and the module.
//!
//! QEMU puts all four into low memory which its own memory map calls usable, and the kernel's
//! trampoline for the other CPUs comes to lie nearby. So everything small is copied into the loader
//! first; only the module, megabytes at the top of memory, is read in place and kept back.
//!
//! Layout: Xen's `include/public/arch-x86/hvm/start_info.h`, version 1.

use core::cell::UnsafeCell;
use core::fmt;

use grange_boot::error::LoadError;
use grange_boot::memory::{MemoryMap, Span};

/// What `hvm_start_info` begins with.
const MAGIC: u32 = 0x336e_c578;

/// The longest command line, in bytes without the final NUL. QEMU has room for about this much
/// before a line overwrites the boot data behind it.
const MAX_COMMAND_LINE: usize = 4095;

#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    _flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    // From version 1 on.
    memmap_paddr: u64,
    memmap_entries: u32,
    _reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Module {
    paddr: u64,
    size: u64,
    _cmdline_paddr: u64,
    _reserved: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemmapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    _reserved: u32,
}

/// What the machine gave us, copied out of low memory.
pub(crate) struct Given {
    /// The firmware's memory map.
    pub(crate) memory: MemoryMap,
    /// Physical address of the ACPI root pointer, if there is one.
    pub(crate) rsdp: Option<u64>,
    /// The kernel command line, without NUL; valid UTF-8 is the kernel's business.
    pub(crate) command_line: &'static [u8],
    /// The kernel's ELF file, in place.
    pub(crate) kernel: &'static [u8],
}

/// What can be wrong with it.
pub(crate) enum PvhError {
    Magic(u32),
    Version(u32),
    NoModule,
    ModuleTooHigh(u64),
    CommandLineTooLong,
    Memory(LoadError),
}

impl fmt::Display for PvhError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(
                f,
                "the boot data begins with {found:#x} instead of {MAGIC:#x}; a command line of more \
                 than 4,096 bytes overwrites it"
            ),
            Self::Version(found) => {
                write!(f, "the boot data is of version {found}; 1 or later brings the memory map")
            }
            Self::NoModule => f.write_str("there is no kernel; start QEMU with -initrd KERNEL.ELF"),
            Self::ModuleTooHigh(at) => {
                write!(f, "the kernel file at {at:#x} lies above the first 4 GiB")
            }
            Self::CommandLineTooLong => {
                write!(f, "the command line is longer than {MAX_COMMAND_LINE} bytes")
            }
            Self::Memory(error) => error.fmt(f),
        }
    }
}

struct Copy(UnsafeCell<[u8; MAX_COMMAND_LINE]>);

// SAFETY: written by `read` alone, which runs once, on the only CPU.
unsafe impl Sync for Copy {}

static COMMAND_LINE: Copy = Copy(UnsafeCell::new([0; MAX_COMMAND_LINE]));

/// Copies everything out of the boot data at `start_info`.
///
/// # Safety
///
/// `start_info` is what the PVH protocol passed; memory below 4 GiB is mapped one to one; called once.
pub(crate) unsafe fn read(start_info: u64) -> Result<Given, PvhError> {
    // SAFETY: the protocol puts the structure there; `fetch` allows for any alignment.
    let info: StartInfo = unsafe { fetch(start_info) };
    if info.magic != MAGIC {
        return Err(PvhError::Magic(info.magic));
    }
    if info.version < 1 {
        return Err(PvhError::Version(info.version));
    }
    // SAFETY: a valid magic makes the addresses in the structure valid, for all three.
    unsafe {
        Ok(Given {
            memory: read_memory(&info)?,
            rsdp: Some(info.rsdp_paddr).filter(|&at| at != 0),
            command_line: read_command_line(info.cmdline_paddr)?,
            kernel: find_kernel(&info)?,
        })
    }
}

/// # Safety
///
/// As [`read`], and `info` has the right magic.
unsafe fn read_memory(info: &StartInfo) -> Result<MemoryMap, PvhError> {
    let mut memory = MemoryMap::new();
    for index in 0..u64::from(info.memmap_entries) {
        let at = info.memmap_paddr + index * size_of::<MemmapEntry>() as u64;
        // SAFETY: the protocol promises `memmap_entries` of them in a row.
        let entry: MemmapEntry = unsafe { fetch(at) };
        memory.push(Span::new(entry.addr, entry.size), entry.kind).map_err(PvhError::Memory)?;
    }
    Ok(memory)
}

/// # Safety
///
/// As [`read`]; `at` is 0 or the address of a string that ends in NUL.
unsafe fn read_command_line(at: u64) -> Result<&'static [u8], PvhError> {
    if at == 0 {
        return Ok(&[]);
    }
    // SAFETY: called once, so this is the only reference to the buffer.
    let copy = unsafe { &mut *COMMAND_LINE.0.get() };
    for index in 0..=MAX_COMMAND_LINE {
        // SAFETY: no NUL has been met yet, so this byte still belongs to the string.
        let byte: u8 = unsafe { fetch(at + index as u64) };
        if byte == 0 {
            return Ok(&copy[..index]);
        }
        *copy.get_mut(index).ok_or(PvhError::CommandLineTooLong)? = byte;
    }
    Err(PvhError::CommandLineTooLong)
}

/// # Safety
///
/// As [`read`], and `info` has the right magic.
unsafe fn find_kernel(info: &StartInfo) -> Result<&'static [u8], PvhError> {
    if info.nr_modules == 0 {
        return Err(PvhError::NoModule);
    }
    // SAFETY: there is at least one module, and the list begins with it.
    let module: Module = unsafe { fetch(info.modlist_paddr) };
    if module.paddr == 0 || module.size == 0 {
        return Err(PvhError::NoModule);
    }
    if Span::new(module.paddr, module.size).end > grange_boot::paging::LOADER_REACH {
        return Err(PvhError::ModuleTooHigh(module.paddr));
    }
    // SAFETY: the protocol promises that the module lies there; it is within reach (just checked),
    // and the loader takes no frame from it, so it never changes.
    Ok(unsafe { core::slice::from_raw_parts(module.paddr as *const u8, module.size as usize) })
}

/// Reads a value from physical memory.
///
/// # Safety
///
/// A `T` lies at `at`, below 4 GiB.
unsafe fn fetch<T: core::marker::Copy>(at: u64) -> T {
    // SAFETY: by the caller's word; unaligned reads are allowed for.
    unsafe { core::ptr::read_unaligned(at as *const T) }
}
