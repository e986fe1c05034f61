//! `cargo xtask smp`.

use std::path::PathBuf;

use clap::Args;

use super::{Accel, KernelArgs, Thread};

/// Arguments of `smp`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask smp
  cargo xtask smp --cpus 2,8,16,64 --nodes 1 --runs 5")]
pub struct SmpArgs {
    /// Numbers of CPUs
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4,8,16,64")]
    pub cpus: Vec<u32>,
    /// Numbers of nodes; a shape with fewer CPUs than nodes is left out
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,2,4")]
    pub nodes: Vec<u32>,
    /// Boots of each shape; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub runs: u32,
    /// Memory of the whole machine
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: String,
    /// KVM or emulation
    #[arg(long, value_enum, default_value_t)]
    pub accel: Accel,
    /// Host threads of the emulator
    #[arg(long, value_enum, default_value_t)]
    pub thread: Thread,
    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// The kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Kernel command line, as `key=value key=value`
    #[arg(long, value_name = "LINE", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Write the table as JSON to this file too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the plot to this file too
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}
