//! The commands, by the storey they look into.

mod arch;
mod kernel;
mod mm;
mod sync;
#[cfg(feature = "suites")]
mod tests;
