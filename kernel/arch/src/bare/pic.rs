//! The two legacy interrupt controllers, switched off for good.
//!
//! The BIOS leaves the timer running and its line open at vector 8, where it would look like a
//! double fault. All lines are masked; the vectors are moved out of the exceptions as well, for a
//! spurious interrupt comes through the mask. Answers to `arch/x86/kernel/i8259.c` of Linux.

use x86_64::instructions::port::Port;

const COMMAND: [u16; 2] = [0x20, 0xa0];
const DATA: [u16; 2] = [0x21, 0xa1];
/// Vectors after the move: 0x20 to 0x2f, below the first device vector.
const BASE: [u8; 2] = [0x20, 0x28];
/// How the two are wired: the second at line 2 of the first.
const WIRING: [u8; 2] = [1 << 2, 2];

/// Moves and masks all sixteen lines.
///
/// Context: boot CPU, interrupts off.
pub(super) fn disable() {
    for chip in 0..2 {
        let (mut command, mut data) = (Port::<u8>::new(COMMAND[chip]), Port::<u8>::new(DATA[chip]));
        // SAFETY: the initialisation sequence of the chip, then the mask; nobody else uses it.
        unsafe {
            command.write(0x11);
            data.write(BASE[chip]);
            data.write(WIRING[chip]);
            data.write(1);
            data.write(0xff);
        }
    }
}
