//! Torture: several kinds of load on one machine at once, for as long as it is told, with what disturbs them.
//!
//! A *kind* is what is tortured (`timers`, `rcu`, `slab`, …): it starts threads that use a storey as hard as they can, and counts
//! what they find. A *disturber* makes life harder for all kinds: CPUs that go and come, threads that are moved, pauses, NMIs,
//! allocations that fail. Both register themselves with [`torture!`](crate::torture!) in the link section `linkme_TORTURES`; there
//! is no list to keep, and `xtask` reads the same section from the kernel's ELF file.
//!
//! | module | what |
//! |---|---|
//! | [`kind`] | [`Kind`], the registry, [`torture!`](crate::torture!) |
//! | [`control`] | the end and the pauses of a run, as its threads see them |
//! | [`run`] | [`Run`] and [`Ongoing`]: what a kind is given, and what it gives |
//! | [`stat`] | [`Stat`]: the line of statistics, shaped as rcutorture's, and what in it fails the run |
//! | [`config`] | the parameters `torture.*` |
//! | [`session`] | [`torture`]: starts, looks after, stops and judges all of them |
//! | [`disturb`] | the disturbers |
//! | [`failnth`], [`kfree_rcu`], [`lock`], [`rcu`], [`scf`], [`sched`], [`slab`], [`step`], [`timers`] | the kinds of those names |
//!
//! A run is a suite `torture` with one result each: for `run`, which is all of them together, for each disturber (skipped if its
//! parameter is 0) and for each kind. A kind fails as soon as one of its errors is not 0, which ends the run, or when one of
//! its counts of work is still 0 at the end: then it tortured nothing.
//!
//! Linux: `kernel/torture.c` and `kernel/rcu/rcutorture.c` (6.12), whose parameters and lines these are.

pub mod config;
mod contexts;
pub mod control;
mod disturb;
mod failnth;
mod kfree_rcu;
pub mod kind;
mod lock;
pub(crate) mod rcu;
pub mod run;
mod scf;
mod sched;
pub mod session;
mod slab;
pub mod stat;
mod step;
mod timers;

pub use kind::{Kind, TORTURES};
pub use run::{Ongoing, Run};
pub use session::{Request, torture};
pub use stat::Stat;
