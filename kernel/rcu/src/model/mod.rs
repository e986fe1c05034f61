//! The machine of loom's models: what the storeys below offer, by the same names, over loom's types.
//!
//! A module that is model-checked says `#[cfg(loom)] use crate::model::{arch, sched, sync};` and is else the module that
//! ships. What runs here as one of loom's threads is a CPU, or a thread that has one to itself; it says which by
//! [`arch::cpu::run_as`]. What is different from a machine:
//!
//! - an interrupt comes where the model calls it. Work that waits for interrupts to be on is done when the last guard
//!   goes; calls from other CPUs when the model lets them in ([`sync::smp::answer`]);
//! - a context switch is where the model calls the hook; there is no time, and nothing times out;
//! - data that a lock, or its own CPU, guards is plain memory: a missing lock is not found by its data, but by what goes
//!   wrong next. Links of blocked readers are such data;
//! - figures are not part of any model.
//!
//! What is checked is in [`mod@checks`].

pub(crate) mod arch;
pub(crate) mod sched;
pub(crate) mod sync;

#[cfg(test)]
mod checks;

/// Callbacks: no model has any.
pub(crate) mod call {
    use crate::cpu::Own;

    pub(crate) fn has_work(_: &Own) -> bool {
        false
    }

    pub(crate) fn advance_and_request() {}

    pub(crate) fn invoke() {}

    pub(crate) fn raise() {}

    pub(crate) fn tick(_: &Own) {}

    pub(crate) fn is_overloaded() -> bool {
        false
    }

    pub(crate) fn gp_ended() {}

    pub(crate) struct Load;

    impl Load {
        pub(crate) const fn new() -> Load {
            Load
        }
    }
}

/// Boosting: there are no priorities.
pub(crate) mod boost {
    use super::sched::Thread;
    use crate::mode::Kind;

    pub(crate) fn look(_: Kind, _begin_ns: u64) {}

    pub(crate) fn end(_: &Thread) -> bool {
        false
    }
}

/// Reports of stalls: there is no time.
pub(crate) mod stall {
    use crate::seq::Seq;

    pub(crate) fn begins() {}

    pub(crate) fn thread_runs() {}

    pub(crate) fn thread_lives() {}

    pub(crate) fn check(_: Seq, _period_ns: u64) {}

    pub(crate) fn tick() {}

    pub(crate) fn softirq_ran() {}

    pub(crate) struct Watch;

    impl Watch {
        pub(crate) fn new() -> Watch {
            Watch
        }

        pub(crate) fn check_expedited(&mut self, _: Seq) {}

        pub(crate) fn patience_ns(&mut self) -> u64 {
            0
        }
    }
}
