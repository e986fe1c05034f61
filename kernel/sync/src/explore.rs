//! Seeded PAUSE points: places in lock and list code where another CPU may come in between.
//!
//! An emulator that runs all CPUs on one host thread changes from one CPU to the next only at a PAUSE, a halt, an access
//! to a device or a timer's deadline. So most orders of two CPUs never happen. With the feature `explore` each
//! [`point`] pauses at random, one time in `grange.explore=`; the seed decides where. Where instructions are counted, too
//! (deterministic runs), a seed is a schedule: another seed, another one, and the same seed the same again.
//!
//! Without the feature [`ENABLED`] is false, and a point is no code at all.
//!
//! Where the points are: spin locks (before a try, after it, after the release), local locks, the lock-less list
//! (between look and exchange), sequence counters (around a write, inside a read), calls to other CPUs, and wake-ups. What
//! they find is what a PAUSE can show: no store is ever seen late by them.
//!
//! # Invariants
//!
//! - `EX-1` Numbers of a CPU come from its own generator, so where one CPU pauses does not depend on how often another one
//!   passed a point. A thread that is moved in the middle of a point carries a state along; that harms nothing.

use arch::cpu::{self, CpuId};

use crate::{param, rng::Rng};

/// Whether this build has points.
pub const ENABLED: bool = cfg!(feature = "explore");

param! {
    /// Of how many exploration points one pauses, at random; 0: none. For kernels with the feature `explore`.
    pub static ONE_IN: u32 = "grange.explore", default 64, in 0..=1_000_000;
}

arch::per_cpu! {
    /// State of this CPU's generator; 0 until [`init`], and nothing pauses.
    static STATE: u64 = 0;
}

/// Seeds the points of every CPU that is present; from here on they pause.
///
/// Context: boot CPU, once, when all per-CPU areas are there.
pub fn init(seed: u64) {
    if !ENABLED || ONE_IN.get() == 0 {
        return;
    }
    for cpu in cpu::present().iter() {
        // SAFETY: the areas of present CPUs are there and stay; no other CPU runs yet, and this one is not inside a
        // point.
        unsafe { *STATE.ptr_on(cpu) = first_state(seed, cpu) };
    }
}

/// Where a CPU's generator begins; never 0, which it would never leave.
fn first_state(seed: u64, cpu: CpuId) -> u64 {
    Rng::stream(seed, cpu.index() as u64).next_u64() | 1
}

/// Here another CPU may come in between.
///
/// Context: any, NMI included. Wait-free; touches this CPU's own area only.
#[inline(always)]
pub fn point() {
    if ENABLED {
        pause_at_random();
    }
}

#[inline(never)]
fn pause_at_random() {
    let state = STATE.get();
    if state == 0 {
        return;
    }
    let state = next(state);
    STATE.set(state);
    if hits(state, ONE_IN.get()) {
        arch::irq::relax();
    }
}

/// One step of xorshift64: a handful of instructions, period 2^64 - 1.
const fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    state
}

/// True for one state in `one_in`.
const fn hits(state: u64, one_in: u32) -> bool {
    ((state >> 32) * one_in as u64) >> 32 == 0
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn pauses(seed: u64, cpu: usize, one_in: u32) -> Vec<usize> {
        let mut state = first_state(seed, CpuId::new(cpu));
        let step = |at: usize| {
            state = next(state);
            hits(state, one_in).then_some(at)
        };
        (0..64_000).filter_map(step).collect()
    }

    #[test]
    fn a_seed_fixes_where_each_cpu_pauses_and_another_seed_or_cpu_pauses_elsewhere() {
        assert_eq!(pauses(7, 0, 64), pauses(7, 0, 64));
        assert_ne!(pauses(7, 0, 64), pauses(8, 0, 64));
        assert_ne!(pauses(7, 0, 64), pauses(7, 1, 64));
    }

    #[test]
    fn about_one_point_in_so_many_pauses() {
        for one_in in [2, 64, 1000] {
            let expected = 64_000 / one_in as usize;
            let found = pauses(3, 2, one_in).len();
            assert!((expected / 2..expected * 2).contains(&found), "1 in {one_in}: {found}");
        }
        assert_eq!(pauses(3, 2, 1).len(), 64_000);
    }
}
