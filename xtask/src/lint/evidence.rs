//! What rows of `docs/requirements.md` may name: tests, benches, sections of the docs. Read from the sources, without
//! building them.
//!
//! | named | is there if |
//! |---|---|
//! | `suite.name` | `tests/src/suites/` or `examples/` has a `ktest!` of that name in the module of that name |
//! | `crate::module::name` | the crate has a `#[test]` of that name in a file of that module; `tests` in between may be left out |
//! | `suite.bench` | `tests/src/benches/` has a `bench!` of that name in the module of that name |
//! | `docs/file.md#section` | the page has a heading with that anchor |

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The folder of each crate with host tests, by the name that the workspace uses for it.
const CRATES: [(&str, &str); 11] = [
    ("arch", "kernel/arch"),
    ("sync", "kernel/sync"),
    ("mm", "kernel/mm"),
    ("sched", "kernel/sched"),
    ("rcu", "kernel/rcu"),
    ("slab", "kernel/slab"),
    ("kfree_rcu", "kernel/kfree_rcu"),
    ("kernel", "kernel"),
    ("tests", "tests"),
    ("boot", "boot"),
    ("xtask", "xtask"),
];

/// Everything that may be named.
#[derive(Debug, Default)]
pub struct Evidence {
    kernel_tests: BTreeSet<String>,
    host_tests: BTreeSet<String>,
    benches: BTreeSet<String>,
    pub(super) sections: BTreeSet<String>,
}

impl Evidence {
    /// Reads the workspace at `root`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of(root: &Path) -> anyhow::Result<Evidence> {
        let mut evidence = Evidence::default();
        for (name, folder) in CRATES {
            for part in ["src", "tests"] {
                for (path, text) in files(&root.join(folder).join(part), "rs")? {
                    evidence.read_host_file(name, &format!("{part}/{path}"), &text);
                }
            }
        }
        for (path, text) in files(&root.join("tests/src"), "rs")? {
            evidence.read_suite(&path, &text);
        }
        for (path, text) in files(&root.join("docs"), "md")? {
            evidence.read_page(&format!("docs/{path}"), &text);
        }
        Ok(evidence)
    }

    /// Whether `suite.name` is a test in the kernel.
    #[must_use]
    pub fn has_kernel_test(&self, name: &str) -> bool {
        self.kernel_tests.contains(name)
    }

    /// Whether `crate::module::name` is a test on the host.
    #[must_use]
    pub fn has_host_test(&self, path: &str) -> bool {
        self.host_tests.contains(&canonical(path.split("::")))
    }

    /// Whether `suite.name` is a bench.
    #[must_use]
    pub fn has_bench(&self, name: &str) -> bool {
        self.benches.contains(name)
    }

    /// Whether `docs/file.md#section` is there.
    #[must_use]
    pub fn has_section(&self, place: &str) -> bool {
        self.sections.contains(place)
    }

    /// Takes in a file of the crate of in-kernel tests; `path` is below its `src`.
    pub(super) fn read_suite(&mut self, path: &str, text: &str) {
        let Some((folder, below)) = path.split_once('/') else { return };
        let (names, argument) = match folder {
            "suites" | "examples" => (&mut self.kernel_tests, ": &mut Test)"),
            "benches" => (&mut self.benches, ": &mut Bencher)"),
            _ => return,
        };
        if let Some(suite) = modules(below).last() {
            let declared = text.lines().filter(|line| line.contains(argument)).filter_map(function);
            names.extend(declared.map(|name| format!("{suite}.{name}")));
        }
    }

    /// Takes in a file of a crate; `path` is below the crate's folder.
    pub(super) fn read_host_file(&mut self, name: &str, path: &str, text: &str) {
        let mut modules = modules(path);
        // `src` or `tests`
        modules.remove(0);
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            match function(line).filter(|_| is_test) {
                Some(test) => {
                    let path = [name].into_iter().chain(modules.iter().copied()).chain([test]);
                    self.host_tests.insert(canonical(path));
                    is_test = false;
                }
                None => is_test = line == "#[test]" || (is_test && (line.starts_with("#[") || line.starts_with("//"))),
            }
        }
    }

    /// Takes in a page of the docs.
    pub(super) fn read_page(&mut self, path: &str, text: &str) {
        let mut in_code = false;
        for line in text.lines() {
            in_code ^= line.starts_with("```");
            if let Some(heading) = line.strip_prefix('#').filter(|_| !in_code) {
                self.sections.insert(format!("{path}#{}", anchor(heading.trim_start_matches('#'))));
            }
        }
    }
}

