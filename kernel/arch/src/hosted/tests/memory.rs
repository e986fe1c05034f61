use core::sync::atomic::Ordering;
use std::vec::Vec;

use super::fixture::*;
use crate::hosted::{boot, in_own_process};
use crate::paging::{self, Flags, MapError};
use crate::trap::ExceptionKind;
use crate::{CpuMask, NodeId, PAGE_SIZE, PhysAddr, VirtAddr, cpu, topology};

/// The word at `at`.
fn word(at: VirtAddr) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut(at.as_u64() as usize)
}

#[test]
fn cpus_and_memory_are_dealt_out_to_the_nodes() {
    boot(
        5,
        2,
        MEM,
        |_| (),
        || {
            assert_eq!((cpu::present().count(), cpu::online_count(), cpu::nodes_online()), (5, 5, 0b11));
            let first: CpuMask = cpu::cpus_of(NodeId::new(0));
            assert_eq!((first.count(), cpu::cpus_of(NodeId::new(1)).count()), (3, 2));
            assert_eq!(
                (cpu::distance(NodeId::new(0), NodeId::new(0)), cpu::distance(NodeId::new(0), NodeId::new(1))),
                (10, 20)
            );
            let ranges = topology::memory_ranges();
            assert_eq!(ranges.iter().map(|r| r.node.index()).collect::<Vec<_>>(), [0, 1]);
            for range in ranges {
                assert!(range.len >= MEM as u64 && range.len.is_multiple_of(PAGE_SIZE as u64));
                for phys in [range.start, range.start + range.len - 8] {
                    let virt = paging::phys_to_virt(PhysAddr::new(phys));
                    assert_eq!(paging::virt_to_phys(virt), Some(PhysAddr::new(phys)));
                    // SAFETY: RAM that nobody uses.
                    unsafe {
                        assert_eq!(*word(virt), 0, "RAM is zero at boot");
                        *word(virt) = phys;
                    }
                }
            }
        },
    )
    .unwrap();
}

#[test]
fn a_machine_that_has_ended_leaves_nothing_behind() {
    in_own_process(|| {
        machine(4, || assert_eq!(cpu::present().count(), 4));
        assert!(topology::memory_ranges().is_empty() && cpu::present().is_empty());
        assert!(cpu::online().is_empty() && cpu::nodes_online() == 0 && crate::trap::handlers().is_none());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains("grange-ram"), "{maps}");
    });
}

#[test]
fn one_page_can_be_mapped_twice_and_faults_when_unmapped() {
    machine(1, || {
        let phys = PhysAddr::new(topology::memory_ranges()[0].start + 5 * PAGE_SIZE as u64);
        let (direct, virt) = (paging::phys_to_virt(phys), paging::VMALLOC_START + 7 * PAGE_SIZE as u64);
        let map = |virt, flags| {
            // SAFETY: a page of RAM and one of the window that nobody uses.
            unsafe { paging::map(virt, phys, flags, &mut || None) }
        };
        assert_eq!(map(virt, Flags::WRITE), Ok(()));
        assert_eq!(map(virt, Flags::WRITE), Err(MapError::AlreadyMapped));
        assert_eq!(map(paging::VMALLOC_END, Flags::WRITE), Err(MapError::BadAddress));
        // SAFETY: both are mapped, to the same page.
        unsafe {
            word(direct).write_volatile(1234);
            assert_eq!(word(virt).read_volatile(), 1234);
            word(virt).write_volatile(5678);
            assert_eq!(word(direct).read_volatile(), 5678);
        }
        assert_eq!(paging::virt_to_phys(virt + 8), Some(phys + 8));
        // SAFETY: not used any more.
        assert_eq!(unsafe { paging::unmap(virt) }, Some(phys));
        // SAFETY: as above.
        assert_eq!(unsafe { paging::unmap(virt) }, None);
        assert_eq!(paging::virt_to_phys(virt), None);

        // An access now is a page fault, whose handler may skip the instruction.
        on_exception(|frame| frame.set_ip(frame.ip() + 3));
        // SAFETY: the handler skips the three bytes of the `mov`; nothing is read.
        unsafe { core::arch::asm!("mov rax, [rdi]", in("rdi") virt.as_u64(), out("rax") _) };
        let seen = EXCEPTION.load(Ordering::Acquire);
        assert_eq!(seen as u8, ExceptionKind::PageFault as u8);
        assert_eq!(seen >> 8, virt.as_u64());
        // A mapping without WRITE cannot be written.
        assert_eq!(map(virt, Flags::empty()), Ok(()));
        EXCEPTION.store(0, Ordering::Release);
        // SAFETY: as above.
        unsafe { core::arch::asm!("mov [rdi], rax", in("rdi") virt.as_u64()) };
        assert_eq!(EXCEPTION.load(Ordering::Acquire) >> 8, virt.as_u64());
    });
}

#[test]
fn exceptions_are_told_apart() {
    machine(1, || {
        on_exception(|frame| frame.set_ip(frame.ip() + 2));
        // SAFETY: `ud2` is two bytes, which the handler skips.
        unsafe { core::arch::asm!("ud2") };
        assert_eq!(EXCEPTION.load(Ordering::Acquire), ExceptionKind::InvalidOpcode as u64);
        // SAFETY: `div cl` is two bytes and leaves ax alone when it faults.
        unsafe { core::arch::asm!("div cl", in("cl") 0u8, inout("ax") 1u16 => _) };
        assert_eq!(EXCEPTION.load(Ordering::Acquire), ExceptionKind::DivideError as u64);
        on_exception(|_| ());
        // SAFETY: a breakpoint is reported behind itself.
        unsafe { core::arch::asm!("int3") };
        assert_eq!(EXCEPTION.load(Ordering::Acquire), ExceptionKind::Breakpoint as u64);
    });
}
