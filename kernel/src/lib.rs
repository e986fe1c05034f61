//! The parts of the bootable kernel that are tested on the host: most of them need no machine.
//!
//! The kernel itself is `main.rs` and what it names.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod arguments;
pub mod branches;
pub mod heap;
pub mod line;
pub mod regions;
pub mod slabtop;
pub mod table;
pub mod words;
