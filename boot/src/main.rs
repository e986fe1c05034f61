//! The loader's PVH front end: what `qemu -kernel` starts.
//!
//! QEMU enters [`entry`] in 32-bit protected mode with a pointer to `hvm_start_info`. From there:
//! read what the machine left us ([`pvh`]), check the kernel that came as `-initrd`, load it and
//! build its page tables (the library half of this crate), and jump to it with a
//! `bootloader_api::BootInfo`.
//!
//! The kernel depends on `bootloader_api` and on nothing else here. `BootInfo` has no field for a
//! command line, so it travels as the ramdisk.
//!
//! Whatever goes wrong ends in one line on COM1 that begins `grange-boot:` and in debug-exit with
//! the panic value; a fault does too ([`fault`]), until the kernel has loaded tables of its own.
#![no_std]
#![no_main]

mod entry;
mod exit;
mod fault;
mod handoff;
mod pvh;
mod serial;

use core::convert::Infallible;
use core::fmt;
use core::panic::PanicInfo;

use grange_boot::error::LoadError;
use grange_boot::image::Image;
use grange_boot::memory::{Frames, Span};
use grange_boot::paging::{self, LOADER_REACH};
use pvh::PvhError;

/// Called by the entry code, once, in 64-bit mode with 4 GiB mapped one to one.
extern "C" fn loader_main(start_info: u64) -> ! {
    fault::install();
    let Err(error) = start(start_info);
    die(format_args!("cannot start the kernel: {error}"))
}

/// The whole story: from what the machine left us to the kernel's first instruction.
fn start(start_info: u64) -> Result<Infallible, BootError> {
    // SAFETY: the entry code passes on what the PVH protocol gave it, and nothing has written to
    // memory outside the loader's own image yet.
    let given = unsafe { pvh::read(start_info) }?;
    let image = Image::parse(given.kernel)?;

    let kernel_file = Span::new(given.kernel.as_ptr() as u64, given.kernel.len() as u64);
    let loader = entry::loader_image();
    let own = Span { start: loader.text.start, end: loader.data.end };
    let free = given.memory.largest_free(LOADER_REACH, &[kernel_file, own])?;
    // SAFETY: the firmware's map says that it is free, it holds neither the kernel file nor the
    // loader, and the entry code mapped the first 4 GiB one to one.
    let mut frames = unsafe { Frames::new(free) };

    let gib_pages = entry::cpu_has_gib_pages();
    let space = paging::build(&image, loader, given.memory.end(), gib_pages, &mut frames)?;
    let notes = handoff::Notes::reserve(given.command_line, &mut frames)?;
    let taken = [kernel_file, own, frames.taken()];
    // SAFETY: `space` keeps the loader mapped one to one and maps all of memory at `physical_at`.
    let boot_info = unsafe {
        entry::switch_tables(space.root);
        notes.write(&given, &taken, &image, &space)
    }?;
    // SAFETY: the tables of `space` are in use, they map the entry point executable and the stack
    // writable, and `boot_info` lies in the map of physical memory.
    unsafe { entry::enter_kernel(image.entry, space.stack_top, boot_info) }
}

/// Says why on COM1 and leaves.
fn die(message: fmt::Arguments<'_>) -> ! {
    serial::line(message);
    exit::fail()
}

/// Everything that ends the loader.
enum BootError {
    Pvh(PvhError),
    Load(LoadError),
}

impl From<PvhError> for BootError {
    fn from(error: PvhError) -> Self {
        Self::Pvh(error)
    }
}

impl From<LoadError> for BootError {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pvh(error) => error.fmt(f),
            Self::Load(error) => error.fmt(f),
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    die(format_args!("bug in the loader: {info}"))
}
