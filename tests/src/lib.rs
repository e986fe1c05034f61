//! In-kernel tests and benches: how they register, run and report, and the suites themselves.
//!
//! A test is written with [`ktest!`] beside its fellows in `suites/<storey>.rs` and is found through
//! the link section `linkme_TESTS`; there is no list to keep. `xtask` reads the same section from the
//! kernel's ELF file, so tests can be listed without booting.
//!
//! | module | what |
//! |---|---|
//! | [`case`] | [`TestCase`], the registry, [`ktest!`] |
//! | [`mod@bench`] | the same for benches: [`bench!`], and how they measure |
//! | [`outcome`] | [`Failure`], [`ensure!`], [`ensure_eq!`], [`skip!`] |
//! | [`filter`] | `kunit.filter_glob` |
//! | [`run`] | [`Test`], the order, one test after the other |
//! | [`report`] | KTAP version 1 |
//! | [`frame`] | frames with a number and a CRC around each line |
//! | [`mod@torture`] | everything at once and for long: kinds, disturbers, statistics |
//! | [`stepping`], [`together`] | an NMI between any two instructions; threads that go through something together |
//! | [`com2`] | the frames on the second serial port; the heartbeat; tests that take too long |
//!
//! A test that fails returns; a test that panics takes the machine with it, and whoever booted it
//! boots again and goes on with `grange.test_start=`.
//!
//! These suites link against the storeys as any user would, and `labs/` grades exercises with the same parts. Linux:
//! `lib/kunit/` (6.12), whose output format and filter parameter these are.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

/// What the macros need; not an interface.
#[doc(hidden)]
pub mod private {
    pub use alloc::boxed::Box;
    pub use alloc::format;
    pub use linkme;
}

pub mod bench;
mod benches;
mod bustle;
mod callbacks;
pub mod case;
pub mod com2;
mod examples;
mod field;
pub mod filter;
pub mod frame;
mod kfree;
mod lock_paths;
mod logged;
mod nolock;
mod nth;
pub mod outcome;
pub mod report;
pub mod run;
mod softirq_calls;
pub mod stepping;
mod storm;
mod suites;
pub mod together;
mod toggle;
pub mod torture;
mod walk;
mod yard;

pub use bench::BENCHES;
pub use case::{TESTS, TestCase};
pub use filter::Filter;
pub use outcome::Failure;
pub use run::{Plan, Summary, Test, run};
