//! The kernel command line: the parameters of this crate, and the refusal of a line that is wrong.
//!
//! The loader passes the text as BootInfo's ramdisk. Each storey declares its parameters where it
//! uses them (`sync::param!`); nothing is ignored: a boot with an unknown key or a bad value ends in
//! one line that names it.

use arch::exit::{Verdict, debug_exit};
use sync::{events, explore, mutants, param};

use crate::console::Raw;
use crate::crash;

param! {
    /// What the kernel does once it is up.
    pub(crate) static RUN: choice = "grange.run", default "shell", one of ["shell", "test", "bench", "torture"];
}

param! {
    /// Shell commands to run instead of a session, separated by semicolons. The machine ends after
    /// the last one, as passed or failed.
    pub(crate) static EXEC: str = "grange.exec", default "";
}

param! {
    /// Seed of every random number in tests; the same seed gives the same run.
    pub(crate) static SEED: u64 = "grange.seed", default 0, in 0..=u64::MAX;
}

param! {
    /// Which tests or benches to run: globs of suite.name, separated by commas.
    pub(crate) static FILTER: str = "kunit.filter_glob", default "";
}

param! {
    /// Which of those by their speed: all, or only those that are not tagged `slow`.
    pub(crate) static SPEED: choice = "kunit.filter", default "", one of ["", "speed>slow"];
}

param! {
    /// The test to begin with, as suite.name; those before it are left out.
    pub(crate) static TEST_START: str = "grange.test_start", default "";
}

param! {
    /// CPUs to start at most, the boot CPU included.
    pub(crate) static MAXCPUS: u32 = "maxcpus", default 256, in 1..=256, unit "CPUs";
}

param! {
    /// A way to die at once, before anything else of the machine is set up; the shell's `panic --list` explains them.
    pub(crate) static CRASH: choice = "grange.crash", default "none", one of crash::EARLY;
}

param! {
    /// The least grave messages that are printed.
    pub(crate) static LOGLEVEL: choice = "grange.log", default "info",
        one of ["error", "warn", "info", "debug", "trace"];
}

/// Takes the command line in, or ends the boot with a line that says why not.
pub(crate) fn parse(text: &'static [u8]) {
    use core::fmt::Write;

    let refused = match core::str::from_utf8(text).map(param::parse) {
        Ok(Ok(())) => match (without_effect(), mutants::choose()) {
            (None, Ok(())) => return,
            (Some((key, feature)), _) => {
                writeln!(Raw, "grange: command line refused: {key}= needs a kernel with the feature `{feature}`")
            }
            (None, Err(unknown)) => writeln!(Raw, "grange: command line refused: {unknown}"),
        },
        Ok(Err(error)) => {
            writeln!(Raw, "grange: command line refused: {error}; the shell's `params` lists all")
        }
        Err(error) => {
            let at = error.valid_up_to();
            writeln!(Raw, "grange: command line refused: byte {at} of it is not UTF-8 text")
        }
    };
    // Writing to the port cannot fail.
    let _ = refused;
    debug_exit(Verdict::Panic)
}

/// A parameter that was given and that this build does not have the code for, and the feature that would bring it.
fn without_effect() -> Option<(&'static str, &'static str)> {
    let given = [
        ("grange.explore", "explore", explore::ONE_IN.is_set() && !explore::ENABLED),
        ("grange.events", "events", events::PERIOD.is_set() && !events::ENABLED),
        ("grange.bug", "mutants", mutants::BUG.is_set() && !mutants::ENABLED),
    ];
    given.into_iter().find_map(|(key, feature, idle)| idle.then_some((key, feature)))
}
