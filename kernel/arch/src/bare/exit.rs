//! The end of the machine: verdict, power-off, reset.
//!
//! Context of everything here: any.

use core::sync::atomic::{AtomicU16, Ordering};

use x86_64::instructions::port::Port;

use super::irq;
use crate::exit::Verdict;

/// Port of QEMU's `isa-debug-exit` device.
const DEBUG_EXIT: u16 = 0xf4;
/// Port of QEMU's `pvpanic` device, and its bit for "the kernel has panicked": read it says that the device is there.
const PVPANIC: u16 = 0x505;
const PANICKED: u8 = 1;
/// Port of the reset control register.
const RESET_CONTROL: u16 = 0xcf9;
/// Ports of PM1a_CNT to try where no FADT names one: `q35`, then `pc`.
const POWER_PORTS: [u16; 2] = [0x604, 0xb004];
/// SLP_EN with sleep type 0, which is soft-off in QEMU.
const SLEEP: u16 = 1 << 13;

/// PM1a_CNT as the FADT names it; 0: not named. Written once by topology discovery.
static POWER_PORT: AtomicU16 = AtomicU16::new(0);

pub(super) fn set_power_port(port: u16) {
    POWER_PORT.store(port, Ordering::Relaxed);
}

/// Ends QEMU with the verdict as its exit status (`2 * verdict + 1`). Where there is no debug-exit
/// device the machine is switched off.
pub fn debug_exit(verdict: Verdict) -> ! {
    // SAFETY: the device ends the machine; where it is absent the port is not connected.
    unsafe { Port::new(DEBUG_EXIT).write(u32::from(verdict as u8)) };
    power_off()
}

/// Tells whoever runs the machine that the kernel is dying, while all is still as it was: under `xtask` QEMU then holds
/// every CPU until the memory has been saved, and lets them go on. Nothing happens where nobody listens.
pub fn announce_death() {
    let mut port = Port::<u8>::new(PVPANIC);
    // SAFETY: reading it says which events the device knows; where it is absent all bits are set.
    let known = unsafe { port.read() };
    if known & PANICKED != 0 && known != u8::MAX {
        // SAFETY: the device tells QEMU, and does nothing to the machine's memory.
        unsafe { port.write(PANICKED) };
    }
}

/// Switches the machine off (ACPI S5). Halts if that does not work.
pub fn power_off() -> ! {
    let named = POWER_PORT.load(Ordering::Relaxed);
    for port in [named].into_iter().filter(|&port| port != 0).chain(POWER_PORTS) {
        // SAFETY: the power-management control port; elsewhere it is not connected.
        unsafe { Port::new(port).write(SLEEP) };
    }
    irq::park()
}

/// Resets the machine. Halts if that does not work.
pub fn reboot() -> ! {
    for step in [0x02u8, 0x06] {
        // SAFETY: first chooses, then triggers, a hard reset.
        unsafe { Port::new(RESET_CONTROL).write(step) };
    }
    irq::park()
}
