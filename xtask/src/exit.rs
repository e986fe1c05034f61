//! The exit statuses of `cargo xtask`, and errors that know theirs.
//!
//! Every command ends with one of these. Where several apply, the first in the order of [`Exit::rank`] wins: a run
//! in which one test failed and another hung ends as "hung".

use std::fmt;

/// How a command ended. The numbers are part of the interface: scripts may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// Everything asked for was done, every test passed.
    Passed,
    /// At least one test failed by its own assertion, or a lint found something.
    TestsFailed,
    /// The command line or a configuration makes no sense; nothing was started.
    Usage,
    /// The kernel panicked, faulted or triple-faulted.
    Panicked,
    /// The kernel made no progress, or its time ran out.
    Hung,
    /// The output cannot be trusted: incomplete, garbled or contradictory.
    Incomplete,
    /// The host or QEMU is the trouble: not found, not startable, no disk.
    Host,
    /// The kernel, the loader or the host tests did not build.
    Build,
    /// Ctrl-C.
    Interrupted,
}

/// All of them, the one that wins first.
const BY_RANK: [Exit; 9] = [
    Exit::Interrupted,
    Exit::Build,
    Exit::Usage,
    Exit::Host,
    Exit::Panicked,
    Exit::Hung,
    Exit::Incomplete,
    Exit::TestsFailed,
    Exit::Passed,
];

impl Exit {
    /// The number given to the shell.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Exit::Passed => 0,
            Exit::TestsFailed => 1,
            Exit::Usage => 2,
            Exit::Panicked => 3,
            Exit::Hung => 4,
            Exit::Incomplete => 5,
            Exit::Host => 6,
            Exit::Build => 7,
            Exit::Interrupted => 130,
        }
    }

    /// Position in the order in which statuses win, 0 first.
    #[must_use]
    pub fn rank(self) -> usize {
        BY_RANK.iter().position(|&exit| exit == self).unwrap_or(BY_RANK.len())
    }

    /// Of two ends, the one that is reported.
    #[must_use]
    pub fn worst(self, other: Exit) -> Exit {
        if other.rank() < self.rank() { other } else { self }
    }

    /// One word for reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Exit::Passed => "passed",
            Exit::TestsFailed => "failed",
            Exit::Usage => "usage",
            Exit::Panicked => "panic",
            Exit::Hung => "hang",
            Exit::Incomplete => "incomplete",
            Exit::Host => "host",
            Exit::Build => "build",
            Exit::Interrupted => "interrupted",
        }
    }
}

/// The end that a status of this tool stands for; one that is none of ours is the host's trouble.
#[must_use]
pub fn from_code(code: Option<i32>) -> Exit {
    BY_RANK.into_iter().find(|exit| code == Some(exit.code().into())).unwrap_or(Exit::Host)
}

/// An error with the status that it ends the command with, told in one line.
#[derive(Debug)]
pub struct Stop {
    exit: Exit,
    line: String,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Stop {}

/// An error that ends the command with `exit`.
pub fn stop(exit: Exit, line: impl Into<String>) -> anyhow::Error {
    Stop { exit, line: line.into() }.into()
}

/// An error about what the user asked for: names the bad input and what is allowed.
pub fn usage(line: impl Into<String>) -> anyhow::Error {
    stop(Exit::Usage, line)
}

/// The status an error ends the command with. One that names none is the host's trouble (a file, a process).
#[must_use]
pub fn of(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<Stop>().map_or(Exit::Host, |stop| stop.exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_order_decides_between_two_ends() {
        assert_eq!(Exit::Passed.worst(Exit::TestsFailed), Exit::TestsFailed);
        assert_eq!(Exit::TestsFailed.worst(Exit::Incomplete), Exit::Incomplete);
        assert_eq!(Exit::Hung.worst(Exit::Panicked), Exit::Panicked);
        assert_eq!(Exit::Host.worst(Exit::Usage), Exit::Usage);
        assert_eq!(Exit::Interrupted.worst(Exit::Build), Exit::Interrupted);
    }

    #[test]
    fn every_end_has_its_own_number_and_only_a_pass_is_zero() {
        let mut codes: Vec<u8> = BY_RANK.iter().map(|exit| exit.code()).collect();
        codes.sort_unstable();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 130]);
        assert_eq!(Exit::Passed.code(), 0);
    }

    #[test]
    fn a_status_is_read_back_and_a_strange_one_is_the_hosts_trouble() {
        for exit in BY_RANK {
            assert_eq!(from_code(Some(exit.code().into())), exit);
        }
        assert_eq!(from_code(Some(101)), Exit::Host);
        assert_eq!(from_code(None), Exit::Host);
    }

    #[test]
    fn an_error_keeps_its_status_through_added_context() {
        use anyhow::Context as _;
        let error = Err::<(), _>(usage("--cpus 0")).context("while reading the shape").unwrap_err();
        assert_eq!(of(&error), Exit::Usage);
        assert_eq!(of(&anyhow::anyhow!("disk full")), Exit::Host);
    }
}
