//! The kinds of torture of a kernel, read from its ELF without booting it.
//!
//! The section `linkme_TORTURES` is an array of `#[repr(C)] Kind { name: &str, about: &str, file: &str, line: u32, role: u32,
//! start: fn }` (`tests/src/torture/kind.rs`).

use std::path::Path;

use globset::Glob;

use crate::exit::usage;
use crate::kernel_tests::{read, text_at};
use crate::verdict::TestId;

/// Bytes of a `Kind`.
const KIND_SIZE: usize = 3 * 16 + 2 * 4 + 8;
const LINE: usize = 48;
const ROLE: usize = 52;
/// `ROLE_DISTURBER`.
const DISTURBER: u32 = 1;
/// The suite of all results, and the one that stands for the time in which all ran.
const SUITE: &str = "torture";
const TOGETHER: &str = "run";

/// A kind of torture, or a disturber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub name: String,
    /// What it does.
    pub about: String,
    /// Where it is written.
    pub place: String,
    /// It takes part in every run, to disturb the others.
    pub disturbs: bool,
}

/// Reads the kinds of a kernel, disturbers first, each by name: the order of their results.
///
/// # Errors
/// `Host` when the file cannot be read or its section does not have the layout above.
pub fn list(kernel: &Path) -> anyhow::Result<Vec<Kind>> {
    let mut kinds = read(kernel, "linkme_TORTURES", KIND_SIZE, |elf, kind| {
        let number = |at: usize| Some(u32::from_le_bytes(kind.get(at..at + 4)?.try_into().ok()?));
        let [name, about, file] = [0, 16, 32].map(|at| text_at(elf, kind, at));
        Some(Kind {
            name: name?,
            about: about?.trim().to_owned(),
            place: format!("{}:{}", file?, number(LINE)?),
            disturbs: number(ROLE)? == DISTURBER,
        })
    })?;
    kinds.sort_by(|a, b| (!a.disturbs, &a.name).cmp(&(!b.disturbs, &b.name)));
    Ok(kinds)
}

/// The names of the kinds that one of `globs` names.
///
/// # Errors
/// `Usage` for one that is no glob or names none; `file` is where it stands.
pub fn chosen(all: &[Kind], globs: &[String], file: &str) -> anyhow::Result<Vec<String>> {
    let kinds = || all.iter().filter(|kind| !kind.disturbs);
    let mut matchers = Vec::new();
    for word in globs {
        let glob = Glob::new(word).map_err(|error| usage(format!("{file}: kinds: {error}")))?.compile_matcher();
        if !kinds().any(|kind| glob.is_match(&kind.name)) {
            let names: Vec<&str> = kinds().map(|kind| kind.name.as_str()).collect();
            return Err(usage(format!("{file}: kinds: the kernel has no kind {word}, but {}", names.join(", "))));
        }
        matchers.push(glob);
    }
    let wanted = |name: &String| matchers.iter().any(|glob| glob.is_match(name));
    Ok(kinds().map(|kind| kind.name.clone()).filter(wanted).collect())
}

/// The results that a run with these kinds owes.
#[must_use]
pub fn due(all: &[Kind], chosen: &[String]) -> Vec<TestId> {
    let parts = all.iter().filter(|kind| kind.disturbs || chosen.contains(&kind.name)).map(|kind| kind.name.clone());
    let names = std::iter::once(TOGETHER.to_owned()).chain(parts);
    names.map(|name| TestId { suite: SUITE.to_owned(), name }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str, disturbs: bool) -> Kind {
        Kind { name: name.into(), about: String::new(), place: String::new(), disturbs }
    }

    #[test]
    fn a_run_owes_a_result_of_all_together_of_each_disturber_and_of_its_kinds() {
        let all = [kind("onoff", true), kind("rcu", false), kind("slab", false)];
        let names = |globs: &[&str]| {
            let globs: Vec<String> = globs.iter().map(|&glob| glob.to_owned()).collect();
            let chosen = chosen(&all, &globs, "X.toml")?;
            Ok::<_, anyhow::Error>(due(&all, &chosen).iter().map(|id| id.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(&["s*"]).unwrap(), ["run", "onoff", "slab"]);
        assert_eq!(names(&["*"]).unwrap(), ["run", "onoff", "rcu", "slab"]);
        for bad in ["onoff", "tasks", "["] {
            let error = names(&[bad]).unwrap_err();
            assert_eq!(crate::exit::of(&error), crate::exit::Exit::Usage);
            assert!(error.to_string().starts_with("X.toml: kinds: "), "{error}");
        }
    }
}
