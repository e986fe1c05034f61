//! Mappings of a hosted machine: pages of the memfd, mapped a second time in a reserved window.
//!
//! Invariants:
//!
//! - `HPAG-1` The window is reserved (no access) while a machine runs; a page of it is mapped if and only if its entry in
//!   the table behind the window is not 0.
//! - `HPAG-2` An entry is claimed by compare-and-exchange before the host is asked to map, so two CPUs cannot map one page.
//!   Unmapping a page while it is being mapped is the caller's mistake.
//!
//! The host shoots down TLBs by itself, so the flushes have nothing to do.
//!
//! Context: any but NMI: one system call each.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use super::memory;
use crate::paging::{Flags, MapError};
use crate::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, VirtAddr};

/// Bytes of the window.
const WINDOW: u64 = 16 << 30;
/// First address that [`map`] takes.
pub const VMALLOC_START: VirtAddr = VirtAddr::new_truncate(0x6800_0000_0000);
/// First address behind the window.
pub const VMALLOC_END: VirtAddr = VirtAddr::new_truncate(VMALLOC_START.as_u64() + WINDOW);
/// The table: for each page of the window its physical address, or 0. Lies behind a gap, filled in lazily by the host.
const TABLE: usize = VMALLOC_END.as_u64() as usize + (1 << 30);
const TABLE_BYTES: usize = (WINDOW >> PAGE_SHIFT) as usize * size_of::<AtomicU64>();

/// The reservation of window and table. Dropped with the machine.
pub(super) struct Window;

impl Window {
    /// Reserves both.
    pub(super) fn new() -> Self {
        reserve(VMALLOC_START.as_u64() as usize, WINDOW as usize, libc::PROT_NONE);
        reserve(TABLE, TABLE_BYTES, libc::PROT_READ | libc::PROT_WRITE);
        Self
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: both were reserved by `new`, and no CPU runs any more.
        unsafe {
            libc::munmap(ptr::without_provenance_mut(VMALLOC_START.as_u64() as usize), WINDOW as usize);
            libc::munmap(ptr::without_provenance_mut(TABLE), TABLE_BYTES);
        }
    }
}

fn reserve(at: usize, bytes: usize, access: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping that replaces nothing.
    let map = unsafe { libc::mmap(ptr::without_provenance_mut(at), bytes, access, flags, -1, 0) };
    assert_eq!(map.addr(), at, "mmap at {at:#x}: {}", std::io::Error::last_os_error());
    map.expose_provenance();
}

/// The entry of the page at `virt`, if that is a page of the window.
fn entry(virt: VirtAddr) -> Option<&'static AtomicU64> {
    if !(VMALLOC_START..VMALLOC_END).contains(&virt) || !virt.is_aligned(PAGE_SIZE as u64) {
        return None;
    }
    let index = ((virt - VMALLOC_START) >> PAGE_SHIFT) as usize;
    let entry = ptr::with_exposed_provenance::<AtomicU64>(TABLE + index * size_of::<AtomicU64>());
    // SAFETY: inside the table, which is there while a machine runs (HPAG-1).
    Some(unsafe { &*entry })
}

/// Maps the page at `phys` also at `virt`, a page of the window. No page tables of ours, so no frame is asked for.
///
/// # Errors
///
/// See [`MapError`].
///
/// # Safety
///
/// The window's page is the caller's, and what is done through it to the RAM at `phys` is sound.
pub unsafe fn map(
    virt: VirtAddr,
    phys: PhysAddr,
    access: Flags,
    _frame: &mut dyn FnMut() -> Option<PhysAddr>,
) -> Result<(), MapError> {
    let entry = entry(virt).ok_or(MapError::BadAddress)?;
    let (fd, offset) = memory::file_offset(phys).ok_or(MapError::BadAddress)?;
    // Relaxed: the claim alone matters (HPAG-2); whoever uses the page is told by the caller.
    entry
        .compare_exchange(0, phys.as_u64(), Ordering::Relaxed, Ordering::Relaxed)
        .map_err(|_| MapError::AlreadyMapped)?;
    let write = if access.contains(Flags::WRITE) { libc::PROT_WRITE } else { 0 };
    let execute = if access.contains(Flags::EXECUTE) { libc::PROT_EXEC } else { 0 };
    let at = ptr::without_provenance_mut(virt.as_u64() as usize);
    // SAFETY: replaces a page of our own reservation.
    let map = unsafe {
        libc::mmap(at, PAGE_SIZE, libc::PROT_READ | write | execute, libc::MAP_SHARED | libc::MAP_FIXED, fd, offset)
    };
    if map == libc::MAP_FAILED {
        entry.store(0, Ordering::Relaxed);
        return Err(MapError::NoMemory);
    }
    map.expose_provenance();
    Ok(())
}

/// Takes away what is mapped at `virt`; which RAM it was.
///
/// # Panics
///
/// If the host refuses to give the page back to the reservation.
///
/// # Safety
///
/// Nobody uses the page at `virt` any more.
pub unsafe fn unmap(virt: VirtAddr) -> Option<PhysAddr> {
    let entry = entry(virt)?;
    let phys = entry.load(Ordering::Relaxed);
    if phys == 0 {
        return None;
    }
    let at = ptr::without_provenance_mut(virt.as_u64() as usize);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: replaces a page of our own window, which the caller says is unused.
    let map = unsafe { libc::mmap(at, PAGE_SIZE, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(map, libc::MAP_FAILED, "unmapping {virt:?}: {}", std::io::Error::last_os_error());
    // Last, so that the page can be claimed again only now (HPAG-2).
    entry.store(0, Ordering::Relaxed);
    Some(PhysAddr::new(phys))
}

/// Forgets this CPU's cached translation of one page: the host has done so.
pub fn flush_local(_: VirtAddr) {}

/// Forgets this CPU's cached translations: the host has done so.
pub fn flush_all_local() {}

/// Where `phys`, which is RAM, can be accessed. Context: any.
#[inline(always)]
pub fn phys_to_virt(phys: PhysAddr) -> VirtAddr {
    memory::direct_map(phys)
}

/// The RAM that is at `virt`, an address of the direct map or of a page mapped in the window. Statics of the process have
/// no physical address. Context: any.
#[inline]
pub fn virt_to_phys(virt: VirtAddr) -> Option<PhysAddr> {
    memory::direct_map_phys(virt).or_else(|| {
        let page = virt.align_down(PAGE_SIZE as u64);
        let phys = entry(page)?.load(Ordering::Relaxed);
        (phys != 0).then(|| PhysAddr::new(phys + (virt - page)))
    })
}
