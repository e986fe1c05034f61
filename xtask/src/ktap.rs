//! A strict parser of KTAP version 1, two levels deep: suites, and their tests.
//!
//! ```text
//! KTAP version 1
//! 1..1
//!   KTAP version 1
//!   # Subtest: percpu
//!   1..2
//!   ok 1 areas_are_isolated
//!   # expected 3, found 4
//!   not ok 2 counters_add_up
//! not ok 1 percpu
//! ```
//!
//! Strict means: version and plan on each level, numbers without gaps, no name twice, a suite's line that agrees with
//! its tests, nothing before, between or after that is not KTAP. `# Subtest:` may stand before or after the inner
//! version line. Of the directives only `# SKIP` turns an `ok` into something else; `# TIMEOUT` and `# ERROR` may
//! explain a `not ok`. Everything else is an error, because a parser that guesses can be made to see a pass.

use std::fmt;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `ok`
    Passed,
    /// `not ok`
    Failed,
    /// `ok … # SKIP reason`
    Skipped,
}

/// One test's line with the diagnostics before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestLine {
    /// The suite it stands in.
    pub suite: String,
    /// Its name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The diagnostic lines before it and the reason after its directive.
    pub detail: Vec<String>,
}

/// A line that breaks the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KtapError {
    /// Line number, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for KtapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KTAP line {}: {}", self.line, self.what)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing read yet.
    #[default]
    Version,
    /// The outer version was read.
    Plan,
    /// Between suites.
    Outer,
    /// In the head of a suite: version and name, in either order, then the plan.
    Head,
    /// Among a suite's tests.
    Inner,
    /// The last suite's line was read.
    Done,
}

#[derive(Debug, Default)]
struct Suite {
    versioned: bool,
    name: Option<String>,
    planned: usize,
    seen: Vec<String>,
    failed: usize,
    detail: Vec<String>,
}

/// Takes KTAP line by line.
#[derive(Debug, Default)]
pub struct Parser {
    state: State,
    lines: usize,
    planned: usize,
    suites: Vec<String>,
    suite: Suite,
    tests: Vec<TestLine>,
}

impl Parser {
    /// Takes the next line; returns the test whose line it is.
    ///
    /// # Errors
    /// When the line breaks a rule. The parser must not be fed any further then.
    pub fn line(&mut self, line: &str) -> Result<Option<&TestLine>, KtapError> {
        self.lines += 1;
        let before = self.tests.len();
        self.step(line).map_err(|what| KtapError { line: self.lines, what })?;
        Ok(self.tests.get(before))
    }

    /// The input has ended.
    ///
    /// # Errors
    /// When it ended before its plan was met.
    pub fn finish(&self) -> Result<(), KtapError> {
        let error = |what: String| Err(KtapError { line: self.lines, what });
        match self.state {
            State::Done => Ok(()),
            State::Version => error("no KTAP at all".to_owned()),
            State::Plan => error("no plan".to_owned()),
            State::Outer => error(format!("{} of {} suites", self.suites.len(), self.planned)),
            State::Head | State::Inner => error(format!("suite {} is cut", self.suite.name.as_deref().unwrap_or("?"))),
        }
    }

    /// The tests read so far, in their order.
    #[must_use]
    pub fn tests(&self) -> &[TestLine] {
        &self.tests
    }

    fn step(&mut self, line: &str) -> Result<(), String> {
        if line.trim_start().starts_with("Bail out!") {
            return Err(line.trim().to_owned());
        }
        match self.state {
            State::Version if line == "KTAP version 1" => self.state = State::Plan,
            State::Version => return Err(format!("expected `KTAP version 1`, found {line:?}")),
            State::Plan => {
                self.planned = plan(line)?;
                self.state = if self.planned == 0 { State::Done } else { State::Outer };
            }
            State::Outer => {
                let inner = line.strip_prefix("  ").ok_or_else(|| format!("expected a suite, found {line:?}"))?;
                self.suite = Suite::default();
                self.state = State::Head;
                self.head(inner)?;
            }
            State::Head => {
                let inner =
                    line.strip_prefix("  ").ok_or_else(|| format!("expected a suite's plan, found {line:?}"))?;
                self.head(inner)?;
            }
            State::Inner => match line.strip_prefix("  ") {
                Some(inner) => self.inner(inner)?,
                None => self.suite_line(line)?,
            },
            State::Done => return Err(format!("after the end: {line:?}")),
        }
        Ok(())
    }

