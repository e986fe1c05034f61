//! Sites of static branches, and the byte of text that is changed at each: see [`crate::static_branch`].

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering};

use x86_64::VirtAddr;

use super::paging;
use crate::static_branch::StaticKey;

/// `test eax, imm32`: falls through.
const TEST: u8 = 0xa9;
/// `jmp rel32`.
const JUMP: u8 = 0xe9;

/// An element of the section `grange_branches`.
#[derive(Debug)]
#[repr(C)]
pub struct Site {
    /// Address of the instruction.
    at: u64,
    /// Address of its key.
    key: u64,
}

// The section is there even if nothing has a branch.
global_asm!(".pushsection grange_branches, \"a\", @progbits", ".balign 8", ".popsection");

unsafe extern "C" {
    #[link_name = "__start_grange_branches"]
    static FIRST: Site;
    #[link_name = "__stop_grange_branches"]
    static END: Site;
}

/// Whether the key, a path to a static, is on: one instruction, predicted off. See [`crate::static_branch`].
#[macro_export]
macro_rules! static_branch {
    ($key:path) => {
        '__branch: {
            const { $crate::static_branch::is_key(&raw const $key) };
            // SAFETY: two instructions, of which the text holds one at a time (SB-1); both leave everything but the flags
            // alone, and the jump goes to the label. The section is a list of addresses.
            unsafe {
                ::core::arch::asm!(
                    "2: .byte 0xa9",
                    ".long {on} - 3f",
                    "3:",
                    ".pushsection grange_branches, \"a\", @progbits",
                    ".balign 8",
                    ".quad 2b, {key}",
                    ".popsection",
                    key = sym $key,
                    on = label { break '__branch true },
                    options(nomem, nostack)
                );
            }
            false
        }
    };
}

/// All sites.
///
/// Context: any.
pub fn sites() -> &'static [Site] {
    let (first, end) = (&raw const FIRST, &raw const END);
    // SAFETY: the linker's bounds of the section, which holds sites only (SB-2) and is never written.
    unsafe { core::slice::from_raw_parts(first, (end.addr() - first.addr()) / size_of::<Site>()) }
}

/// Changes the instruction of all sites of `key`.
pub(crate) fn patch(key: &'static StaticKey, on: bool) {
    let (old, new) = if on { (TEST, JUMP) } else { (JUMP, TEST) };
    for site in sites().iter().filter(|site| site.key == ptr::from_ref(key).addr() as u64) {
        let phys = paging::translate(VirtAddr::new_truncate(site.at)).expect("SB-2: a site lies in the kernel's text");
        let alias = paging::phys_to_virt(phys).as_mut_ptr::<u8>();
        // SAFETY: a byte of RAM, mapped for good; text is written by nobody else.
        let opcode = unsafe { AtomicU8::from_ptr(alias) };
        let found = opcode.load(Ordering::Relaxed);
        assert!(found == old || found == new, "SB-1: {found:#04x} at {:#x} is no static branch", site.at);
        opcode.store(new, Ordering::Relaxed);
    }
    serialize();
}

/// What this CPU executes from here on is what text holds now (SB-4).
///
/// Context: any.
pub fn serialize() {
    // SAFETY: CPUID serialises; it changes the four registers that it returns its answer in, and rbx is put back.
    unsafe {
        asm!("push rbx", "cpuid", "pop rbx", inout("eax") 0 => _, out("ecx") _, out("edx") _, options(nomem));
    }
}
