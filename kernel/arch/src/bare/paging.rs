//! Page tables: one address space for all CPUs, changed without a lock.
//!
//! | virtual | what | flags |
//! |---|---|---|
//! | `0xffff_8880_…` (the loader says) | all physical memory | RW, NX |
//! | [`VMALLOC_START`] to [`VMALLOC_END`] | what `mm` maps page by page | as asked, W^X |
//! | [`stacks::WINDOW`] | stacks of each CPU, with guard pages | RW, NX |
//! | top 2 GiB | the kernel image | its segments' own, W^X |
//!
//! - PAGING-1: no page is both writable and executable.
//! - PAGING-2: a table, once linked, stays for ever, so a walk needs no lock. Two CPUs that need the
//!   same table each bring a frame; the one whose compare-exchange loses keeps its frame for the
//!   next table ([`SPARES`]).
//! - PAGING-3: an entry for a page is changed by the owner of that address only; whoever unmaps
//!   flushes, and sees to it that other CPUs do.
//!
//! Context: any but NMI for `map` and `unmap`; any for the rest. Answers to `arch/x86/mm/pgtable.c`
//! and `mm/vmalloc.c` (`vmap_pages_range`) of Linux.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::tlb;
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::PageTableFlags as Entry;
use x86_64::{PhysAddr, VirtAddr};

use super::stacks;
use crate::paging::{Flags, MapError};
use crate::{MAX_CPUS, PAGE_SIZE};

/// First address of the window in which `mm` maps pages.
pub const VMALLOC_START: VirtAddr = VirtAddr::new(0xffff_c900_0000_0000);
/// First address behind it: 512 GiB, one entry of the top table.
pub const VMALLOC_END: VirtAddr = VirtAddr::new(0xffff_c980_0000_0000);
const STACKS_END: u64 = stacks::WINDOW + MAX_CPUS as u64 * 0x4_0000;

/// Longest map of physical memory: 64 TiB, up to the vmalloc window.
const PHYS_MAP_SIZE: u64 = 1 << 46;
/// Address bits of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Tables from the top: 512 GiB, 1 GiB, 2 MiB and 4 KiB an entry.
const SHIFTS: [u32; 4] = [39, 30, 21, 12];

/// Where physical address 0 is mapped. Written once by [`init`].
static PHYS_OFFSET: AtomicU64 = AtomicU64::new(0);
/// Frames brought for a table that another CPU was first to link: a list through their first
/// words, 0 at its end. Taken as a whole, so a frame cannot come back while it is looked at.
static SPARES: AtomicU64 = AtomicU64::new(0);

/// Context: boot CPU, first of all.
pub(super) fn init(phys_offset: VirtAddr) {
    PHYS_OFFSET.store(phys_offset.as_u64(), Ordering::Relaxed);
}

/// Address at which this physical address can be read and written.
#[inline]
pub fn phys_to_virt(phys: PhysAddr) -> VirtAddr {
    VirtAddr::new_truncate(PHYS_OFFSET.load(Ordering::Relaxed) + phys.as_u64())
}

/// The physical address behind a virtual one; `None` if nothing is mapped there.
///
/// Constant time in the map of physical memory, a walk elsewhere.
#[inline]
pub fn virt_to_phys(virt: VirtAddr) -> Option<PhysAddr> {
    let offset = virt.as_u64().wrapping_sub(PHYS_OFFSET.load(Ordering::Relaxed));
    if offset < PHYS_MAP_SIZE { Some(PhysAddr::new(offset)) } else { translate(virt) }
}

/// Maps one page.
///
/// # Errors
/// [`MapError`]; nothing was changed, but tables may have been added.
///
/// # Panics
/// If the page is to be both writable and executable (PAGING-1).
///
/// # Safety
/// The caller owns the page and what `phys` is mapped to, and nobody relies on the page being
/// absent; `frame` yields free memory, handed over for good.
pub unsafe fn map(
    virt: VirtAddr,
    phys: PhysAddr,
    flags: Flags,
    frame: &mut dyn FnMut() -> Option<PhysAddr>,
) -> Result<(), MapError> {
    assert!(!flags.contains(Flags::WRITE | Flags::EXECUTE), "PAGING-1: writable and executable");
    let in_window =
        (VMALLOC_START..VMALLOC_END).contains(&virt) || (stacks::WINDOW..STACKS_END).contains(&virt.as_u64());
    if !in_window || !virt.is_aligned(PAGE_SIZE as u64) || !phys.is_aligned(PAGE_SIZE as u64) {
        return Err(MapError::BadAddress);
    }
    let mut table = top_table();
    for shift in &SHIFTS[..3] {
        table = next_table(entry(table, virt, *shift), frame)?;
    }
    let mut bits = Entry::PRESENT;
    bits.set(Entry::WRITABLE, flags.contains(Flags::WRITE));
    bits.set(Entry::NO_EXECUTE, !flags.contains(Flags::EXECUTE));
    // Release: the page is visible to whoever's walk sees the entry, as the processor's do.
    entry(table, virt, SHIFTS[3])
        .compare_exchange(0, phys.as_u64() | bits.bits(), Ordering::Release, Ordering::Relaxed)
        .map_or(Err(MapError::AlreadyMapped), |_| Ok(()))
}

