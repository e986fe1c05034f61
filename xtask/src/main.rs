//! `cargo xtask`: everything one does with Grange from a terminal. The work is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::main()
}
