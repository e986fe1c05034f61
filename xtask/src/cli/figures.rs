//! `cargo xtask figures`.

use clap::Args;

/// Arguments of `figures`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask figures
  cargo xtask figures nmi --write

Each is drawn from the trace of a deterministic run, so the same kernel gives the same figure.")]
pub struct FiguresArgs {
    /// Only this one
    #[arg(value_name = "NAME", value_parser = crate::figures::NAMES)]
    pub name: Option<String>,
    /// Put them into docs/figures, where the book shows them
    #[arg(long)]
    pub write: bool,
}