/// The modules that a path to a source file means: `src/a/mod.rs` and `src/a.rs` are `src`, `a`.
fn modules(path: &str) -> Vec<&str> {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    stem.split('/').filter(|part| !["mod", "lib", "main"].contains(part)).collect()
}

/// A test's path without what says only that it is a test: `a::b::tests::c` and `a::b_tests::c` are `a::b::c`.
fn canonical<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut parts: Vec<&str> = parts.collect();
    let name = parts.pop().unwrap_or_default();
    let crate_and_modules = parts.iter().enumerate().filter(|&(at, part)| at == 0 || *part != "tests");
    let mut path: Vec<&str> = crate_and_modules.map(|(_, part)| part.strip_suffix("_tests").unwrap_or(part)).collect();
    path.push(name);
    path.join("::")
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("fn ")?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|&c| c.is_alphanumeric() || " -_".contains(c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// All files below `folder` with that extension: path from the folder, and text. None where there is no folder.
pub(super) fn files(folder: &Path, extension: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(next) = folders.pop().filter(|next| next.is_dir()) {
        for entry in next.read_dir().with_context(|| next.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                files.push((path.strip_prefix(folder)?.display().to_string(), text));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_test_is_named_by_crate_module_and_name() {
        let mut evidence = Evidence::default();
        let text = "#[test]\n#[should_panic]\n/// Why.\nfn first() {}\nfn helper() {}\n    #[test]\nfn second() {}\n";
        evidence.read_host_file("rcu", "src/gp/mod.rs", text);
        evidence.read_host_file("rcu", "src/cblist_tests.rs", "    #[test]\n    fn third(ops in ops()) {\n");
        evidence.read_host_file("rcu", "tests/hosted.rs", "#[test]\nfn fourth() {}\n");
        evidence.read_host_file("tests", "src/run.rs", "#[test]\nfn fifth() {}\n");
        for there in [
            "rcu::gp::first",
            "rcu::gp::tests::second",
            "rcu::cblist::third",
            "rcu::hosted::fourth",
            "tests::run::fifth",
        ] {
            assert!(evidence.has_host_test(there), "{there}");
        }
        for not in ["rcu::gp::helper", "rcu::first", "gp::first", "first", "rcu::run::fifth"] {
            assert!(!evidence.has_host_test(not), "{not}");
        }
    }

    #[test]
    fn a_kernel_test_is_a_function_of_a_suite_that_takes_the_test() {
        let mut evidence = Evidence::default();
        evidence.read_suite("suites/nmi/mod.rs", "    fn nested(t: &mut Test) {\nfn helper(t: &mut Test<'_>) {\n");
        evidence.read_suite("examples/cache.rs", "    fn allocates(t: &mut Test) {\n");
        evidence.read_suite("case.rs", "        fn sample(t: &mut Test) {\n");
        assert!(evidence.has_kernel_test("nmi.nested") && evidence.has_kernel_test("cache.allocates"));
        assert!(!evidence.has_kernel_test("nmi.helper") && !evidence.has_kernel_test("case.sample"));
    }

    #[test]
    fn a_section_is_named_by_its_anchor() {
        let mut evidence = Evidence::default();
        evidence.read_page("docs/a.md", "# Top\n```\n# not this\n```\n### What `x`, y-z say\n");
        assert!(evidence.has_section("docs/a.md#top") && evidence.has_section("docs/a.md#what-x-y-z-say"));
        assert!(!evidence.has_section("docs/a.md#not-this") && !evidence.has_section("docs/b.md#top"));
    }

    #[test]
    fn a_bench_is_a_function_of_a_module_of_benches_that_takes_the_bencher() {
        let mut evidence = Evidence::default();
        let text = "    fn pair(b: &mut Bencher) {\nfn helper(b: &mut Bencher<'_>) {\n// \"slab.named\"\n";
        evidence.read_suite("benches/slab.rs", text);
        assert!(evidence.has_bench("slab.pair") && !evidence.has_kernel_test("slab.pair"));
        assert!(!evidence.has_bench("slab.helper") && !evidence.has_bench("slab.named"));
    }
}