    fn head(&mut self, inner: &str) -> Result<(), String> {
        if inner == "KTAP version 1" && !self.suite.versioned {
            self.suite.versioned = true;
        } else if let (Some(name), None) = (inner.strip_prefix("# Subtest: "), &self.suite.name) {
            self.suite.name = Some(checked_name(name)?.to_owned());
        } else if self.suite.versioned && self.suite.name.is_some() {
            self.suite.planned = plan(inner)?;
            self.state = State::Inner;
        } else {
            return Err(format!("expected a suite's version, name and plan, found {inner:?}"));
        }
        Ok(())
    }

    fn inner(&mut self, inner: &str) -> Result<(), String> {
        if let Some(comment) = inner.strip_prefix('#') {
            self.suite.detail.push(comment.strip_prefix(' ').unwrap_or(comment).to_owned());
            return Ok(());
        }
        let result = result(inner)?;
        let (name, number) = (result.name, self.suite.seen.len() + 1);
        check_number(result.number, number, self.suite.planned)?;
        if self.suite.seen.iter().any(|seen| seen == name) {
            return Err(format!("{name} a second time"));
        }
        self.suite.seen.push(name.to_owned());
        self.suite.failed += usize::from(result.outcome == Outcome::Failed);
        let mut detail = std::mem::take(&mut self.suite.detail);
        detail.extend(result.remark.map(str::to_owned));
        let suite = self.suite.name.clone().unwrap_or_default();
        self.tests.push(TestLine { suite, name: name.to_owned(), outcome: result.outcome, detail });
        Ok(())
    }

    fn suite_line(&mut self, line: &str) -> Result<(), String> {
        let result = result(line)?;
        let name = self.suite.name.clone().unwrap_or_default();
        if self.suite.seen.len() != self.suite.planned {
            return Err(format!("suite {name} ends after {} of {} tests", self.suite.seen.len(), self.suite.planned));
        }
        if result.name != name {
            return Err(format!("suite {name} ends as {}", result.name));
        }
        if (result.outcome == Outcome::Failed) != (self.suite.failed > 0) {
            return Err(format!("suite {name} contradicts its tests: {} failed", self.suite.failed));
        }
        check_number(result.number, self.suites.len() + 1, self.planned)?;
        if self.suites.contains(&name) {
            return Err(format!("suite {name} a second time"));
        }
        self.suites.push(name);
        self.state = if self.suites.len() == self.planned { State::Done } else { State::Outer };
        Ok(())
    }
}

struct ResultLine<'a> {
    number: usize,
    name: &'a str,
    outcome: Outcome,
    remark: Option<&'a str>,
}

/// `ok N [- ]name[ # DIRECTIVE remark]`
fn result(line: &str) -> Result<ResultLine<'_>, String> {
    let bad = || format!("expected a result, found {line:?}");
    let (ok, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return Err(bad()),
    };
    let (number, rest) = rest.split_once(' ').ok_or_else(bad)?;
    let number = decimal(number).ok_or_else(bad)?;
    let rest = rest.strip_prefix("- ").unwrap_or(rest);
    let (name, directive) = match rest.split_once(" # ") {
        Some((name, directive)) => (name, Some(directive)),
        None => (rest, None),
    };
    let word = directive.and_then(|text| text.split(' ').next());
    let outcome = match (ok, word) {
        (true, None) => Outcome::Passed,
        (false, None | Some("TIMEOUT" | "ERROR")) => Outcome::Failed,
        (true, Some("SKIP")) => Outcome::Skipped,
        (_, Some(word)) => {
            return Err(format!("{} with the directive {word}", if ok { "ok" } else { "not ok" }));
        }
    };
    Ok(ResultLine { number, name: checked_name(name)?, outcome, remark: directive })
}

fn plan(line: &str) -> Result<usize, String> {
    line.strip_prefix("1..").and_then(decimal).ok_or_else(|| format!("expected a plan `1..N`, found {line:?}"))
}

/// Digits only: no sign, no space, nothing that `parse` would forgive.
fn decimal(text: &str) -> Option<usize> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn checked_name(name: &str) -> Result<&str, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
    if !name.is_empty() && name.chars().all(fits) { Ok(name) } else { Err(format!("{name:?} is no name")) }
}

