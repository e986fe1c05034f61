//! The registry of tests.

use crate::outcome::Failure;
use crate::run::Test;

/// Tag: needs CPUs that really run at the same time; also run with `thread=multi` on 4 CPUs.
pub const TAG_RACE: u32 = 1 << 0;
/// Tag: takes minutes; runs only where it is asked for (`cargo xtask test --slow`).
pub const TAG_SLOW: u32 = 1 << 1;

/// How long a test may take if it does not say, in milliseconds of guest time.
pub const DEFAULT_BUDGET_MS: u32 = 10_000;

/// One test. The layout is read from the ELF file by `xtask`: change both together.
#[repr(C)]
#[derive(Debug)]
pub struct TestCase {
    /// The suite: last part of the path of the module it is written in.
    pub suite: &'static str,
    /// Its name: what the code does, as a sentence.
    pub name: &'static str,
    /// Source file.
    pub file: &'static str,
    /// Line of the `ktest!` that it is in.
    pub line: u32,
    /// `TAG_*` bits.
    pub tags: u32,
    /// How long it may take, in milliseconds of guest time.
    pub budget_ms: u32,
    /// The test.
    pub run: fn(&mut Test<'_>) -> Result<(), Failure>,
}

/// All tests that are linked in, in the linker's order.
#[linkme::distributed_slice]
pub static TESTS: [TestCase];

/// Declares tests. A body ends in `Ok(())` and uses [`ensure!`](crate::ensure) and its like.
///
/// ```ignore
/// ktest! {
///     /// What it is about.
///     #[tags(race)]
///     #[budget_ms(30_000)]
///     fn a_counter_of_one_cpu_is_not_seen_by_another(t: &mut Test) {
///         ensure_eq!(1 + 1, 2);
///         Ok(())
///     }
/// }
/// ```
#[macro_export]
macro_rules! ktest {
    ($(
        $(#[doc = $doc:literal])+
        $(#[tags($($tag:ident),+)])?
        $(#[budget_ms($budget:literal)])?
        fn $name:ident($test:ident: &mut Test) $body:block
    )+) => {$(
        $(#[doc = $doc])+
        fn $name($test: &mut $crate::run::Test<'_>) -> ::core::result::Result<(), $crate::Failure> {
            $body
        }

        const _: () = {
            #[$crate::private::linkme::distributed_slice($crate::case::TESTS)]
            #[linkme(crate = $crate::private::linkme)]
            static CASE: $crate::case::TestCase = $crate::case::TestCase {
                suite: $crate::case::last_segment(::core::module_path!()),
                name: ::core::stringify!($name),
                file: ::core::file!(),
                line: ::core::line!(),
                tags: 0 $( $(| $crate::__tag!($tag))+ )?,
                budget_ms: $crate::__budget!($($budget)?),
                run: $name,
            };
        };
    )+};
}

/// The bit of a tag; an unknown one does not compile.
#[doc(hidden)]
#[macro_export]
macro_rules! __tag {
    (race) => {
        $crate::case::TAG_RACE
    };
    (slow) => {
        $crate::case::TAG_SLOW
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __budget {
    () => {
        $crate::case::DEFAULT_BUDGET_MS
    };
    ($budget:literal) => {
        $budget
    };
}

/// `tests::suites::percpu` to `percpu`.
#[doc(hidden)]
pub const fn last_segment(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let mut at = bytes.len();
    while at > 0 && bytes[at - 1] != b':' {
        at -= 1;
    }
    path.split_at(at).1
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::ktest! {
        /// Registered by the macro; found below.
        #[tags(race, slow)]
        #[budget_ms(77)]
        fn with_everything(t: &mut Test) {
            let _ = t;
            Ok(())
        }

        /// The same without options.
        fn with_nothing(_t: &mut Test) {
            Ok(())
        }
    }

    fn find(name: &str) -> &'static TestCase {
        TESTS.iter().find(|case| case.name == name).expect("registered by ktest!")
    }

    #[test]
    fn a_test_registers_itself_with_its_module_as_suite() {
        let case = find("with_everything");
        assert_eq!((case.suite, case.tags, case.budget_ms), ("tests", TAG_RACE | TAG_SLOW, 77));
        assert!(case.file.ends_with("case.rs"));
        let case = find("with_nothing");
        assert_eq!((case.tags, case.budget_ms), (0, DEFAULT_BUDGET_MS));
    }

    #[test]
    fn the_suite_is_the_last_part_of_the_path() {
        assert_eq!(last_segment("a::b::percpu"), "percpu");
        assert_eq!(last_segment("percpu"), "percpu");
    }

    #[test]
    fn the_layout_is_the_one_that_the_list_of_tests_is_read_with() {
        assert_eq!(size_of::<TestCase>(), 72);
        assert_eq!(core::mem::offset_of!(TestCase, line), 48);
        assert_eq!(core::mem::offset_of!(TestCase, budget_ms), 56);
        assert_eq!(core::mem::offset_of!(TestCase, run), 64);
    }
}
