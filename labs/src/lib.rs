//! Exercises of a course, which `cargo xtask lab` hands out and grades. The tasks are in `docs/labs/`.
//!
//! | folder | what is in it, by the lab's name |
//! |---|---|
//! | `starts/` | the file that a student begins with: it builds, and does not pass |
//! | `work/` | that file in the student's hands, put there by `cargo xtask lab N` |
//! | `graders/` | the tests that give marks, a test a point |
//! | `solutions/` | an answer that gets all marks |
//! | `wrong/` | a folder a lab with answers that look right; the grader sees through each |
//!
//! A grader is a module with `ktest!`s, or with `#[test]`s for what needs no machine, that calls the answer as
//! `super::answer`. `build.rs` puts a copy of it beside each answer: `lab01` is the suite of the student's answer to the first
//! lab, `lab01_solution` that of the solution. So one kernel, with the feature `labs`, holds all answers, statics and all, and
//! the command line chooses among them. There is no list to keep: a lab is there when its files are.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod depot;
pub mod elsewhere;
pub mod pool;

/// Atomics as labs use them whose grader tries every order in which threads can run: those of loom on the host, under test.
pub mod atomic {
    #[cfg(not(test))]
    pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(test)]
    pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
}

include!(concat!(env!("OUT_DIR"), "/modules.rs"));
