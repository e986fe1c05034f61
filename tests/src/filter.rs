//! Which tests to run: globs, separated by commas, as in `kunit.filter_glob=`.
//!
//! `*` stands for any text, `?` for one character. A glob with a dot is compared with `suite.name`,
//! one without a dot with the suite and with the name. No glob at all means every test.

use sync::glob;

/// A list of globs.
#[derive(Clone, Copy, Debug)]
pub struct Filter<'a>(&'a str);

impl<'a> Filter<'a> {
    /// Every test.
    pub const ALL: Filter<'static> = Filter("");

    /// The tests that match at least one glob of `globs`.
    pub const fn new(globs: &'a str) -> Self {
        Self(globs)
    }

    /// Whether to run this test.
    pub fn matches(&self, suite: &str, name: &str) -> bool {
        let mut any = false;
        for pattern in self.0.split(',').map(str::trim).filter(|pattern| !pattern.is_empty()) {
            any = true;
            let hit = match pattern.split_once('.') {
                Some((of_suite, of_name)) => glob(of_suite, suite) && glob(of_name, name),
                None => glob(pattern, suite) || glob(pattern, name),
            };
            if hit {
                return true;
            }
        }
        !any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_glob_is_every_test_and_an_empty_one_is_no_glob() {
        assert!(Filter::ALL.matches("ipi", "a_call_runs_once"));
        assert!(Filter::new(" ,").matches("ipi", "a_call_runs_once"));
    }

    #[test]
    fn one_glob_of_the_list_is_enough() {
        let filter = Filter::new("nmi, ipi.*once*");
        assert!(filter.matches("ipi", "a_call_runs_once"));
        assert!(filter.matches("nmi", "anything"));
        assert!(!filter.matches("ipi", "a_storm"));
    }

    #[test]
    fn without_a_dot_suite_or_name_may_match() {
        let filter = Filter::new("*storm");
        assert!(filter.matches("ipi", "a_storm"));
        assert!(filter.matches("brainstorm", "x"));
        assert!(!filter.matches("ipi", "a_storm_of_calls"));
    }
}
