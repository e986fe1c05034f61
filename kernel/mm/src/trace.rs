//! Memory for the rings of trace records (`sync::trace`), which is taken when tracing is first switched on.

use core::ptr::NonNull;

use arch::{CpuId, PAGE_SIZE, cpu};
use sync::trace::{self, Block};

use crate::{AllocError, AllocFlags, alloc_pages};

/// Gives every CPU that may come online the memory of its trace ring, near it, unless it has it. It is kept for good.
///
/// Context: task, softirq, hardirq; one call at a time.
///
/// # Errors
/// The first CPU that got none; those before it keep theirs.
pub fn bring_memory() -> Result<(), CpuId> {
    cpu::present().iter().filter(|&cpu| !trace::is_installed(cpu)).try_for_each(|cpu| bring(cpu).map_err(|_| cpu))
}

fn bring(cpu: CpuId) -> Result<(), AllocError> {
    let bytes = (trace::KIB.get() as usize * 1024).next_power_of_two();
    let order = (bytes / PAGE_SIZE).ilog2() as usize;
    let page = alloc_pages(order, Some(cpu::node_of(cpu)), AllocFlags::ZERO)?;
    let memory = NonNull::new(page.virt()).ok_or(AllocError)?;
    // SAFETY: fresh pages of that many bytes in one piece, zeroed, never given back.
    let block = unsafe { Block::make(memory, bytes, page.phys().as_u64(), cpu.index()) };
    trace::install(cpu, block);
    Ok(())
}
