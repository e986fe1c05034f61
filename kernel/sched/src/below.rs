//! What the storeys below this one do when a CPU goes: they cannot register for themselves.
//!
//! `sync` keeps nothing on a CPU that needs a notifier: its lists are emptied on the way into the parked state and closed
//! (`IW-4`, `CF-4`). `mm` has page lists.

use arch::CpuId;
use sync::MaySleep;

use crate::notifier::{self, Notifier, Order};

static MM: Notifier = Notifier::new("mm", Order::MM).dead(mm_dead);

/// Registers them. Context: boot.
pub(crate) fn register() {
    notifier::register(&MM);
}

fn mm_dead(cpu: CpuId, _: &mut MaySleep) {
    // SAFETY: a notifier's `dead` is called while the CPU is parked, by the one thread that could wake it.
    unsafe { mm::drain_parked(cpu) };
}
