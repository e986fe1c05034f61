//! [`DynPlace`]: one place in the dynamic part of every CPU's area, and the instructions that reach it.
//!
//! A variable of the dynamic part has no symbol of its own. What stands for it is the address at which it would lie in the
//! template: with gs in front, that is this CPU's copy (PERCPU-2). The address is worked out once, when the variable is made.
//! A variable of the static part has such an address too, so that one piece of code can serve both ([`DynPlace::of`]).

use core::sync::atomic::Ordering;

use super::{OFFSETS, PerCpu, Symbol, template, this_cpu_ptr};
use crate::cpu::CpuId;

/// The same place in every area: in the dynamic part, or that of a variable of the static part.
///
/// The accessors reach byte `AT` behind it. Each is one gs-relative instruction, so right against interrupts, NMIs and
/// migration without a pin, and a compiler barrier, as those of [`PerCpu`](super::PerCpu) are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynPlace(*mut u8);

// SAFETY: an address to calculate with; following it is up to whoever does.
unsafe impl Send for DynPlace {}
// SAFETY: as above.
unsafe impl Sync for DynPlace {}

impl DynPlace {
    /// Byte `offset` of every area.
    pub fn new(offset: usize) -> Self {
        Self(template().0.cast_mut().wrapping_add(offset))
    }

    /// Where `var` lies, for who deals with static and dynamic variables alike.
    pub const fn of<S: Symbol>(var: &'static PerCpu<S>) -> Self {
        Self(var.template.get().cast())
    }

    /// The address that stands for the place, to be kept in an atomic.
    #[inline(always)]
    pub const fn as_ptr(self) -> *mut u8 {
        self.0
    }

    /// The place that an address from [`as_ptr`](Self::as_ptr) stands for.
    #[inline(always)]
    pub const fn from_ptr(address: *mut u8) -> Self {
        Self(address)
    }

    /// How far from the base of an area.
    pub fn offset(self) -> usize {
        self.0.addr().wrapping_sub(template().0.addr())
    }

    /// The place `bytes` behind it.
    #[inline(always)]
    pub fn behind(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The place in this CPU's area.
    ///
    /// Context: any; pinned, as for [`PerCpu::this_ptr`](super::PerCpu::this_ptr).
    #[inline(always)]
    pub fn this_ptr(self) -> *mut u8 {
        this_cpu_ptr(self.0)
    }

    /// The place in the area of `cpu`.
    #[inline]
    pub fn ptr_on(self, cpu: CpuId) -> *mut u8 {
        // Relaxed: as in `PerCpu::ptr_on`.
        self.0.wrapping_byte_add(OFFSETS[cpu.index()].load(Ordering::Relaxed))
    }
}

/// # Safety
/// Of each: in every area, `AT` bytes behind the place, there lies a variable of the width named.
#[cfg(not(miri))]
#[allow(clippy::missing_safety_doc)]
impl DynPlace {
    /// Loads the pointer there.
    #[inline(always)]
    pub unsafe fn load<const AT: usize>(self) -> *mut u8 {
        let pointer: *mut u8;
        // SAFETY: gs base plus a template address is this CPU's copy; the caller vouches for what lies there.
        unsafe {
            core::arch::asm!("mov {v}, qword ptr gs:[{p} + {at}]", p = in(reg) self.0, v = lateout(reg) pointer,
                at = const AT, options(nostack, preserves_flags, readonly));
        }
        pointer
    }

    /// Adds `n` to the u64 there.
    #[inline(always)]
    pub unsafe fn add<const AT: usize>(self, n: u64) {
        // SAFETY: as in `load`.
        unsafe {
            core::arch::asm!("add qword ptr gs:[{p} + {at}], {n}", p = in(reg) self.0, n = in(reg) n, at = const AT,
                options(nostack));
        }
    }

    /// Adds 1 to the u64 there.
    #[inline(always)]
    pub unsafe fn inc<const AT: usize>(self) {
        // SAFETY: as in `load`.
        unsafe {
            core::arch::asm!("inc qword ptr gs:[{p} + {at}]", p = in(reg) self.0, at = const AT, options(nostack));
        }
    }

    /// Adds 1 to the u64 there by a locked instruction, which is a full barrier: also against CPUs that do the same through
    /// [`ptr_on`](Self::ptr_on).
    #[inline(always)]
    pub unsafe fn inc_locked<const AT: usize>(self) {
        // SAFETY: as in `load`.
        unsafe {
            core::arch::asm!("lock inc qword ptr gs:[{p} + {at}]", p = in(reg) self.0, at = const AT, options(nostack));
        }
    }

    /// Sets the lowest bit of the u32 there; whether it was set.
    #[inline(always)]
    pub unsafe fn test_and_set<const AT: usize>(self) -> bool {
        // SAFETY: as in `load`; the label is left by the jump with nothing on the stack.
        unsafe {
            core::arch::asm!("bts dword ptr gs:[{p} + {at}], 0", "jc {was_set}", p = in(reg) self.0, at = const AT,
                was_set = label { return true }, options(nostack));
        }
        false
    }

    /// Stores 0 to the u32 there.
    #[inline(always)]
    pub unsafe fn clear<const AT: usize>(self) {
        // SAFETY: as in `load`.
        unsafe {
            core::arch::asm!("mov dword ptr gs:[{p} + {at}], 0", p = in(reg) self.0, at = const AT,
                options(nostack, preserves_flags));
        }
    }
}

/// The same for the one CPU that Miri has.
#[cfg(miri)]
#[allow(missing_docs, clippy::missing_safety_doc)]
impl DynPlace {
    fn there<T, const AT: usize>(self) -> *mut T {
        self.this_ptr().wrapping_add(AT).cast()
    }

    pub unsafe fn load<const AT: usize>(self) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { self.there::<*mut u8, AT>().read() }
    }

    pub unsafe fn add<const AT: usize>(self, n: u64) {
        // SAFETY: the caller's contract.
        unsafe { *self.there::<u64, AT>() += n }
    }

    pub unsafe fn inc<const AT: usize>(self) {
        // SAFETY: the caller's contract.
        unsafe { self.add::<AT>(1) }
    }

    pub unsafe fn inc_locked<const AT: usize>(self) {
        // SAFETY: the caller's contract.
        unsafe { self.add::<AT>(1) }
    }

    pub unsafe fn test_and_set<const AT: usize>(self) -> bool {
        // SAFETY: the caller's contract.
        unsafe { self.there::<u32, AT>().replace(1) != 0 }
    }

    pub unsafe fn clear<const AT: usize>(self) {
        // SAFETY: the caller's contract.
        unsafe { self.there::<u32, AT>().write(0) }
    }
}
