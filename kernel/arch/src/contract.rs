//! The types of the functions that both backends have, pinned: a backend that drifts does not compile.

// The types are the point here; names for them would hide it.
#![allow(clippy::type_complexity)]

use core::ops::Range;

use crate::exit::Verdict;
use crate::paging::{Flags, MapError};
use crate::topology::MemAffinity;
use crate::trap::TrapFrame;
use crate::{CpuId, CpuMask, PhysAddr, VirtAddr};
use crate::{backtrace, clock, console, exit, ipi, irq, paging, smp, timer, topology};

const _: () = {
    let _: fn() -> bool = irq::enabled;
    let _: [fn(); 4] = [irq::disable, irq::enable, irq::halt_with_irqs, irq::relax];
    let _: fn() -> ! = irq::park;
    let _: fn() -> irq::Flags = irq::save;
    let _: fn(irq::Flags) = irq::restore;
    let _: fn(irq::Flags) -> bool = irq::Flags::were_enabled;

    let _: fn(CpuId, u8) = ipi::send;
    let _: fn(&CpuMask, u8) = ipi::send_mask;
    let _: [fn(u8); 2] = [ipi::send_all_but_self, ipi::send_self];
    let _: fn(CpuId) = ipi::send_nmi;
    let _: fn() = ipi::send_nmi_all_but_self;

    let _: fn(u64) -> Option<u64> = crate::probe::read;

    let _: fn(u32) = timer::start_periodic;
    let _: fn(u64) = timer::oneshot_ns;
    let _: fn() = timer::stop;

    let _: [fn() -> u64; 2] = [clock::now_ns, clock::cycles];
    let _: fn(u64) = clock::udelay;

    let _: fn(Verdict) -> ! = exit::debug_exit;
    let _: [fn() -> !; 2] = [exit::power_off, exit::reboot];
    let _: fn() = exit::announce_death;

    let _: [fn(&[u8]); 2] = [console::write_com1, console::write_com2];
    let _: fn() -> Option<u8> = console::read_com1;

    let _: fn(u64, &mut dyn FnMut(u64)) = backtrace::walk;
    let _: fn(Range<u64>, u64, &mut dyn FnMut(u64)) = backtrace::walk_within;
    let _: fn(&mut dyn FnMut(u64)) = backtrace::current;

    let _: unsafe fn(VirtAddr, PhysAddr, Flags, &mut dyn FnMut() -> Option<PhysAddr>) -> Result<(), MapError> =
        paging::map;
    let _: unsafe fn(VirtAddr) -> Option<PhysAddr> = paging::unmap;
    let _: fn(VirtAddr) = paging::flush_local;
    let _: fn() = paging::flush_all_local;
    let _: fn(PhysAddr) -> VirtAddr = paging::phys_to_virt;
    let _: fn(VirtAddr) -> Option<PhysAddr> = paging::virt_to_phys;
    let _: [VirtAddr; 2] = [paging::VMALLOC_START, paging::VMALLOC_END];

    let _: fn() -> &'static [MemAffinity] = topology::memory_ranges;
    let _: fn(fn(CpuId), &mut dyn FnMut(CpuId) -> *mut u8) -> CpuMask = smp::start_all;

    let _: [fn(&TrapFrame) -> u64; 3] = [TrapFrame::ip, TrapFrame::sp, TrapFrame::flags];
    let _: fn(&TrapFrame) -> bool = TrapFrame::irqs_were_on;
    let _: fn(&mut TrapFrame, u64) = TrapFrame::set_ip;
};
