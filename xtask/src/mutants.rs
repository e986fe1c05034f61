//! The bugs that a kernel can be told to have, read from its ELF without booting it.
//!
//! A kernel of the profile `mutants` registers them in the section `linkme_BUGS`, an array of
//! `#[repr(C)] Bug { name: &str, what: &str, found_by: &str }`. A kernel of any other profile has none, nor the hooks that go
//! with them; one that has is not booted.

use std::path::Path;

use globset::Glob;

use crate::cli::Profile;
use crate::exit::{Exit, stop, usage};
use crate::kernel_tests::{read, text_at};

/// Bytes of a `Bug`: three `&str`.
const BUG_SIZE: usize = 3 * 16;

/// A bug that is made on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bug {
    /// What `grange.bug=` calls it.
    pub name: String,
    /// What goes wrong.
    pub what: String,
    /// The tests that must find it, as filters.
    pub found_by: Vec<String>,
}

/// Reads the bugs of a kernel, by name.
///
/// # Errors
/// `Host` when the file cannot be read or its section does not have the layout above.
pub fn list(kernel: &Path) -> anyhow::Result<Vec<Bug>> {
    let mut bugs = read(kernel, "linkme_BUGS", BUG_SIZE, |elf, bug| {
        let [name, what, found_by] = [0, 16, 32].map(|at| text_at(elf, bug, at));
        let found_by = found_by?.split_whitespace().map(str::to_owned).collect();
        Some(Bug { name: name?, what: what?, found_by })
    })?;
    bugs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(bugs)
}

/// Makes sure that a kernel has bugs and hooks, or that it has none.
///
/// # Errors
/// `Build` when it is the wrong way round.
pub fn expect(kernel: &Path, wanted: bool) -> anyhow::Result<()> {
    let hooks = read(kernel, "linkme_SITES", 1, |_, _| Some(()))?;
    let bugs = list(kernel)?;
    if wanted != bugs.is_empty() && wanted != hooks.is_empty() {
        return Ok(());
    }
    let has = if wanted { "has no deliberate bugs or no hooks" } else { "has deliberate bugs or hooks" };
    let name = Profile::Mutants.name();
    Err(stop(Exit::Build, format!("{} {has}: only the profile `{name}` has them, and must", kernel.display())))
}

/// The bugs whose names fit one of the user's globs; `all` names all.
///
/// # Errors
/// `Usage` for a word that is no glob, or that fits none.
pub fn chosen(bugs: &[Bug], words: &[String]) -> anyhow::Result<Vec<Bug>> {
    if words.iter().any(|word| word == "all") {
        return Ok(bugs.to_vec());
    }
    let mut fits = Vec::new();
    for word in words {
        let glob = Glob::new(word).map_err(|error| usage(format!("--mutant {word}: {error}")))?.compile_matcher();
        if !bugs.iter().any(|bug| glob.is_match(&bug.name)) {
            let known: Vec<&str> = bugs.iter().map(|bug| bug.name.as_str()).collect();
            return Err(usage(format!("--mutant {word}: known are all, list, {}", known.join(", "))));
        }
        fits.push(glob);
    }
    Ok(bugs.iter().filter(|bug| fits.iter().any(|glob| glob.is_match(&bug.name))).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bug(name: &str) -> Bug {
        Bug { name: name.to_owned(), what: String::new(), found_by: Vec::new() }
    }

    #[test]
    fn a_bug_that_is_not_known_is_refused_with_those_that_are() {
        let bugs = [bug("barn.lost"), bug("slab.kept")];
        let names = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(chosen(&bugs, &names(&["slab.kept"])).unwrap(), [bug("slab.kept")]);
        assert_eq!(chosen(&bugs, &names(&["slab.*", "slab.kept"])).unwrap(), [bug("slab.kept")]);
        assert_eq!(chosen(&bugs, &names(&["all"])).unwrap(), bugs);
        let error = chosen(&bugs, &names(&["slab.gone"])).unwrap_err().to_string();
        assert_eq!(error, "--mutant slab.gone: known are all, list, barn.lost, slab.kept");
    }

    #[test]
    fn a_file_without_the_sections_counts_as_a_kernel_without_bugs() {
        // This very program: linked by the same linker, without a single bug or hook.
        let this = std::env::current_exe().unwrap();
        assert!(expect(&this, false).is_ok());
        assert!(expect(&this, true).unwrap_err().to_string().contains("has no deliberate bugs"));
    }
}
