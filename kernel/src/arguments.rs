//! Whether what was typed behind a command fits what the command declares.
//!
//! The declaration is the text that `help` shows: `[CPU]` may be there, `CPU` must, `[--json]` is a switch, and
//! `[-v CACHE]` a switch with a value. A word in small letters is a switch as well: `[node N]`. So it cannot say one thing
//! and the check do another.

use alloc::vec::Vec;
use core::fmt;

use crate::words;

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit<'a> {
    /// One that is not declared, or is there too often.
    Surplus {
        /// As it was typed.
        typed: &'a str,
        /// The declared switch that may be meant.
        near: Option<&'a str>,
        /// What is allowed.
        declared: &'a str,
    },
    /// One that must be there.
    Missing {
        /// Its declared name.
        what: &'a str,
        /// What is allowed.
        declared: &'a str,
    },
}

impl fmt::Display for Misfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let declared = match *self {
            Self::Surplus { typed, near, declared } => {
                write!(f, "`{typed}` is not allowed here; ")?;
                if let Some(near) = near {
                    write!(f, "did you mean `{near}`? ")?;
                }
                declared
            }
            Self::Missing { what, declared } => {
                write!(f, "{what} is missing; ")?;
                declared
            }
        };
        match declared {
            "" => f.write_str("it takes no arguments"),
            _ => write!(f, "allowed: {declared}"),
        }
    }
}

/// One declared argument.
#[derive(Clone, Copy)]
struct Slot<'a> {
    /// The switch, or the name of what stands there by itself.
    name: &'a str,
    /// Name of the switch's value.
    value: Option<&'a str>,
    required: bool,
}

impl Slot<'_> {
    fn is_switch(&self) -> bool {
        self.name.starts_with('-') || self.name.chars().all(char::is_lowercase)
    }
}

/// The arguments that a declaration names.
fn slots(declared: &str) -> Vec<Slot<'_>> {
    let mut slots = Vec::new();
    let mut rest = declared.trim_start();
    while !rest.is_empty() {
        let (text, required, after) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((inner, after)) => (inner, false, after),
            None => rest.split_once(' ').map_or((rest, true, ""), |(word, after)| (word, true, after)),
        };
        let mut words = text.split_whitespace();
        slots.extend(words.next().map(|name| Slot { name, value: words.next(), required }));
        rest = after.trim_start();
    }
    slots
}

/// Checks what was typed against what is declared.
///
/// # Errors
///
/// The first that does not fit.
pub fn check<'a>(declared: &'a str, typed: &[&'a str]) -> Result<(), Misfit<'a>> {
    let mut slots = slots(declared);
    let mut typed = typed.iter().copied();
    while let Some(word) = typed.next() {
        let switch = slots.iter().position(|slot| slot.is_switch() && slot.name == word);
        let plain = || slots.iter().position(|slot| !slot.is_switch() && !word.starts_with('-'));
        let Some(at) = switch.or_else(plain) else {
            let switches = slots.iter().filter(|slot| slot.is_switch()).map(|slot| slot.name);
            return Err(Misfit::Surplus { typed: word, near: words::nearest(word, switches), declared });
        };
        let taken = slots.remove(at);
        if let Some(what) = taken.value {
            typed.next().ok_or(Misfit::Missing { what, declared })?;
        }
    }
    match slots.iter().find(|slot| slot.required) {
        Some(slot) => Err(Misfit::Missing { what: slot.name, declared }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};

    /// What is said about a line of arguments, or nothing.
    fn said(declared: &str, typed: &str) -> String {
        let typed: Vec<&str> = typed.split_whitespace().collect();
        check(declared, &typed).map_or_else(|misfit| misfit.to_string(), |()| String::new())
    }

    #[test]
    fn what_is_declared_fits_in_any_order() {
        for (declared, typed) in [
            ("", ""),
            ("[--json]", ""),
            ("[--json]", "--json"),
            ("[CPU] [--json]", "3"),
            ("[CPU] [--json]", "--json 3"),
            ("[GLOB,GLOB…] [--list]", "slab.*,rcu.* --list"),
            ("[-v CACHE] [--json]", "--json -v kmalloc-64"),
            ("KIND", "null"),
            ("FROM TO", "0 1"),
            ("CPU on|off", "1 off"),
            ("SIZE [node N] [zero]", "64"),
            ("SIZE [node N] [zero]", "64 zero node 1"),
            ("SIZE [node N] [zero]", "node 1 64"),
        ] {
            assert_eq!(said(declared, typed), "", "{declared:?} {typed:?}");
        }
    }

    #[test]
    fn a_misspelt_switch_is_named_with_the_one_that_is_meant() {
        assert_eq!(
            said("[--json]", "--jsno"),
            "`--jsno` is not allowed here; did you mean `--json`? allowed: [--json]"
        );
    }

    #[test]
    fn a_word_too_many_is_named() {
        assert_eq!(said("[--json]", "junk"), "`junk` is not allowed here; allowed: [--json]");
        assert_eq!(said("[CPU] [--json]", "1 2"), "`2` is not allowed here; allowed: [CPU] [--json]");
        assert_eq!(said("", "now"), "`now` is not allowed here; it takes no arguments");
        assert_eq!(said("[--json]", "--json --json"), "`--json` is not allowed here; allowed: [--json]");
    }

    #[test]
    fn a_value_is_not_taken_for_an_argument_and_must_be_there() {
        assert_eq!(said("[-v CACHE]", "-v"), "CACHE is missing; allowed: [-v CACHE]");
        assert_eq!(said("[-v CACHE]", "cache"), "`cache` is not allowed here; allowed: [-v CACHE]");
        assert_eq!(said("SIZE [node N]", "64 node"), "N is missing; allowed: SIZE [node N]");
        assert_eq!(
            said("SIZE [node N]", "64 nod 1"),
            "`nod` is not allowed here; did you mean `node`? allowed: SIZE [node N]"
        );
    }

    #[test]
    fn what_must_be_there_is_asked_for() {
        assert_eq!(said("KIND", ""), "KIND is missing; allowed: KIND");
    }
}
