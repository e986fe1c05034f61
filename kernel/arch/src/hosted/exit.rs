//! The end of a hosted machine: [`boot`](super::boot) returns with the reason. Outside a machine the process ends.

use super::machine::{self, Stopped};
use crate::exit::Verdict;

/// Ends the machine with a verdict. Context: any, NMI included.
pub fn debug_exit(verdict: Verdict) -> ! {
    machine::stop(Stopped::Exit(verdict))
}

/// Nobody keeps the memory of a hosted machine. Context: any, NMI included.
pub fn announce_death() {}

/// Switches the machine off. Context: any.
pub fn power_off() -> ! {
    machine::stop(Stopped::PowerOff)
}

/// Asks for a restart; the caller of [`boot`](super::boot) decides. Context: any.
pub fn reboot() -> ! {
    machine::stop(Stopped::Reboot)
}
