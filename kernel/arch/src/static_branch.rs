//! Branches that are hardly ever taken, and cost one instruction and no load until they are switched on.
//!
//! ```
//! use arch::static_branch::{StaticKey, set};
//! # use grange_arch as arch;
//!
//! static TRACING: StaticKey = StaticKey::new();
//!
//! fn on() -> bool {
//!     arch::static_branch!(TRACING)
//! }
//!
//! assert!(!on());
//! set(&TRACING, true);
//! assert!(on());
//! # set(&TRACING, false);
//! ```
//!
//! On bare metal each [`static_branch!`](crate::static_branch) is five bytes: `test eax, imm32` (opcode `a9`) while its
//! key is off, whose immediate is the distance to the branch's target, and `jmp rel32` (opcode `e9`) with the same four
//! bytes while it is on. The hosted backend loads a flag.
//!
//! # Invariants
//!
//! - `SB-1` A switch changes **one byte** of each site, by one store. Both instructions have the same length and the same
//!   last four bytes, so whoever comes by, an NMI handler included, executes the old instruction or the new one,
//!   and what follows both begins at the same place.
//! - `SB-2` The sites of a key are all listed: the list is written by the assembler with the site itself, in the
//!   section `grange_branches`, which the linker keeps as a whole.
//! - `SB-3` Text stays write-protected where it is executed (PAGING-1): the byte is stored through the map of physical memory.
//! - `SB-4` A CPU may go on executing the old instruction until it serialises. Who needs to know that none does calls
//!   [`serialize`] on every CPU, and on an emulator that translates text does so *twice*, with [`set`] before each: a CPU
//!   that was translating the old byte at the first store may use its work after it, until it has answered the first call.
//!
//! Linux patches five bytes in three steps around a breakpoint (`arch/x86/kernel/alternative.c`, `kernel/jump_label.c`), so
//! that a site that is off can be a plain no-op; here it clobbers the flags instead. Emulators take a changed byte as it
//! comes; of processors Intel's manual promises that only around a serialising instruction on the CPU that runs it.

use core::sync::atomic::{AtomicBool, Ordering};

pub use crate::imp::static_branch::{serialize, sites};

/// What switches branches on and off; off at first.
#[derive(Debug)]
#[repr(C)]
pub struct StaticKey {
    /// Written by [`set`].
    on: AtomicBool,
}

impl StaticKey {
    /// A key that is off.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "used in statics")]
    pub const fn new() -> Self {
        Self { on: AtomicBool::new(false) }
    }

    /// Whether it was switched on last; [`static_branch!`](crate::static_branch) asks the same without a load.
    ///
    /// Context: any.
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }
}

/// Switches all branches of `key`. They change one after the other, and other CPUs may see it late (`SB-4`).
///
/// Context: any; one call for a key at a time, else its branches may end up different.
pub fn set(key: &'static StaticKey, on: bool) {
    key.on.store(on, Ordering::Relaxed);
    crate::imp::static_branch::patch(key, on);
}

/// For [`static_branch!`](crate::static_branch): what is not a key does not compile.
#[doc(hidden)]
pub const fn is_key(_: *const StaticKey) {}
