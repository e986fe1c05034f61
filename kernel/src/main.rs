//! The bootable kernel.
//!
//! | file | what |
//! |---|---|
//! | `start.rs` | the boot, told as a story |
//! | `cmdline.rs` | the command line and its parameters |
//! | `console.rs` | COM1 |
//! | `panic.rs`, `build_id.rs` | the end |
//! | `whereabouts.rs`, `ask.rs` | where each CPU is, when somebody asks with an NMI |
//! | `crash/` | ways to die on purpose |
//! | `shell/` | commands |
//!
//! It exists for the bare machine alone. For the host (where the workspace is linted) it is an empty
//! program; what can be tested there is in the library half of this crate.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

// Nothing here names it: its suites are found through a link section.
#[cfg(all(target_os = "none", feature = "labs"))]
use labs as _;

#[cfg(target_os = "none")]
mod build_id;
#[cfg(target_os = "none")]
mod cmdline;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod shell;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod whereabouts;

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: grange_kernel::heap::KernelHeap = grange_kernel::heap::KernelHeap::new();

/// There is nothing to run on the host.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("the kernel runs on a machine of its own: cargo xtask run");
}
