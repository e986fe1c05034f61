//! How far a starting CPU has come, and who may say so: the part of `smp` that two CPUs decide at once.
//!
//! ```text
//! UNUSED ──boot──▶ WAITING ──the CPU──▶ ARRIVED ──the CPU──▶ UP
//!                     │                    │
//!                     └──boot, out of ─────┴──▶ GIVEN_UP
//!                           patience
//! ```
//!
//! - START-1: each arrow is one compare-exchange on one word, so of a CPU that goes on and a boot CPU that gives it up
//!   exactly one wins: a CPU is either up, or reported missing and halted for good. Never both, never neither.
//! - START-2: patience ends only when both much time has passed and the boot CPU has let others run many times,
//!   without any progress. Time alone says nothing where a host runs: it may have run nobody but the boot CPU.
//!
//! Pure but for its atomics; tested on the host at every order of the steps.
//!
//! Context: any.

use core::sync::atomic::{AtomicU32, Ordering};

const UNUSED: u32 = 0;
/// The CPU may come. Known to the entry code.
pub(super) const WAITING: u32 = 1;
/// The CPU has taken its slot. Known to the entry code.
pub(super) const ARRIVED: u32 = 2;
const UP: u32 = 3;
const GIVEN_UP: u32 = 4;

/// No progress for this long, and for [`PATIENCE_ROUNDS`]: the rest does not come.
const PATIENCE_NS: u64 = 10_000_000_000;
/// Rounds of waiting, each with at least one PAUSE, at which an emulator lets another CPU run.
const PATIENCE_ROUNDS: u32 = 10_000;

/// The state of one CPU's slot.
#[repr(transparent)]
pub(super) struct StartState(AtomicU32);

/// What came of giving a CPU up.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum GiveUp {
    /// It is up after all.
    Up,
    /// It has never been seen, and will be turned away if it comes.
    DidNotAnswer,
    /// It came, and will halt where it would have gone on.
    Stopped,
}

impl StartState {
    pub(super) const fn new() -> Self {
        Self(AtomicU32::new(UNUSED))
    }

    /// The boot CPU: the slot is filled, its CPU may take it.
    pub(super) fn expect_cpu(&self) {
        // Release: pairs with the locked exchange in the entry code (`take`): the CPU that takes the slot sees what is
        // in it, and everything that the boot CPU has set up so far.
        self.0.store(WAITING, Ordering::Release);
    }

