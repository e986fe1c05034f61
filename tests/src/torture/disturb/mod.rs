//! The disturbers: what makes the life of all kinds harder. Each is skipped where its parameter is 0 or empty, and fails
//! where it was asked for and never acted.

mod failslab;
#[cfg(feature = "mutants")]
mod hooks;
mod nmi;
mod onoff;
mod pressure;
mod shuffle;
mod stutter;
