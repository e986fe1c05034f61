//! A fault in the loader, or in the kernel before it has an IDT of its own, would be a triple fault:
//! QEMU ends with status 0 and says nothing. These handlers say which exception, where, and leave by
//! debug-exit.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ptr::addr_of;

use x86_64::VirtAddr;
use x86_64::instructions::tables::load_tss;
use x86_64::registers::control::Cr2;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

/// The exceptions of the architecture.
const VECTORS: usize = 32;

/// Bytes of one stub in `fault_stubs`.
const STUB_SIZE: u64 = 16;

global_asm!(
    r#"
    .text
    .balign 16
fault_stubs:
    .set vector, 0
    .rept {vectors}
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    push 0                          // these push no error code of their own
    .endif
    push vector
    jmp fault_common
    .set vector, vector + 1
    .endr
fault_common:
    cld
    mov rdi, rsp
    and rsp, -16
    call {report}
    ud2
    "#,
    vectors = const VECTORS,
    report = sym report,
);

unsafe extern "C" {
    static fault_stubs: u8;
}

/// What the stubs and the CPU leave on the stack.
#[repr(C)]
struct Frame {
    vector: u64,
    error: u64,
    ip: u64,
    _cs: u64,
    _flags: u64,
    sp: u64,
}

/// Everything the handlers need: the tables, and a stack for the case that the stack is the problem.
struct Tables {
    idt: InterruptDescriptorTable,
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
    stack: [u8; 4096],
}

struct Place(UnsafeCell<Tables>);

// SAFETY: written once by `install`, on the only CPU, before it is loaded.
unsafe impl Sync for Place {}

static TABLES: Place = Place(UnsafeCell::new(Tables {
    idt: InterruptDescriptorTable::new(),
    gdt: GlobalDescriptorTable::new(),
    tss: TaskStateSegment::new(),
    stack: [0; 4096],
}));

/// Loads the handlers. They stay in force until the kernel loads its own.
pub(crate) fn install() {
    let stub = |vector: u64| VirtAddr::new(addr_of!(fault_stubs) as u64 + vector * STUB_SIZE);
    // SAFETY: one CPU, called once: nobody else looks at the tables, and they are static.
    let tables = unsafe { &mut *TABLES.0.get() };

    // A double fault (a stack that ran into its guard page) gets a stack of its own. The first two
    // descriptors are the ones the entry code runs on, in the same places.
    let stack_top = VirtAddr::from_ptr(&raw const tables.stack) + tables.stack.len() as u64;
    tables.tss.interrupt_stack_table[0] = stack_top;
    tables.gdt.append(Descriptor::kernel_code_segment());
    tables.gdt.append(Descriptor::kernel_data_segment());
    // SAFETY: the TSS is static.
    let task = tables.gdt.append(unsafe { Descriptor::tss_segment_unchecked(&raw const tables.tss) });

    // SAFETY: each address is that of a stub which builds the `Frame` that `report` reads. The
    // tables are static and stay mapped; code and data selectors mean what they meant before.
    unsafe {
        tables.gdt.load_unsafe();
        load_tss(task);
        let idt = &mut tables.idt;
        idt.divide_error.set_handler_addr(stub(0));
        idt.debug.set_handler_addr(stub(1));
        idt.non_maskable_interrupt.set_handler_addr(stub(2));
        idt.breakpoint.set_handler_addr(stub(3));
        idt.overflow.set_handler_addr(stub(4));
        idt.bound_range_exceeded.set_handler_addr(stub(5));
        idt.invalid_opcode.set_handler_addr(stub(6));
        idt.device_not_available.set_handler_addr(stub(7));
        idt.double_fault.set_handler_addr(stub(8)).set_stack_index(0);
        idt.invalid_tss.set_handler_addr(stub(10));
        idt.segment_not_present.set_handler_addr(stub(11));
        idt.stack_segment_fault.set_handler_addr(stub(12));
        idt.general_protection_fault.set_handler_addr(stub(13));
        idt.page_fault.set_handler_addr(stub(14));
        idt.x87_floating_point.set_handler_addr(stub(16));
        idt.alignment_check.set_handler_addr(stub(17));
        idt.machine_check.set_handler_addr(stub(18));
        idt.simd_floating_point.set_handler_addr(stub(19));
        idt.load_unsafe();
    }
}

/// Prints what is known and ends the machine.
extern "C" fn report(frame: &Frame) -> ! {
    crate::die(format_args!(
        "exception {} (error code {:#x}) at {:#x}, address {:#x}, stack {:#x}, before the kernel could handle it",
        frame.vector,
        frame.error,
        frame.ip,
        Cr2::read_raw(),
        frame.sp,
    ))
}
