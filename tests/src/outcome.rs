//! How a test says that it failed, or that this machine is not one it can run on.

use alloc::string::String;

/// Why a test did not pass.
#[derive(Debug)]
pub enum Failure {
    /// Something is not as it should be.
    Failed {
        /// Source file.
        file: &'static str,
        /// Line.
        line: u32,
        /// What was expected and what was found.
        message: String,
    },
    /// The test does not apply to this machine; why.
    Skipped(String),
}

impl Failure {
    /// Something is not as it should be. A debugger stops here when a test fails (`cargo xtask debug`).
    #[cold]
    #[inline(never)]
    pub fn failed(file: &'static str, line: u32, message: String) -> Failure {
        Failure::Failed { file, line, message }
    }
}

/// Fails the test unless the condition holds. More arguments make up a message.
#[macro_export]
macro_rules! ensure {
    ($condition:expr $(,)?) => {
        if !$condition {
            return Err($crate::__failed!("not true: {}", ::core::stringify!($condition)));
        }
    };
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::__failed!(
                "not true: {}: {}", ::core::stringify!($condition), ::core::format_args!($($message)+)
            ));
        }
    };
}

/// Fails the test unless the two values are equal; both are shown. More arguments make up a message.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(,)?) => {
        $crate::ensure_eq!($left, $right, "the two differ")
    };
    ($left:expr, $right:expr, $($message:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    return Err($crate::__failed!(
                        "{} is {:?}, {} is {:?}: {}",
                        ::core::stringify!($left), left, ::core::stringify!($right), right,
                        ::core::format_args!($($message)+)
                    ));
                }
            }
        }
    };
}

/// Ends the test as skipped; the arguments say why.
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {
        return Err($crate::Failure::Skipped($crate::private::format!($($why)+)))
    };
}

/// Ends a test about sheaves as skipped where `cache` has none.
pub(crate) fn needs_sheaves(cache: &slab::RawCache) -> Result<(), Failure> {
    if cache.sheaf_capacity() == 0 {
        skip!("{} has no sheaves: slab_debug= or init_on_ are on the command line", cache.name());
    }
    Ok(())
}

#[doc(hidden)]
#[macro_export]
macro_rules! __failed {
    ($($message:tt)+) => {
        $crate::Failure::failed(::core::file!(), ::core::line!(), $crate::private::format!($($message)+))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<(), Failure>) -> String {
        match result {
            Err(Failure::Failed { message, file, .. }) => {
                assert!(file.ends_with("outcome.rs"));
                message
            }
            other => panic!("expected a failure, got {other:?}"),
        }
    }

    #[test]
    fn a_condition_that_does_not_hold_is_quoted_with_its_message() {
        let check = |n: u32| {
            ensure!(n > 1, "n is {n}");
            Ok(())
        };
        assert!(check(2).is_ok());
        assert_eq!(message(check(1)), "not true: n > 1: n is 1");
    }

    #[test]
    fn values_that_differ_are_both_shown() {
        let check = |a: u32, b: u32| {
            ensure_eq!(a, b);
            Ok(())
        };
        assert!(check(3, 3).is_ok());
        assert_eq!(message(check(3, 4)), "a is 3, b is 4: the two differ");
    }

    #[test]
    fn a_skipped_test_is_not_a_failed_one() {
        let check = || -> Result<(), Failure> { skip!("needs {} CPUs", 2) };
        assert!(matches!(check(), Err(Failure::Skipped(why)) if why == "needs 2 CPUs"));
    }
}
