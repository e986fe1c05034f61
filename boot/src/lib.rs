//! What every front end of the loader shares: checking the kernel's ELF, choosing frames, building
//! the kernel's page tables and describing memory to it.
//!
//! A front end (today PVH, in `main.rs`) brings the machine to 64-bit mode with the first 4 GiB
//! mapped one to one, and knows where the memory map, the kernel file and the command line are.
//! Nothing here knows how it learnt that.
//!
//! - [`image`]: is this a kernel we can start, and what are its segments?
//! - [`memory`]: the memory map, the frames taken from it, the map as the kernel shall see it.
//! - [`paging`]: the page tables the kernel starts on.
//! - [`error`]: everything that can be wrong, one sentence each.
//!
//! Context: one CPU, interrupts off, before the kernel exists.
#![cfg_attr(not(test), no_std)]

pub mod error;
pub mod image;
pub mod memory;
pub mod paging;