    /// The CPU has set itself up and wants to go on. False: it was given up, and halts (START-1).
    pub(super) fn come_up(&self) -> bool {
        // Release: pairs with the Acquire loads of `is_up` and `give_up`: UP is seen with all that the CPU did before.
        self.0.compare_exchange(ARRIVED, UP, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// The boot CPU is out of patience, or all are there. Afterwards the state does not change any more.
    pub(super) fn give_up(&self) -> GiveUp {
        // Acquire on failure: pairs with the Release in `come_up`. Otherwise the one word says it all (START-1).
        let turn_away = |from| self.0.compare_exchange(from, GIVEN_UP, Ordering::Relaxed, Ordering::Acquire);
        match turn_away(WAITING) {
            Ok(_) => return GiveUp::DidNotAnswer,
            Err(UP) => return GiveUp::Up,
            // It has come; from here it can only come up.
            Err(_) => {}
        }
        match turn_away(ARRIVED) {
            Err(UP) => GiveUp::Up,
            _ => GiveUp::Stopped,
        }
    }

    /// Whether the CPU has taken its slot.
    pub(super) fn has_arrived(&self) -> bool {
        matches!(self.0.load(Ordering::Relaxed), ARRIVED | UP)
    }

    /// Whether the CPU runs. If so, what it wrote before is seen.
    pub(super) fn is_up(&self) -> bool {
        // Acquire: pairs with the Release in `come_up`.
        self.0.load(Ordering::Acquire) == UP
    }

    /// What the entry code does in assembler: the CPU takes its slot, or does not find it waiting.
    #[cfg(test)]
    fn take(&self) -> bool {
        self.0.compare_exchange(WAITING, ARRIVED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// How long the boot CPU goes on waiting (START-2).
#[derive(Debug)]
pub(super) struct Patience {
    progress: usize,
    deadline_ns: u64,
    rounds: u32,
}

impl Patience {
    pub(super) const fn new(now_ns: u64) -> Self {
        Self { progress: 0, deadline_ns: now_ns + PATIENCE_NS, rounds: 0 }
    }

    /// One round of waiting is over, with this much done so far. False: enough.
    pub(super) fn goes_on(&mut self, now_ns: u64, progress: usize) -> bool {
        if progress > self.progress {
            *self = Self { progress, ..Self::new(now_ns) };
        }
        self.rounds = self.rounds.saturating_add(1);
        now_ns < self.deadline_ns || self.rounds < PATIENCE_ROUNDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the CPU's two steps with the boot CPU's `give_up` before step `at` of them.
    /// Returns whether the CPU goes on, and what the boot CPU believes.
    fn given_up_before_step(at: usize) -> (bool, GiveUp) {
        let state = StartState::new();
        state.expect_cpu();
        let mut outcome = None;
        let steps: [fn(&StartState) -> bool; 2] = [StartState::take, StartState::come_up];
        let mut goes_on = true;
        for (index, step) in steps.into_iter().enumerate() {
            if index == at {
                outcome = Some(state.give_up());
            }
            goes_on = goes_on && step(&state);
        }
        (goes_on, outcome.unwrap_or_else(|| state.give_up()))
    }

    #[test]
    fn a_cpu_is_either_up_or_given_up_whenever_patience_ends() {
        assert_eq!(given_up_before_step(0), (false, GiveUp::DidNotAnswer));
        assert_eq!(given_up_before_step(1), (false, GiveUp::Stopped));
        assert_eq!(given_up_before_step(2), (true, GiveUp::Up));
    }

    #[test]
    fn a_cpu_that_comes_between_the_two_looks_of_give_up_is_still_decided_once() {
        extern crate std;
        for round in 0..if cfg!(miri) { 20 } else { 2_000 } {
            let state = StartState::new();
            state.expect_cpu();
            let (goes_on, outcome) = std::thread::scope(|scope| {
                let cpu = scope.spawn(|| state.take() && state.come_up());
                for _ in 0..round % 64 {
                    core::hint::spin_loop();
                }
                let outcome = state.give_up();
                (cpu.join().unwrap(), outcome)
            });
            assert_eq!(goes_on, outcome == GiveUp::Up, "{outcome:?}");
            assert_eq!((state.is_up(), state.has_arrived()), (goes_on, goes_on));
        }
    }

    #[test]
    fn an_unused_slot_is_taken_by_nobody() {
        assert!(!StartState::new().take());
    }

    #[test]
    fn a_slot_is_taken_once() {
        let state = StartState::new();
        state.expect_cpu();
        assert!(state.take() && !state.take());
        assert!(state.has_arrived() && !state.is_up());
    }

    #[test]
    fn much_time_in_few_rounds_does_not_end_the_patience() {
        let mut patience = Patience::new(0);
        for _ in 1..PATIENCE_ROUNDS {
            assert!(patience.goes_on(100 * PATIENCE_NS, 0));
        }
        assert!(!patience.goes_on(100 * PATIENCE_NS, 0));
    }

    #[test]
    fn many_rounds_in_little_time_do_not_end_the_patience() {
        let mut patience = Patience::new(5);
        for _ in 0..2 * PATIENCE_ROUNDS {
            assert!(patience.goes_on(PATIENCE_NS + 4, 0));
        }
        assert!(!patience.goes_on(PATIENCE_NS + 5, 0));
    }

    #[test]
    fn progress_starts_both_anew() {
        let mut patience = Patience::new(0);
        for _ in 0..2 * PATIENCE_ROUNDS {
            patience.goes_on(PATIENCE_NS - 1, 0);
        }
        assert!(patience.goes_on(PATIENCE_NS, 1), "the first CPU came");
        for _ in 0..2 * PATIENCE_ROUNDS {
            assert!(patience.goes_on(2 * PATIENCE_NS - 1, 1));
        }
        assert!(!patience.goes_on(2 * PATIENCE_NS, 1));
    }
}
