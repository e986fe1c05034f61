//! What can be wrong with what the loader was given. Each is one sentence that says what to do about
//! it; none of them is ever silent (the front end prints it and leaves by debug-exit).

use core::fmt;

use elf::ParseError;

/// Why the kernel cannot be started.
#[derive(Debug)]
pub enum LoadError {
    /// The file does not begin with the ELF magic.
    NotElf,
    /// An ELF file, but cut short or damaged.
    Damaged(ParseError),
    /// An ELF file for another machine, class or byte order.
    Foreign(&'static str),
    /// Not a statically linked executable (`ET_EXEC`); the value is `e_type`.
    NotExecutable(u16),
    /// No `PT_LOAD` segment with anything in it.
    Empty,
    /// More loadable segments than [`crate::image::MAX_SEGMENTS`].
    TooManySegments,
    /// A segment that the tables cannot hold as asked.
    Segment {
        /// Virtual address of the segment.
        vaddr: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The entry point is in no executable segment.
    Entry(u64),
    /// No `.bootloader-config` section: not built with `bootloader_api::entry_point!`.
    NoConfig,
    /// The section is there but is not a configuration.
    BadConfig(&'static str),
    /// Built against another `bootloader_api`; (major, minor, patch) of the kernel's and ours.
    ApiVersion {
        /// The kernel's version.
        kernel: (u16, u16, u16),
        /// The loader's version.
        loader: (u16, u16, u16),
    },
    /// The configuration asks for a mapping this loader does not make.
    Unsupported(&'static str),
    /// The memory map has more entries than [`crate::memory::MAX_REGIONS`].
    TooManyRegions,
    /// No usable memory is left below 4 GiB.
    OutOfMemory,
    /// Two mappings want the same virtual page.
    MappingClash(u64),
}

impl From<ParseError> for LoadError {
    fn from(error: ParseError) -> Self {
        Self::Damaged(error)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => f.write_str("the module is not an ELF file; give the kernel with -initrd"),
            Self::Damaged(error) => {
                write!(f, "the kernel's ELF file is cut short or damaged ({error}); build it again")
            }
            Self::Foreign(what) => write!(f, "the ELF file is {what}, not a 64-bit x86 one"),
            Self::NotExecutable(kind) => {
                write!(f, "the ELF file is of type {kind}, not a statically linked executable (type 2)")
            }
            Self::Empty => f.write_str("the kernel's ELF file has nothing to load"),
            Self::TooManySegments => f.write_str("the kernel's ELF file has too many segments"),
            Self::Segment { vaddr, problem } => {
                write!(f, "the kernel's segment at {vaddr:#x} {problem}")
            }
            Self::Entry(entry) => {
                write!(f, "the kernel's entry point {entry:#x} is in no executable segment")
            }
            Self::NoConfig => f.write_str("the ELF file has no .bootloader-config section: it is not a Grange kernel"),
            Self::BadConfig(why) => write!(f, "the kernel's .bootloader-config is broken ({why})"),
            Self::ApiVersion { kernel, loader } => write!(
                f,
                "the kernel speaks bootloader_api {}.{}.{}, the loader {}.{}.{}: build both from one tree",
                kernel.0, kernel.1, kernel.2, loader.0, loader.1, loader.2
            ),
            Self::Unsupported(what) => {
                write!(f, "the kernel asks for {what}, which this loader does not do")
            }
            Self::TooManyRegions => f.write_str("the firmware's memory map has too many entries"),
            Self::OutOfMemory => f.write_str("not enough memory below 4 GiB to load the kernel; give the machine more"),
            Self::MappingClash(vaddr) => {
                write!(f, "two of the kernel's mappings want the page at {vaddr:#x}")
            }
        }
    }
}
