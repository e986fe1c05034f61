//! `cargo xtask lint`, `models` and `ci`.

use clap::{Args, ValueEnum};

/// Arguments of `lint`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask lint
  cargo xtask lint --open-rows")]
pub struct LintArgs {
    /// Also list the rows of docs/requirements.md that are still open
    #[arg(long)]
    pub open_rows: bool,
}

/// Arguments of `models`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  cargo xtask models
  cargo xtask models loom log_ring

Miri needs a nightly toolchain with the components miri and rust-src; without one that part counts as one skipped test.")]
pub struct ModelsArgs {
    /// Only this kind
    #[arg(value_enum)]
    pub kind: Option<ModelKind>,
    /// Only tests with one of these in their path: log_ring, llist::
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
}

/// Checkers of lock-less code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelKind {
    /// Every order in which the threads of a small model can run
    Loom,
    /// Unit tests under an interpreter that finds undefined behaviour and data races
    Miri,
}

/// Arguments of `ci`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask ci
  cargo xtask ci nightly                once a night: without a name it is left out")]
pub struct CiArgs {
    /// Only this step
    #[arg(value_enum)]
    pub step: Option<CiStep>,
}

/// The steps of CI, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CiStep {
    /// `cargo xtask lint`
    Lint,
    /// `cargo xtask models`
    Models,
    /// A few suites with exploration points, three times with one seed on a busy host: all have to be equal
    Deterministic,
    /// 500 schedules of all kinds of torture at once
    Seeds,
    /// A scenario of torture for each storey, for some seconds
    Torture,
    /// Whether torture finds a few bugs that are made on purpose
    Mutants,
    /// `cargo xtask lab check-all`
    Labs,
    /// `cargo xtask bench guard`
    Guard,
    /// `cargo xtask test`
    Test,
    /// What takes an hour and more, and is no part of the others: all of torture, all bugs made on purpose, slow tests
    Nightly,
}
