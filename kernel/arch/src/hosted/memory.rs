//! The RAM of a hosted machine: one memfd, mapped as a whole at a fixed address, cut into nodes of equal size.
//!
//! Physical address `PHYS_BASE + n` is byte `n` of the memfd, so that physical address 0 is never RAM. The fixed addresses
//! lie above the executable, because a GS base (area - template) must not be negative for Linux, and in a stretch that
//! neither the loader nor `mmap` uses by itself.
//!
//! The end of each node's memory holds the per-CPU areas of its CPUs; the rest is reported as RAM.
//!
//! Invariant `HMEM-1`: mapping and file are made by [`Memory::new`] before any CPU runs and go after the last has stopped.

use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use crate::{PAGE_SIZE, PhysAddr, VirtAddr};

/// Where the direct map of all RAM begins.
pub(super) const DIRECT_MAP: u64 = 0x6000_0000_0000;
/// First physical address.
pub(super) const PHYS_BASE: u64 = 0x10_0000;

/// The memfd of the machine that runs; -1: none.
static FD: AtomicI32 = AtomicI32::new(-1);
/// Bytes of RAM of the machine that runs.
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// The RAM of one machine. Dropped with it.
pub(super) struct Memory {
    bytes: usize,
}

impl Memory {
    /// `bytes` of zeroes, at [`DIRECT_MAP`].
    pub(super) fn new(bytes: usize) -> Self {
        // SAFETY: a NUL-terminated name.
        let fd = unsafe { libc::memfd_create(c"grange-ram".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        // SAFETY: a file of ours.
        let result = unsafe { libc::ftruncate(fd, bytes as i64) };
        assert_eq!(result, 0, "ftruncate to {bytes}: {}", std::io::Error::last_os_error());
        let at = ptr::without_provenance_mut(DIRECT_MAP as usize);
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
        // SAFETY: a new mapping that replaces nothing (MAP_FIXED_NOREPLACE).
        let map = unsafe { libc::mmap(at, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        assert_eq!(
            map.addr(),
            DIRECT_MAP as usize,
            "mmap of {bytes} bytes of RAM: {}",
            std::io::Error::last_os_error()
        );
        map.expose_provenance();
        // Relaxed: CPUs are started afterwards (HMEM-1).
        FD.store(fd, Ordering::Relaxed);
        BYTES.store(bytes, Ordering::Relaxed);
        Self { bytes }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        BYTES.store(0, Ordering::Relaxed);
        let fd = FD.swap(-1, Ordering::Relaxed);
        // SAFETY: made by `new`, and no CPU runs any more (HMEM-1).
        unsafe {
            libc::munmap(ptr::without_provenance_mut(DIRECT_MAP as usize), self.bytes);
            libc::close(fd);
        }
    }
}

/// The memfd, and where in it the page at `phys` lies; `None` if that is not RAM.
pub(super) fn file_offset(phys: PhysAddr) -> Option<(i32, i64)> {
    let offset = phys.as_u64().checked_sub(PHYS_BASE)?;
    let fits = offset as usize + PAGE_SIZE <= BYTES.load(Ordering::Relaxed);
    fits.then(|| (FD.load(Ordering::Relaxed), offset as i64))
}

/// Address of `phys` in the direct map.
#[inline(always)]
pub(super) fn direct_map(phys: PhysAddr) -> VirtAddr {
    VirtAddr::new(phys.as_u64() - PHYS_BASE + DIRECT_MAP)
}

/// The RAM that `virt` is, if it lies in the direct map.
#[inline]
pub(super) fn direct_map_phys(virt: VirtAddr) -> Option<PhysAddr> {
    let offset = virt.as_u64().checked_sub(DIRECT_MAP)?;
    let is_ram = (offset as usize) < BYTES.load(Ordering::Relaxed);
    is_ram.then(|| PhysAddr::new(offset + PHYS_BASE))
}