fn check_number(number: usize, due: usize, planned: usize) -> Result<(), String> {
    if number != due {
        return Err(format!("number {number} where {due} was due"));
    }
    if number > planned {
        return Err(format!("number {number} of {planned}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
KTAP version 1
1..2
  KTAP version 1
  # Subtest: percpu
  1..2
  ok 1 areas_are_isolated
  # at tests/src/percpu.rs:40
  not ok 2 counters_add_up
not ok 1 percpu
  # Subtest: nmi
  KTAP version 1
  1..1
  ok 1 - nested # SKIP one CPU
ok 2 nmi";

    fn parse(text: &str) -> Result<Vec<TestLine>, KtapError> {
        let mut parser = Parser::default();
        for line in text.lines() {
            parser.line(line)?;
        }
        parser.finish()?;
        Ok(parser.tests().to_vec())
    }

    #[test]
    fn a_good_document_gives_its_tests_with_their_details() {
        let tests = parse(GOOD).unwrap();
        let outcomes: Vec<_> =
            tests.iter().map(|test| (test.suite.as_str(), test.name.as_str(), test.outcome)).collect();
        assert_eq!(
            outcomes,
            [
                ("percpu", "areas_are_isolated", Outcome::Passed),
                ("percpu", "counters_add_up", Outcome::Failed),
                ("nmi", "nested", Outcome::Skipped),
            ]
        );
        assert_eq!(tests[1].detail, ["at tests/src/percpu.rs:40"]);
        assert_eq!(tests[2].detail, ["SKIP one CPU"]);
    }

    #[test]
    fn an_empty_plan_is_complete_and_has_no_tests() {
        assert_eq!(parse("KTAP version 1\n1..0").unwrap(), []);
    }

    #[test]
    fn no_line_can_be_left_out_doubled_or_swapped() {
        let lines: Vec<&str> = GOOD.lines().collect();
        let refused = |lines: &[&str], what: &str| assert!(parse(&lines.join("\n")).is_err(), "{what}");
        for at in 0..lines.len() {
            // A diagnostic is free text: it may be there or not, once or twice.
            let free = lines[at].contains("# at ");
            let mut without = lines.clone();
            without.remove(at);
            let mut doubled = lines.clone();
            doubled.insert(at, lines[at]);
            if !free {
                refused(&without, &format!("without line {at}"));
                refused(&doubled, &format!("line {at} doubled"));
            }
            refused(&lines[..at], &format!("cut before line {at}"));
        }
        let mut swapped = lines.clone();
        swapped.swap(5, 7);
        refused(&swapped, "tests swapped");
    }

    #[test]
    fn every_broken_rule_is_named() {
        let cases = [
            ("KTAP version 1", "KTAP version 2", "expected `KTAP version 1`"),
            ("1..2\n  KTAP", "1..3\n  KTAP", "2 of 3 suites"),
            ("1..2\n  KTAP", "1..+2\n  KTAP", "expected a plan"),
            ("  1..2", "  1..3", "ends after 2 of 3"),
            ("  1..2", "  1..1", "number 2 of 1"),
            ("not ok 2 counters_add_up", "not ok 3 counters_add_up", "number 3 where 2 was due"),
            ("counters_add_up", "areas_are_isolated", "a second time"),
            ("not ok 1 percpu", "ok 1 percpu", "contradicts its tests"),
            ("ok 2 nmi", "not ok 2 nmi", "contradicts its tests"),
            ("ok 2 nmi", "ok 2 percpu", "suite nmi ends as percpu"),
            ("# SKIP one CPU", "# TODO later", "ok with the directive TODO"),
            ("# SKIP one CPU", "# TIMEOUT", "ok with the directive TIMEOUT"),
            ("not ok 2 counters_add_up", "not ok 2 counters_add_up # SKIP", "not ok with the directive SKIP"),
            ("  ok 1 areas", "ok 1 areas", "ends after 0 of 2"),
            ("  ok 1 areas", "    ok 1 areas", "expected a result"),
            ("  ok 1 areas", "  Ok 1 areas", "expected a result"),
            ("areas_are_isolated", "areas are isolated", "is no name"),
            ("  # at tests", "  Bail out! at tests", "Bail out!"),
            ("ok 2 nmi", "ok 2 nmi\nok 3 more", "after the end"),
        ];
        for (from, to, expected) in cases {
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{from:?} -> {to:?}: {error}");
        }
    }
}
