//! TLB shoot-down: no CPU may go on using a translation that has been taken away.
//!
//! Linux 6.12: arch/x86/mm/tlb.c (`flush_tlb_kernel_range`).

use arch::{PAGE_SIZE, VirtAddr, cpu, paging, vector};

use crate::smp;

/// From how many pages on the whole TLB is dropped instead of single entries.
///
/// One entry costs about 140 ns under emulation, all of them 2,000 ns and the misses after.
pub const FLUSH_ALL_PAGES: usize = 33;

/// Pages of which nobody may hold a translation any more.
struct Range {
    start: VirtAddr,
    pages: usize,
}

/// Drops the translations of `pages` pages from `start` on, on every CPU, and returns when all
/// have done so. The page tables have been changed before.
///
/// Context: task, interrupts on (`CF-3`).
///
/// # Panics
/// In the wrong context.
#[track_caller]
pub fn shoot_down(start: VirtAddr, pages: usize) {
    fn flush(range: usize) {
        // SAFETY: the caller waits for all answers, so the range lives, and nobody writes it.
        let range = unsafe { &*core::ptr::with_exposed_provenance::<Range>(range) };
        flush_here(range.start, range.pages);
    }
    let range = Range { start, pages };
    smp::call_with_vector(&cpu::online(), flush, (&raw const range).expose_provenance(), true, vector::TLB);
}

/// The same on this CPU alone.
///
/// Context: any, pinned.
pub fn flush_here(start: VirtAddr, pages: usize) {
    if pages >= FLUSH_ALL_PAGES {
        paging::flush_all_local();
    } else {
        for page in 0..pages {
            paging::flush_local(start + (page * PAGE_SIZE) as u64);
        }
    }
}
