//! Offloading, switched to and fro while callbacks of all CPUs come and go.
//!
//! Linux: `rcu_nocb_toggle` in kernel/rcu/rcutorture.c; row C-7.

use core::sync::atomic::Ordering;

use arch::{CpuMask, cpu};
use rcu::nocb::{OffloadError, deoffload, offload, offloaded};
use sync::{MaySleep, Rng};

use super::Torture;
use crate::torture::control;
use crate::{Failure, ensure};

impl Torture {
    /// A thread that offloads a CPU, or takes that back, again and again.
    pub(super) fn toggle_offloading(&self, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        while !control::rest(cx, self.setup.toggle_ns / 2 + rng.below(self.setup.toggle_ns)) {
            let present = cpu::present();
            let cpu = present.iter().nth(rng.index(present.count())).expect("there is one");
            let result = if rng.chance(1, 2) { offload(cpu, cx) } else { deoffload(cpu, cx) };
            match result {
                Ok(()) => self.toggles.fetch_add(1, Ordering::Relaxed),
                // Its threads need memory, which may be short on purpose.
                Err(OffloadError::NoMemory) => continue,
                Err(error) => return Err(crate::__failed!("CPU {cpu}: {error}")),
            };
        }
        Ok(())
    }
}

/// Has exactly the CPUs of `wanted` offloaded.
pub(super) fn restore(wanted: CpuMask, cx: &mut MaySleep) -> Result<(), Failure> {
    for cpu in (offloaded() - wanted).iter() {
        ensure!(deoffload(cpu, cx).is_ok());
    }
    for cpu in (wanted - offloaded()).iter() {
        ensure!(offload(cpu, cx).is_ok());
    }
    Ok(())
}
