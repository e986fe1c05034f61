//! `cargo xtask doctor` and `build`.

use std::path::PathBuf;

use clap::Args;

use super::KernelArgs;

/// Arguments of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask doctor
  cargo xtask doctor --fix")]
pub struct DoctorArgs {
    /// Install what is missing
    #[arg(long)]
    pub fix: bool,
    /// One JSON object instead of lines
    #[arg(long)]
    pub json: bool,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
}

/// Arguments of `build`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask build
  cargo xtask build --profile checking")]
pub struct BuildArgs {
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
}