/// Takes a page out of the tables and returns what was mapped there. Flushes nothing.
///
/// # Safety
/// Nobody uses the page any more. The frame is not used for anything else until every CPU has
/// flushed the page (PAGING-3).
pub unsafe fn unmap(virt: VirtAddr) -> Option<PhysAddr> {
    let mut table = top_table();
    for shift in &SHIFTS[..3] {
        // Acquire: pairs with the Release of the exchange that linked the table.
        let bits = entry(table, virt, *shift).load(Ordering::Acquire);
        if !is_present(bits) || is_huge(bits) {
            return None;
        }
        table = bits & FRAME;
    }
    // AcqRel: the owner's last use of the page comes before, its reuse after.
    let bits = entry(table, virt, SHIFTS[3]).swap(0, Ordering::AcqRel);
    is_present(bits).then(|| PhysAddr::new(bits & FRAME))
}

/// Drops what this CPU remembers about one page.
#[inline]
pub fn flush_local(virt: VirtAddr) {
    tlb::flush(virt);
}

/// Drops what this CPU remembers about all pages.
#[inline]
pub fn flush_all_local() {
    tlb::flush_all();
}

/// Walks the tables in software. Huge pages are understood.
pub(crate) fn translate(virt: VirtAddr) -> Option<PhysAddr> {
    let mut table = top_table();
    for shift in SHIFTS {
        // Acquire: as in `unmap`.
        let bits = entry(table, virt, shift).load(Ordering::Acquire);
        if !is_present(bits) {
            return None;
        }
        if shift == SHIFTS[3] || is_huge(bits) {
            let within = (1u64 << shift) - 1;
            return Some(PhysAddr::new((bits & FRAME & !within) | (virt.as_u64() & within)));
        }
        table = bits & FRAME;
    }
    None
}

/// Takes the loader's one-to-one mapping out, so that address 0 and its neighbours fault.
///
/// # Safety
/// Nothing of the loader is used any more: not its code, its stack, its descriptor tables.
pub(super) unsafe fn drop_identity_map() {
    entry(top_table(), VirtAddr::zero(), SHIFTS[0]).store(0, Ordering::Relaxed);
    flush_all_local();
}

/// Physical address of the top table.
pub(super) fn top_table() -> u64 {
    Cr3::read().0.start_address().as_u64()
}

fn is_present(bits: u64) -> bool {
    bits & Entry::PRESENT.bits() != 0
}

fn is_huge(bits: u64) -> bool {
    bits & Entry::HUGE_PAGE.bits() != 0
}

/// The entry for `virt` in the table at physical address `table`.
fn entry(table: u64, virt: VirtAddr, shift: u32) -> &'static AtomicU64 {
    let index = (virt.as_u64() >> shift) & 0x1ff;
    let address = phys_to_virt(PhysAddr::new(table + index * 8));
    // SAFETY: a linked table is a frame that stays for ever (PAGING-2), seen through the physical
    // map; its entries are changed by atomic accesses only (and by the processor's own).
    unsafe { &*address.as_ptr::<AtomicU64>() }
}

/// Physical address of the table that `slot` links, linking a new one if there is none.
fn next_table(slot: &AtomicU64, frame: &mut dyn FnMut() -> Option<PhysAddr>) -> Result<u64, MapError> {
    // Acquire: pairs with the Release below; the table is seen zeroed.
    let bits = slot.load(Ordering::Acquire);
    if is_present(bits) {
        return if is_huge(bits) { Err(MapError::AlreadyMapped) } else { Ok(bits & FRAME) };
    }
    let new = match take_spare() {
        Some(spare) => spare,
        None => frame().ok_or(MapError::NoMemory)?.as_u64(),
    };
    // SAFETY: a free frame that the caller handed over, seen through the physical map.
    unsafe { phys_to_virt(PhysAddr::new(new)).as_mut_ptr::<u8>().write_bytes(0, PAGE_SIZE) };
    let link = new | (Entry::PRESENT | Entry::WRITABLE).bits();
    // Release: pairs with the Acquire loads of walks: the zeroes come before the link.
    match slot.compare_exchange(0, link, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(new),
        Err(other) => {
            put_spares(new, new);
            Ok(other & FRAME)
        }
    }
}

/// Link to the next spare frame, in the frame itself.
fn spare_link(frame: u64) -> *mut u64 {
    phys_to_virt(PhysAddr::new(frame)).as_mut_ptr()
}

/// Puts the list from `first` to `last` in front of the spares.
fn put_spares(first: u64, last: u64) {
    let mut head = SPARES.load(Ordering::Relaxed);
    loop {
        // SAFETY: the frame is ours until the exchange below succeeds.
        unsafe { spare_link(last).write(head) };
        // Release: pairs with the Acquire in `take_spare`: the links are seen with the head.
        match SPARES.compare_exchange_weak(head, first, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
}

fn take_spare() -> Option<u64> {
    if SPARES.load(Ordering::Relaxed) == 0 {
        return None;
    }
    // Acquire: pairs with the Release in `put_spares`. The whole list is ours now.
    let first = SPARES.swap(0, Ordering::Acquire);
    if first == 0 {
        return None;
    }
    // SAFETY: the frames of the list belong to whoever took it.
    let rest = unsafe { spare_link(first).read() };
    if rest != 0 {
        let mut last = rest;
        // SAFETY: as above.
        while let next @ 1.. = unsafe { spare_link(last).read() } {
            last = next;
        }
        put_spares(rest, last);
    }
    Some(first)
}
