//! `cargo xtask lab`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::number;

/// Arguments of `lab`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask lab 1                     the task of lab 1, and its file to work in
  cargo xtask lab 1 --check             marks for what is in that file

Exit status of --check: 0 for all marks, 1 for fewer, 7 where the answer does not build, 3 where it takes the kernel with
it, 4 where it hangs.")]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct LabArgs {
    /// Something about all labs.
    #[command(subcommand)]
    pub what: Option<LabWhat>,
    /// The lab: its number, or how its name begins
    #[arg(value_name = "LAB")]
    pub lab: Option<String>,
    /// Grade the answer, point by point
    #[arg(long, requires = "lab")]
    pub check: bool,
    /// Begin anew: the starting point comes back, and what was there is kept beside it, with a `~` at its end
    #[arg(long, requires = "lab", conflicts_with = "check")]
    pub reset: bool,
    /// The marks as one JSON object instead of lines
    #[arg(long, requires = "check")]
    pub json: bool,
    /// Seed of the graders' random numbers: 24301, 0x5eed
    #[arg(long, value_name = "S", value_parser = number, requires = "check", default_value = "1")]
    pub seed: u64,
    /// Kernel command line for labs graded in the kernel, as `key=value key=value`
    #[arg(long, value_name = "LINE", default_value = "", allow_hyphen_values = true, requires = "check")]
    pub append: String,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
}

/// What can be done with all labs.
#[derive(Clone, Debug, Subcommand)]
pub enum LabWhat {
    /// Name the labs
    List,
    /// Grade every solution, starting point and wrong answer: the first must get all marks, the others must not
    CheckAll {
        /// Only these labs
        #[arg(value_name = "LAB")]
        labs: Vec<String>,
        /// The QEMU program
        #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
        qemu: PathBuf,
    },
}
